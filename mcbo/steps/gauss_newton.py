"""Gauss–Newton refinement: the smooth displacement that explains the features, each weighted by its information.

Minimizes over v, on a grid of cells,

    Σ over modalities of (κ²/(s·τ)) · Σ over cells of k·|M(p + v) − F(p)|²  +  β · Σ over cells of |Δ(d + v)|²,

where d is the deviation of the displacement so far from a rigid motion and Δ the Laplacian with reflecting borders: bending
costs, shifting does not. The weight of a modality is measured from the pair itself (``information_of``), so that one β serves
clean and noisy images, and a modality that shares little with the fixed image hardly counts.

The gradient uses central differences of the mean of both images (efficient second-order minimization, Malis 2004). The
derivative of a trilinear interpolant, which backpropagation through the sampling would give, is one-sided at whole cells; with
noise in the moving image it drifts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcbo.core.field import along_axis, box_sum, lengths, shape_of
from mcbo.core.types import Displacement, Features, Kernels
from mcbo.geometry.cells import KNOWN_CELL_SHARE
from mcbo.steps.linear_solver import laplacian
from mcbo.steps.mind import MindSettings

RESIDUAL_FLOOR = 1e-3
"""Added to the mean feature distance: two images that agree to rounding are not infinitely informative."""
MIN_CORRELATION = 0.02
"""Least correlation of gradients that is used; keeps unrelated images from dividing by zero."""
LAGS = 4
"""Cells over which the correlation of residuals is summed."""
MAX_STEP = 1.0
"""Cells: the most that one iteration moves."""
SMALL_STEP = 0.02
"""Cells: an iteration whose mean step is smaller is the last."""
RIDGE = 1e-6
"""Keeps the equations solvable where nothing is known."""


@dataclass(frozen=True)
class RefineStage:
    """A stage of the Gauss–Newton refinement.

    Attributes:
        grid_spacing: g, voxels per cell.
        mind: its features.
        rounds: how often the moving images are warped and their features computed again.
        iterations: Gauss–Newton steps in each round, at most.
    """

    grid_spacing: int
    mind: MindSettings
    rounds: int
    iterations: int


@dataclass(frozen=True)
class Modality:
    """A moving image on the grid of cells: ``(1, C, h, w, d)`` features, already warped by the displacement so far.

    ``known`` is ``(1, 1, h, w, d)`` from 0 to 1.
    """

    features: Features
    known: Tensor


@dataclass(frozen=True)
class Information:
    """Information of a modality on the motion.

    Attributes:
        correlation: ρ of the gradients of fixed and moving features, from −1 to 1.
        correlation_cells: τ, at least 1: over how many cells a residual is correlated, so that these count once.
        known_cells: how many were compared.
    """

    correlation: float
    correlation_cells: float
    known_cells: int

    @property
    def gain(self) -> float:
        """κ, from almost 0 to 1: the share of the slope of the fixed features that the moving ones have too, 2ρ/(1 + ρ)."""
        correlation = max(self.correlation, MIN_CORRELATION)
        return 2 * correlation / (1 + correlation)

    @property
    def standard_error(self) -> float:
        """Of ρ, were there as many independent cells as there are known ones over τ."""
        return (1 - self.correlation**2) / math.sqrt(max(self.known_cells / self.correlation_cells, 1.0))


def refine_by_gauss_newton(
    fixed: Features,
    fixed_known: Tensor,
    modalities: Sequence[Modality],
    deviation: Displacement,
    *,
    bending: float,
    iterations: int,
    cg_iterations: int,
    kernels: Kernels,
) -> tuple[Displacement, float]:
    """Finds v, ``(1, 3, h, w, d)`` cells, starting from zero.

    ``fixed`` are ``(1, C, h, w, d)`` features, ``fixed_known`` is ``(1, 1, h, w, d)`` from 0 to 1, ``deviation`` d and
    ``bending`` β. Each of ``iterations`` Gauss–Newton steps has at most ``cg_iterations`` of conjugate gradients. Also returns
    the density of information, Σ of κ²/(s·τ)·tr H over modalities, per known cell.
    """
    v = torch.zeros_like(deviation)
    preconditioner = kernels.cosine_transform(shape_of(fixed), like=fixed)
    inside = fixed_known > KNOWN_CELL_SHARE
    is_known = bool(inside.any())
    informations: list[Information] = []
    density = 0.0
    for iteration in range(iterations):
        gradient = torch.zeros_like(v)
        hessian = fixed.new_zeros((6, *shape_of(fixed)))
        compared = fixed_known * stays_inside(v)
        for number, modality in enumerate(modalities):
            moved, seen = modality.features, modality.known > KNOWN_CELL_SHARE
            if iteration:  # before the first step, v is 0
                moved, seen = kernels.sample_known(moved, modality.known, v, offset=(0, 0, 0), share=KNOWN_CELL_SHARE)
            known = compared * seen
            g, (h,), distance = kernels.data_terms(fixed, moved)
            if iteration == 0:
                informations.append(kernels.information_of(fixed, moved, known > KNOWN_CELL_SHARE))
            gain, cells = informations[number].gain, informations[number].correlation_cells
            weight = weights_of(distance, known)
            if iteration == 0:
                trace = ((h[0] + h[3] + h[5]) * weight[0, 0]).sum() / known.sum().clamp(min=1)
                density += float(trace) * gain**2 / cells
            gradient += g * weight * (gain / cells)
            hessian += h * weight[0] * (gain**2 / cells)
        right = -(gradient + bending * bending_gradient(deviation + v))
        mean_curvature = float(((hessian[0] + hessian[3] + hessian[5]) / 3)[inside[0, 0]].mean()) if is_known else 0.0
        symbol = preconditioner.symbol(mean_curvature + RIDGE, bending=bending)
        step = kernels.conjugate_gradient(
            kernels.bent(hessian, bending),
            right,
            preconditioner.solver(symbol),
            rounds=cg_iterations,
        )
        length = lengths(step)
        v += step * (MAX_STEP / length.clamp(min=MAX_STEP))
        if is_known and float(length[inside].mean()) < SMALL_STEP:
            break
    return v, density


def stays_inside(displacement: Displacement) -> Tensor:
    """Where p + u(p) lies between the centers of the outermost cells, ``(1, 1, h, w, d)`` bool: no extrapolation there."""
    inside = torch.ones_like(displacement[:, :1], dtype=torch.bool)
    for axis, size in enumerate(shape_of(displacement)):
        index = torch.arange(size, dtype=displacement.dtype, device=displacement.device)
        place = displacement[:, axis : axis + 1] + along_axis(index, axis)
        inside &= (place >= 0) & (place <= size - 1)
    return inside


def data_terms(fixed: Features, moved: Features) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient and Gauss–Newton Hessian of Σ over channels of ½(M − F)², per cell.

    ``fixed`` is ``(1, C, h, w, d)``, ``moved`` ``(B, C, h, w, d)``.

    Returns:
        ``(B, 3, h, w, d)`` gradient; ``(B, 6, h, w, d)`` entries 00, 01, 02, 11, 12, 22; ``(B, 1, h, w, d)`` Σ (M − F)².
    """
    gradient, hessian, distance = (fixed.new_zeros((len(moved), count, *shape_of(fixed))) for count in (3, 6, 1))
    for number, image in enumerate(moved):
        for f, m in zip(fixed[0], image, strict=True):
            error = m - f
            slopes = central_differences((m + f) / 2)
            distance[number, 0].addcmul_(error, error)
            for axis, slope in enumerate(slopes):
                gradient[number, axis].addcmul_(error, slope)
            for entry, (a, b) in enumerate(((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))):
                hessian[number, entry].addcmul_(slopes[a], slopes[b])
    return gradient, hessian, distance


def central_differences(volume: Tensor) -> list[Tensor]:
    """Slopes of ``(h, w, d)`` along each axis, one-sided at the borders."""
    slopes = []
    for axis, size in enumerate(volume.shape):
        slope = torch.zeros_like(volume)
        if size > 1:
            forward = volume.diff(dim=axis)
            slope.narrow(axis, 0, size - 1).add_(forward)
            slope.narrow(axis, 1, size - 1).add_(forward)
            slope.narrow(axis, 1, size - 2).mul_(0.5)
        slopes.append(slope)
    return slopes


def information_of(fixed: Features, moved: Features, known: Tensor) -> Information:
    """How much ``(1, C, h, w, d)`` features share, and how far their residuals are correlated (see ``Information``).

    ``known`` is ``(1, 1, h, w, d)`` bool.
    """
    seen = known[0, 0]
    weights = seen.to(fixed.dtype)
    count = weights.sum().clamp(min=1)
    residuals = [(m - f) * weights for f, m in zip(fixed[0], moved[0], strict=True)]
    means = [residual.sum() / count for residual in residuals]
    centered = [(residual - mean) * weights for residual, mean in zip(residuals, means, strict=True)]
    variance = sum(float(c.square().sum(dtype=torch.float64)) for c in centered) / float(count)
    cells, shared, energy = 1.0, 0.0, 0.0
    for axis in range(3):
        size = seen.shape[axis]
        ratios = 0.0
        for lag in range(1, min(LAGS, size - 1) + 1):
            products = sum(_lagged_product(c, axis, lag) for c in centered)
            pairs = _lagged_product(weights, axis, lag)
            ratios += min(max(products / max(pairs, 1.0) / max(variance, 1e-12), 0.0), 1.0)
        cells *= 1 + 2 * ratios
        if size > 2:
            both = weights.narrow(axis, 0, size - 2) * weights.narrow(axis, 1, size - 2) * weights.narrow(axis, 2, size - 2)
            for f, m in zip(fixed[0], moved[0], strict=True):
                df = f.narrow(axis, 2, size - 2) - f.narrow(axis, 0, size - 2)
                dm = m.narrow(axis, 2, size - 2) - m.narrow(axis, 0, size - 2)
                shared += float((df * dm * both).sum(dtype=torch.float64))
                energy += float(((df.square() + dm.square()) * both).sum(dtype=torch.float64)) / 2
    return Information(correlation=shared / max(energy, 1e-12), correlation_cells=cells, known_cells=int(seen.sum()))


def _lagged_product(values: Tensor, axis: int, lag: int) -> float:
    """Σ over cells of a value times the one ``lag`` cells on along an axis."""
    kept = values.shape[axis] - lag
    return float((values.narrow(axis, 0, kept) * values.narrow(axis, lag, kept)).sum(dtype=torch.float64))


def weights_of(distance: Tensor, known: Tensor) -> Tensor:
    """What each cell counts, ``(1, 1, h, w, d)``: its robust weight over s, the mean feature distance, where it is known."""
    mean = float((distance * known).sum() / known.sum().clamp(min=1e-6)) + RESIDUAL_FLOOR
    return known * robust_weight(distance, known, mean) / mean


def robust_weight(distance: Tensor, known: Tensor, mean: float | Tensor) -> Tensor:
    """4·(s/(s + r))², r the feature distance smoothed over known cells: 1 where r = s, up to 4 where the features agree."""
    weights = known + 1e-4
    sums = box_sum(torch.cat([distance * weights, weights], dim=1), size=3)
    return 4 * (mean / (mean + sums[:, :1] / sums[:, 1:])).square()


def bending_gradient(displacement: Displacement) -> Displacement:
    """Half the gradient of Σ |Δu|²."""
    return laplacian(laplacian(displacement))


def bent(hessian: Tensor, bending: float) -> Callable[[Displacement], Displacement]:
    """The left side of the normal equations, as a function of the step; ``hessian`` is that of ``data_terms``."""
    h00, h01, h02, h11, h12, h22 = hessian

    def product(field: Displacement) -> Displacement:
        x, y, z = field[0]
        data = torch.stack([h00 * x + h01 * y + h02 * z, h01 * x + h11 * y + h12 * z, h02 * x + h12 * y + h22 * z])[None]
        return data + bending * bending_gradient(field) + RIDGE * field

    return product
