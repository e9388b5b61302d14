"""Where a volume lies in the world: its shape and its affine.

World coordinates are millimeters, RAS: the first grows to the patient's right, the second to the front, the third upward.
Everything here is float64; origins far away and oblique axes cost float32 more than a thousandth of a millimeter.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.errors import ShapeError
from mcbo.core.types import Displacement, Shape, Triple
from mcbo.geometry.units import Unit

SLAB_VOXELS = 1 << 20
"""Voxels that are worked on at a time: 25 MB for each set of float64 coordinates."""

SMALLEST_MM, FARTHEST_MM = 1e-12, 1e12
"""Of affines; smaller or larger numbers overflow on the way, and no image of anything has them."""

_EDGE = 1e-6
"""Voxels by which a position may miss a grid's edge and still count as on it: rounding."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A grid of voxels in the world.

    Attributes:
        shape: voxels along axes 0, 1, 2.
        affine: voxel to world (RAS, mm), ``(4, 4)`` float64.
        unit: in which the file that it comes from gives lengths, for reports and files; the affine is in mm nevertheless.
        in_itk: the affine, also RAS and mm, by which ITK reads that file, if it is another one.

    Raises:
        ShapeError: if these are not three positive sizes and an affine that can be inverted.
    """

    shape: Shape
    affine: NDArray[np.float64]
    unit: Unit = "mm"
    in_itk: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ShapeError(f"grid: expected three sizes of at least 1, got {tuple(self.shape)}")
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.array_equal(affine[3], (0, 0, 0, 1)):
            raise ShapeError(f"grid: expected a finite 4×4 affine whose last row is 0 0 0 1, got {affine.tolist()}")
        limits = f"voxels of {SMALLEST_MM:g} mm or more within {FARTHEST_MM:g} mm of the origin"
        if np.abs(affine).max() > FARTHEST_MM:
            raise ShapeError(f"grid: expected {limits}, got {affine.tolist()}")
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        if not sizes.all() or abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-6:
            raise ShapeError(f"grid: expected an affine that can be inverted, got {affine.tolist()}")
        if sizes.min() < SMALLEST_MM:
            raise ShapeError(f"grid: expected {limits}, got {affine.tolist()}")
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))

    @property
    def spacing_mm(self) -> Triple:
        """Voxel size along axes 0, 1, 2."""
        return voxel_size_mm(self.affine)

    @property
    def orientation(self) -> str:
        """Where each axis leads, nearest: ``RAS`` if to the right, to the front, upward."""
        directions = self.affine[:3, :3] / np.array(self.spacing_mm)
        letters = ["", "", ""]
        for _ in range(3):
            world, axis = np.unravel_index(np.abs(directions).argmax(), (3, 3))
            letters[axis] = ("RAS" if directions[world, axis] > 0 else "LPI")[world]
            directions[world, :] = 0
            directions[:, axis] = 0
        return "".join(letters)

    def to_world(self, voxels: Tensor) -> Tensor:
        """World positions (mm) of positions in voxels; both ``(…, 3)``, the result float64."""
        return apply_affine(self.affine, voxels)

    def to_voxels(self, world: Tensor) -> Tensor:
        """Voxel positions of world positions (mm); both ``(…, 3)``, the result float64."""
        return apply_affine(np.linalg.inv(self.affine), world)

    def inside(self, voxels: Tensor) -> Tensor:
        """Whether positions ``(…, 3)`` lie in the grid, the outer halves of its border voxels included: ``(…)`` bool."""
        upper = voxels.new_tensor(self.shape) - (0.5 - _EDGE)
        return ((voxels >= -0.5 - _EDGE) & (voxels <= upper)).all(dim=-1)

    def matches(self, other: "Grid", *, within_voxels: float = 0.01) -> bool:
        """Whether two grids have one shape and their corners coincide, as far as a file's rounding lets them."""
        if self.shape != other.shape:
            return False
        corners = self.corners()
        return bool((self.to_voxels(other.to_world(corners)) - corners).abs().max() <= within_voxels)

    def corners(self) -> Tensor:
        """The eight outermost voxels, ``(8, 3)`` float64."""
        return torch.cartesian_prod(*(torch.tensor((0.0, size - 1.0), dtype=torch.float64) for size in self.shape))

    def seen_by_itk(self) -> "Grid":
        """Where ITK places the same voxels."""
        return self if self.in_itk is None else Grid(self.shape, self.in_itk, self.unit)

    def to_itk(self) -> NDArray[np.float64]:
        """From world positions, by this grid, to where ITK has the same voxels: ``(4, 4)``, RAS, mm."""
        return np.eye(4) if self.in_itk is None else np.asarray(self.in_itk @ np.linalg.inv(self.affine))

    def slabs(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows of axis 0 that cover the grid, each of about ``SLAB_VOXELS``."""
        rows = max(1, SLAB_VOXELS // (self.shape[1] * self.shape[2]))
        for first in range(0, self.shape[0], rows):
            yield first, min(first + rows, self.shape[0])

    def voxels(self, first: int, last: int) -> Tensor:
        """The voxels of the rows ``[first, last)`` of axis 0, in their order in memory: ``(N, 3)`` float64."""
        axes = [torch.arange(n, dtype=torch.float64) for n in self.shape]
        return torch.cartesian_prod(axes[0][first:last], axes[1], axes[2])


def largest_gap_mm(one: Grid, other: Grid) -> float:
    """How far apart two grids of one shape place a voxel, at most."""
    corners = one.corners()
    return float((one.to_world(corners) - other.to_world(corners)).norm(dim=1).max())


def is_sheared(affine: NDArray[np.float64]) -> bool:
    """Whether the axes of an affine ``(4, 4)`` are not at right angles, beyond what float32 rounds."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return not np.allclose(directions.T @ directions, np.eye(3), atol=1e-4)


def voxel_size_mm(affine: NDArray[np.float64]) -> Triple:
    """Voxel size along axes 0, 1, 2 of a ``(4, 4)`` affine from voxels to mm."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    return float(sizes[0]), float(sizes[1]), float(sizes[2])


def apply_affine(matrix: NDArray[np.floating], points: Tensor) -> Tensor:
    """A ``(4, 4)`` matrix applied to points ``(…, 3)``, in float64."""
    affine = torch.from_numpy(np.array(matrix)).to(points.device)
    return points.to(torch.float64) @ affine[:3, :3].T + affine[:3, 3]


def displaced(grid: Grid, displacement: Displacement | None, first: int, last: int) -> Tensor:
    """``p + u(p)`` for the voxels of the rows ``[first, last)`` of axis 0: ``(N, 3)`` float64 voxels of the grid.

    Args:
        grid: the fixed grid.
        displacement: ``(1, 3, H, W, D)`` voxels of that grid, or none for no motion.
        first: row.
        last: row.

    Raises:
        ShapeError: if the displacement does not live on that grid.
    """
    points = grid.voxels(first, last)
    if displacement is None:
        return points
    check_lives_on(displacement, grid)
    points = points.to(displacement.device)
    return points + displacement[0, :, first:last].reshape(3, -1).T


def check_lives_on(displacement: Displacement, grid: Grid) -> None:
    """Raises ShapeError if a displacement does not have the shape of a grid."""
    if tuple(displacement.shape) != (1, 3, *grid.shape):
        raise ShapeError(f"displacement: expected the shape {(1, 3, *grid.shape)} of its grid, got {tuple(displacement.shape)}")


def displacement_of(world_matrix: NDArray[np.float64], grid: Grid) -> Displacement:
    """An affine motion as a displacement.

    Args:
        world_matrix: ``(4, 4)``, from fixed to moving world positions (RAS, mm).
        grid: of the fixed image.

    Returns:
        ``(1, 3, H, W, D)`` float32 voxels.
    """
    matrix = np.linalg.inv(grid.affine) @ world_matrix @ grid.affine
    result = torch.empty((1, 3, *grid.shape))
    for first, last in grid.slabs():
        voxels = grid.voxels(first, last)
        result[0, :, first:last] = (apply_affine(matrix, voxels) - voxels).T.reshape(3, last - first, *grid.shape[1:])
    return result
