from dataclasses import replace

import torch
from helpers import TOLERANCE, paper_config, random_tensor
from torch import Tensor
from torch.nn import functional

from mcbo.core.field import box_mean, resize, warp
from mcbo.kernels import REFERENCE
from mcbo.steps.adam import add_roughness_gradient, refine

_level = paper_config().levels[-1]
assert _level.refinement is not None
SETTINGS = _level.refinement
SHAPE = (24, 20, 28)


def smooth_features(seed: int) -> Tensor:
    return box_mean(random_tensor(1, 12, *SHAPE, seed=seed), size=5, rounds=2)


def pooled(features: Tensor) -> Tensor:
    return functional.avg_pool3d(features, SETTINGS.grid_spacing)


def test_the_gradient_of_the_roughness_is_that_of_autograd() -> None:
    field = random_tensor(1, 3, 5, 6, 1).requires_grad_()  # an axis of one voxel has no differences
    steps = field.diff(dim=2).square().mean() + field.diff(dim=3).square().mean()
    (expected,) = torch.autograd.grad(0.7 * steps, field)
    found = torch.zeros_like(field)
    add_roughness_gradient(found, field.detach(), weight=0.7)
    assert torch.allclose(found, expected, atol=TOLERANCE["rounding"])


def test_one_evaluation_only_smooths() -> None:
    start = random_tensor(1, 3, *SHAPE)
    found = refine(
        pooled(smooth_features(1)),
        pooled(smooth_features(2)),
        start,
        settings=replace(SETTINGS, iterations=1),
        stretch=True,
        kernels=REFERENCE,
    )
    cells = box_mean(resize(start, (12, 10, 14), scale=0.5), size=3, rounds=3)
    assert torch.allclose(found, box_mean(resize(cells, SHAPE, scale=2), size=5, rounds=3), atol=TOLERANCE["rounding"])


def test_steps_equal_plain_autograd_through_average_pooling(device: torch.device) -> None:
    """The same optimization written the textbook way: one graph, gradients to the parameters by autograd alone."""
    fixed, moving = smooth_features(1).to(device), smooth_features(2).to(device)
    start = (random_tensor(1, 3, *SHAPE, seed=3) - 0.5).to(device)
    f, m = pooled(fixed), pooled(moving)
    parameters = functional.interpolate(start, size=(12, 10, 14), mode="trilinear").div(2).requires_grad_()
    adam = torch.optim.Adam([parameters], lr=SETTINGS.learning_rate)
    for _ in range(4):
        s = parameters
        for _ in range(3):
            s = functional.avg_pool3d(s, 3, stride=1, padding=1)
        loss = 12 * (warp(m, s) - f).square().mean()
        loss = loss + 1.25 * sum(s.diff(dim=axis).square().mean() for axis in (2, 3, 4))
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    expected = resize(s.detach(), SHAPE, scale=2)
    for _ in range(3):
        expected = functional.avg_pool3d(expected, 5, stride=1, padding=2)
    found = refine(f, m, start, settings=replace(SETTINGS, iterations=4), stretch=False, kernels=REFERENCE)
    assert torch.allclose(found, expected, atol=1e-3)


def test_it_lowers_the_feature_distance_of_a_small_shift() -> None:
    fixed = smooth_features(1)
    moving = torch.roll(fixed, 2, dims=2)
    found = refine(
        pooled(fixed), pooled(moving), torch.zeros(1, 3, *SHAPE), settings=SETTINGS, stretch=False, kernels=REFERENCE
    )
    middle = (..., slice(6, -6), slice(6, -6), slice(6, -6))

    def distance(u: Tensor) -> float:
        return float((warp(moving, u) - fixed)[middle].square().mean())

    assert distance(found) < 0.5 * distance(torch.zeros_like(found))


def test_the_start_is_left_alone() -> None:
    start = random_tensor(1, 3, *SHAPE)
    before = start.clone()
    refine(pooled(smooth_features(1)), pooled(smooth_features(2)), start, settings=SETTINGS, stretch=True, kernels=REFERENCE)
    assert torch.equal(start, before)
