"""The self-check of kernels on a device: every twin against the torch reference, on one tiny volume.

A compiler, a driver or a GPU that nobody has tried may be wrong without an error. This tells before the first case is computed.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from mcbo.core.errors import KernelError
from mcbo.core.types import CostSlab, Displacement, Features, Kernels, Shape, Volume
from mcbo.kernels import REFERENCE, features_source
from mcbo.steps.mind import MindSettings
from mcbo.steps.rigid_refinement import RigidTerms

SHAPE: Shape = (9, 10, 11)
"""Three different sizes, so that swapped axes show, and no multiples of any block's."""

RADIUS = 2
"""Of the search, cells."""

ROUNDING = 1e-4
"""Of float32 in another order of additions, as a share of the largest value."""


@dataclass(frozen=True)
class Sample:
    """What the twins compute from, all on one device.

    Attributes:
        volume: ``(1, 1, *SHAPE)`` intensities from 0 to 1.
        fixed, moving: ``(1, 12, *SHAPE)`` features from 0 to 1, independent of each other.
        cost: ``(K, *SHAPE)``, the reference's, of the features.
        ties: ``(K, *SHAPE)`` costs that are multiples of 1/8, so that many are equal and nothing is rounded.
        forward, backward: ``(1, 3, *SHAPE)`` cells, up to 1.6 along each axis. With or without the half-pixel stretch, no
            sample falls on the border of a cell, where rounding decides which of two slopes is right.
        known: ``(1, 1, *SHAPE)`` from 0 to 1, of which two fifths are 0.
    """

    volume: Volume
    fixed: Features
    moving: Features
    cost: Tensor
    ties: Tensor
    forward: Displacement
    backward: Displacement
    known: Tensor

    @classmethod
    def make(cls) -> Self:
        """The same every time, on the CPU."""
        fixed, moving = _numbers(1, 12, *SHAPE, seed=1), _numbers(1, 12, *SHAPE, seed=2)
        (cost,) = REFERENCE.cost_slabs(fixed, moving, search_radius=RADIUS, rows=SHAPE[0], keep=0)
        return cls(
            volume=_numbers(1, 1, *SHAPE, seed=3),
            fixed=fixed,
            moving=moving,
            cost=cost,
            ties=(8 * _numbers(*cost.shape, seed=4)).floor() / 8,
            forward=_off_the_borders(seed=5),
            backward=_off_the_borders(seed=6),
            known=(_numbers(1, 1, *SHAPE, seed=7) - 0.4).clamp(min=0) / 0.6,
        )

    def to(self, device: torch.device) -> Self:
        """A copy on a device."""
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class Twin:
    """A kernel, or kernels that are used together, and how to compare it.

    Attributes:
        name: for the message of an error.
        compute: what is compared, on any device.
        tolerance: as a share of the largest value; 0 if both have to be equal.
    """

    name: str
    compute: Callable[[Kernels, Sample], Tensor]
    tolerance: float


def agree(kernels: Kernels, device: torch.device) -> None:
    """Compares all twins on a device with the reference on the CPU.

    Raises:
        KernelError: at the first that differs or fails, with its name and by how much.
        torch.OutOfMemoryError: if the device has no memory left.
    """
    here = Sample.make()
    there = here.to(device)
    for twin in TWINS:
        expected = twin.compute(REFERENCE, here)
        try:
            found = twin.compute(kernels, there).cpu()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever it is, the reference is there instead
            reason = str(error).partition("\n")[0]
            raise KernelError(f"{twin.name} fails in the self-check on {device}: {reason}") from error
        gap = distance(found, expected)
        if not gap <= twin.tolerance:  # NaN is not
            raise KernelError(
                f"{twin.name} fails the self-check on {device}: expected the reference's numbers to {twin.tolerance:g} of the "
                f"largest, found a difference of {gap:.2g}"
            )


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the largest expected value; infinite if the shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max())


def _numbers(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def _off_the_borders(*, seed: int) -> Displacement:
    """Whole cells from −2 to 1, and 0.4 to 0.6 of one, which the stretch, by 9/8 at most, makes 0.2 to 0.8."""
    whole = (4 * _numbers(1, 3, *SHAPE, seed=seed)).floor() - 2
    return whole + 0.4 + 0.2 * _numbers(1, 3, *SHAPE, seed=seed + 100)


def _mind_ssc(kernels: Kernels, sample: Sample) -> Tensor:
    return kernels.mind_ssc(sample.volume, radius=1, dilation=2)


def _variance_of(kernels: Kernels, sample: Sample) -> Tensor:
    """The variance, and the features of another image that are scaled by it."""
    variance = kernels.variance_of(sample.volume, radius=1, dilation=2)
    features = kernels.mind_ssc(sample.volume.flip(2), radius=1, dilation=2, mean_variance=1e3 * variance)
    return torch.cat([variance.float() / sample.volume.square().mean(), features.flatten()])


def _coupled_argmin(kernels: Kernels, sample: Sample) -> Tensor:
    return _picks(kernels, kernels.as_slab(sample.ties), sample.forward[0].mul(4).round() / 4)


def _cost_slabs(kernels: Kernels, sample: Sample) -> Tensor:
    """The reference's cost of what the kernels pick by theirs: the least, whichever of near equals that is.

    On the CPU, where a pick that is no candidate is an error; on a GPU, no computation of this process would survive it.
    """
    rows = 4
    slabs = kernels.cost_slabs(sample.fixed, sample.moving, search_radius=RADIUS, rows=rows, keep=0)
    worths = []
    for first, slab in zip(range(0, SHAPE[0], rows), slabs, strict=True):
        cost, u = sample.cost[:, first : first + rows], sample.forward[0, :, first : first + rows]
        picks = zip(_picks(kernels, slab, u).cpu(), (0.0, *WEIGHTS), strict=True)
        worths.append(torch.stack([_worth(cost.cpu(), picked, weight, u.cpu()) for picked, weight in picks]))
    return torch.cat(worths, dim=1)


WEIGHTS = (0.0078125, 0.25)
"""Coupling weights, cost per cell²: one that the cost overrules, and one that overrules the cost."""


def _picks(kernels: Kernels, slab: CostSlab, u: Tensor) -> Tensor:
    """What is picked of a slab without coupling, and with each of ``WEIGHTS``: ``(3, 3, rows, w, d)`` cells."""
    options = {"first": 0, "last": u.shape[1], "search_radius": RADIUS}
    coupled = [kernels.coupled_argmin(slab, u, coupling_weight=weight, **options) for weight in WEIGHTS]
    return torch.stack([kernels.coupled_argmin(slab, None, coupling_weight=0.0, **options), *coupled])


def _worth(cost: Tensor, picked: Tensor, weight: float, u: Tensor) -> Tensor:
    """Cost, ``(rows, w, d)``, of candidates, ``(3, rows, w, d)`` cells, and of their distance from u."""
    steps = picked.long() + RADIUS
    index = (steps[2] * (2 * RADIUS + 1) + steps[1]) * (2 * RADIUS + 1) + steps[0]
    return cost.gather(0, index[None])[0] + weight * (picked - u).square().sum(dim=0)


def _make_consistent(kernels: Kernels, sample: Sample) -> Tensor:
    pairs = [kernels.make_consistent(sample.forward, sample.backward, rounds=2, stretch=stretch) for stretch in (False, True)]
    return torch.cat([displacement for pair in pairs for displacement in pair])


def _gradient_of(kernels: Kernels, sample: Sample) -> Tensor:
    gradients = [kernels.gradient_of(sample.fixed, sample.moving, stretch=stretch) for stretch in (False, True)]
    return torch.cat([gradient(sample.forward) for gradient in gradients])


def _streamed_mind(kernels: Kernels, sample: Sample) -> Tensor:
    source = features_source(sample.volume, MindSettings(radius=2, dilation=2), kernels)
    whole, part = ((0, SHAPE[0]), (0, SHAPE[1]), (0, SHAPE[2])), ((1, 7), (2, 9), (3, 11))
    means, known = source.pooled_known(sample.known > 0, 2)
    return _joined(source.pooled(whole, 1), source.pooled(part, 2), means, known)


def _pooled_mind(kernels: Kernels, sample: Sample) -> Tensor:
    images, known = torch.cat([sample.volume, sample.volume.flip(2)]), torch.cat([sample.known, sample.known])
    return _joined(*kernels.pooled_mind(images, known, radius=1, dilation=1, spacing=(2, 3, 1)))


def _cells(kernels: Kernels, sample: Sample) -> Tensor:
    filled = kernels.fill_outside(sample.volume, sample.known > 0.5, reach=2)
    return _joined(*kernels.pool(sample.forward, sample.known, 3), *kernels.pool(sample.forward, None, (1, 2, 4)), filled)


def _warping(kernels: Kernels, sample: Sample) -> Tensor:
    values, seen = kernels.sample_known(sample.fixed, sample.known > 0.5, sample.forward, offset=(0, 0, 0))
    matrix = sample.cost.new_tensor([[1.0, 0.2, 0.0], [-0.2, 1.0, 0.1], [0.0, -0.1, 1.0]]).double()
    composed = kernels.compose(sample.forward, sample.backward, matrix, sample.backward)
    linear = kernels.linear_displacement(torch.cat([matrix, matrix[:, :1]], dim=1).unsqueeze(0), SHAPE, offset=(1, 2, 3))
    return _joined(values, seen.float(), composed, kernels.to_voxels(sample.forward, SHAPE, 2), linear)


def _rigid_motion(kernels: Kernels, sample: Sample) -> Tensor:
    gradients, hessians, distance = REFERENCE.data_terms(sample.fixed, sample.moving)
    terms = RigidTerms(hessians, gradients, sample.known, distance)
    cell_mm = sample.cost.new_tensor([1.0, 2.0, 3.0]).double()
    ends = torch.cat([torch.diag(cell_mm), -4 * cell_mm.view(3, 1)], dim=1).unsqueeze(0)
    similarities = kernels.similarities(sample.fixed, sample.moving, sample.known)
    return _joined(similarities, *kernels.rigid_equations(ends, cell_mm, [terms, terms]))


def _pool_known(kernels: Kernels, sample: Sample) -> Tensor:
    return _joined(*(one for g in (2, 3) for one in kernels.pool_known(sample.fixed, sample.known > 0, g)))


def _solve(kernels: Kernels, sample: Sample) -> Tensor:
    """Heavy coupling, which leaves no near equals to rounding; the moving features are the fixed ones, moved."""
    moved = sample.fixed.roll((1, -1, 2), dims=(2, 3, 4))
    weights = (0.5, 2.0)
    return kernels.solve(sample.fixed, moved, search_radius=RADIUS, coupling_weights=weights, rows=4)


def _masked_cost(kernels: Kernels, sample: Sample) -> Tensor:
    images = sample.fixed, sample.moving, sample.known, sample.known.flip(2)
    return torch.cat([kernels.masked_cost(*images, search_radius=RADIUS, box_rounds=rounds) for rounds in (1, 2)])


def _between_cells(kernels: Kernels, sample: Sample) -> Tensor:
    picked, u = sample.forward[0].floor(), sample.backward[0]
    return kernels.between_cells(sample.cost, picked, u, search_radius=RADIUS, coupling_weight=0.25)


def _sharpness(kernels: Kernels, sample: Sample) -> Tensor:
    return kernels.sharpness(sample.cost, sample.forward[0].floor(), search_radius=RADIUS)


def _box_mean(kernels: Kernels, sample: Sample) -> Tensor:
    return torch.cat([kernels.box_mean(sample.forward, size=size, rounds=rounds) for size, rounds in ((3, 1), (5, 3))])


def _data_terms(kernels: Kernels, sample: Sample) -> Tensor:
    return _joined(*kernels.data_terms(sample.fixed, sample.moving))


def _information_of(kernels: Kernels, sample: Sample) -> Tensor:
    told = kernels.information_of(sample.fixed, 0.5 * (sample.fixed + sample.moving), sample.known > 0)
    return torch.tensor([told.correlation, told.correlation_cells, float(told.known_cells)])


def _linear_system(kernels: Kernels, sample: Sample) -> Tensor:
    """Solved for as many iterations as it takes to compare products, preconditioner and steps, not to converge."""
    _, (hessian,), _ = REFERENCE.data_terms(sample.fixed, sample.moving)
    trust = 0.1 + sample.forward.abs()
    transform = kernels.cosine_transform(SHAPE, like=trust)
    found = []
    for product, symbol in (
        (kernels.bent(hessian, 0.5), transform.symbol(0.5, bending=0.5)),
        (kernels.stretched(trust, 0.5), transform.symbol(0.5, stretching=0.5)),
    ):
        precondition = transform.solver(symbol)
        found += [product(sample.backward), kernels.conjugate_gradient(product, sample.backward, precondition, rounds=4)]
    return _joined(*found)


def _joined(*tensors: Tensor) -> Tensor:
    """All numbers, each tensor's as shares of its largest, so that none hides the others."""
    return torch.cat([(one / one.abs().max().clamp(min=1e-6)).flatten() for one in tensors])


TWINS = (
    Twin("mind_ssc", _mind_ssc, ROUNDING),
    Twin("variance_of", _variance_of, ROUNDING),
    Twin("streamed_mind", _streamed_mind, ROUNDING),
    Twin("pooled_mind", _pooled_mind, ROUNDING),
    Twin("pool_known", _pool_known, ROUNDING),
    Twin("pool, fill_outside", _cells, ROUNDING),
    Twin("sample_known, compose, to_voxels, linear_displacement", _warping, ROUNDING),
    Twin("coupled_argmin", _coupled_argmin, 0.0),
    Twin("cost_slabs", _cost_slabs, ROUNDING),
    Twin("solve", _solve, ROUNDING),
    Twin("masked_cost", _masked_cost, ROUNDING),
    Twin("between_cells", _between_cells, ROUNDING),
    Twin("sharpness", _sharpness, ROUNDING),
    Twin("make_consistent", _make_consistent, ROUNDING),
    Twin("gradient_of", _gradient_of, ROUNDING),
    Twin("box_mean", _box_mean, ROUNDING),
    Twin("data_terms", _data_terms, ROUNDING),
    Twin("information_of", _information_of, ROUNDING),
    Twin("similarities, rigid_equations", _rigid_motion, ROUNDING),
    Twin("bent, stretched, cosine_transform, conjugate_gradient", _linear_system, ROUNDING),
)
"""In the order in which they are checked: what one needs of another comes after it."""
