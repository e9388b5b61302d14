"""Sums over the features of cells, compiled for the CPU.

Twins of what ``gauss_newton.py``, ``rigid_refinement.py`` and ``similarity.py`` sum up. Sums are taken along lines in float32,
the rest in float64, row by row; so they do not depend on the number of threads.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.field import shape_of
from mcbo.core.types import Features
from mcbo.kernels.simd import (
    LANES,
    Floats,
    aligned_floats,
    aligned_zeros,
    compiled,
    inlined,
    load,
    round_up,
    spread,
    store,
    total,
)
from mcbo.kernels.threads import in_threads
from mcbo.steps import gauss_newton
from mcbo.steps.gauss_newton import LAGS, Information
from mcbo.steps.rigid_refinement import RigidTerms

_MARGIN = LANES
"""Floats before and after a line in a buffer."""


def similarities(fixed: Features, moved: Features, known: Tensor) -> Tensor:
    """Twin of ``similarity.similarities``."""
    batch, channels = moved.shape[:2]
    height = shape_of(fixed)[0]
    sums = np.zeros((batch, height, channels, 5))
    weights = np.zeros((batch, height))
    known = known.expand(batch, *known.shape[1:])
    fields = (one.contiguous().numpy() for one in (fixed[0], moved, known[:, 0]))
    in_threads(_sum_similarity, batch * height, *fields, sums, weights)
    weight = torch.from_numpy(weights).sum(dim=1)
    f, m, ff, mm, distance = (torch.from_numpy(sums).sum(dim=1) / weight.view(-1, 1, 1)).unbind(dim=2)
    unrelated = ((f - m).square() + ff - f.square() + mm - m.square()).sum(dim=1)
    return torch.where(weight < 1, -1.0, 1 - distance.sum(dim=1) / unrelated.clamp(min=1e-9))


def data_terms(fixed: Features, moved: Features) -> tuple[Tensor, Tensor, Tensor]:
    """Twin of ``gauss_newton.data_terms``."""
    height, width, depth = shape_of(fixed)
    if depth < LANES:  # shorter than a vector: too small to matter
        return gauss_newton.data_terms(fixed, moved)
    batch = len(moved)
    gradient, hessian, distance = (aligned_floats(batch, count, height, width, depth) for count in (3, 6, 1))
    fields = (one.contiguous().numpy() for one in (fixed[0], moved))
    in_threads(_fill_data_terms, batch * height, *fields, gradient, hessian, distance)
    return torch.from_numpy(gradient), torch.from_numpy(hessian), torch.from_numpy(distance)


def information_of(fixed: Features, moved: Features, known: Tensor) -> Information:
    """Twin of ``gauss_newton.information_of``."""
    shape = shape_of(fixed)
    weights = known[0, 0].float().contiguous().numpy()
    f, m = (one[0].contiguous().numpy() for one in (fixed, moved))
    counts, residuals = np.zeros(shape[0]), np.zeros((shape[0], len(f)))
    in_threads(_sum_residuals, shape[0], f, m, weights, counts, residuals)
    count = float(counts.sum())
    means = (residuals.sum(axis=0) / max(count, 1.0)).astype(np.float32)
    lagged = np.zeros((shape[0], 3, LAGS + 1, 2))
    slopes = np.zeros((shape[0], 3, 2))
    in_threads(_sum_lagged, shape[0], _with_ends(fixed), _with_ends(moved), weights, means, lagged, slopes)
    sums = lagged.sum(axis=0)
    variance = sums[0, 0, 0] / max(count, 1.0)
    cells = 1.0
    for axis, size in enumerate(shape):
        products, pairs = sums[axis, 1 : min(LAGS, size - 1) + 1].T
        cells *= 1 + 2 * float((products / pairs.clip(min=1.0) / max(variance, 1e-12)).clip(0, 1).sum())
    shared, energy = slopes.sum(axis=(0, 1)).tolist()
    return Information(correlation=shared / max(energy / 2, 1e-12), correlation_cells=cells, known_cells=int(count))


def _with_ends(features: Features) -> Floats:
    """``(1, C, h, w, d)``, flat, with a row of zeros, and ``LANES`` more, before and after."""
    size, end = features.numel(), features[0, 0, 0].numel() + LANES
    flat = aligned_floats(size + 2 * end)
    flat[:end] = flat[end + size :] = 0
    torch.from_numpy(flat)[end : end + size].view(features.shape).copy_(features)
    return flat


def rigid_equations(ends: Tensor, cell_mm: Tensor, terms: Sequence[RigidTerms]) -> tuple[Tensor, Tensor, Tensor]:
    """Twin of ``rigid_refinement.rigid_equations``."""
    batch, height = len(ends), shape_of(terms[0].weight)[0]
    sums = np.zeros((batch, height, 48))
    places, scale = ends.contiguous().numpy(), 1 / cell_mm.numpy()
    for one in terms:
        fields = (field.contiguous().numpy() for field in (one.hessian, one.gradient, one.weight, one.share))
        in_threads(_sum_equations, batch * height, places, scale, *fields, 1 / len(terms), sums)
    whole = torch.from_numpy(sums).sum(dim=1)
    upper = torch.triu_indices(6, 6)
    hessian, moments = (whole.new_zeros((batch, 6, 6)) for _ in range(2))
    for matrix, first in ((hessian, 0), (moments, 27)):
        matrix[:, upper[0], upper[1]] = matrix[:, upper[1], upper[0]] = whole[:, first : first + 21]
    return hessian, whole[:, 21:27].unsqueeze(2), moments


@compiled
def _sum_similarity(
    fixed: Floats,
    moved: Floats,
    known: Floats,
    sums: NDArray[np.float64],
    weights: NDArray[np.float64],
    first: int,
    last: int,
) -> None:
    """Weighted sums of f, m, f², m² and (f − m)² of each channel, and of the weights, of rows counted through all images."""
    channels, height, width, depth = fixed.shape
    length = round_up(depth)
    w, a, b = aligned_zeros(width * length), aligned_zeros(length), aligned_zeros(length)
    for row in range(first, last):
        image, i = row // height, row % height
        weight = 0.0
        for j in range(width):
            for k in range(depth):
                w[j * length + k] = known[image, i, j, k]
            for z in range(j * length, j * length + length, LANES):
                weight += total(load(w, z))
        weights[image, i] = weight
        if weight == 0:
            continue
        for channel in range(channels):
            s0, s1, s2, s3, s4 = 0.0, 0.0, 0.0, 0.0, 0.0
            for j in range(width):
                for k in range(depth):
                    a[k] = fixed[channel, i, j, k]
                for k in range(depth):
                    b[k] = moved[image, channel, i, j, k]
                t0, t1, t2, t3, t4 = spread(0.0), spread(0.0), spread(0.0), spread(0.0), spread(0.0)
                for z in range(0, length, LANES):
                    f, m, here = load(a, z), load(b, z), load(w, j * length + z)
                    wf, wm, d = here * f, here * m, f - m
                    t0, t1, t2, t3, t4 = t0 + wf, t1 + wm, t2 + wf * f, t3 + wm * m, t4 + here * (d * d)
                s0 += total(t0)
                s1 += total(t1)
                s2 += total(t2)
                s3 += total(t3)
                s4 += total(t4)
            line = sums[image, i, channel]
            line[0], line[1], line[2], line[3], line[4] = s0, s1, s2, s3, s4


@compiled
def _fill_data_terms(
    fixed: Floats, all_moved: Floats, gradients: Floats, hessians: Floats, distances: Floats, first: int, last: int
) -> None:
    """Gradient, Hessian and distance of the rows ``[first, last)``, counted through all images; d is at least ``LANES``.

    Sums of a line lie in a core's first cache, so that all of a channel's line is read at once: that takes half of the time of
    reading each channel for some cells, if there are 128³.
    """
    channels, height, width, depth = fixed.shape
    size = height * width * depth
    line = aligned_zeros(round_up(depth) + 2 * _MARGIN)
    sums = aligned_zeros(10 * round_up(depth))  # for each vector of cells: distance, gradient, Hessian
    half = spread(0.5)
    for row in range(first, last):
        moved, i = all_moved[row // height], row % height
        gradient, hessian, squares = gradients[row // height], hessians[row // height], distances[row // height]
        below, above = max(i - 1, 0), min(i + 1, height - 1)
        scale0 = spread(0.5 / max(above - below, 1))
        for j in range(width):
            left, right = max(j - 1, 0), min(j + 1, width - 1)
            scale1 = spread(0.5 / max(right - left, 1))
            sums[:] = 0
            for channel in range(channels):
                here = channel * size + (i * width + j) * depth
                down, up = here + (below - i) * width * depth, here + (above - i) * width * depth
                west, east = here + (left - j) * depth, here + (right - j) * depth
                for start in range(0, depth, LANES):
                    z = min(start, depth - LANES)
                    store(line, _MARGIN + z, half * (load(fixed, here + z) + load(moved, here + z)))
                line[_MARGIN - 1] = 2 * line[_MARGIN] - line[_MARGIN + 1]  # so that the central difference is the one-sided one
                line[_MARGIN + depth] = 2 * line[_MARGIN + depth - 1] - line[_MARGIN + depth - 2]
                for start in range(0, depth, LANES):
                    z = min(start, depth - LANES)
                    error = load(moved, here + z) - load(fixed, here + z)
                    s0 = load(fixed, up + z) - load(fixed, down + z) + (load(moved, up + z) - load(moved, down + z))
                    s1 = load(fixed, east + z) - load(fixed, west + z) + (load(moved, east + z) - load(moved, west + z))
                    s0, s1 = s0 * scale0, s1 * scale1
                    s2 = half * (load(line, _MARGIN + z + 1) - load(line, _MARGIN + z - 1))
                    number = start // LANES * 10
                    _add(sums, number, error * error)
                    _add(sums, number + 1, error * s0)
                    _add(sums, number + 2, error * s1)
                    _add(sums, number + 3, error * s2)
                    _add(sums, number + 4, s0 * s0)
                    _add(sums, number + 5, s0 * s1)
                    _add(sums, number + 6, s0 * s2)
                    _add(sums, number + 7, s1 * s1)
                    _add(sums, number + 8, s1 * s2)
                    _add(sums, number + 9, s2 * s2)
            for start in range(0, depth, LANES):
                at, begin = (i * width + j) * depth + min(start, depth - LANES), start * 10
                store(squares, at, load(sums, begin))
                for k in range(3):
                    store(gradient, at + k * size, load(sums, begin + (1 + k) * LANES))
                for k in range(6):
                    store(hessian, at + k * size, load(sums, begin + (4 + k) * LANES))


@inlined
def _add(sums: Floats, number: int, value: Any) -> None:
    store(sums, number * LANES, load(sums, number * LANES) + value)


@compiled
def _sum_residuals(
    fixed: Floats,
    moved: Floats,
    weights: Floats,
    counts: NDArray[np.float64],
    residuals: NDArray[np.float64],
    first: int,
    last: int,
) -> None:
    """Weights, and weighted residuals of each channel, summed over the rows ``[first, last)``."""
    channels, _, width, depth = fixed.shape
    for i in range(first, last):
        count = 0.0
        for j in range(width):
            for k in range(depth):
                count += weights[i, j, k]
        counts[i] = count
        for channel in range(channels):
            amount = 0.0
            for j in range(width):
                w, f, m = weights[i, j], fixed[channel, i, j], moved[channel, i, j]
                for k in range(depth):
                    amount += w[k] * (m[k] - f[k])
            residuals[i, channel] = amount


@compiled
def _sum_lagged(
    fixed: Floats,
    moved: Floats,
    weights: Floats,
    means: Floats,
    lagged: NDArray[np.float64],
    slopes: NDArray[np.float64],
    first: int,
    last: int,
) -> None:
    """Sums of products of residuals (and of weights) some cells apart along each axis; and of slopes of both images.

    Both images are flat, with ends (``_with_ends``).
    ``lagged``: ``(h, 3, 1 + lags, 2)``; ``slopes``: ``(h, 3, 2)``, of df·dm and of df² + dm².
    """
    height, width, depth = weights.shape
    size, plane, channels = height * width * depth, width * depth, len(means)
    lags = lagged.shape[2] - 1
    pitch = round_up(depth) + 2 * _MARGIN
    # Lines of weights and residuals at this cell, then 1 … lags further along axis 0, then along axis 1; zero beyond the grid.
    lines = 1 + 2 * lags
    w, c = aligned_zeros(lines * pitch), aligned_zeros(lines * pitch)
    both = aligned_zeros(3 * pitch)  # whether a cell and both its neighbors along an axis are known
    sums = aligned_zeros((3 * lags + 7) * LANES)  # of a line, lane by lane
    for i in range(first, last):
        for j in range(width):
            for number in range(lines):
                lag = number if number <= lags else number - lags
                p, q = (i + lag, j) if number <= lags else (i, j + lag)
                at = number * pitch + _MARGIN
                w[at : at + depth] = 0
                c[at : at + depth] = 0
                if p < height and q < width:
                    w[at : at + depth] = weights[p, q]
            for k in range(depth):
                here = w[_MARGIN + k]
                both[k] = here * w[pitch + _MARGIN + k] * weights[i - 1, j, k] if i > 0 else np.float32(0)
                both[pitch + k] = here * w[(1 + lags) * pitch + _MARGIN + k] * weights[i, j - 1, k] if j > 0 else np.float32(0)
                both[2 * pitch + k] = here * w[_MARGIN + k - 1] * w[_MARGIN + k + 1]
            sums[:] = 0
            for z in range(_MARGIN, _MARGIN + depth, LANES):
                for lag in range(1, lags + 1):
                    _add(sums, lag, load(w, z) * load(w, lag * pitch + z))
                    _add(sums, lags + lag, load(w, z) * load(w, (lags + lag) * pitch + z))
                    _add(sums, 2 * lags + lag, load(w, z) * load(w, z + lag))
            for axis in range(3):
                for lag in range(1, lags + 1):
                    lagged[i, axis, lag, 1] += total(load(sums, (axis * lags + lag) * LANES))
            sums[:] = 0
            for channel in range(channels):
                begin = plane + LANES + channel * size + (i * width + j) * depth
                mean = spread(means[channel])
                for number in range(lines):
                    lag = number if number <= lags else number - lags
                    if i + lag < height if number <= lags else j + lag < width:
                        at, shift = number * pitch + _MARGIN, lag * plane if number <= lags else lag * depth
                        for z in range(0, depth, LANES):
                            residual = load(moved, begin + shift + z) - load(fixed, begin + shift + z)
                            store(c, at + z, load(w, at + z) * (residual - mean))
                for z in range(_MARGIN, _MARGIN + depth, LANES):
                    here = load(c, z)
                    _add(sums, 0, here * here)
                    for lag in range(1, lags + 1):
                        _add(sums, lag, here * load(c, lag * pitch + z))
                        _add(sums, lags + lag, here * load(c, (lags + lag) * pitch + z))
                        _add(sums, 2 * lags + lag, here * load(c, z + lag))
                for axis in range(3):
                    step = plane if axis == 0 else depth if axis == 1 else 1
                    for z in range(0, depth, LANES):
                        at, known = begin + z, load(both, axis * pitch + z)
                        df = load(fixed, at + step) - load(fixed, at - step)
                        dm = load(moved, at + step) - load(moved, at - step)
                        _add(sums, 3 * lags + 1 + 2 * axis, known * df * dm)
                        _add(sums, 3 * lags + 2 + 2 * axis, known * (df * df + dm * dm))
            lagged[i, 0, 0, 0] += total(load(sums, 0))
            for axis in range(3):
                for lag in range(1, lags + 1):
                    lagged[i, axis, lag, 0] += total(load(sums, (axis * lags + lag) * LANES))
                for number in range(2):
                    slopes[i, axis, number] += total(load(sums, (3 * lags + 1 + 2 * axis + number) * LANES))


@compiled
def _sum_equations(
    ends: NDArray[np.float64],
    scale: NDArray[np.float64],
    hessian: Floats,
    gradient: Floats,
    weight: Floats,
    share: Floats,
    part: float,
    sums: NDArray[np.float64],
    first: int,
    last: int,
) -> None:
    """JᵀHJ (upper triangle), Jᵀg and moments JᵀJ of the rows ``[first, last)`` of cells, counted through all motions.

    Along a line, J = J₀ + k·J₁. So the sums of Hessians, gradients and shares times k⁰, k¹, k² are all that it takes.
    """
    _, _, height, width, depth = hessian.shape
    length = round_up(depth)
    index, square, w, s = aligned_zeros(length), aligned_zeros(length), aligned_zeros(length), aligned_zeros(length)
    for k in range(depth):
        index[k], square[k] = k, k * k
    line = aligned_zeros(length)
    h, g, m = np.zeros((6, 3)), np.zeros((3, 2)), np.zeros(3)  # times k⁰, k¹, k²
    slopes, growth = np.zeros((3, 6)), np.zeros((3, 6))
    tensors = np.zeros((3, 3, 3))
    for number in range(first, last):
        image, i = number // height, number % height
        result, place = sums[image, i], ends[image]
        growth[:] = 0
        _fill_turns(growth, place[0, 2], place[1, 2], place[2, 2], scale)
        for axis in range(3):
            slopes[axis, 3 + axis] = scale[axis]
        for j in range(width):
            is_known = False
            for k in range(depth):
                w[k], s[k] = weight[image, 0, i, j, k], share[image, 0, i, j, k]
                is_known |= (w[k] != 0) | (s[k] != 0)
            if not is_known:
                continue
            for entry in range(6):
                values = hessian[image, entry, i, j]
                for k in range(depth):
                    line[k] = w[k] * values[k]
                h[entry, 0], h[entry, 1], h[entry, 2] = _moments(line, index, square)
            for entry in range(3):
                values = gradient[image, entry, i, j]
                for k in range(depth):
                    line[k] = w[k] * values[k]
                g[entry, 0], g[entry, 1], _ = _moments(line, index, square)
            m[0], m[1], m[2] = _moments(s, index, square)
            x = place[0, 0] * i + place[0, 1] * j + place[0, 3]
            y = place[1, 0] * i + place[1, 1] * j + place[1, 3]
            z = place[2, 0] * i + place[2, 1] * j + place[2, 3]
            _fill_turns(slopes, x, y, z, scale)
            for power in range(3):
                for entry, (p, q) in enumerate(((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))):
                    tensors[power, p, q] = tensors[power, q, p] = h[entry, power]
            to = 0
            for p in range(6):
                for q in range(p, 6):
                    amount, moment = 0.0, 0.0
                    for a in range(3):
                        for b in range(3):
                            amount += slopes[a, p] * (tensors[0, a, b] * slopes[b, q] + tensors[1, a, b] * growth[b, q])
                            amount += growth[a, p] * (tensors[1, a, b] * slopes[b, q] + tensors[2, a, b] * growth[b, q])
                        moment += slopes[a, p] * (m[0] * slopes[a, q] + m[1] * growth[a, q])
                        moment += growth[a, p] * (m[1] * slopes[a, q] + m[2] * growth[a, q])
                    result[to] += amount
                    result[27 + to] += part * moment
                    to += 1
                for a in range(3):
                    result[21 + p] += slopes[a, p] * g[a, 0] + growth[a, p] * g[a, 1]


@compiled
def _fill_turns(slopes: NDArray[np.float64], x: float, y: float, z: float, scale: NDArray[np.float64]) -> None:
    """How a turn moves a point, in cells: the first three columns of ``(3, 6)``."""
    slopes[0, 1], slopes[0, 2] = z * scale[0], -y * scale[0]
    slopes[1, 0], slopes[1, 2] = -z * scale[1], x * scale[1]
    slopes[2, 0], slopes[2, 1] = y * scale[2], -x * scale[2]


@compiled
def _moments(line: Floats, index: Floats, square: Floats) -> tuple[Any, Any, Any]:
    """Sums of a line of values times 1, k and k²."""
    zeroth, first, second = spread(0.0), spread(0.0), spread(0.0)
    for z in range(0, len(line), LANES):
        values = load(line, z)
        zeroth, first, second = zeroth + values, first + values * load(index, z), second + values * load(square, z)
    return total(zeroth), total(first), total(second)
