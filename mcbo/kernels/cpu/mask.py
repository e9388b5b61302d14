"""Images continued beyond their masks, compiled for the CPU: twin of ``mask.fill_outside``."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mcbo.core.types import Mask, Volume
from mcbo.geometry import mask as mask_steps
from mcbo.kernels.simd import Floats, compiled
from mcbo.kernels.threads import in_threads

_MOST_LAYERS = 254
"""Whose numbers, from 1 for what is known, are those of a byte."""


def fill_outside(volume: Volume, mask: Mask, *, reach: int) -> Volume:
    """Twin of ``mask.fill_outside``."""
    if reach > _MOST_LAYERS:
        return mask_steps.fill_outside(volume, mask, reach=reach)
    image, known = volume[0, 0].contiguous().numpy(), mask[0, 0].bool().contiguous().view(torch.uint8).numpy()
    rows = len(image)
    sums, counts = np.empty(rows), np.empty(rows, dtype=np.int64)
    in_threads(_sum_known, rows, image, known, sums, counts)
    count = int(counts.sum())
    if count in (0, image.size):
        return volume
    filled, layers, grown = np.empty_like(image), known.copy(), np.empty(image.shape[:2], np.uint8)
    in_threads(_keep_known, rows, image, known, np.float32(sums.sum() / count), filled, grown)
    for layer in range(1, reach + 1):
        in_threads(_add_layer, rows, filled, layers, grown, np.uint8(layer))
    return torch.from_numpy(filled)[None, None]


@compiled
def _sum_known(
    image: Floats, known: NDArray[np.uint8], sums: NDArray[np.float64], counts: NDArray[np.int64], first: int, last: int
) -> None:
    """Sum and number of the known voxels of each of the rows ``[first, last)``."""
    for i in range(first, last):
        amount, count = 0.0, 0
        for j in range(image.shape[1]):
            line, flags = image[i, j], known[i, j]
            part: Any = np.float32(0)
            for k in range(len(line)):
                part += line[k] * np.float32(flags[k])
                count += flags[k]
            amount += part
        sums[i], counts[i] = amount, count


@compiled
def _keep_known(
    image: Floats, known: NDArray[np.uint8], outside: float, filled: Floats, grown: NDArray[np.uint8], first: int, last: int
) -> None:
    """The image where it is known, and one value elsewhere; and which lines have something known."""
    for i in range(first, last):
        for j in range(image.shape[1]):
            line, flags, target = image[i, j], known[i, j], filled[i, j]
            some = np.uint8(0)
            for k in range(len(line)):
                target[k] = line[k] if flags[k] else outside
                some |= flags[k]
            grown[i, j] = some


@compiled
def _add_layer(filled: Floats, layers: NDArray[np.uint8], grown: NDArray[np.uint8], layer: int, first: int, last: int) -> None:
    """The mean of the neighbors in earlier layers, for each voxel in none that has some: the rows ``[first, last)``.

    ``layers`` counts from 1, what is known, and is 0 where a voxel is in none yet. ``grown`` has the last layer that a line
    along axis 2 has voxels in: beside lines that have not grown, there is nothing to add. (Where another thread has added this
    layer to such a line already, the search finds nothing.)
    """
    height, width, depth = layers.shape
    sums, counts = np.empty(depth + 2, np.float32), np.empty(depth + 2, np.float32)
    for i in range(first, last):
        for j in range(width):
            line = layers[i, j]
            none = False
            for k in range(depth):
                none |= line[k] == 0
            beside = np.uint8(0)
            for p in range(max(i - 1, 0), min(i + 2, height)):
                for q in range(max(j - 1, 0), min(j + 2, width)):
                    beside = max(beside, grown[p, q])
            if beside < layer or not none:
                continue
            sums[:], counts[:] = 0, 0
            for p in range(max(i - 1, 0), min(i + 2, height)):
                for q in range(max(j - 1, 0), min(j + 2, width)):
                    other, values = layers[p, q], filled[p, q]
                    for k in range(depth):
                        counted = np.uint8(other[k] > 0) & np.uint8(other[k] <= layer)
                        sums[k + 1] += values[k] if counted else np.float32(0)
                        counts[k + 1] += np.float32(counted)
            for k in range(depth):
                count = counts[k] + counts[k + 1] + counts[k + 2]
                if line[k] == 0 and count > 0:
                    filled[i, j, k] = (sums[k] + sums[k + 1] + sums[k + 2]) / count
                    line[k] = grown[i, j] = layer + 1
