"""The commands as a user gives them, on an oblique, anisotropic pair of different grids."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from geometry import FIXED, MOVING, as_itk_transform, as_sitk, blobs, inner_points, itk_points, smooth_field
from helpers import constant_field

from mcbo.cli.main import main
from mcbo.geometry.grid import Grid
from mcbo.io.images import read_field, read_intensities, read_labels, write_any
from mcbo.io.nifti import write_displacement

if TYPE_CHECKING:
    import SimpleITK as sitk
else:
    sitk = pytest.importorskip("SimpleITK")

FIELD = smooth_field(FIXED, largest=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_displacement(tmp_path / "field.nii.gz", FIELD, FIXED.affine)
    write_any(tmp_path / "fixed.nii.gz", blobs(FIXED), FIXED)
    write_any(tmp_path / "moving.nrrd", blobs(MOVING), MOVING)
    write_any(tmp_path / "labels.nii.gz", (blobs(MOVING) // 20).int(), MOVING)
    return tmp_path


def run(folder: Path, *words: str) -> int:
    """The status of a command; words with a letter after a dot are files in the folder."""
    return main([str(folder / word) if re.search(r"\.[a-z]", word) else word for word in words])


def table(points: torch.Tensor) -> str:
    return "".join(",".join(f"{value:.9f}" for value in point) + "\n" for point in points.tolist())


def read_table(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.loadtxt(path, delimiter=",", ndmin=2))


def test_the_moving_image_onto_the_fixed_grid(folder: Path) -> None:
    assert run(folder, "warp", "field.nii.gz", "--image", "moving.nrrd", "--output", "warped.nii.gz", "--outside", "-7") == 0
    ours, grid = read_intensities(folder / "warped.nii.gz")
    like = as_sitk(np.zeros(FIXED.shape, np.float32), FIXED)
    theirs = sitk.Resample(
        as_sitk(blobs(MOVING)[0, 0].numpy(), MOVING), like, as_itk_transform(FIELD, FIXED), sitk.sitkLinear, -7.0
    )
    expected = torch.from_numpy(sitk.GetArrayFromImage(theirs).transpose(2, 1, 0).copy())
    both = (ours[0, 0] != -7) & (expected != -7)
    assert grid.matches(FIXED)
    assert both.float().mean() > 0.3
    assert (ours[0, 0] - expected)[both].abs().max() <= 0.5


@pytest.mark.parametrize("interpolation", ["label", "nearest"])
def test_labels_stay_labels(folder: Path, interpolation: str) -> None:
    words = ("--labels", "labels.nii.gz", "--interpolation", interpolation, "--output", "warped.nrrd")
    assert run(folder, "warp", "field.nii.gz", *words) == 0
    labels, grid = read_labels(folder / "warped.nrrd")
    assert grid.matches(FIXED)
    assert set(labels.flatten().tolist()) <= set(range(6))
    assert sitk.ReadImage(str(folder / "warped.nrrd")).GetPixelID() == sitk.sitkUInt8


def test_the_fixed_image_onto_the_moving_grid_and_back_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    way = ["--direction", "fixed-to-moving"]
    assert run(folder, "warp", "field.nii.gz", "--image", "fixed.nii.gz", *way, "--output", "there.nii.gz") == 1
    assert "--reference: expected the moving image" in capsys.readouterr().err
    way += ["--reference", "moving.nrrd"]
    assert run(folder, "warp", "field.nii.gz", "--image", "fixed.nii.gz", *way, "--output", "there.nii.gz") == 0
    assert "residual at most" in capsys.readouterr().out
    assert read_intensities(folder / "there.nii.gz")[1].matches(MOVING)
    assert run(folder, "warp", "field.nii.gz", "--image", "there.nii.gz", "--output", "back.nii.gz", "--outside", "-1") == 0
    back, _ = read_intensities(folder / "back.nii.gz")
    known = (back > 0)[0, 0, 6:-6, 6:-6, 6:-6]
    assert (back - blobs(FIXED))[0, 0, 6:-6, 6:-6, 6:-6][known].abs().median() < 2  # sampled twice on coarser voxels


def test_points_from_fixed_to_moving_in_all_units(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = inner_points(FIXED, 20)
    expected = itk_points(as_itk_transform(FIELD, FIXED), world)
    (folder / "mm.csv").write_text(table(world))
    (folder / "voxels.csv").write_text(table(FIXED.to_voxels(world)))
    lps = world * torch.tensor([-1, -1, 1])
    (folder / "slicer.fcsv").write_text(
        "# CoordinateSystem = LPS\n# columns = id,x,y,z\n"
        + "".join(f"{n},{line}\n" for n, line in enumerate(table(lps).splitlines()))
    )
    assert run(folder, "warp", "field.nii.gz", "--points", "mm.csv", "--unit", "mm", "--output", "mm_out.csv") == 0
    assert "20 points, fixed-to-moving, in mm" in capsys.readouterr().out
    assert (read_table(folder / "mm_out.csv") - expected).norm(dim=1).max() <= 1e-3
    assert run(folder, "warp", "field.nii.gz", "--points", "voxels.csv", "--output", "voxels_out.csv") == 0
    assert (FIXED.to_world(read_table(folder / "voxels_out.csv")) - expected).norm(dim=1).max() <= 1e-3
    words = ("--points", "voxels.csv", "--reference", "moving.nrrd", "--output", "moving_voxels.csv")
    assert run(folder, "warp", "field.nii.gz", *words) == 0
    assert (MOVING.to_world(read_table(folder / "moving_voxels.csv")) - expected).norm(dim=1).max() <= 1e-3
    assert run(folder, "warp", "field.nii.gz", "--points", "slicer.fcsv", "--output", "slicer_out.fcsv") == 0
    written = torch.from_numpy(np.loadtxt(folder / "slicer_out.fcsv", delimiter=",", usecols=(1, 2, 3)))
    assert (written * torch.tensor([-1, -1, 1]) - expected).norm(dim=1).max() <= 1e-3


def test_points_there_and_back_through_the_voxels_of_the_moving_image(folder: Path) -> None:
    (folder / "a.csv").write_text(table(FIXED.to_voxels(inner_points(FIXED, 20))))
    like = ("--reference", "moving.nrrd")
    assert run(folder, "warp", "field.nii.gz", "--points", "a.csv", *like, "--output", "b.csv") == 0
    back = ("--direction", "moving-to-fixed")
    assert run(folder, "warp", "field.nii.gz", "--points", "b.csv", *like, *back, "--output", "c.csv") == 0
    assert (read_table(folder / "a.csv") - read_table(folder / "c.csv")).abs().max() <= 1e-3


def test_points_outside_and_in_folds_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.csv").write_text("5,5,5\n-9,5,5\n")
    assert run(folder, "warp", "field.nii.gz", "--points", "a.csv", "--output", "b.csv") == 0
    assert "WARNING: 1 point(s) lie outside the fixed grid: 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("to", "name"),
    [("itk", "out.h5"), ("itk", "out.tfm"), ("ants", "out.nii.gz"), ("slicer", "out.nrrd"), ("slicer", "out.mha")],
)
def test_export_and_import_again(folder: Path, to: str, name: str) -> None:
    assert run(folder, "export", "field.nii.gz", "--to", to, "--output", name) == 0
    assert run(folder, "import", name, "--output", "again.nii.gz") == 0
    again, grid = read_field(folder / "again.nii.gz")
    assert grid.matches(FIXED)
    assert torch.allclose(again, FIELD, atol=1e-4)


def test_export_names_what_it_writes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for to, name in (("itk", "field.h5"), ("ants", "field_ants.nii.gz"), ("npz", "field.npz")):
        assert run(folder, "export", "field.nii.gz", "--to", to) == 0
        assert capsys.readouterr().out.strip() == str(folder / name)
        assert (folder / name).is_file()
    assert run(folder, "import", "field.npz", "--output", "again.nii.gz") == 1
    assert "expected --reference with the fixed image" in capsys.readouterr().err
    assert run(folder, "import", "field.npz", "--reference", "fixed.nii.gz", "--output", "again.nii.gz") == 0
    assert torch.equal(read_field(folder / "again.nii.gz")[0], FIELD)


def test_invert_and_compose_cancel(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "invert", "field.nii.gz", "--reference", "moving.nrrd", "--output", "back.nii.gz") == 0
    assert "residual at most" in capsys.readouterr().out
    assert run(folder, "compose", "back.nii.gz", "field.nii.gz", "--output", "nothing.nii.gz") == 0
    nothing, grid = read_field(folder / "nothing.nii.gz")
    assert grid.matches(MOVING)
    assert nothing.norm(dim=1).median() < 1e-3


def test_folds_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = Grid((30, 5, 6), FIXED.affine)
    field = torch.zeros(1, 3, *grid.shape)
    x = torch.arange(30.0)
    field[:, 0] = torch.where((x >= 10) & (x <= 20), 30 - 2 * x, torch.where(x < 10, x, x - 30)).view(-1, 1, 1)
    write_displacement(tmp_path / "a.nii.gz", field, grid.affine)
    assert run(tmp_path, "invert", "a.nii.gz", "--output", "b.nii.gz") == 0
    assert "lie in folds of FIELD; their inverse is not unique" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("warp", "field.nii.gz", "--output", "a.nii.gz"), "expected exactly one of --image, --labels and --points"),
        (("warp", "field.nii.gz", "--image", "fixed.nii.gz", "--unit", "mm", "--output", "a.nii.gz"), "--unit: expected with"),
        (("warp", "field.nii.gz", "--labels", "labels.nii.gz", "--outside", "0.5", "--output", "a.nii.gz"), "a whole number"),
        (
            ("warp", "field.nii.gz", "--labels", "labels.nii.gz", "--outside", "1e9999", "--output", "a.nii.gz"),
            "a whole number",
        ),
        (
            ("warp", "field.nii.gz", "--image", "fixed.nii.gz", "--outside", "1e300", "--output", "a.nii.gz"),
            "outside: expected",
        ),
        (
            ("warp", "field.nii.gz", "--image", "moving.nrrd", "--spacing", "1,1,1", "--output", "a.nii.gz"),
            "--spacing: expected with TIFF",
        ),
        (("invert", "field.nii.gz", "--spacing", "1,1,1", "--output", "a.nii.gz"), "--spacing: expected with TIFF"),
        (("warp", "field.nii.gz", "--labels", "moving.nrrd", "--output", "a.nii.gz"), "expected whole numbers as labels"),
        (
            ("warp", "moving.nrrd", "--image", "fixed.nii.gz", "--output", "a.nii.gz"),
            "expected a whole NIfTI image, found none",
        ),
        (("warp", "fixed.nii.gz", "--image", "fixed.nii.gz", "--output", "a.nii.gz"), r"of shape \(H, W, D, 3\)"),
        (("warp", "field.nii.gz", "--image", "absent.nii.gz", "--output", "a.nii.gz"), "no such file"),
        (("export", "field.nii.gz", "--to", "itk", "--output", "a.nrrd"), r"expected a name ending in \.h5 or \.tfm"),
        (("export", "field.nii.gz", "--to", "ants", "--output", "field.nii.gz"), "expected another name than that of FIELD"),
        (("import", "field.nii.gz", "--output", "a.nii.gz"), "expected a 3D image, found 4D data"),
        (("import", "moving.nrrd", "--output", "a.nii.gz"), "expected 3 numbers per voxel, found 1"),
        (("invert", "field.npz", "--output", "a.nii.gz"), "an .npz has no affine"),
        (("invert", "field.nii.gz", "--output", "a.nrrd"), r"expected a name ending in \.nii\.gz or \.nii"),
    ],
)
def test_what_cannot_be_done_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    before = sorted(folder.iterdir())
    assert run(folder, *words) == 1
    assert re.search(message, capsys.readouterr().err)
    assert sorted(folder.iterdir()) == before


def test_a_field_that_is_not_finite_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_displacement(tmp_path / "a.nii.gz", constant_field((float("nan"), 0, 0), (4, 5, 6)), np.eye(4))
    assert run(tmp_path, "invert", "a.nii.gz", "--output", "b.nii.gz") == 1
    assert "expected finite displacements" in capsys.readouterr().err


def test_a_tiff_may_say_where_a_displacement_goes(folder: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((7, 6, 5), np.uint8)), folder / "grid.tif")
    words = ("invert", "field.nii.gz", "--reference", "grid.tif", "--output", "back.nii.gz")
    assert run(folder, *words) == 1
    assert run(folder, *words, "--spacing", "1,2,3") == 0
    grid = read_field(folder / "back.nii.gz")[1]
    assert (grid.shape, grid.spacing_mm) == ((5, 6, 7), (1, 2, 3))
