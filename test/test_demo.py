from pathlib import Path

import pandas as pd
import pytest

import process
from evaluation.summary import score_tre


@pytest.mark.parametrize("preset", ["mcbo2024"])
def test_the_demo_lowers_the_mean_tre_by_forty_percent(tmp_path: Path, preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert process.main(["--demo", "--output", str(tmp_path), "--preset", preset]) == 0
    table: pd.DataFrame = score_tre(tmp_path / "dataset" / "ReMIND2Reg_dataset.json", tmp_path / "results")
    assert table["tre_mm"].mean() < 0.6 * table["initial_tre_mm"].mean()
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert f"picture: {tmp_path / 'demo.png'}" in capsys.readouterr().out
