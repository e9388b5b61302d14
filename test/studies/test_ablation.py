"""The table that a default is chosen by: its variants, its numbers, its refusals."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import cascade_config, paper_config, write_nifti

from evaluation.settings import from_options
from evaluation.summary import score, to_table
from mcbo.cli.main import main
from mcbo.core.errors import InputError
from mcbo.io.nifti import read_displacement
from mcbo.methods.cascade import CascadeConfig
from mcbo.methods.multilevel import MultilevelConfig
from mcbo.methods.presets import find_config
from mcbo.methods.settings import replace_field
from mcbo.runs import compute as case_compute
from mcbo.studies.ablation import make_studies
from mcbo.studies.demo import TASK, write_dataset
from mcbo.studies.phantom import Phantom, make_phantom
from mcbo.studies.truth import read_truth
from mcbo.studies.variants import make_variants, parse_change

SHAPE = (24, 22, 26)
STEP = 2
CHANGE = "mcbo2024:levels.3.refinement=None"
CASCADE = cascade_config()
PAPER = paper_config()


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(SHAPE, wedge=True)


@pytest.fixture(scope="module")
def dataset(phantom: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One case with both moving modalities, landmarks (other ones in each, so that the pairs' errors differ), labels, truth."""
    folder = tmp_path_factory.mktemp("data") / "Phantom"
    path = write_dataset(phantom, folder)
    np.savetxt(folder / "landmarksTr" / f"{TASK}_0001_0002.csv", phantom.moving_landmarks + 1, delimiter=",")
    for channel, image in enumerate((phantom.fixed, phantom.cet1, phantom.t2)):
        labels = (image[0, 0] > image.mean()).numpy().astype(np.uint8)
        write_nifti(folder / "labelsTr" / f"{TASK}_0001_{channel:04}.nii.gz", labels)
    (folder / "truth").mkdir()
    truth = phantom.displacement[0, :, ::STEP, ::STEP, ::STEP].movedim(0, -1).numpy()
    np.savez_compressed(folder / "truth" / "0001.npz", displacement=truth.astype(np.float16))
    return path


def test_changes_replace_what_they_name_and_nothing_else() -> None:
    after = parse_change("mcbo2024: consistency_rounds = 5; levels.3.refinement.iterations=30; levels.0.weight=1", task=TASK)
    assert after.name == "mcbo2024:consistency_rounds=5;levels.3.refinement.iterations=30;levels.0.weight=1"
    assert isinstance(after.config, MultilevelConfig)
    assert after.config.consistency_rounds == 5
    assert after.config.levels[3].refinement is not None
    assert after.config.levels[3].refinement.iterations == 30
    assert (after.config.levels[0].weight, type(after.config.levels[0].weight)) == (1.0, float)
    undone = replace_field(after.config, "consistency_rounds", 15, who="test")
    undone = replace_field(undone, "levels.3.refinement.iterations", 15, who="test")
    assert replace_field(undone, "levels.0.weight", 0.36, who="test") == PAPER


def test_places_in_lists_lists_and_nothing() -> None:
    config = parse_change(
        "mcbo2024:coupling_weights.5=2.5; levels.3.refinement=None; modality_fusion=None; levels.1.tiles=3", task=TASK
    ).config
    assert isinstance(config, MultilevelConfig)
    assert config.coupling_weights == (0.003, 0.01, 0.03, 0.1, 0.3, 2.5)
    assert (config.levels[3].refinement, config.modality_fusion, config.levels[1].tiles) == (None, None, 3)
    assert parse_change("mcbo2024:coupling_weights=(0.5, 1)", task=TASK).config == replace(PAPER, coupling_weights=(0.5, 1.0))


def test_the_other_kind_of_method_changes_as_well() -> None:
    change = "cascade:refinement.stages.0.grid_spacing=5; rigid.cautious.search_radius=2; start=None; deformation.stages=()"
    config = parse_change(change, task=TASK).config
    assert isinstance(config, CascadeConfig)
    stages = CASCADE.refinement.stages
    assert [stage.grid_spacing for stage in config.refinement.stages] == [5, *(stage.grid_spacing for stage in stages[1:])]
    assert (config.rigid.cautious.search_radius, config.start, config.deformation.stages) == (2, None, ())
    assert replace_field(CASCADE, "refinement.stages", (), who="test").refinement.stages == ()
    with pytest.raises(InputError, match=r"test: grid_spacing: expected int, got 0\.5"):
        replace_field(CASCADE, "refinement.stages.1.grid_spacing", 0.5, who="test")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("consistency_rounds=5", "--change 'consistency_rounds=5': expected PRESET:FIELD=VALUE, found no colon"),
        ("best:stretch=False", "preset 'best' is not known for ReMIND2Reg: expected one of "),
        ("mcbo2024:stretch", "--change 'mcbo2024:stretch': expected FIELD=VALUE, got 'stretch'"),
        ("mcbo2024:stretch=False;", "expected FIELD=VALUE, got ''"),
        ("mcbo2024:=3", "expected FIELD=VALUE, got '=3'"),
        ("mcbo2024:stretch=no", "expected a Python literal such as 4, 0.5, None, 'text' or (), got 'no'"),
        ("mcbo2024:stretch=", "expected a Python literal such as 4, 0.5, None, 'text' or (), got ''"),
        ("mcbo2024:stretch=1", "stretch: expected bool, got 1"),
        ("mcbo2024:mind.radius=1.0", "radius: expected int, got 1.0"),
        ("mcbo2024:mind.radius=True", "radius: expected int, got True"),
        ("mcbo2024:levels=(1, 2)", "levels: expected tuple[Level, ...], got (1, 2)"),
        ("mcbo2024:levels.0.weight='much'", "weight: expected float, got 'much'"),
        ("mcbo2024:coupling_weights.0='x'", "coupling_weights: expected tuple[float, ...], got ('x', 0.01,"),
        ("mcbo2024:modality_fusion='mean'", "modality_fusion: expected "),
        ("mcbo2024:radius=2", "expected a field of MultilevelConfig (name, modality_fusion, mind, levels, "),
        ("mcbo2024:levels.3.refinement.steps=2", "expected a field of AdamSettings (grid_spacing, iterations, "),
        ("mcbo2024:levels.4.weight=2", "expected a number below 4, got '4'"),
        ("mcbo2024:levels.last.weight=2", "expected a number below 4, got 'last'"),
        ("mcbo2024:mind.radius.x=2", "expected nothing after a field that holds 1, got 'x'"),
        ("mcbo2024:levels.0.refinement.iterations=2", "expected nothing after a field that holds None, got 'iterations'"),
    ],
)
def test_changes_that_make_no_sense_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_change(text, task=TASK)
    assert sentence in str(caught.value)


def test_presets_come_first_and_repeats_count_once() -> None:
    changes = [CHANGE, "mcbo2024: levels.3.refinement = None"]
    assert [v.name for v in make_variants(TASK, presets=["mcbo2024", "mcbo2024"], changes=changes)] == ["mcbo2024", CHANGE]
    assert [v.config for v in make_variants(TASK, presets=[], changes=[])] == [CASCADE, PAPER]


def test_channels_outside_a_set_are_not_there(dataset: Path) -> None:
    one, both = make_studies([dataset, dataset], movings=(("0001",), ("0001", "0002")))
    assert [(s.dataset, s.moving) for s in (one, both)] == [(f"Phantom/{TASK}", "0001"), (f"Phantom/{TASK}", "0001+0002")]
    assert [[pair.moving_channel for pair in s.cases[0].pairs] for s in (one, both)] == [["0001"], ["0001", "0002"]]


def test_the_truth_is_no_distance_from_itself_and_a_shift_away_from_its_shift(dataset: Path, phantom: Phantom) -> None:
    images = dataset.parent / "imagesTr"
    truth = read_truth(dataset.parent / "truth" / "0001.npz", images / f"{TASK}_0001_0000.nii.gz")
    assert truth.step == STEP
    assert not truth.seen.all()
    assert truth.seen.any()
    assert truth.mean_error(phantom.displacement, [1, 1, 1]) == pytest.approx(0, abs=1e-3)  # of float16
    shifted = phantom.displacement.clone()
    shifted[0, 1] += 3
    assert truth.mean_error(shifted, [1, 0.5, 1]) == pytest.approx(1.5, abs=1e-3)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"field": np.zeros((24, 22, 26, 3))}, "expected an .npz with an array 'displacement'"),
        (
            {"displacement": np.zeros((3, 12, 11, 13))},
            "expected every n-th voxel of 24×22×26 with three components each, found",
        ),
        ({"displacement": np.full((12, 11, 13, 3), np.nan)}, "expected finite displacements"),
    ],
)
def test_a_truth_that_is_none_is_refused(dataset: Path, tmp_path: Path, content: dict[str, Any], sentence: str) -> None:
    np.savez(tmp_path / "0001.npz", **content)
    with pytest.raises(InputError, match=sentence):
        make_studies([dataset], truth=tmp_path)


def test_the_table_says_what_evaluation_says_and_a_second_run_does_nothing(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["ablate", "--dataset", str(dataset), "--change", CHANGE, "--device", "cpu", "--output", str(tmp_path / "out")]
    arguments += ["--json", str(tmp_path / "table.json"), "--markdown", str(tmp_path / "table.md")]
    assert main(arguments) == 0
    content = json.loads((tmp_path / "table.json").read_text())
    assert [row["variant"] for row in content["rows"]] == ["cascade", "mcbo2024", CHANGE]
    assert {"date", "commit", "machine", "device", "mcbo", "torch"} <= set(content["about"])
    folders = sorted(path.parent for path in (tmp_path / "out").rglob("report.json"))
    assert len(folders) == 3
    for row, folder in zip(content["rows"], folders, strict=True):
        _compare_with_evaluation(row, dataset, folder)
    assert content["rows"][1]["tre_mm"] != content["rows"][2]["tre_mm"]

    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert f"| `{CHANGE}` |" in table
    assert f" {content['rows'][1]['tre_mm']:.2f} |" in table
    assert "commit: " in table

    monkeypatch.setattr(case_compute, "register", None)  # would fail if it were called
    assert main(arguments) == 0
    assert json.loads((tmp_path / "table.json").read_text())["rows"] == content["rows"]
    assert main([*arguments, "--preset", "mcbo2024", "--overwrite"]) == 2  # now it is called


def _compare_with_evaluation(row: dict[str, Any], dataset: Path, folder: Path) -> None:
    table = to_table(score(dataset, folder, from_options(["tre", "sdlogj", "dice"])))
    assert (row["asked"], row["pairs"], row["failed"]) == (2, 2, {})
    assert row["initial_tre_mm"] == pytest.approx(table["TRE_lm_initial"].mean())
    assert row["tre_mm"] == pytest.approx(table["TRE_lm"].mean())
    assert row["tre_p30_mm"] < row["tre_p70_mm"]
    assert row["tre_std_mm"] == pytest.approx(table["TRE_lm"].std(ddof=0))
    assert row["tre_p30_mm"] == pytest.approx(table["TRE_lm"].quantile(0.3))
    assert row["tre_p70_mm"] == pytest.approx(table["TRE_lm"].quantile(0.7))
    assert row["dice"] == pytest.approx(table["DSC"].mean())
    assert row["sd_log_jacobian"] == pytest.approx(table["LogJacDetStd"].mean())
    assert row["folded_percent"] == pytest.approx(100 * table["folded_fraction"].mean())
    report = json.loads((folder / "report.json").read_text())
    assert row["seconds"] == pytest.approx(report["cases"]["0001"]["seconds"])
    assert row["device"] == report["device"]
    truth = read_truth(dataset.parent / "truth" / "0001.npz", dataset.parent / "imagesTr" / f"{TASK}_0001_0000.nii.gz")
    fields = [read_displacement(path) for path in sorted(folder.glob("disp_*"))]
    assert row["dense_mm"] == pytest.approx(np.mean([truth.mean_error(field, [1, 1, 1]) for field in fields]))


def test_a_variant_that_cannot_be_computed_costs_its_own_row(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["ablate", "--dataset", str(dataset), "--moving", "0001", "--json", str(tmp_path / "table.json")]
    arguments += ["--change", "mcbo2024:levels=()", "--change", CHANGE, "--preset", "mcbo2024", "--device", "cpu"]
    assert main(arguments) == 2
    preset, broken, changed = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert (broken["asked"], broken["pairs"], broken["tre_mm"]) == (1, 0, None)
    assert "cannot compute this variant" in broken["failed"]["disp_0001_0000_0001_0001"]
    assert preset["pairs"] == changed["pairs"] == 1
    output = capsys.readouterr()
    assert "0 of 1" in output.out
    assert "Traceback" not in output.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--split", "all"), "--split: expected one of val, test, train, got 'all'"),
        (("--split", "test"), "found none; there are pairs for --split val"),
        (("--case", "0007"), "case 0007 is not in the dataset: expected one of 0001"),
        (("--moving", "0001+0003"), "moving channel 0003 is not in the dataset: expected one of 0001, 0002"),
        (("--moving", ""), "moving channel  is not in the dataset"),
        (("--preset", "best"), "preset 'best' is not known"),
        (("--change", "mcbo2024:x=1"), "expected a field of MultilevelConfig"),
        (("--truth", "nowhere"), "nowhere: expected a known displacement CASE.npz of a chosen case, found none"),
        (("--device", "tpu"), "device 'tpu' is not known"),
        (("--dataset", "nowhere.json"), "nowhere.json: no such file; expected a dataset JSON"),
    ],
)
def test_what_makes_no_sense_is_refused(
    dataset: Path, arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ablate", "--dataset", str(dataset), *arguments]) == 1
    assert sentence in capsys.readouterr().err


def test_a_task_is_needed_where_the_json_names_none(dataset: Path) -> None:
    content = json.loads(dataset.read_text()) | {"name": "BrainT1"}
    other = dataset.parent / "BrainT1_dataset.json"
    other.write_text(json.dumps(content))
    with pytest.raises(InputError, match="task 'BrainT1' is not known"):
        make_studies([other])
    (study,) = make_studies([other], task="COMULIS3DCLEM")
    assert study.variants[0].config == find_config("COMULIS3DCLEM")
