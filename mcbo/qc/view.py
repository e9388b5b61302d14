"""One plane of a pair as the page shows it: images, maps of the displacement, landmarks."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from mcbo.core.field import determinants
from mcbo.core.types import Displacement, Mask, Volume
from mcbo.geometry.mask import field_of_view
from mcbo.qc.picture import Scale, color_png, edge_png, gray_png, window
from mcbo.qc.plane import Array, Plane, cut, orient, place

DETERMINANT_SCALE = Scale("PuOr", -1.0, 1.0)
"""For log2 det J: from half to twice the volume."""

_GRID_LINES = 24
"""Lines of the deformed grid along the longer side of a picture."""
_STEPS = 4
"""Points of a line between two crossings."""
_NEAR_SHARE = 0.1
"""Of a volume's extent: landmarks farther from a plane are faint."""
_DRAWING = 1000
"""Units of a drawing along the longer side of a picture."""
_FARTHEST = 1e6
"""Units from its corner to which lines are drawn; the displacement may lead anywhere."""


@dataclass(frozen=True)
class PairImages:
    """The images of a pair on one grid.

    Attributes:
        fixed, moving: ``(1, 1, H, W, D)``, as the others.
        seen: the fixed image's field of view.
        warped: the moving image warped, from its own grid.
        fixed_window: intensities to show as black and white.
        moving_window: the same for moving and warped, so that their grays can be compared.
    """

    fixed: Volume
    moving: Volume
    warped: Volume
    seen: Mask
    fixed_window: tuple[float, float]
    moving_window: tuple[float, float]


@dataclass(frozen=True)
class Bound:
    """The uncertainty of a result: ``(H, W, D)`` mm, NaN where it is unknown, and its colors."""

    volume_mm: NDArray[np.float32]
    scale: Scale


@dataclass(frozen=True)
class Landmarks:
    """The landmarks of a pair.

    Attributes:
        fixed: ``(n, 3)`` voxels.
        moving: the same structures in the moving image.
        found: the fixed ones mapped by the displacement, p + u(p).
        before_mm, after_mm: distances of ``fixed`` and of ``found`` from ``moving``, ``(n,)``.
    """

    fixed: Array
    moving: Array
    found: Array
    before_mm: Array
    after_mm: Array


@dataclass(frozen=True)
class Mark:
    """A landmark in a drawing: three positions (right, down; in the drawing's units).

    ``along`` is where the fixed one lies along the axis that is cut, voxels; ``near`` is whether that is near the plane.
    """

    number: int
    fixed: tuple[float, float]
    moving: tuple[float, float]
    found: tuple[float, float]
    near: bool
    along: float


@dataclass(frozen=True)
class View:
    """One plane of a pair; bytes are PNG, None where images are missing.

    Attributes:
        plane: the plane.
        drawing: width and height of grid and marks, in their units.
        fixed, moving, warped: in gray.
        edges: of the fixed image, on transparency.
        magnitude: length of the displacement.
        jacobian: log2 det J; folds are black.
        uncertainty: a length that most errors of the displacement stay below, if the result has it; black where unknown.
        folded: number of folded voxels in the plane.
        grid: an SVG path: a regular grid of the fixed image, deformed by the displacement.
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
    uncertainty: bytes | None
    folded: int
    grid: str
    marks: tuple[Mark, ...]


def pair_images(fixed: Volume, moving: Volume, warped: Volume) -> PairImages:
    """The images with the field of view and the intensity windows."""
    windows = window(fixed[0, 0].numpy()), window(torch.cat([moving, warped], dim=2)[0, 0].numpy())
    return PairImages(fixed, moving, warped, field_of_view(fixed), *windows)


def make_view(
    plane: Plane,
    displacement: Displacement,
    images: PairImages | None,
    landmarks: Landmarks | None,
    *,
    spacing_mm: Array,
    magnitude_scale: Scale,
    bound: Bound | None = None,
) -> View:
    """Draws one plane of a pair; the images are on the displacement's grid, whose voxel size is ``spacing_mm``, ``(3,)``."""
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
        warped = gray_png(cut(plane, images.warped[0, 0].numpy()), plane, black=black, white=white)
    uncertainty = None
    if bound is not None:
        bound_slice = cut(plane, bound.volume_mm)
        known = np.isfinite(bound_slice)
        uncertainty = color_png(np.where(known, bound_slice, 0).astype(np.float32), plane, bound.scale, marked=~known)
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
        uncertainty=uncertainty,
        folded=int(folds.sum()),
        grid=_grid(plane, displacement[0].numpy(), unit),
        marks=_marks(plane, landmarks, unit) if landmarks else (),
    )


def _determinants(plane: Plane, displacement: Displacement) -> NDArray[np.float32]:
    """Jacobian determinants in the plane, ``(rows, columns)``, from the plane and its two neighbors."""
    first, last = max(plane.index - 1, 0), min(plane.index + 1, plane.count - 1)
    around = displacement.narrow(2 + plane.axis, first, last - first + 1)
    return orient(plane, np.take(determinants(around)[0, 0].numpy(), plane.index - first, axis=plane.axis))


def _grid(plane: Plane, field: NDArray[np.float32], unit: float) -> str:
    """A regular grid in the plane, deformed by the displacement's components in it.

    ``field`` is ``(3, H, W, D)`` voxels, ``unit`` that of the drawing, per mm.
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
    """An SVG path of ``(n, 2)`` points, rounded to whole units, each relative to the one before."""
    whole = np.rint(np.clip(points, -_FARTHEST, _FARTHEST)).astype(int)
    steps = np.diff(whole, axis=0)
    return f"M{whole[0, 0]} {whole[0, 1]}l" + " ".join(f"{x} {y}" for x, y in steps)


def _marks(plane: Plane, landmarks: Landmarks, unit: float) -> tuple[Mark, ...]:
    along = landmarks.fixed[:, plane.axis]
    near = np.abs(along - plane.index) <= plane.count * _NEAR_SHARE
    places = [
        np.round(place(plane, points) * unit, 1).tolist() for points in (landmarks.fixed, landmarks.moving, landmarks.found)
    ]
    return tuple(
        Mark(number, tuple(fixed), tuple(moving), tuple(found), bool(close), float(at))
        for number, (fixed, moving, found, close, at) in enumerate(zip(*places, near, along, strict=True), start=1)
    )


def largest_mm(displacement: Displacement, spacing_mm: Array) -> float:
    """Length of the longest vector of a displacement, mm."""
    squares = sum(displacement[0, axis].square() * float(spacing_mm[axis]) ** 2 for axis in range(3))
    return float(torch.as_tensor(squares).max().sqrt())
