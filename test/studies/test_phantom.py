import numpy as np
import pytest
import torch
from torch import Tensor

from mcbo.core.field import warp
from mcbo.studies.phantom import make_phantom


def test_the_same_seed_draws_the_same_head() -> None:
    a, b, other = make_phantom((16, 18, 20)), make_phantom((16, 18, 20)), make_phantom((16, 18, 20), seed=1)
    assert torch.equal(a.fixed, b.fixed)
    assert torch.equal(a.displacement, b.displacement)
    assert not torch.equal(a.fixed, other.fixed)


@pytest.mark.parametrize("shape", [(8, 8, 8), (8, 31, 17), (40, 36, 44)])
def test_any_size(shape: tuple[int, int, int]) -> None:
    phantom = make_phantom(shape, wedge=True)
    for image in (phantom.fixed, phantom.cet1, phantom.t2):
        assert image.shape == (1, 1, *shape)
        assert torch.isfinite(image).all()
        assert image.min() >= 0
        assert image.max() > image.min()
    assert len(phantom.fixed_landmarks) >= 1


def test_landmarks_follow_the_displacement() -> None:
    phantom = make_phantom((40, 36, 44))
    index = tuple(phantom.fixed_landmarks.astype(int).T)
    moved = phantom.fixed_landmarks + phantom.displacement[0].numpy()[(slice(None), *index)].T
    assert np.allclose(moved, phantom.moving_landmarks, atol=1e-5)
    assert len(phantom.fixed_landmarks) > 8


def test_the_displacement_aligns_the_anatomy() -> None:
    """Warped by the truth, T2 resembles the ultrasound: both show sulci bright. Unwarped, less so."""
    phantom = make_phantom((64, 60, 68))

    def correlation(a: Tensor, b: Tensor) -> float:
        return float(np.corrcoef(a.flatten(), b.flatten())[0, 1])

    aligned = warp(phantom.t2, phantom.displacement)
    assert correlation(phantom.fixed, aligned) > correlation(phantom.fixed, phantom.t2) + 0.1


def test_amplitude_scales_the_displacement() -> None:
    still = make_phantom((16, 18, 20), amplitude=0)
    assert not still.displacement.any()
    assert np.array_equal(still.fixed_landmarks, still.moving_landmarks)


def test_a_wedge_hides_what_the_probe_does_not_see() -> None:
    seen = make_phantom((40, 36, 44), wedge=True).fixed > 0
    assert 0.3 < float(seen.float().mean()) < 0.8
    assert not seen[0, 0, 0, 0, 0]
