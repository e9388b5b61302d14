"""Which part of a file is the image, and what the file does not say: channel, time point, voxel size."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mcbo.core.errors import InputError
from mcbo.core.types import Shape, Triple
from mcbo.geometry.grid import Grid
from mcbo.geometry.units import MM, Unit, symbol_of, unit_of
from mcbo.io.nifti_header import Form

_AGREE = 1e-3
"""Relative difference of two voxel sizes that are the same: TIFF stores fractions."""

_SIZES = re.compile(r"(.*[0-9.])\s*([a-zµμ]*)", re.IGNORECASE)

_OTHER_MM = {"å": 1e-7, "angstrom": 1e-7, "pm": 1e-9, "picometer": 1e-9, "in": 25.4, "inch": 25.4, "inches": 25.4, "dm": 100.0}
"""Units of length that nobody reads images in."""


@dataclass(frozen=True)
class VoxelSize:
    """Millimeters along columns, rows and slices, and the unit in which they were given."""

    mm: Triple
    unit: Unit = "mm"

    def __str__(self) -> str:
        return _shown(self.mm, self.unit)

    @property
    def text(self) -> str:
        """As ``parse_spacing`` takes it."""
        return ",".join(repr(size / MM[self.unit]) for size in self.mm) + self.unit


@dataclass(frozen=True)
class Selection:
    """What a user says of an image.

    Attributes:
        channel, time: counted from 0, where a file has several.
        spacing: voxel size, where a file does not state it.
        default_spacing: the same of an image that it belongs to; not an error where the file states another.
        form: what to take of a NIfTI header where its sform and qform differ.
        series: UID or description of a DICOM series, where a folder has several.
    """

    channel: int | None = None
    time: int | None = None
    spacing: VoxelSize | None = None
    default_spacing: VoxelSize | None = None
    form: Form = "sform"
    series: str | None = None


ALL = Selection()
"""Nothing said."""


@dataclass(frozen=True)
class Stated:
    """What a file says of its voxels.

    Attributes:
        mm: size along columns, rows and slices; None where the file does not say.
        unit: of the file.
        origin: position of the first voxel's center (x, y, z), in voxels.
        hint: what the file says that is no voxel size, for messages.
    """

    mm: tuple[float | None, float | None, float | None] = (None, None, None)
    unit: Unit = "mm"
    origin: Triple = (0.0, 0.0, 0.0)
    hint: str = ""

    def grid(self, shape: Shape, selection: Selection) -> Grid:
        """The grid of an image of that shape (columns, rows, slices).

        Raises:
            InputError: if neither file nor user state the voxel size, or both do and differ.
        """
        given = selection.spacing or (None if None not in self.mm else selection.default_spacing)
        if given is not None:
            for stated, told in zip(self.mm, given.mm, strict=True):
                if stated is not None and abs(told - stated) > _AGREE * stated:
                    raise InputError(
                        f"expected no --spacing, or the voxel size that the file states, {_shown(self.mm, self.unit)}, got "
                        f"{given}; of several images, give one each, - where the file's own counts"
                    )
        elif None in self.mm:
            known = self.hint or (f"it states {_shown(self.mm, self.unit)}" if any(self.mm) else "the file does not state it")
            raise InputError(
                "expected --spacing with the voxel size along columns, rows, slices, such as 0.5,0.5,2 (mm) or 50,50,100nm: "
                f"{known}"
            )
        known_mm = given.mm if given else (0.0, 0.0, 0.0)
        sizes = [told if stated is None else stated for stated, told in zip(self.mm, known_mm, strict=True)]
        unit = given.unit if given and not any(self.mm) else self.unit
        affine = np.diag([-sizes[0], -sizes[1], sizes[2], 1.0])
        affine[:3, 3] = affine[:3, :3] @ np.array(self.origin)
        return Grid(shape, affine, unit)


def selected(selection: Selection, *, channels: int, times: int) -> tuple[int, int]:
    """The selected channel and time point; raises ``InputError`` where there is a choice and none is made, or no such part."""
    found = []
    for option, index, count, what in (
        ("--channel", selection.channel, channels, "channels"),
        ("--time", selection.time, times, "time points"),
    ):
        if index is None and count > 1:
            raise InputError(f"expected {option} with a number from 0 to {count - 1}, found {count} {what}")
        if index is not None and index >= count:
            raise InputError(f"{option}: expected a number from 0 to {count - 1}, got {index} (number of {what}: {count})")
        found.append(index or 0)
    return found[0], found[1]


def mm_of(size: object, mm: float | None) -> float | None:
    """A size in a unit of so many mm, as mm; None if it is not a number above 0 and below infinity, or has no unit."""
    if mm is None or not isinstance(size, int | float | str) or isinstance(size, bool):
        return None
    try:
        value = float(size) * mm
    except (ValueError, OverflowError):
        return None
    return value if 0 < value < np.inf else None


def length_of(name: str) -> tuple[Unit, float | None]:
    """The unit of that name, for reports, and its millimeters; None if it is not one of length."""
    unit = unit_of(name)
    return ("mm", _OTHER_MM.get(name.strip().lower())) if unit is None else (unit, MM[unit])


def parse_spacing(text: str) -> VoxelSize:
    """A voxel size from ``0.5,0.5,2`` (mm) or ``0.5,0.5,2um``; raises ``InputError`` if it is not that."""
    match = _SIZES.fullmatch(text.strip())
    unit = unit_of(match[2]) if match and match[2] else "mm"
    sizes = positive_sizes(match[1].split(",")) if match else None
    if sizes is None or unit is None:
        raise InputError(
            f"--spacing: expected three positive numbers such as 0.5,0.5,2, in mm or with a unit (0.5,0.5,2um), got {text!r}"
        )
    return VoxelSize((sizes[0] * MM[unit], sizes[1] * MM[unit], sizes[2] * MM[unit]), unit)


def positive_sizes(values: Any) -> Triple | None:
    """Three numbers above 0 and below infinity; None if the values are anything else."""
    try:
        first, second, third = (float(value) for value in values)
    except (TypeError, ValueError):
        return None
    return (first, second, third) if all(0 < size < np.inf for size in (first, second, third)) else None


def voxel_size(value: Any) -> VoxelSize | None:
    """A voxel size as the Python API takes it: three numbers (mm), or text as for ``parse_spacing``; or None."""
    if value is None or isinstance(value, VoxelSize):
        return value
    if isinstance(value, str):
        return parse_spacing(value)
    sizes = positive_sizes(value)
    if sizes is None:
        raise InputError(f"spacing: expected three positive numbers, got {value!r:.80}")
    return VoxelSize(sizes)


def index_of(value: Any, option: str) -> int | None:
    """A channel or time point as a number from 0, from a number or text; None for None; else raises ``InputError``."""
    if value is None:
        return None
    text = str(value)
    if not re.fullmatch("[0-9]{1,9}", text):
        raise InputError(f"{option}: expected a whole number, counted from 0, got {text!r:.40}")
    return int(text)


def _shown(mm: Sequence[float | None], unit: Unit) -> str:
    parts = "×".join("?" if size is None else f"{size / MM[unit]:.4g}" for size in mm)
    return f"{parts} {symbol_of(unit)}"
