from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from geometry import FIXED, LPS, as_sitk, make_grid
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mcbo.core.errors import ShapeError
from mcbo.geometry.grid import Grid, apply_affine, displaced, displacement_of

if TYPE_CHECKING:
    import SimpleITK as sitk
else:
    sitk = pytest.importorskip("SimpleITK")

ANGLES = st.tuples(*[st.floats(-3.2, 3.2)] * 3)
SPACINGS = st.tuples(*[st.floats(0.05, 20)] * 3)
ORIGINS = st.tuples(*[st.floats(-1e4, 1e4)] * 3)
SHAPES = st.tuples(*[st.integers(1, 40)] * 3)
GRIDS = st.builds(make_grid, SHAPES, SPACINGS, ANGLES, ORIGINS)
POINTS = st.lists(st.tuples(*[st.floats(-100, 500)] * 3), min_size=1, max_size=5)


@settings(deadline=None)
@given(GRIDS, POINTS)
def test_there_and_back(grid: Grid, points: list[tuple[float, float, float]]) -> None:
    voxels = torch.tensor(points, dtype=torch.float64)
    assert torch.allclose(grid.to_voxels(grid.to_world(voxels)), voxels, atol=1e-6)


@settings(deadline=None)
@given(GRIDS, POINTS)
def test_world_is_what_itk_says(grid: Grid, points: list[tuple[float, float, float]]) -> None:
    image = as_sitk(np.zeros(grid.shape, np.uint8), grid)
    for point, world in zip(points, grid.to_world(torch.tensor(points, dtype=torch.float64)).numpy(), strict=True):
        assert np.allclose(LPS @ world, image.TransformContinuousIndexToPhysicalPoint(point), atol=1e-6)
    assert np.allclose(grid.spacing_mm, image.GetSpacing(), rtol=1e-9)


@settings(deadline=None)
@given(GRIDS, st.sets(st.integers(0, 2)), st.permutations((0, 1, 2)))
def test_flips_and_axes_in_another_order_leave_the_world_alone(grid: Grid, flipped: set[int], order: list[int]) -> None:
    turned = np.eye(4)[[*order, 3]]
    for axis in flipped:
        turned[axis, :3] *= -1
        turned[axis, 3] = grid.shape[axis] - 1
    other = Grid(tuple(grid.shape[int(np.argmax(np.abs(turned[:3, a])))] for a in range(3)), grid.affine @ turned)  # type: ignore[arg-type]
    corners = torch.cartesian_prod(*(torch.tensor([0.0, size - 1]) for size in other.shape))
    there = grid.to_voxels(other.to_world(corners))
    assert grid.inside(there).all()
    assert torch.allclose(there, apply_affine(turned, corners), atol=1e-6)
    assert sorted(other.spacing_mm) == pytest.approx(sorted(grid.spacing_mm))


@settings(deadline=None)
@given(GRIDS)
def test_orientation_is_what_itk_says(grid: Grid) -> None:
    directions = np.abs(grid.affine[:3, :3] / grid.spacing_mm)
    if np.sort(directions, axis=0)[-2].max() > 0.99 * directions.max(axis=0).min():
        return  # halfway between two: either is right
    if sorted(directions.argmax(axis=0)) != [0, 1, 2]:
        return  # two axes lead nearest to the same: a matter of taste
    named = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(
        as_sitk(np.zeros(grid.shape, np.uint8), grid).GetDirection()
    )
    assert grid.orientation == named


@pytest.mark.parametrize(("diagonal", "expected"), [((1, 1, 1), "RAS"), ((-2, -2, 3), "LPS"), ((1, -1, -1), "RPI")])
def test_orientations_known_by_heart(diagonal: tuple[float, float, float], expected: str) -> None:
    assert Grid((3, 4, 5), np.diag([*diagonal, 1.0])).orientation == expected
    assert Grid((3, 4, 5), np.diag([*diagonal, 1.0])[[2, 0, 1, 3]]).orientation == "".join(
        {0: "AP", 1: "SI", 2: "RL"}[axis][int(diagonal[axis] < 0)] for axis in range(3)
    )


def test_a_voxel_reaches_half_a_voxel_beyond_its_center() -> None:
    voxels = torch.tensor([[0, 0, 0], [-0.5, 0, 0], [-0.51, 0, 0], [37.5, 30.5, 25.5], [37, 30.6, 25]], dtype=torch.float64)
    assert FIXED.inside(voxels).tolist() == [True, True, False, True, False]


def test_slabs_cover_the_grid_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcbo.geometry.grid.SLAB_VOXELS", 3 * 31 * 26)
    whole = torch.cat([FIXED.voxels(first, last) for first, last in FIXED.slabs()])
    assert len(list(FIXED.slabs())) == 13
    assert torch.equal(whole, torch.from_numpy(np.indices(FIXED.shape).reshape(3, -1).T.astype(np.float64)))


def test_grids_match_up_to_a_files_rounding() -> None:
    assert FIXED.matches(Grid(FIXED.shape, FIXED.affine.astype(np.float32).astype(np.float64)))
    moved = FIXED.affine.copy()
    moved[0, 3] += 0.1
    assert not FIXED.matches(Grid(FIXED.shape, moved))
    assert not FIXED.matches(Grid((38, 31, 27), FIXED.affine))


def test_an_affine_motion_as_a_displacement_reaches_its_world_positions() -> None:
    motion = make_grid((1, 1, 1), (1.1, 0.9, 1.0), (0.1, 0.2, -0.3), (3.0, -4.0, 5.0)).affine
    field = displacement_of(motion, FIXED)
    reached = FIXED.to_world(displaced(FIXED, field, 0, 38))
    assert torch.allclose(reached, apply_affine(motion, FIXED.to_world(FIXED.voxels(0, 38))), atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((3, 0, 5), np.eye(4), r"expected three sizes of at least 1, got \(3, 0, 5\)"),
        ((3, 4, 5), np.eye(3), "expected a finite 4×4 affine"),
        ((3, 4, 5), np.full((4, 4), np.nan), "expected a finite 4×4 affine"),
        ((3, 4, 5), np.diag([1.0, 1.0, 0.0, 1.0]), "expected an affine that can be inverted"),
        ((3, 4, 5), np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "expected an affine that can be"),
        ((3, 4, 5), np.diag([1.0, 1.0, 1.0, 2.0]), "whose last row is 0 0 0 1"),
    ],
)
def test_what_is_no_grid_is_refused(shape: tuple[int, int, int], affine: NDArray[np.float64], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        Grid(shape, affine)


def test_small_voxels_are_no_singular_affine() -> None:
    assert Grid((3, 4, 5), np.diag([1e-5, 1e-5, 4e-5, 1.0])).spacing_mm == pytest.approx((1e-5, 1e-5, 4e-5))


def test_a_displacement_of_another_grid_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"expected the shape \(1, 3, 38, 31, 26\) of its grid, got \(1, 3, 4, 5, 6\)"):
        displaced(FIXED, torch.zeros(1, 3, 4, 5, 6), 0, 38)
