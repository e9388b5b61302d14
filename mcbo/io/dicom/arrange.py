"""Where the slices of a DICOM series lie: their order, and their grid, or why they make no volume.

Source: DICOM PS3.3, C.7.6.2 (Image Plane): position and orientation in the patient are LPS millimeters.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mcbo.core.errors import InputError
from mcbo.core.log import log
from mcbo.geometry.grid import Grid
from mcbo.io.dicom.header import CONVERT, Slice
from mcbo.io.files import shown
from mcbo.io.formats.format import check_count
from mcbo.io.itk import LPS

_EVEN, _UNEVEN = 0.01, 0.1
"""Shares of the distance of two slices by which one may miss its place: rounding, and what is read with a warning."""

_TILT = 0.05
"""Share of a pixel by which the last slice may be shifted sideways, by rounding."""

_SAME_PLACE_MM = 1e-3
_ALIKE = 1e-3
"""Of components of orientations, and relative of pixel sizes."""

_MAX_LISTED = 5

SEVERAL_FRAMES = (
    "expected a file for each slice, found several frames in one (enhanced DICOM), of which ITK does not tell where each lies: "
    f"convert it with {CONVERT}"
)

_TELL_APART = ("echo time", "temporal position", "trigger time", "b-value", "acquisition", "image type")
"""Tags in which volumes of one series differ."""


def arrange(slices: Sequence[Slice]) -> tuple[list[Slice], Grid]:
    """Slices in their order along the normal of the planes, and their grid (RAS mm): axis 0 along columns, axis 2 along slices.

    Raises:
        InputError: unless they are parallel, of one size, and at equal distances. Small differences are warned of.
    """
    first = slices[0]
    _check_pixels(slices)
    if len(slices) < 2:
        raise InputError(
            f"expected the slices of a volume, found one, {shown(first.path.name)}: copy the others into this folder"
        )
    row, column, spacing = _plane(slices)
    normal = np.cross(row, column)
    positions = np.stack([one.numbers("position", 3) for one in slices])
    order = np.argsort(positions @ normal, kind="stable")
    ordered, positions = [slices[n] for n in order], positions[order]
    _check_distances(ordered, positions @ normal)
    step = (positions[-1] - positions[0]) / (len(ordered) - 1)
    upright = step @ normal * normal
    affine = np.eye(4)
    affine[:3, :3] = np.stack([row * spacing[1], column * spacing[0], upright], axis=1)
    affine[:3, 3] = positions[0]
    columns, rows = (int(size) for size in first.header["size"][:2])
    shape = (columns, rows, len(ordered))
    check_count(shape)
    sideways = float(np.linalg.norm(step - upright))
    if sideways * (len(ordered) - 1) < _TILT * spacing.min():
        return ordered, Grid(shape, LPS @ affine)
    log.warning(
        "%s: its slices are shifted sideways, by %.1f° (a tilted gantry); they are placed so, while ITK puts them upright",
        first.path.parent,
        np.degrees(np.arctan2(sideways, step @ normal)),
    )
    in_itk = affine.copy()
    in_itk[:3, 2] = normal * np.linalg.norm(step)
    affine[:3, 2] = step
    return ordered, Grid(shape, LPS @ affine, in_itk=LPS @ in_itk)


def _check_pixels(slices: Sequence[Slice]) -> None:
    if any(one.frames > 1 for one in slices):
        raise InputError(SEVERAL_FRAMES)
    if any("MOSAIC" in one.text("image type").upper().split("\\") for one in slices):
        raise InputError(
            f"expected a file for each slice, found all slices side by side in one (a mosaic of Siemens): "
            f"convert it with {CONVERT}"
        )
    sizes = {tuple(one.header["size"][:2]) for one in slices}
    if len(sizes) > 1:
        raise InputError(
            f"expected slices of one size, found {', '.join(f'{a}×{b}' for a, b in sorted(sizes)[:_MAX_LISTED])}: convert the "
            f"series with {CONVERT}"
        )
    numbers = {one.header["numbers"] for one in slices}
    if numbers != {1}:
        raise InputError(
            f"expected one number per pixel, found {max(numbers)} (a color image): choose another series, or convert it to gray"
        )


def _plane(slices: Sequence[Slice]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Directions along a row and along a column, ``(3,)``, and the pixel size, between rows and between columns, ``(2,)``."""
    orientations = np.stack([one.numbers("orientation", 6) for one in slices])
    spacings = np.stack([one.numbers("spacing", 2) for one in slices])
    if spacings.min() <= 0:
        raise InputError(f"expected pixels with a size, found {spacings.min():g} mm: convert the series with {CONVERT}")
    turned = np.abs(orientations - orientations[0]).max(axis=1)
    scaled = np.abs(spacings / spacings[0] - 1).max(axis=1)
    if max(turned.max(), scaled.max()) > _ALIKE:
        other = slices[int(np.maximum(turned, scaled).argmax())]
        raise InputError(
            f"expected parallel slices with pixels of one size, found that {shown(slices[0].path.name)} and "
            f"{shown(other.path.name)} differ (a localizer?): choose another series, or convert it with {CONVERT}"
        )
    row, column = orientations[0, :3], orientations[0, 3:]
    if not 0.99 < np.linalg.norm(np.cross(row, column)) < 1.01 or abs(row @ column) > 0.01:
        raise InputError(
            f"expected axes of length 1 at right angles, found {orientations[0].tolist()}: convert the series with {CONVERT}"
        )
    return row / np.linalg.norm(row), column / np.linalg.norm(column), spacings[0]


def _check_distances(ordered: Sequence[Slice], heights: NDArray[np.float64]) -> None:
    """Of slices in their order, with their heights along the normal, mm."""
    gaps = np.diff(heights)
    apart = gaps[gaps > _SAME_PLACE_MM]
    usual = float(np.median(apart[apart < 1.5 * apart.min()])) if len(apart) else 0.0
    if (gaps <= max(_SAME_PLACE_MM, _EVEN * usual)).any():
        places = 1 + int((gaps > max(_SAME_PLACE_MM, _EVEN * usual)).sum())
        differ = next((name for name in _TELL_APART if len({one.text(name) for one in ordered}) > 1), None)
        raise InputError(
            f"expected one slice at each place, found {len(ordered)} slices at {places} place{'s' if places > 1 else ''}: "
            f"several volumes in one series{f', which differ in {differ}' if differ else ''}; convert it with dcm2niix, which "
            "writes one NIfTI file for each"
        )
    even = heights[0] + np.arange(len(heights)) * (heights[-1] - heights[0]) / len(gaps)
    off = float(np.abs(heights - even).max()) / usual
    if off <= _EVEN:
        return
    multiples = gaps / usual
    if (multiples > 1.5).any() and (np.abs(multiples - multiples.round()) < _UNEVEN).all():
        _refuse_missing(ordered, gaps, multiples.round(), usual)
    widest = int(gaps.argmax())
    told = (
        f"slices at equal distances, found {gaps.min():.4g} to {gaps[widest]:.4g} mm, the largest between "
        f"{shown(ordered[widest].path.name)} and {shown(ordered[widest + 1].path.name)}"
    )
    if off > _UNEVEN:
        raise InputError(f"expected {told}: dcm2niix writes an equidistant copy, NAME_Eq_1.nii")
    log.warning(
        "%s: expected %s; they are taken to be equal, which is off by up to %.2g mm", ordered[0].path.parent, told, off * usual
    )


def _refuse_missing(ordered: Sequence[Slice], gaps: NDArray[np.float64], multiples: NDArray[np.float64], usual: float) -> None:
    """Raises ``InputError`` that names the neighbors of slices that are missing."""
    wide = [
        f"{int(multiple) - 1} between {shown(low.path.name)} and {shown(high.path.name)} ({gap:.4g} mm apart)"
        for (low, high), gap, multiple in zip(pairwise(ordered), gaps, multiples, strict=True)
        if multiple > 1
    ]
    listed = ", ".join(wide[:_MAX_LISTED]) + (", …" if len(wide) > _MAX_LISTED else "")
    raise InputError(
        f"expected all slices of a series, {usual:.4g} mm apart, found {int(multiples.sum()) - len(gaps)} missing: {listed}; "
        "copy all slices into the folder"
    )
