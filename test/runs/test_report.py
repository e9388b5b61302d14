"""One model is written and read: what comes back is what went in, down to names that no encoding can write."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import paper_config

from mcbo.core.timing import StageRecord, StageTimer
from mcbo.core.types import Judgement
from mcbo.io.files import digest
from mcbo.methods.quality import Sanity
from mcbo.report import CaseReport, Stage, WorkingGrid, earlier_cases, read_report, stages_of, write_report

NAME = "disp_\udcff"
"""As the file system gives a name that is not UTF-8."""


def full_report() -> CaseReport:
    timer = StageTimer()
    with timer.stage("read"):
        pass
    return CaseReport(
        inputs={f"/data/{NAME}": "abc", "s3://data/moving.nii": None},
        shape=(8, 9, 10),
        levels=paper_config().levels,
        judgement={NAME: Judgement("full", {"identity": 0.1, "full": 0.3}, 0.3)},
        sanity={NAME: Sanity(0.0, (1.0, 2.0, 3.5), (15.5, 15.5, 15.5), 0.5, 0.25)},
        written={f"{NAME}.nii.gz": "def"},
        failed={"disp_2": f"{NAME}: no such file"},
        placeholder={"disp_2": "zero"},
        warnings=[f"{NAME}: low confidence"],
        spans_s={"read": (0.0, 1.25)},
        stages=stages_of(timer),
        coordinates="world",
        working_grid=WorkingGrid(shape=(8, 9, 10), affine=[[1.0, 0.0, 0.0, 0.0]] * 4),
        images=[f"/data/{NAME}", None],
        files={NAME: {"displacement": f"{NAME}.nii.gz"}},
        settings={"masks": [None, "abc"]},
    )


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path, case = tmp_path / "report.json", full_report()
    write_report(path, {NAME: case, "2": CaseReport(failed={})}, paper_config(), "cpu", stopped="since it was asked to")
    report = read_report(path)
    assert report.cases == {NAME: case, "2": CaseReport(failed={})}
    assert (report.device, report.stopped, report.config["name"]) == ("cpu", "since it was asked to", paper_config().name)
    assert set(json.loads(path.read_text())["cases"]["2"]) == {"failed"}  # what was never assigned is left out
    before = path.read_bytes()
    write_report(path, report.cases, paper_config(), "cpu", stopped=report.stopped)
    assert path.read_bytes() == before


def test_a_report_of_another_preset_or_with_another_digest_is_no_ground_to_skip_anything(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_report(path, {"1": full_report()}, paper_config(), "cpu")
    assert list(earlier_cases(path, paper_config())) == ["1"]
    other = replace(paper_config(), consistency_rounds=2)
    assert earlier_cases(path, other) == {}
    assert list(earlier_cases(path, None)) == ["1"]
    edits: list[dict[str, object]] = [{"device": "gpu"}, {"cases": {}}, {"sha256": "0"}, {"note": "mine"}]
    for edited in edits:
        path.write_text(json.dumps(json.loads(path.read_text()) | edited))
        assert earlier_cases(path, None) == {}
        write_report(path, {"1": full_report()}, paper_config(), "cpu")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", "{}", '{"cases": 3}', "[" * 100_000])
def test_what_is_no_report_is_no_ground_either(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)
    assert earlier_cases(tmp_path / "report.json", None) == {}
    assert earlier_cases(tmp_path, None) == earlier_cases(tmp_path / "missing.json", None) == {}


def test_a_case_holds_with_the_same_inputs_in_order_the_same_settings_and_whole_files(tmp_path: Path) -> None:
    (tmp_path / "field.nii").write_bytes(b"field")
    inputs: dict[str, str | None] = {"fixed": "1", "moving": "2"}
    case = CaseReport(inputs=inputs, written={"field.nii": digest(tmp_path / "field.nii")}, settings={"center": True})
    outputs = [tmp_path / "field.nii"]
    assert case.holds(inputs, outputs, {"center": True})
    assert not case.holds(inputs, outputs)
    assert not case.holds(dict(reversed(inputs.items())), outputs, {"center": True})
    assert not case.holds(inputs | {"moving": None}, outputs, {"center": True})
    assert not case.holds(inputs, [*outputs, tmp_path / "warped.nii"], {"center": True})
    (tmp_path / "field.nii").write_bytes(b"other")
    assert not case.holds(inputs, outputs, {"center": True})


def test_parts_of_a_stage_are_added_up() -> None:
    timers = [StageTimer(), StageTimer()]
    timers[0].records = {"read": StageRecord(1.0, 5_000_000), "masks": StageRecord(0.25, 7_000_000)}
    timers[1].records = {"masks": StageRecord(0.5, 6_000_000), "start": StageRecord(2.0, 0)}
    stages = stages_of(*timers)
    assert list(stages) == ["read", "masks", "start"]
    assert stages["masks"] == Stage(seconds=0.75, peak_memory_mb=7)
