"""An oblique, anisotropic pair on different grids, and the same as SimpleITK sees it, written without the code under test."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mcbo.core.types import Displacement, Shape
from mcbo.geometry.grid import Grid

if TYPE_CHECKING:
    import SimpleITK as sitk
else:
    sitk = pytest.importorskip("SimpleITK")

LPS = np.diag((-1.0, -1.0, 1.0))


def turn(angles: Sequence[float]) -> NDArray[np.float64]:
    """A rotation about the three world axes in turn, radians."""
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (a for a in range(3) if a != axis)
        one = np.eye(3)
        one[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        result = result @ one
    return result


def make_grid(shape: Shape, spacing_mm: Sequence[float], angles: Sequence[float], origin: Sequence[float]) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = turn(angles) * np.array(spacing_mm)
    affine[:3, 3] = origin
    return Grid(shape, affine)


FIXED = make_grid((38, 31, 26), (0.9, 1.3, 2.1), (0.3, -0.2, 0.5), (-20.0, 130.0, -45.0))
MOVING = make_grid((29, 41, 35), (1.6, 1.1, 1.7), (-0.4, 0.25, 2.9), (31.0, 165.0, -52.0))
"""The moving grid is turned by about half a turn against the fixed one, and covers most of it."""


def smooth_field(grid: Grid, *, largest: float, seed: int = 3) -> Displacement:
    """A displacement of long waves, voxels, that folds nowhere as long as ``largest`` is a few voxels."""
    phases = torch.rand((3, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    share = torch.from_numpy(np.indices(grid.shape) / np.reshape(grid.shape, (3, 1, 1, 1)))
    waves = torch.cos(torch.pi * (1.5 * share[None] + 2 * phases[..., None, None, None])).prod(dim=1)
    return (largest * waves)[None].float()


def blobs(grid: Grid, *, seed: int = 5) -> Tensor:
    """An image with structure everywhere: ``(1, 1, H, W, D)`` from 0 to 100."""
    coarse = torch.rand((1, 1, *(size // 4 for size in grid.shape)), generator=torch.Generator().manual_seed(seed))
    return 100 * functional.interpolate(coarse, size=grid.shape, mode="trilinear", align_corners=True)


def as_sitk(array: NDArray[np.generic], grid: Grid) -> sitk.Image:
    """Of ``(H, W, D)``, or ``(H, W, D, 3)`` as a vector image."""
    axes = (2, 1, 0, 3)[: array.ndim]
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(axes)), isVector=array.ndim == 4)
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((LPS @ grid.affine[:3, 3]).tolist())
    image.SetDirection((LPS @ (grid.affine[:3, :3] / spacing)).ravel().tolist())
    return image


def as_itk_transform(displacement: Displacement, grid: Grid) -> sitk.DisplacementFieldTransform:
    vectors = displacement[0].movedim(0, -1).double().numpy() @ (LPS @ grid.affine[:3, :3]).T
    return sitk.DisplacementFieldTransform(as_sitk(vectors, grid))


def itk_points(transform: sitk.Transform, world: Tensor) -> Tensor:
    """Points in RAS through an ITK transform, which is written in LPS."""
    moved = [transform.TransformPoint((LPS @ point).tolist()) for point in world.numpy()]
    return torch.from_numpy(np.array(moved) @ LPS)


def inner_points(grid: Grid, count: int, *, margin: float = 0.0, seed: int = 9) -> Tensor:
    """World points (mm) inside a grid, ``margin`` voxels from its border: ``(count, 3)``."""
    share = torch.rand((count, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return grid.to_world(margin + share * (torch.tensor(grid.shape) - 1 - 2 * margin))
