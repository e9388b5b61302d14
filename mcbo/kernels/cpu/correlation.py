"""Cost volume and coupled argmin, compiled for the CPU: twins of ``cost_volume.cost_slabs`` and ``convex.coupled_argmin``.

Costs are laid out ``(rows, w, blocks, K, 16)``, as the search reads them: all candidates of 16 neighbors along axis 2 side by
side. A slab also has the least cost of every line of candidates along axis 0. A coupled pass adds the line's own part of the
coupling to it; if the sum exceeds the best so far, none of the line can win, and its costs (half to nine tenths) are not read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mcbo.core.field import shape_of
from mcbo.core.types import Features
from mcbo.kernels.simd import (
    LANES,
    Floats,
    aligned_floats,
    aligned_zeros,
    any_at_most,
    compiled,
    lesser,
    load,
    prefetch,
    round_up,
    settle,
    slide_1,
    slide_2,
    slide_14,
    slide_15,
    spread,
    squares_3,
    squares_5,
    squares_9,
    store,
    stream,
    where_less,
)
from mcbo.kernels.threads import in_threads
from mcbo.steps.cost_volume import HALO, check_shapes

STRIPE_FLOATS = 9 * 2**12
"""Floats of the columns whose box means are computed together, so that they stay in a core's cache (144 KB).

With 16 columns throughout, 128³ cells took 8 to 15 % longer (two cores, AMD EPYC, 2026-11-24)."""
WINDOW = 2 * HALO + 1
"""Width of the two box means together."""


@dataclass(frozen=True)
class Slab:
    """Costs of some rows.

    Attributes:
        cost: ``(rows, w, blocks, K, 16)``; lanes beyond the grid are undefined.
        line_minimum: ``(rows, w, blocks, (2R+1)², 16)``, the least cost of each line of candidates along axis 0; infinite
            beyond the grid.
        picked: ``(rows, w, blocks, 16)``, the candidate that was picked last: a good bound for the next pass.
        depth: of the grid; blocks · 16 or less.
    """

    cost: Floats
    line_minimum: Floats
    picked: NDArray[np.int32]
    depth: int


def cost_slabs(fixed: Features, moving: Features, *, search_radius: int, rows: int, keep: int) -> Iterator[Slab]:
    """Twin of ``cost_volume.cost_slabs``; ``keep + 1`` slabs take turns, so that memory is allocated once."""
    check_shapes(fixed, moving)
    height, width, depth = shape_of(fixed)
    side = 2 * search_radius + 1
    blocks = round_up(depth) // LANES
    fixed_lines, moving_lines = cell_lines(fixed, margin=0), cell_lines(moving, margin=search_radius)
    carried = aligned_floats(side * side, 2 * HALO, width, blocks, side, LANES)
    weights = _window_weights(height) / 9, _window_weights(width) / 81
    thickness = min(rows, height)
    slabs = [_empty_slab(thickness, width, depth, search_radius) for _ in range(min(keep + 1, -(-height // rows)))]
    done = 0
    for turn, start in enumerate(range(0, height, rows)):
        stop = min(start + rows, height)
        reach = min(stop + HALO, height)
        slab = slabs[turn % len(slabs)]
        span = np.array([start, stop, done, reach])
        in_threads(_fill_costs, side * side, fixed_lines, moving_lines, carried, slab.cost, weights, span, depth)
        _fill_minima(slab, stop - start)
        done = reach
        yield slab


def as_slab(cost: Tensor) -> Slab:
    """A whole cost volume ``(K, h, w, d)``, in the order of ``cost_volume.candidates``, as one slab."""
    count, height, width, depth = cost.shape
    blocks = round_up(depth) // LANES
    side = round(count ** (1 / 3))
    slab = _empty_slab(height, width, depth, (side - 1) // 2)
    padded = functional.pad(cost, [0, blocks * LANES - depth])
    torch.from_numpy(slab.cost).copy_(padded.view(count, height, width, blocks, LANES).permute(1, 2, 3, 0, 4))
    _fill_minima(slab, height)
    return slab


def _fill_minima(slab: Slab, rows: int) -> None:
    in_threads(_fill_line_minima, rows * slab.cost.shape[1], slab.cost, slab.line_minimum, slab.depth)
    slab.picked.fill(0)


def _empty_slab(rows: int, width: int, depth: int, search_radius: int) -> Slab:
    side, blocks = 2 * search_radius + 1, round_up(depth) // LANES
    return Slab(
        cost=aligned_floats(rows, width, blocks, side**3, LANES),
        line_minimum=aligned_floats(rows, width, blocks, side**2, LANES),
        picked=np.empty((rows, width, blocks, LANES), dtype=np.int32),
        depth=depth,
    )


def coupled_argmin(
    slab: Slab, displacement: Tensor | None, *, first: int, last: int, search_radius: int, coupling_weight: float
) -> Tensor:
    """Twin of ``convex.coupled_argmin``."""
    width = slab.cost.shape[1]
    picked = torch.empty((3, last - first, width, slab.depth))
    costs, minima, numbers = slab.cost[first:last], slab.line_minimum[first:last], slab.picked[first:last]
    found = numbers, picked.numpy(), search_radius
    lines = (last - first) * width
    if displacement is None:
        in_threads(_pick, lines, costs, minima, *found)
    else:
        u = displacement.contiguous().numpy()
        in_threads(_pick_coupled, lines, costs, minima, u, np.float32(coupling_weight), *found)
    return picked


def cell_lines(features: Features, *, margin: int) -> Floats:
    """``(1, C, h, w, d)`` features as ``(h, w, C, length)``, d rounded up, with a margin of zeros around h, w and length.

    With a margin, lines are longer, so that each begins on a cache line and ``squares`` may read on.
    """
    _, channels, height, width, depth = features.shape
    length = round_up(round_up(depth) + 2 * margin) + LANES if margin else round_up(depth)
    lines = aligned_floats(height + 2 * margin, width + 2 * margin, channels, length)
    lines.fill(0)
    inside = torch.from_numpy(lines)[margin : margin + height, margin : margin + width, :, margin : margin + depth]
    inside.copy_(features[0].permute(1, 2, 0, 3))
    return lines


def _window_weights(length: int) -> Floats:
    """Weights of the five cells around each cell in two zero-padded box sums of three, ``(length, 5)``."""
    weights = np.tile(np.array([1, 2, 3, 2, 1], dtype=np.float32), (length, 1))
    weights[0, HALO] -= 1  # the first sum is not taken outside, so at either end one of the three is missing
    weights[-1, HALO] -= 1
    offset = np.arange(length)[:, None] + np.arange(-HALO, HALO + 1)
    return np.where((offset >= 0) & (offset < length), weights, np.float32(0))


@compiled
def _fill_costs(
    fixed: Floats,
    moving: Floats,
    carried: Floats,
    cost: Floats,
    weights: tuple[Floats, Floats],
    span: NDArray[np.int64],
    depth: int,
    first: int,
    last: int,
) -> None:
    """Costs of rows ``[start, stop)`` for the lines ``[first, last)`` of candidates along axis 2.

    ``span`` is ``(start, stop, done, reach)``: rows below ``done`` are already summed along axes 1 and 2, the last of them in
    ``carried``; rows from ``done`` to ``reach`` are summed now. ``weights`` are those of axes 0 and 1.
    """
    start, stop, done, reach = span
    width, length = fixed.shape[1], fixed.shape[3]
    side = carried.shape[4]
    size = length * side  # floats of a line of cells with all candidates along axis 2
    ring = 2 * HALO  # rows that are carried
    raw = aligned_zeros((side + 2) * (length + 2 * LANES)).reshape((side + 2, length + 2 * LANES))  # zeros before and after
    columns = aligned_zeros((reach - done) * WINDOW * size).reshape((reach - done, WINDOW, size))
    stripe = max(2, STRIPE_FLOATS // ((stop - start + ring) * size))
    summed = aligned_zeros((stop - start + ring) * stripe * size).reshape((-1, stripe, size))  # from row start − HALO on
    for pair in range(first, last):
        c0, c1 = pair % side, pair // side
        columns[:] = 0
        for low in range(0, width, stripe):
            high = min(low + stripe, width)
            for i in range(max(start - HALO, 0), done):
                _copy(carried[pair, i % ring, low:high], summed[i - start + HALO])
            for i in range(done, reach):
                for j in range(low + HALO if low else 0, high + HALO):
                    column = columns[i - done, j % WINDOW]
                    if j < width:
                        _square_differences(fixed[i, j], moving[i + c0, j + c1], raw)
                        _sum_along_axis_2(raw, column, depth)
                    else:
                        column[:] = 0
                    if j >= low + HALO:  # column j − HALO now has both its neighbors
                        _sum_along_axis_1(columns[i - done], j, weights[1][j - HALO], summed[i - start + HALO, j - HALO - low])
            for i in range(start, stop):
                _sum_along_axis_0(summed[i - start : i - start + WINDOW], weights[0][i], cost[i - start, low:high], pair)
            for i in range(max(stop - HALO, 0), reach):
                _copy(summed[i - start + HALO, : high - low], carried[pair, i % ring, low:high])
    settle()


@compiled
def _copy(source: Floats, target: Floats) -> None:
    """Copies all floats of an array, a multiple of ``LANES``, to the beginning of another."""
    for z in range(0, source.size, LANES):
        store(target, z, load(source, z))


@compiled
def _square_differences(fixed: Floats, moving: Floats, raw: Floats) -> None:
    """Squared differences of ``(C, length)`` and ``(C, longer)`` features for a line of candidates along axis 2.

    Written to ``(side + 2, LANES + length + LANES)``.
    """
    channels, length = fixed.shape
    longer, pitch = moving.shape[1], raw.shape[1]
    side = raw.shape[0] - 2
    for z in range(0, length, LANES):
        c2 = 0
        while c2 < side:
            m, to = z + c2, c2 * pitch + LANES + z
            if side - c2 >= 9:
                squares_9(fixed, z, length, moving, m, longer, channels, raw, to, pitch)
                c2 += 9
            elif side - c2 >= 5:
                squares_5(fixed, z, length, moving, m, longer, channels, raw, to, pitch)
                c2 += 5
            else:
                squares_3(fixed, z, length, moving, m, longer, channels, raw, to, pitch)
                c2 += 3


@compiled
def _sum_along_axis_2(raw: Floats, column: Floats, depth: int) -> None:
    """Both box sums along axis 2 of the result of ``_square_differences``, to ``(blocks, side, LANES)``."""
    side, pitch = raw.shape[0] - 2, raw.shape[1]
    blocks = pitch // LANES - 2
    last_lane = (depth - 1) // LANES * side * LANES + (depth - 1) % LANES
    two, three = spread(2.0), spread(3.0)
    for c2 in range(side):
        z = c2 * pitch + LANES
        if depth < blocks * LANES:
            for k in range(HALO):
                raw[c2, LANES + depth + k] = 0.0
        before, now = spread(0.0), load(raw, z)
        for block in range(blocks):
            after = load(raw, z + (block + 1) * LANES)
            one = slide_14(before, now) + slide_2(now, after)
            one = one + two * (slide_15(before, now) + slide_1(now, after)) + three * now
            store(column, (block * side + c2) * LANES, one)
            before, now = now, after
        column[c2 * LANES] -= raw[c2, LANES]
        column[c2 * LANES + last_lane] -= raw[c2, LANES + depth - 1]


@compiled
def _sum_along_axis_1(columns: Floats, j: int, weights: Floats, summed: Floats) -> None:
    """Both box sums along axis 1: of the ring of ``(WINDOW, size)`` columns whose newest is j, to ``(size,)``."""
    size = len(summed)
    w0, w1, w2 = spread(weights[0]), spread(weights[1]), spread(weights[2])
    w3, w4 = spread(weights[3]), spread(weights[4])
    k0, k1, k2 = (j + 1) % WINDOW * size, (j + 2) % WINDOW * size, (j + 3) % WINDOW * size
    k3, k4 = (j + 4) % WINDOW * size, j % WINDOW * size
    for z in range(0, size, LANES):
        one = w0 * load(columns, k0 + z) + w1 * load(columns, k1 + z) + w2 * load(columns, k2 + z)
        one = one + w3 * load(columns, k3 + z) + w4 * load(columns, k4 + z)
        store(summed, z, one)


@compiled
def _sum_along_axis_0(summed: Floats, weights: Floats, cost: Floats, pair: int) -> None:
    """Both box sums along axis 0: of five rows, ``(5, ≥ cells, size)``, to costs of the middle, ``(cells, blocks, K, 16)``."""
    cells, blocks, count, _ = cost.shape
    step = summed.shape[1] * summed.shape[2]
    side = summed.shape[2] // (blocks * LANES)
    w0, w1, w2 = spread(weights[0]), spread(weights[1]), spread(weights[2])
    w3, w4 = spread(weights[3]), spread(weights[4])
    z = 0
    for line in range(cells * blocks):
        to = (line * count + pair) * LANES
        for _ in range(side):
            one = w0 * load(summed, z) + w1 * load(summed, z + step) + w2 * load(summed, z + 2 * step)
            one = one + w3 * load(summed, z + 3 * step) + w4 * load(summed, z + 4 * step)
            stream(cost, to, one)
            z += LANES
            to += side * side * LANES


@compiled
def _fill_line_minima(cost: Floats, minima: Floats, depth: int, first: int, last: int) -> None:
    """The least cost of every line of candidates along axis 0, for the lines of cells ``[first, last)``."""
    width, blocks = cost.shape[1], cost.shape[2]
    lines = minima.shape[3]
    side = cost.shape[3] // lines
    for line in range(first, last):
        for block in range(blocks):
            at = (line * blocks + block) * lines
            for candidates in range(at, at + lines):
                least = load(cost, candidates * side * LANES)
                for c0 in range(1, side):
                    least = lesser(load(cost, (candidates * side + c0) * LANES), least)
                store(minima, candidates * LANES, least)
        for lane in range(depth - (blocks - 1) * LANES, LANES):
            for candidates in range(lines):
                minima[line // width, line % width, blocks - 1, candidates, lane] = np.inf


@compiled
def _pick(
    cost: Floats, minima: Floats, numbers: NDArray[np.int32], picked: Floats, search_radius: int, first: int, last: int
) -> None:
    """The cheapest candidate of each cell, of equals the first, for the lines of cells ``[first, last)``."""
    width, blocks = cost.shape[1], cost.shape[2]
    side = 2 * search_radius + 1
    least = np.empty(LANES, np.float32)
    where = np.empty(LANES, np.float32)
    where_in_line = np.zeros(LANES, np.float32)
    for line in range(first, last):
        i, j = line // width, line % width
        for block in range(blocks):
            at = (line * blocks + block) * side * side * LANES
            best, best_line = spread(np.inf), spread(0.0)
            for candidates in range(side * side):
                minimum = load(minima, at + candidates * LANES)
                best_line = where_less(minimum, best, spread(candidates), best_line)
                best = lesser(minimum, best)
            store(least, 0, best)
            store(where, 0, best_line)
            for lane in range(min(LANES, picked.shape[3] - block * LANES)):
                number = int(where[lane])
                c0 = 0
                while c0 < side - 1 and cost[i, j, block, number * side + c0, lane] != least[lane]:
                    c0 += 1
                where_in_line[lane] = c0
            _write_picked(where, where_in_line, numbers[i, j, block], picked[:, i, j, block * LANES :], search_radius)


@compiled
def _pick_coupled(
    cost: Floats,
    minima: Floats,
    displacement: Floats,
    weight: float,
    numbers: NDArray[np.int32],
    picked: Floats,
    search_radius: int,
    first: int,
    last: int,
) -> None:
    """The candidate c of least cost + w·|c − u|², of equals the first, for the lines of cells ``[first, last)``."""
    width, blocks = cost.shape[1], cost.shape[2]
    side = 2 * search_radius + 1
    u = np.zeros(LANES, np.float32)
    apart = np.zeros((3, side, LANES), np.float32)
    known = np.zeros(LANES, np.float32)
    where = np.empty(LANES, np.float32)
    hopeful = np.empty(side * side, np.int64)
    all_numbers = numbers.reshape(-1)
    for line in range(first, last):
        i, j = line // width, line % width
        for block in range(blocks):
            _fill_apart(displacement[:, i, j, block * LANES :], weight, u, apart)
            # The last pick bounds the best one now, so that most lines of candidates need not be read.
            for lane in range(min(LANES, picked.shape[3] - block * LANES)):
                number = numbers[i, j, block, lane]
                c0, c1, c2 = number % side, number // side % side, number // (side * side)
                known[lane] = cost[i, j, block, number, lane] + apart[0, c0, lane] + apart[1, c1, lane] + apart[2, c2, lane]
            hopes = _find_hopeful(cost[i, j, block], minima[i, j, block], apart, known, hopeful)
            # The bounds of the next cells lie far apart: requested now, they are there in time.
            following = line * blocks + block + 1
            if following < last * blocks:
                for lane in range(LANES):
                    prefetch(cost, (following * side**3 + all_numbers[following * LANES + lane]) * LANES)
            _pick_of_hopeful(cost[i, j, block], minima[i, j, block], apart, known, hopeful[:hopes], where)
            _write_picked(where, known, numbers[i, j, block], picked[:, i, j, block * LANES :], search_radius)


@compiled
def _write_picked(lines: Floats, in_line: Floats, numbers: NDArray[np.int32], picked: Floats, search_radius: int) -> None:
    """Candidates, by their line and place in it, to ``numbers``, ``(LANES,)``, and in cells to ``picked``, ``(3, rest)``."""
    side = 2 * search_radius + 1
    for lane in range(min(LANES, picked.shape[1])):
        number, c0 = int(lines[lane]), int(in_line[lane])
        numbers[lane] = number * side + c0
        picked[0, lane] = c0 - search_radius
        picked[1, lane] = number % side - search_radius
        picked[2, lane] = number // side - search_radius


@compiled
def _fill_apart(displacement: Floats, weight: float, u: Floats, apart: Floats) -> None:
    """w·(c − u)² per axis, ``(3, side, LANES)``, of the first ``LANES`` cells of u, ``(3, rest)``."""
    side = apart.shape[1]
    heavy = spread(weight)
    for axis in range(3):
        for lane in range(min(LANES, displacement.shape[1])):
            u[lane] = displacement[axis, lane]
        for c in range(side):
            difference = spread(c - (side - 1) // 2) - load(u, 0)
            store(apart, (axis * side + c) * LANES, heavy * (difference * difference))


@compiled
def _find_hopeful(cost: Floats, minima: Floats, apart: Floats, known: Floats, hopeful: NDArray[np.int64]) -> int:
    """Number of lines of candidates that may have one within the known bound; their indices, ascending, go to ``hopeful``."""
    side = apart.shape[1]
    bound = load(known, 0)
    number, hopes = 0, 0
    for c2 in range(side):
        apart_2 = load(apart, (2 * side + c2) * LANES)
        for c1 in range(side):
            apart_1 = load(apart, (side + c1) * LANES)
            # Summed in the same order as later: rounding must not push the minimum above the line's best.
            if any_at_most(load(minima, number * LANES) + apart_1 + apart_2, bound):
                hopeful[hopes] = number
                hopes += 1
                for c0 in range(side):
                    prefetch(cost, (number * side + c0) * LANES)
            number += 1
    return hopes


@compiled
def _pick_of_hopeful(
    cost: Floats, minima: Floats, apart: Floats, known: Floats, hopeful: NDArray[np.int64], where: Floats
) -> None:
    """The best candidates of some lines: the line goes to ``where``, the place in it to ``known``, over the bound."""
    side = apart.shape[1]
    bound = load(known, 0)
    best, best_line, best_c0 = spread(np.inf), spread(0.0), spread(0.0)
    for number in hopeful:
        apart_1 = load(apart, (side + number % side) * LANES)
        apart_2 = load(apart, (2 * side + number // side) * LANES)
        if any_at_most(load(minima, number * LANES) + apart_1 + apart_2, bound):
            least, least_c0 = _least_of_line(cost, apart, number * side * LANES, side)
            least = least + apart_1 + apart_2
            best_c0 = where_less(least, best, least_c0, best_c0)
            best_line = where_less(least, best, spread(number), best_line)
            best = lesser(least, best)
            bound = lesser(least, bound)
    store(where, 0, best_line)
    store(known, 0, best_c0)


@compiled
def _least_of_line(cost: Floats, apart: Floats, at: int, side: int) -> Any:
    """Per lane, the least cost + w·(c₀ − u₀)² of a line of candidates along axis 0, and the first index that has it."""
    least, least_c0 = load(cost, at) + load(apart, 0), spread(0.0)
    for c0 in range(1, side):
        one = load(cost, at + c0 * LANES) + load(apart, c0 * LANES)
        least_c0 = where_less(one, least, spread(c0), least_c0)
        least = lesser(one, least)
    return least, least_c0
