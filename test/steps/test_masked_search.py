from collections.abc import Sequence

import pytest
import torch
from helpers import TOLERANCE, TURNS, constant_field, random_tensor, skip_unless_it_runs, turned, turned_field
from hypothesis import given, settings
from torch import Tensor
from torch.nn import functional

from mcbo.core.types import Features, Kernels, Shape
from mcbo.steps.cost_volume import candidates
from mcbo.steps.masked_search import MIN_SUPPORT, search, solve_masked

SHAPE = (9, 11, 13)
WEIGHTS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def two_cuts(vector: Sequence[int], shape: Shape) -> tuple[Features, Features]:
    """Of one volume of noise, so that ``moving(p + vector) = fixed(p)`` without a border that wraps."""
    noise = random_tensor(1, 12, *(size + 6 for size in shape))
    start, moved = (3, 3, 3), [3 - step for step in vector]
    fixed, moving = (
        noise[..., a : a + shape[0], b : b + shape[1], c : c + shape[2]].contiguous() for a, b, c in (start, moved)
    )
    return fixed, moving


def waves(vector: Sequence[float], shape: Shape) -> Features:
    """Cosines and sines along each axis, 12 cells long, moved by a vector."""
    features = torch.empty(1, 6, *shape)
    for axis, (size, step) in enumerate(zip(shape, vector, strict=True)):
        phase = ((torch.arange(size) - step) * 0.5).view([-1 if a == axis else 1 for a in range(3)])
        features[0, 2 * axis], features[0, 2 * axis + 1] = phase.cos(), phase.sin()
    return features


def cost_by_the_formula(fixed: Tensor, moving: Tensor, fixed_known: Tensor, moving_known: Tensor, radius: int) -> Tensor:
    """Box sums as matrices, all candidates at once, in float64."""
    boxes = [torch.ones(size, size).triu(-1).tril(1).matrix_power(2).double() for size in fixed.shape[2:]]

    def window(volume: Tensor) -> Tensor:
        return torch.einsum("ai,bj,ck,...ijk->...abc", *boxes, volume)

    def moved_by_all(volume: Tensor) -> Tensor:
        padded = functional.pad(volume, [radius] * 6).double()
        places = (candidates(radius) + radius).tolist()
        h, w, d = fixed.shape[2:]
        return torch.cat([padded[..., i : i + h, j : j + w, k : k + d] for i, j, k in places])

    known = fixed_known.double() * moved_by_all(moving_known)
    difference = (fixed.double() - moved_by_all(moving)).square().sum(dim=1, keepdim=True)
    weight, total = window(known)[:, 0], window(known * difference)[:, 0]
    judged = weight > (MIN_SUPPORT * window(fixed_known.double() * moving_known)[:, 0]).clamp(min=1e-6)
    assert 0.02 < judged.double().mean() < 0.98
    cost = torch.where(judged, total / weight.clamp(min=1e-6), torch.nan)
    return torch.where(judged, cost, cost.nanmean(dim=0).nan_to_num())


def test_cost_by_the_formula(device: torch.device, kernels: Kernels) -> None:
    skip_unless_it_runs(kernels, device)
    shape = (5, 6, 7)
    fixed, moving = random_tensor(1, 3, *shape), random_tensor(1, 3, *shape, seed=1)
    fixed_known, moving_known = random_tensor(1, 1, *shape, seed=2), random_tensor(1, 1, *shape, seed=3)
    fixed_known[..., :2] = 0
    moving_known[..., 3:, :, :] = 0
    inputs = (fixed, moving, fixed_known, moving_known)
    found = kernels.masked_cost(*(tensor.to(device) for tensor in inputs), search_radius=2).cpu()
    assert torch.allclose(found, cost_by_the_formula(*inputs, 2).float(), atol=TOLERANCE["device"])


def test_of_equals_the_smallest_displacement_is_taken(kernels: Kernels) -> None:
    flat, known = torch.ones(1, 12, *SHAPE), torch.ones(1, 1, *SHAPE)
    cost = kernels.masked_cost(flat, flat, known, known, search_radius=2)
    found = solve_masked(cost, known, search_radius=2, coupling_weights=WEIGHTS, kernels=kernels)
    assert torch.equal(found, torch.zeros(1, 3, *SHAPE))


@pytest.mark.parametrize("weight", [0.0, 0.5, 4.0])
def test_the_minimum_of_a_quadratic_cost_is_found_between_cells(device: torch.device, kernels: Kernels, weight: float) -> None:
    """|c − t|² + w·|c − u|² is least at (t + w·u)/(1 + w)."""
    skip_unless_it_runs(kernels, device)
    target, u = 2.8 * random_tensor(3, *SHAPE) - 1.4, 2.8 * random_tensor(3, *SHAPE, seed=1) - 1.4
    cost = (candidates(2).view(-1, 3, 1, 1, 1) - target).square().sum(dim=1).to(device)
    picked = kernels.coupled_argmin(
        kernels.as_slab(cost), u.to(device), first=0, last=SHAPE[0], search_radius=2, coupling_weight=weight
    )
    found = kernels.between_cells(cost, picked, u.to(device), search_radius=2, coupling_weight=weight)
    assert torch.allclose(found.cpu(), (target + weight * u) / (1 + weight), atol=TOLERANCE["rounding"])


def test_a_known_shift_is_found_up_to_the_border(device: torch.device, kernels: Kernels) -> None:
    skip_unless_it_runs(kernels, device)
    fixed, moving = (features.to(device) for features in two_cuts((1, -1, 1), SHAPE))
    known = torch.ones(1, 1, *SHAPE, device=device)
    cost = kernels.masked_cost(fixed, moving, known, known, search_radius=2)
    found = solve_masked(cost, known, search_radius=2, coupling_weights=WEIGHTS, kernels=kernels)
    assert (found.cpu() - constant_field((1, -1, 1), SHAPE)).abs().max() < 0.15


def test_edges_of_masks_do_not_hold_what_moves(device: torch.device, kernels: Kernels) -> None:
    """Half of the images shows the same constant, which does not move; masks hide it, and the shift beside it is found."""
    skip_unless_it_runs(kernels, device)
    fixed, moving = two_cuts((1, -1, 1), SHAPE)
    known = torch.ones(1, 1, *SHAPE)
    known[..., 7:] = 0
    fixed, moving = (torch.where(known > 0, features, 1.0).to(device) for features in (fixed, moving))

    def error(seen: Tensor) -> float:
        cost = kernels.masked_cost(fixed, moving, seen, seen, search_radius=2)
        found = solve_masked(cost, seen, search_radius=2, coupling_weights=WEIGHTS, kernels=kernels)
        return float((found.cpu() - constant_field((1, -1, 1), SHAPE))[..., :7].abs().max())

    assert error(known.to(device)) < 0.2
    assert error(torch.ones_like(known).to(device)) > 0.5


def test_shifts_of_parts_of_cells_are_found_inside(device: torch.device, kernels: Kernels) -> None:
    skip_unless_it_runs(kernels, device)
    vector = (0.3, -0.4, 1.25)
    known = torch.ones(1, 1, *SHAPE, device=device)
    found = search(
        waves((0, 0, 0), SHAPE).to(device),
        waves(vector, SHAPE).to(device),
        known,
        known,
        search_radius=2,
        coupling_weights=WEIGHTS,
        consistency_rounds=2,
        kernels=kernels,
    )
    assert (found.cpu() - constant_field(vector, SHAPE))[..., 3:-3, 3:-3, 4:-4].abs().max() < 0.03


@given(turn=TURNS)
@settings(deadline=None, max_examples=12)
def test_turned_images_have_a_turned_displacement(kernels: Kernels, turn: tuple[list[int], list[int]]) -> None:
    shape = (6, 7, 8)
    fixed, moving = two_cuts((1, 0, -1), shape)
    fixed_known, moving_known = (random_tensor(1, 1, *shape, seed=seed) for seed in (1, 2))
    fixed_known[..., :3] = 0
    inputs = (fixed, moving, fixed_known, moving_known)
    kwargs = {"search_radius": 2, "coupling_weights": WEIGHTS, "consistency_rounds": 2, "kernels": kernels}
    found = search(*(turned(tensor, *turn) for tensor in inputs), **kwargs)  # type: ignore[arg-type]
    expected = turned_field(search(*inputs, **kwargs), *turn)  # type: ignore[arg-type]
    assert torch.allclose(found, expected, atol=TOLERANCE["device"])
