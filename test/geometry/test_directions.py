"""The three questions of direction, each answered by our files, by SimpleITK and by numpy: docs/index.md, "The convention"."""

from pathlib import Path
from typing import TYPE_CHECKING

import nibabel
import numpy as np
import pytest

from mcbo.cli.main import main

if TYPE_CHECKING:
    import SimpleITK as sitk
else:
    sitk = pytest.importorskip("SimpleITK")

SHAPE = (12, 10, 14)
SPACING_MM = np.array([2.0, 0.5, 3.0])
AFFINE = np.diag([*SPACING_MM, 1.0])
P = np.array([4, 3, 5])
U = np.array([3, 2, -4])
"""Voxels: the moving image shows at P + U what the fixed image shows at P. No two components alike, nor those in mm."""

LPS = np.array([-1.0, -1.0, 1.0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A moving image that is different in every voxel, and the displacement ``U`` everywhere, written by nibabel alone."""
    moving = np.random.default_rng(0).permutation(np.prod(SHAPE)).reshape(SHAPE).astype(np.float32)
    field = np.broadcast_to(U.astype(np.float32), (*SHAPE, 3))
    nibabel.save(nibabel.Nifti1Image(moving, AFFINE), tmp_path / "moving.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(field), AFFINE), tmp_path / "field.nii.gz")
    return tmp_path


def array(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.asarray(nibabel.load(path).get_fdata())  # type: ignore[attr-defined]


def run(*words: str | Path) -> None:
    assert main([str(word) for word in words]) == 0


def itk_transform(folder: Path) -> sitk.Transform:
    run("export", folder / "field.nii.gz", "--to", "itk", "--output", folder / "transform.h5")
    transform: sitk.Transform = sitk.ReadTransform(folder / "transform.h5")
    return transform


def test_our_file_is_in_voxels_and_what_is_exported_in_millimeters(folder: Path) -> None:
    (folder / "voxels.csv").write_text("4,3,5\n")
    run("warp", folder / "field.nii.gz", "--points", folder / "voxels.csv", "--output", folder / "found.csv")
    assert np.loadtxt(folder / "found.csv", delimiter=",") == pytest.approx(P + U, abs=1e-3)

    (folder / "mm.csv").write_text(",".join(str(x) for x in P * SPACING_MM) + "\n")
    way = ("--unit", "mm", "--output", folder / "found_mm.csv")
    run("warp", folder / "field.nii.gz", "--points", folder / "mm.csv", *way)
    assert np.loadtxt(folder / "found_mm.csv", delimiter=",") == pytest.approx((P + U) * SPACING_MM, abs=1e-3)

    start = LPS * P * SPACING_MM
    moved = np.array(itk_transform(folder).TransformPoint(start.tolist()))
    assert moved - start == pytest.approx(LPS * U * SPACING_MM, abs=1e-3)  # (6, 1, -12) mm, x and y negated


def test_points_go_from_fixed_to_moving_and_images_come_back(folder: Path) -> None:
    moving = array(folder / "moving.nii.gz")
    assert moving[tuple(P + U)] != moving[tuple(P - U)]
    expected = moving[tuple(P + U)]  # numpy: warped(p) = moving(p + u(p))

    run("warp", folder / "field.nii.gz", "--image", folder / "moving.nii.gz", "--output", folder / "warped.nii.gz")
    assert array(folder / "warped.nii.gz")[tuple(P)] == pytest.approx(expected, abs=0.1)

    image = sitk.ReadImage(folder / "moving.nii.gz")
    warped = sitk.Resample(image, image, itk_transform(folder), sitk.sitkLinear, 0.0)
    assert warped[P.tolist()] == pytest.approx(expected, abs=0.1)

    (folder / "moving.csv").write_text(",".join(str(x) for x in P + U) + "\n")
    way = ("--direction", "moving-to-fixed", "--output", folder / "back.csv")
    run("warp", folder / "field.nii.gz", "--points", folder / "moving.csv", *way)
    assert np.loadtxt(folder / "back.csv", delimiter=",") == pytest.approx(P, abs=1e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_component_a_moves_along_axis_a_of_nibabels_array(folder: Path, axis: int) -> None:
    step = np.zeros((*SHAPE, 3), np.float32)
    step[..., axis] = 2
    nibabel.save(nibabel.Nifti1Image(step, AFFINE), folder / "field.nii.gz")
    moving = array(folder / "moving.nii.gz")
    expected = np.take(moving, range(2, SHAPE[axis]), axis)  # numpy: what lies two further along that axis

    run("warp", folder / "field.nii.gz", "--image", folder / "moving.nii.gz", "--output", folder / "warped.nii.gz")
    ours = np.take(array(folder / "warped.nii.gz"), range(SHAPE[axis] - 2), axis)
    assert ours == pytest.approx(expected, abs=0.1)

    image = sitk.ReadImage(folder / "moving.nii.gz")
    warped = sitk.GetArrayFromImage(sitk.Resample(image, image, itk_transform(folder), sitk.sitkLinear, 0.0))
    theirs = np.take(warped, range(SHAPE[axis] - 2), 2 - axis)  # SimpleITK's arrays have the axes reversed
    assert theirs.transpose(2, 1, 0) == pytest.approx(expected, abs=0.1)
