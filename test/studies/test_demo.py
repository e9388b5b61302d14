from pathlib import Path

import pytest

import process
from evaluation.settings import from_options
from evaluation.summary import score, to_table


@pytest.mark.parametrize("preset", ["cascade", "mcbo2024"])
def test_the_demo_lowers_the_mean_tre_by_forty_percent(tmp_path: Path, preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert process.main(["--demo", "--output", str(tmp_path), "--preset", preset]) == 0
    dataset = tmp_path / "dataset" / "ReMIND2Reg_dataset.json"
    table = to_table(score(dataset, tmp_path / "results", from_options(["tre"])))
    assert table["TRE_lm"].mean() < 0.6 * table["TRE_lm_initial"].mean()
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "demo.html").read_text().startswith("<!doctype html>")
    told = capsys.readouterr().out
    assert f"picture: {tmp_path / 'demo.png'}" in told
    assert f"page: {tmp_path / 'demo.html'}" in told
