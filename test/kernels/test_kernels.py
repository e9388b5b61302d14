"""The compiled kernels against the torch reference. (Parity with the golden arrays is tested with both, in test_parity.py.)"""

import itertools

import pytest
import torch
from helpers import TOLERANCE, mean_length, random_tensor, run_register
from hypothesis import given, settings
from hypothesis import strategies as st

from mcbo.core.errors import ShapeError
from mcbo.kernels import REFERENCE
from mcbo.kernels.cpu import COMPILED
from mcbo.kernels.simd import aligned_floats
from mcbo.studies.phantom import Phantom

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 9), st.integers(1, 35))


@given(shape=SHAPES, radius=st.integers(1, 3), dilation=st.integers(1, 3))
@settings(deadline=None, max_examples=30)
def test_features(shape: tuple[int, int, int], radius: int, dilation: int) -> None:
    volume = 300 * random_tensor(1, 1, *shape) - 100
    found, expected = (k.mind_ssc(volume, radius=radius, dilation=dilation) for k in (COMPILED, REFERENCE))
    assert torch.allclose(found, expected, atol=TOLERANCE["device"])


@pytest.mark.parametrize("value", [0.0, 1.0, -7.5, 1e30])
def test_a_constant_image_has_features_of_one(value: float) -> None:
    features = COMPILED.mind_ssc(torch.full((1, 1, 5, 6, 19), value), radius=1, dilation=2)
    assert torch.equal(features, torch.ones(1, 12, 5, 6, 19))


def test_features_of_another_shape_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"expected volumes of shape \(B, 1, H, W, D\), got \(9, 11, 13\)"):
        COMPILED.mind_ssc(torch.zeros(9, 11, 13), radius=1, dilation=2)
    a, b = torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 2, 4, 4, 5)
    with pytest.raises(ShapeError, match=r"\(1, 2, 4, 4, 4\) and \(1, 2, 4, 4, 5\)"):
        next(COMPILED.cost_slabs(a, b, search_radius=1, rows=1, keep=0))


@given(
    shape=SHAPES,
    channels=st.sampled_from([1, 12, 24]),
    radius=st.integers(1, 4),
    rows=st.integers(1, 13),
    weight=st.sampled_from([0.003, 0.1, 1.0, 10.0]),
)
@settings(deadline=None, max_examples=40)
def test_costs_and_what_is_picked(shape: tuple[int, int, int], channels: int, radius: int, rows: int, weight: float) -> None:
    """Costs agree to rounding. What is picked is the best or as good as it, since rounding may decide between near equals."""
    height, width, depth = shape
    fixed, moving = random_tensor(1, channels, *shape, seed=1), random_tensor(1, channels, *shape, seed=2)
    u = radius * (2.4 * random_tensor(3, *shape, seed=3) - 1.2)
    pairs = zip(
        *(k.cost_slabs(fixed, moving, search_radius=radius, rows=rows, keep=0) for k in (COMPILED, REFERENCE)), strict=True
    )
    for start, (ours, theirs) in zip(range(0, height, rows), pairs, strict=True):
        n = theirs.shape[1]
        cost = torch.from_numpy(ours.cost[:n].transpose(3, 0, 1, 2, 4).reshape(theirs.shape[0], n, width, -1)[..., :depth])
        assert torch.allclose(cost, theirs, atol=TOLERANCE["rounding"])
        for displacement in (None, u[:, start : start + n]):
            arguments = {"first": 0, "last": n, "search_radius": radius, "coupling_weight": weight}
            a, b = (
                COMPILED.coupled_argmin(ours, displacement, **arguments),
                REFERENCE.coupled_argmin(theirs, displacement, **arguments),
            )
            ours_worth, best = (value_of(theirs, picked, displacement, radius, weight) for picked in (a, b))
            assert torch.allclose(ours_worth, best, atol=TOLERANCE["rounding"])


def value_of(
    cost: torch.Tensor, picked: torch.Tensor, displacement: torch.Tensor | None, radius: int, weight: float
) -> torch.Tensor:
    """What a choice costs, its coupling included."""
    side = 2 * radius + 1
    index = ((picked[2] + radius) * side + picked[1] + radius) * side + picked[0] + radius
    value = cost.gather(0, index.long()[None])[0]
    return value if displacement is None else value + weight * (picked - displacement).square().sum(dim=0)


def test_of_equals_the_first_is_picked_as_by_the_reference() -> None:
    """Flat features: all candidates that stay inside cost the same to the last bit."""
    flat = torch.ones(1, 12, 6, 7, 18)
    ours, theirs = (next(k.cost_slabs(flat, flat, search_radius=2, rows=6, keep=0)) for k in (COMPILED, REFERENCE))
    for u in (None, torch.zeros(3, 3, 7, 18), torch.full((3, 3, 7, 18), 0.5)):
        arguments = {"first": 1, "last": 4, "search_radius": 2, "coupling_weight": 0.25}
        assert torch.equal(COMPILED.coupled_argmin(ours, u, **arguments), REFERENCE.coupled_argmin(theirs, u, **arguments))


@given(shape=SHAPES, radius=st.integers(0, 3), coupled=st.booleans(), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_of_a_whole_cost_volume_the_same_is_picked(shape: tuple[int, int, int], radius: int, coupled: bool, seed: int) -> None:
    """Costs, displacements and weight are multiples of powers of two: no rounding, many equals, every pick must be the same."""
    cost = (8 * random_tensor((2 * radius + 1) ** 3, *shape, seed=seed)).floor() / 8
    u = (4 * radius * (2.4 * random_tensor(3, *shape, seed=seed + 1) - 1.2)).round() / 4 if coupled else None
    arguments = {"first": 0, "last": shape[0], "search_radius": radius, "coupling_weight": 0.25}
    found, expected = (k.coupled_argmin(k.as_slab(cost), u, **arguments) for k in (COMPILED, REFERENCE))
    assert torch.equal(found, expected)


def test_the_number_of_threads_changes_nothing_beyond_rounding(phantom: Phantom) -> None:
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(run_register(phantom.fixed, [phantom.cet1], kernels=COMPILED).displacements[0])
    finally:
        torch.set_num_threads(threads)
    for a, b in itertools.pairwise(results):
        assert mean_length(a - b) < TOLERANCE["rounding"]


@given(shape=SHAPES, stretch=st.booleans(), reach=st.floats(0.1, 8))
@settings(deadline=None, max_examples=30)
def test_consistency(shape: tuple[int, int, int], stretch: bool, reach: float) -> None:
    forward, backward = (reach * (2 * random_tensor(1, 3, *shape, seed=seed) - 1) for seed in (1, 2))
    before = forward.clone()
    found, expected = (k.make_consistent(forward, backward, rounds=2, stretch=stretch) for k in (COMPILED, REFERENCE))
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(found, expected, strict=True))
    assert torch.equal(forward, before)


@given(shape=SHAPES, channels=st.sampled_from([1, 12, 16]), stretch=st.booleans(), reach=st.floats(0.1, 8))
@settings(deadline=None, max_examples=30)
def test_gradient(shape: tuple[int, int, int], channels: int, stretch: bool, reach: float) -> None:
    fixed, moving = random_tensor(1, channels, *shape, seed=1), random_tensor(1, channels, *shape, seed=2)
    u = reach * (2 * random_tensor(1, 3, *shape, seed=3) - 1)
    found, expected = (k.gradient_of(fixed, moving, stretch=stretch)(u) for k in (COMPILED, REFERENCE))
    # Where a sample falls on a cell border to rounding, either side's slope is right.
    assert (found - expected).abs().median() <= TOLERANCE["rounding"] * expected.abs().max()
    close = torch.isclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()) + 1e-9)
    assert close.float().mean() > 0.97


def test_whole_registrations_agree(phantom: Phantom) -> None:
    found, expected = (
        run_register(phantom.fixed, [phantom.cet1, phantom.t2], kernels=k).displacements[0] for k in (COMPILED, REFERENCE)
    )
    assert mean_length(found - expected) < TOLERANCE["field"] / 5


def test_arrays_begin_on_cache_lines() -> None:
    for size in (1, 17, 1000):
        assert aligned_floats(size).ctypes.data % 64 == 0
