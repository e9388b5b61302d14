"""What a user says of each of several images: voxel size, channel, time point."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from mcbo.core.errors import InputError
from mcbo.io.images import read_any
from mcbo.io.microscopy.images import from_settings, selections, to_settings
from mcbo.io.microscopy.selection import Selection, VoxelSize, parse_spacing

STACK = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)


@pytest.fixture
def one(tmp_path: Path) -> Path:
    tifffile.imwrite(tmp_path / "one.tif", STACK, imagej=True, metadata={"axes": "ZYX"})
    return tmp_path / "one.tif"


@pytest.fixture
def two(tmp_path: Path) -> Path:
    array = np.stack([STACK, STACK + 100], axis=1)
    tifffile.imwrite(tmp_path / "two.tif", array, imagej=True, metadata={"axes": "ZCYX"})
    return tmp_path / "two.tif"


@pytest.mark.parametrize(
    "text", ["1,2", "1,2,x", "1,2,0", "1,2,-3", "1,2,nan", "inf,1,1", "", "1,2,3parsec", "um", "1;2;3", "1,2,3,4um"]
)
def test_spacings_are_checked(text: str) -> None:
    with pytest.raises(InputError, match="--spacing: expected three positive numbers"):
        parse_spacing(text)


@pytest.mark.parametrize(
    ("text", "mm", "unit"),
    [
        ("0.5,0.6,2", (0.5, 0.6, 2.0), "mm"),
        ("0.5,0.5,2mm", (0.5, 0.5, 2.0), "mm"),
        (" .5, .5, 2 um ", (0.5e-3, 0.5e-3, 2e-3), "um"),
        ("0.5,0.5,2µm", (0.5e-3, 0.5e-3, 2e-3), "um"),
        ("50,50,100nm", (5e-5, 5e-5, 1e-4), "nm"),
        ("1e-1,1e-1,2e-1microns", (1e-4, 1e-4, 2e-4), "um"),
    ],
)
def test_a_spacing_may_have_a_unit(text: str, mm: tuple[float, ...], unit: str) -> None:
    assert parse_spacing(text).mm == pytest.approx(mm)
    assert parse_spacing(text).unit == unit


def test_once_for_all_that_need_it(one: Path, two: Path) -> None:
    nifti, size = Path("a.nii.gz"), VoxelSize((1.0, 1.0, 2.0))
    assert selections([one, nifti, two], spacing=["1,1,2"], channel=["1"]) == [
        Selection(spacing=size),
        Selection(),
        Selection(channel=1, spacing=size),
    ]
    assert selections([one, two], spacing=(1, 1, 2)) == [Selection(spacing=size)] * 2
    assert selections([one, one], channel=0) == [Selection()] * 2
    assert selections([one, two]) == [Selection()] * 2


def test_once_for_each_in_their_order(one: Path, two: Path) -> None:
    fine, coarse = parse_spacing("50,50,100nm"), VoxelSize((2.0, 2.0, 5.0))
    assert selections([one, two], spacing=["50,50,100nm", "2,2,5"], channel=["-", "1"], time=[None, 0]) == [
        Selection(spacing=fine),
        Selection(channel=1, time=0, spacing=coarse),
    ]
    assert [selection.spacing for selection in selections([one, two], spacing=[None, (2, 2, 5)])] == [None, coarse]
    volume = read_any(two, selections([two], spacing=["2,2,5"], channel=["1"])[0])[0]
    assert np.array_equal(volume[0, 0].numpy().transpose(2, 1, 0), STACK + 100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spacing": ["1,1,1", "1,1,2", "1,1,3"]}, "--spacing: expected it once, or once for each of 2 image"),
        ({"channel": ["0", "1", "1"]}, "--channel: expected it once, or once for each of 2 image"),
        ({"time": [0, 1, 2, 3]}, "--time: expected it once, or once for each of 2 image"),
        ({"channel": ["first"]}, "--channel: expected a whole number, counted from 0, got 'first'"),
        ({"channel": -1}, "--channel: expected a whole number"),
        ({"time": 1}, "--time: expected for an image with several time points, got 1, but none has more than one"),
        ({"spacing": 1}, "spacing: expected three positive numbers, got 1"),
        ({"spacing": "1,1"}, "--spacing: expected three positive numbers"),
    ],
)
def test_what_cannot_be_said(one: Path, two: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        selections([one, two], **options)


def test_of_other_formats_nothing_is_said(one: Path) -> None:
    nifti = Path("a.nii.gz")
    for options, message in (
        ({"spacing": ["1,1,2"]}, "--spacing: expected with TIFF or OME-Zarr only"),
        ({"channel": ["-", "1"]}, "--channel: expected for a TIFF or OME-Zarr only, got 1 for a.nii.gz"),
        ({"spacing": ["1,1,1", "1,1,2"]}, "--spacing: expected with TIFF or OME-Zarr only"),
    ):
        with pytest.raises(InputError, match=message):
            selections([nifti, nifti], **options)
    with pytest.raises(
        InputError, match=r"a\.nii\.gz: expected no --spacing, since its format stores the voxel size: give - instead"
    ):
        selections([one, nifti], spacing=["1,1,2", "1,1,3"])


def test_a_report_keeps_it(one: Path, two: Path) -> None:
    selected = selections([one, two], spacing=["0.05,0.05,0.1um", "-"], channel=["-", "1"])
    settings = to_settings(selected)
    assert settings == {
        "spacing": ["0.05,0.05,0.1um", None],
        "channel": [None, 1],
        "time": [None, None],
        "series": [None, None],
    }
    assert [from_settings(settings, number) for number in range(2)] == selected
    assert from_settings({}, 0) == from_settings({"spacing": None, "channel": "x"}, 3) == Selection()
