"""MIND-SSC, compiled for the CPU: twin of ``mind.mind_ssc``, and features that are averaged over cells as they are made.

Features are twelve times as large as their image, and writing and reading them takes longer than to make them. So they are
made twice, line by line, and not held unless all of them are wanted: once for the mean variance of the image, and once to be
used. A line of voxels along axis 2 is finished in the caches of a core: the squared differences are summed along axis 0 as they
are taken, for a few rows at once, then along axis 1 over a ring of columns, then along axis 2.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.field import shape_of
from mcbo.core.types import Features, Mask, Volume
from mcbo.geometry.cells import WEIGHT_FLOOR, Cover, Spacing, cover_of
from mcbo.kernels.cpu.pooling import sum_cells
from mcbo.kernels.simd import (
    LANES,
    Floats,
    aligned_floats,
    aligned_zeros,
    compiled,
    exponential,
    greater,
    lesser,
    load,
    round_up,
    spread,
    store,
    total,
    where_less,
)
from mcbo.kernels.threads import in_threads
from mcbo.steps.mind import PAIRS, VARIANCE_RANGE, Box, check_volume, check_volumes

_PAIRS = np.array(PAIRS)
_CHANNELS = len(PAIRS)
_ROWS = 4
"""Rows along axis 0 that are made together."""
_WEIGHT, _KNOWN = _CHANNELS, _CHANNELS + 1
"""Where sums over cells have the weights of voxels, and what is known of them, after the channels."""


def mind_ssc(volume: Volume, *, radius: int, dilation: int, mean_variance: Tensor | None = None) -> Features:
    """Twin of ``mind.mind_ssc``."""
    return _Images(volume, radius=radius, dilation=dilation, mean_variance=mean_variance).whole()


def variance_of(volume: Volume, *, radius: int, dilation: int) -> Tensor:
    """Twin of ``mind.variance_of``."""
    return torch.from_numpy(_Images(volume, radius=radius, dilation=dilation).mean_variances)


def pooled_mind(
    volume: Volume, known: Tensor, *, radius: int, dilation: int, spacing: Spacing, mean_variance: Tensor | None = None
) -> tuple[Features, Tensor]:
    """Twin of ``mind.pooled_mind``."""
    images = _Images(volume, radius=radius, dilation=dilation, mean_variance=mean_variance)
    return images.over(cover_of(shape_of(volume), spacing), known, 0.0)


class StreamedFeatures:
    """The features of an image, ``(1, 1, H, W, D)``, made whenever they are asked for: as ``mind.WholeFeatures``."""

    def __init__(self, volume: Volume, *, radius: int, dilation: int, mean_variance: Tensor | None = None) -> None:
        check_volume(volume)
        self._images = _Images(volume, radius=radius, dilation=dilation, mean_variance=mean_variance)

    def pooled(self, box: Box, spacing: int) -> Features:
        counts = [(end - begin) // spacing for begin, end in box]
        i, j, k = (begin + spacing * np.arange(count) for (begin, _), count in zip(box, counts, strict=True))
        taps = np.ones(spacing, dtype=np.float32)
        return self._images.over(Cover((i, j, k), (taps, taps, taps)), None, 0.0)[0]

    def pooled_known(self, mask: Mask, spacing: int) -> tuple[Features, Tensor]:
        return self._images.over(cover_of(shape_of(mask), spacing), mask, WEIGHT_FLOOR)


class _Images:
    """B images, ``(B, 1, H, W, D)``, with a border and scaled as by ``mind.scale_to_one``; and bounds of their variances."""

    def __init__(self, volumes: Volume, *, radius: int, dilation: int, mean_variance: Tensor | None = None) -> None:
        check_volumes(volumes)
        height, width, depth = shape_of(volumes)
        self._shape, self._count = (height, width, depth), len(volumes)
        values = volumes.float().contiguous()[:, 0].numpy()
        largest = [max(-float(least), float(most)) for least, most in map(torch.aminmax, volumes.float())]
        scales = np.ldexp(1.0, -np.frexp(largest)[1])  # float64: of tiny images they are beyond float32
        self._padded = width + 2 * dilation, depth + 2 * dilation
        size = (height + 2 * dilation) * self._padded[0] * self._padded[1]
        self._images = aligned_floats(self._count, size + round_up(depth) + LANES)  # loads reach so far beyond the last row
        in_threads(_fill_padded, self._count * (height + 2 * dilation), values, scales, self._images, dilation)
        steps = np.array([self._padded[0] * self._padded[1], self._padded[1], 1])
        self._offsets = (dilation * (1 + _PAIRS)) @ steps
        self._sizes = np.array([height, width, depth, *steps[:2], radius])
        if mean_variance is None:
            sums = np.empty((self._count, -(-height // _ROWS)))
            in_threads(_sum_variance, sums.size, self._images, self._sizes, self._offsets, sums)
            self.mean_variances = sums.sum(axis=1) / (height * width * depth) / scales**2
        else:
            self.mean_variances = np.broadcast_to(mean_variance.numpy(), self._count)
        with np.errstate(over="ignore"):  # infinite for an image that is nothing beside the one whose variance is given
            self._bounds = np.outer(self.mean_variances * scales**2, VARIANCE_RANGE).astype(np.float32)

    def whole(self) -> Features:
        """All features, ``(B, C, H, W, D)``."""
        features = aligned_floats(self._count, _CHANNELS, *self._shape)
        groups = self._count * -(-self._shape[0] // _ROWS)
        in_threads(_fill_features, groups, self._images, self._sizes, self._offsets, self._bounds, features)
        return torch.from_numpy(features)

    def over(self, cover: Cover, known: Tensor | None, floor: float) -> tuple[Features, Tensor]:
        """Means over cells, each voxel weighted by what is ``known`` of it (all, if None) plus ``floor``; and known shares."""
        counts = tuple(len(starts) for starts in cover.starts)
        if 0 in counts:
            return torch.empty(self._count, _CHANNELS, *counts), torch.empty(self._count, 1, *counts)
        means = np.empty((self._count, _CHANNELS, *counts), dtype=np.float32)
        shares = np.empty((self._count, 1, *counts), dtype=np.float32)
        seen = torch.empty(1, 1, 0, 0, 0, dtype=torch.uint8) if known is None else known.contiguous()
        flags = (seen.view(torch.uint8) if seen.dtype == torch.bool else seen)[:, 0].numpy()
        group = max(1, _ROWS // len(cover.taps[0]))  # rows of cells
        images = self._images, self._sizes, self._offsets, self._bounds
        weights = flags, known is not None, np.float32(floor)
        parts = self._count * -(-counts[0] // group)
        in_threads(_pool_features, parts, *images, *weights, cover.starts, cover.taps, group, means, shares)
        return torch.from_numpy(means), torch.from_numpy(shares)


@compiled
def _fill_padded(images: Floats, scales: NDArray[np.float64], padded: Floats, dilation: int, first: int, last: int) -> None:
    """Images ``(B, H, W, D)``, scaled, with a border of copies of their faces, to ``(B, …)``: some rows of all of them."""
    _, height, width, depth = images.shape
    rows, columns, pitch = height + 2 * dilation, width + 2 * dilation, depth + 2 * dilation
    for number in range(first, last):
        image, i = number // rows, number % rows
        row, scale = images[image, min(max(i - dilation, 0), height - 1)], scales[image]
        for j in range(columns):
            line, at = row[min(max(j - dilation, 0), width - 1)], (i * columns + j) * pitch
            target = padded[image, at : at + pitch]
            for k in range(dilation):
                target[k] = scale * line[0]
                target[dilation + depth + k] = scale * line[depth - 1]
            for k in range(depth):
                target[dilation + k] = scale * line[k]
        if i == rows - 1:
            padded[image, rows * columns * pitch :] = 0


@compiled
def _sum_variance(
    images: Floats, sizes: NDArray[np.int64], offsets: NDArray[np.int64], sums: NDArray[np.float64], first: int, last: int
) -> None:
    """Sums of the variance over groups of ``_ROWS`` rows, counted through all images."""
    height, width, depth, radius = sizes[0], sizes[1], sizes[2], sizes[5]
    length = round_up(depth)
    ring = aligned_zeros((2 * radius + 1) * _ROWS * _CHANNELS * length)
    lines = aligned_zeros(_CHANNELS * (length + round_up(2 * radius) + LANES))
    block = aligned_zeros((_CHANNELS + 1) * LANES)
    groups = sums.shape[1]
    for number in range(first, last):
        image, group = images[number // groups], number % groups
        low, high = group * _ROWS, min(group * _ROWS + _ROWS, height)
        amount = 0.0
        ready = 0
        for j in range(width):
            while ready <= min(j + radius, width - 1):
                _sum_along_axis_0(image, sizes, offsets, ready, low, high, ring)
                ready += 1
            for i in range(high - low):
                _sum_along_axis_1(sizes, ring, i, j, lines)
                for z in range(0, depth, LANES):
                    variance = _finish(sizes, lines, z, block)
                    if z + LANES <= depth:
                        amount += total(variance)
                    else:
                        store(block, 0, variance)
                        for lane in range(depth - z):
                            amount += block[lane]
        sums[number // groups, group] = amount


@compiled
def _fill_features(
    images: Floats,
    sizes: NDArray[np.int64],
    offsets: NDArray[np.int64],
    bounds: Floats,
    features: Floats,
    first: int,
    last: int,
) -> None:
    """The features of groups of ``_ROWS`` rows, counted through all images, to ``(B, C, H, W, D)``."""
    height, width, depth, radius = sizes[0], sizes[1], sizes[2], sizes[5]
    length = round_up(depth)
    ring = aligned_zeros((2 * radius + 1) * _ROWS * _CHANNELS * length)
    lines = aligned_zeros(_CHANNELS * (length + round_up(2 * radius) + LANES))
    block = aligned_zeros((_CHANNELS + 1) * LANES)
    groups = (height + _ROWS - 1) // _ROWS
    for number in range(first, last):
        image, group = images[number // groups], number % groups
        low, high = group * _ROWS, min(group * _ROWS + _ROWS, height)
        result = features[number // groups]
        ready = 0
        for j in range(width):
            while ready <= min(j + radius, width - 1):
                _sum_along_axis_0(image, sizes, offsets, ready, low, high, ring)
                ready += 1
            for i in range(high - low):
                _sum_along_axis_1(sizes, ring, i, j, lines)
                for start in range(0, depth, LANES):
                    z = max(min(start, depth - LANES), 0)  # whole vectors where there is one, some of it made twice
                    scale = _scale_of(_finish(sizes, lines, z, block), bounds[number // groups])
                    least = load(block, _CHANNELS * LANES)
                    at = ((low + i) * width + j) * depth + z
                    for channel in range(_CHANNELS):
                        one = exponential((load(block, channel * LANES) - least) * scale)
                        if depth >= LANES:
                            store(result, channel * height * width * depth + at, one)
                        else:
                            store(block, channel * LANES, one)
                            for lane in range(depth - z):
                                result[channel, low + i, j, z + lane] = block[channel * LANES + lane]


@compiled
def _pool_features(
    images: Floats,
    sizes: NDArray[np.int64],
    offsets: NDArray[np.int64],
    bounds: Floats,
    known: NDArray[np.generic],
    is_masked: bool,
    floor: float,
    starts: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    taps: tuple[Floats, Floats, Floats],
    group: int,
    means: Floats,
    shares: Floats,
    first: int,
    last: int,
) -> None:
    """Weighted means of the features over cells, and known shares, for groups of rows of cells, counted through all images.

    A cell has the voxels from its start on along each axis, weighted by the product of ``taps``; those outside do not count.
    """
    height, width, depth, radius = sizes[0], sizes[1], sizes[2], sizes[5]
    length = round_up(depth)
    reach0, reach1 = len(taps[0]), len(taps[1])
    rows0, rows1 = len(starts[0]), len(starts[1])
    most = starts[0][min(group, rows0) - 1] - starts[0][0] + reach0
    ring = aligned_zeros((2 * radius + 1) * most * _CHANNELS * length)
    lines = aligned_zeros(_CHANNELS * (length + round_up(2 * radius) + LANES))
    block = aligned_zeros((_CHANNELS + 2) * LANES)
    size = (_CHANNELS + 2) * length
    sums = aligned_zeros(2 * group * size)  # of two neighboring columns of cells, which may share a column of voxels
    place, share = np.zeros(4, np.int64), np.zeros(4, np.float32)  # of the cells that a line of voxels counts in
    weight, seen = aligned_zeros(length), aligned_zeros(length)
    weight[:depth] = np.float32(1)
    seen[:depth] = np.float32(1)
    groups = (rows0 + group - 1) // group
    for number in range(first, last):
        which = number // groups
        image, its_known = images[which], known[min(which, len(known) - 1)]
        cell0 = number % groups * group
        end0 = min(cell0 + group, rows0)
        low, high = max(starts[0][cell0], 0), min(starts[0][end0 - 1] + reach0, height)
        sums[:] = 0
        ready = max(starts[1][0] - radius, 0)
        column = 0  # the first column of cells that is not finished
        for j in range(max(starts[1][0], 0), min(starts[1][rows1 - 1] + reach1, width)):
            while ready <= min(j + radius, width - 1):
                _sum_along_axis_0(image, sizes, offsets, ready, low, high, ring)
                ready += 1
            for i in range(low, high):
                if is_masked:
                    for z in range(depth):
                        seen[z] = np.float32(its_known[i, j, z])
                        weight[z] = seen[z] + floor
                count = 0
                for cell in range(cell0, end0):
                    for other in range(column, min(column + 2, rows1)):
                        step0, step1 = i - starts[0][cell], j - starts[1][other]
                        if 0 <= step0 < reach0 and 0 <= step1 < reach1:
                            share[count] = taps[0][step0] * taps[1][step1]
                            place[count] = (other % 2 * group + cell - cell0) * size
                            count += 1
                _sum_along_axis_1(sizes, ring, i - low, j, lines)
                for z in range(0, depth, LANES):
                    scale = _scale_of(_finish(sizes, lines, z, block), bounds[which])
                    least = load(block, _CHANNELS * LANES)
                    w = load(weight, z)
                    for channel in range(_CHANNELS):
                        one = w * exponential((load(block, channel * LANES) - least) * scale)
                        store(block, channel * LANES, one)
                    store(block, _WEIGHT * LANES, w)
                    store(block, _KNOWN * LANES, load(seen, z))
                    for k in range(count):
                        at, part = place[k] + z, spread(share[k])
                        for channel in range(_CHANNELS + 2):
                            to = at + channel * length
                            store(sums, to, load(sums, to) + part * load(block, channel * LANES))
            while column < rows1 and j == min(starts[1][column] + reach1, width) - 1:
                for cell in range(cell0, end0):
                    at = (column % 2 * group + cell - cell0) * size
                    _write_cells(sums[at : at + size], starts, taps, depth, cell, column, means[which], shares[which, 0])
                    sums[at : at + size] = 0
                column += 1


@compiled
def _write_cells(
    sums: Floats,
    starts: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    taps: tuple[Floats, Floats, Floats],
    depth: int,
    row: int,
    column: int,
    means: Floats,
    shares: Floats,
) -> None:
    """Sums along axis 2 what was summed along the others, ``(C + 2, length)``, and divides it by the weights."""
    length = len(sums) // (_CHANNELS + 2)
    whole = taps[0].sum() * taps[1].sum() * taps[2].sum()
    weights = np.empty(len(starts[2]), np.float32)
    sum_cells(sums, _WEIGHT * length, starts[2], taps[2], depth, weights)
    for cell in range(len(weights)):
        weights[cell] = np.float32(1) / max(weights[cell], np.float32(1e-6))
    line = shares[row, column]
    sum_cells(sums, _KNOWN * length, starts[2], taps[2], depth, line)
    for cell in range(len(line)):
        line[cell] = min(line[cell] / whole, np.float32(1))
    for channel in range(_CHANNELS):
        line = means[channel, row, column]
        sum_cells(sums, channel * length, starts[2], taps[2], depth, line)
        for cell in range(len(line)):
            line[cell] *= weights[cell]


@compiled
def _sum_along_axis_0(
    image: Floats, sizes: NDArray[np.int64], offsets: NDArray[np.int64], j: int, low: int, high: int, ring: Floats
) -> None:
    """Squared differences of column j, summed over windows along axis 0 for the rows ``[low, high)``: to a place of the ring.

    The ring is ``(2·radius + 1, rows, C, length)``; a column's place is the rest of its number by the first of these.
    """
    height, depth, step0, step1, radius = sizes[0], sizes[2], sizes[3], sizes[4], sizes[5]
    length = round_up(depth)
    size = 2 * radius + 1
    place = j % size * (len(ring) // size)
    rows = np.empty(size + _ROWS - 1, np.int64)
    for i in range(low, high, _ROWS):
        count = min(_ROWS, high - i)
        for k in range(len(rows)):
            rows[k] = min(max(i + k - radius, 0), height - 1) * step0 + j * step1
        for channel in range(_CHANNELS):
            a, b = offsets[channel, 0], offsets[channel, 1]
            for z in range(0, length, LANES):
                to = place + ((i - low) * _CHANNELS + channel) * length + z
                if radius == 1:
                    one, two, three, four = _windows_of_3(image, a + z, b + z, rows)
                elif radius == 2:
                    one, two, three, four = _windows_of_5(image, a + z, b + z, rows)
                elif radius == 3:
                    one, two, three, four = _windows_of_7(image, a + z, b + z, rows)
                else:
                    one = _window(image, a + z, b + z, rows, 0, size)
                    two = _window(image, a + z, b + z, rows, 1, size)
                    three = _window(image, a + z, b + z, rows, 2, size)
                    four = _window(image, a + z, b + z, rows, 3, size)
                store(ring, to, one)
                if count > 1:
                    store(ring, to + _CHANNELS * length, two)
                if count > 2:
                    store(ring, to + 2 * _CHANNELS * length, three)
                if count > 3:
                    store(ring, to + 3 * _CHANNELS * length, four)


@compiled
def _windows_of_3(image: Floats, a: int, b: int, rows: NDArray[np.int64]) -> tuple[Any, Any, Any, Any]:
    """Sums of squared differences over four windows of three rows, each a row further; so do those of five and seven."""
    r1, r2 = _squared(image, a, b, rows[1]), _squared(image, a, b, rows[2])
    r3, r4 = _squared(image, a, b, rows[3]), _squared(image, a, b, rows[4])
    low, high = r1 + r2, r3 + r4
    return _squared(image, a, b, rows[0]) + low, low + r3, r2 + high, high + _squared(image, a, b, rows[5])


@compiled
def _windows_of_5(image: Floats, a: int, b: int, rows: NDArray[np.int64]) -> tuple[Any, Any, Any, Any]:
    r1, r2, r3 = _squared(image, a, b, rows[1]), _squared(image, a, b, rows[2]), _squared(image, a, b, rows[3])
    r4, r5, r6 = _squared(image, a, b, rows[4]), _squared(image, a, b, rows[5]), _squared(image, a, b, rows[6])
    middle, low, high = r3 + r4, r1 + r2, r5 + r6
    first, last = _squared(image, a, b, rows[0]), _squared(image, a, b, rows[7])
    return first + (low + middle), (low + middle) + r5, (r2 + middle) + high, (middle + high) + last


@compiled
def _windows_of_7(image: Floats, a: int, b: int, rows: NDArray[np.int64]) -> tuple[Any, Any, Any, Any]:
    middle = _squared(image, a, b, rows[3]) + _squared(image, a, b, rows[4])
    middle = middle + (_squared(image, a, b, rows[5]) + _squared(image, a, b, rows[6]))
    r1, r2 = _squared(image, a, b, rows[1]), _squared(image, a, b, rows[2])
    r7, r8 = _squared(image, a, b, rows[7]), _squared(image, a, b, rows[8])
    low, high = r1 + r2, r7 + r8
    first, last = _squared(image, a, b, rows[0]), _squared(image, a, b, rows[9])
    return first + (low + middle), (low + middle) + r7, (r2 + middle) + high, (middle + high) + last


@compiled
def _window(image: Floats, a: int, b: int, rows: NDArray[np.int64], first: int, size: int) -> Any:
    one = _squared(image, a, b, rows[first])
    for k in range(first + 1, first + size):
        one = one + _squared(image, a, b, rows[k])
    return one


@compiled
def _squared(image: Floats, a: int, b: int, row: int) -> Any:
    difference = load(image, row + a) - load(image, row + b)
    return difference * difference


@compiled
def _sum_along_axis_1(sizes: NDArray[np.int64], ring: Floats, row: int, j: int, lines: Floats) -> None:
    """Sums over windows along axis 1 of one of the rows of the ring: to ``(C, pitch)``, ends repeated."""
    width, depth, radius = sizes[1], sizes[2], sizes[5]
    length = round_up(depth)
    pitch = len(lines) // _CHANNELS
    size = 2 * radius + 1
    around = np.empty(size, np.int64)
    for k in range(size):
        around[k] = min(max(j + k - radius, 0), width - 1) % size * (len(ring) // size) + row * _CHANNELS * length
    for channel in range(_CHANNELS):
        at, to = channel * length, channel * pitch + radius
        for z in range(at, at + length, LANES):
            if radius == 1:
                one = load(ring, around[0] + z) + load(ring, around[1] + z) + load(ring, around[2] + z)
            else:
                one = load(ring, around[0] + z)
                for k in range(1, size):
                    one = one + load(ring, around[k] + z)
            store(lines, to + z - at, one)
        for k in range(radius):
            lines[channel * pitch + k] = lines[to]
            lines[to + depth + k] = lines[to + depth - 1]


@compiled
def _finish(sizes: NDArray[np.int64], lines: Floats, z: int, block: Floats) -> Any:
    """Patch distances of some voxels, ``(C, LANES)``, and then the least over channels; returns their variance."""
    radius = sizes[5]
    pitch = len(lines) // _CHANNELS
    size = 2 * radius + 1
    scale = spread(1.0 / (size * size * size))
    least, mean = spread(np.inf), spread(0.0)
    for channel in range(_CHANNELS):
        at = channel * pitch + z
        if radius == 1:
            one = load(lines, at) + load(lines, at + 1) + load(lines, at + 2)
        else:
            one = load(lines, at)
            for step in range(1, size):
                one = one + load(lines, at + step)
        one = one * scale
        store(block, channel * LANES, one)
        least = lesser(one, least)
    for channel in range(_CHANNELS):
        mean = mean + (load(block, channel * LANES) - least)
    store(block, _CHANNELS * LANES, least)
    return mean * spread(1.0 / _CHANNELS)


@compiled
def _scale_of(variance: Any, bounds: Floats) -> Any:
    """−1 over the clamped variance; where the image is constant, and so all distances are 0, −1."""
    clamped = lesser(greater(variance, spread(bounds[0])), spread(bounds[1]))
    return spread(-1.0) / where_less(spread(0.0), clamped, clamped, spread(1.0))
