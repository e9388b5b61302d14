import json
from pathlib import Path

import numpy as np
import pytest
from helpers import write_nifti
from numpy.typing import NDArray

from evaluation.metrics import landmark_errors_mm
from evaluation.pairs import EvaluationError, Pair, find_field, read_field, read_landmarks, read_pairs
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


SHAPE = (5, 6, 7)
PAIR = Pair(Path("imagesTr/T_0001_0000.nii.gz"), Path("imagesTr/T_0001_0001.nii.gz"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found an empty file"),
        ("x,y,z\n1,2,3\n", "found 'x,y,z' in line 1; no header belongs there"),
        ("1;2;3\n", "separated by commas, found semicolons"),
        ("1,2,3\n\n3,4,5\n", "found '' in line 2"),
        ("1,2\n3,4\n", "expected three numbers a line, found '1,2' in line 1"),
        ("1,2,3\n1,2,3,4\n", "expected three numbers a line, found"),
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
        (np.zeros((3, *SHAPE), np.float32), r"expected shape \(5, 6, 7, 3\), found \(3, 5, 6, 7\); the components have to be"),
        (np.zeros((4, 6, 7, 3), np.float32), r"expected shape \(5, 6, 7, 3\), found \(4, 6, 7, 3\)$"),
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
