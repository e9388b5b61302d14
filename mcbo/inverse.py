"""The way back: a displacement from moving to fixed out of one from fixed to moving."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mcbo.field import sample_at
from mcbo.grid import SLAB_VOXELS, Grid, check_lives_on
from mcbo.types import Displacement

TOLERANCE_VOXELS = 1e-4
"""A point counts as found when ``p + u(p)`` comes that close. Float32 displacements allow about 1e-5."""

_PICARD_ROUNDS = 30
_NEWTON_ROUNDS = 30
_FIT_POINTS = 20_000


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


@dataclass(frozen=True)
class Inverse:
    """An inverted displacement and how far it can be used.

    Attributes:
        displacement: ``(1, 3, h, w, d)`` float32, in voxels of the grid that was asked for: from its points to fixed points.
        outside: share of its voxels whose fixed point lies outside of the fixed grid; there the displacement continues that of
            the border.
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
    """
    check_lives_on(displacement, grid)
    result = torch.empty((1, 3, *onto.shape), device=displacement.device)
    affine = fit_affine(displacement, grid)
    outside = folded = 0
    residual = 0.0
    for first, last in onto.slabs():
        voxels = onto.voxels(first, last).to(displacement.device)
        found = preimages(displacement, grid, grid.to_voxels(onto.to_world(voxels)), affine=affine)
        back = onto.to_voxels(grid.to_world(found.points)) - voxels
        result[0, :, first:last] = back.T.reshape(3, last - first, *onto.shape[1:])
        within = grid.inside(found.points)
        outside += int((~within).sum())
        folded += int((within & found.folded).sum())
        good = found.residual[within & ~found.folded]
        residual = max(residual, float(good.max()) if len(good) else 0.0)
    count = result[0, 0].numel()
    return Inverse(result, outside / count, folded / max(count - outside, 1), residual)


def preimages(displacement: Displacement, grid: Grid, targets: Tensor, *, affine: Tensor | None = None) -> Preimages:
    """Solves ``p + u(p) = y`` for points y, by fixed-point steps and, where those do not converge, by damped Newton steps.

    Args:
        displacement: ``(1, 3, H, W, D)`` voxels of ``grid``; beyond the border it stays as at the border.
        grid: the fixed grid.
        targets: ``(N, 3)`` voxels of ``grid``: y.
        affine: ``fit_affine`` of the displacement, where it is known already.

    Raises:
        ShapeError: if the displacement does not live on its grid.
    """
    check_lives_on(displacement, grid)
    if affine is None:
        affine = fit_affine(displacement, grid)
    back = torch.linalg.inv(affine[:, :3])
    points = (targets - affine[:, 3]) @ back.T
    # The affine part is solved exactly by each step; the rest is a contraction for most displacements, not for steep ones.
    _step(displacement, points, targets, lambda _, error: error @ back.T, rounds=_PICARD_ROUNDS, smallest=1.0)
    error = _step(displacement, points, targets, partial(_newton, displacement), rounds=_NEWTON_ROUNDS, smallest=1 / 64)
    determinant = torch.cat([torch.linalg.det(_jacobian(displacement, part)) for part in points.split(SLAB_VOXELS)])
    return Preimages(points, error.norm(dim=1), determinant)


def fit_affine(displacement: Displacement, grid: Grid) -> Tensor:
    """The affine map nearest to ``p + u(p)`` in the sense of least squares, from about 20000 voxels: ``(3, 4)`` float64."""
    stride = max(1, round((displacement[0, 0].numel() / _FIT_POINTS) ** (1 / 3)))
    axes = [torch.arange(0, size, stride, dtype=torch.float64, device=displacement.device) for size in grid.shape]
    points = torch.cartesian_prod(*axes)
    moved = points + displacement[0, :, ::stride, ::stride, ::stride].reshape(3, -1).T
    middle = points.mean(dim=0)
    centered = points - middle
    # On an axis of one voxel nothing can be told: the normal matrix is singular there, and identity is kept.
    turn = torch.eye(3, dtype=torch.float64, device=points.device) + (
        torch.linalg.pinv(centered.T @ centered) @ centered.T @ (moved - points)
    )
    if torch.linalg.det(turn) <= 1e-3:  # not a motion; one that cannot be inverted is of no use as a first guess
        turn = torch.eye(3, dtype=torch.float64, device=points.device)
    return torch.cat([turn.T, (moved.mean(dim=0) - middle @ turn)[:, None]], dim=1)


def _step(
    displacement: Displacement,
    points: Tensor,
    targets: Tensor,
    step: Callable[[Tensor, Tensor], Tensor],
    *,
    rounds: int,
    smallest: float,
) -> Tensor:
    """Moves points, in place, by ``−scale·step(points, error)`` where that brings them nearer; else the scale is halved.

    Args:
        displacement: ``(1, 3, H, W, D)`` voxels.
        points: ``(N, 3)`` voxels.
        targets: ``(N, 3)`` voxels that ``p + u(p)`` should reach.
        step: of points ``(n, 3)`` and their errors ``(n, 3)``.
        rounds: at most.
        smallest: scale below which a point is left where it is.

    Returns:
        The errors ``p + u(p) − y`` that remain, ``(N, 3)`` voxels.
    """
    error = _moved(displacement, points) - targets
    scale = torch.ones_like(error[:, 0])
    for _ in range(rounds):
        left = ((error.norm(dim=1) > TOLERANCE_VOXELS / 10) & (scale >= smallest)).nonzero()[:, 0]
        if not len(left):
            break
        tried = points[left] - scale[left, None] * step(points[left], error[left])
        tried_error = _moved(displacement, tried) - targets[left]
        nearer = tried_error.norm(dim=1) < error[left].norm(dim=1)
        points[left[nearer]], error[left[nearer]] = tried[nearer], tried_error[nearer]
        scale[left] = torch.where(nearer, (2 * scale[left]).clamp(max=1), scale[left] / 2)
    return error


def _newton(displacement: Displacement, points: Tensor, error: Tensor) -> Tensor:
    jacobian = _jacobian(displacement, points)
    step: Tensor = torch.linalg.pinv(jacobian) @ error[..., None]
    return step[..., 0]


def _moved(displacement: Displacement, points: Tensor) -> Tensor:
    """``p + u(p)``: ``(N, 3)`` float64 voxels."""
    return points + sample_at(displacement, points)[0].T


def _jacobian(displacement: Displacement, points: Tensor) -> Tensor:
    """Of ``p + u(p)``, by differences over one voxel: ``(N, 3, 3)`` float64."""
    steps = torch.eye(3, dtype=points.dtype, device=points.device) / 2
    return torch.stack([_moved(displacement, points + step) - _moved(displacement, points - step) for step in steps], dim=-1)
