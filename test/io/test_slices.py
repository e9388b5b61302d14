"""Folders with a TIFF for each slice: one series, in the order of its numbers, or a refusal that says what else is there."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from mcbo.core.errors import InputError
from mcbo.geometry.units import MM
from mcbo.io.images import read_any
from mcbo.io.microscopy.images import choices
from mcbo.io.microscopy.selection import Selection, VoxelSize

SPACING = Selection(spacing=VoxelSize((0.5, 0.6, 2.0)))
STACK = np.arange(12 * 4 * 5, dtype=np.uint16).reshape(12, 4, 5)


def folder_of(folder: Path, names: Sequence[str], **options: Any) -> Path:
    """Slices of these names; the Nth has the Nth plane, whatever its name."""
    folder.mkdir(exist_ok=True)
    for name, plane in zip(names, STACK, strict=False):
        tifffile.imwrite(folder / name, plane, **options)
    return folder


def order(folder: Path, selection: Selection = SPACING) -> list[int]:
    """Which planes were read, in their order."""
    volume = read_any(folder, selection)[0][0, 0].numpy().transpose(2, 1, 0)
    return [next(n for n, plane in enumerate(STACK) if np.array_equal(plane, found)) for found in volume]


def refused(folder: Path, selection: Selection = SPACING) -> str:
    with pytest.raises(InputError) as caught:
        read_any(folder, selection)
    assert str(caught.value).startswith(str(folder))
    return str(caught.value)


@pytest.mark.parametrize(
    "pattern",
    ["slice{}.tif", "{}.tiff", "s_{:03}.tif", "2024-01-31_cell3_z{}_c1.TIF", "a.b {} (copy).tif", "scan{}.btf"],
)
def test_slices_are_in_the_order_of_their_numbers(tmp_path: Path, pattern: str) -> None:
    assert order(folder_of(tmp_path / "a", [pattern.format(n) for n in range(1, 13)])) == list(range(12))


def test_numbers_may_begin_anywhere_and_grow_together(tmp_path: Path) -> None:
    names = [f"z{10 * n + 995}_t{n}.tif" for n in range(12)]
    folder = folder_of(tmp_path / "a", names[::-1])
    assert order(folder) == list(range(12))[::-1]


def test_hidden_files_are_none_and_others_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = folder_of(tmp_path / "a", [f"s{n}.tif" for n in range(12)])
    (folder / "._s1.tif").write_bytes(b"of macOS")
    (folder / ".DS_Store").write_bytes(b"of macOS")
    (folder / "below").mkdir()
    assert order(folder) == list(range(12))
    assert not caplog.records
    for name in ("notes.txt", "preview.png"):
        (folder / name).write_bytes(b"something else")
    assert order(folder) == list(range(12))
    assert "ignored 2 file(s) that are no TIFF: notes.txt, preview.png" in caplog.text


@pytest.mark.parametrize(
    ("numbers", "gaps"),
    [
        ([1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 20], ["3 and 5", "12 and 20"]),
        ([10, 20, 30, 50], ["30 and 50"]),
        ([1, 2, 3], []),
        ([5, 10, 15, 20], []),
        ([1, 2, 4000000000000000000000], ["2 and 4000000000000000000000"]),
    ],
)
def test_gaps_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, numbers: list[int], gaps: list[str]) -> None:
    with caplog.at_level(logging.WARNING):
        assert order(folder_of(tmp_path / "a", [f"s{n}.tif" for n in numbers])) == list(range(len(numbers)))
    assert [gap for gap in gaps if gap not in caplog.text] == []
    assert bool(caplog.records) == bool(gaps)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a1.tif", "a2.tif", "b1.tif", "b2.tif"], ["a#.tif (2)", "b#.tif (2)"]),
        (["z1_c0.tif", "z1_c1.tif", "z2_c0.tif", "z2_c1.tif"], ["z1_c#.tif", "z2_c#.tif"]),
        (["c0_z1.tif", "c0_z2.tif", "c1_z3.tif", "c1_z4.tif"], ["c0_z#.tif", "c1_z#.tif"]),
        (["s1.tif", "s2.tif", "s3.tiff"], ["s#.tif (2)", "s#.tiff (1)"]),
        (["s1.tif", "s01.tif", "s2.tif"], ["s1.tif", "s2.tif"]),
        (["a.tif", "b.tif", "c.tif"], ["a.tif (1)", "b.tif (1)", "c.tif (1)"]),
        (["z1_t9.tif", "z2_t8.tif", "z3_t7.tif"], ["z1_t#.tif", "z3_t#.tif"]),
    ],
)
def test_two_series_are_both_named(tmp_path: Path, names: list[str], found: list[str]) -> None:
    sentence = refused(folder_of(tmp_path / "a", names))
    assert "expected the slices of one series" in sentence
    assert [one for one in found if one not in sentence] == []


def test_one_size_one_type_one_slice_each(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", [f"s{n}.tif" for n in range(12)])
    tifffile.imwrite(folder / "s7.tif", STACK[0, :3])
    assert "expected slices of one size and type, found 5×4 uint16 in s0.tif, 5×3 uint16 in s7.tif" in refused(folder)
    tifffile.imwrite(folder / "s7.tif", STACK[0].astype(np.uint8))
    assert "5×4 uint8 in s7.tif" in refused(folder)
    tifffile.imwrite(folder / "s7.tif", STACK[:3], photometric="minisblack")
    assert "s7.tif: expected one slice in each file of a folder, found 3" in refused(folder)
    (folder / "s7.tif").write_bytes(b"II*")
    assert "s7.tif: expected a TIFF image, found none" in refused(folder)
    assert "expected TIFF files in this folder, one per slice, found none" in refused(folder_of(tmp_path / "b", []))
    assert "one per slice, found 1" in refused(folder_of(tmp_path / "c", ["s1.tif"]))


def test_the_voxel_size_is_that_of_the_slices(tmp_path: Path) -> None:
    names = [f"s{n}.ome.tif" for n in range(12)]
    sizes = {"PhysicalSizeX": 0.2, "PhysicalSizeY": 0.3, "PhysicalSizeZ": 0.5}
    folder = folder_of(tmp_path / "a", names, metadata=sizes)
    grid = read_any(folder)[1]
    assert [size / MM[grid.unit] for size in grid.spacing_mm] == pytest.approx((0.2, 0.3, 0.5))
    assert grid.unit == "um"
    flat = folder_of(tmp_path / "b", [f"s{n}.tif" for n in range(12)], imagej=True, resolution=(5, 4), metadata={"unit": "um"})
    assert "it states 0.2×0.25×? µm" in refused(flat, Selection())
    assert "the voxel size that the file states" in refused(flat)
    given = Selection(spacing=VoxelSize((0.2e-3, 0.25e-3, 0.4e-3), "um"))
    assert read_any(flat, given)[1].spacing_mm == pytest.approx((0.2e-3, 0.25e-3, 0.4e-3))


def test_slices_whose_description_tells_of_all_of_them(tmp_path: Path) -> None:
    """A set of OME-TIFF, a plane each: the description names the other files."""
    folder = folder_of(tmp_path / "a", [f"s{n}.ome.tif" for n in range(12)], metadata={"axes": "YX", "PhysicalSizeX": 0.2})
    for number in range(12):
        path = folder / f"s{number}.ome.tif"
        with tifffile.TiffFile(path) as tif:
            text = (tif.ome_metadata or "").replace('SizeZ="1"', 'SizeZ="12"')
        blocks = "".join(
            f'<TiffData FirstZ="{n}"><UUID FileName="s{n}.ome.tif">urn:uuid:{n}</UUID></TiffData>' for n in range(12)
        )
        head, _, tail = text.partition("<TiffData")
        tifffile.tiffcomment(path, (head + blocks + tail.partition("/>")[2]).encode())
    given = Selection(spacing=VoxelSize((0.2e-3, 0.3e-3, 0.4e-3), "um"))
    assert order(folder, given) == list(range(12))


def test_a_channel_of_slices_is_selected(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    for number, plane in enumerate(STACK):
        tifffile.imwrite(folder / f"s{number}.tif", np.stack([plane + 1000, plane]), imagej=True, metadata={"axes": "CYX"})
    assert choices(folder) == (2, 1)
    assert "found 2 channels" in refused(folder)
    assert order(folder, Selection(channel=1, spacing=SPACING.spacing)) == list(range(12))
