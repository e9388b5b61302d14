"""The method and the judge share no code; what one reads, the other reads, and as the same."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import tables

from evaluation.errors import EvaluationError
from evaluation.landmarks import read_landmarks as judge_landmarks
from mcbo.core.errors import InputError
from mcbo.geometry.grid import Grid
from mcbo.io.landmarks import read_landmarks


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image in which the points of ``tables`` lie."""
    nibabel.save(nibabel.Nifti1Image(np.zeros(tables.SHAPE, np.uint8), tables.AFFINE), tmp_path / "image.nii.gz")
    return tmp_path / "image.nii.gz"


@pytest.mark.parametrize("name", tables.READ)
def test_both_read_a_table_as_the_same_points(image: Path, name: str) -> None:
    path = image.with_name("points.csv")
    path.write_bytes(tables.READ[name].encode())
    found = read_landmarks(path)
    grid = Grid(tables.SHAPE, tables.AFFINE)
    voxels = found.points if found.space == "table" else grid.to_voxels(found.to_ras())
    assert np.abs(voxels.numpy() - np.array(tables.VOXELS)).max() < 1e-9
    assert np.abs(judge_landmarks(path, inside=tables.SHAPE, image=image) - tables.VOXELS).max() < 1e-9


@pytest.mark.parametrize("name", tables.REFUSED)
def test_both_refuse_what_is_no_table_of_points(image: Path, name: str) -> None:
    path = image.with_name("points.csv")
    path.write_bytes(tables.REFUSED[name].encode())
    with pytest.raises(InputError, match=r"points\.csv: .*(expected|found)"):
        read_landmarks(path)
    with pytest.raises(EvaluationError, match=r"points\.csv: .*(expected|found)"):
        judge_landmarks(path, inside=tables.SHAPE, image=image)
