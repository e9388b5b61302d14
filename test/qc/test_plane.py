"""Planes on an anisotropic grid whose axes are permuted and flipped: the truth is in the affine."""

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcbo.qc.plane import cut, nearest_axes, place, planes_through

SHAPE = (9, 14, 11)
# Array axis 0 runs to the back, 3 mm; axis 1 to the head, 0.5 mm; axis 2 to the patient's right, 1 mm.
AFFINE = np.array([[0.0, 0, 1, -5], [-3, 0, 0, 40], [0, 0.5, 0, 2], [0, 0, 0, 1]])


def test_axes_and_letters_of_a_known_affine() -> None:
    assert nearest_axes(AFFINE)[:2] == ((2, 0, 1), (False, True, False))
    axial, coronal, sagittal = planes_through((4, 7, 3), shape=SHAPE, affine=AFFINE)
    assert (axial.name, axial.axis, axial.index, axial.letters) == ("axial", 1, 7, ("R", "L", "A", "P"))
    assert (coronal.name, coronal.axis, coronal.index, coronal.letters) == ("coronal", 0, 4, ("R", "L", "S", "I"))
    assert (sagittal.name, sagittal.axis, sagittal.index, sagittal.letters) == ("sagittal", 2, 3, ("A", "P", "S", "I"))
    assert axial.size_mm == (11 * 1.0, 9 * 3.0)
    assert coronal.size_mm == (11 * 1.0, 14 * 0.5)
    assert sagittal.size_mm == (9 * 3.0, 14 * 0.5)


@given(st.permutations((0, 1, 2)), st.tuples(*[st.sampled_from((-1, 1))] * 3), st.integers(0, 2))
def test_letters_stand_where_the_world_says(order: list[int], signs: tuple[int, ...], view: int) -> None:
    """World coordinates, cut as a picture, grow toward the letters R, A and S, whatever the array's axes are."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] * np.array(signs) * (3.0, 0.5, 1.25)
    plane = planes_through((4, 7, 3), shape=SHAPE, affine=affine)[view]
    voxels = np.moveaxis(np.indices(SHAPE), 0, -1)
    world = nibabel.affines.apply_affine(affine, voxels).astype(np.float32)
    left, right, top, bottom = plane.letters
    pictures = {letter: cut(plane, world[..., axis]) for axis, letters in enumerate(("RL", "AP", "SI")) for letter in letters}
    assert np.unique(pictures[{"axial": "S", "coronal": "A", "sagittal": "R"}[plane.name]]).size == 1
    for low, high, axis in ((left, right, 1), (bottom, top, 0)):
        grows = np.diff(pictures[high], axis=axis) * (1 if axis else -1)
        assert (grows > 0).all() if high in "RAS" else (grows < 0).all()
        assert {low, high} in ({"R", "L"}, {"A", "P"}, {"S", "I"})


def test_what_is_placed_lies_on_the_voxel_it_is_in() -> None:
    point = np.array([4, 7, 3])
    volume = np.zeros(SHAPE, dtype=np.float32)
    volume[tuple(point)] = 1
    for plane in planes_through(point.tolist(), shape=SHAPE, affine=AFFINE):
        row, column = np.argwhere(cut(plane, volume))[0]
        right, down = place(plane, point.astype(float))
        assert right == pytest.approx((column + 0.5) * plane.spacing_mm[1])
        assert down == pytest.approx((row + 0.5) * plane.spacing_mm[0])


def test_a_plane_out_of_one_voxel_layer_is_that_of_the_volume() -> None:
    volume = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    for plane in planes_through((4, 7, 3), shape=SHAPE, affine=AFFINE):
        layer = np.take(volume, [plane.index], axis=plane.axis)
        np.testing.assert_array_equal(cut(plane, layer), cut(plane, volume))


def test_an_oblique_grid_is_told() -> None:
    turn = np.radians(20)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    axes, flipped, degrees = nearest_axes(affine)
    assert (axes, flipped) == ((0, 1, 2), (False, False, False))
    assert degrees == pytest.approx(20)
