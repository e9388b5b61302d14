"""Linear systems on a GPU: twins of ``linear_solver.py`` and of what ``gauss_newton.py`` and ``deformable_search.py`` put in.

What decides how an iteration goes on stays on the device: the host asks whether it is over now and then, not each time.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mcbo.core.field import shape_of
from mcbo.core.types import Displacement, Features
from mcbo.kernels.cuda.launch import Launch, Module, per_cell
from mcbo.steps import deformable_search, gauss_newton
from mcbo.steps.gauss_newton import LAGS, Information
from mcbo.steps.linear_solver import CG_TOLERANCE

MODULE = Module("system.cu")
CHECK_EVERY = 8
"""Iterations between two questions whether the residual is small enough; those too many change nothing."""


def data_terms(launch: Launch, fixed: Features, moved: Features) -> tuple[Tensor, Tensor, Tensor]:
    """Twin of ``gauss_newton.data_terms``."""
    shape = shape_of(fixed)
    fixed, moved = fixed.contiguous(), moved.contiguous()
    gradient, hessian, distance = (fixed.new_empty((len(moved), count, *shape)) for count in (3, 6, 1))
    for fields in zip(moved, gradient, hessian, distance, strict=True):
        per_cell(launch, MODULE, "data_terms", distance[0].numel(), fixed, *fields, fixed.shape[1], *shape)
    return gradient, hessian, distance


def bent(launch: Launch, hessian: Tensor, bending: float) -> Callable[[Displacement], Displacement]:
    """Twin of ``gauss_newton.bent``."""
    hessian, shape = hessian.contiguous(), shape_of(hessian)
    cells = hessian[0].numel()

    def product(field: Displacement) -> Displacement:
        field = field.contiguous()
        its_laplacian, result = torch.empty_like(field), torch.empty_like(field)
        per_cell(launch, MODULE, "laplacian", cells, field, its_laplacian, *shape, times=3)
        fields = field, its_laplacian, hessian, result
        per_cell(launch, MODULE, "bend", cells, *fields, *shape, float(bending), gauss_newton.RIDGE)
        return result

    return product


def stretched(launch: Launch, trust: Tensor, stretching: float) -> Callable[[Displacement], Displacement]:
    """Twin of ``deformable_search.stretched``."""
    trust, shape = trust.contiguous(), shape_of(trust)
    cells = trust[0, 0].numel()

    def product(field: Displacement) -> Displacement:
        field = field.contiguous()
        result = torch.empty_like(field)
        weights = float(stretching), deformable_search.RIDGE
        per_cell(launch, MODULE, "stretch", cells, field, trust, result, *shape, *weights, times=3)
        return result

    return product


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], right: Tensor, precondition: Callable[[Tensor], Tensor], *, rounds: int
) -> Tensor:
    """Twin of ``linear_solver.conjugate_gradient``: an iteration after the last one takes a step of length zero."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dtype=torch.float64)

    x = torch.zeros_like(right)
    residual = right.clone()
    z = precondition(residual)
    direction = z.clone()
    size = dot(residual, z)
    enough = CG_TOLERANCE**2 * size
    for turn in range(rounds):
        if turn % CHECK_EVERY == 0 and bool(size <= enough):
            break
        image = product(direction)
        length = torch.where(size <= enough, 0.0, size / dot(direction, image).clamp(min=1e-30)).to(right.dtype)
        x.addcmul_(direction, length)
        residual.addcmul_(image, length, value=-1)
        z = precondition(residual)
        after = dot(residual, z)
        direction = torch.addcmul(z, direction, (after / size.clamp(min=1e-300)).to(right.dtype))
        size = after
    return x


def information_of(fixed: Features, moved: Features, known: Tensor) -> Information:
    """Twin of ``gauss_newton.information_of``: all channels at once, one answer to the host."""
    weights = known[0, 0].to(fixed.dtype)
    f, m = fixed[0], moved[0]
    count = weights.sum(dtype=torch.float64)
    residuals = (m - f) * weights
    means = residuals.sum(dim=(1, 2, 3), keepdim=True) / count.clamp(min=1).to(fixed.dtype)
    centered = (residuals - means) * weights
    numbers = [count, (centered * centered).sum(dtype=torch.float64)]
    for axis in range(3):
        size = weights.shape[axis]
        for lag in range(1, min(LAGS, size - 1) + 1):
            numbers += [_lagged(centered, axis, lag), _lagged(weights, axis, lag)]
        if size > 2:
            both = _cut(weights, axis, 0, 2) * _cut(weights, axis, 1, 1) * _cut(weights, axis, 2, 0)
            df, dm = (_cut(one, axis, 2, 0) - _cut(one, axis, 0, 2) for one in (f, m))
            numbers += [(df * dm * both).sum(dtype=torch.float64), ((df * df + dm * dm) * both).sum(dtype=torch.float64)]
    answers = iter(torch.stack(numbers).tolist())
    known_cells = next(answers)
    variance = next(answers) / max(known_cells, 1.0)
    cells, shared, energy = 1.0, 0.0, 0.0
    for size in weights.shape:
        ratios = 0.0
        for _ in range(min(LAGS, size - 1)):
            products, pairs = next(answers), next(answers)
            ratios += min(max(products / max(pairs, 1.0) / max(variance, 1e-12), 0.0), 1.0)
        cells *= 1 + 2 * ratios
        if size > 2:
            shared, energy = shared + next(answers), energy + next(answers) / 2
    return Information(correlation=shared / max(energy, 1e-12), correlation_cells=cells, known_cells=int(known_cells))


def _lagged(values: Tensor, axis: int, lag: int) -> Tensor:
    """Σ of each value times the one ``lag`` cells on along an axis, float64."""
    return (_cut(values, axis, 0, lag) * _cut(values, axis, lag, 0)).sum(dtype=torch.float64)


def _cut(values: Tensor, axis: int, before: int, after: int) -> Tensor:
    """``(…, h, w, d)`` without so many cells at either end of an axis."""
    return values.narrow(axis - 3, before, values.shape[axis - 3] - before - after)
