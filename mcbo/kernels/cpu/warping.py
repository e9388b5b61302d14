"""Images and displacements moved along displacements, compiled for the CPU: twins from ``field``, ``cells`` and ``rigid``.

Sampling is trilinear between voxel centers. ``field.sample`` leaves it to torch, which uses one core for one image.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.field import shape_of
from mcbo.core.types import Displacement, Shape
from mcbo.geometry.cells import between_centers
from mcbo.kernels.simd import Floats, compiled, in_threads, peek


def sample_known(
    volume: Tensor, known: Tensor, displacement: Displacement, *, offset: Shape, share: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Twin of ``field.sample_known``."""
    shape, batch = shape_of(displacement), len(displacement)
    values = torch.empty((batch, volume.shape[1], *shape))
    seen = torch.empty((batch, known.shape[1], *shape), dtype=torch.bool)
    flags = known.view(torch.uint8) if known.dtype == torch.bool else known
    fields = (one.contiguous().numpy() for one in (volume, flags, displacement))
    found = values.numpy(), seen.view(torch.uint8).numpy()
    in_threads(_sample_known, batch * shape[0], *fields, np.array(offset), np.float32(share), *found)
    return values, seen


def compose(displacement: Displacement, linear: Displacement, matrix: Tensor, first: Displacement) -> Displacement:
    """Twin of ``rigid.compose``."""
    result = torch.empty_like(linear, memory_format=torch.contiguous_format)
    rest = displacement - linear
    turn = matrix.to(torch.float32).contiguous().numpy()
    fields = (one[0].contiguous().numpy() for one in (rest, linear, first))
    in_threads(_compose, result.shape[2], *fields, turn, result[0].numpy())
    return result


def linear_displacement(coefficients: Tensor, shape: Shape, *, offset: Shape) -> Displacement:
    """Twin of ``rigid.linear_displacement``."""
    result = torch.empty((len(coefficients), 3, *shape))
    in_threads(_fill_linear, len(result) * shape[0], coefficients.contiguous().numpy(), np.array(offset), result.numpy())
    return result


def to_voxels(displacement: Displacement, shape: Shape, spacing: int) -> Displacement:
    """Twin of ``cells.to_voxels``."""
    result = torch.empty((1, 3, *shape))
    between = [between_centers(cells, size, spacing) for cells, size in zip(shape_of(displacement), shape, strict=True)]
    lows, shares = zip(*((low.numpy(), share.float().numpy()) for low, share in between), strict=True)
    cells = displacement[0].contiguous().numpy()
    in_threads(_to_voxels, shape[0], cells, lows, shares, np.float32(spacing), result[0].numpy())
    return result


@compiled
def _sample_known(
    volumes: Floats,
    all_known: NDArray[np.generic],
    displacements: Floats,
    origin: NDArray[np.int64],
    share: float,
    all_values: Floats,
    all_seen: NDArray[np.uint8],
    first: int,
    last: int,
) -> None:
    """Samples of ``(B, C, H, W, D)`` and whether more than a share of ``(B, K, H, W, D)`` is known there.

    For the rows ``[first, last)``, counted through all displacements; there may be one volume for all of them.
    """
    _, channels, height, width, depth = volumes.shape
    flags = all_known.shape[1]
    size, plane = height * width * depth, width * depth
    end0, end1, end2 = np.float32(height - 1), np.float32(width - 1), np.float32(depth - 1)
    zero = np.float32(0)
    rows = displacements.shape[2]
    is_single = channels == 1 and flags == 1
    for row in range(first, last):
        number, i = row // rows, row % rows
        volume, known = volumes[min(number, len(volumes) - 1)], all_known[min(number, len(all_known) - 1)]
        flat = known.reshape(-1)
        for j in range(displacements.shape[3]):
            p0, p1 = np.float32(i + origin[0]), np.float32(j + origin[1])
            u0, u1, u2 = displacements[number, 0, i, j], displacements[number, 1, i, j], displacements[number, 2, i, j]
            values, seen = all_values[number, :, i, j], all_seen[number, :, i, j]
            for k in range(len(u0)):
                x0, x1, x2 = p0 + u0[k], p1 + u1[k], np.float32(k + origin[2]) + u2[k]
                if zero <= x0 < end0 and zero <= x1 < end1 and zero <= x2 < end2:
                    p, q, r = np.int32(x0), np.int32(x1), np.int32(x2)
                    b0, b1, b2 = x0 - np.float32(p), x1 - np.float32(q), x2 - np.float32(r)
                    at = (np.int64(p) * width + np.int64(q)) * depth + np.int64(r)
                    if is_single:  # without loops it takes half the time
                        values[0, k] = _between(volume, at, depth, plane, b0, b1, b2)
                        amount = _known_around(flat, at, depth, plane)
                        if amount == 0 or amount == 8:  # as almost everywhere
                            seen[0, k] = amount > 0
                        else:
                            seen[0, k] = _with_zeros(known[0], x0, x1, x2) > share
                    else:
                        for channel in range(channels):
                            values[channel, k] = _between(volume, at + channel * size, depth, plane, b0, b1, b2)
                        for flag in range(flags):
                            amount = _known_around(flat, at + flag * size, depth, plane)
                            if amount == 0 or amount == 8:
                                seen[flag, k] = amount > 0
                            else:
                                seen[flag, k] = _with_zeros(known[flag], x0, x1, x2) > share
                else:
                    i0, b0 = _within(x0, height)
                    j0, b1 = _within(x1, width)
                    k0, b2 = _within(x2, depth)
                    i1, j1, k1 = min(i0 + 1, height - 1), min(j0 + 1, width - 1), min(k0 + 1, depth - 1)
                    for channel in range(channels):
                        values[channel, k] = _interpolate(volume[channel], i0, j0, k0, i1, j1, k1, b0, b1, b2)
                    is_near = -1 < x0 < height and -1 < x1 < width and -1 < x2 < depth
                    for flag in range(flags):
                        part = _with_zeros(known[flag], x0, x1, x2) if is_near else np.float32(0)
                        seen[flag, k] = part > share


@compiled
def _between(volume: Floats, at: int, depth: int, plane: int, b0: float, b1: float, b2: float) -> Any:
    """The trilinear interpolant between a voxel, of a flat index, and its next neighbors."""
    far = at + plane
    m000, m001 = peek(volume, at), peek(volume, at + 1)
    m010, m011 = peek(volume, at + depth), peek(volume, at + depth + 1)
    m100, m101 = peek(volume, far), peek(volume, far + 1)
    m110, m111 = peek(volume, far + depth), peek(volume, far + depth + 1)
    m00, m01 = m000 + b2 * (m001 - m000), m010 + b2 * (m011 - m010)
    m10, m11 = m100 + b2 * (m101 - m100), m110 + b2 * (m111 - m110)
    m0, m1 = m00 + b1 * (m01 - m00), m10 + b1 * (m11 - m10)
    return m0 + b0 * (m1 - m0)


@compiled
def _known_around(known: NDArray[np.generic], at: int, depth: int, plane: int) -> Any:
    """The sum over a voxel, of a flat index, and its next neighbors."""
    far = at + plane
    near = known[at] + known[at + 1] + known[at + depth] + known[at + depth + 1]
    return near + known[far] + known[far + 1] + known[far + depth] + known[far + depth + 1]


@compiled
def _within(x: Any, size: int) -> tuple[int, Any]:
    """The cell below a place that is moved into the grid, and how far above it the place is; also of what is no number."""
    if not x > 0:
        return 0, np.float32(0)
    if x >= size - 1:
        return size - 1, np.float32(0)
    low = int(x)
    return low, np.float32(x - np.float32(low))


@compiled
def _interpolate(volume: Floats, i0: int, j0: int, k0: int, i1: int, j1: int, k1: int, b0: float, b1: float, b2: float) -> Any:
    a0, a1, a2 = np.float32(1) - b0, np.float32(1) - b1, np.float32(1) - b2
    low = a1 * (a2 * volume[i0, j0, k0] + b2 * volume[i0, j0, k1]) + b1 * (a2 * volume[i0, j1, k0] + b2 * volume[i0, j1, k1])
    high = a1 * (a2 * volume[i1, j0, k0] + b2 * volume[i1, j0, k1]) + b1 * (a2 * volume[i1, j1, k0] + b2 * volume[i1, j1, k1])
    return a0 * low + b0 * high


@compiled
def _with_zeros(volume: NDArray[np.generic], x0: float, x1: float, x2: float) -> Any:
    """A sample of a volume that is 0 beyond its voxels, less than a voxel from them."""
    height, width, depth = volume.shape
    i0, j0, k0 = int(np.floor(x0)), int(np.floor(x1)), int(np.floor(x2))
    b0, b1, b2 = x0 - np.float32(i0), x1 - np.float32(j0), x2 - np.float32(k0)
    a0, a1, a2 = np.float32(1) - b0, np.float32(1) - b1, np.float32(1) - b2
    here: Any = np.float32(0)
    for corner in range(8):
        p, q, r = i0 + (corner >> 2), j0 + (corner >> 1 & 1), k0 + (corner & 1)
        if 0 <= p < height and 0 <= q < width and 0 <= r < depth:
            weight = (b0 if corner & 4 else a0) * (b1 if corner & 2 else a1) * (b2 if corner & 1 else a2)
            here += weight * np.float32(volume[p, q, r])
    return here


@compiled
def _compose(rest: Floats, linear: Floats, before: Floats, turn: Floats, result: Floats, first: int, last: int) -> None:
    """Linear + turn·v + rest(p + v), v being ``before``: the rows ``[first, last)``."""
    _, height, width, depth = rest.shape
    size, plane = height * width * depth, width * depth
    end0, end1, end2 = np.float32(height - 1), np.float32(width - 1), np.float32(depth - 1)
    zero = np.float32(0)
    for i in range(first, last):
        for j in range(width):
            for k in range(depth):
                v0, v1, v2 = before[0, i, j, k], before[1, i, j, k], before[2, i, j, k]
                x0, x1, x2 = np.float32(i) + v0, np.float32(j) + v1, np.float32(k) + v2
                if zero <= x0 < end0 and zero <= x1 < end1 and zero <= x2 < end2:
                    i0, j0, k0 = int(x0), int(x1), int(x2)
                    b0, b1, b2 = x0 - np.float32(i0), x1 - np.float32(j0), x2 - np.float32(k0)
                    at = (i0 * width + j0) * depth + k0
                    for axis in range(3):
                        here = turn[axis, 0] * v0 + turn[axis, 1] * v1 + turn[axis, 2] * v2
                        here += _between(rest, at + axis * size, depth, plane, b0, b1, b2)
                        result[axis, i, j, k] = linear[axis, i, j, k] + here
                else:
                    i0, b0 = _within(x0, height)
                    j0, b1 = _within(x1, width)
                    k0, b2 = _within(x2, depth)
                    i1, j1, k1 = min(i0 + 1, height - 1), min(j0 + 1, width - 1), min(k0 + 1, depth - 1)
                    for axis in range(3):
                        moved = turn[axis, 0] * v0 + turn[axis, 1] * v1 + turn[axis, 2] * v2
                        here = _interpolate(rest[axis], i0, j0, k0, i1, j1, k1, b0, b1, b2)
                        result[axis, i, j, k] = linear[axis, i, j, k] + moved + here


@compiled
def _fill_linear(coefficients: NDArray[np.float64], offset: NDArray[np.int64], result: Floats, first: int, last: int) -> None:
    """Linear displacements of the rows ``[first, last)``, counted through all of them."""
    _, _, height, width, depth = result.shape
    for row in range(first, last):
        number, i = row // height, row % height
        for axis in range(3):
            of = coefficients[number, axis]
            for j in range(width):
                along = (of[3] + of[0] * (i + offset[0])) + of[1] * (j + offset[1])
                line = result[number, axis, i, j]
                for k in range(depth):
                    line[k] = along + of[2] * (k + offset[2])


@compiled
def _to_voxels(
    cells: Floats,
    lows: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    shares: tuple[Floats, Floats, Floats],
    spacing: float,
    result: Floats,
    first: int,
    last: int,
) -> None:
    """Displacements between the centers of cells: the rows ``[first, last)`` of voxels."""
    _, height, width, depth = cells.shape
    line = np.empty(depth, np.float32)
    for axis in range(3):
        for i in range(first, last):
            i0, b0 = lows[0][i], shares[0][i]
            i1, a0 = min(i0 + 1, height - 1), np.float32(1) - b0
            for j in range(result.shape[2]):
                j0, b1 = lows[1][j], shares[1][j]
                j1, a1 = min(j0 + 1, width - 1), np.float32(1) - b1
                near, far = cells[axis, i0], cells[axis, i1]
                for k in range(depth):
                    line[k] = spacing * (a0 * (a1 * near[j0, k] + b1 * near[j1, k]) + b0 * (a1 * far[j0, k] + b1 * far[j1, k]))
                target = result[axis, i, j]
                for k in range(len(target)):
                    k0, b2 = lows[2][k], shares[2][k]
                    target[k] = (np.float32(1) - b2) * line[k0] + b2 * line[min(k0 + 1, depth - 1)]
