"""Images continued beyond their masks, compiled for the CPU: twin of ``mask.fill_outside``."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mcbo.core.types import Mask, Volume
from mcbo.kernels.simd import Floats, compiled, in_threads


def fill_outside(volume: Volume, mask: Mask, *, reach: int) -> Volume:
    """Twin of ``mask.fill_outside``."""
    image, known = volume[0, 0].contiguous().numpy(), mask[0, 0].bool().contiguous().view(torch.uint8).numpy()
    rows = len(image)
    sums, counts = np.empty(rows), np.empty(rows, dtype=np.int64)
    in_threads(_sum_known, rows, image, known, sums, counts)
    count = int(counts.sum())
    if count in (0, image.size):
        return volume
    filled, layers = np.empty_like(image), known.copy()
    in_threads(_keep_known, rows, image, known, np.float32(sums.sum() / count), filled)
    for layer in range(1, reach + 1):
        in_threads(_add_layer, rows, filled, layers, np.uint8(layer))
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
def _keep_known(image: Floats, known: NDArray[np.uint8], outside: float, filled: Floats, first: int, last: int) -> None:
    """The image where it is known, and one value elsewhere."""
    for i in range(first, last):
        for j in range(image.shape[1]):
            line, flags, target = image[i, j], known[i, j], filled[i, j]
            for k in range(len(line)):
                target[k] = line[k] if flags[k] else outside


@compiled
def _add_layer(filled: Floats, layers: NDArray[np.uint8], layer: int, first: int, last: int) -> None:
    """The mean of the neighbors in earlier layers, for each voxel in none that has some: the rows ``[first, last)``.

    ``layers`` counts from 1, what is known, and is 0 where a voxel is in none yet.
    """
    height, width, depth = layers.shape
    near = np.empty(depth + 2, np.uint8)
    for i in range(first, last):
        for j in range(width):
            line = layers[i, j]
            near[:] = 0
            for p in range(max(i - 1, 0), min(i + 2, height)):
                for q in range(max(j - 1, 0), min(j + 2, width)):
                    other = layers[p, q]
                    for k in range(depth):
                        near[k + 1] |= np.uint8(other[k] > 0) & np.uint8(other[k] <= layer)
            for k in range(depth):
                if line[k] == 0 and (near[k] | near[k + 1] | near[k + 2]):
                    amount, count = np.float32(0), np.float32(0)
                    for p in range(max(i - 1, 0), min(i + 2, height)):
                        for q in range(max(j - 1, 0), min(j + 2, width)):
                            for r in range(max(k - 1, 0), min(k + 2, depth)):
                                if 0 < layers[p, q, r] <= layer:
                                    amount += filled[p, q, r]
                                    count += np.float32(1)
                    filled[i, j, k] = amount / count
                    line[k] = layer + 1
