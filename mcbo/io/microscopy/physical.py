"""Physical coordinates as microscopists have them: x, y, z along the axes of an image, in its unit."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.types import Triple
from mcbo.geometry.grid import Grid
from mcbo.geometry.units import MM, Unit
from mcbo.io.itk import LPS


@dataclass(frozen=True)
class Frame:
    """Where voxels lie in an image's physical space: at ``size · voxel + origin``.

    Attributes:
        size: of a voxel along axes 0, 1, 2 of the image, in its unit.
        origin: of voxel (0, 0, 0).
        directions: ``(3, 3)``, columns are the axes in the world, LPS.
        unit: of the image.
    """

    size: Triple
    origin: Triple
    directions: NDArray[np.float64]
    unit: Unit

    @property
    def is_lps(self) -> bool:
        """Whether the axes are those of the world, as in TIFF and OME-Zarr."""
        return bool(np.allclose(self.directions, np.eye(3), atol=1e-6))


def frame_of(grid: Grid) -> Frame:
    """The physical space of a grid; its axes are turned from those of the world (LPS) where the grid's are."""
    affine = LPS @ grid.affine
    directions = affine[:3, :3] / np.array(grid.spacing_mm)
    origin = np.linalg.solve(directions, affine[:3, 3]) / MM[grid.unit]
    size = np.array(grid.spacing_mm) / MM[grid.unit]
    return Frame(_triple(size), _triple(origin), directions, grid.unit)


def to_voxels(points: Tensor, grid: Grid) -> Tensor:
    """Voxels of points in physical coordinates: ``(N, 3)``."""
    frame = frame_of(grid)
    return (points - points.new_tensor(_start(frame))) / points.new_tensor(frame.size)


def to_physical(voxels: Tensor, grid: Grid) -> Tensor:
    """Physical coordinates of voxels: ``(N, 3)``."""
    frame = frame_of(grid)
    return voxels * voxels.new_tensor(frame.size) + voxels.new_tensor(_start(frame))


def _start(frame: Frame) -> Triple:
    """Of the first voxel, for programs that place images of other axes at 0, as Fiji does with NIfTI."""
    return frame.origin if frame.is_lps else (0.0, 0.0, 0.0)


def _triple(values: NDArray[np.float64]) -> Triple:
    return float(values[0]), float(values[1]), float(values[2])
