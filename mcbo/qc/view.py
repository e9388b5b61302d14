"""What a page shows of a pair in one plane: images, what the displacement does there, landmarks."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from mcbo.core.field import determinants, sample
from mcbo.core.types import Displacement, Mask, Volume
from mcbo.geometry.mask import field_of_view
from mcbo.qc.picture import Scale, color_png, edge_png, gray_png, window
from mcbo.qc.plane import Array, Plane, cut, orient, place

DETERMINANT_SCALE = Scale("PuOr", -1.0, 1.0)
"""For log2 of the determinant: half the volume to twice the volume."""

_GRID_LINES = 24
"""Lines of the deformed grid along the longer side of a picture."""
_STEPS = 4
"""Points of such a line between two crossings."""
_DRAWING = 1000
"""Units of a drawing along the longer side of a picture."""


@dataclass(frozen=True)
class PairImages:
    """The images of a pair on one grid.

    Attributes:
        fixed, moving: ``(1, 1, H, W, D)``.
        seen: where the fixed image shows something.
        fixed_window, moving_window: what to show black and what white.
        warped: the warped moving image, where the moving one shows on this grid less than it has.
    """

    fixed: Volume
    moving: Volume
    seen: Mask
    fixed_window: tuple[float, float]
    moving_window: tuple[float, float]
    warped: Volume | None = None


@dataclass(frozen=True)
class Landmarks:
    """The landmarks of a pair.

    Attributes:
        fixed: ``(n, 3)`` voxels.
        moving: where they are in the moving image.
        found: where the displacement takes the fixed ones, as p + u(p).
        before_mm, after_mm: distances, ``(n,)``.
    """

    fixed: Array
    moving: Array
    found: Array
    before_mm: Array
    after_mm: Array


@dataclass(frozen=True)
class Mark:
    """A landmark in a drawing: three places (right, down; in the drawing's units) and whether it lies near the plane."""

    number: int
    fixed: tuple[float, float]
    moving: tuple[float, float]
    found: tuple[float, float]
    near: bool


@dataclass(frozen=True)
class View:
    """One plane of a pair; PNG where it says bytes, None where images are missing.

    Attributes:
        plane: which.
        drawing: width and height of grid and marks, in their units.
        fixed, moving, warped: in gray.
        edges: of the fixed image, else transparent.
        magnitude: length of the displacement.
        jacobian: log2 of the determinant; folds are black.
        folded: how many voxels of the plane these are.
        grid: an SVG path: a regular grid of the fixed image, taken along by the displacement.
        marks: landmarks.
    """

    plane: Plane
    drawing: tuple[int, int]
    fixed: bytes | None
    moving: bytes | None
    warped: bytes | None
    edges: bytes | None
    magnitude: bytes
    jacobian: bytes
    folded: int
    grid: str
    marks: tuple[Mark, ...]


def pair_images(fixed: Volume, moving: Volume, *, warped: Volume | None = None) -> PairImages:
    """Finds out where there is something to see, and what to show black and white."""
    shown = moving if warped is None else warped
    windows = window(fixed[0, 0].numpy()), window(shown[0, 0].numpy())
    return PairImages(fixed, moving, field_of_view(fixed), *windows, warped)


def make_view(
    plane: Plane,
    displacement: Displacement,
    images: PairImages | None,
    landmarks: Landmarks | None,
    *,
    spacing_mm: Array,
    magnitude_scale: Scale,
) -> View:
    """Everything of a pair that one plane shows.

    Args:
        plane: through the grid of the displacement.
        displacement: ``(1, 3, H, W, D)`` voxels.
        images: of the pair, on that grid.
        landmarks: of the pair.
        spacing_mm: voxel size, ``(3,)``.
        magnitude_scale: colors for lengths in mm.
    """
    field = cut(plane, displacement[0].numpy())
    length_mm = np.linalg.norm(field * spacing_mm.reshape(3, 1, 1), axis=0).astype(np.float32)
    determinant = _determinants(plane, displacement)
    folds = determinant <= 0
    fixed = moving = warped = edges = None
    if images is not None:
        fixed_slice = cut(plane, images.fixed[0, 0].numpy())
        black, white = images.fixed_window
        fixed = gray_png(fixed_slice, plane, black=black, white=white)
        edges = edge_png(fixed_slice, plane, seen=cut(plane, images.seen[0, 0].numpy()))
        black, white = images.moving_window
        moving = gray_png(cut(plane, images.moving[0, 0].numpy()), plane, black=black, white=white)
        there = images.warped
        warped_slice = _warped(plane, images.moving, displacement) if there is None else cut(plane, there[0, 0].numpy())
        warped = gray_png(warped_slice, plane, black=black, white=white)
    unit = _DRAWING / max(plane.size_mm)
    return View(
        plane=plane,
        drawing=(round(plane.size_mm[0] * unit), round(plane.size_mm[1] * unit)),
        fixed=fixed,
        moving=moving,
        warped=warped,
        edges=edges,
        magnitude=color_png(length_mm, plane, magnitude_scale),
        jacobian=color_png(np.log2(np.maximum(determinant, 1e-3)), plane, DETERMINANT_SCALE, marked=folds),
        folded=int(folds.sum()),
        grid=_grid(plane, displacement[0].numpy(), unit),
        marks=_marks(plane, landmarks, unit) if landmarks else (),
    )


def _slab(plane: Plane, *, margin: int) -> slice:
    return slice(max(plane.index - margin, 0), plane.index + margin + 1)


def _determinants(plane: Plane, displacement: Displacement) -> NDArray[np.float32]:
    """Of the plane's voxels, ``(rows, columns)``; its neighbors are all that has to be looked at."""
    slab = _slab(plane, margin=1)
    index = plane.index - slab.start
    around = displacement[(slice(None),) * (2 + plane.axis) + (slab,)]
    return orient(plane, np.take(determinants(around)[0, 0].numpy(), index, axis=plane.axis))


def _warped(plane: Plane, moving: Volume, displacement: Displacement) -> NDArray[np.float32]:
    """The warped moving image on the plane, ``(rows, columns)``."""
    offset = (0,) * plane.axis + (plane.index,) + (0,) * (2 - plane.axis)
    box = displacement[(slice(None),) * (2 + plane.axis) + (_slab(plane, margin=0),)]
    return cut(plane, sample(moving, box, offset=(offset[0], offset[1], offset[2]), outside="zeros")[0, 0].numpy())


def _grid(plane: Plane, field: NDArray[np.float32], unit: float) -> str:
    """Lines of a regular grid on the plane, each point moved by the displacement there; its part across the plane is not seen.

    Args:
        plane: the plane.
        field: ``(3, H, W, D)`` voxels.
        unit: of the drawing, per mm.
    """
    flat = np.take(field, plane.index, axis=1 + plane.axis)
    axes = [axis for axis in range(3) if axis != plane.axis]
    apart_mm = max(plane.size_mm) / _GRID_LINES
    size_mm = {plane.across: plane.size_mm[0], plane.down: plane.size_mm[1]}
    lines = []
    for along, other in ((plane.across, plane.down), (plane.down, plane.across)):
        steps = np.linspace(0, size_mm[along], round(_STEPS * size_mm[along] / apart_mm) + 2)
        starts = np.arange(apart_mm / 2, size_mm[other], apart_mm)
        points = np.full((len(starts), len(steps), 3), float(plane.index))
        for axis, places_mm in ((along, steps), (other, starts[:, None])):
            points[..., axis] = places_mm * field.shape[1 + axis] / size_mm[axis] - 0.5
        moved = points.copy()
        for axis in axes:
            moved[..., axis] += map_coordinates(flat[axis], np.moveaxis(points[..., axes], -1, 0), order=1, mode="nearest")
        lines += [_path(line) for line in place(plane, moved) * unit]
    return "".join(lines)


def _path(points: Array) -> str:
    """An SVG path in whole units, each point relative to the one before."""
    whole = np.rint(points).astype(int)
    steps = np.diff(whole, axis=0)
    return f"M{whole[0, 0]} {whole[0, 1]}l" + " ".join(f"{x} {y}" for x, y in steps)


def _marks(plane: Plane, landmarks: Landmarks, unit: float) -> tuple[Mark, ...]:
    near = np.abs(landmarks.fixed[:, plane.axis] - plane.index) <= plane.count / 10
    places = [
        np.round(place(plane, points) * unit, 1).tolist() for points in (landmarks.fixed, landmarks.moving, landmarks.found)
    ]
    return tuple(
        Mark(number, tuple(fixed), tuple(moving), tuple(found), bool(close))
        for number, (fixed, moving, found, close) in enumerate(zip(*places, near, strict=True), start=1)
    )


def largest_mm(displacement: Displacement, spacing_mm: Array) -> float:
    """Length of the longest vector of a displacement."""
    squares = sum(displacement[0, axis].square() * float(spacing_mm[axis]) ** 2 for axis in range(3))
    return float(torch.as_tensor(squares).max().sqrt())
