"""Masked dense correlation and its coupled solution: steps 3 to 5 where parts of the images are unknown.

Differs from ``cost_volume.py`` and ``convex.py`` in what a field of view needs: costs are means over the known part only, so
that nothing is pulled toward an edge or a border; ties go to the smallest displacement; and minima are found between cells.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mcbo.core.field import box_sum, shape_of
from mcbo.core.types import Displacement, Features, Kernels
from mcbo.steps.cost_volume import candidates

MIN_SUPPORT = 0.1
"""A candidate counts if the known part that it compares is more than this share of that without displacement."""
TIE_WEIGHT = 1e-6
"""Coupling of the first pass to zero displacement, per cell²: it only decides ties."""
SMOOTHING_FLOOR = 1e-3
"""Weight of an unknown cell in box means over known ones."""
BOX_ROUNDS = 2


@dataclass(frozen=True)
class SearchStage:
    """A stage of the masked search for a rigid motion: g, voxels per cell, and R, cells."""

    grid_spacing: int
    search_radius: int


def masked_cost(
    fixed: Features,
    moving: Features,
    fixed_known: Tensor,
    moving_known: Tensor,
    *,
    search_radius: int,
    box_rounds: int = BOX_ROUNDS,
) -> Tensor:
    """The cost of all candidates: a weighted mean of the squared feature difference over a window.

    cost(p, c) = box(k·Σ over channels of (F(p) − M(p + c))²) / box(k), k = fixed_known(p)·moving_known(p + c), box being
    ``box_rounds`` 3×3×3 box sums. A candidate that compares too little (``MIN_SUPPORT``) gets the mean cost of the others.

    Features are ``(1, C, h, w, d)``; the known share of each cell, from 0 to 1, is ``(1, 1, h, w, d)``; R is in cells. Returns
    ``(K, h, w, d)`` costs in the order of ``cost_volume.candidates``.
    """
    shape = shape_of(fixed)
    steps = candidates(search_radius).tolist()
    cost = fixed.new_empty((len(steps), *shape))
    support = box_sum(fixed_known[0, 0] * moving_known[0, 0], size=3, rounds=box_rounds)
    total, count = torch.zeros_like(support), torch.zeros_like(support)
    unjudged = torch.empty_like(cost, dtype=torch.bool)
    for k, step in enumerate(steps):
        here = tuple(slice(max(0, -c), max(0, min(size, size - c))) for c, size in zip(step, shape, strict=True))
        there = tuple(slice(max(0, c), max(0, min(size, size + c))) for c, size in zip(step, shape, strict=True))
        known = torch.zeros_like(support)
        difference = torch.zeros_like(support)
        known[here] = fixed_known[0, 0][here] * moving_known[0, 0][there]
        for f, m in zip(fixed[0], moving[0], strict=True):
            difference[here] += (f[here] - m[there]).square_()
        weight, mean = box_sum(torch.stack([known, difference.mul_(known)]), size=3, rounds=box_rounds)
        judged = weight > (MIN_SUPPORT * support).clamp(min=1e-6)
        torch.div(mean, weight.clamp(min=1e-6), out=cost[k])
        cost[k].mul_(judged)
        torch.logical_not(judged, out=unjudged[k])
        total += cost[k]
        count += judged
    return torch.where(unjudged, total / count.clamp(min=1), cost)


def solve_masked(
    cost: Tensor, known: Tensor, *, search_radius: int, coupling_weights: Sequence[float], kernels: Kernels
) -> Displacement:
    """Step 4 on a masked cost: pick, move to the minimum between cells, smooth over known cells; the mean over weights.

    ``cost``: ``(K, h, w, d)``, of ``masked_cost``; ``known``: ``(1, 1, h, w, d)`` from 0 to 1, of the image that the cost lives
    on; ``coupling_weights``: w of each pass, cost per cell². Returns ``(1, 3, h, w, d)`` cells.
    """
    slab = kernels.as_slab(cost)
    weights = known[0] + SMOOTHING_FLOOR
    normalizer = box_sum(weights, size=3)
    u = torch.zeros((3, *cost.shape[1:]), dtype=cost.dtype, device=cost.device)
    total = torch.zeros_like(u)
    for number, weight in enumerate((TIE_WEIGHT, *coupling_weights)):
        picked = kernels.coupled_argmin(
            slab, u, first=0, last=cost.shape[1], search_radius=search_radius, coupling_weight=weight
        )
        moved = kernels.between_cells(cost, picked, u, search_radius=search_radius, coupling_weight=weight)
        u = box_sum(moved * weights, size=3) / normalizer
        if number:
            total += u
    return (total / len(coupling_weights)).unsqueeze(0)


def between_cells(cost: Tensor, picked: Tensor, displacement: Tensor, *, search_radius: int, coupling_weight: float) -> Tensor:
    """Moves each picked candidate to the minimum of a parabola through it and its neighbors, per axis, by half a cell at most.

    ``cost`` is ``(K, h, w, d)``, ``picked`` ``(3, h, w, d)`` whole cells; ``displacement``, of that shape, and
    ``coupling_weight``, cost per cell², are those that the pick was coupled by.
    """
    side = 2 * search_radius + 1
    place = (picked + search_radius).long()
    index = (place[2] * side + place[1]) * side + place[0]
    center = cost.gather(0, index.unsqueeze(0))[0]
    moved = picked.clone()
    for axis in range(3):
        inner = (place[axis] > 0) & (place[axis] < side - 1)
        stride = side**axis
        apart = picked[axis] - displacement[axis]
        below, above = (
            cost.gather(0, torch.where(inner, index + sign * stride, index).unsqueeze(0))[0]
            - center
            + coupling_weight * (1 + 2 * sign * apart)
            for sign in (-1, 1)
        )
        bend = below + above
        step = (0.5 * (below - above) / bend.clamp(min=1e-9)).clamp(-0.5, 0.5)
        moved[axis] += torch.where(inner & (bend > 1e-9), step, torch.zeros_like(step))
    return moved


def search(
    fixed: Features,
    moving: Features,
    fixed_known: Tensor,
    moving_known: Tensor,
    *,
    search_radius: int,
    coupling_weights: Sequence[float],
    consistency_rounds: int,
    kernels: Kernels,
    solve: Callable[..., Displacement] = solve_masked,
    box_rounds: int = BOX_ROUNDS,
) -> Displacement:
    """Steps 3 to 5 both ways, made consistent: ``(1, 3, h, w, d)`` cells, fixed to moving.

    The features of all modalities, ``(1, C, h, w, d)``, are concatenated as channels. ``solve`` makes a displacement of a
    masked cost, called as ``solve_masked`` is; the rest is as for it and for ``masked_cost``. For consistency, displacements
    continue beyond the grid as at its border: with zeros there, as ``consistency.py`` samples, cells that look beyond the grid
    would lose half of their displacement.
    """
    both = (
        solve(
            kernels.masked_cost(a, b, a_known, b_known, search_radius=search_radius, box_rounds=box_rounds),
            a_known,
            search_radius=search_radius,
            coupling_weights=coupling_weights,
            kernels=kernels,
        )
        for a, b, a_known, b_known in ((fixed, moving, fixed_known, moving_known), (moving, fixed, moving_known, fixed_known))
    )
    margin = search_radius + 1
    padded = (functional.pad(displacement, [margin] * 6, mode="replicate") for displacement in both)
    forward, _ = kernels.make_consistent(*padded, rounds=consistency_rounds, stretch=False)
    return forward[..., margin:-margin, margin:-margin, margin:-margin].contiguous()
