"""What of a displacement is no rigid motion: in the brain, its shift."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mcbo.core.types import Displacement, Mask
from mcbo.geometry.grid import Grid
from mcbo.geometry.rigid import Rigid, fit_trimmed, identity

KEPT = 0.5
"""Share of the voxels that the rigid motion is fitted to: those that move most alike, such as the skull and what it holds."""
_POINTS = 50_000
_ROUNDS = 30


@dataclass(frozen=True)
class Shift:
    """A displacement in the world, and its part beyond a rigid motion.

    Attributes:
        length_mm: ``(1, 1, H, W, D)``.
        beyond_mm: ``(1, 1, H, W, D)``.
        rotation_deg: of the rigid motion.
        rigid_mm: its mean length in the field of view.
        median_mm: of ``beyond_mm`` in the field of view.
        largest_mm: the 99.9th percentile there.
        largest_at: the first voxel as far as that, world position, RAS mm.
    """

    length_mm: Tensor = field(repr=False)
    beyond_mm: Tensor = field(repr=False)
    rotation_deg: float
    rigid_mm: float
    median_mm: float
    largest_mm: float
    largest_at: tuple[float, float, float]


def shift_of(displacement: Displacement, grid: Grid, mask: Mask) -> Shift:
    """Splits a displacement by a rigid motion fitted to that half of the field of view that moves most alike.

    Args:
        displacement: ``(1, 3, H, W, D)`` voxels of the fixed grid.
        grid: the fixed grid.
        mask: ``(1, 1, H, W, D)`` bool, the field of view; if it is empty, all voxels count.
    """
    inside = mask[0, 0] if bool(mask.any()) else torch.ones_like(mask[0, 0])
    chosen = inside.flatten().nonzero()[:, 0]
    chosen = chosen[:: max(len(chosen) // _POINTS, 1)]
    linear = torch.from_numpy(grid.affine[:3, :3].copy())
    voxels = torch.stack(torch.unravel_index(chosen, grid.shape), dim=1)
    points = grid.to_world(voxels.double())
    moved = displacement[0].flatten(1)[:, chosen].T.double() @ linear.T
    center = points.mean(dim=0)
    motion = identity()
    if len(chosen) > 3:
        motion = fit_trimmed(
            points - center, points - center + moved, torch.ones(len(points), dtype=torch.float64), keep=KEPT, rounds=_ROUNDS
        )
    length, beyond = (torch.empty((1, 1, *grid.shape)) for _ in range(2))
    for first, last in grid.slabs():
        vectors = displacement[0, :, first:last].flatten(1).T.double() @ linear.T
        places = grid.to_world(grid.voxels(first, last)) - center
        length[0, 0, first:last] = vectors.norm(dim=1).view(last - first, *grid.shape[1:])
        beyond[0, 0, first:last] = (places + vectors - motion.apply(places)).norm(dim=1).view(last - first, *grid.shape[1:])
    there = beyond[0, 0][inside]
    largest = float(there.sort().values[min(math.ceil(0.999 * len(there)), len(there)) - 1])
    at = (inside & (beyond[0, 0] >= largest)).nonzero()[:1]
    x, y, z = grid.to_world(at.double())[0].tolist()
    return Shift(
        length,
        beyond,
        rotation_deg=_angle(motion),
        rigid_mm=float((motion.apply(points - center) - (points - center)).norm(dim=1).mean()),
        median_mm=float(there.median()),
        largest_mm=largest,
        largest_at=(x, y, z),
    )


def _angle(motion: Rigid) -> float:
    cosine = (float(motion.rotation.diagonal().sum()) - 1) / 2
    return math.degrees(math.acos(min(max(cosine, -1.0), 1.0)))
