"""MIND-SSC, compiled for the CPU: twin of ``mind.mind_ssc``."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from mcbo.core.field import shape_of
from mcbo.core.types import Features, Volume
from mcbo.kernels.simd import LANES, Floats, aligned_floats, compiled, in_threads, lesser, load, round_up, spread, store, total
from mcbo.steps.mind import PAIRS, VARIANCE_RANGE, check_volume, scale_to_one

_PAIRS = np.array(PAIRS)


def mind_ssc(volume: Volume, *, radius: int, dilation: int) -> Features:
    """Twin of ``mind.mind_ssc`` for one image (``COMPILED.batch``)."""
    check_volume(volume)
    padded = functional.pad(scale_to_one(volume), [dilation] * 6, mode="replicate")[0, 0]
    height, width, depth = shape_of(volume)
    image = aligned_floats(padded.numel() + round_up(depth) + LANES)  # vector loads reach so far beyond the last row
    image[: padded.numel()] = padded.numpy().ravel()
    image[padded.numel() :] = 0
    shape = np.array([height, width, depth])
    features = aligned_floats(len(PAIRS), height, width, depth)
    flat = features.reshape(len(PAIRS), -1)
    sums = np.zeros(height)
    variance = aligned_floats(height * width * depth)
    in_threads(_fill_distances, height, image, flat, variance, sums, shape, _PAIRS, radius, dilation)
    mean = float(sums.sum()) / variance.size
    low, high = (np.float32(bound * mean) for bound in VARIANCE_RANGE)
    in_threads(_normalize, variance.size, flat, variance, low, high)
    return torch.from_numpy(features).exp_().unsqueeze(0)


@compiled
def _fill_distances(
    image: Floats,
    features: Floats,
    variance: Floats,
    sums: NDArray[np.float64],
    shape: NDArray[np.int64],
    pairs: NDArray[np.int64],
    radius: int,
    dilation: int,
    first: int,
    last: int,
) -> None:
    """Patch distances minus their minimum over channels, their mean over channels and its sum: rows ``[first, last)``."""
    height, width, depth = shape
    channels = len(pairs)
    length = (depth + LANES - 1) // LANES * LANES
    size = 2 * radius + 1
    line = np.zeros(length + 2 * radius + LANES, np.float32)
    plane = np.zeros((width, length), np.float32)
    ring = np.zeros((channels, size, width, length), np.float32)  # sums over axes 1 and 2 of the rows around
    block = np.zeros((channels, length), np.float32)
    around = np.zeros(size, np.int64)
    ready = first - radius
    for i in range(first, last):
        while ready <= i + radius:
            if 0 <= ready < height:
                for channel in range(channels):
                    _fill_row(image, shape, ready, pairs[channel], dilation, line, plane)
                    _sum_along_axis_1(plane, radius, ring[channel, ready % size])
            ready += 1
        for step in range(size):
            around[step] = min(max(i + step - radius, 0), height - 1) % size
        amount = 0.0
        for j in range(width):
            _finish_line(ring, around, j, block, line)
            at = (i * width + j) * depth
            amount = _write_line(block, line, depth, features, variance, at, amount)
        sums[i] = amount


@compiled
def _fill_row(
    image: Floats, shape: NDArray[np.int64], row: int, pair: NDArray[np.int64], dilation: int, line: Floats, plane: Floats
) -> None:
    """Squared differences of a pair of neighbors, summed along axis 2, of a row of voxels: to ``(width, length)``."""
    width, depth = shape[1], shape[2]
    length = plane.shape[1]
    radius = (len(line) - length - LANES) // 2
    padded_width, padded_depth = width + 2 * dilation, depth + 2 * dilation
    a, b = pair[0], pair[1]
    from_a = ((row + dilation * (1 + a[0])) * padded_width + dilation * (1 + a[1])) * padded_depth + dilation * (1 + a[2])
    from_b = ((row + dilation * (1 + b[0])) * padded_width + dilation * (1 + b[1])) * padded_depth + dilation * (1 + b[2])
    for j in range(width):
        for z in range(0, length, LANES):
            difference = load(image, from_a + j * padded_depth + z) - load(image, from_b + j * padded_depth + z)
            store(line, radius + z, difference * difference)
        for z in range(radius):
            line[z] = line[radius]
            line[radius + depth + z] = line[radius + depth - 1]
        for z in range(0, length, LANES):
            one = load(line, z)
            for step in range(1, 2 * radius + 1):
                one = one + load(line, z + step)
            store(plane, j * length + z, one)


@compiled
def _sum_along_axis_1(plane: Floats, radius: int, result: Floats) -> None:
    """Sums of ``2·radius + 1`` lines of ``(width, length)``; outside, the nearest line repeats."""
    width, length = plane.shape
    for j in range(width):
        for z in range(0, length, LANES):
            one = spread(0.0)
            for step in range(-radius, radius + 1):
                one = one + load(plane, min(max(j + step, 0), width - 1) * length + z)
            store(result, j * length + z, one)


@compiled
def _finish_line(ring: Floats, around: NDArray[np.int64], j: int, block: Floats, means: Floats) -> None:
    """Means over whole patches minus their minimum over channels, to ``(channels, length)``, and the mean of these."""
    channels, size, width, length = ring.shape
    scale = spread(1.0 / size**3)
    for z in range(0, length, LANES):
        least = spread(np.inf)
        mean = spread(0.0)
        for channel in range(channels):
            one = spread(0.0)
            for row in around:
                one = one + load(ring, ((channel * size + row) * width + j) * length + z)
            one = one * scale
            store(block, channel * length + z, one)
            least = lesser(one, least)
        for channel in range(channels):
            one = load(block, channel * length + z) - least
            store(block, channel * length + z, one)
            mean = mean + one
        store(means, z, mean * spread(1.0 / channels))


@compiled
def _write_line(block: Floats, means: Floats, depth: int, features: Floats, variance: Floats, at: int, amount: float) -> float:
    """A line of voxels to ``(channels, H·W·D)`` and ``(H·W·D,)`` from a flat index on; returns ``amount`` + Σ means."""
    channels, voxels = features.shape
    whole = depth // LANES * LANES
    for z in range(0, whole, LANES):
        mean = load(means, z)
        store(variance, at + z, mean)
        amount += total(mean)
        for channel in range(channels):
            store(features, channel * voxels + at + z, load(block, channel * block.shape[1] + z))
    for z in range(whole, depth):
        variance[at + z] = means[z]
        amount += means[z]
        for channel in range(channels):
            features[channel, at + z] = block[channel, z]
    return amount


@compiled
def _normalize(features: Floats, variance: Floats, low: float, high: float, first: int, last: int) -> None:
    """Distances over their clamped variance, negative, of the voxels ``[first, last)``."""
    for channel in range(features.shape[0]):
        row = features[channel]
        for z in range(first, last):
            clamped = min(max(variance[z], low), high)
            # Only a constant image has a variance of zero; then 0/1 gives features of exp(0) = 1, not NaN.
            row[z] = -row[z] / (clamped if clamped > 0 else np.float32(1))
