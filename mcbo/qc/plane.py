"""Planes of a volume in radiological convention: right on the left, head up, front up or (in the sagittal plane) left.

World coordinates are NIfTI's, mm: x to the patient's right, y to the front, z to the head. Images of microscopes are shown as
microscopists do, with X to the right, Y down, and Z down or (in the YZ plane) to the right, all as the voxels are counted.
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
"""Low and high end of each world axis."""

_VIEWS = (("axial", 2, 1, 0), ("coronal", 1, 2, 0), ("sagittal", 0, 2, 1))
"""Name, world axis that is cut, world axis that points up, world axis that points left in the picture."""

_MICROSCOPY_VIEWS = (("XY plane", 2, 1, 0), ("XZ plane", 1, 2, 0), ("YZ plane", 0, 1, 2))
"""Name, world axis that is cut, world axis that points down, world axis that points right."""


@dataclass(frozen=True)
class Plane:
    """A plane of a volume, one voxel thick.

    Attributes:
        name: ``axial``, ``coronal`` or ``sagittal``; the nearest of these, where the grid is oblique. Or ``XY plane`` etc.
        axis: array axis that is cut.
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
        """Width and height, from face to face of the outer voxels."""
        return self.shape[1] * self.spacing_mm[1], self.shape[0] * self.spacing_mm[0]


def nearest_axes(affine: Array) -> tuple[tuple[int, ...], tuple[bool, ...], float]:
    """The array axis nearest to each world axis, whether it is reversed, and the largest angle between the two, degrees.

    ``affine`` is ``(4, 4)``, invertible, voxel to world (mm).
    """
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    axes = max(permutations(range(3)), key=lambda order: sum(abs(cosines[w, a]) for w, a in enumerate(order)))
    along = cosines[range(3), axes]
    angle = float(np.degrees(np.arccos(np.clip(np.abs(along), 0, 1))).max())
    return axes, tuple((along < 0).tolist()), angle


def planes_through(point: Sequence[float], *, shape: Shape, affine: Array, is_microscopy: bool = False) -> tuple[Plane, ...]:
    """The axial, coronal, and sagittal plane through the voxel nearest to a point (voxel coordinates); or XY, XZ, and YZ."""
    axes, reversed_, _ = nearest_axes(affine)
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    planes = []
    for name, cut, up, left in _MICROSCOPY_VIEWS if is_microscopy else _VIEWS:
        axis, down, across = axes[cut], axes[up], axes[left]
        # Left in the picture is the front (A, the high end of y) in the sagittal plane, else the patient's right (R, of x).
        low, high = _LETTERS[left]
        bottom, top = _LETTERS[up]
        flips, letters = (not reversed_[up], not reversed_[left]), (high, low, top, bottom)
        if is_microscopy:
            flips, letters = (False, False), ("", f"{'XYZ'[left]} →", "", f"{'XYZ'[up]} ↓")
        planes.append(
            Plane(
                name=name,
                axis=axis,
                index=int(np.clip(round(point[axis]), 0, shape[axis] - 1)),
                down=down,
                across=across,
                down_flipped=flips[0],
                across_flipped=flips[1],
                letters=letters,
                count=shape[axis],
                shape=(shape[down], shape[across]),
                spacing_mm=(float(spacing_mm[down]), float(spacing_mm[across])),
            )
        )
    return tuple(planes)


def cut(plane: Plane, volume: NDArray[Kind]) -> NDArray[Kind]:
    """The plane, ``(…, rows, columns)``, of an array ``(…, H, W, D)``, which may be one voxel thick along the plane's axis."""
    axis = plane.axis - 3
    index = plane.index if volume.shape[axis] == plane.count else 0
    return orient(plane, np.take(volume, index, axis=axis))


def orient(plane: Plane, image: NDArray[Kind]) -> NDArray[Kind]:
    """A slice along the plane's axis, ``(…, a, b)`` with the array axes in order, in the orientation of the picture."""
    if plane.down > plane.across:
        image = np.swapaxes(image, -1, -2)
    if plane.down_flipped:
        image = image[..., ::-1, :]
    return image[..., ::-1] if plane.across_flipped else image


def place(plane: Plane, points: Array) -> Array:
    """Projects points, ``(…, 3)`` voxels, on the picture: ``(…, 2)`` mm right of and below its upper left corner."""
    placed = []
    for axis, flipped, count, spacing in (
        (plane.across, plane.across_flipped, plane.shape[1], plane.spacing_mm[1]),
        (plane.down, plane.down_flipped, plane.shape[0], plane.spacing_mm[0]),
    ):
        index = points[..., axis]
        placed.append(((count - 1 - index if flipped else index) + 0.5) * spacing)
    return np.stack(placed, axis=-1)
