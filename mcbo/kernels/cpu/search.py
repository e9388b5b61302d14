"""The masked search, compiled for the CPU: twins of ``masked_search.py`` and ``deformable_search.py``."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.field import box_sum, shape_of
from mcbo.core.types import Features
from mcbo.kernels.cpu.correlation import cell_lines
from mcbo.kernels.simd import LANES, Floats, aligned_zeros, compiled, load, spread, store
from mcbo.kernels.threads import in_threads
from mcbo.steps.cost_volume import candidates
from mcbo.steps.deformable_search import EDGE_TRUST
from mcbo.steps.masked_search import BOX_ROUNDS, MIN_SUPPORT


def masked_cost(
    fixed: Features,
    moving: Features,
    fixed_known: Tensor,
    moving_known: Tensor,
    *,
    search_radius: int,
    box_rounds: int = BOX_ROUNDS,
) -> Tensor:
    """Twin of ``masked_search.masked_cost``: one candidate after the other, in as many threads as there are."""
    shape = shape_of(fixed)
    steps = candidates(search_radius).long().numpy()
    least = MIN_SUPPORT * box_sum(fixed_known[0, 0] * moving_known[0, 0], size=3, rounds=box_rounds)
    cost = torch.empty((len(steps), *shape))
    pairs = (fixed, moving), (fixed_known.float(), moving_known.float())
    features, known = ((cell_lines(a, margin=0), cell_lines(b, margin=search_radius)) for a, b in pairs)
    result = cost.numpy()
    in_threads(_fill_cost, len(steps), steps, *features, *known, least.clamp(min=1e-6).numpy(), box_rounds, result)
    in_threads(_fill_unjudged, shape[0], result)
    return cost


def between_cells(cost: Tensor, picked: Tensor, displacement: Tensor, *, search_radius: int, coupling_weight: float) -> Tensor:
    """Twin of ``masked_search.between_cells``."""
    moved = torch.empty_like(picked, memory_format=torch.contiguous_format)
    fields = (one.contiguous().numpy() for one in (cost, picked, displacement))
    in_threads(_move_between, cost.shape[1], *fields, search_radius, np.float32(coupling_weight), moved.numpy())
    return moved


def sharpness(cost: Tensor, picked: Tensor, *, search_radius: int) -> Tensor:
    """Twin of ``deformable_search.sharpness``."""
    result = torch.empty_like(picked, memory_format=torch.contiguous_format)
    fields = (one.contiguous().numpy() for one in (cost, picked))
    in_threads(_fill_sharpness, cost.shape[1], *fields, search_radius, np.float32(EDGE_TRUST), result.numpy())
    return result


@compiled
def _fill_cost(
    steps: NDArray[np.int64],
    fixed: Floats,
    moving: Floats,
    fixed_known: Floats,
    moving_known: Floats,
    least: Floats,
    rounds: int,
    cost: Floats,
    first: int,
    last: int,
) -> None:
    """The cost of the candidates ``[first, last)``; not a number where a candidate compares too little."""
    _, height, width, depth = cost.shape
    channels, length, longer = fixed.shape[2], fixed.shape[3], moving.shape[3]
    radius = (len(moving) - height) // 2
    weight, mean = np.empty((height, width, depth), np.float32), np.empty((height, width, depth), np.float32)
    other = np.empty((height, width, depth), np.float32)
    line = aligned_zeros(2 * length)
    for number in range(first, last):
        s0, s1, s2 = steps[number] + radius
        for i in range(height):
            for j in range(width):
                here = (i * width + j) * length
                there = ((i + s0) * moving.shape[1] + j + s1) * longer + s2
                for z in range(0, length, LANES):
                    both = load(fixed_known, here + z) * load(moving_known, there + z)
                    distance = spread(0.0)
                    for channel in range(channels):
                        difference = load(fixed, here * channels + channel * length + z)
                        difference = difference - load(moving, (there - s2) * channels + channel * longer + s2 + z)
                        distance = distance + difference * difference
                    store(line, z, both)
                    store(line, length + z, both * distance)
                weight[i, j] = line[:depth]
                mean[i, j] = line[length : length + depth]
        for _ in range(rounds):
            _box_sum(weight, other)
            _box_sum(mean, other)
        for i in range(height):
            for j in range(width):
                w, m, bound, target = weight[i, j], mean[i, j], least[i, j], cost[number, i, j]
                for k in range(depth):
                    target[k] = m[k] / max(w[k], np.float32(1e-6)) if w[k] > bound[k] else np.float32(np.nan)


@compiled
def _box_sum(volume: Floats, other: Floats) -> None:
    """Sums over 3³ cells, zero outside, in place; ``other`` is of the same shape."""
    height, width, depth = volume.shape
    for i in range(height):
        source, target = volume[i].reshape(-1), other[i].reshape(-1)
        before = volume[max(i - 1, 0)].reshape(-1)
        after = volume[min(i + 1, height - 1)].reshape(-1)
        has_before, has_after = np.float32(i > 0), np.float32(i < height - 1)
        for k in range(width * depth):
            target[k] = source[k] + has_before * before[k] + has_after * after[k]
    for i in range(height):
        for j in range(width):
            source, target = other[i, j], volume[i, j]
            before, after = other[i, max(j - 1, 0)], other[i, min(j + 1, width - 1)]
            has_before, has_after = np.float32(j > 0), np.float32(j < width - 1)
            for k in range(depth):
                target[k] = source[k] + has_before * before[k] + has_after * after[k]
    line = np.zeros(depth + 2, np.float32)
    for i in range(height):
        for j in range(width):
            target = volume[i, j]
            line[1 : depth + 1] = target
            for k in range(depth):
                target[k] = line[k] + line[k + 1] + line[k + 2]


@compiled
def _fill_unjudged(cost: Floats, first: int, last: int) -> None:
    """Gives candidates that compare too little the mean cost of the others: the rows ``[first, last)``."""
    width, depth = cost.shape[2:]
    amount, count = np.empty(width * depth, np.float32), np.empty(width * depth, np.float32)
    for i in range(first, last):
        amount[:] = 0
        count[:] = 0
        for number in range(len(cost)):
            row = cost[number, i].reshape(-1)
            for k in range(width * depth):
                is_judged = row[k] == row[k]
                amount[k] += row[k] if is_judged else np.float32(0)
                count[k] += np.float32(is_judged)
        for k in range(width * depth):
            amount[k] /= max(count[k], np.float32(1))
        for number in range(len(cost)):
            row = cost[number, i].reshape(-1)
            for k in range(width * depth):
                row[k] = row[k] if row[k] == row[k] else amount[k]


@compiled
def _move_between(
    cost: Floats, picked: Floats, displacement: Floats, radius: int, weight: float, moved: Floats, first: int, last: int
) -> None:
    """Each picked candidate of the rows ``[first, last)``, moved to the minimum of a parabola along each axis."""
    _, _, width, depth = cost.shape
    side = 2 * radius + 1
    one, half = np.float32(1), np.float32(0.5)
    for i in range(first, last):
        for j in range(width):
            for k in range(depth):
                p0, p1 = int(picked[0, i, j, k]) + radius, int(picked[1, i, j, k]) + radius
                p2 = int(picked[2, i, j, k]) + radius
                number = (p2 * side + p1) * side + p0
                center = cost[number, i, j, k]
                for axis in range(3):
                    place = p0 if axis == 0 else p1 if axis == 1 else p2
                    step = 1 if axis == 0 else side if axis == 1 else side * side
                    whole = picked[axis, i, j, k]
                    moved[axis, i, j, k] = whole
                    if 0 < place < side - 1:
                        apart = np.float32(2) * (whole - displacement[axis, i, j, k])
                        below = cost[number - step, i, j, k] - center + weight * (one - apart)
                        above = cost[number + step, i, j, k] - center + weight * (one + apart)
                        bend = below + above
                        if bend > np.float32(1e-9):
                            moved[axis, i, j, k] = whole + min(max(half * (below - above) / bend, -half), half)


@compiled
def _fill_sharpness(
    cost: Floats, picked: Floats, radius: int, edge_trust: float, result: Floats, first: int, last: int
) -> None:
    """The second difference of the cost along each axis, at least 0: the rows ``[first, last)``."""
    _, _, width, depth = cost.shape
    side = 2 * radius + 1
    for i in range(first, last):
        for j in range(width):
            for k in range(depth):
                p0, p1 = int(picked[0, i, j, k]) + radius, int(picked[1, i, j, k]) + radius
                p2 = int(picked[2, i, j, k]) + radius
                number = (p2 * side + p1) * side + p0
                for axis in range(3):
                    place = p0 if axis == 0 else p1 if axis == 1 else p2
                    step = 1 if axis == 0 else side if axis == 1 else side * side
                    inner = number + step * (min(max(place, 1), side - 2) - place)
                    bend = cost[inner - step, i, j, k] + cost[inner + step, i, j, k] - np.float32(2) * cost[inner, i, j, k]
                    trust = np.float32(1) if 0 < place < side - 1 else edge_trust
                    result[axis, i, j, k] = max(bend, np.float32(0)) * trust
