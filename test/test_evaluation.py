import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.metrics import landmark_errors_mm
from evaluation.pairs import EvaluationError, read_displacement, read_landmarks, read_pairs
from evaluation.summary import score_tre


def test_errors_by_hand() -> None:
    """(3, 4, 0) voxels at 2×2×1 mm are 10 mm; the displacement takes away (3, 0, 0), which leaves 8 mm."""
    fixed, moving = np.array([[5.0, 5.0, 5.0]]), np.array([[8.0, 9.0, 5.0]])
    spacing = np.array([2.0, 2.0, 1.0])
    field = np.zeros((12, 12, 12, 3), dtype=np.float32)
    field[..., 0] = 3
    assert landmark_errors_mm(None, fixed, moving, spacing) == pytest.approx([10])
    assert landmark_errors_mm(field, fixed, moving, spacing) == pytest.approx([8])


@pytest.mark.parametrize("program", ["official_remind2reg", "official_l2r"])
def test_golden_tre(shared: Path, program: str) -> None:
    golden = shared / "golden" / "evaluation"
    table = score_tre(golden / "ReMIND2Reg_dataset.json", golden / "predictions")
    official = json.loads((golden / f"{program}.json").read_text())["cases"]
    assert official
    for name, case in official.items():
        fixed, moving = name.split("<--")
        assert table.loc[f"disp_{fixed}_{moving}", "tre_mm"] == pytest.approx(case["TRE_lm"]["mean"], abs=1e-6)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"disp_x\.nii\.gz: expected a displacement"):
        read_displacement(tmp_path, "disp_x")
    with pytest.raises(EvaluationError, match="three numbers a line"):
        read_landmarks(tmp_path / "absent.csv")
    (tmp_path / "two.csv").write_text("1,2\n3,4\n")
    with pytest.raises(EvaluationError, match="expected three numbers a line, found 2"):
        read_landmarks(tmp_path / "two.csv")
    (tmp_path / "a_dataset.json").write_text("{}")
    with pytest.raises(EvaluationError, match="expected pairs under registration_val"):
        read_pairs(tmp_path / "a_dataset.json")
