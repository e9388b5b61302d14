"""The commands as a user gives them, on an oblique, anisotropic pair of different grids."""

import csv
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tables
import tifffile
import torch
from geometry import FIXED, MOVING, as_itk_transform, as_sitk, blobs, inner_points, itk_points, smooth_field
from helpers import cascade_config, constant_field

import process
from evaluation.__main__ import main as judge
from mcbo.cli.main import main
from mcbo.geometry.grid import Grid
from mcbo.io.images import read_field, read_intensities, read_labels, write_any
from mcbo.io.landmarks import read_landmarks
from mcbo.io.nifti import write_displacement
from mcbo.report import CaseReport, write_report

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


@pytest.fixture
def shifted(tmp_path: Path) -> Path:
    """A field that moves by (3, −2, 1) voxels, (−3, 2, 2) mm RAS, where the points of ``tables`` lie."""
    write_displacement(tmp_path / "shift.nii.gz", constant_field((3, -2, 1), tables.SHAPE), tables.AFFINE)
    return tmp_path


@pytest.mark.parametrize("name", tables.READ)
def test_tables_are_read_by_the_names_of_their_columns(shifted: Path, name: str) -> None:
    """The points move, in the space of the table; read again, they are where the field leads. All other cells are kept."""
    (shifted / "in.csv").write_bytes(tables.READ[name].encode())
    assert run(shifted, "warp", "shift.nii.gz", "--points", "in.csv", "--output", "out.csv") == 0
    found = read_landmarks(shifted / "out.csv")
    grid = Grid(tables.SHAPE, tables.AFFINE)
    voxels = found.points if found.space == "table" else grid.to_voxels(found.to_ras())
    assert np.abs(voxels.numpy() - tables.moved((3, -2, 1))).max() < 1e-5
    before, after = (
        list(csv.reader(io.StringIO(text, newline=None)))
        for text in (tables.READ[name].rstrip("\n"), (shifted / "out.csv").read_text())
    )
    coordinates = {*"xyzijkraslp", "axis-0", "axis-1", "axis-2"}
    kept = [
        i for i, cell in enumerate(before[0]) if not cell.strip()[-1:].isdigit() and cell.strip().lower() not in coordinates
    ]
    assert len(after) == len(before)
    assert [[row[i] for i in kept] for row in after] == [[row[i] for i in kept] for row in before]


@pytest.mark.parametrize("name", ["napari", "3D Slicer", "ANTs"])
def test_tables_come_back_with_these_values(shifted: Path, name: str) -> None:
    (shifted / "in.csv").write_bytes(tables.READ[name].encode())
    assert run(shifted, "warp", "shift.nii.gz", "--points", "in.csv", "--output", "out.csv") == 0
    assert (shifted / "out.csv").read_text().splitlines()[:2] == {
        "napari": ["index,axis-0,axis-1,axis-2", "0.0,13.000000,18.000000,31.000000"],
        "3D Slicer": [
            "label,r,a,s,defined,selected,visible,locked,description",
            "F-1,7.000000,4.000000,14.000000,1,1,1,0,",
        ],
        "ANTs": ["x,y,z,t,label,comment", "-7.000000,-4.000000,14.000000,0,1,first"],
    }[name]


def test_points_that_were_never_placed_stay_as_they_are(shifted: Path) -> None:
    (shifted / "in.csv").write_text("label,r,a,s,defined\nF-1,10,2,12,1\nF-2,0,0,0,0\nF-3,8,0,17,1\n")
    assert run(shifted, "warp", "shift.nii.gz", "--points", "in.csv", "--output", "out.csv") == 0
    assert (shifted / "out.csv").read_text().splitlines()[1:] == [
        "F-1,7.000000,4.000000,14.000000,1",
        "F-2,0,0,0,0",
        "F-3,5.000000,2.000000,19.000000,1",
    ]


@pytest.mark.parametrize("name", ["3D Slicer", "3D Slicer, LPS", "ANTs"])
def test_a_table_in_millimeters_is_not_in_voxels(shifted: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (shifted / "in.csv").write_bytes(tables.READ[name].encode())
    words = ("warp", "shift.nii.gz", "--points", "in.csv", "--output", "out.csv", "--unit")
    assert run(shifted, *words, "voxel") == 1
    assert "its points are in mm" in capsys.readouterr().err
    assert run(shifted, *words, "mm") == 0


@pytest.mark.parametrize(
    ("words", "space"),
    [
        ((), "in voxels of the fixed image (for voxels of the moving image: --reference MOVING)"),
        (("--reference", "moving.nrrd"), "in voxels of the moving image"),
        (("--unit", "mm"), "in mm (RAS)"),
        (("--direction", "moving-to-fixed", "--reference", "moving.nrrd"), "in voxels of the fixed image"),
        (("--direction", "moving-to-fixed"), "in voxels of the fixed image; those read, too (for voxels of the moving image"),
    ],
)
def test_the_space_of_points_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], space: str
) -> None:
    (folder / "a.csv").write_text(table(FIXED.to_voxels(inner_points(FIXED, 3))))
    assert run(folder, "warp", "field.nii.gz", "--points", "a.csv", "--output", "b.csv", *words) == 0
    assert space in capsys.readouterr().out


def test_an_image_on_another_grid_than_the_moving_one_is_warned_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shifted = MOVING.affine.copy()
    shifted[0, 3] += 1
    write_any(folder / "moved.nii.gz", blobs(MOVING), Grid(MOVING.shape, shifted))
    write_any(folder / "cropped.nii.gz", blobs(MOVING)[..., 1:], Grid((*MOVING.shape[:2], MOVING.shape[2] - 1), MOVING.affine))
    like = ("--output", "out.nii.gz", "--reference", "moving.nrrd")
    for words in (("--image", "moved.nii.gz"), ("--image", "cropped.nii.gz"), ("--image", "fixed.nii.gz")):
        assert run(folder, "warp", "field.nii.gz", *words, *like) == 0
        assert f"{words[1]}: expected the grid of the moving image (" in capsys.readouterr().err
    for words in (("--image", "moving.nrrd"), ("--labels", "labels.nii.gz")):
        assert run(folder, "warp", "field.nii.gz", *words, *like) == 0
        assert "WARNING" not in capsys.readouterr().err
    back = ("--direction", "fixed-to-moving")
    assert run(folder, "warp", "field.nii.gz", "--image", "moving.nrrd", *like, *back) == 0
    assert "moving.nrrd: expected the grid of the fixed image" in capsys.readouterr().err
    assert run(folder, "warp", "field.nii.gz", "--image", "fixed.nii.gz", *like, *back) == 0
    assert "expected the grid" not in capsys.readouterr().err


def test_the_report_beside_a_field_tells_the_moving_grid(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_displacement(folder / "back.nii.gz", constant_field((0, 0, 0), MOVING.shape), MOVING.affine)
    words = ("warp", "field.nii.gz", "--output", "out.nii.gz", "--image")
    assert run(folder, *words, "fixed.nii.gz") == 0  # nothing is known
    assert "WARNING" not in capsys.readouterr().err
    case = CaseReport(coordinates="world", files={"m": {"displacement": "field.nii.gz", "inverse": "back.nii.gz"}})
    write_report(folder / "report.json", {"result": case}, cascade_config(), "cpu")
    assert run(folder, *words, "fixed.nii.gz") == 0
    assert "fixed.nii.gz: expected the grid of the moving image" in capsys.readouterr().err
    assert run(folder, *words, "moving.nrrd") == 0
    assert "WARNING" not in capsys.readouterr().err
    case = CaseReport(coordinates="voxels", written={"field.nii.gz": ""})
    write_report(folder / "report.json", {"0001": case}, cascade_config(), "cpu")
    assert run(folder, *words, "moving.nrrd") == 0
    assert "moving.nrrd: expected the grid of the moving image" in capsys.readouterr().err


def test_an_image_elsewhere_leaves_nothing_and_that_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    far = MOVING.affine.copy()
    far[:3, 3] += 1000
    write_any(folder / "far.nii.gz", blobs(MOVING), Grid(MOVING.shape, far))
    assert run(folder, "warp", "field.nii.gz", "--image", "far.nii.gz", "--output", "out.nii.gz", "--outside", "-7") == 0
    assert "nothing of far.nii.gz lies in it; all voxels have the value outside, -7" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["noise of 8 bits", "a ramp", "a phantom of 12 bits", "regions", "few values", "many regions"])
def test_intensities_given_as_labels_are_warned_of(folder: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    shape = (1, 1, *MOVING.shape)
    rng = np.random.default_rng(0)
    volume = {
        "noise of 8 bits": rng.integers(0, 256, shape),
        "a ramp": np.arange(np.prod(shape)).reshape(shape),
        "a phantom of 12 bits": (blobs(MOVING).numpy() * 40).round().astype(int),
        "regions": blobs(MOVING).numpy().astype(int) // 20,
        "few values": rng.integers(0, 5, shape),
        "many regions": (np.indices(MOVING.shape) // 4 * np.array([1, 50, 2500])[:, None, None, None]).sum(0).reshape(shape)
        + 1,
    }[kind]
    write_any(folder / "given.nii.gz", torch.from_numpy(volume.astype(np.int32)), MOVING)
    assert run(folder, "warp", "field.nii.gz", "--labels", "given.nii.gz", "--output", "out.nii.gz") == 0
    told = "as those of labels do not: for intensities, use --image" in capsys.readouterr().err
    assert told == (kind in ("noise of 8 bits", "a ramp", "a phantom of 12 bits"))


@pytest.mark.parametrize("name", ["field.h5", "field.tfm", "field.nrrd", "field.mha", "for_ants.nii.gz"])
def test_a_transform_of_itk_is_no_field_but_can_be_imported(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    kind = "ants" if name.endswith(".nii.gz") else "slicer"
    assert run(folder, "export", "field.nii.gz", "--to", kind, "--output", name) == 0
    for words in (("warp", name, "--image", "moving.nrrd"), ("invert", name), ("compose", name, name)):
        assert run(folder, *words, "--output", "out.nii.gz") == 1
        assert "mcbo import" in capsys.readouterr().err
    assert not (folder / "out.nii.gz").exists()


@pytest.mark.parametrize("name", ["x.nii.gz", "x.NII", "x.h5", "x.mha", "x.json", "a b.tif"])
def test_the_name_of_a_file_is_no_folder(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    output = ["--output", str(folder / name)]
    for program, words in (
        (main, ["register", str(folder / "fixed.nii.gz"), str(folder / "moving.nrrd")]),
        (process.main, [str(folder)]),
        (judge, ["zero", "--dataset", str(folder / "x.json")]),
    ):
        if program is judge and name in ("x.NII", "x.h5", "x.mha", "a b.tif"):
            continue
        assert program([*words, *output]) == 1
        assert re.search("--output: expected a folder.* the name of a file, .*: leave out|; leave out", capsys.readouterr().err)
    assert not (folder / name).exists()


def test_an_image_of_a_microscope_is_warped_by_channel(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    array = np.random.default_rng(0).integers(0, 99, (9, 2, 8, 7)).astype(np.uint16)
    tifffile.imwrite(folder / "two.tif", array, imagej=True, metadata={"axes": "ZCYX"})
    grid = Grid((7, 8, 9), np.diag((-1.5, -1.2, 2.0, 1.0)))
    write_displacement(folder / "zero.nii.gz", constant_field((0, 0, 0), grid.shape), grid.affine)
    words = ("warp", "zero.nii.gz", "--labels", "two.tif", "--reference", "two.tif", "--output", "a.nii.gz")
    assert run(folder, *words, "--spacing", "1.5,1.2,2") == 1
    assert "found 2 channels" in capsys.readouterr().err
    assert run(folder, *words, "--spacing", "1.5,1.2,2", "--channel", "1") == 0
    found, its_grid = read_labels(folder / "a.nii.gz")
    assert np.array_equal(found[0, 0].numpy().transpose(2, 1, 0), array[:, 1])
    assert its_grid.matches(grid)
    assert run(folder, *words, "--spacing", "1500,1200,2000um", "--spacing", "1,1,1", "--channel", "1") == 0
    assert run(folder, *words, *("--spacing", "1,1,1") * 3, "--channel", "1") == 1
    assert "--spacing: expected it once, or once for each of 2 image(s)" in capsys.readouterr().err
    (folder / "p.csv").write_text("1,2,3\n")
    assert run(folder, "warp", "zero.nii.gz", "--points", "p.csv", "--channel", "1", "--output", "b.csv") == 1
    assert "expected with --image or --labels only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("numbers", "kept"), [("0 0 0 0 0 0 0 0 0", "0"), ("-1 0 0 0 1 0 0 0 1", "-1"), ("2 0 0 0 1 0 0 0 1", "")]
)
def test_import_of_what_cannot_be_a_motion_is_named(
    folder: Path, numbers: str, kept: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "linear.tfm").write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: {numbers} 0 0 0\nFixedParameters: 0 0 0\n"
    )
    assert run(folder, "import", "linear.tfm", "--reference", "fixed.nii.gz", "--output", "out.nii.gz") == 0
    assert (f"it mirrors or flattens the image (volume × {kept})" in capsys.readouterr().err) == bool(kept)
