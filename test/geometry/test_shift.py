"""A displacement split into a rigid motion and the rest: by hand where it is known."""

import math

import numpy as np
import pytest
import torch
from geometry import make_grid
from helpers import random_tensor

from mcbo.geometry.grid import Grid
from mcbo.geometry.shift import shift_of

SHAPE = (12, 15, 20)
GRID = make_grid(SHAPE, (2.0, 1.0, 1.5), (0.3, -0.2, 0.5), (5, -8, 40))
EVERYWHERE = torch.ones((1, 1, *SHAPE), dtype=torch.bool)


def field_of(grid: Grid, world: torch.Tensor) -> torch.Tensor:
    """The displacement in voxels that takes each voxel's place to ``world``, ``(N, 3)``."""
    voxels = grid.voxels(0, grid.shape[0])
    return (grid.to_voxels(world) - voxels).T.reshape(1, 3, *grid.shape).float()


def test_a_rigid_motion_leaves_no_shift() -> None:
    angle = math.radians(5)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    world = GRID.to_world(GRID.voxels(0, SHAPE[0]))
    shift = shift_of(field_of(GRID, world @ turn.double().T + torch.tensor([3.0, -4.0, 12.0])), GRID, EVERYWHERE)
    assert shift.beyond_mm.max() < 1e-3
    assert shift.rotation_deg == pytest.approx(5, abs=1e-2)


def test_what_moves_alone_is_the_shift() -> None:
    """A quarter of the voxels moves by 3 mm more along S than the rest, which moves by (1, 2, 2), 3 mm long."""
    world = GRID.to_world(GRID.voxels(0, SHAPE[0]))
    moved = (torch.tensor([1.0, 2.0, 2.0]).double().expand(len(world), 3)).clone()
    alone = torch.zeros(SHAPE, dtype=torch.bool)
    alone[9:] = True
    moved[alone.flatten()] += torch.tensor([0.0, 0.0, 3.0]).double()
    shift = shift_of(field_of(GRID, world + moved), GRID, EVERYWHERE)
    assert torch.allclose(shift.length_mm[0, 0][~alone], torch.tensor(3.0), atol=1e-3)
    assert torch.allclose(shift.beyond_mm[0, 0], 3.0 * alone, atol=1e-3)
    assert shift.median_mm == pytest.approx(0, abs=1e-3)
    assert shift.largest_mm == pytest.approx(3, abs=1e-3)
    assert shift.rigid_mm == pytest.approx(3, abs=1e-3)
    found = np.array(shift.largest_at)
    assert np.linalg.norm(found - GRID.to_world(alone.nonzero().double()).numpy(), axis=1).min() < 1e-6


def test_only_the_field_of_view_counts() -> None:
    displacement = random_tensor(1, 3, *SHAPE, seed=3) * 50
    mask = torch.zeros_like(EVERYWHERE)
    mask[..., 3:9, 4:11, 5:15] = True
    displacement = torch.where(mask, torch.ones(()), displacement)
    shift = shift_of(displacement, GRID, mask)
    assert shift.largest_mm < 1e-3
    assert shift.beyond_mm.max() > 10
    none = shift_of(displacement, GRID, torch.zeros_like(mask))
    assert none.largest_mm > 10
