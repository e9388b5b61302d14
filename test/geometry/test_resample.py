from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from geometry import FIXED, MOVING, as_itk_transform, as_sitk, blobs, smooth_field
from helpers import constant_field
from hypothesis import given, settings
from hypothesis import strategies as st

from mcbo.core.errors import ShapeError
from mcbo.geometry.grid import Grid
from mcbo.geometry.resample import Mode, resample

if TYPE_CHECKING:
    import SimpleITK as sitk
else:
    sitk = pytest.importorskip("SimpleITK")

FIELD = smooth_field(FIXED, largest=3)


def itk_resample(array: torch.Tensor, interpolator: int, *, outside: float) -> torch.Tensor:
    resampler = sitk.ResampleImageFilter()
    resampler.SetReferenceImage(as_sitk(np.zeros(FIXED.shape, np.uint8), FIXED))
    resampler.SetTransform(as_itk_transform(FIELD, FIXED))
    resampler.SetInterpolator(interpolator)
    resampler.SetDefaultPixelValue(outside)
    result = resampler.Execute(as_sitk(array[0, 0].numpy(), MOVING))
    return torch.from_numpy(sitk.GetArrayFromImage(result).transpose(2, 1, 0).copy())[None, None]


def test_images_as_itk_resamples_them() -> None:
    volume = blobs(MOVING)
    ours = resample(volume, MOVING, FIXED, displacement=FIELD, outside=-7)
    theirs = itk_resample(volume, sitk.sitkLinear, outside=-7)
    assert ((ours == -7) != (theirs == -7)).float().mean() < 1e-4
    both = (ours != -7) & (theirs != -7)
    assert 0.3 < both.float().mean() < 1
    assert (ours - theirs)[both].abs().max() <= 0.005 * 100


@pytest.mark.parametrize(("mode", "interpolator"), [("nearest", sitk.sitkNearestNeighbor), ("label", sitk.sitkLabelLinear)])
def test_labels_as_itk_resamples_them(mode: Mode, interpolator: int) -> None:
    labels = (blobs(MOVING) // 20).int()
    ours = resample(labels, MOVING, FIXED, displacement=FIELD, mode=mode)
    assert ours.dtype == torch.int32
    assert len(set(ours.flatten().tolist())) >= 4
    assert (ours != itk_resample(labels, interpolator, outside=0)).float().mean() < 1e-3


def test_a_known_shift_between_grids_of_one_orientation() -> None:
    volume = blobs(MOVING)
    shifted = MOVING.affine.copy()
    shifted[:3, 3] += shifted[:3, :3] @ (2, 1, 3)
    result = resample(volume, MOVING, Grid((20, 30, 25), shifted), displacement=constant_field((1, 2, 0), (20, 30, 25)))
    assert torch.allclose(result, volume[:, :, 3:23, 3:33, 3:28], atol=1e-3)


@pytest.mark.parametrize("mode", ["nearest", "label"])
def test_labels_beyond_float32_are_kept(mode: Mode) -> None:
    labels = torch.arange(4 * 5 * 6).view(1, 1, 4, 5, 6) + (1 << 40)
    grid = Grid((4, 5, 6), FIXED.affine)
    assert torch.equal(resample(labels, grid, grid, mode=mode), labels)


@settings(deadline=None)
@given(st.floats(0.01, 0.99), st.integers(0, 2**32 - 1))
def test_the_label_with_the_largest_trilinear_share_wins(part: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (1, 1, 4, 5, 6), generator=generator)
    grid = Grid((4, 5, 6), np.eye(4))
    field = constant_field((part, 0.3, -0.2), grid.shape)
    shares = torch.stack([resample((labels == n).float(), grid, grid, displacement=field) for n in range(3)])
    chosen = resample(labels, grid, grid, displacement=field, mode="label")
    inside = resample(torch.ones_like(labels), grid, grid, displacement=field, mode="nearest") == 1
    assert (shares.gather(0, chosen[None])[0] >= shares.amax(0) - 1e-5)[inside].all()


def test_of_equal_shares_the_smallest_label() -> None:
    labels = torch.tensor([5, 2]).view(1, 1, 2, 1, 1)
    grid = Grid((2, 1, 1), np.eye(4))
    assert resample(labels, grid, grid, displacement=constant_field((0.5, 0, 0), (2, 1, 1)), mode="label")[0, 0, 0, 0, 0] == 2


def test_slabs_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = resample(blobs(MOVING), MOVING, FIXED, displacement=FIELD)
    monkeypatch.setattr("mcbo.geometry.grid.SLAB_VOXELS", 5000)
    assert torch.equal(resample(blobs(MOVING), MOVING, FIXED, displacement=FIELD), whole)


def test_channels_are_kept() -> None:
    volume = torch.cat([blobs(MOVING), blobs(MOVING, seed=1)], dim=1)
    both = resample(volume, MOVING, FIXED)
    assert torch.equal(both[:, 1:], resample(volume[:, 1:], MOVING, FIXED))


def test_a_volume_of_another_grid_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"expected a volume of shape \(1, 1, 29, 41, 35\), got \(1, 1, 38, 31, 26\)"):
        resample(blobs(FIXED), MOVING, FIXED)
    with pytest.raises(ShapeError, match="expected a volume of shape"):
        resample(torch.zeros(1, 2, *MOVING.shape), MOVING, FIXED, mode="label")
