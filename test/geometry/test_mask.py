import numpy as np
import pytest
import torch
from helpers import TOLERANCE, TURNS, random_tensor, turned
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from mcbo.core.types import Mask, Shape, Volume
from mcbo.geometry.mask import (
    MIN_BACKGROUND_SHARE,
    MIN_BORDER_SHARE,
    SLAB_ROWS,
    bounding_box,
    field_of_view,
    fill_outside,
)
from mcbo.steps.mind import mind_ssc, scale_to_one

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


def by_scipy(volume: Volume) -> Mask:
    """The field of view by another library, which labels the whole volume at once; voxels meet at faces."""
    image = volume[0, 0].numpy()
    faces = [np.take(image, (0, -1), axis=axis).ravel() for axis in range(3)]
    values, counts = np.unique(np.concatenate(faces), return_counts=True)
    regions, _ = ndimage.label(image == values[counts.argmax()])
    touching = np.unique(np.concatenate([np.take(regions, (0, -1), axis=axis).ravel() for axis in range(3)]))
    background = np.isin(regions, touching[touching > 0])
    if counts.max() < MIN_BORDER_SHARE * counts.sum() or not MIN_BACKGROUND_SHARE < background.mean() < 1:
        background[:] = False
    return torch.from_numpy(~background)[None, None]


@given(
    shape=st.tuples(st.integers(1, 3 * SLAB_ROWS), st.integers(1, 12), st.integers(1, 12)),
    share=st.sampled_from([0.2, 0.3, 0.35, 0.5, 0.7, 0.9]),  # from 0.31 on, regions cross the whole volume
    turn=TURNS,
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=100)
def test_random_regions_are_those_that_another_library_finds(
    shape: Shape, share: float, turn: tuple[list[int], list[int]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(shape) < share, 0, rng.integers(1, 4, shape))
    volume = turned(torch.from_numpy(values.astype(np.float32))[None, None], *turn)
    assert torch.equal(field_of_view(volume), by_scipy(volume))


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_corridor_that_winds_to_and_fro_is_outside_if_it_has_a_door(is_open: bool, axis: int) -> None:
    background = torch.zeros(4 * SLAB_ROWS, 9, 9, dtype=torch.bool)
    background[:, :, 0] = True  # a wall that is outside anyway
    expected = ~background
    background[2:-2, 2:7:2, 4] = True  # three lanes along axis 0,
    background[-3, 3, 4] = background[2, 5, 4] = True  # joined at one end and at the other
    if is_open:
        background[:2, 2, 4] = True
        expected = ~background
    volume = torch.where(background, 0, 1 + random_tensor(*background.shape)).movedim(0, axis)[None, None]
    assert torch.equal(field_of_view(volume), expected.movedim(0, axis)[None, None])


def test_voxels_that_meet_at_edges_are_not_joined() -> None:
    volume = 1 + random_tensor(1, 1, *SHAPE)
    volume[..., [0, -1]] = 0
    expected = volume != 0
    volume[..., 4, 4, 1] = 0  # beside the background,
    expected[..., 4, 4, 1] = False
    volume[..., 4, 5, 2] = volume[..., 5, 5, 3] = 0  # and two steps further at edges
    assert torch.equal(field_of_view(volume), expected)


def test_scaling_as_the_method_does_changes_no_field_of_view() -> None:
    volume = torch.where(wedge(), 1000 * random_tensor(1, 1, *SHAPE), -24.7)
    assert torch.equal(field_of_view(scale_to_one(volume)), field_of_view(volume))


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
