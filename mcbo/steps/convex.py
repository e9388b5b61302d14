"""Weight-balanced coupled convex optimization: a smooth displacement from a cost volume.

docs/method.md, step 4; the coupling is that of Heinrich et al., WBIR 2014, the mean over coupling weights that of MCBO.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from mcbo.core.field import box_mean, shape_of
from mcbo.core.types import CostSlab, Displacement, Features

BOX_SIZE = 3
"""Width of the box mean that smooths the picked field, in cells."""


def coupled_argmin(
    slab: Tensor, displacement: Tensor | None, *, first: int, last: int, search_radius: int, coupling_weight: float
) -> Tensor:
    """Picks, per cell, the candidate c that minimizes cost(c) + w·|c − u|². Of equals, the first.

    Candidates are taken in lines along axis 0: first the best of each line, then the line, then the candidate in it;
    so the whole cost is only added to and reduced once, which torch does fast.

    Args:
        slab: ``(K, rows, w, d)`` costs, K in the order of ``cost_volume.candidates``.
        displacement: u, ``(3, n, w, d)`` cells, n = ``last − first``; None for the plain argmin of the cost.
        first: row of the slab to begin with.
        last: the row after the last.
        search_radius: R, cells.
        coupling_weight: w, cost per cell².

    Returns:
        ``(3, n, w, d)`` float32 cells, whole numbers.
    """
    side = 2 * search_radius + 1
    cost = slab[:, first:last]
    lines = cost.view(side * side, side, *cost.shape[1:])
    steps = torch.arange(-search_radius, search_radius + 1, dtype=cost.dtype, device=cost.device)
    if displacement is None:
        best_of_line = lines.amin(dim=1)
    else:
        apart = [coupling_weight * (steps.view(-1, 1, 1, 1) - u).square_() for u in displacement]  # each (side, n, w, d)
        best_of_line = torch.empty_like(lines[:, 0])
        coupled = torch.empty_like(lines[0])
        for line, best in zip(lines, best_of_line, strict=True):
            torch.add(line, apart[0], out=coupled)
            torch.amin(coupled, dim=0, out=best)
        best_of_line.view(side, side, *cost.shape[1:]).add_(apart[1]).add_(apart[2].unsqueeze(1))
    line_index = best_of_line.argmin(dim=0)
    chosen_line = lines.gather(0, line_index.expand(1, side, *line_index.shape))[0]
    if displacement is not None:
        chosen_line += apart[0]
    return torch.stack([steps[chosen_line.argmin(dim=0)], steps[line_index % side], steps[line_index // side]])


def solve(
    fixed: Features,
    moving: Features,
    *,
    search_radius: int,
    coupling_weights: Sequence[float],
    rows: int,
    cost_slabs: Callable[..., Iterator[CostSlab]],
    coupled_argmin: Callable[..., Tensor],
) -> Displacement:
    """Finds the displacement of a level: pick by cost, then once per coupling weight pick and smooth; the mean of these.

    u₀ = box mean of the argmin of the cost. For each weight w (cost per cell²): pick by cost + w·|c − u|², u ← box mean of
    what was picked. The result, ``(1, 3, h, w, d)`` cells, fixed to moving, is the mean of all u but u₀.

    Features are ``(1, C, h, w, d)``, the search radius is in cells; ``cost_slabs`` and ``coupled_argmin`` are the functions of
    these names, or twins of theirs. A pass needs what the pass before picked one row further
    on, and no more. So the passes follow each other over the rows, each one row behind the last: the cost of a slab of
    ``rows`` rows of axis 0 is made once, used by every pass, and dropped when the last pass has left it. Of what a pass
    picked, too, only the rows that the next one still needs are kept. The result does not depend on ``rows``.
    """
    height, width, depth = shape_of(fixed)
    passes = len(coupling_weights) + 1
    weights = (0.0, *coupling_weights)
    total = fixed.new_zeros((3, height, width, depth))
    picked = [fixed.new_empty((3, 0, width, depth))] * passes  # of each pass, the rows from the one before done[k + 1] on
    done = [0] * (passes + 1)  # the last turn picks no more, it only smooths
    keep = slabs_behind(passes, rows)
    held: deque[tuple[int, CostSlab]] = deque()  # with the row that each begins with
    slabs = cost_slabs(fixed, moving, search_radius=search_radius, rows=rows, keep=keep)
    pick = partial(coupled_argmin, search_radius=search_radius)
    for start, slab in zip(range(0, height, rows), slabs, strict=True):
        held.append((start, slab))
        for k in range(passes + 1):
            first, ready = done[k], height if start + rows >= height else max(start + rows - k, 0)
            if first == ready:
                continue
            u = None
            if k:
                u, picked[k - 1] = _smooth(picked[k - 1], first, ready)
            if u is not None and k > 1:
                total[:, first:ready] += u
            if k < passes:
                chosen = _pick_rows(partial(pick, coupling_weight=weights[k]), held, rows, u, first, ready)
                picked[k] = torch.cat([picked[k], *chosen], dim=1)
            done[k] = ready
        if len(held) > keep:
            held.popleft()
    return total.div_(len(coupling_weights)).unsqueeze(0)


def _smooth(picked: Tensor, first: int, ready: int) -> tuple[Tensor, Tensor]:
    """Box means of the rows ``[first, ready)``, and what the next rows need: picked rows from ``ready − 1`` on.

    ``picked``, ``(3, n, w, d)`` cells, has the rows from ``first − 1`` (or 0) to ``ready`` (or the last).
    """
    low = max(first - 1, 0)
    smooth = box_mean(picked, size=BOX_SIZE)[:, first - low : ready - low]
    return smooth, picked[:, ready - 1 - low :].clone()  # a view would hold all


def _pick_rows(
    pick: Callable[..., Tensor],
    held: Iterable[tuple[int, CostSlab]],
    rows: int,
    displacement: Tensor | None,
    first: int,
    ready: int,
) -> Iterator[Tensor]:
    """What ``pick`` picks of the rows ``[first, ready)``, to which ``displacement`` belongs, slab by slab."""
    for begin, slab in held:
        low, high = max(first, begin), min(ready, begin + rows)
        if low < high:
            u = None if displacement is None else displacement[:, low - first : high - first]
            yield pick(slab, u, first=low - begin, last=high - begin)


def slabs_behind(passes: int, rows: int) -> int:
    """How many slabs before the newest the last pass may still be in."""
    return -(-(passes - 1) // rows)
