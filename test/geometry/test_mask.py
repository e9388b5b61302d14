import pytest
import torch
from helpers import TOLERANCE, TURNS, random_tensor, turned
from hypothesis import given, settings
from torch import Tensor
from torch.nn import functional

from mcbo.geometry.mask import bounding_box, field_of_view, fill_outside
from mcbo.steps.mind import mind_ssc

SHAPE = (9, 11, 13)


def wedge() -> Tensor:
    """A slanted part of the grid."""
    i, j, k = torch.meshgrid(*(torch.arange(size) for size in SHAPE), indexing="ij")
    return ((i > 1) & (i + j + k > 12) & (k < 11))[None, None]


@pytest.mark.parametrize("value", [0.0, -1000.0, 255.0])
def test_the_background_has_one_value_and_touches_the_border(device: torch.device, value: float) -> None:
    volume = torch.where(wedge(), 1 + random_tensor(1, 1, *SHAPE), value)
    volume[..., 5:7, 6:8, 7:9] = value  # a hole of that value inside is anatomy
    assert torch.equal(field_of_view(volume.to(device)), wedge().to(device))


def test_without_a_background_all_is_field_of_view() -> None:
    noise = random_tensor(1, 1, *SHAPE)
    corner = noise.clone()
    corner[..., :5, :5, :5] = 0  # a tenth of the faces
    for volume in (noise, corner, torch.zeros_like(noise)):
        assert field_of_view(volume).all()


@given(turn=TURNS)
@settings(deadline=None, max_examples=20)
def test_a_turned_image_has_a_turned_field_of_view_and_filling(turn: tuple[list[int], list[int]]) -> None:
    volume = torch.where(wedge(), 1 + random_tensor(1, 1, *SHAPE), 0.0)
    mask = field_of_view(volume)
    assert torch.equal(field_of_view(turned(volume, *turn)), turned(mask, *turn))
    filled = turned(fill_outside(volume, mask, reach=3), *turn)
    found = fill_outside(turned(volume, *turn), turned(mask, *turn), reach=3)
    assert torch.allclose(found, filled, atol=TOLERANCE["rounding"])


def test_filling_by_hand(device: torch.device) -> None:
    volume = torch.tensor([[9.0, 9, 9, 9, 9], [9, 9, 9, 2, 6], [9, 9, 9, 4, 9]]).view(1, 1, 3, 1, 5).to(device)
    mask = (volume != 9).to(device)
    once = [[4.0, 4, 2, 4, 4], [4, 4, 3, 2, 6], [4, 4, 3, 4, 4]]  # beside known ones their mean, further out the mean of all
    assert torch.equal(fill_outside(volume, mask, reach=1).cpu(), torch.tensor(once).view(1, 1, 3, 1, 5))
    twice = fill_outside(volume, mask, reach=2).cpu()[0, 0, :, 0]
    assert torch.allclose(twice[:, 1], torch.tensor([5 / 2, 8 / 3, 3]))
    assert torch.equal(twice[:, 0], torch.full((3,), 4.0))
    for none_or_all in (torch.zeros_like(mask), torch.ones_like(mask)):
        assert torch.equal(fill_outside(volume, none_or_all, reach=2), volume)


def test_features_inside_see_neither_what_was_outside_nor_what_lies_beyond_the_reach() -> None:
    volume, other = random_tensor(1, 1, *SHAPE), random_tensor(1, 1, *SHAPE, seed=1)
    mask = wedge()
    filled = fill_outside(volume, mask, reach=3)
    assert torch.equal(fill_outside(torch.where(mask, volume, 50 * other), mask, reach=3), filled)
    near = functional.max_pool3d(mask.float(), 7, stride=1, padding=3) > 0
    assert not near.all()
    seen, expected = (mind_ssc(image, radius=1, dilation=2) for image in (torch.where(near, filled, other), filled))
    assert torch.allclose(seen[:, :, mask[0, 0]], expected[:, :, mask[0, 0]], atol=TOLERANCE["rounding"])


def test_the_box_around_a_mask(device: torch.device) -> None:
    mask = torch.zeros(1, 1, *SHAPE, dtype=torch.bool, device=device)
    assert bounding_box(mask, margin=0) == (slice(0, 9), slice(0, 11), slice(0, 13))
    mask[0, 0, 3, 2, 8] = mask[0, 0, 5, 2, 11] = True
    assert bounding_box(mask, margin=0) == (slice(3, 6), slice(2, 3), slice(8, 12))
    assert bounding_box(mask, margin=3) == (slice(0, 9), slice(0, 6), slice(5, 13))
