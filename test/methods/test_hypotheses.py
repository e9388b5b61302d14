"""Rigid hypotheses on phantoms with known motions, and what chance finds."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from helpers import cascade_config, random_tensor
from torch import Tensor

from mcbo.core.field import box_mean, sample
from mcbo.core.types import Kernels, Triple
from mcbo.geometry import rigid
from mcbo.geometry.mask import field_of_view
from mcbo.kernels import REFERENCE
from mcbo.methods.hypotheses import Chance, Expected, Hypotheses, HypothesisSettings, find_hypotheses
from mcbo.runtime import select_kernels
from mcbo.steps.initialization import Pose, motions_of
from mcbo.studies.phantom import make_phantom

SHAPE = (64, 48, 72)
SPACING_MM = (1.0, 1.5, 1.0)


def search(
    fixed: Tensor,
    movings: Sequence[Tensor],
    *,
    spacing_mm: Triple = SPACING_MM,
    far: bool = True,
    settings: HypothesisSettings | None = None,
    kernels: Kernels | None = None,
) -> Hypotheses:
    config = cascade_config()
    return find_hypotheses(
        fixed,
        field_of_view(fixed),
        movings,
        [field_of_view(moving) for moving in movings],
        spacing_mm=spacing_mm,
        start=config.start if far else None,
        settings=settings or config.hypotheses,
        expected=config.expected,
        kernels=kernels or select_kernels(fixed.device),
    )


def displacement(motion: rigid.Rigid, spacing_mm: Triple = SPACING_MM) -> Tensor:
    like = torch.zeros(1)
    return rigid.to_displacement(motion, SHAPE, offset=(0, 0, 0), spacing_mm=spacing_mm, like=like)


@pytest.mark.parametrize(
    ("rotation_deg", "shift_mm"),
    [((3.0, 0.0, -2.0), (2.0, 3.0, -1.0)), ((0.0, 0.0, 0.0), (18.0, 0.0, -9.0)), ((0.0, 0.0, 14.0), (0.0, 20.0, 5.0))],
)
def test_a_known_motion_is_found_and_no_chance(rotation_deg: Triple, shift_mm: Triple) -> None:
    phantom = make_phantom(SHAPE, seed=2)
    truth = motions_of([Pose(rotation_deg, shift_mm)], SHAPE, SPACING_MM)
    u = displacement(truth[0])
    fixed = sample(phantom.t2, u, offset=(0, 0, 0), outside="border")
    found = search(fixed, [phantom.cet1])
    error = (displacement(found.motions[found.best]) - u).norm(dim=1)
    assert float(error[field_of_view(fixed)[0]].mean()) < 1.0
    assert float(u.norm(dim=1).mean()) > 2
    assert found.deviations > cascade_config().judgement.even


def test_noise_and_mirrored_images_are_no_better_than_chance() -> None:
    phantom = make_phantom(SHAPE, seed=2)
    even = cascade_config().judgement.even
    assert search(phantom.fixed, [random_tensor(1, 1, *SHAPE)]).deviations < even
    assert search(phantom.t2, [phantom.cet1.flip(2)]).deviations < even


@pytest.mark.parametrize("far", [True, False])
def test_what_lies_off_the_center_is_mirrored_where_it_is(far: bool) -> None:
    """Unrelated textures in the same corner. Mirrored about the center of the volume, hardly anything would overlap."""
    corner = torch.zeros(1, 1, *SHAPE)
    corner[..., 2:30, 2:26, 2:34] = 1
    fixed, moving = (box_mean(random_tensor(1, 1, *SHAPE, seed=seed), size=3) * corner for seed in (1, 2))
    found = search(fixed, [moving], far=far)
    judgement = cascade_config().judgement
    assert not judgement.is_found(found)
    assert judgement.probability(found)[1] < 0.5


def test_an_object_that_is_its_own_mirror_image_is_found() -> None:
    half = make_phantom(SHAPE, seed=2).cet1
    symmetric = (half + half.flip(2)) / 2
    found = search(symmetric.roll(3, dims=3), [symmetric], spacing_mm=(1.0, 1.0, 1.0))
    assert cascade_config().judgement.is_found(found)
    motion = found.motions[found.best]
    assert torch.allclose(motion.translation, torch.tensor([0.0, -3.0, 0.0], dtype=torch.float64), atol=0.3)


def test_aligned_images_stay() -> None:
    phantom = make_phantom(SHAPE, seed=2)
    found = search(phantom.cet1, [phantom.cet1])
    assert float(displacement(found.motions[found.best]).norm(dim=1).mean()) < 0.2
    assert found.scores[found.best] > 0.99


def test_hypotheses_in_a_batch_are_those_one_by_one(device: torch.device) -> None:
    phantom = make_phantom((40, 36, 44), seed=2)
    fixed, *movings = (image.to(device) for image in (phantom.fixed, phantom.cet1, phantom.t2))
    one, many = (search(fixed, movings, kernels=replace(REFERENCE, batch=batch)) for batch in (1, 64))
    assert many.best == one.best
    assert many.scores == pytest.approx(one.scores, abs=1e-4)
    assert many.deviations == pytest.approx(one.deviations, abs=0.02)
    assert many.deviations_nearby == pytest.approx(one.deviations_nearby, abs=0.02)
    for first, second in zip(one.motions, many.motions, strict=True):
        assert torch.allclose(first.rotation, second.rotation, atol=1e-4)


def test_without_a_start_only_no_motion_is_followed_up() -> None:
    phantom = make_phantom(SHAPE, seed=2)
    found = search(phantom.t2, [phantom.cet1], far=False)
    assert len(found.motions) == len(found.scores) == 1
    assert found.best == 0


def test_where_it_is_not_clear_the_best_of_each_search_is_looked_at_closer() -> None:
    """With settings of the closer look under which nothing can be told, it decides, and the motion hardly changes."""
    phantom = make_phantom(SHAPE, seed=2)
    settings = cascade_config().hypotheses
    blind = replace(settings.closer, cells=9, pooled=9, rounds=0)
    first = search(phantom.t2, [phantom.cet1], settings=replace(settings, closer=blind, unsure=(0.0, 0.0)))
    closer = search(phantom.t2, [phantom.cet1], settings=replace(settings, closer=blind, unsure=(-100.0, 100.0)))
    assert first.deviations > 2 > closer.deviations
    assert torch.allclose(first.motions[first.best].rotation, closer.motions[closer.best].rotation)


def test_voxels_that_are_absurdly_thin_take_no_more_time_or_memory() -> None:
    """A cell as thick as it is wide would have 10¹⁵ of them."""
    phantom = make_phantom(SHAPE, seed=2)
    found = search(phantom.fixed, [phantom.fixed], spacing_mm=(1e-15, 1.0, 1.0))
    assert all(math.isfinite(score) for score in found.scores)


def test_chance_by_hand() -> None:
    chance = Chance((0.10, 0.30, 0.12, 0.14), 10**4)
    assert chance.deviations(0.40) == pytest.approx((0.40 - 0.30) / 0.02)  # the deviation of 0.10, 0.12, 0.14
    assert Chance((0.1, 0.1, 0.1, 0.1), 10**4).deviations(0.2) == pytest.approx(10)  # never below 0.01
    assert Chance((0.1, 0.2, 0.3, 0.4), 10**4).deviations(0.7) == pytest.approx(10)  # never above 0.03 ...
    assert Chance((0.1, 0.1, 0.1, 0.1), 25).deviations(0.3) == pytest.approx(2)  # ... but where few cells are compared


def test_the_prior_by_hand() -> None:
    """Twice the expected shift and no rotation: (1 + 4/4) to the power of −5."""
    expected = Expected(voxels=10.0, mm=None, degrees=3.0)
    shifted = rigid.Rigid(torch.eye(3, dtype=torch.float64), torch.tensor([20.0, 0.0, 0.0], dtype=torch.float64))
    center = torch.zeros(3, dtype=torch.float64)
    assert expected.log_prior(rigid.identity(), center, (1.0, 1.0, 2.0)) == 0
    assert expected.log_prior(shifted, center, (1.0, 1.0, 2.0)) == pytest.approx(-5 * math.log(2))
    assert replace(expected, mm=20.0).log_prior(shifted, center, (1.0, 1.0, 2.0)) == pytest.approx(-5 * math.log(1.25))
    turned = rigid.Rigid(rigid.rotation_of((0.0, 6.0, 0.0)), torch.zeros(3, dtype=torch.float64))
    assert expected.log_prior(turned, center, (1.0, 1.0, 2.0)) == pytest.approx(-5 * math.log(2))
    assert replace(expected, mm=1e-300, degrees=1e-300).log_prior(shifted, center, (1.0, 1.0, 2.0)) == -math.inf
