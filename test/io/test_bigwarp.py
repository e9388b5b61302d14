"""Landmarks of BigWarp: pairs of points in physical coordinates, mapped and written back."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mcbo.cli.main import main
from mcbo.geometry.grid import Grid
from mcbo.io.microscopy.bigwarp import read_pairs
from mcbo.io.microscopy.physical import to_physical, to_voxels
from mcbo.io.nifti import write_displacement

SIZE = (0.5, 0.4, 2.0)
GRID = Grid((12, 14, 10), np.diag([-SIZE[0], -SIZE[1], SIZE[2], 1.0]))
"""Of a TIFF, in mm, since a displacement's file does not tell its unit."""
SHIFT = (2.0, -1.0, 1.0)
"""Voxels, everywhere."""
FIXED = [[1.0, 2.0, 4.0], [3.0, 2.4, 8.0], [2.0, 4.0, 6.0]]
MOVING = [[x + 2 * 0.5, y - 0.4, z + 2.0] for x, y, z in FIXED]


@pytest.fixture
def field(tmp_path: Path) -> Path:
    displacement = torch.tensor(SHIFT).reshape(1, 3, 1, 1, 1).expand(1, 3, *GRID.shape).clone()
    write_displacement(tmp_path / "u.nii.gz", displacement, GRID.affine)
    return tmp_path / "u.nii.gz"


def write(path: Path, moving: list[list[float]], fixed: list[list[float]], *, unused: bool = False) -> Path:
    rows = [[f"Pt-{n}", "true", *q, *p] for n, (q, p) in enumerate(zip(moving, fixed, strict=True))]
    if unused:
        rows.insert(1, ["Pt-x", "false", "Infinity", "Infinity", "Infinity", 9.0, 9.0, 9.0])
    with path.open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
    return path


def read(path: Path) -> tuple[list[str], NDArray[np.float64]]:
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    return [row[1] for row in rows], np.array([[float(cell) for cell in row[2:]] for row in rows])


def test_fixed_points_are_mapped_and_compared(field: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = write(field.parent / "points.csv", [[x + 0.3, y, z] for x, y, z in MOVING], FIXED, unused=True)
    assert main(["warp", str(field), "--points", str(points), "--output", str(field.parent / "out.csv")]) == 0
    active, numbers = read(field.parent / "out.csv")
    assert active == ["true", "false", "true", "true"]
    assert np.abs(np.delete(numbers, 1, axis=0) - np.hstack([MOVING, FIXED])).max() < 1e-5
    assert np.isinf(numbers[1, :3]).all()
    told = capsys.readouterr().out
    assert "3 pairs of BigWarp, fixed-to-moving, in mm" in told
    assert re.search(r"mean distance from the moving points of the file: \S+ mm before, 0.3 after", told)
    assert '"Pt-0","true","' in (field.parent / "out.csv").read_text()


def test_moving_points_are_mapped_back(field: Path) -> None:
    points = write(field.parent / "points.csv", MOVING, [[0.0, 0.0, 0.0]] * 3)
    words = ["--points", str(points), "--direction", "moving-to-fixed", "--output", str(field.parent / "out.csv")]
    assert main(["warp", str(field), *words]) == 0
    assert np.abs(read(field.parent / "out.csv")[1] - np.hstack([MOVING, FIXED])).max() < 1e-3


def test_another_unit_than_that_of_the_file_can_be_told(field: Path) -> None:
    micron = write(field.parent / "points.csv", (np.array(MOVING) * 1000).tolist(), (np.array(FIXED) * 1000).tolist())
    words = ["--points", str(micron), "--output", str(field.parent / "out.csv"), "--unit", "um"]
    assert main(["warp", str(field), *words]) == 0
    assert np.abs(read(field.parent / "out.csv")[1] / 1000 - np.hstack([MOVING, FIXED])).max() < 1e-5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,true,1,2,3,4,5,Infinity", "line 1: expected x, y, z of the fixed image"),
        ("a,true,1,2,3,4,5,x", "line 1: expected x, y, z of the fixed image"),
        ("a,true,1,2,3,4", "expected landmarks of BigWarp in 3D, found some of two dimensions"),
        ("a,true,1,2,3,4,5,6\nb,true,1,2", "line 2: expected name, active (true or false) and six numbers"),
        ("a,true,1,2,3,4,5,6\nb,maybe,1,2,3,4,5,6", "line 2: expected name, active (true or false) and six numbers"),
    ],
)
def test_other_rows_are_refused(field: Path, capsys: pytest.CaptureFixture[str], row: str, message: str) -> None:
    (field.parent / "points.csv").write_text(row)
    words = ["--points", str(field.parent / "points.csv"), "--output", str(field.parent / "out.csv")]
    assert main(["warp", str(field), *words]) == 1
    assert message in capsys.readouterr().err
    assert not (field.parent / "out.csv").exists()


def test_units_are_those_of_the_points(field: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = write(field.parent / "points.csv", MOVING, FIXED)
    words = ["--points", str(points), "--output", str(field.parent / "out.csv"), "--unit"]
    assert main(["warp", str(field), *words, "voxel"]) == 1
    assert "BigWarp has physical coordinates" in capsys.readouterr().err
    (field.parent / "points.csv").write_text("1,2,3\n")
    assert main(["warp", str(field), *words, "um"]) == 1
    assert "--unit: expected voxel or mm but for landmarks of BigWarp" in capsys.readouterr().err


def test_other_tables_are_none(tmp_path: Path) -> None:
    for text in ("1,2,3\n4,5,6\n", "x,y,z\n1,2,3\n", "", "1,2,3,4,5,6,7,8\n"):
        (tmp_path / "a.csv").write_text(text)
        assert read_pairs(tmp_path / "a.csv") is None
    assert read_pairs(tmp_path / "absent.csv") is None


@pytest.mark.parametrize(
    ("affine", "expected"),
    [
        (np.diag([-0.5, -0.4, 2.0, 1.0]), (1.0, 1.2, 2.0)),
        (np.array([[-0.5, 0, 0, -10], [0, -0.4, 0, 5], [0, 0, 2.0, 7], [0, 0, 0, 1]]), (11.0, -3.8, 9.0)),
        (np.array([[0.5, 0, 0, -10], [0, 0.4, 0, 5], [0, 0, 2.0, 7], [0, 0, 0, 1]]), (1.0, 1.2, 2.0)),
    ],
)
def test_physical_coordinates(affine: NDArray[np.float64], expected: tuple[float, ...]) -> None:
    """Of TIFF; of OME-Zarr, which has a translation; and of NIfTI, whose origin Fiji ignores."""
    grid = Grid((5, 6, 7), affine)
    voxel = torch.tensor([[2.0, 3.0, 1.0]], dtype=torch.float64)
    assert to_physical(voxel, grid)[0].tolist() == pytest.approx(expected)
    assert to_voxels(to_physical(voxel, grid), grid)[0].tolist() == pytest.approx([2, 3, 1])
    micron = Grid((5, 6, 7), affine, "um")
    assert to_physical(voxel, micron)[0].tolist() == pytest.approx([1000 * number for number in expected])
