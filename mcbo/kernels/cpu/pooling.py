"""Means over cells, compiled for the CPU: twin of ``cells.pool``."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.field import shape_of
from mcbo.geometry.cells import Spacing, cover_of
from mcbo.kernels.simd import Floats, compiled, peek
from mcbo.kernels.threads import in_threads


def pool(features: Tensor, weights: Tensor | None, spacing: Spacing) -> tuple[Tensor, Tensor]:
    """Twin of ``cells.pool``."""
    cover = cover_of(shape_of(features), spacing)
    counts = [len(starts) for starts in cover.starts]
    values = features[0].contiguous().numpy()
    w = np.empty((0, 0, 0), dtype=np.float32) if weights is None else weights[0, 0].contiguous().numpy()
    means, shares = np.empty((len(values), *counts), dtype=np.float32), np.empty(counts, dtype=np.float32)
    in_threads(_pool, counts[0], values, w, weights is not None, cover.starts, cover.taps, means, shares)
    return torch.from_numpy(means)[None], torch.from_numpy(shares)[None, None]


@compiled
def _pool(
    values: Floats,
    weights: Floats,
    is_weighted: bool,
    starts: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    taps: tuple[Floats, Floats, Floats],
    means: Floats,
    shares: Floats,
    first: int,
    last: int,
) -> None:
    """Weighted means of ``(C, H, W, D)`` over the rows ``[first, last)`` of cells, and the covered shares."""
    channels, height, width, depth = values.shape
    sums, line = np.zeros((channels + 1) * depth, np.float32), np.empty(depth, np.float32)
    whole = taps[0].sum() * taps[1].sum() * taps[2].sum()
    for row in range(first, last):
        for column in range(len(starts[1])):
            sums[:] = 0
            for step0 in range(len(taps[0])):
                i = starts[0][row] + step0
                if i < 0 or i >= height:
                    continue
                for step1 in range(len(taps[1])):
                    j = starts[1][column] + step1
                    if j < 0 or j >= width:
                        continue
                    tap = taps[0][step0] * taps[1][step1]
                    for k in range(depth):
                        line[k] = tap * weights[i, j, k] if is_weighted else tap
                    covered = sums[channels * depth :]
                    for k in range(depth):
                        covered[k] += line[k]
                    for channel in range(channels):
                        target, source = sums[channel * depth : channel * depth + depth], values[channel, i, j]
                        for k in range(depth):
                            target[k] += line[k] * source[k]
            share = shares[row, column]
            sum_cells(sums, channels * depth, starts[2], taps[2], depth, share)
            for channel in range(channels):
                mean = means[channel, row, column]
                sum_cells(sums, channel * depth, starts[2], taps[2], depth, mean)
                for cell in range(len(mean)):
                    mean[cell] /= max(share[cell], np.float32(1e-6))
            for cell in range(len(share)):
                share[cell] /= whole


@compiled
def sum_cells(sums: Floats, at: int, starts: NDArray[np.int64], taps: Floats, depth: int, line: Floats) -> None:
    """Sums over cells of a line of voxels that begins at a flat index."""
    reach = len(taps)
    is_plain = taps[0] == 1
    for cell in range(len(line)):
        start = starts[cell]
        one = np.float32(0)
        if start < 0 or start + reach > depth:
            for step in range(max(-start, 0), min(reach, depth - start)):
                one += taps[step] * sums[at + start + step]
        elif is_plain and reach == 2:
            one = peek(sums, at + start) + peek(sums, at + start + 1)
        elif is_plain and reach == 3:
            one = peek(sums, at + start) + peek(sums, at + start + 1) + peek(sums, at + start + 2)
        else:
            for step in range(reach):
                one += peek(taps, step) * peek(sums, at + start + step)
        line[cell] = one
