from typing import TYPE_CHECKING

import pytest
import torch
from geometry import FIXED, MOVING, as_itk_transform, inner_points, itk_points, make_grid, smooth_field
from helpers import constant_field

from mcbo.core.errors import ShapeError
from mcbo.geometry.continuation import compose
from mcbo.geometry.grid import Grid, apply_affine, displacement_of
from mcbo.geometry.inverse import fixed_to_moving, invert, moving_to_fixed

if TYPE_CHECKING:
    import SimpleITK as sitk
else:
    sitk = pytest.importorskip("SimpleITK")

FIELD = smooth_field(FIXED, largest=3)
ROUND_TRIP_MM = 1e-3


def test_points_as_itk_takes_them() -> None:
    world = inner_points(FIXED, 300)
    ours = fixed_to_moving(world, FIELD, FIXED)
    assert not ours.outside.any()
    assert (ours.world - world).norm(dim=1).mean() > 1
    assert (ours.world - itk_points(as_itk_transform(FIELD, FIXED), world)).norm(dim=1).max() <= ROUND_TRIP_MM


def test_points_there_and_back() -> None:
    world = inner_points(FIXED, 300)
    back = moving_to_fixed(fixed_to_moving(world, FIELD, FIXED).world, FIELD, FIXED)
    assert not back.folded.any()
    assert (back.world - world).norm(dim=1).max() <= ROUND_TRIP_MM
    assert back.residual_mm.max() <= ROUND_TRIP_MM


def test_points_outside_are_told() -> None:
    world = FIXED.to_world(torch.tensor([[5.0, 5, 5], [-9, 5, 5]], dtype=torch.float64))
    assert fixed_to_moving(world, FIELD, FIXED).outside.tolist() == [False, True]
    assert moving_to_fixed(world, torch.zeros_like(FIELD), FIXED).outside.tolist() == [False, True]


@pytest.mark.parametrize("onto", [FIXED, MOVING], ids=["fixed grid", "moving grid"])
def test_the_inverse_undoes_the_displacement(onto: Grid) -> None:
    inverse = invert(FIELD, FIXED, onto)
    assert inverse.folded == 0
    assert inverse.residual_voxels <= 1e-4
    voxels = onto.voxels(0, onto.shape[0])
    fixed_points = onto.to_world(voxels + inverse.displacement[0].reshape(3, -1).T)
    inside = FIXED.inside(FIXED.to_voxels(fixed_points))
    assert inverse.outside == pytest.approx(1 - float(inside.double().mean()), abs=1e-3)
    again = fixed_to_moving(fixed_points[inside], FIELD, FIXED)
    assert (again.world - onto.to_world(voxels)[inside]).norm(dim=1).max() <= ROUND_TRIP_MM


def test_a_shift_and_its_inverse_are_known() -> None:
    inverse = invert(constant_field((2.5, -1, 0), (9, 8, 7)), Grid((9, 8, 7), FIXED.affine), Grid((9, 8, 7), FIXED.affine))
    assert torch.allclose(inverse.displacement, constant_field((-2.5, 1, 0), (9, 8, 7)), atol=1e-4)
    assert inverse.outside == pytest.approx(1 - 7 * 7 / (9 * 8), abs=1e-6)


def test_half_a_turn_is_inverted_exactly() -> None:
    """A fixed-point step alone diverges here: the displacement changes by two voxels from one voxel to the next."""
    motion = make_grid((1, 1, 1), (1.4, 0.8, 1.0), (0.1, 0.2, 3.0), (0, 0, 0)).affine.copy()
    center = FIXED.to_world((torch.tensor(FIXED.shape) - 1) / 2).numpy()
    motion[:3, 3] = center - motion[:3, :3] @ center + (3, -4, 5)
    inverse = invert(displacement_of(motion, FIXED), FIXED, FIXED)
    fixed_points = FIXED.voxels(0, 38) + inverse.displacement[0].reshape(3, -1).T
    inside = FIXED.inside(fixed_points)
    again = apply_affine(motion, FIXED.to_world(fixed_points))
    assert 0.2 < inside.double().mean() < 0.9
    assert (again - FIXED.to_world(FIXED.voxels(0, 38)))[inside].norm(dim=1).max() <= ROUND_TRIP_MM
    assert inverse.outside > 0.1
    assert inverse.folded == 0


def test_a_rigid_motion_goes_on_beyond_the_grid() -> None:
    motion = make_grid((1, 1, 1), (1, 1, 1), (0.1, 0.2, -0.3), (3.0, -4.0, 5.0)).affine
    world = FIXED.to_world(torch.tensor([[-15.0, 40, 12], [60, -3, 30]], dtype=torch.float64))
    there = fixed_to_moving(world, displacement_of(motion, FIXED), FIXED)
    assert there.outside.all()
    assert (there.world - apply_affine(motion, world)).norm(dim=1).max() <= ROUND_TRIP_MM
    back = moving_to_fixed(there.world, displacement_of(motion, FIXED), FIXED)
    assert (back.world - world).norm(dim=1).max() <= ROUND_TRIP_MM


def test_a_steep_stretch_needs_newton() -> None:
    """Position 0–10 stays, 10–20 becomes three times as long: no contraction, yet it folds nowhere."""
    grid = Grid((40, 5, 6), FIXED.affine)
    field = torch.zeros(1, 3, *grid.shape)
    field[:, 0] = (2 * (torch.arange(40.0) - 10).clamp(0, 10)).view(-1, 1, 1)
    voxels = torch.tensor([[4.0, 2, 3], [25, 2, 3], [45, 2, 3]], dtype=torch.float64)
    answer = grid.to_voxels(moving_to_fixed(grid.to_world(voxels), field, grid).world)
    assert torch.allclose(answer[:, 0], torch.tensor([4, 15, 25], dtype=torch.float64), atol=1e-3)


def test_folds_are_told() -> None:
    """Position x becomes 30 − x between 10 and 20: three fixed points for each moving point there."""
    grid = Grid((30, 5, 6), FIXED.affine)
    field = torch.zeros(1, 3, *grid.shape)
    x = torch.arange(30.0)
    field[:, 0] = torch.where((x >= 10) & (x <= 20), 30 - 2 * x, torch.where(x < 10, x, x - 30)).clamp(-10, 10).view(-1, 1, 1)
    assert invert(field, grid, grid).folded > 0


def test_composition_as_itk_composes() -> None:
    second = smooth_field(MOVING, largest=2, seed=8)
    total, beyond = compose(FIELD, FIXED, second, MOVING)
    chain = sitk.CompositeTransform([as_itk_transform(second, MOVING), as_itk_transform(FIELD, FIXED)])  # last comes first
    voxels = FIXED.voxels(0, 38)
    between = fixed_to_moving(FIXED.to_world(voxels), FIELD, FIXED).world
    between = MOVING.to_voxels(between)
    assert beyond == pytest.approx(1 - float(MOVING.inside(between).double().mean()))
    deep = MOVING.inside(between + 0.5) & MOVING.inside(between - 0.5)  # in the outer half voxels ITK goes on differently
    ours = FIXED.to_world(voxels + total[0].reshape(3, -1).T)[deep][::7]
    assert (ours - itk_points(chain, FIXED.to_world(voxels)[deep][::7])).norm(dim=1).max() <= ROUND_TRIP_MM


def test_known_shifts_add_up_across_grids_of_other_spacing() -> None:
    first_grid, second_grid = (
        make_grid((9, 8, 7), (1, 1, 1), (0, 0, 0), (0, 0, 0)),
        make_grid((7, 6, 9), (2, 2, 2), (0, 0, 0), (-1, -1, -1)),
    )
    total, _ = compose(constant_field((1, 0, 2), (9, 8, 7)), first_grid, constant_field((0.5, 1, 0), (7, 6, 9)), second_grid)
    assert torch.allclose(total, constant_field((2, 2, 2), (9, 8, 7)), atol=1e-5)


def test_a_displacement_and_its_inverse_compose_to_nothing() -> None:
    total, _ = compose(FIELD, FIXED, invert(FIELD, FIXED, MOVING).displacement, MOVING)
    voxels = FIXED.voxels(0, 38)
    between = MOVING.to_voxels(fixed_to_moving(FIXED.to_world(voxels), FIELD, FIXED).world)
    deep = MOVING.inside(between + 1) & MOVING.inside(between - 1) & FIXED.inside(voxels + 4) & FIXED.inside(voxels - 4)
    assert deep.sum() > 1000
    assert total[0].reshape(3, -1).T[deep].abs().max() < 0.1  # the inverse is stored by voxels of the other grid


def test_shapes_are_checked() -> None:
    with pytest.raises(ShapeError, match="of its grid"):
        invert(FIELD, MOVING, FIXED)
    with pytest.raises(ShapeError, match=r"points: expected shape \(N, 3\), got \(4,\)"):
        fixed_to_moving(torch.zeros(4), FIELD, FIXED)
