import pytest
import torch
from helpers import random_tensor, skip_unless_it_runs
from hypothesis import given, settings
from hypothesis import strategies as st

from mcbo.core.field import box_mean
from mcbo.core.types import Kernels
from mcbo.kernels import REFERENCE
from mcbo.steps.convex import coupled_argmin
from mcbo.steps.cost_volume import candidates

WEIGHTS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


@pytest.mark.parametrize("coupled", [False, True])
def test_argmin_equals_the_search_over_all_candidates(device: torch.device, coupled: bool) -> None:
    cost = random_tensor(125, 3, 4, 5)
    displacement = 4 * random_tensor(3, 3, 4, 5, seed=1) - 2 if coupled else None
    every = candidates(2).float()
    total = cost.double()
    if displacement is not None:
        total = total + 0.3 * (every.view(125, 3, 1, 1, 1) - displacement).double().square().sum(dim=1)
    expected = every[total.argmin(dim=0)].movedim(-1, 0)
    moved = None if displacement is None else displacement.to(device)
    found = coupled_argmin(cost.to(device), moved, first=0, last=3, search_radius=2, coupling_weight=0.3)
    assert torch.equal(found.cpu(), expected)


def test_of_equal_candidates_the_first_is_taken() -> None:
    cost = torch.zeros(27, 2, 2, 2)
    assert torch.equal(
        coupled_argmin(cost, None, first=0, last=2, search_radius=1, coupling_weight=0.0), torch.full((3, 2, 2, 2), -1.0)
    )
    cost[:13] = 1
    cost[14] = -0.0
    found = coupled_argmin(cost, None, first=0, last=2, search_radius=1, coupling_weight=0.0)
    assert torch.equal(found, torch.zeros(3, 2, 2, 2))


def test_a_heavy_coupling_takes_the_candidate_nearest_to_the_displacement() -> None:
    displacement = torch.tensor([0.4, -1.6, 1.4]).view(3, 1, 1, 1).expand(3, 2, 3, 4)
    found = coupled_argmin(random_tensor(125, 2, 3, 4), displacement, first=0, last=2, search_radius=2, coupling_weight=1e6)
    assert torch.equal(found, torch.tensor([0.0, -2.0, 1.0]).view(3, 1, 1, 1).expand(3, 2, 3, 4))


def naive_solve(fixed: torch.Tensor, moving: torch.Tensor, radius: int) -> torch.Tensor:
    """Step 4 as the formula reads, on the whole cost volume."""
    (cost,) = REFERENCE.cost_slabs(fixed, moving, search_radius=radius, rows=fixed.shape[2], keep=0)
    rows = {"first": 0, "last": fixed.shape[2], "search_radius": radius}
    u = box_mean(coupled_argmin(cost, None, coupling_weight=0.0, **rows), size=3)
    fields = []
    for weight in WEIGHTS:
        u = box_mean(coupled_argmin(cost, u, coupling_weight=weight, **rows), size=3)
        fields.append(u)
    return torch.stack(fields).mean(dim=0)[None]


@given(shape=st.tuples(st.integers(1, 24), st.integers(2, 5), st.integers(2, 5)), rows=st.integers(1, 12))
@settings(deadline=None, max_examples=30)
def test_the_passes_over_slabs_equal_the_formula(kernels: Kernels, shape: tuple[int, int, int], rows: int) -> None:
    fixed, moving = random_tensor(1, 12, *shape, seed=5), random_tensor(1, 12, *shape, seed=6)
    kwargs = {"search_radius": 1, "coupling_weights": WEIGHTS}
    found = kernels.solve(fixed, moving, rows=rows, **kwargs)
    assert torch.equal(found, kernels.solve(fixed, moving, rows=shape[0], **kwargs))
    assert torch.allclose(found, naive_solve(fixed, moving, 1), atol=1e-6)


def test_a_known_shift_of_cells_is_found_inside(device: torch.device, kernels: Kernels) -> None:
    """Box means that count zeros outside shrink the field near the border; the middle is right."""
    skip_unless_it_runs(kernels, device)
    features = random_tensor(1, 12, 20, 18, 16).to(device)
    shifted = torch.roll(features, (2, -1, 3), dims=(2, 3, 4))
    found = kernels.solve(features, shifted, search_radius=4, coupling_weights=WEIGHTS, rows=7)
    middle = found[0, :, 8:12, 7:11, 6:10].mean(dim=(1, 2, 3)).cpu()
    assert torch.allclose(middle, torch.tensor([2.0, -1.0, 3.0]), atol=0.05)
