import numpy as np
import pytest
import torch
from helpers import TOLERANCE, constant_field, random_tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from evaluation.metrics import regularity
from mcbo.core.errors import ShapeError
from mcbo.core.field import box_mean, determinants, half_pixel_stretch, resize, sample, sample_known, warp

SHAPE = (7, 9, 11)


def test_warp_by_whole_voxels_takes_the_voxel_the_displacement_points_to(device: torch.device) -> None:
    volume = random_tensor(1, 2, *SHAPE).to(device)
    warped = warp(volume, constant_field((1, -2, 3), SHAPE).to(device))
    expected = torch.zeros_like(volume)
    expected[:, :, :6, 2:, :8] = volume[:, :, 1:, :7, 3:]
    assert torch.allclose(warped, expected, atol=TOLERANCE["rounding"])


def test_warp_agrees_with_simpleitk() -> None:
    rng = np.random.default_rng(3)
    image = rng.random(SHAPE, dtype=np.float32)
    field = rng.uniform(-2, 2, (3, *SHAPE)).astype(np.float32)
    sitk = pytest.importorskip("SimpleITK")
    # SimpleITK indexes x, y, z = axes 2, 1, 0 of the array it is made from, and vectors likewise.
    vectors = sitk.GetImageFromArray(field[::-1].transpose(1, 2, 3, 0).astype(np.float64), isVector=True)
    expected = sitk.GetArrayFromImage(
        sitk.Resample(sitk.GetImageFromArray(image), sitk.DisplacementFieldTransform(vectors), sitk.sitkLinear, -1.0)
    )
    found = warp(torch.from_numpy(image)[None, None], torch.from_numpy(field)[None])[0, 0].numpy()
    limits = np.array(SHAPE).reshape(3, 1, 1, 1) - 1
    positions = np.indices(SHAPE) + field
    inside = ((positions >= 0) & (positions <= limits)).all(axis=0)  # outside, SimpleITK repeats the border and we fade to 0
    assert inside.mean() > 0.5
    assert np.abs(found - expected)[inside].max() < TOLERANCE["rounding"]


def test_warp_refuses_a_field_of_another_grid() -> None:
    with pytest.raises(ShapeError, match=r"expected .*\(1, 3, 7, 9, 11\), got \(1, 3, 7, 9, 10\)"):
        warp(torch.zeros(1, 1, *SHAPE), torch.zeros(1, 3, 7, 9, 10))


def test_a_box_is_sampled_as_the_whole_is(device: torch.device) -> None:
    volume, u = random_tensor(1, 2, *SHAPE).to(device), (6 * random_tensor(1, 3, *SHAPE, seed=1) - 3).to(device)
    found = sample(volume, u[..., 2:6, 1:9, 4:10], offset=(2, 1, 4), outside="zeros")
    assert torch.allclose(found, warp(volume, u)[..., 2:6, 1:9, 4:10], atol=TOLERANCE["rounding"])


def test_outside_there_are_zeros_or_the_nearest_voxel(device: torch.device) -> None:
    """A box that begins two voxels before the grid and ends beyond it, moved by whole voxels."""
    volume = random_tensor(1, 2, *SHAPE)
    u = constant_field((1, -2, 0), (10, 12, 15))
    padding = [2, 2, 4, 0, 1, 2]  # of the last axis first; axis 1 ends two voxels before its border
    expected = functional.pad(volume, padding)[..., :12, :]
    repeated = functional.pad(volume, padding, mode="replicate")[..., :12, :]
    kwargs = {"offset": (-2, -2, -2)}
    for outside, wanted in (("zeros", expected), ("border", repeated)):
        found = sample(volume.to(device), u.to(device), outside=outside, **kwargs)  # type: ignore[arg-type]
        assert torch.allclose(found.cpu(), wanted, atol=TOLERANCE["rounding"])


def test_one_volume_is_sampled_along_several_displacements_and_where_it_is_known(device: torch.device) -> None:
    volume, u = random_tensor(1, 2, *SHAPE).to(device), (6 * random_tensor(3, 3, *SHAPE, seed=1) - 3).to(device)
    known = volume > 0.3
    found, seen = sample_known(volume, known, u, offset=(0, 0, 0))
    assert found.shape == seen.shape == (3, 2, *SHAPE)
    for one, its, along in zip(found, seen, u.unsqueeze(1), strict=True):
        assert torch.equal(one, sample(volume, along, offset=(0, 0, 0), outside="border")[0])
        assert torch.equal(its, warp(known.float(), along)[0] > 0.5)


def test_stretch_is_n_over_n_minus_one_per_axis() -> None:
    stretched = half_pixel_stretch(constant_field((6, 8, 10), SHAPE))
    assert torch.allclose(stretched, constant_field((7, 9, 11), SHAPE))
    assert torch.isfinite(half_pixel_stretch(torch.ones(1, 3, 1, 2, 3))).all()


def test_resize_scales_a_constant_field_exactly_and_keeps_a_linear_one_linear() -> None:
    assert torch.allclose(
        resize(constant_field((1, 2, 3), (4, 5, 6)), (8, 15, 24), scale=2), constant_field((2, 4, 6), (8, 15, 24))
    )
    coarse = torch.arange(8.0).view(1, 1, 8, 1, 1).expand(1, 3, 8, 4, 4)
    fine = resize(coarse, (16, 4, 4), scale=1)[0, 0, :, 0, 0]
    assert torch.allclose(fine[2:-2].diff(), torch.full((11,), 0.5))


@given(
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    size=st.sampled_from([1, 3, 5]),
    rounds=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_box_mean_equals_padded_average_pooling(shape: tuple[int, int, int], size: int, rounds: int, seed: int) -> None:
    tensor = random_tensor(1, 2, *shape, seed=seed)
    expected = tensor
    for _ in range(rounds):
        expected = functional.avg_pool3d(functional.pad(expected, [size // 2] * 6), size, stride=1)
    before = tensor.clone()
    assert torch.allclose(box_mean(tensor, size=size, rounds=rounds), expected, atol=TOLERANCE["rounding"])
    assert torch.equal(tensor, before)


def test_box_mean_is_its_own_adjoint() -> None:
    a, b = random_tensor(1, 3, *SHAPE, seed=1), random_tensor(1, 3, *SHAPE, seed=2)
    left, right = (box_mean(a, size=5, rounds=3) * b).sum(), (a * box_mean(b, size=5, rounds=3)).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-5)


def test_a_linear_map_has_its_determinant_everywhere() -> None:
    matrix = torch.tensor([[0.1, 0.3, -0.2], [0.05, -0.4, 0.1], [0.2, 0.0, 0.25]], dtype=torch.float64)
    positions = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (5, 7, 6)), indexing="ij"))
    displacement = torch.einsum("ab,bijk->aijk", matrix, positions)[None]
    expected = torch.linalg.det(matrix + torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(determinants(displacement), expected.expand(1, 1, 5, 7, 6))


def test_folds_are_those_that_the_judge_counts() -> None:
    displacement = 3 * random_tensor(1, 3, 9, 12, 10, seed=3)
    inner = determinants(displacement)[0, 0, 2:-2, 2:-2, 2:-2]
    judged = regularity(displacement[0].movedim(0, -1).numpy())
    assert int((inner <= 0).sum()) == judged.folded_voxels > 0
    spread = np.log(np.clip(inner.numpy() + 3, 1e-9, None)).std()
    assert abs(float(spread) - judged.sd_log_jacobian) < TOLERANCE["rounding"]
