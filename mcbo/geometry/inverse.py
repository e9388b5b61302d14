"""The way back: the inverse of a displacement, as a displacement from moving to fixed; and points taken along either way.

Both rest on ``preimages``, which finds where a displacement reaches given points.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mcbo.core.errors import ShapeError
from mcbo.core.memory import check_fits
from mcbo.core.types import Displacement
from mcbo.geometry.continuation import Continued, continued
from mcbo.geometry.grid import SLAB_VOXELS, Grid

TOLERANCE_VOXELS = 1e-4
"""A point counts as found when ``p + u(p)`` comes that close. Float32 displacements allow about 1e-5."""

_PICARD_ROUNDS = 30
_NEWTON_ROUNDS = 30


@dataclass(frozen=True)
class Preimages:
    """Points p with ``p + u(p) = y``.

    Attributes:
        points: ``(N, 3)`` float64 voxels of the fixed grid: p.
        residual: ``(N,)`` voxels: how far ``p + u(p)`` is from y.
        determinant: ``(N,)`` of the Jacobian of ``p + u(p)`` there; not positive where the displacement folds.
    """

    points: Tensor
    residual: Tensor
    determinant: Tensor

    @property
    def folded(self) -> Tensor:
        """``(N,)`` true where no p was found, or where there are several because the displacement folds."""
        return (self.residual > TOLERANCE_VOXELS) | (self.determinant <= 0)


def preimages(forward: Continued, targets: Tensor) -> Preimages:
    """Solves ``p + u(p) = y`` for points y, by fixed-point steps and, where those do not converge, by damped Newton steps.

    Args:
        forward: the displacement from fixed to moving.
        targets: ``(N, 3)`` voxels of its grid: y.
    """
    back = torch.linalg.inv(forward.affine[:, :3])
    points = (targets - forward.affine[:, 3]) @ back.T
    # The affine part is solved exactly by each step; the rest is a contraction for most displacements, not for steep ones.
    _descend(forward, points, targets, lambda _, error: error @ back.T, rounds=_PICARD_ROUNDS, smallest=1.0)
    error = _descend(forward, points, targets, _newton_step(forward), rounds=_NEWTON_ROUNDS, smallest=1 / 64)
    determinant = torch.cat([torch.linalg.det(forward.jacobian(part)) for part in points.split(SLAB_VOXELS)])
    return Preimages(points, error.norm(dim=1), determinant)


def _newton_step(forward: Continued) -> Callable[[Tensor, Tensor], Tensor]:
    def step(points: Tensor, error: Tensor) -> Tensor:
        solved: Tensor = torch.linalg.pinv(forward.jacobian(points)) @ error[..., None]
        return solved[..., 0]

    return step


def _descend(
    forward: Continued,
    points: Tensor,
    targets: Tensor,
    step: Callable[[Tensor, Tensor], Tensor],
    *,
    rounds: int,
    smallest: float,
) -> Tensor:
    """Moves points, in place, by ``−scale·step(points, error)`` where that brings them nearer; else the scale is halved.

    Args:
        forward: the displacement.
        points: ``(N, 3)`` voxels.
        targets: ``(N, 3)`` voxels that ``p + u(p)`` should reach.
        step: of points ``(n, 3)`` and their errors ``(n, 3)``.
        rounds: at most.
        smallest: scale below which a point is left where it is.

    Returns:
        The errors ``p + u(p) − y`` that remain, ``(N, 3)`` voxels.
    """
    error = forward.moved(points) - targets
    scale = torch.ones_like(error[:, 0])
    for _ in range(rounds):
        left = ((error.norm(dim=1) > TOLERANCE_VOXELS / 10) & (scale >= smallest)).nonzero()[:, 0]
        if not len(left):
            break
        tried = points[left] - scale[left, None] * step(points[left], error[left])
        tried_error = forward.moved(tried) - targets[left]
        nearer = tried_error.norm(dim=1) < error[left].norm(dim=1)
        points[left[nearer]], error[left[nearer]] = tried[nearer], tried_error[nearer]
        scale[left] = torch.where(nearer, (2 * scale[left]).clamp(max=1), scale[left] / 2)
    return error


@dataclass(frozen=True)
class Inverse:
    """An inverted displacement and how far it can be used.

    Attributes:
        displacement: ``(1, 3, h, w, d)`` float32, in voxels of the requested grid: from its points to fixed points.
        outside: share of its voxels whose fixed point lies outside of the fixed grid; there it is extrapolated by
            the affine part.
        folded: share of the others where the given displacement folds, so that there is no one fixed point.
        residual_voxels: the largest distance, in fixed voxels, between a voxel that is neither and where the given displacement
            takes its fixed point.
    """

    displacement: Displacement
    outside: float
    folded: float
    residual_voxels: float


def invert(displacement: Displacement, grid: Grid, onto: Grid) -> Inverse:
    """Inverts a displacement.

    Args:
        displacement: ``(1, 3, H, W, D)`` voxels of the fixed grid, fixed to moving.
        grid: the fixed grid.
        onto: where the inverse is wanted: the moving image's grid, or any other.

    Returns:
        The inverse on that grid: warping the fixed image with it onto the moving grid shows it as the moving image lies.

    Raises:
        ShapeError: if the displacement does not live on its grid.
        MemoryBudgetError: if the inverse does not fit into memory.
    """
    forward = continued(displacement, grid)
    check_fits(12 * math.prod(onto.shape), "an inverse displacement")
    result = torch.empty((1, 3, *onto.shape), device=displacement.device)
    outside = folded = 0
    residual = 0.0
    for first, last in onto.slabs():
        voxels = onto.voxels(first, last).to(displacement.device)
        found = preimages(forward, grid.to_voxels(onto.to_world(voxels)))
        back = onto.to_voxels(grid.to_world(found.points)) - voxels
        result[0, :, first:last] = back.T.reshape(3, last - first, *onto.shape[1:])
        within = grid.inside(found.points)
        outside += int((~within).sum())
        folded += int((within & found.folded).sum())
        good = found.residual[within & ~found.folded]
        residual = max(residual, float(good.max()) if len(good) else 0.0)
    count = result[0, 0].numel()
    return Inverse(result, outside / count, folded / max(count - outside, 1), residual)


@dataclass(frozen=True)
class MappedPoints:
    """Points on the other side of a displacement.

    Attributes:
        world: ``(N, 3)`` float64 mm, RAS.
        outside: ``(N,)`` true where the point in the fixed image lies outside of the fixed grid, so that the displacement is
            the continued one (see ``continuation.Continued``).
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
