import itertools

import numpy as np
import pytest
import torch
from helpers import TOLERANCE, random_tensor

from mcbo.core.errors import ShapeError
from mcbo.steps.mind import PAIRS, mind_ssc, variance_of

SHAPE = (9, 11, 13)


def test_there_are_twelve_pairs_and_none_is_opposite() -> None:
    assert len(set(PAIRS)) == 12
    assert all(sum(abs(x - y) for x, y in zip(a, b, strict=True)) == 2 for a, b in PAIRS)


def test_one_voxel_by_hand(device: torch.device) -> None:
    """The definition, spelled out for all voxels with loops over the patch, in float64."""
    volume = random_tensor(1, 1, *SHAPE)
    image = np.pad(volume[0, 0].double().numpy(), 3, mode="edge")

    def at(p: tuple[int, ...], offset: tuple[int, ...], step: tuple[int, ...]) -> float:
        # The patch is clamped to the image first, then the neighbor is looked up in the padded image.
        inside = [min(max(x + s, 0), n - 1) for x, s, n in zip(p, step, SHAPE, strict=True)]
        return float(image[tuple(i + 2 * o + 3 for i, o in zip(inside, offset, strict=True))])

    voxels = list(itertools.product((0, 4, 8), (0, 5, 10), (0, 6, 12)))
    steps = list(itertools.product((-1, 0, 1), repeat=3))
    found = mind_ssc(volume.to(device), radius=1, dilation=2)[0].cpu().double().numpy()
    logs = -np.log(found)
    for voxel in voxels:
        distances = [np.mean([(at(voxel, a, s) - at(voxel, b, s)) ** 2 for s in steps]) for a, b in PAIRS]
        shifted = np.array(distances) - min(distances)
        expected = shifted / shifted.mean()  # the clamp does not bite on noise
        assert np.abs(logs[(slice(None), *voxel)] - expected).max() < 1e-3


@pytest.mark.parametrize(("scale", "offset"), [(1e-9, 0.0), (250.0, 0.0), (1e15, 0.0), (2.0, -300.0), (-1.0, 0.0)])
def test_scale_offset_and_sign_do_not_matter(scale: float, offset: float) -> None:
    volume = random_tensor(1, 1, *SHAPE)
    assert torch.allclose(
        mind_ssc(volume, radius=1, dilation=2), mind_ssc(scale * volume + offset, radius=1, dilation=2), atol=2e-3
    )


@pytest.mark.parametrize("scale", [1e-25, 1.0, 3e9])
def test_the_variance_of_another_image_decides_what_counts_as_noise(scale: float, device: torch.device) -> None:
    """With a mean variance so large that the lower bound holds everywhere, features are exp(−distance / (0.001 · mean))."""
    volume = (scale * random_tensor(2, 1, *SHAPE)).to(device)
    own = variance_of(volume, radius=1, dilation=2)
    assert own.dtype == torch.float64
    assert torch.allclose(own, scale**2 * variance_of(volume / scale, radius=1, dilation=2), rtol=1e-5)
    default = mind_ssc(volume, radius=1, dilation=2)
    assert torch.allclose(default, mind_ssc(volume, radius=1, dilation=2, mean_variance=own), atol=TOLERANCE["rounding"])
    once, twice = (mind_ssc(volume, radius=1, dilation=2, mean_variance=k * own).log() for k in (1e5, 2e5))
    assert torch.allclose(once, 2 * twice, atol=1e-6)
    distances = -once * 100  # in units of its own variance
    assert torch.allclose(distances.mean(dim=(1, 2, 3, 4)), torch.ones(2, device=device), rtol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0, -7.5, 1e30])
def test_a_constant_image_gives_ones(value: float) -> None:
    features = mind_ssc(torch.full((1, 1, *SHAPE), value), radius=1, dilation=2)
    assert torch.equal(features, torch.ones(1, 12, *SHAPE))


@pytest.mark.parametrize("dtype", [torch.int16, torch.float64, torch.uint8])
def test_any_number_type(dtype: torch.dtype) -> None:
    volume = (200 * random_tensor(1, 1, *SHAPE)).round()
    assert torch.equal(mind_ssc(volume.to(dtype), radius=1, dilation=2), mind_ssc(volume, radius=1, dilation=2))


def test_range_and_shape() -> None:
    features = mind_ssc(random_tensor(1, 1, *SHAPE), radius=3, dilation=3)
    assert features.shape == (1, 12, *SHAPE)
    assert features.max() == 1
    assert features.min() >= 0
    with pytest.raises(ShapeError, match="got \\(9, 11, 13\\)"):
        mind_ssc(torch.zeros(SHAPE), radius=1, dilation=2)


def test_several_volumes_are_each_for_itself(device: torch.device) -> None:
    volumes = random_tensor(3, 1, *SHAPE).to(device)
    volumes[1] *= 1e20
    volumes[2] = 5
    features = mind_ssc(volumes, radius=1, dilation=2)
    assert features.shape == (3, 12, *SHAPE)
    for one, volume in zip(features, volumes, strict=True):
        assert torch.allclose(one, mind_ssc(volume[None], radius=1, dilation=2)[0], atol=TOLERANCE["rounding"])
