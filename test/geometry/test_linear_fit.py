"""Linear maps: exact where the data are linear, whoever else shouts; and by hand."""

import numpy as np
import pytest
import torch
from helpers import random_tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mcbo.core.errors import InputError
from mcbo.geometry.grid import apply_affine
from mcbo.geometry.linear_fit import Model, fit_landmarks, fit_linear
from mcbo.geometry.rigid import linear_displacement, rotation_of

SHAPE, OFFSET = (7, 9, 12), (3, 0, 5)


def cloud(count: int) -> NDArray[np.float64]:
    """Points in a box of 60×80×100 mm away from the origin."""
    return random_tensor(count, 3, seed=1).double().numpy() * (60, 80, 100) + (20, -300, 40)


def matrix_of(model: Model) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_of((10, -20, 15)).numpy()
    if model == "affine":
        matrix[:3, :3] = matrix[:3, :3] @ [[1.1, 0.05, 0], [0, 0.9, 0.1], [0, 0, 1.2]]
    matrix[:3, 3] = 5, -7, 30
    return matrix


@given(values=st.lists(st.floats(-2, 2), min_size=12, max_size=12))
@settings(max_examples=20)
def test_a_linear_displacement_is_found_within_its_mask_whatever_lies_outside(values: list[float]) -> None:
    coefficients = torch.tensor(values, dtype=torch.float64).view(1, 3, 4)
    displacement = linear_displacement(coefficients, SHAPE, offset=OFFSET)
    mask = torch.zeros((1, 1, *SHAPE), dtype=torch.bool)
    mask[..., 1:6, 2:8, 3:10] = True
    displacement = torch.where(mask, displacement, torch.tensor(99.0))
    assert torch.allclose(fit_linear(displacement, mask, offset=OFFSET), coefficients, atol=1e-4)


@pytest.mark.parametrize("mask", ["none", "plane"])
def test_a_mask_that_determines_no_map_does_not_count(mask: str) -> None:
    coefficients = random_tensor(1, 3, 4, seed=2).double()
    inside = torch.zeros((1, 1, *SHAPE), dtype=torch.bool)
    inside[..., 3] = mask == "plane"
    found = fit_linear(linear_displacement(coefficients, SHAPE, offset=OFFSET), inside, offset=OFFSET)
    assert torch.allclose(found, coefficients, atol=1e-4)


@pytest.mark.parametrize("model", ["rigid", "affine"])
@pytest.mark.parametrize(("count", "wrong"), [(4, 0), (8, 1), (12, 3), (40, 9)])
def test_landmarks_give_their_map_though_a_quarter_is_wrong(model: Model, count: int, wrong: int) -> None:
    fixed = cloud(count)
    moving = apply_affine(matrix_of(model), torch.from_numpy(fixed)).numpy()
    moving[:wrong] += [60, -40, 25]  # all alike, as a motion of its own
    fit = fit_landmarks(fixed, moving, model=model)
    assert np.allclose(fit.matrix, matrix_of(model), atol=1e-6)
    assert np.flatnonzero(~fit.fits).tolist() == list(range(wrong))
    assert np.allclose(fit.distances[:wrong], np.linalg.norm([60, -40, 25]), atol=1e-4)


def test_three_pairs_by_hand() -> None:
    """A quarter turn about the third axis, and 10 along it."""
    fixed = np.array([[1.0, 0, 0], [0, 2, 0], [0, 0, 3]])
    moving = np.array([[0.0, 1, 10], [-2, 0, 10], [0, 0, 13]])
    found = fit_landmarks(fixed, moving, model="rigid").matrix
    assert np.allclose(found, [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 10], [0, 0, 0, 1]])


def test_scatter_leaves_nobody_out() -> None:
    fixed = cloud(10)
    scattered = apply_affine(matrix_of("rigid"), torch.from_numpy(fixed)).numpy() + random_tensor(10, 3, seed=5).numpy()
    assert fit_landmarks(fixed, scattered, model="rigid").fits.sum() >= 9


@pytest.mark.parametrize(
    ("fixed", "moving", "model", "message"),
    [
        (cloud(2), cloud(2), "rigid", "at least 3 pairs of landmarks for an initial transform .rigid., found 2"),
        (cloud(3), cloud(3), "affine", "at least 4 pairs"),
        (cloud(5), cloud(4), "rigid", "as many fixed as moving landmarks, found 5 and 4"),
        (np.outer(np.arange(5.0), (1, 2, 3)), cloud(5), "rigid", "the fixed landmarks lie on a line"),
        (cloud(5), cloud(5) * (1, 1, 0), "affine", "the moving landmarks lie in a plane"),
        (np.ones((4, 3)), cloud(4), "rigid", "the fixed landmarks lie on a line"),
    ],
)
def test_pairs_that_determine_no_map_are_told(
    fixed: NDArray[np.float64], moving: NDArray[np.float64], model: Model, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fit_landmarks(fixed, moving, model=model)
