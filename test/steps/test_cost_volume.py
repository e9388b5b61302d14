import itertools

import pytest
import torch
from helpers import TOLERANCE, random_tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from mcbo.core.errors import ShapeError
from mcbo.steps.cost_volume import candidates, cost_slabs


def whole(fixed: torch.Tensor, moving: torch.Tensor, radius: int, rows: int) -> torch.Tensor:
    return torch.cat(list(cost_slabs(fixed, moving, search_radius=radius, rows=rows, keep=0)), dim=1)


def test_candidates_are_numbered_with_axis_0_fastest() -> None:
    listed = candidates(2)
    assert listed.shape == (125, 3)
    assert listed[0].tolist() == [-2, -2, -2]
    assert listed[1].tolist() == [-1, -2, -2]
    assert listed[62].tolist() == [0, 0, 0]


def test_cost_is_what_the_definition_says(device: torch.device) -> None:
    shape, radius = (5, 6, 7), 2
    fixed, moving = random_tensor(1, 12, *shape, seed=1), random_tensor(1, 12, *shape, seed=2)
    padded = functional.pad(moving[0], [radius] * 6)
    expected = []
    for c0, c1, c2 in candidates(radius).tolist():
        a, b, c = c0 + radius, c1 + radius, c2 + radius
        raw = (fixed[0] - padded[:, a : a + 5, b : b + 6, c : c + 7]).square().sum(dim=0)
        for _ in range(2):
            raw = functional.avg_pool3d(raw[None, None], 3, stride=1, padding=1)[0, 0]
        expected.append(raw)
    found = whole(fixed.to(device), moving.to(device), radius, 2).cpu()
    assert torch.allclose(found, torch.stack(expected), atol=TOLERANCE["rounding"])


def test_identical_features_cost_nothing_unmoved() -> None:
    features = random_tensor(1, 12, 5, 6, 7)
    cost = whole(features, features, 1, 3)
    assert torch.equal(cost[13], torch.zeros(5, 6, 7))
    assert (cost >= 0).all()


@given(shape=st.tuples(*[st.integers(1, 9)] * 3), radius=st.integers(1, 2), rows=st.integers(1, 10))
@settings(deadline=None, max_examples=60)
def test_slabs_do_not_change_a_bit(shape: tuple[int, int, int], radius: int, rows: int) -> None:
    fixed, moving = random_tensor(1, 3, *shape, seed=3), random_tensor(1, 3, *shape, seed=4)
    assert torch.equal(whole(fixed, moving, radius, rows), whole(fixed, moving, radius, shape[0]))


def test_slabs_come_in_order_and_none_is_thicker_than_asked() -> None:
    features = random_tensor(1, 2, 10, 3, 4)
    assert [slab.shape[1] for slab in cost_slabs(features, features, search_radius=1, rows=4, keep=0)] == [4, 4, 2]


def test_different_shapes_are_refused() -> None:
    a, b = torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 2, 4, 4, 5)
    with pytest.raises(ShapeError, match=r"\(1, 2, 4, 4, 4\) and \(1, 2, 4, 4, 5\)"):
        next(cost_slabs(a, b, search_radius=1, rows=1, keep=0))


def test_candidates_cover_the_cube() -> None:
    assert sorted(map(tuple, candidates(1).tolist())) == sorted(itertools.product((-1, 0, 1), repeat=3))
