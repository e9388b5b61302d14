"""A displacement at any point, between voxels and beyond its grid; and two displacements composed, which needs both."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mcbo.core.field import sample_at
from mcbo.core.types import Displacement
from mcbo.geometry.grid import Grid, check_lives_on, displaced

_FIT_POINTS = 20_000


@dataclass(frozen=True)
class Continued:
    """A displacement, trilinear between voxel centers and extrapolated beyond the outermost by its affine part.

    So a rigid motion stays one. (ITK holds the border's displacement for half a voxel and has none farther out, which tears
    and folds where the motion turns.)

    Attributes:
        displacement: ``(1, 3, H, W, D)`` voxels.
        grid: its grid.
        affine: ``(3, 4)`` float64, the map nearest to ``p + u(p)``.
    """

    displacement: Displacement
    grid: Grid
    affine: Tensor

    def moved(self, points: Tensor) -> Tensor:
        """``p + u(p)`` for points ``(N, 3)`` in voxels; float64."""
        upper = points.new_tensor(self.grid.shape) - 1
        beyond = points - points.clamp(min=torch.zeros_like(upper), max=upper)
        slope = self.affine[:, :3] - torch.eye(3, dtype=points.dtype, device=points.device)
        return points + sample_at(self.displacement, points)[0].T + beyond @ slope.T

    def jacobian(self, points: Tensor) -> Tensor:
        """Of ``p + u(p)``, by differences over one voxel: ``(N, 3, 3)`` float64."""
        steps = torch.eye(3, dtype=points.dtype, device=points.device) / 2
        return torch.stack([self.moved(points + step) - self.moved(points - step) for step in steps], dim=-1)


def continued(displacement: Displacement, grid: Grid) -> Continued:
    """A displacement with its continuation.

    Args:
        displacement: ``(1, 3, H, W, D)`` voxels.
        grid: its grid.

    Raises:
        ShapeError: if it does not live there.
    """
    check_lives_on(displacement, grid)
    return Continued(displacement, grid, _fit_affine(displacement))


def _fit_affine(displacement: Displacement) -> Tensor:
    """The affine map nearest to ``p + u(p)`` in the sense of least squares, from about 20000 voxels: ``(3, 4)`` float64."""
    stride = max(1, round((displacement[0, 0].numel() / _FIT_POINTS) ** (1 / 3)))
    axes = [torch.arange(0, size, stride, dtype=torch.float64, device=displacement.device) for size in displacement.shape[2:]]
    points = torch.cartesian_prod(*axes)
    moved = points + displacement[0, :, ::stride, ::stride, ::stride].reshape(3, -1).T
    middle = points.mean(dim=0)
    centered = points - middle
    identity = torch.eye(3, dtype=torch.float64, device=points.device)
    # An axis of one voxel says nothing: the normal matrix is singular there, and identity is kept.
    turn = identity + torch.linalg.pinv(centered.T @ centered) @ centered.T @ (moved - points)
    if torch.linalg.det(turn) <= 1e-3:  # not a motion, and of no use to an inversion
        turn = identity
    return torch.cat([turn.T, (moved.mean(dim=0) - middle @ turn)[:, None]], dim=1)


def compose(first: Displacement, first_grid: Grid, second: Displacement, second_grid: Grid) -> tuple[Displacement, float]:
    """From A to C, out of A to B and B to C: the point that ``first`` reaches is moved on by ``second``.

    Warping an image C with the result is warping it with ``second`` onto B and then with ``first`` onto A, without the blur
    of sampling twice.

    Args:
        first: ``(1, 3, H, W, D)`` voxels of A.
        first_grid: of image A.
        second: ``(1, 3, h, w, d)`` voxels of B.
        second_grid: of image B.

    Returns:
        The displacement ``(1, 3, H, W, D)`` in float32 voxels of A, and the share of A's voxels whose point in B lies outside
        of B's grid: there the second is continued (see ``Continued``).

    Raises:
        ShapeError: if a displacement does not live on its grid.
    """
    onward = continued(second, second_grid)
    result = torch.empty_like(first, dtype=torch.float32)
    beyond = 0
    for start, stop in first_grid.slabs():
        between = second_grid.to_voxels(first_grid.to_world(displaced(first_grid, first, start, stop)))
        total = first_grid.to_voxels(second_grid.to_world(onward.moved(between))) - first_grid.voxels(start, stop).to(
            first.device
        )
        result[0, :, start:stop] = total.T.reshape(3, stop - start, *first_grid.shape[1:])
        beyond += int((~second_grid.inside(between)).sum())
    return result, beyond / result[0, 0].numel()
