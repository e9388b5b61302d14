"""The bound of errors: its formula against an integral, its spread against that of solved systems, and what noise gets."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import random_tensor
from scipy import integrate

import mcbo
from mcbo.core.errors import InputError
from mcbo.core.timing import StageTimer
from mcbo.core.types import Judgement, Masks
from mcbo.kernels.cpu import COMPILED
from mcbo.methods.config import Group
from mcbo.methods.presets import find_config
from mcbo.methods.uncertainty import spread_of
from mcbo.steps.gauss_newton import bent
from mcbo.steps.linear_solver import CosineTransform, conjugate_gradient
from mcbo.studies.phantom import make_phantom

SHAPE = (16, 18, 20)


@pytest.mark.parametrize(("information", "bending"), [(0.02, 2.4), (0.3, 0.6)])
def test_the_spread_is_that_of_the_integral(information: float, bending: float) -> None:
    variance, _ = integrate.quad(lambda k: k**2 / (2 * math.pi**2) / (information + bending * k**4), 0, np.inf)
    found = spread_of(torch.full((1, 1, *SHAPE), information), torch.ones((1, 1, *SHAPE)), bending=bending)
    assert torch.allclose(found, torch.tensor(math.sqrt(3 * variance)).float(), rtol=1e-5)


def test_the_spread_is_that_of_solutions_with_noise() -> None:
    """Right sides of variance H per cell, solved by the method's own solver: errors are spread as the formula says, to 15 %."""
    information, bending = 0.1, 1.0
    shape = (24, 24, 24)
    hessian = torch.zeros((6, *shape))
    hessian[[0, 3, 5]] = information
    cosines = CosineTransform(shape, like=hessian)
    symbol = cosines.symbol(information, bending=bending)
    noise = torch.randn((1, 3, *shape), generator=torch.Generator().manual_seed(0)) * math.sqrt(information)
    prior = cosines.apply(
        torch.randn((1, 3, *shape), generator=torch.Generator().manual_seed(1)) * (symbol - information).clamp(min=0).sqrt(),
        inverse=True,
    )
    error = conjugate_gradient(
        bent(hessian, bending), noise + prior, lambda right: cosines.solve(right, symbol=symbol), rounds=100
    )
    inner = error[..., 4:-4, 4:-4, 4:-4]
    expected = spread_of(torch.full((1, 1, *shape), information), torch.ones((1, 1, *shape)), bending=bending).mean()
    assert inner.square().sum(dim=1).mean().sqrt() == pytest.approx(float(expected), rel=0.15)


def test_more_information_means_less_spread_where_it_is() -> None:
    information = torch.full((1, 1, *SHAPE), 0.01)
    information[..., 10:] = 1.0
    found = spread_of(information, torch.ones_like(information), bending=0.6)[0, 0]
    assert found[..., :6].min() > found[..., 14:].max()


def test_nothing_known_is_a_finite_spread() -> None:
    nothing = torch.zeros((1, 1, *SHAPE))
    assert bool(spread_of(nothing, nothing, bending=0.6).isfinite().all())


@pytest.fixture(scope="module")
def images() -> tuple[Any, Any]:
    phantom = make_phantom((48, 44, 52), seed=3)
    return phantom.fixed[0, 0].numpy(), phantom.cet1[0, 0].numpy()


@pytest.mark.parametrize("preset", ["auto", "cascade"])
def test_a_result_knows_its_uncertainty_where_both_images_do(images: tuple[Any, Any], preset: str) -> None:
    result = mcbo.register(*images, spacing=(1.0, 1.0, 1.0), preset=preset, uncertainty=True)
    bound = result.uncertainty
    assert bound is not None
    assert bound.shape == images[0].shape
    known = np.isfinite(bound)
    seen = result.fixed_image.known()[0, 0].numpy()
    assert not known[~seen].any() or preset == "auto"
    assert known[seen].mean() > 0.7
    assert 0.05 < np.median(bound[known]) < 5
    assert mcbo.register(*images, spacing=(1.0, 1.0, 1.0), preset=preset).uncertainty is None


def test_the_bound_is_that_of_what_the_result_shows() -> None:
    """A moving image that is a head away, and shows one value where the fixed one lies, has the bound that it has nearby."""
    phantom = make_phantom((72, 44, 52), seed=3)
    mask = torch.zeros_like(phantom.fixed, dtype=torch.bool)
    mask[..., 12:22, 14:30, 14:38] = True
    near = torch.full_like(phantom.cet1, 0.5)
    near[..., :36, :, :] = phantom.cet1[..., :36, :, :]
    bounds = []
    for moving, rows in ((near, 0), (near.roll(36, dims=2), 36)):
        displacement = torch.zeros_like(phantom.displacement)
        displacement[:, 0] = rows
        group = Group([moving], Masks(mask, (torch.ones_like(mask),)))
        given = phantom.fixed, group, displacement, Judgement("full", {}, 1.0)
        config = find_config("ReMIND2Reg", "cascade")
        bounds.append(config.bound_errors(*given, spacing_mm=(1.0, 1.0, 1.0), kernels=COMPILED, timer=StageTimer()))
    near_bound, far_bound = bounds
    assert near_bound is not None
    assert far_bound is not None
    assert bool(near_bound[mask].isfinite().all())
    assert torch.allclose(near_bound, far_bound, rtol=1e-4, equal_nan=True)


def test_of_unrelated_images_nothing_is_claimed(images: tuple[Any, Any]) -> None:
    noise = random_tensor(*images[0].shape, seed=5).numpy()
    near = mcbo.register(images[0], noise, spacing=(1.0, 1.0, 1.0), preset="cascade", expect=(7, 3), uncertainty=True)
    assert near.confidence is not None
    assert near.confidence < 0.5
    assert near.uncertainty is not None
    assert np.isnan(near.uncertainty).all()


def test_a_preset_that_does_not_know_says_so(images: tuple[Any, Any]) -> None:
    with pytest.raises(InputError, match="preset mcbo2024 does not know its uncertainty"):
        mcbo.register(*images, preset="mcbo2024", uncertainty=True)
