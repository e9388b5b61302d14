"""The compiled kernels of the cascade against the torch reference, on odd shapes, shorter and longer than a vector."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TOLERANCE, random_tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcbo.core.types import Kernels, Shape
from mcbo.geometry.cells import cover_of
from mcbo.kernels import REFERENCE, simd
from mcbo.kernels.cpu import COMPILED, cosine
from mcbo.kernels.simd import LANES, compiled, exponential, load, store
from mcbo.steps.mind import WholeFeatures
from mcbo.steps.rigid_refinement import RigidTerms

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 9), st.integers(1, 37))
SPACINGS = st.integers(1, 6)
few = partial(settings, deadline=None, derandomize=True)


def agree(compute: Callable[[Kernels], Tensor | tuple[Tensor, ...]], *, tolerance: float = TOLERANCE["rounding"]) -> None:
    """Whether both kernels find the same, up to a share of the largest magnitude."""
    found, expected = (as_tuple(compute(kernels)) for kernels in (COMPILED, REFERENCE))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        assert torch.isfinite(ours).all()
        largest = float(theirs.double().abs().max()) if theirs.numel() else 0.0
        assert float((ours.double() - theirs.double()).abs().max()) <= tolerance * max(largest, 1e-6)


def as_tuple(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else found


def shares(*shape: int, seed: int) -> Tensor:
    """0, ¼, ½, ¾ or 1: sums of them are exact, so that thresholds are met by all alike."""
    return (5 * random_tensor(*shape, seed=seed)).floor() / 4


def mind_of(volumes: Tensor, options: dict[str, Any], kernels: Kernels) -> Tensor:
    return kernels.mind_ssc(volumes, **options)


def test_the_exponential_is_that_of_numpy() -> None:
    @compiled
    def fill(values: np.ndarray, result: np.ndarray) -> None:
        for z in range(0, len(values), LANES):
            store(result, z, exponential(load(values, z)))

    values = np.concatenate([-np.logspace(-8, 1.93, 1024), np.zeros(16)]).astype(np.float32)
    result = np.empty_like(values)
    fill(values, result)
    expected = np.exp(values.astype(np.float64))
    assert np.abs(result / expected - 1).max() < 3e-7
    assert (result[-16:] == 1).all()


@given(shape=SHAPES, radius=st.integers(1, 4), dilation=st.integers(1, 3), batch=st.integers(1, 3))
@few(max_examples=30)
def test_features_of_several_images(shape: Shape, radius: int, dilation: int, batch: int) -> None:
    """Each scaled by itself, however large the others are."""
    volumes = random_tensor(batch, 1, *shape) * torch.tensor([1e-3, 1.0, 1e9][:batch]).view(-1, 1, 1, 1, 1)
    mind = {"radius": radius, "dilation": dilation}
    agree(lambda k: k.mind_ssc(volumes, **mind), tolerance=TOLERANCE["device"])
    agree(lambda k: k.variance_of(volumes, **mind), tolerance=TOLERANCE["device"])
    own = REFERENCE.variance_of(volumes, **mind)
    for variance in (1e3 * own, own.amax(dim=0, keepdim=True)):
        options: dict[str, Any] = {**mind, "mean_variance": variance}
        agree(partial(mind_of, volumes, options), tolerance=TOLERANCE["device"])


def test_features_of_large_patches_and_of_tiny_values() -> None:
    volume = random_tensor(1, 1, 9, 8, 32)
    agree(lambda k: k.mind_ssc(volume, radius=20, dilation=1), tolerance=TOLERANCE["device"])
    tiny = 1e-39 * volume
    agree(lambda k: k.mind_ssc(tiny, radius=1, dilation=1), tolerance=TOLERANCE["device"])
    variance = REFERENCE.variance_of(tiny, radius=1, dilation=1)
    assert variance > 0
    agree(lambda k: k.mind_ssc(tiny, radius=1, dilation=1, mean_variance=variance), tolerance=TOLERANCE["device"])


def test_one_mask_for_several_images() -> None:
    fixed, moved, known = random_tensor(1, 12, 5, 6, 20), random_tensor(3, 12, 5, 6, 20, seed=1), shares(1, 1, 5, 6, 20, seed=2)
    agree(lambda k: k.similarities(fixed, moved, known), tolerance=TOLERANCE["device"])


def test_other_numbers_than_float32_are_refused() -> None:
    features = random_tensor(1, 12, 5, 6, 20).double()
    with pytest.raises(Exception, match="expected an array of float32, got float64"):
        COMPILED.data_terms(features, features)


@given(shape=SHAPES, radius=st.integers(1, 3), spacing=SPACINGS, batch=st.integers(1, 2), seed=st.integers(0, 9))
@few(max_examples=30)
def test_pooled_features(shape: Shape, radius: int, spacing: int, batch: int, seed: int) -> None:
    volumes, known = random_tensor(batch, 1, *shape, seed=seed), shares(batch, 1, *shape, seed=seed + 1)
    pooled = {"radius": radius, "dilation": 2, "spacing": (spacing, 1, min(spacing, shape[2]))}
    agree(lambda k: k.pooled_mind(volumes, known, **pooled), tolerance=TOLERANCE["device"])
    variance = torch.tensor([20.0], dtype=torch.float64)
    agree(lambda k: k.pooled_mind(volumes, known, **pooled, mean_variance=variance), tolerance=TOLERANCE["device"])


@given(shape=SHAPES, radius=st.integers(1, 3), spacing=SPACINGS, seed=st.integers(0, 9))
@few(max_examples=30)
def test_streamed_features(shape: Shape, radius: int, spacing: int, seed: int) -> None:
    """Of the whole image and of a box in it: those of a part are those of the whole there."""
    volume, mask = random_tensor(1, 1, *shape, seed=seed), random_tensor(1, 1, *shape, seed=seed + 1) > 0.4
    assert COMPILED.streamed_mind is not None
    streamed = COMPILED.streamed_mind(volume, radius=radius, dilation=1)
    whole = WholeFeatures(REFERENCE.mind_ssc(volume, radius=radius, dilation=1), REFERENCE.pool_known)
    for found, expected in zip(streamed.pooled_known(mask, spacing), whole.pooled_known(mask, spacing), strict=True):
        assert torch.allclose(found, expected, atol=TOLERANCE["device"])
    if min(shape) >= spacing:
        (height, width, depth) = shape
        box = ((height % spacing, height), (0, width), (0, depth))
        assert torch.allclose(streamed.pooled(box, spacing), whole.pooled(box, spacing), atol=TOLERANCE["device"])


@given(shape=SHAPES, channels=st.integers(1, 4), spacing=SPACINGS, is_weighted=st.booleans())
@few(max_examples=30)
def test_means_over_cells(shape: Shape, channels: int, spacing: int, is_weighted: bool) -> None:
    volume = random_tensor(1, channels, *shape)
    weights = shares(1, 1, *shape, seed=1) if is_weighted else None
    agree(lambda k: k.pool(volume, weights, spacing))


@given(shape=SHAPES, spacing=SPACINGS)
@few(max_examples=30)
def test_each_voxel_counts_once_in_the_cells_that_cover_it(shape: Shape, spacing: int) -> None:
    for size, starts, taps in zip(shape, cover_of(shape, spacing).starts, cover_of(shape, spacing).taps, strict=True):
        counts = np.zeros(size)
        for start in starts:
            for step, tap in enumerate(taps):
                if 0 <= start + step < size:
                    counts[start + step] += tap
        assert (counts == 1).all()
        assert starts[0] + starts[-1] + len(taps) - 1 == size - 1  # centered on the volume


@given(shape=SHAPES, onto=SHAPES, channels=st.sampled_from([1, 3, 12]), flags=st.integers(1, 2), reach=st.floats(0.1, 20))
@few(max_examples=40)
def test_sampling(shape: Shape, onto: Shape, channels: int, flags: int, reach: float) -> None:
    """Far beyond the volume, too; two displacements of one volume."""
    volume, u = random_tensor(1, channels, *shape), reach * (2 * random_tensor(2, 3, *onto, seed=1) - 1)
    at_random = random_tensor(1, flags, *shape, seed=2)
    half = torch.arange(shape[2]).expand(1, flags, *shape) < shape[2] / 2
    for known in (at_random > 0.5, at_random, half, half.float()):
        ours, theirs = (k.sample_known(volume, known, u, offset=(2, 0, 1), share=0.4) for k in (COMPILED, REFERENCE))
        assert torch.allclose(ours[0], theirs[0], atol=1e-4)
        assert (ours[1] != theirs[1]).float().mean() < 0.01  # where it is 0.4 to rounding


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_any_whole_number_but_0_in_a_mask_is_known(dtype: torch.dtype) -> None:
    volume, u = random_tensor(1, 1, 5, 6, 19), random_tensor(1, 3, 5, 6, 19, seed=1)
    known = random_tensor(1, 1, 5, 6, 19, seed=2) > 0.3
    values, seen = COMPILED.sample_known(volume, 64 * known.to(dtype), u, offset=(0, 0, 0))
    expected, where = REFERENCE.sample_known(volume, known, u, offset=(0, 0, 0))
    assert torch.allclose(values, expected, atol=1e-6)
    assert torch.equal(seen, where)


def test_sampling_where_there_is_no_number() -> None:
    """No displacement may read beyond the volume."""
    volume, known = random_tensor(1, 1, 5, 6, 7), torch.ones(1, 1, 5, 6, 7, dtype=torch.bool)
    for wrong in (float("nan"), float("inf"), -1e30, 1e30):
        values, seen = COMPILED.sample_known(volume, known, torch.full((1, 3, 4, 5, 6), wrong), offset=(0, 0, 0))
        assert ((values >= 0) & (values <= 1)).all()
        assert not seen.any()


def test_what_is_too_large_for_the_indices_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, known = random_tensor(1, 1, 5, 6, 7), torch.ones(1, 1, 5, 6, 7)
    u, first = 2 * random_tensor(1, 3, 5, 6, 7, seed=1) - 1, random_tensor(1, 3, 5, 6, 7, seed=2)
    monkeypatch.setattr(simd, "MOST_PLACES", 5 * 6 * 7)
    values = [k.sample_known(volume, known, u, offset=(0, 0, 0))[0] for k in (COMPILED, REFERENCE)]
    values += [k.compose(u, first, torch.eye(3).double(), first) for k in (COMPILED, REFERENCE)]
    values += [k.make_consistent(u, first, rounds=2, stretch=True)[0] for k in (COMPILED, REFERENCE)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(values[::2], values[1::2], strict=True))


@given(shape=SHAPES, reach=st.floats(0.1, 20))
@few(max_examples=30)
def test_composition(shape: Shape, reach: float) -> None:
    u, linear, first = (reach * (2 * random_tensor(1, 3, *shape, seed=seed) - 1) for seed in (1, 2, 3))
    matrix = 2 * random_tensor(3, 3).double() - 1
    agree(lambda k: k.compose(u, linear, matrix, first), tolerance=1e-4)


@given(cells=SHAPES, shape=SHAPES, spacing=SPACINGS)
@few(max_examples=30)
def test_cells_to_voxels(cells: Shape, shape: Shape, spacing: int) -> None:
    u = random_tensor(1, 3, *cells)
    agree(lambda k: k.to_voxels(u, shape, spacing))


@given(shape=SHAPES, batch=st.integers(1, 3), offset=st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)))
@few(max_examples=20)
def test_linear_displacements(shape: Shape, batch: int, offset: Shape) -> None:
    """To the last bit."""
    coefficients = 2 * random_tensor(batch, 3, 4).double() - 1
    ours, theirs = (k.linear_displacement(coefficients, shape, offset=offset) for k in (COMPILED, REFERENCE))
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=0)


@given(shape=SHAPES, reach=st.integers(1, 5), seed=st.integers(0, 9))
@few(max_examples=30)
def test_filling(shape: Shape, reach: int, seed: int) -> None:
    volume, mask = random_tensor(1, 1, *shape, seed=seed), random_tensor(1, 1, *shape, seed=seed + 1) > 0.9
    agree(lambda k: k.fill_outside(volume, mask, reach=reach))
    for whole in (torch.zeros_like(mask), torch.ones_like(mask)):
        assert COMPILED.fill_outside(volume, whole, reach=reach) is volume


@pytest.mark.parametrize("reach", [254, 255, 298])
def test_filling_farther_than_a_byte_counts(reach: int) -> None:
    volume, mask = random_tensor(1, 1, 3, 2, 300), torch.zeros((1, 1, 3, 2, 300), dtype=torch.bool)
    mask[..., 0] = True
    agree(lambda k: k.fill_outside(volume, mask, reach=reach))


@given(shape=SHAPES, batch=st.integers(1, 3), seed=st.integers(0, 9))
@few(max_examples=30)
def test_similarities(shape: Shape, batch: int, seed: int) -> None:
    fixed, moved = random_tensor(1, 12, *shape, seed=seed), random_tensor(batch, 12, *shape, seed=seed + 1)
    known = shares(batch, 1, *shape, seed=seed + 2)
    found, expected = (k.similarities(fixed, moved, known) for k in (COMPILED, REFERENCE))
    assert torch.allclose(found, expected, atol=TOLERANCE["device"])


@given(shape=SHAPES, batch=st.integers(1, 3), channels=st.sampled_from([1, 12]))
@few(max_examples=30)
def test_terms_of_gauss_newton(shape: Shape, batch: int, channels: int) -> None:
    fixed, moved = random_tensor(1, channels, *shape, seed=1), random_tensor(batch, channels, *shape, seed=2)
    agree(lambda k: k.data_terms(fixed, moved))


@given(shape=SHAPES, channels=st.sampled_from([1, 12]), seed=st.integers(0, 9))
@few(max_examples=30)
def test_information(shape: Shape, channels: int, seed: int) -> None:
    fixed = random_tensor(1, channels, *shape, seed=seed)
    moved = 0.6 * fixed + 0.4 * random_tensor(1, channels, *shape, seed=seed + 1)
    known = random_tensor(1, 1, *shape, seed=seed + 2) > 0.3
    found, expected = (k.information_of(fixed, moved, known) for k in (COMPILED, REFERENCE))
    assert found.known_cells == expected.known_cells
    assert found.correlation == pytest.approx(expected.correlation, abs=1e-4)
    assert found.correlation_cells == pytest.approx(expected.correlation_cells, rel=1e-3)


@given(shape=SHAPES, batch=st.integers(1, 2), modalities=st.integers(1, 2))
@few(max_examples=20)
def test_equations_of_a_rigid_motion(shape: Shape, batch: int, modalities: int) -> None:
    terms = [
        RigidTerms(
            random_tensor(batch, 6, *shape, seed=seed),
            random_tensor(batch, 3, *shape, seed=seed + 1),
            shares(batch, 1, *shape, seed=seed + 2),
            random_tensor(batch, 1, *shape, seed=seed + 3),
        )
        for seed in range(modalities)
    ]
    ends, cell_mm = 2 * random_tensor(batch, 3, 4).double() - 1, torch.tensor([0.5, 1.0, 3.0]).double()
    agree(lambda k: k.rigid_equations(ends, cell_mm, terms))


@given(shape=SHAPES, bending=st.sampled_from([0.1, 2.0]))
@few(max_examples=20)
def test_bending_and_its_solution(shape: Shape, bending: float) -> None:
    hessian = random_tensor(6, *shape, seed=1)
    hessian[[0, 3, 5]] += 1.0
    hessian[[1, 2, 4]] *= 0.2
    field = random_tensor(1, 3, *shape, seed=2)
    agree(lambda k: k.bent(hessian, bending)(field))
    agree(
        lambda k: k.conjugate_gradient(k.bent(hessian, bending), field, lambda residual: residual / 2, rounds=10),
        tolerance=TOLERANCE["device"],
    )


@given(shape=SHAPES)
@few(max_examples=30)
def test_cosines_in_blocks(shape: Shape) -> None:
    """Each size even or odd, down to 1, where there is no odd cosine."""
    field = random_tensor(1, 3, *shape) - 0.5

    def divided(kernels: Kernels) -> Tensor:
        transform = kernels.cosine_transform(shape, like=field)
        divide = transform.solver(transform.symbol(0.3, bending=0.6))
        return torch.cat([divide(field), divide(2 * field)])  # twice, as what it works in is used again

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cosine, "FEW_CELLS", 0)
        agree(divided, tolerance=1e-5)


@given(shape=SHAPES, radius=st.integers(1, 2), rounds=st.integers(1, 2), seed=st.integers(0, 9))
@few(max_examples=20)
def test_masked_costs(shape: Shape, radius: int, rounds: int, seed: int) -> None:
    fixed, moving = random_tensor(1, 12, *shape, seed=seed), random_tensor(1, 12, *shape, seed=seed + 1)
    known, seen = shares(1, 1, *shape, seed=seed + 2), shares(1, 1, *shape, seed=seed + 3)
    agree(lambda k: k.masked_cost(fixed, moving, known, seen, search_radius=radius, box_rounds=rounds))
    cost = random_tensor((2 * radius + 1) ** 3, *shape, seed=seed)
    picked = ((2 * radius + 1) * random_tensor(3, *shape, seed=seed + 1)).floor() - radius
    u = 2 * random_tensor(3, *shape, seed=seed + 2) - 1
    agree(lambda k: k.between_cells(cost, picked, u, search_radius=radius, coupling_weight=0.3))
    agree(lambda k: k.sharpness(cost, picked, search_radius=radius))


def test_the_number_of_threads_changes_no_bit() -> None:
    """Of what is summed row by row, or not at all."""
    shape = (13, 11, 37)
    fixed, moved = random_tensor(1, 12, *shape, seed=1), random_tensor(1, 12, *shape, seed=2)
    volume, known = random_tensor(1, 1, *shape, seed=3), shares(1, 1, *shape, seed=4)
    u = 3 * random_tensor(1, 3, *shape, seed=5)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found = [COMPILED.mind_ssc(volume, radius=2, dilation=1), COMPILED.similarities(fixed, moved, known)]
            found += COMPILED.pooled_mind(volume, known, radius=1, dilation=1, spacing=3)
            found += [*COMPILED.data_terms(fixed, moved), *COMPILED.sample_known(fixed, known, u, offset=(0, 0, 0))]
            results.append(found)
    finally:
        torch.set_num_threads(before)
    for one, other in pairwise(results):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
