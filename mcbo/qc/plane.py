"""Planes of a volume as people look at them: which way up, with which letters at the edges, at what scale.

World coordinates are NIfTI's: x to the right of the patient, y to the front, z to the head, mm. Pictures follow the
radiological convention: the patient's right is on the left, the head is up, the front is up or (seen from the side) left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mcbo.core.types import Shape

Array = NDArray[np.float64]
Kind = TypeVar("Kind", bound=np.generic)

_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))
"""Of each world axis: its low and its high end."""

_VIEWS = (("axial", 2, 1, 0), ("coronal", 1, 2, 0), ("sagittal", 0, 2, 1))
"""Name, world axis that is cut, world axis that points up, world axis that points left in the picture."""


@dataclass(frozen=True)
class Plane:
    """One voxel thick, through a volume.

    Attributes:
        name: ``axial``, ``coronal`` or ``sagittal``: the nearest of these, where the grid is oblique.
        axis: array axis that is cut, at ``index``.
        index: voxel along it.
        down, across: array axes that run along the picture's rows and columns.
        down_flipped, across_flipped: whether they run from bottom to top and from right to left.
        letters: at the left, right, top and bottom edge.
        count: voxels along ``axis``.
        shape: voxels along ``down`` and ``across``.
        spacing_mm: voxel size along ``down`` and ``across``.
    """

    name: str
    axis: int
    index: int
    down: int
    across: int
    down_flipped: bool
    across_flipped: bool
    letters: tuple[str, str, str, str]
    count: int
    shape: tuple[int, int]
    spacing_mm: tuple[float, float]

    @property
    def size_mm(self) -> tuple[float, float]:
        """Width and height, from face to face."""
        return self.shape[1] * self.spacing_mm[1], self.shape[0] * self.spacing_mm[0]


def nearest_axes(affine: Array) -> tuple[tuple[int, int, int], tuple[bool, bool, bool], float]:
    """Which array axis lies along each world axis, whether it runs the other way, and how oblique the grid is.

    Args:
        affine: voxel to world (mm), ``(4, 4)``, invertible.

    Returns:
        For world axes 0, 1, 2: array axes, and which are reversed; the largest angle of one to its world axis, degrees.
    """
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    first, second, third = max(permutations(range(3)), key=lambda order: sum(abs(cosines[w, a]) for w, a in enumerate(order)))
    along = [cosines[0, first], cosines[1, second], cosines[2, third]]
    angle = float(np.degrees(np.arccos(np.clip(np.abs(along), 0, 1))).max())
    return (first, second, third), (bool(along[0] < 0), bool(along[1] < 0), bool(along[2] < 0)), angle


def planes_through(point: Sequence[float], *, shape: Shape, affine: Array) -> tuple[Plane, ...]:
    """The axial, the coronal and the sagittal plane through a voxel.

    Args:
        point: voxel coordinates; the nearest voxel of the volume counts.
        shape: of the volume.
        affine: voxel to world (mm).
    """
    axes, reversed_, _ = nearest_axes(affine)
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    planes = []
    for name, cut, up, left in _VIEWS:
        axis, down, across = axes[cut], axes[up], axes[left]
        # For the side view "left" is the front (A, the high end of y); for the others the patient's right (R, high end of x).
        low, high = _LETTERS[left]
        bottom, top = _LETTERS[up]
        planes.append(
            Plane(
                name=name,
                axis=axis,
                index=int(np.clip(round(point[axis]), 0, shape[axis] - 1)),
                down=down,
                across=across,
                down_flipped=not reversed_[up],
                across_flipped=not reversed_[left],
                letters=(high, low, top, bottom),
                count=shape[axis],
                shape=(shape[down], shape[across]),
                spacing_mm=(float(spacing_mm[down]), float(spacing_mm[across])),
            )
        )
    return tuple(planes)


def cut(plane: Plane, volume: NDArray[Kind]) -> NDArray[Kind]:
    """The plane, ``(…, rows, columns)``, out of ``(…, H, W, D)``; or of what is already only one voxel thick along its axis."""
    axis = plane.axis - 3
    index = plane.index if volume.shape[axis] == plane.count else 0
    return orient(plane, np.take(volume, index, axis=axis))


def orient(plane: Plane, image: NDArray[Kind]) -> NDArray[Kind]:
    """What was cut along the plane's axis, ``(…, a, b)`` with array axes in their order, turned as the picture shows it."""
    if plane.down > plane.across:
        image = np.swapaxes(image, -1, -2)
    if plane.down_flipped:
        image = image[..., ::-1, :]
    return image[..., ::-1] if plane.across_flipped else image


def place(plane: Plane, points: Array) -> Array:
    """Where points lie in the picture: mm to the right and down from its upper left corner.

    Args:
        plane: the plane; points beside it are projected on it.
        points: ``(…, 3)`` voxel coordinates.

    Returns:
        ``(…, 2)``.
    """
    placed = []
    for axis, flipped, count, spacing in (
        (plane.across, plane.across_flipped, plane.shape[1], plane.spacing_mm[1]),
        (plane.down, plane.down_flipped, plane.shape[0], plane.spacing_mm[0]),
    ):
        index = points[..., axis]
        placed.append(((count - 1 - index if flipped else index) + 0.5) * spacing)
    return np.stack(placed, axis=-1)
