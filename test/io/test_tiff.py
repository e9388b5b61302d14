"""TIFF as microscopes, ImageJ and OME write it: the values stored, the voxel size stated, and refusals of what is neither."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

from mcbo.core.errors import InputError
from mcbo.geometry.grid import Grid
from mcbo.geometry.units import MM
from mcbo.io.images import read_any
from mcbo.io.microscopy.images import choices
from mcbo.io.microscopy.selection import Selection, VoxelSize

STACK = (np.arange(6 * 7 * 9, dtype=np.uint16) * 37 % 60001).reshape(6, 7, 9)
"""Slices, rows, columns."""
HYPER = np.arange(2 * 5 * 3 * 7 * 9, dtype=np.uint16).reshape(2, 5, 3, 7, 9)
"""Time points, slices, channels, rows, columns."""
SPACING = Selection(spacing=VoxelSize((0.5, 0.6, 2.0)))
IMAGEJ = {"axes": "ZYX", "spacing": 2.0, "unit": "um"}
OME = {"axes": "ZYX", "PhysicalSizeX": 0.05, "PhysicalSizeY": 0.06, "PhysicalSizeZ": 0.1}


def write(path: Path, array: NDArray[Any], **options: Any) -> Path:
    tifffile.imwrite(path, array, **options)
    return path


def values(path: Path, selection: Selection = SPACING) -> NDArray[Any]:
    """What was read, in the order of the file."""
    array: NDArray[Any] = read_any(path, selection)[0][0, 0].numpy().transpose(2, 1, 0)
    return array


def sizes(grid: Grid) -> tuple[float, ...]:
    """In the file's unit."""
    return tuple(size / MM[grid.unit] for size in grid.spacing_mm)


def refused(path: Path, selection: Selection = SPACING) -> str:
    """The sentence that refuses a file, which begins with its name."""
    with pytest.raises(InputError) as caught:
        read_any(path, selection)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", ">u2", ">i2", "u4", "i4", "f2", ">f2", "f4", ">f4", "f8", "?"])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_values_are_those_stored(tmp_path: Path, dtype: str, bigtiff: bool) -> None:
    array = (STACK % 120).astype(dtype)
    order = ">" if dtype.startswith(">") else "<"
    path = write(tmp_path / "a.tif", array, bigtiff=bigtiff, byteorder=order, photometric="minisblack")
    found = values(path)
    assert found.dtype == (np.float32 if array.dtype.kind == "f" else np.int64 if dtype == "u4" else np.int32)
    assert np.array_equal(found, array)


@pytest.mark.parametrize("compression", ["zlib", "lzma", "adobe_deflate"])
@pytest.mark.parametrize("layout", [{}, {"rowsperstrip": 2}, {"tile": (16, 16)}, {"predictor": True}])
def test_compressed_tiled_and_in_strips(tmp_path: Path, compression: str, layout: dict[str, Any]) -> None:
    assert np.array_equal(values(write(tmp_path / "a.tif", STACK, compression=compression, **layout)), STACK)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate"])
@pytest.mark.parametrize("pages", [1, 6])
def test_compressions_of_other_programs(tmp_path: Path, compression: str, pages: int) -> None:
    small = (STACK % 251).astype(np.uint8)[:pages]
    first, *others = map(Image.fromarray, small)
    first.save(tmp_path / "a.tif", compression=compression, save_all=True, append_images=others)
    if pages == 1:
        assert "found one slice" in refused(tmp_path / "a.tif")
    else:
        assert np.array_equal(values(tmp_path / "a.tif"), small)


def test_what_no_codec_here_reads_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", STACK, compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as tif:
        for page in tif.pages:
            assert isinstance(page, tifffile.TiffPage)
            page.tags["Compression"].overwrite(50000)  # Zstandard
    assert "another compression than ZSTD: save it without, or pip install imagecodecs" in refused(path)


def test_imagej_states_voxel_size_and_unit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", STACK, imagej=True, resolution=(2, 2.5), metadata=IMAGEJ)
    volume, grid = read_any(path)
    assert torch.equal(volume[0, 0], torch.from_numpy(STACK.transpose(2, 1, 0).astype(np.int32)))
    assert (grid.shape, grid.unit) == ((9, 7, 6), "um")
    assert sizes(grid) == pytest.approx((0.5, 0.4, 2.0))
    assert grid.orientation == "LPS"  # columns, rows, slices, as ITK has them


@pytest.mark.parametrize(
    ("unit", "found", "mm"),
    [
        ("um", "um", 1e-3),
        ("micron", "um", 1e-3),
        ("microns", "um", 1e-3),
        ("\\u00B5m", "um", 1e-3),
        ("nm", "nm", 1e-6),
        ("mm", "mm", 1.0),
        ("cm", "cm", 10.0),
        ("inch", "mm", 25.4),
    ],
)
def test_units_of_imagej(tmp_path: Path, unit: str, found: str, mm: float) -> None:
    about = IMAGEJ | {"unit": unit}
    _, grid = read_any(write(tmp_path / "a.tif", STACK, imagej=True, resolution=(4, 4), metadata=about))
    assert grid.unit == found
    assert grid.spacing_mm == pytest.approx((0.25 * mm, 0.25 * mm, 2 * mm))


@pytest.mark.parametrize("unit", ["pixel", "", "sec"])
def test_a_calibration_without_a_unit_of_length_is_none(tmp_path: Path, unit: str) -> None:
    path = write(tmp_path / "a.tif", STACK, imagej=True, resolution=(4, 4), metadata=IMAGEJ | {"unit": unit})
    assert "ImageJ's calibration is 0.25×0.25×2.0 without a unit of length" in refused(path, Selection())
    assert read_any(path, SPACING)[1].spacing_mm == pytest.approx((0.5, 0.6, 2.0))


def test_imagej_leaves_a_distance_of_one_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.tif", STACK, imagej=True, resolution=(4, 4), metadata={"axes": "ZYX", "unit": "um"})
    assert sizes(read_any(path)[1]) == pytest.approx((0.25, 0.25, 1.0))
    assert "states no distance of slices, which for ImageJ is 1 um" in caplog.text


def test_an_origin_of_imagej_is_where_the_image_lies(tmp_path: Path) -> None:
    about = IMAGEJ | {"xorigin": 10, "yorigin": -4, "zorigin": 1.5}
    path = write(tmp_path / "a.tif", STACK, imagej=True, resolution=(2, 2), metadata=about)
    grid = read_any(path)[1]
    at_zero = grid.to_voxels(torch.zeros((1, 3), dtype=torch.float64))
    assert at_zero[0].tolist() == pytest.approx((10, -4, 1.5))


@pytest.mark.parametrize(
    ("units", "unit", "mm"),
    [
        ({}, "um", (0.05e-3, 0.06e-3, 0.1e-3)),
        (
            dict.fromkeys(("PhysicalSizeXUnit", "PhysicalSizeYUnit", "PhysicalSizeZUnit"), "nm"),
            "nm",
            (0.05e-6, 0.06e-6, 0.1e-6),
        ),
        ({"PhysicalSizeZUnit": "mm"}, "um", (0.05e-3, 0.06e-3, 0.1)),
        (dict.fromkeys(("PhysicalSizeXUnit", "PhysicalSizeYUnit", "PhysicalSizeZUnit"), "Å"), "mm", (5e-9, 6e-9, 1e-8)),
    ],
)
def test_ome_states_voxel_size_and_units(tmp_path: Path, units: dict[str, str], unit: str, mm: tuple[float, ...]) -> None:
    _, grid = read_any(write(tmp_path / "a.ome.tif", STACK, metadata=OME | units))
    assert grid.unit == unit
    assert grid.spacing_mm == pytest.approx(mm)


def test_an_ome_size_that_is_none_is_told(tmp_path: Path) -> None:
    pixels = dict.fromkeys(("PhysicalSizeXUnit", "PhysicalSizeYUnit", "PhysicalSizeZUnit"), "pixel")
    path = write(tmp_path / "a.ome.tif", STACK, metadata=OME | pixels)
    assert "PhysicalSizeX is 0.05 pixel" in refused(path, Selection())
    flat = write(tmp_path / "b.ome.tif", STACK, metadata={k: v for k, v in OME.items() if k != "PhysicalSizeZ"})
    assert "it states 0.05×0.06×? µm" in refused(flat, Selection())
    part = Selection(spacing=VoxelSize((0.05e-3, 0.06e-3, 0.2e-3), "um"))
    assert sizes(read_any(flat, part)[1]) == pytest.approx((0.05, 0.06, 0.2))


def test_a_size_is_given_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ome.tif", STACK, metadata=OME)
    assert "expected no --spacing, or the voxel size that the file states, 0.05×0.06×0.1 µm, got 0.5×0.6×2 mm" in refused(path)
    agreeing = Selection(spacing=VoxelSize((0.05e-3, 0.06e-3, 0.1e-3)))
    assert read_any(path, agreeing)[1].unit == "um"
    assert sizes(read_any(path, Selection(default_spacing=VoxelSize((1.0, 1.0, 1.0))))[1]) == pytest.approx((0.05, 0.06, 0.1))


def test_a_tiff_that_states_none_needs_one(tmp_path: Path) -> None:
    for path in (write(tmp_path / "a.tif", STACK), write(tmp_path / "b.tif", STACK, metadata=None, resolution=(300, 300))):
        assert "expected --spacing with the voxel size along columns, rows, slices" in refused(path, Selection())
        assert read_any(path, SPACING)[1].spacing_mm == pytest.approx((0.5, 0.6, 2.0))


@pytest.mark.parametrize("kind", ["imagej", "ome", "ome CTZYX", "compressed", "big endian"])
def test_a_channel_and_a_time_point_are_selected(tmp_path: Path, kind: str) -> None:
    array, options = HYPER, dict[str, Any](imagej=True, metadata={"axes": "TZCYX", "spacing": 2.0, "unit": "um"})
    if kind.startswith("ome"):
        array = HYPER.transpose(2, 0, 1, 3, 4) if "CTZYX" in kind else HYPER
        options = {"metadata": OME | {"axes": "CTZYX" if "CTZYX" in kind else "TZCYX"}}
    elif kind == "compressed":
        options = {"compression": "zlib", "metadata": OME | {"axes": "TZCYX"}}
    elif kind == "big endian":
        options = {"byteorder": ">", "metadata": OME | {"axes": "TZCYX"}}
    path = write(tmp_path / ("a.tif" if kind == "imagej" else "a.ome.tif"), array, **options)
    assert choices(path) == (3, 2)
    assert "expected --channel with a number from 0 to 2, found 3 channels" in refused(path, Selection(time=1))
    assert "expected --time with a number from 0 to 1, found 2 time points" in refused(path, Selection(channel=1))
    assert "--channel: expected a number from 0 to 2, got 3" in refused(path, Selection(channel=3, time=0))
    for channel, time in ((0, 0), (2, 1), (1, 0)):
        assert np.array_equal(values(path, Selection(channel, time)), HYPER[time, :, channel])


@pytest.mark.parametrize("axes", ["TYX", "CYX"])
def test_slices_that_are_called_something_else_are_refused(tmp_path: Path, axes: str) -> None:
    what = {"T": "time points", "C": "channels"}[axes[0]]
    for path in (
        write(tmp_path / "a.tif", STACK, imagej=True, metadata={"axes": axes}),
        write(tmp_path / "a.ome.tif", STACK, metadata={"axes": axes}),
    ):
        assert f"expected a 3D image, found one slice of several {what}" in refused(path)


def test_one_channel_is_no_choice(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", STACK)
    assert np.array_equal(values(path, Selection(channel=0, time=0, spacing=SPACING.spacing)), STACK)
    assert "--channel: expected a number from 0 to 0, got 1" in refused(path, Selection(channel=1, spacing=SPACING.spacing))


def test_a_stack_with_one_directory_for_all_slices(tmp_path: Path) -> None:
    """As ImageJ writes more than 4 GB: the others follow the pixels of the first slice."""
    path = write(tmp_path / "a.tif", STACK, imagej=True, resolution=(2, 2), metadata=IMAGEJ)
    with tifffile.TiffFile(path) as tif:
        assert tif.pages.first.offset + 300 < tif.pages.first.dataoffsets[0] + STACK.nbytes <= tif.pages[1].offset
        behind, pixels = tif.pages[1].offset, tif.pages.first.dataoffsets[0]
        link = following(tif.pages.first)
    content = spoiled(path.read_bytes(), link, 0, 4)[:behind]
    path.write_bytes(content)
    assert np.array_equal(values(path, Selection()), STACK)
    path.write_bytes(content[: pixels + STACK.nbytes - 100])
    refused(path, Selection())


@pytest.mark.parametrize("one_by_one", [False, True])
def test_a_palette_keeps_its_indices(tmp_path: Path, one_by_one: bool) -> None:
    green = np.zeros((3, 256), np.uint16)
    green[1] = np.arange(256) * 257
    indices = (STACK % 256).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for part in indices if one_by_one else [indices]:
            tif.write(part, photometric="palette", colormap=green)
    assert np.array_equal(values(tmp_path / "a.tif"), indices)
    Image.fromarray(indices[0]).convert("P").save(
        tmp_path / "b.tif", save_all=True, append_images=[Image.fromarray(indices[1])]
    )
    assert values(tmp_path / "b.tif").shape == (2, 7, 9)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((6, 7, 9, 3), {"imagej": True, "metadata": {"axes": "ZYXS"}}),
        ((6, 7, 9, 3), {"photometric": "rgb"}),
        ((6, 7, 9, 4), {"photometric": "rgb", "metadata": {"axes": "ZYXS"}}),
        ((6, 3, 7, 9), {"photometric": "rgb", "planarconfig": "separate"}),
    ],
)
def test_color_is_refused(tmp_path: Path, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    assert "found a color image: make it gray" in refused(write(tmp_path / "a.tif", np.zeros(shape, np.uint8), **options))


def test_axes_that_nobody_asked_for_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", HYPER[:, :, 0], metadata={"axes": "AZYX"})
    assert "found an image with further axes: angle" in refused(path)
    assert "further axes" in refused(write(tmp_path / "b.tif", HYPER, photometric="minisblack"))
    assert "data of type complex64" in refused(write(tmp_path / "c.tif", STACK.astype(np.complex64)))


def test_of_a_pyramid_the_finest_level_is_read(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as tif:
        tif.write(STACK, subifds=2, metadata=OME, tile=(16, 16))
        tif.write(STACK[:, ::2, ::2], subfiletype=1, tile=(16, 16))
        tif.write(STACK[:, ::4, ::4], subfiletype=1, tile=(16, 16))
    assert np.array_equal(values(tmp_path / "a.ome.tif", Selection()), STACK)


def test_several_images_are_listed_and_a_thumbnail_is_not_one(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as tif:
        tif.write(STACK, metadata={"axes": "ZYX", "Name": "cell"})
        tif.write(STACK[:4], metadata={"axes": "ZYX", "Name": "nucleus"})
    assert "expected one image in the file, found 2: cell (6×7×9 ZYX), nucleus (4×7×9 ZYX)" in refused(tmp_path / "a.ome.tif")
    with tifffile.TiffWriter(tmp_path / "b.tif") as tif:
        for plane in STACK:
            tif.write(plane, metadata=None)
        tif.write(np.zeros((3, 4), np.uint16), metadata=None)
    assert np.array_equal(values(tmp_path / "b.tif"), STACK)


def test_an_ome_tiff_may_be_renamed_but_not_be_one_of_several(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ome.tif", STACK, metadata=OME)
    with tifffile.TiffFile(path) as tif:
        text = tif.ome_metadata or ""
    named = text.replace("</TiffData>", "").replace(
        'PlaneCount="6"/>', 'PlaneCount="6"><UUID FileName="before.ome.tif">urn:uuid:1</UUID></TiffData>'
    )
    assert "UUID FileName" in named
    tifffile.tiffcomment(path, named.encode())
    assert np.array_equal(values(path, Selection()), STACK)
    two = named.replace("</TiffData>", '</TiffData><TiffData><UUID FileName="../../b.ome.tif">urn:uuid:2</UUID></TiffData>', 1)
    tifffile.tiffcomment(path, two.encode())
    assert "found one of 2 files or more of an OME-TIFF" in refused(path, Selection())
    head, _, tail = named.partition("<Image")
    elsewhere = f'{head}<BinaryOnly MetadataFile="c.companion.ome" UUID="urn:uuid:3"/>{tail[tail.index("</OME>") :]}'
    tifffile.tiffcomment(path, elsewhere.encode())
    assert "found one of 2 files or more of an OME-TIFF" in refused(path, Selection())
    tifffile.tiffcomment(path, ('<!DOCTYPE a [<!ENTITY b "c">]>' + named).encode())
    assert str(path) in refused(path, Selection())


def test_micro_manager_describes_its_files_twice(tmp_path: Path) -> None:
    """OME-XML in one description, ImageJ's in another."""
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as tif:
        text = "ImageJ=1.52\nimages=6\nslices=6\nhyperstack=true\nunit=um\nspacing=9.0\n"
        tif.write(STACK, metadata=OME, extratags=[(270, 2, None, text, True)])
    assert np.array_equal(values(tmp_path / "a.ome.tif", Selection()), STACK)
    assert sizes(read_any(tmp_path / "a.ome.tif")[1]) == pytest.approx((0.05, 0.06, 0.1))


def test_stacks_of_itk(tmp_path: Path) -> None:
    array = (STACK % 251).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "stack.tif"))
    assert np.array_equal(values(tmp_path / "stack.tif"), array)
    assert "expected --spacing" in refused(tmp_path / "stack.tif", Selection())


def spoiled(content: bytes, at: int, value: int, width: int) -> bytes:
    return content[:at] + value.to_bytes(width, "little") + content[at + width :]


def following(page: tifffile.TiffPage) -> int:
    """Where a directory says where the next one lies."""
    return page.offset + 2 + 12 * len(page.tags)


def test_files_that_claim_what_they_do_not_hold(tmp_path: Path) -> None:
    good = write(tmp_path / "a.tif", STACK, metadata=None).read_bytes()
    first = struct.unpack("<I", good[4:8])[0]
    count = struct.unpack("<H", good[first : first + 2])[0]
    tags = {struct.unpack("<H", good[at : at + 2])[0]: at for at in range(first + 2, first + 2 + 12 * count, 12)}
    link = first + 2 + 12 * count
    bad = {
        "a circle": spoiled(good, link, first, 4),
        "beyond the end": spoiled(good, link, 1 << 31, 4),
        "no directory": spoiled(good, 4, len(good) - 1, 4),
        "too many tags": spoiled(good, first, 65535, 2),
        "a huge tag": spoiled(good, tags[273] + 4, 1 << 31, 4),
        "wide": spoiled(good, tags[256] + 8, 60000, 4),
        "high": spoiled(good, tags[257] + 8, 60000, 4),
        "elsewhere": spoiled(good, tags[273] + 8, len(good) - 8, 4),
        "cut off": good[:-300],
        "a header alone": good[:8],
        "text": b"II is how this begins, but not how it goes on",
        "nothing": b"",
    }
    for name, content in bad.items():
        (tmp_path / "bad.tif").write_bytes(content)
        sentence = refused(tmp_path / "bad.tif")
        assert len(sentence) < 400, name


def test_a_chain_of_directories_that_is_a_circle_further_on(tmp_path: Path) -> None:
    """tifffile looks for circles once, and would read the others billions of times."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for _ in range(150):
            tif.write(np.zeros((2, 2), np.uint8), metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        last = tif.pages[-1]
        assert isinstance(last, tifffile.TiffPage)
        link, back = following(last), tif.pages[120].offset
    (tmp_path / "a.tif").write_bytes(spoiled((tmp_path / "a.tif").read_bytes(), link, back, 4))
    assert "run in a circle" in refused(tmp_path / "a.tif")
