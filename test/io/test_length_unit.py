"""Units of length in NRRD and MetaImage, which ITK ignores: they count here, and what is made for ITK fits ITK's reading."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from malformed_files import DATA, meta, nrrd

from mcbo.api.register import register
from mcbo.core.errors import InputError
from mcbo.geometry.grid import Grid
from mcbo.geometry.units import Unit
from mcbo.io.formats.registry import check_header
from mcbo.io.images import read_any, write_any
from mcbo.io.itk import grid_of
from mcbo.io.itk_files import read_transform
from mcbo.io.nifti import write_volume

DIRECTIONS = {"space directions": "(200,0,0) (0,0,300) (0,-500,0)", "space origin": "(1000,-2000,3000)"}
"""Of NRRD: x, z, and y in reverse."""

RAS_MM = np.array([[-0.2, 0, 0, -1], [0, 0, 0.5, 2], [0, 0.3, 0, 3], [0, 0, 0, 1]])
"""The same, read in micrometers."""

WITHOUT_SPACE = {"space": None, "space directions": None, "space origin": None}


def write(path: Path, fields: Mapping[str, object]) -> Path:
    if path.suffix == ".nhdr":
        (path.parent / "x.raw").write_bytes(DATA)
        path.write_bytes(nrrd({"data file": "x.raw", **fields}, b""))
    else:
        path.write_bytes(nrrd(fields))
    return path


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr"])
@pytest.mark.parametrize("unit", ["um", "µm", "μm", "micron", "Microns", "micrometers", " um "])
def test_micrometers_of_nrrd_count(tmp_path: Path, name: str, unit: str, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / name, DIRECTIONS | {"space units": f'"{unit}" "{unit}" "{unit}"'})
    check_header(path)
    volume, grid = read_any(path)
    assert np.allclose(grid.affine, RAS_MM, atol=1e-12)
    assert grid.unit == "um"
    assert volume[0, 0, 1, 2, 3] == 1 + 4 * 2 + 20 * 3
    assert grid_of(sitk.ReadImage(str(path))).matches(grid.seen_by_itk(), within_voxels=1e-6)
    assert f"{name}: its lengths are in µm; ITK, 3D Slicer and ANTs take them for mm" in caplog.text


@pytest.mark.parametrize(
    ("name", "mm", "unit"),
    [("nm", 1e-6, "nm"), ("mm", 1, "mm"), ("cm", 10, "cm"), ("m", 1000, "m"), ("inch", 25.4, "mm"), ("Å", 1e-7, "mm")],
)
def test_units_of_nrrd_with_their_millimeters(tmp_path: Path, name: str, mm: float, unit: Unit) -> None:
    _, grid = read_any(write(tmp_path / "a.nrrd", {"space units": f'"{name}" "{name}" "{name}"'}))
    assert grid.spacing_mm == pytest.approx((mm, mm, mm))
    assert grid.unit == unit
    assert (grid.in_itk is None) == (mm == 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"units": '"um" "um" "um"', "spacings": "200 300 500"},
        {"units": '"um" "um" "um"', "spacings": "200 300 500", "kinds": "domain domain domain"},
        {
            "units": '"um" "um" "um" "s"', "spacings": "200 300 500 2", "kinds": "domain domain domain time", "dimension": 4,
            "sizes": "4 5 6 1",
        },
    ],
)  # fmt: skip
def test_units_of_axes_count_where_there_is_no_space(tmp_path: Path, fields: dict[str, object]) -> None:
    _, grid = read_any(write(tmp_path / "a.nrrd", WITHOUT_SPACE | fields))
    assert grid.spacing_mm == pytest.approx((0.2, 0.3, 0.5))
    assert grid.unit == "um"


@pytest.mark.parametrize("names", ['"um" "um" "mm"', '"nm" "um" "um"', '"um" "um" ""', '"um" "parsec" "um"'])
@pytest.mark.parametrize("field", ["space units", "units"])
def test_units_that_differ_are_refused(tmp_path: Path, names: str, field: str) -> None:
    changes = {"space units": names} if field == "space units" else WITHOUT_SPACE | {"spacings": "1 1 1", "units": names}
    path = write(tmp_path / "a.nrrd", changes)
    for read in (read_any, check_header):
        with pytest.raises(
            InputError, match=r"a\.nrrd: expected one unit of length for all axes, found '.m', .*: save the image"
        ):
            read(path)


@pytest.mark.parametrize("name", ["pixel", "parsec", "s"])
def test_a_unit_that_is_not_known_is_warned_of(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    _, grid = read_any(write(tmp_path / "a.nrrd", {"space units": f'"{name}" "{name}" "{name}"'}))
    assert grid.spacing_mm == (1, 1, 1)
    assert f"a.nrrd: expected a unit of length, such as um, found '{name}'; lengths are taken for mm" in caplog.text


@pytest.mark.parametrize("fields", [{}, {"space units": '"" "" ""'}, {"space units": '"mm" "mm" "mm"'}])
def test_millimeters_need_no_word(tmp_path: Path, fields: dict[str, object], caplog: pytest.LogCaptureFixture) -> None:
    _, grid = read_any(write(tmp_path / "a.nrrd", fields))
    assert (grid.spacing_mm, grid.unit, grid.in_itk) == ((1, 1, 1), "mm", None)
    assert not caplog.records


@pytest.mark.parametrize(("name", "mm"), [("um", 1e-3), ("mm", 1), ("cm", 10), ("?", 1)])
def test_the_distance_units_of_metaimage_count(tmp_path: Path, name: str, mm: float) -> None:
    (tmp_path / "a.mha").write_bytes(meta({"DistanceUnits": name}))
    _, grid = read_any(tmp_path / "a.mha")
    assert grid.spacing_mm == pytest.approx((mm, mm, mm))
    assert grid_of(sitk.ReadImage(str(tmp_path / "a.mha"))).matches(grid.seen_by_itk(), within_voxels=1e-6)


def test_one_object_in_micrometers_and_in_millimeters_registers(tmp_path: Path) -> None:
    """The fixed image as NRRD in micrometers, the moving one as NIfTI, shifted by two voxels along axis 0."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((1, 1, 30, 28, 26), generator=generator)
    blobs = torch.nn.functional.avg_pool3d(noise, 5, 1, 2) * 1000
    image = sitk.GetImageFromArray(blobs[0, 0].numpy().transpose(2, 1, 0))
    image.SetSpacing((200, 200, 200))
    sitk.WriteImage(image, str(tmp_path / "plain.nrrd"))
    head, data = (tmp_path / "plain.nrrd").read_bytes().split(b"\n\n", 1)
    (tmp_path / "fixed.nrrd").write_bytes(head + b'\nspace units: "um" "um" "um"\n\n' + data)
    grid = read_any(tmp_path / "fixed.nrrd")[1]
    assert grid.spacing_mm == pytest.approx((0.2, 0.2, 0.2))
    write_volume(tmp_path / "moving.nii.gz", blobs.roll(2, 2), grid.affine)
    result = register(tmp_path / "fixed.nrrd", tmp_path / "moving.nii.gz", task="COMULIS3DCLEM", preset="cascade")
    inner = result.displacement[8:-8, 8:-8, 8:-8]
    assert np.abs(inner - (2, 0, 0)).max() < 0.5
    result.save(tmp_path / "out")
    transform = sitk.ReadTransform(str(tmp_path / "out/transform.h5"))
    fixed, moving = sitk.ReadImage(str(tmp_path / "fixed.nrrd")), sitk.ReadImage(str(tmp_path / "out/warped.nii.gz"))
    assert moving.GetSpacing() == pytest.approx((0.2, 0.2, 0.2))
    start = fixed.TransformIndexToPhysicalPoint((14, 14, 14))
    assert start == (2800, 2800, 2800)
    assert np.abs(np.array(transform.TransformPoint(start)) - (16 * 0.2, 14 * 0.2, 14 * 0.2)).max() < 0.1


def test_what_is_written_to_nrrd_is_in_millimeters(tmp_path: Path) -> None:
    volume, grid = read_any(write(tmp_path / "a.nrrd", DIRECTIONS | {"space units": '"um" "um" "um"'}))
    write_any(tmp_path / "b.nrrd", volume, grid)
    assert np.allclose(read_any(tmp_path / "b.nrrd")[1].affine, RAS_MM, atol=1e-9)


def test_vectors_in_micrometers_are_imported(tmp_path: Path) -> None:
    """400 µm to the left in voxels of 200 µm; with the grid of a fixed image in millimeters, or in micrometers."""
    vectors = np.zeros((6, 5, 4, 3), "<f4")
    vectors[..., 0] = 400
    fields = {
        "dimension": 4, "sizes": "3 4 5 6", "kinds": "vector domain domain domain", "space origin": "(0,0,0)",
        "space directions": "none (200,0,0) (0,200,0) (0,0,200)", "space units": '"um" "um" "um"',
    }  # fmt: skip
    (tmp_path / "field.nrrd").write_bytes(nrrd(fields, vectors.tobytes()))
    other = {"space directions": "(200,0,0) (0,200,0) (0,0,200)", "space units": '"um" "um" "um"'}
    image = read_any(write(tmp_path / "image.nrrd", other))[1]
    same = Grid((4, 5, 6), np.diag((-0.2, -0.2, 0.2, 1)))
    for fixed in (None, image, same):
        displacement, grid = read_transform(tmp_path / "field.nrrd", fixed)
        assert grid.matches(same)
        assert torch.allclose(displacement[0].movedim(0, -1), torch.tensor([2.0, 0, 0]), atol=1e-5)
    with pytest.raises(InputError, match="expected the grid of --reference"):
        read_transform(tmp_path / "field.nrrd", Grid((4, 5, 6), np.eye(4)))
