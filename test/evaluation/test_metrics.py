"""Metrics against distances, determinants and overlaps worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evaluation.metrics import (
    dice,
    displaced,
    hd95,
    landmark_errors,
    non_diffeomorphic_volume,
    regularity,
    warp_labels,
)

SHAPE = (12, 14, 37)  # more rows than a slab along no axis but the last; see the test of slabs


def linear_field(matrix: NDArray[np.float64], shape: tuple[int, int, int] = SHAPE) -> NDArray[np.float32]:
    """u(p) = matrix · p."""
    return np.moveaxis(np.tensordot(matrix, np.indices(shape).astype(np.float64), axes=1), 0, -1).astype(np.float32)


def test_errors_by_hand() -> None:
    """(3, 4, 0) voxels at 2×2×1 mm are 10 mm; the displacement takes away (3, 0, 0), which leaves 8 mm."""
    fixed, moving = np.array([[5.0, 5.0, 5.0]]), np.array([[8.0, 9.0, 5.0]])
    spacing = np.array([2.0, 2.0, 1.0])
    field = np.zeros((12, 12, 12, 3), dtype=np.float32)
    field[..., 0] = 3
    assert landmark_errors(fixed, moving, spacing) == pytest.approx([10])
    assert landmark_errors(displaced(fixed, field), moving, spacing) == pytest.approx([8])
    assert landmark_errors(fixed, moving, np.ones(3)) == pytest.approx([5])


def test_a_linear_field_has_one_determinant() -> None:
    matrix = np.array([[0.1, 0.2, 0.0], [0.0, -0.3, 0.1], [0.3, 0.0, 0.2]])
    found = regularity(linear_field(matrix))
    assert found.sd_log_jacobian == pytest.approx(0, abs=1e-3)  # positions up to 37 in float32
    assert found.folded_voxels == 0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_field_that_turns_an_axis_over_folds_everywhere(axis: int) -> None:
    matrix = np.zeros((3, 3))
    matrix[axis, axis] = -2  # p → −p along the axis: det −1
    found = regularity(linear_field(matrix))
    assert found.folded_fraction == 1
    assert found.folded_voxels == (12 - 4) * (14 - 4) * (37 - 4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_two_determinants_by_hand(axis: int) -> None:
    """Slope 0.5 in one half, 0 in the other: determinants 1.5 and 1, and 1.25 where the halves meet."""
    size = 41
    shape = [9, 9, 9]
    shape[axis] = size
    ramp = np.minimum(np.arange(size), 20) * 0.5
    field = np.zeros((*shape, 3), dtype=np.float32)
    field[..., axis] = np.expand_dims(ramp, tuple(a for a in range(3) if a != axis))
    logs = np.log([3 + 1.5] * 18 + [3 + 1.25] + [3 + 1.0] * 18)  # voxels 2 to 38
    assert regularity(field).sd_log_jacobian == pytest.approx(logs.std(), rel=1e-6)


@given(rows=st.integers(5, 40), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_slabs_give_what_the_whole_gives(rows: int, seed: int) -> None:
    field = np.random.default_rng(seed).uniform(-2, 2, (rows, 6, 7, 3)).astype(np.float32)
    components = (field[..., axis].astype(np.float64) for axis in range(3))
    gradients = np.stack([np.stack(tuple(np.gradient(component)), axis=-1) for component in components], axis=-2)
    determinant = np.linalg.det(gradients + np.eye(3))[2:-2, 2:-2, 2:-2]
    found = regularity(field)
    assert found.folded_voxels == (determinant <= 0).sum()
    assert found.sd_log_jacobian == pytest.approx(np.log(np.clip(determinant + 3, 1e-9, 1e9)).std(), rel=1e-6)


def test_a_mask_decides_where_smoothness_is_looked_at() -> None:
    field = np.zeros((*SHAPE, 3), dtype=np.float32)
    field[:, :, 20:, 2] = np.random.default_rng(0).uniform(-1, 1, (12, 14, 17))
    mask = np.zeros(SHAPE, dtype=bool)
    mask[:, :, :19] = True
    assert regularity(field, mask).sd_log_jacobian == 0
    assert regularity(field).sd_log_jacobian > 0
    assert math.isnan(regularity(field, np.zeros(SHAPE, dtype=bool)).sd_log_jacobian)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_field_that_turns_an_axis_over_is_all_non_diffeomorphic(axis: int) -> None:
    matrix = np.zeros((3, 3))
    assert non_diffeomorphic_volume(linear_field(matrix)) == 0
    matrix[axis, axis] = -2  # every tetrahedron keeps its volume and changes its sign
    assert non_diffeomorphic_volume(linear_field(matrix)) == pytest.approx(100)
    matrix[axis, axis] = -3
    assert non_diffeomorphic_volume(linear_field(matrix)) == pytest.approx(200)


def test_a_voxel_that_jumps_over_its_neighbor_by_hand() -> None:
    """By 1.5 along an axis; det J of central differences sees nothing at the voxel itself.

    Of the cubes' corners, those at the voxel toward its neighbor (four) and at the neighbor toward the voxel (four) have the
    determinant −0.5. Those in the middle of a cube have 2 ± 1.5, so none turns over: 8 · 0.5 / 12 of 10 · 10 · 10 voxels.
    """
    field = np.zeros((12, 12, 12, 3), dtype=np.float32)
    field[5, 5, 5, 1] = 1.5
    assert non_diffeomorphic_volume(field) == pytest.approx(100 * 8 * 0.5 / 12 / 1000)
    field[5, 5, 5, 1] = 0.9
    assert non_diffeomorphic_volume(field) == 0


def volume_by_tetrahedra(field: NDArray[np.float32]) -> float:
    """The same voxel by voxel: the corners of its eight cubes, and the middles of the first and the last of them."""
    position = np.moveaxis(np.indices(field.shape[:3]), 0, -1) + field.astype(np.float64)
    total = 0.0
    for p in np.ndindex(*(n - 2 for n in field.shape[:3])):
        here = np.array(p) + 1
        tetrahedra = [np.diag(signs) for signs in np.ndindex(2, 2, 2)]
        tetrahedra = [2 * t - np.eye(3, dtype=int) for t in tetrahedra]
        tetrahedra += [sign * np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]]) for sign in (1, -1)]
        for corners in tetrahedra:
            edges = np.array([position[tuple(here + c)] - position[tuple(here)] for c in corners])
            total += max(0.0, -np.linalg.det(edges) * np.sign(np.linalg.det(corners))) / 12
    return total


@given(seed=st.integers(0, 99), size=st.floats(0.1, 2))
@settings(deadline=None, max_examples=8)
def test_non_diffeomorphic_volume_by_tetrahedra(seed: int, size: float) -> None:
    field = np.random.default_rng(seed).uniform(-size, size, (7, 5, 6, 3)).astype(np.float32)
    assert non_diffeomorphic_volume(field) == pytest.approx(100 * volume_by_tetrahedra(field) / (5 * 3 * 4), abs=1e-9)
    mask = np.zeros((7, 5, 6), dtype=bool)
    mask[3, 2, 2] = True
    at_one = non_diffeomorphic_volume(field, mask)
    assert at_one == pytest.approx(100 * volume_by_tetrahedra(field[2:5, 1:4, 1:4]), abs=1e-9)


def test_of_no_voxel_there_is_no_volume() -> None:
    assert math.isnan(non_diffeomorphic_volume(np.zeros((2, 9, 9, 3), dtype=np.float32)))
    assert math.isnan(non_diffeomorphic_volume(np.zeros((9, 9, 9, 3), dtype=np.float32), np.zeros((9, 9, 9), dtype=bool)))


def cube(start: int, size: int = 4) -> NDArray[np.int32]:
    labels = np.zeros((20, 21, 22), dtype=np.int32)
    labels[start : start + size, 6:10, 7:11] = 3
    return labels


def test_labels_follow_the_displacement() -> None:
    field = np.zeros((20, 21, 22, 3), dtype=np.float32)
    field[..., 0] = 2.4  # to the nearest voxel: 2
    assert np.array_equal(warp_labels(cube(10), field), cube(8))
    assert warp_labels(cube(10), field + 100).max() == 0


def test_overlap_and_surface_distance_by_hand() -> None:
    """Cubes of 4 shifted by 2 share half: Dice 0.5. Their far faces are 2 voxels apart."""
    assert dice(cube(5), cube(7), 3) == pytest.approx(0.5)
    assert hd95(cube(5), cube(7), 3) == pytest.approx(2.0)
    assert dice(cube(5), cube(5), 3) == 1
    assert hd95(cube(5), cube(5), 3) == 0
    assert math.isinf(hd95(cube(5), cube(5), 4))
