"""How far a displacement can be trusted: for each voxel, a length that four of five errors stay below.

Two things tell it. Where the features have information H per cell, the errors of the smooth displacement that explains them,
with bending weight β, have the variance

    ∫ d³k/(2π)³ 1/(H + β·|k|⁴) = H^(−1/4) · β^(−3/4) / (4√2·π)

along each axis, if H hardly changes over a width (β/H)^(1/4), over which it is averaged. And where a second registration,
with features that no stage was fitted to, moves on from where the first one ended, one of the two is wrong. Both together
make the bound, with powers and a scale that fit sets whose true displacement is known (docs/results.md, "Uncertainty").
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mcbo.core.field import box_sum, lengths
from mcbo.core.types import Displacement, Judgement
from mcbo.geometry import cells
from mcbo.geometry.cells import KNOWN_CELL_SHARE
from mcbo.methods.cascade_case import CascadeCase, OnGrid
from mcbo.steps.gauss_newton import refine_by_gauss_newton, weights_of
from mcbo.steps.mind import MindSettings

LEVEL = 0.8
"""Share of the errors that stay below the bound."""

_VARIANCE = 1 / (4 * math.sqrt(2) * math.pi)
_LEAST_INFORMATION = 0.05
"""Of the mean: no cell has less, else one without any would have an error without bound."""
_LEAST_REST = 0.1
"""Voxels: two registrations may agree although both are wrong, so that they are never taken to agree better than this."""
_WIDEST = 7
"""Cells: information is averaged over twice as many at most."""


@dataclass(frozen=True)
class UncertaintySettings:
    """Settings of the bound.

    Attributes:
        grid_spacing: voxels per cell.
        mind: features of the second registration.
        iterations: of the second registration.
        scale: of the bound.
        spread_power: of the standard deviation that the information leaves, in voxels.
        rest_power: of what the second registration moves on, in voxels.
    """

    grid_spacing: int
    mind: MindSettings
    iterations: int
    scale: float
    spread_power: float
    rest_power: float


def bound_errors(
    case: CascadeCase,
    displacement: Displacement,
    judgement: Judgement,
    *,
    settings: UncertaintySettings,
    bending: float,
    cg_iterations: int,
    expected_mm: float,
    doubtful: float,
) -> Tensor:
    """The bound within the box of a case.

    Args:
        case: the images.
        displacement: the result, ``(1, 3, h, w, d)`` voxels.
        judgement: of the result. Where it is not sure, the bound is at least ``expected_mm``; where it is doubtful, there is
            none.
        settings: of the bound.
        bending: β of the refinement, voxels.
        cg_iterations: of its conjugate gradients.
        expected_mm: how far apart such images usually are.
        doubtful: confidence below which a result is doubtful.

    Returns:
        ``(1, 1, h, w, d)`` mm; NaN where the fixed or all moving images are not known, and everywhere in a doubtful result.
    """
    if judgement.confidence < doubtful:
        return torch.full_like(case.fixed, math.nan)
    spacing = settings.grid_spacing
    grid = case.on_grid(displacement, spacing=spacing, mind=settings.mind)
    weight = bending * spacing
    spread = spacing * spread_of(information_on(grid), grid.known, bending=weight)
    nothing = grid.fixed.new_zeros((1, 3, *grid.fixed.shape[2:]))
    rest, _ = refine_by_gauss_newton(
        grid.fixed,
        grid.known,
        grid.modalities,
        nothing,
        bending=weight,
        iterations=settings.iterations,
        cg_iterations=cg_iterations,
        kernels=case.kernels,
    )
    moved = spacing * _mean(lengths(rest), size=5)
    size_mm = math.prod(case.spacing_mm) ** (1 / 3)
    bound = settings.scale * spread**settings.spread_power * (moved + _LEAST_REST) ** settings.rest_power * size_mm
    if judgement.confidence < LEVEL:
        bound = bound.clamp(min=expected_mm)
    seen = torch.stack([modality.known for modality in grid.modalities]).amax(dim=0) > KNOWN_CELL_SHARE
    both = torch.cat([bound, seen.to(bound.dtype)], dim=1)
    both = cells.to_voxels(both, case.shape, spacing) / spacing
    return both[:, :1].masked_fill(~(case.mask & (both[:, 1:] > KNOWN_CELL_SHARE)), math.nan)


def information_on(grid: OnGrid) -> Tensor:
    """H of each cell, the mean of the three axes: ``(1, 1, h, w, d)``, as the refinement weights it."""
    total = torch.zeros_like(grid.known)
    for modality in grid.modalities:
        known = grid.known * (modality.known > KNOWN_CELL_SHARE)
        _, (hessian,), distance = grid.kernels.data_terms(grid.fixed, modality.features)
        found = grid.kernels.information_of(grid.fixed, modality.features, known > KNOWN_CELL_SHARE)
        weight = weights_of(distance, known) * (found.gain**2 / found.correlation_cells)
        total += (hessian[0] + hessian[3] + hessian[5]) / 3 * weight
    return total


def spread_of(information: Tensor, known: Tensor, *, bending: float) -> Tensor:
    """The standard deviation, in cells, that ``(1, 1, h, w, d)`` information leaves, of all three axes together.

    ``known`` is the share of each cell, ``(1, 1, h, w, d)``; what is not known has no information.
    """
    inside = known > KNOWN_CELL_SHARE
    mean = float(information[inside].mean()) if bool(inside.any()) else 0.0
    mean = max(mean, 1e-6)
    reach = min(max(round((bending / mean) ** 0.25), 1), _WIDEST)
    around = _mean(information * known, size=2 * reach + 1).clamp(min=_LEAST_INFORMATION * mean)
    return around.pow(-0.25).mul(3 * _VARIANCE * bending**-0.75).sqrt()


def _mean(values: Tensor, *, size: int) -> Tensor:
    """Twice the mean over ``size`` cells along each axis, of those that there are."""
    count = box_sum(torch.ones_like(values), size=size)
    for _ in range(2):
        values = box_sum(values, size=size) / count
    return values
