"""The moving image as predicted from the fixed one."""

import torch
from helpers import random_tensor

from mcbo.core.field import box_sum
from mcbo.steps.appearance import filtered, predict


def test_what_is_a_mean_of_the_fixed_image_is_predicted() -> None:
    """The moving image is 3 minus twice a mean over 5³ voxels, taken twice; a wedge of it is unknown."""
    fixed = random_tensor(1, 1, 24, 28, 20)
    known = torch.ones_like(fixed)
    moving = 3 - 2 * box_sum(fixed, size=5, rounds=2) / box_sum(known, size=5, rounds=2)
    seen = known.clone()
    seen[:, :, :8] = 0
    predicted = predict(fixed, known, torch.where(seen > 0, moving, 99.0), seen)
    assert float((predicted - moving).std()) < 0.2 * float(moving.std())


def test_nothing_known_leaves_the_fixed_image() -> None:
    fixed = random_tensor(1, 1, 12, 14, 10)
    nothing = torch.zeros_like(fixed)
    assert torch.equal(predict(fixed, nothing, fixed, nothing), fixed)


def test_a_constant_image_has_no_spread_and_no_slope() -> None:
    known = torch.ones(1, 1, 12, 14, 10)
    for response in filtered(7 * known, known):
        assert torch.isfinite(response).all()
        assert torch.allclose(response, response.mean(), atol=1e-2)
