"""Every CUDA kernel against the torch reference, on odd shapes: on the CPU, compiled as C++, and, marked ``gpu``, for real.

That solves are the same for any slabs at R = 1, and whole presets with these kernels, is tested with the fixture ``kernels``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from helpers import TOLERANCE, TensorCounter, cascade_config, paper_config, random_tensor, run_register
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcbo.core.types import Kernels, Shape
from mcbo.kernels import REFERENCE
from mcbo.kernels.cuda import features, make_kernels
from mcbo.methods import memory_model
from mcbo.methods.memory_model import plan
from mcbo.runtime import select_kernels
from mcbo.steps.gauss_newton import Information
from mcbo.steps.mind import WholeFeatures
from mcbo.studies.phantom import make_phantom

CPU = torch.device("cpu")
SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 19), st.integers(1, 35))
"""Smaller than a block of kernels along some axes, larger along others; a block of costs is 16×32 cells."""
RADII = st.integers(1, 4)
CHANNELS = st.sampled_from([1, 12, 24])
few = partial(settings, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass(frozen=True)
class Twin:
    """Kernels, and where they run."""

    kernels: Kernels
    device: torch.device

    def agree(self, compute: Callable[..., Tensor], *tensors: Tensor, tolerance: float = TOLERANCE["rounding"]) -> None:
        """Whether ``compute(kernels, *tensors)`` is what the reference makes of it on the CPU, as a share of the largest."""
        expected = compute(REFERENCE, *tensors)
        found = compute(self.kernels, *(tensor.to(self.device) for tensor in tensors)).cpu()
        assert found.shape == expected.shape
        assert torch.isfinite(found).all()
        assert float((found - expected).abs().max()) <= tolerance * max(float(expected.abs().max()), 1e-6)


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def twin(request: pytest.FixtureRequest) -> Twin:
    if request.param == "cpu":
        return Twin(make_kernels(request.getfixturevalue("cuda_on_cpu")), CPU)
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    device = torch.device("cuda", torch.cuda.current_device())
    kernels = select_kernels(device)
    assert kernels.name == "cuda", "the kernels do not run on this GPU: the log says why"
    return Twin(kernels, device)


def shares(*shape: int, seed: int) -> Tensor:
    """0, ¼, ½, ¾ or 1, two of five 0: their products and sums are exact, so that thresholds are met on all devices alike."""
    return ((5 * random_tensor(*shape, seed=seed)).floor() - 1).clamp(min=0) / 4 + (
        random_tensor(*shape, seed=seed + 1) > 0.9
    ) / 4


def inside_cells(shape: Shape, seed: int) -> Tensor:
    """Displacements of −2 to 2 cells that end 0.3 to 0.7 between two cells: there the slope of features is one to rounding."""
    whole = (4 * random_tensor(1, 3, *shape, seed=seed)).floor() - 2
    return whole + 0.3 + 0.4 * random_tensor(1, 3, *shape, seed=seed + 100)


@given(shape=SHAPES, radius=st.integers(1, 3), dilation=st.integers(1, 3), scale=st.sampled_from([1e-6, 1.0, 300.0, 1e12]))
@few(max_examples=6)
def test_features(twin: Twin, shape: Shape, radius: int, dilation: int, scale: float) -> None:
    volume = scale * (random_tensor(1, 1, *shape) - 0.3)
    mind = {"radius": radius, "dilation": dilation}
    twin.agree(lambda k, v: k.mind_ssc(v, **mind), volume, tolerance=TOLERANCE["device"])
    variance = 1e3 * REFERENCE.variance_of(volume, **mind)
    twin.agree(lambda k, v, m: k.mind_ssc(v, **mind, mean_variance=m), volume, variance, tolerance=TOLERANCE["device"])


def test_features_of_a_batch_are_those_of_each(twin: Twin) -> None:
    volumes = random_tensor(3, 1, 5, 17, 35) * torch.tensor([1.0, 1e-3, 40.0]).view(3, 1, 1, 1, 1)
    together = twin.kernels.mind_ssc(volumes.to(twin.device), radius=1, dilation=1)
    variances = twin.kernels.variance_of(volumes.to(twin.device), radius=1, dilation=1).cpu()
    assert torch.allclose(variances, REFERENCE.variance_of(volumes, radius=1, dilation=1), rtol=TOLERANCE["device"])
    for volume, found in zip(volumes, together, strict=True):
        assert torch.allclose(found.cpu(), REFERENCE.mind_ssc(volume[None], radius=1, dilation=1)[0], atol=TOLERANCE["device"])


def test_a_constant_image_has_features_of_one(twin: Twin) -> None:
    for value in (0.0, -7.5, 1e30):
        volume = torch.full((1, 1, 5, 6, 19), value, device=twin.device)
        assert torch.equal(twin.kernels.mind_ssc(volume, radius=1, dilation=2).cpu(), torch.ones(1, 12, 5, 6, 19))


@given(
    shape=st.tuples(st.integers(8, 13), st.integers(8, 11), st.integers(8, 21)),
    spacing=st.sampled_from([1, 2, 3, 5]),
    chunk=st.integers(1, 600),
    settings_of=st.sampled_from([(1, 2), (3, 3), (2, 1)]),
)
@few(max_examples=8)
def test_streamed_features_are_the_whole_ones(
    twin: Twin, monkeypatch: pytest.MonkeyPatch, shape: Shape, spacing: int, chunk: int, settings_of: tuple[int, int]
) -> None:
    monkeypatch.setattr(features, "CHUNK_VOXELS", chunk)
    volume = random_tensor(1, 1, *shape, seed=chunk).to(twin.device)
    mind = {"radius": settings_of[0], "dilation": settings_of[1]}
    whole = WholeFeatures(twin.kernels.mind_ssc(volume, **mind), twin.kernels.pool_known)
    assert twin.kernels.streamed_mind is not None
    streamed = twin.kernels.streamed_mind(volume, **mind)
    assert torch.allclose(streamed.mean_variance, twin.kernels.variance_of(volume, **mind), rtol=1e-6)
    given = {"mean_variance": 1e3 * streamed.mean_variance}
    box = ((0, shape[0]), (0, shape[1]), (0, shape[2]))
    found = twin.kernels.streamed_mind(volume, **mind, **given).pooled(box, 1)
    assert torch.allclose(found, twin.kernels.mind_ssc(volume, **mind, **given), atol=1e-6)
    i, j, k = ((size // 5, size - size // 7) for size in shape)
    for part in (box, (i, j, k)):
        found, expected = (source.pooled(part, spacing) for source in (streamed, whole))
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, atol=1e-6)
    mask = random_tensor(1, 1, *shape, seed=1).to(twin.device) > 0.4
    for found, expected in zip(streamed.pooled_known(mask, spacing), whole.pooled_known(mask, spacing), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)


@given(shape=SHAPES, channels=CHANNELS, spacing=st.integers(1, 6))
@few(max_examples=8)
def test_pooling_of_what_is_known(twin: Twin, shape: Shape, channels: int, spacing: int) -> None:
    values, mask = random_tensor(1, channels, *shape), random_tensor(1, 1, *shape, seed=1) > 0.6
    for part in range(2):
        twin.agree(lambda k, v, m, part=part: k.pool_known(v, m, spacing)[part], values, mask)


@given(shape=SHAPES, channels=CHANNELS, radius=RADII, rows=st.integers(1, 8))
@few(max_examples=6)
def test_costs(twin: Twin, shape: Shape, channels: int, radius: int, rows: int) -> None:
    def costs(kernels: Kernels, fixed: Tensor, moving: Tensor) -> Tensor:
        return torch.cat(list(kernels.cost_slabs(fixed, moving, search_radius=radius, rows=rows, keep=0)), dim=1)

    twin.agree(costs, random_tensor(1, channels, *shape, seed=1), random_tensor(1, channels, *shape, seed=2))


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("radius", [1, 2, 3, 4])
@given(shape=SHAPES, channels=CHANNELS)
@few(max_examples=2)
def test_masked_costs(twin: Twin, shape: Shape, channels: int, radius: int, rounds: int) -> None:
    def costs(kernels: Kernels, *images: Tensor) -> Tensor:
        return kernels.masked_cost(*images, search_radius=radius, box_rounds=rounds)

    images = (random_tensor(1, channels, *shape, seed=seed) for seed in (1, 2))
    twin.agree(costs, *images, shares(1, 1, *shape, seed=3), shares(1, 1, *shape, seed=5), tolerance=TOLERANCE["device"])


def test_costs_of_what_is_all_unknown(twin: Twin) -> None:
    image, nothing = random_tensor(1, 12, 3, 4, 5).to(twin.device), torch.zeros(1, 1, 3, 4, 5, device=twin.device)
    assert torch.equal(
        twin.kernels.masked_cost(image, image, nothing, nothing, search_radius=1).cpu(), torch.zeros(27, 3, 4, 5)
    )


@given(shape=SHAPES, radius=RADII, coupled=st.booleans(), seed=st.integers(0, 99))
@few(max_examples=6)
def test_of_equals_the_same_is_picked(twin: Twin, shape: Shape, radius: int, coupled: bool, seed: int) -> None:
    """Costs, displacements and weight are multiples of powers of two: no rounding, many equals, every pick must be the same."""
    cost = (8 * random_tensor((2 * radius + 1) ** 3, *shape, seed=seed)).floor() / 8
    u = (4 * radius * (2.4 * random_tensor(3, *shape, seed=seed + 1) - 1.2)).round() / 4

    def picked(kernels: Kernels, cost: Tensor, u: Tensor) -> Tensor:
        options = {"first": 0, "last": shape[0], "search_radius": radius, "coupling_weight": 0.25}
        return kernels.coupled_argmin(kernels.as_slab(cost), u if coupled else None, **options)

    twin.agree(picked, cost, u, tolerance=0)


@given(shape=SHAPES, radius=RADII, weight=st.sampled_from([0.0, 1e-6, 0.25]))
@few(max_examples=8)
def test_between_cells_and_sharpness(twin: Twin, shape: Shape, radius: int, weight: float) -> None:
    """At the edges of the cube of candidates too, where there is no neighbor on one side."""
    side = 2 * radius + 1
    cost = random_tensor(side**3, *shape)
    picked = (side * random_tensor(3, *shape, seed=1)).floor() - radius
    u = picked + random_tensor(3, *shape, seed=2) - 0.5
    options = {"search_radius": radius}
    twin.agree(lambda k, *told: k.between_cells(*told, coupling_weight=weight, **options), cost, picked, u, tolerance=1e-3)
    twin.agree(lambda k, *told: k.sharpness(*told, **options), cost, picked)


@pytest.mark.parametrize("radius", [1, 2, 3, 4])
def test_a_solve_is_the_same_for_any_slabs(twin: Twin, radius: int) -> None:
    shape = (11, 9, 17)
    fixed, moving = (random_tensor(1, 12, *shape, seed=seed).to(twin.device) for seed in (1, 2))
    solve = partial(twin.kernels.solve, fixed, moving, search_radius=radius, coupling_weights=(0.003, 0.03, 0.3))
    expected = solve(rows=shape[0])
    assert float(expected.abs().max()) > 0.3
    for rows in (1, 2, 4, 10, 50):
        assert torch.equal(solve(rows=rows), expected)


@given(shape=SHAPES, stretch=st.booleans(), reach=st.floats(0.1, 8))
@few(max_examples=8)
def test_consistency(twin: Twin, shape: Shape, stretch: bool, reach: float) -> None:
    pair = [reach * (2 * random_tensor(1, 3, *shape, seed=seed) - 1) for seed in (1, 2)]
    before = pair[0].clone()
    for part in range(2):
        twin.agree(
            lambda k, a, b, part=part: k.make_consistent(a, b, rounds=2, stretch=stretch)[part],
            *pair,
            tolerance=TOLERANCE["device"],
        )
    assert torch.equal(pair[0], before)


@pytest.mark.parametrize("stretch", [False, True])
@given(shape=st.tuples(st.integers(13, 17), st.integers(13, 19), st.integers(13, 35)), channels=CHANNELS)
@few(max_examples=3)
def test_gradient(twin: Twin, shape: Shape, channels: int, stretch: bool) -> None:
    images = (random_tensor(1, channels, *shape, seed=seed) for seed in (1, 2))
    twin.agree(lambda k, f, m, u: k.gradient_of(f, m, stretch=stretch)(u), *images, inside_cells(shape, 3))


@given(shape=SHAPES, lead=st.sampled_from([(), (3,), (2, 3), (1, 12)]), size=st.sampled_from([3, 5]), rounds=st.integers(1, 3))
@few(max_examples=10)
def test_box_means(twin: Twin, shape: Shape, lead: tuple[int, ...], size: int, rounds: int) -> None:
    twin.agree(lambda k, values: k.box_mean(values, size=size, rounds=rounds), random_tensor(*lead, *shape))


@given(shape=SHAPES, channels=CHANNELS)
@few(max_examples=6)
def test_normal_equations(twin: Twin, shape: Shape, channels: int) -> None:
    images = [random_tensor(1, channels, *shape, seed=seed) for seed in (1, 2)]
    for part in range(3):
        twin.agree(lambda k, f, m, part=part: k.data_terms(f, m)[part], *images)


@given(shape=SHAPES, channels=CHANNELS)
@few(max_examples=6)
def test_information(twin: Twin, shape: Shape, channels: int) -> None:
    def told(kernels: Kernels, fixed: Tensor, moved: Tensor, known: Tensor) -> Tensor:
        found: Information = kernels.information_of(fixed, moved, known)
        return torch.tensor([found.correlation, found.correlation_cells, found.known_cells / known.numel()])

    fixed, other = (random_tensor(1, channels, *shape, seed=seed) for seed in (1, 2))
    known = random_tensor(1, 1, *shape, seed=3) > 0.3
    twin.agree(told, fixed, 0.5 * (fixed + other), known, tolerance=TOLERANCE["device"])


@given(shape=SHAPES, is_bent=st.booleans())
@few(max_examples=8)
def test_linear_systems(twin: Twin, shape: Shape, is_bent: bool) -> None:
    """As many iterations as it takes to compare products, preconditioner and steps, not to converge."""
    hessian = torch.cat([0.5 + random_tensor(6, *shape)[:1]] * 6) * torch.tensor([1, 0.1, 0.1, 1, 0.1, 1]).view(6, 1, 1, 1)

    def solved(kernels: Kernels, hessian: Tensor, trust: Tensor, right: Tensor) -> Tensor:
        transform = kernels.cosine_transform(shape, like=trust)
        product = kernels.bent(hessian, 0.5) if is_bent else kernels.stretched(trust, 0.5)
        symbol = transform.symbol(0.5, bending=0.5) if is_bent else transform.symbol(0.5, stretching=0.5)
        precondition = transform.solver(symbol)
        return torch.stack([product(right), kernels.conjugate_gradient(product, right, precondition, rounds=3)])

    trust = 0.1 + random_tensor(1, 3, *shape, seed=1)
    twin.agree(solved, hessian, trust, random_tensor(1, 3, *shape, seed=2) - 0.5, tolerance=TOLERANCE["device"])


def test_the_memory_model_agrees_where_features_are_streamed(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole case of the paper's preset within a budget that leaves features no room. Chunks are as small a part of this
    volume as those of 4 million voxels are of 256³."""
    shape, movings = (32, 30, 34), 1
    for module in (features, memory_model):
        monkeypatch.setattr(module, "CHUNK_VOXELS", shape[0] * shape[1] * shape[2] // 4)
    config, kernels = paper_config(), twin.kernels
    levels = config.fit(shape)[0].levels
    budget = (config.least_bytes(shape, movings=movings, kernels=kernels) * 21) // 20
    is_streamed, slabs = plan(shape, levels, passes=config.passes, movings=movings, budget_bytes=budget, kernels=kernels)
    assert is_streamed
    model = memory_model.solved_bytes(
        shape, levels, passes=config.passes, movings=movings, kernels=kernels, slabs=slabs, streamed=True
    )
    phantom = make_phantom(shape)
    images = [image.to(twin.device) for image in (phantom.fixed, phantom.cet1)]
    with TensorCounter(images) as counter:
        run_register(images[0], images[1:], config, kernels=kernels, budget_gb=budget / 1e9)
    print(f"counted {counter.peak_bytes / 1e6:.1f} MB, model {model / 1e6:.1f} MB, budget {budget / 1e6:.1f} MB")
    assert 0.8 * model < counter.peak_bytes <= model <= budget


def test_the_memory_model_of_the_cascade_agrees_too(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the start, whose batches have one size for all volumes; chunks as above."""
    shape = (56, 48, 52)
    for module in (features, memory_model):
        monkeypatch.setattr(module, "CHUNK_VOXELS", shape[0] * shape[1] * shape[2] // 4)
    config = replace(cascade_config(), start=None)
    phantom = make_phantom(shape)
    images = [image.to(twin.device) for image in (phantom.fixed, phantom.cet1, phantom.t2)]
    with TensorCounter(images) as counter:
        run_register(images[0], images[1:], config, kernels=twin.kernels)
    model = config.peak_bytes(shape, movings=2, kernels=twin.kernels)
    print(f"counted {counter.peak_bytes / 1e6:.1f} MB, model {model / 1e6:.1f} MB")
    assert 0.8 * model < counter.peak_bytes <= 1.05 * model
