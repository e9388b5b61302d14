"""Coupled optimization on a GPU: twins of ``convex.py``, and of what ``masked_search.py`` does with costs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mcbo.core.field import shape_of
from mcbo.core.types import Displacement, Features
from mcbo.kernels.cuda.correlation import empty_ring, fill_rows
from mcbo.kernels.cuda.launch import Launch, Module, per_cell
from mcbo.steps.cost_volume import check_shapes
from mcbo.steps.deformable_search import EDGE_TRUST


def module_of(search_radius: int) -> Module:
    """The source for a search radius, cells."""
    return Module("search.cu", (("SIDE", 2 * search_radius + 1), ("EXACT", 1)))


def coupled_argmin(
    launch: Launch,
    slab: Tensor,
    displacement: Tensor | None,
    *,
    first: int,
    last: int,
    search_radius: int,
    coupling_weight: float,
) -> Tensor:
    """Twin of ``convex.coupled_argmin``."""
    _, rows, width, depth = slab.shape
    cells, plane = (last - first) * width * depth, width * depth
    picked = torch.empty((3, last - first, width, depth), dtype=torch.float32, device=slab.device)
    u = picked if displacement is None else displacement.contiguous()
    weight = 0.0 if displacement is None else float(coupling_weight)
    per_cell(launch, module_of(search_radius), "pick", cells, slab, u, picked, rows * plane, first * plane, cells, weight)
    return picked


def solve(
    launch: Launch,
    fixed: Features,
    moving: Features,
    *,
    search_radius: int,
    coupling_weights: Sequence[float],
    rows: int,
) -> Displacement:
    """Twin of ``convex.solve``: there is more on how the passes follow each other.

    The costs lie in a ring of rows, those of the slab before as long as the last pass needs them. A pass is one launch per
    slab, which smooths what the pass before picked and picks.
    """
    check_shapes(fixed, moving)
    fixed, moving = fixed.contiguous(), moving.contiguous()
    height, width, depth = shape_of(fixed)
    passes = len(coupling_weights) + 1
    weights = (0.0, *map(float, coupling_weights), 0.0)
    module = module_of(search_radius)
    cost = empty_ring(fixed, search_radius=search_radius, rows=ring_rows(height, passes=passes, rows=rows))
    picked = torch.empty((passes, 3, height, width, depth), dtype=torch.int8, device=fixed.device)
    total = fixed.new_zeros((3, height, width, depth))
    done = [0] * (passes + 1)  # the last turn picks no more, it only smooths
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        fill_rows(launch, fixed, moving, cost, search_radius=search_radius, start=start, stop=stop)
        for k in range(passes + 1):
            first, ready = done[k], height if stop == height else max(stop - k, 0)
            if first == ready:
                continue
            fields = cost, picked[max(k - 1, 0)], picked[min(k, passes - 1)], total  # the last turn reads only
            sizes = height, width, depth, cost.shape[1], first, ready
            flags = int(k > 0), int(k > 1), int(k < passes)
            per_cell(launch, module, "advance", (ready - first) * width * depth, *fields, *sizes, weights[k], *flags)
            done[k] = ready
    return total.div_(len(coupling_weights)).unsqueeze(0)


def ring_rows(height: int, *, passes: int, rows: int) -> int:
    """Rows of costs that ``solve`` holds: those of the newest slab, and one more for every pass that lags behind the first."""
    return min(rows + passes - 1, height)


def between_cells(
    launch: Launch, cost: Tensor, picked: Tensor, displacement: Tensor, *, search_radius: int, coupling_weight: float
) -> Tensor:
    """Twin of ``masked_search.between_cells``."""
    moved = torch.empty_like(picked)
    cells = cost[0].numel()
    fields = cost, picked, displacement.contiguous(), moved
    per_cell(launch, module_of(search_radius), "move_between", cells, *fields, cells, float(coupling_weight))
    return moved


def sharpness(launch: Launch, cost: Tensor, picked: Tensor, *, search_radius: int) -> Tensor:
    """Twin of ``deformable_search.sharpness``."""
    sharp = torch.empty_like(picked)
    cells = cost[0].numel()
    per_cell(launch, module_of(search_radius), "sharpen", cells, cost, picked, sharp, cells, EDGE_TRUST)
    return sharp
