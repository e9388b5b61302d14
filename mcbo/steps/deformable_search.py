"""Dense search for a deformation, each cell weighted by the sharpness of its minimum.

Like step 4 of the paper, but not coupled by a box mean: along each axis separately, a cell keeps its own minimum where the cost
is a sharp valley; where it is flat, the neighbors decide.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcbo.core.field import shape_of
from mcbo.core.types import Displacement, Kernels
from mcbo.steps.linear_solver import laplacian
from mcbo.steps.masked_search import TIE_WEIGHT
from mcbo.steps.mind import MindSettings

EDGE_TRUST = 0.1
"""Weight of a minimum at the edge of the search cube: the true one may lie beyond."""
COST_BOX_ROUNDS = 1
"""Box sums that make up the window of the cost."""
CG_ROUNDS = 60
RIDGE = 1e-6
"""Keeps the equations solvable where nothing is known."""


@dataclass(frozen=True)
class DeformStage:
    """A stage of the search for a deformation.

    Attributes:
        grid_spacing: g, voxels per cell.
        search_radius: R, cells.
        mind: its features.
        stretching: λ, weight of the squared differences of neighbors, for images that are as similar as ``clear`` ...
        clear: ... or more; for a similarity S below it, λ is multiplied by (clear/S)².
    """

    grid_spacing: int
    search_radius: int
    mind: MindSettings
    stretching: float
    clear: float


def solve_stretched(
    cost: Tensor,
    known: Tensor,
    *,
    search_radius: int,
    coupling_weights: Sequence[float],
    stretching: float,
    kernels: Kernels,
) -> Displacement:
    """The deformation, ``(1, 3, h, w, d)`` cells, of a masked cost: a ``solve`` for ``masked_search.search``.

    Per pass: pick by cost + w·|c − u|², then u ← argmin Σ h·(u − c)² + λ·Σ |differences of neighbors|², h being the sharpness
    of the minimum. ``stretching`` is λ, cost per cell² of difference; the rest is as for ``masked_search.solve_masked``.
    """
    slab = kernels.as_slab(cost)
    u = torch.zeros((1, 3, *cost.shape[1:]), dtype=cost.dtype, device=cost.device)
    transform = kernels.cosine_transform(shape_of(u), like=u)
    for number, weight in enumerate(coupling_weights):
        picked = kernels.coupled_argmin(
            slab,
            u[0],
            first=0,
            last=cost.shape[1],
            search_radius=search_radius,
            coupling_weight=weight if number else TIE_WEIGHT,
        )
        target = kernels.between_cells(cost, picked, u[0], search_radius=search_radius, coupling_weight=0.0)
        trust = (kernels.sharpness(cost, picked, search_radius=search_radius) * known[0])[None]
        symbol = transform.symbol(float(trust.mean()) + RIDGE, stretching=stretching)
        u = kernels.conjugate_gradient(
            kernels.stretched(trust, stretching),
            trust * target[None],
            transform.solver(symbol),
            rounds=CG_ROUNDS,
        )
    return u


def stretched(trust: Tensor, stretching: float) -> Callable[[Displacement], Displacement]:
    """The left side of the equations of a pass, as a function of u: ``trust``, h, is of its shape ``(1, 3, h, w, d)``."""
    return lambda field: (trust + RIDGE) * field + stretching * laplacian(field)


def sharpness(cost: Tensor, picked: Tensor, *, search_radius: int) -> Tensor:
    """The second difference of the cost, ``(K, h, w, d)``, at the picked whole cells along each axis, at least 0.

    ``picked`` and the result are ``(3, h, w, d)``; R is at least 1.
    """
    side = 2 * search_radius + 1
    place = (picked + search_radius).long()
    result = torch.empty_like(picked)
    for axis in range(3):
        inner = place.clone()
        inner[axis] = inner[axis].clamp(1, side - 2)
        index = (inner[2] * side + inner[1]) * side + inner[0]
        below, center, above = (cost.gather(0, (index + step * side**axis)[None])[0] for step in (-1, 0, 1))
        at_edge = (place[axis] == 0) | (place[axis] == side - 1)
        result[axis] = (below + above - 2 * center).clamp(min=0) * torch.where(at_edge, EDGE_TRUST, 1.0)
    return result
