import itertools
import math

import pytest
import torch
from helpers import TOLERANCE, TURNS, constant_field, random_tensor, turned, turned_field
from hypothesis import given, settings
from hypothesis import strategies as st

from mcbo.core.types import Shape
from mcbo.geometry.cells import cell_centers, cell_shape, center_of, pool, pool_sums, to_cells, to_voxels

SHAPES = st.tuples(*[st.integers(1, 13)] * 3)
SPACINGS = st.integers(1, 6)


@pytest.mark.parametrize(
    ("size", "spacing", "sums", "centers"),
    [
        (6, 4, [6, 15], [0.5, 4.5]),  # one voxel over on either side
        (7, 2, [1 + 1, 1 + 3 + 2, 2 + 5 + 3, 3 + 7], [0, 2, 4, 6]),  # half a voxel over on either side
        (3, 1, [1, 2, 3], [0, 1, 2]),
        (2, 5, [3], [0.5]),
    ],
)
def test_cells_of_one_axis_by_hand(
    device: torch.device, size: int, spacing: int, sums: list[float], centers: list[float]
) -> None:
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = size
        volume = torch.arange(1.0, size + 1, device=device).view(1, 1, *shape)
        assert pool_sums(volume, spacing).flatten().tolist() == sums
        grid: Shape = (shape[0], shape[1], shape[2])
        assert cell_centers(grid, spacing, device=device)[axis].tolist() == centers


@given(shape=SHAPES, spacing=SPACINGS, turn=TURNS)
@settings(deadline=None, max_examples=60)
def test_sums_keep_the_mass_and_turn_with_the_volume(shape: Shape, spacing: int, turn: tuple[list[int], list[int]]) -> None:
    volume = random_tensor(1, 2, *shape).double()
    sums = pool_sums(volume, spacing)
    assert tuple(sums.shape[2:]) == cell_shape(shape, spacing)
    assert torch.allclose(sums.sum(dim=(2, 3, 4)), volume.sum(dim=(2, 3, 4)))
    assert torch.allclose(pool_sums(turned(volume, *turn), spacing), turned(sums, *turn))


@given(shape=SHAPES, spacing=SPACINGS)
@settings(deadline=None, max_examples=40)
def test_a_full_cell_has_its_center_of_mass_in_its_center(shape: Shape, spacing: int) -> None:
    index = torch.stack(torch.meshgrid(*(torch.arange(size).double() for size in shape), indexing="ij"))[None]
    means, covered = pool(index, torch.ones_like(index[:, :1]), spacing)
    centers = torch.stack(torch.meshgrid(*cell_centers(shape, spacing, device=index.device), indexing="ij"))
    full = covered[0, 0] > 1 - 1e-9
    assert torch.allclose(means[0][:, full], centers[:, full])
    assert float(covered.max()) <= 1 + 1e-9
    assert float(covered.sum()) == pytest.approx(math.prod(shape) / spacing**3)


def test_only_the_weighted_part_of_a_cell_counts(device: torch.device) -> None:
    shape = (7, 9, 11)
    features = random_tensor(1, 2, *shape).to(device)
    weights = (random_tensor(1, 1, *shape, seed=1) > 0.7).float().to(device)
    weights[..., :4, :, :] = 0
    means, covered = pool(features, weights, 4)
    others, _ = pool(torch.where(weights > 0, features, 100.0), weights, 4)
    assert torch.equal(means, others)
    assert torch.equal(means[:, :, 0], torch.zeros_like(means[:, :, 0]))
    assert torch.equal(covered[:, :, 0], torch.zeros_like(covered[:, :, 0]))
    flat, covered = pool(torch.full_like(features, 3.0), weights, 4)
    assert torch.allclose(flat, 3 * (covered > 0).float().expand_as(flat), atol=TOLERANCE["rounding"])


@given(shape=SHAPES, spacing=SPACINGS)
@settings(deadline=None, max_examples=40)
def test_an_affine_displacement_stays_so_between_the_centers(shape: Shape, spacing: int) -> None:
    centers = cell_centers(shape, spacing, device=torch.device("cpu"))
    voxels = [torch.arange(size).double().clamp(float(c[0]), float(c[-1])) for size, c in zip(shape, centers, strict=True)]
    matrix, offset = random_tensor(3, 3).double() - 0.5, torch.tensor([1.0, -2, 3]).double()

    def affine(axes: list[torch.Tensor]) -> torch.Tensor:
        points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        return (points @ matrix + offset).movedim(-1, 0)[None]

    assert torch.allclose(to_voxels(affine(centers) / spacing, shape, spacing), affine(voxels))


@given(shape=SHAPES, spacing=SPACINGS, turn=TURNS)
@settings(deadline=None, max_examples=40)
def test_the_way_to_cells_and_back_turns_with_the_volume(shape: Shape, spacing: int, turn: tuple[list[int], list[int]]) -> None:
    u = random_tensor(1, 3, *shape).double()
    coarse = to_cells(u, spacing)
    assert torch.allclose(to_cells(turned_field(u, *turn), spacing), turned_field(coarse, *turn))
    back = to_voxels(coarse, shape, spacing)
    new_shape: Shape = (shape[turn[0][0]], shape[turn[0][1]], shape[turn[0][2]])
    assert torch.allclose(to_voxels(turned_field(coarse, *turn), new_shape, spacing), turned_field(back, *turn))


def test_a_constant_displacement_is_in_the_unit_of_the_grid(device: torch.device) -> None:
    for shape, spacing in itertools.product(((7, 9, 12), (3, 5, 4)), (1, 2, 5)):
        u = constant_field((5, -10, 2.5), shape).to(device)
        expected = constant_field((5 / spacing, -10 / spacing, 2.5 / spacing), cell_shape(shape, spacing)).to(device)
        assert torch.allclose(to_cells(u, spacing), expected)
        assert torch.allclose(to_voxels(expected, shape, spacing), u)


def test_the_center_of_nothing_is_that_of_the_grid() -> None:
    weights = torch.zeros(1, 1, 5, 6, 9)
    assert center_of(weights).tolist() == [2.0, 2.5, 4.0]
    weights[0, 0, 1, 2, 3] = 0.5
    assert torch.allclose(center_of(weights), torch.tensor([1.0, 2.0, 3.0]).double())
