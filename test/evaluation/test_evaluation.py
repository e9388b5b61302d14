"""Reading, scoring, validating: on a small dataset of our own, and against what the official programs print."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from helpers import write_nifti
from numpy.typing import NDArray

from evaluation.__main__ import ALL_SCORED, BAD_INPUT, SOME_FAILED, main
from evaluation.errors import EvaluationError
from evaluation.images import read_field
from evaluation.landmarks import read_landmarks
from evaluation.pairs import Pair, find_field, read_pairs
from mcbo.studies.demo import write_dataset
from mcbo.studies.phantom import make_phantom

SHAPE = (5, 6, 7)
PAIR = Pair(Path("imagesTr/T_0001_0000.nii.gz"), Path("imagesTr/T_0001_0001.nii.gz"))
FIRST, SECOND = "disp_0001_0000_0001_0001", "disp_0001_0000_0001_0002"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found an empty file"),
        ("x,y,q\n1,2,3\n", "found 'x,y,q' in line 1; remove the header, if it is one"),
        ("1;2;3\n", "separated by commas, found semicolons"),
        ("1,2,3\n\n3,4,5\n", "found '' in line 2"),
        ("1,2\n3,4\n", "expected three numbers a line, found '1,2' in line 1"),
        ("1,2,3\n1,2,3,4\n", "expected three numbers a line, found '1,2,3,4' in line 2"),
        ("1,2,3\n1,nan,3\n", "found '1,nan,3' in line 2"),
        ("1,2,3\n1,2,6.6\n", "inside the volume of 5×6×7 voxels, found '1,2,6.6' in line 2"),
    ],
)
def test_landmarks_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(EvaluationError, match=rf"a\.csv: .*{message}"):
        read_landmarks(path, inside=SHAPE)


def test_landmarks_that_are_some(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("1,2,3\r\n0.5,5,6e0\n\n")
    assert read_landmarks(path, inside=SHAPE).tolist() == [[1, 2, 3], [0.5, 5, 6]]
    with pytest.raises(EvaluationError, match="absent"):
        read_landmarks(tmp_path / "absent.csv")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((*SHAPE, 3)), "expected float32, found float64"),
        (np.zeros((*SHAPE, 3), np.int16), "expected float32, found int16"),
        (np.full((*SHAPE, 3), np.nan, np.float32), "expected finite displacements, found 630 values that are NaN or infinite"),
        (np.zeros((3, *SHAPE), np.float32), r"expected shape \(5, 6, 7, 3\), found \(3, 5, 6, 7\); move the components to"),
        (np.zeros((4, 6, 7, 3), np.float32), r"expected shape \(5, 6, 7, 3\), found \(4, 6, 7, 3\); resample it"),
    ],
)
def test_fields_that_are_none(tmp_path: Path, array: NDArray[np.generic], message: str) -> None:
    path = write_nifti(tmp_path / "disp.nii.gz", array)
    with pytest.raises(EvaluationError, match=rf"disp\.nii\.gz: {message}"):
        read_field(path, shape=SHAPE)


def test_fields_that_are_cut_or_no_images(tmp_path: Path) -> None:
    whole = write_nifti(tmp_path / "whole.nii.gz", np.random.default_rng(0).random((*SHAPE, 3), dtype=np.float32))
    for name, content in {"cut.nii.gz": whole.read_bytes()[:400], "text.nii.gz": b"hello", "a.npz": b"PK\x03\x04"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(EvaluationError, match=rf"{name}: expected a whole displacement file"):
            read_field(tmp_path / name, shape=SHAPE)


@pytest.mark.parametrize("name", ["disp_0001_0000_0001_0001.nii.gz", "disp_0001_0001.nii.gz", "disp_0001_0001.npz"])
def test_long_and_short_names_are_found(tmp_path: Path, name: str) -> None:
    with pytest.raises(EvaluationError, match=r"disp_0001_0000_0001_0001\.nii\.gz: expected a displacement, found no such"):
        find_field(tmp_path, PAIR)
    (tmp_path / name).touch()
    assert find_field(tmp_path, PAIR).name == name


def test_datasets_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a_dataset.json"
    for text, message in {
        "{}": "expected pairs under registration_val",
        "[]": "expected a JSON object, found a list",
        "{": "expected a JSON file",
        '{"registration_val": [{"fixed": 3}]}': "expected pairs",
        '{"registration_val": [{"fixed": "a.nii", "moving": "b.nii"}]}': "expected a file name like",
    }.items():
        path.write_text(text)
        with pytest.raises(EvaluationError, match=message):
            read_pairs(path)


# --- the official programs ---


def assert_agrees(official: Any, found: Any, where: str = "") -> int:
    """Every key of the official JSON is in ours, with the same number to 1e-6. Returns how many numbers were compared."""
    if isinstance(official, Mapping):
        return sum(assert_agrees(value, found[key], f"{where}/{key}") for key, value in official.items())
    if isinstance(official, list):
        assert len(official) == len(found), where
        return sum(assert_agrees(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(official, found, strict=True)))
    if isinstance(official, str):
        assert official == found, where
        return 0
    assert found == pytest.approx(official, abs=1e-6), where
    return 1


@pytest.mark.parametrize("program", ["remind2reg", "l2r"])
def test_every_official_number(shared: Path, tmp_path: Path, program: str) -> None:
    golden = shared / "golden" / "evaluation"
    official = json.loads((golden / f"official_{program}.json").read_text())
    arguments = ["--dataset", str(golden / "ReMIND2Reg_dataset.json"), "--predictions", str(golden / "predictions")]
    if program == "l2r":  # that program was given the pairs of ceT1 alone, and labels
        pairs = [
            {"fixed": f"./imagesTr/ReMIND2Reg_{f}.nii.gz", "moving": f"./imagesTr/ReMIND2Reg_{m}.nii.gz"}
            for f, m in (name.split("<--") for name in official["cases"])
        ]
        methods = [
            {"name": "LogJacDetStd", "metric": "sdlogj"},
            {"name": "TRE_lm", "metric": "tre", "dest": "landmarks"},
            {"name": "DSC", "metric": "dice", "labels": [1, 2]},
            {"name": "HD95", "metric": "hd95", "labels": [1, 2]},
        ]
        config = {"task_name": "ReMIND2Reg", "evaluation_methods": methods, "eval_pairs": pairs}
        (tmp_path / "config.json").write_text(json.dumps(config))
        arguments += ["--config", str(tmp_path / "config.json"), "--program", "l2r"]
    assert main(["score", *arguments, "--output", str(tmp_path / "metrics.json")]) == ALL_SCORED
    assert assert_agrees(official, json.loads((tmp_path / "metrics.json").read_text())) > 50


# --- a dataset of our own ---


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A phantom with its true displacement as the prediction for both modalities, in ``predictions``."""
    phantom = make_phantom((24, 26, 28), seed=2)
    path = write_dataset(phantom, tmp_path / "data")
    field = np.moveaxis(phantom.displacement[0].numpy(), 0, -1)
    for name in (FIRST, SECOND):
        write_nifti(tmp_path / "predictions" / f"{name}.nii.gz", field)
    return path


def run(command: str, dataset: Path, *arguments: str) -> int:
    predictions = [] if command in ("leaderboard", "zero") else ["--predictions", str(dataset.parents[1] / "predictions")]
    return main([command, "--dataset", str(dataset), *predictions, *arguments])


def scores(dataset: Path, *arguments: str) -> Any:
    path = dataset.parents[1] / "metrics.json"
    run("score", dataset, "--output", str(path), *arguments)
    return json.loads(path.read_text())


def test_the_truth_scores_zero_and_no_motion_the_initial_error(dataset: Path) -> None:
    truth = scores(dataset)
    assert truth["aggregates"]["TRE_lm"]["mean"] < 0.01
    assert truth["aggregates"]["TRE_lm"]["landmarks"]["improved"] == 1
    zero = dataset.parents[1] / "zero"
    assert run("zero", dataset, "--output", str(zero)) == ALL_SCORED
    main(["score", "--dataset", str(dataset), "--predictions", str(zero), "--output", str(zero / "m.json")])
    initial = json.loads((zero / "m.json").read_text())["aggregates"]
    assert initial["TRE_lm"]["mean"] == initial["TRE_lm"]["initial_mean"] == truth["aggregates"]["TRE_lm"]["initial_mean"] > 0.5
    assert initial["LogJacDetStd"]["mean"] == 0
    assert np.array_equal(nibabel.load(zero / f"{FIRST}.nii.gz").affine, np.eye(4))  # type: ignore[attr-defined]


def test_the_files_hold_what_the_run_found(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv, html = dataset.parents[1] / "a.csv", dataset.parents[1] / "a.html"
    assert run("score", dataset, "--csv", str(csv), "--html", str(html)) == ALL_SCORED
    header, *rows = csv.read_text().splitlines()
    assert {"TRE_lm_initial", "TRE_lm", "TRE_lm_p95", "TRE_lm_worst", "folded_fraction"} <= set(header.split(","))
    assert [row.split(",")[0] for row in rows] == [FIRST, SECOND]
    page = html.read_text()
    assert page.count("<svg") == 2
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons", ""
    )
    assert "mean" in capsys.readouterr().out


def test_the_table_has_counts_and_their_mean(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    field = np.zeros((24, 26, 28, 3), np.float32)
    field[10, 10, 10, 0] = 4  # det J = 1 − 2 in the voxel before it
    write_nifti(dataset.parents[1] / "predictions" / f"{SECOND}.nii.gz", field)
    assert run("score", dataset, "--metrics", "sdlogj") == ALL_SCORED
    *_, first, second, mean = (line.split()[-1] for line in capsys.readouterr().out.splitlines())
    assert (first, second, mean) == ("0", "1", "0.5")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("missing", "expected a displacement, found no such file"),
        ("nan", "expected finite displacements"),
        ("float64", "expected float32, found float64"),
        ("first", "move the components to the last axis"),
        ("cut", "expected a whole displacement file"),
        ("landmarks", "expected as many points as ReMIND2Reg_0001_0000.csv has"),
    ],
)
def test_a_pair_without_a_score_says_why_and_the_other_is_scored(
    dataset: Path, capsys: pytest.CaptureFixture[str], spoil: str, message: str
) -> None:
    spoil_second(dataset, spoil)
    assert run("score", dataset) == SOME_FAILED
    assert f"ERROR: {SECOND} has no score" in capsys.readouterr().err
    found = scores(dataset)
    second = found["cases"]["0001_0000<--0001_0002"]
    assert second["TRE_lm"] == {"mean": None, "detailed": None}
    assert message in second["error"]
    assert found["failed"].keys() == {"0001_0000<--0001_0002"}
    assert found["aggregates"]["TRE_lm"]["cases"] == 1
    html = dataset.parents[1] / "a.html"
    run("score", dataset, "--html", str(html))
    assert "No score" in html.read_text()


def spoil_second(dataset: Path, spoil: str) -> None:
    path = dataset.parents[1] / "predictions" / f"{SECOND}.nii.gz"
    field = np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
    whole = path.read_bytes()
    path.unlink()
    if spoil == "nan":
        field = field.copy()
        field[0, 0, 0] = np.nan
    elif spoil == "float64":
        field = field.astype(np.float64)
    elif spoil == "first":
        field = np.moveaxis(field, -1, 0)
    elif spoil == "landmarks":
        csv = dataset.parent / "landmarksTr" / "ReMIND2Reg_0001_0002.csv"
        csv.write_text("\n".join(csv.read_text().splitlines()[:-1]))
    if spoil == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif spoil != "missing":
        write_nifti(path, field)


def test_labels_and_masks_are_used_where_they_are(dataset: Path) -> None:
    fixed = np.zeros((24, 26, 28), np.uint8)
    fixed[4:10, 4:10, 4:10] = 1
    for channel in ("0000", "0001", "0002"):
        write_nifti(dataset.parent / "labelsTr" / f"ReMIND2Reg_0001_{channel}.nii.gz", fixed + 0)
        write_nifti(dataset.parent / "masksTr" / f"ReMIND2Reg_0001_{channel}.nii.gz", fixed)
    found = scores(dataset)
    assert 0 < found["aggregates"]["DSC"]["mean"] < 1
    assert found["cases"]["0001_0000<--0001_0001"]["DSC"]["labels"] == [1]
    config = dataset.parents[1] / "config.json"
    methods = [{"name": "smooth", "metric": "sdlogj"}, {"name": "DSC", "metric": "dice", "labels": [1, 9]}]
    config.write_text(json.dumps({"evaluation_methods": methods, "masked_evaluation": True}))
    masked = scores(dataset, "--config", str(config))
    assert masked["aggregates"]["smooth"]["mean"] != found["aggregates"]["LogJacDetStd"]["mean"]
    assert masked["cases"]["0001_0000<--0001_0001"]["DSC"]["detailed"][1] is None  # no such label
    assert masked["aggregates"]["DSC"]["mean"] == found["aggregates"]["DSC"]["mean"]


def test_a_label_moved_out_of_the_volume_has_no_distance(dataset: Path) -> None:
    labels = np.zeros((24, 26, 28), np.uint8)
    labels[4:10, 4:10, 4:10] = 1
    for channel in ("0000", "0001", "0002"):
        write_nifti(dataset.parent / "labelsTr" / f"ReMIND2Reg_0001_{channel}.nii.gz", labels)
    write_nifti(dataset.parents[1] / "predictions" / f"{SECOND}.nii.gz", np.full((24, 26, 28, 3), 100, np.float32))
    html = dataset.parents[1] / "a.html"
    found = scores(dataset, "--html", str(html))
    second = found["cases"]["0001_0000<--0001_0002"]
    assert (second["HD95"]["mean"], second["DSC"]["mean"]) == (None, 0)
    assert "moved out of the volume" in second["notes"][0]
    assert found["aggregates"]["HD95"]["cases"] == 1
    assert "moved out of the volume" in html.read_text()


def test_pairs_may_lack_what_is_not_asked_for(dataset: Path) -> None:
    """Of one pair the landmarks are missing, labels have nothing in common: all else is scored, and every file is written."""
    for channel, label in (("0000", 1), ("0002", 2)):
        labels = np.zeros((24, 26, 28), np.uint8)
        labels[4:10, 4:10, 4:10] = label
        write_nifti(dataset.parent / "labelsTr" / f"ReMIND2Reg_0001_{channel}.nii.gz", labels)
    write_nifti(dataset.parent / "labelsTr" / "ReMIND2Reg_0001_0001.nii.gz", labels)
    (dataset.parent / "landmarksTr" / "ReMIND2Reg_0001_0002.csv").unlink()
    (dataset.parent / "landmarksTr" / "ReMIND2Reg_0001_0000.csv").unlink()
    (dataset.parent / "landmarksTr" / "ReMIND2Reg_0001_0001.csv").unlink()
    html = dataset.parents[1] / "a.html"
    found = scores(dataset, "--html", str(html))
    assert set(found["aggregates"]) == {"LogJacDetStd", "num_foldings", "folded_voxels", "folded_fraction", "NDV"}
    assert "are not in both images" in html.read_text()


def test_a_volume_too_thin_for_determinants_says_so(tmp_path: Path) -> None:
    for channel in ("0000", "0001"):
        write_nifti(tmp_path / "data" / "imagesTr" / f"T_0001_{channel}.nii.gz", np.zeros((4, 9, 9), np.float32))
    write_nifti(tmp_path / "predictions" / f"{FIRST}.nii.gz", np.zeros((4, 9, 9, 3), np.float32))
    entry = {"fixed": "./imagesTr/T_0001_0000.nii.gz", "moving": "./imagesTr/T_0001_0001.nii.gz"}
    dataset = tmp_path / "data" / "T_dataset.json"
    dataset.write_text(json.dumps({"name": "T", "registration_val": [entry, entry]}))
    found = scores(dataset)
    assert set(found["aggregates"]) == {"NDV"}
    assert list(found["cases"]) == ["0001_0000<--0001_0001"]  # listed twice, counted once
    assert "no SDlogJ" in found["cases"]["0001_0000<--0001_0001"]["notes"][0]


def test_archives_hold_one_array_and_headers_may_lie(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    np.savez(tmp_path / "none.npz")
    with pytest.raises(EvaluationError, match=r"two\.npz: expected one array, found 2 \(a, b\)"):
        read_field(tmp_path / "two.npz", shape=SHAPE)
    with pytest.raises(EvaluationError, match=r"none\.npz: expected one array, found 0$"):
        read_field(tmp_path / "none.npz", shape=SHAPE)
    header = nibabel.Nifti1Header()
    header.set_data_shape((32000, 32000, 32000, 3))
    header["vox_offset"] = 352
    (tmp_path / "huge.nii").write_bytes(header.binaryblock + bytes(100))
    with pytest.raises(EvaluationError, match=r"claims 4 dimensions and the shape \(32000, 32000, 32000, 3\)"):
        read_field(tmp_path / "huge.nii", shape=SHAPE)
    swapped = write_nifti(tmp_path / "big.nii.gz", np.zeros((*SHAPE, 3), ">f4"))
    assert read_field(swapped, shape=SHAPE).shape == (*SHAPE, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "expected a list under evaluation_methods"),
        ('{"evaluation_methods": [{"metric": "ssim"}]}', "metric out of tre, sdlogj, dice, hd95, ndv, found"),
        ('{"evaluation_methods": [3]}', "found 3"),
        ("no", "expected a JSON file"),
    ],
)
def test_configs_that_are_none(dataset: Path, capsys: pytest.CaptureFixture[str], content: str, message: str) -> None:
    config = dataset.parents[1] / "config.json"
    config.write_text(content)
    assert run("score", dataset, "--config", str(config)) == BAD_INPUT
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "--metrics", "tre,ssim"], "--metrics: expected some of tre, sdlogj, dice, hd95, ndv, found 'ssim'"),
        (["score", "--split", "dev"], "--split: expected one of val, test, train, found 'dev'"),
        (["score", "--program", "mine"], "--program: expected one of remind2reg, l2r, found 'mine'"),
        (["score", "--csv", "/proc/none/a.csv"], "/proc/none/a.csv: cannot be written"),
        (["score", "--metrics", ""], "--metrics: expected some of tre, sdlogj, dice, hd95, ndv, found none"),
        (["validate", "--split", "test"], "expected pairs under registration_test"),
        (["leaderboard", "a=nowhere", "--output", "a.html"], "nowhere: expected a folder of displacements, found none"),
        (["leaderboard", "a", "--output", "a.html"], "expected methods as NAME=DIR, each name once, found 'a'"),
        (["leaderboard", "a=b", "a=c", "--output", "a.html"], "each name once, found 'a=c'"),
        (
            ["leaderboard", "a=b", "--output", "a.pdf"],
            "--output: expected a name ending in .html, .md, .csv, .json, found 'a.pdf'",
        ),
        (["score", "--nonsense"], "nonsense"),
    ],
)
def test_bad_usage_is_one_sentence(
    dataset: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    command, *rest = arguments
    assert run(command, dataset, *rest) == BAD_INPUT
    assert message in capsys.readouterr().err


def test_the_demo_is_not_shown_beside_published_results(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = dataset.parents[1] / "board.html"
    method = f"mine={dataset.parents[1] / 'predictions'}"
    assert run("leaderboard", dataset, method, "--output", str(board), "--published", "--ranking", "2026") == ALL_SCORED
    assert "the images are simulated; published results come from others" in capsys.readouterr().err
    assert "Published" not in board.read_text()
    dataset.write_text(dataset.read_text().replace('"simulated": true', '"simulated": false'))
    assert run("leaderboard", dataset, method, "--output", str(board), "--published") == ALL_SCORED
    assert "they come from other images" in board.read_text()


# --- validate ---


def problems(dataset: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    status = run("validate", dataset)
    *lines, summary = capsys.readouterr().out.splitlines()
    assert summary == f"2 pair(s), {len(lines)} problem(s)"
    assert status == (BAD_INPUT if lines else ALL_SCORED)
    return lines


def test_a_good_submission_has_no_problem(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert problems(dataset, capsys) == []


def test_every_problem_is_reported_at_once(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = dataset.parents[1] / "predictions"
    (folder / f"{SECOND}.nii.gz").rename(folder / "disp_0001_0002_0001_0000.nii.gz")
    field = np.asarray(nibabel.load(folder / f"{FIRST}.nii.gz").dataobj)  # type: ignore[attr-defined]
    nibabel.save(nibabel.Nifti1Image(field.astype(np.float64), np.diag([2, 2, 2, 1])), folder / f"{FIRST}.nii.gz")
    found = problems(dataset, capsys)
    for part in (
        "expected float32, found float64",
        "expected the affine of",
        f"{SECOND}.nii.gz: expected a displacement",
        "rename it",
    ):
        assert any(part in line for line in found), part
    assert len(found) == 4


def test_a_broken_file_may_have_several_problems(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = dataset.parents[1] / "predictions" / f"{SECOND}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.full((3, 24, 26, 28), np.nan), np.diag([2, 2, 2, 1])), path)
    found = problems(dataset, capsys)
    for part in ("move the components", "expected float32", "expected the affine", "expected finite displacements"):
        assert any(part in line for line in found), part


def test_the_fixed_image_itself_may_be_missing(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset.parent / "imagesTr" / "ReMIND2Reg_0001_0000.nii.gz").unlink()
    assert all("complete the data set" in line for line in problems(dataset, capsys))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("nan", "that are NaN or infinite; correct it and write it again"),
        ("first", "move the components to the last axis"),
        ("cut", "write it again"),
    ],
)
def test_broken_files_come_with_a_remedy(dataset: Path, capsys: pytest.CaptureFixture[str], spoil: str, message: str) -> None:
    spoil_second(dataset, spoil)
    (line,) = problems(dataset, capsys)
    assert message in line


@pytest.mark.parametrize("landmarks", [True, False])
@pytest.mark.parametrize("mistake", ["millimeters", "components (2, 1, 0)", "components (1, 0, 2)", "from moving to fixed"])
def test_likely_mistakes_are_suspected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mistake: str, landmarks: bool
) -> None:
    """On 0.5 mm voxels, the truth written wrongly; with landmarks, and by the images alone."""
    shape = (40, 44, 48)
    field = np.zeros((*shape, 3), np.float32)
    field[..., 0], field[..., 2] = 6, -3
    rng = np.random.default_rng(0)
    moving = np.kron(rng.random((8, 9, 10)), np.ones((5, 5, 5)))[:40, :44, :48] + 0.2
    fixed = 2 - np.roll(moving, (-6, 0, 3), axis=(0, 1, 2)) ** 2
    affine = np.diag([0.5, 0.5, 0.5, 1])
    images, points = tmp_path / "data" / "imagesTr", tmp_path / "data" / "landmarksTr"
    for folder in (images, points, tmp_path / "predictions"):
        folder.mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(fixed.astype(np.float32), affine), images / "T_0001_0000.nii.gz")
    nibabel.save(nibabel.Nifti1Image(moving.astype(np.float32), affine), images / "T_0001_0001.nii.gz")
    if landmarks:
        (points / "T_0001_0000.csv").write_text("20,20,20\n10,30,30\n")
        (points / "T_0001_0001.csv").write_text("26,20,17\n16,30,27\n")
    wrong = {
        "millimeters": field * 0.5,
        "components (2, 1, 0)": field[..., ::-1],
        "components (1, 0, 2)": field[..., [1, 0, 2]],
        "from moving to fixed": -field,
    }[mistake]
    nibabel.save(nibabel.Nifti1Image(wrong, affine), tmp_path / "predictions" / f"{FIRST}.nii.gz")
    entry = {"fixed": "./imagesTr/T_0001_0000.nii.gz", "moving": "./imagesTr/T_0001_0001.nii.gz"}
    dataset = tmp_path / "data" / "T_dataset.json"
    dataset.write_text(json.dumps({"name": "T", "registration_val": [entry]}))
    run("validate", dataset)
    suspicion, _ = capsys.readouterr().out.splitlines()
    assert "suspected" in suspicion
    assert mistake in suspicion
    nibabel.save(nibabel.Nifti1Image(field, affine), tmp_path / "predictions" / f"{FIRST}.nii.gz")
    assert run("validate", dataset) == ALL_SCORED


@pytest.mark.parametrize("command", ["score", "validate", "leaderboard", "zero", "grand-challenge", "codabench"])
def test_help_gives_flags_and_arguments_no_type(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--trust-paths" in text or command == "codabench"
    assert not re.search(r"<(bool|path|list|str)", text)
