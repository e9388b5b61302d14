"""Points in the world taken through a displacement, both ways."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mcbo.continued import continued
from mcbo.errors import ShapeError
from mcbo.grid import Grid
from mcbo.inverse import preimages
from mcbo.types import Displacement


@dataclass(frozen=True)
class MappedPoints:
    """Points on the other side of a displacement.

    Attributes:
        world: ``(N, 3)`` float64 mm, RAS.
        outside: ``(N,)`` true where the point in the fixed image lies outside of the fixed grid, so that the displacement is
            the continued one (``continued.py``).
        folded: ``(N,)`` true where the displacement folds and there is no one answer; all false from fixed to moving.
        residual_mm: ``(N,)`` how far the displacement misses the given point when it starts from the answer; zero from fixed to
            moving.
    """

    world: Tensor
    outside: Tensor
    folded: Tensor
    residual_mm: Tensor


def fixed_to_moving(world: Tensor, displacement: Displacement, grid: Grid) -> MappedPoints:
    """Where the moving image shows what the fixed image shows at these points: ``p + u(p)``, u trilinear.

    Args:
        world: ``(N, 3)`` mm, RAS, in the fixed image.
        displacement: ``(1, 3, H, W, D)`` voxels of the fixed grid.
        grid: the fixed grid.

    Raises:
        ShapeError: if these do not fit together.
    """
    _check(world)
    voxels = grid.to_voxels(world)
    moved = grid.to_world(continued(displacement, grid).moved(voxels))
    none = torch.zeros(len(world), dtype=torch.bool)
    return MappedPoints(moved, ~grid.inside(voxels), none, torch.zeros(len(world), dtype=torch.float64))


def moving_to_fixed(world: Tensor, displacement: Displacement, grid: Grid) -> MappedPoints:
    """Where the fixed image shows what the moving image shows at these points: the p with ``p + u(p)`` there.

    Args:
        world: ``(N, 3)`` mm, RAS, in the moving image.
        displacement: ``(1, 3, H, W, D)`` voxels of the fixed grid, fixed to moving.
        grid: the fixed grid.

    Raises:
        ShapeError: if these do not fit together.
    """
    _check(world)
    found = preimages(continued(displacement, grid), grid.to_voxels(world))
    answer = grid.to_world(found.points)
    reached = fixed_to_moving(answer, displacement, grid)
    return MappedPoints(answer, reached.outside, found.folded, (reached.world - world).norm(dim=1))


def _check(world: Tensor) -> None:
    if world.dim() != 2 or world.shape[1] != 3:
        raise ShapeError(f"points: expected shape (N, 3), got {tuple(world.shape)}")
