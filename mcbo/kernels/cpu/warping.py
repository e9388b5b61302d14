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
from mcbo.kernels.simd import LANES, Floats, aligned_floats, compiled, in_threads, load, peek, round_up, spread, store


def sample_known(
    volume: Tensor, known: Tensor, displacement: Displacement, *, offset: Shape, share: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Twin of ``field.sample_known``."""
    masks = known.shape[1]
    if masks > 1:  # one by one: each with an image of its own, or all but the first with one that nobody asks for
        parts = (
            [volume[:, k : k + 1] for k in range(masks)]
            if volume.shape[1] == masks
            else [volume, *[volume[:, :1]] * (masks - 1)]
        )
        found = [
            sample_known(part, known[:, k : k + 1], displacement, offset=offset, share=share) for k, part in enumerate(parts)
        ]
        values = torch.cat([one for one, _ in found], dim=1)[:, : volume.shape[1]]
        return values, torch.cat([one for _, one in found], dim=1)
    shape, batch = shape_of(displacement), len(displacement)
    values = torch.empty((batch, volume.shape[1], *shape))
    seen = torch.empty((batch, 1, *shape), dtype=torch.bool)
    flags = (known.view(torch.uint8) if known.dtype == torch.bool else known).contiguous().numpy()
    image, u = volume.contiguous().numpy(), displacement.contiguous().numpy()
    rest = flags, u, np.array(offset), np.float32(share), values.numpy(), seen.view(torch.uint8).numpy()
    if volume.shape[1] == 1:
        in_threads(_sample_known, batch * shape[0], image, *rest)
        return values, seen
    in_threads(_sample_channels, batch * shape[0], channels_last(image), *rest)
    return values, seen


def channels_last(images: Floats) -> Floats:
    """``(B, C, h, w, d)`` as ``(B, h, w, d, 16)``, or a multiple of 16, filled with zeros."""
    batch, channels, *shape = images.shape
    cells = aligned_floats(batch, *shape, round_up(channels))
    in_threads(_lay_out, batch * shape[0], images, cells)
    return cells


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
    """Samples of ``(B, 1, H, W, D)`` and whether more than a share of ``(B, 1, H, W, D)`` is known there.

    For the rows ``[first, last)``, counted through all displacements; there may be one volume for all of them.
    """
    _, _, height, width, depth = volumes.shape
    plane = width * depth
    end0, end1, end2 = np.float32(height - 1), np.float32(width - 1), np.float32(depth - 1)
    zero = np.float32(0)
    rows = displacements.shape[2]
    for row in range(first, last):
        number, i = row // rows, row % rows
        volume, flat = volumes[min(number, len(volumes) - 1)], all_known[min(number, len(all_known) - 1)].reshape(-1)
        for j in range(displacements.shape[3]):
            p0, p1 = np.float32(i + origin[0]), np.float32(j + origin[1])
            u0, u1, u2 = displacements[number, 0, i, j], displacements[number, 1, i, j], displacements[number, 2, i, j]
            values, seen = all_values[number, 0, i, j], all_seen[number, 0, i, j]
            for k in range(len(u0)):
                x0, x1, x2 = p0 + u0[k], p1 + u1[k], np.float32(k + origin[2]) + u2[k]
                if zero <= x0 < end0 and zero <= x1 < end1 and zero <= x2 < end2:
                    p, q, r = np.int32(x0), np.int32(x1), np.int32(x2)
                    b0, b1, b2 = x0 - np.float32(p), x1 - np.float32(q), x2 - np.float32(r)
                    at = (np.int64(p) * width + np.int64(q)) * depth + np.int64(r)
                    values[k] = _between(volume, at, plane, depth, 1, b0, b1, b2)
                    amount = _known_around(flat, at, depth, plane)
                    if amount == 0 or amount == 8:  # all the same, as almost everywhere
                        seen[k] = amount > 0
                    else:
                        seen[k] = _with_zeros(flat, height, width, depth, x0, x1, x2) > share
                else:
                    i0, b0 = _within(x0, height)
                    j0, b1 = _within(x1, width)
                    k0, b2 = _within(x2, depth)
                    at = (i0 * width + j0) * depth + k0
                    step0, step1 = plane if i0 < height - 1 else 0, depth if j0 < width - 1 else 0
                    values[k] = _between(volume, at, step0, step1, 1 if k0 < depth - 1 else 0, b0, b1, b2)
                    seen[k] = _with_zeros(flat, height, width, depth, x0, x1, x2) > share


@compiled
def _between(volume: Floats, at: int, step0: int, step1: int, step2: int, b0: Any, b1: Any, b2: Any) -> Any:
    """The trilinear interpolant between a voxel, of a flat index, and its next neighbors, which lie so many floats on."""
    far = at + step0
    m00 = _mix(peek(volume, at), peek(volume, at + step2), b2)
    m01 = _mix(peek(volume, at + step1), peek(volume, at + step1 + step2), b2)
    m10 = _mix(peek(volume, far), peek(volume, far + step2), b2)
    m11 = _mix(peek(volume, far + step1), peek(volume, far + step1 + step2), b2)
    return _mix(_mix(m00, m01, b1), _mix(m10, m11, b1), b0)


@compiled
def _lay_out(images: Floats, cells: Floats, first: int, last: int) -> None:
    """``channels_last`` of some rows, counted through all images."""
    _, channels, height, width, depth = images.shape
    padded = cells.shape[4]
    for row in range(first, last):
        number, i = row // height, row % height
        for j in range(width):
            target = cells[number, i, j].reshape(-1)
            for channel in range(padded):
                if channel < channels:
                    line = images[number, channel, i, j]
                    for k in range(depth):
                        target[k * padded + channel] = line[k]
                else:
                    for k in range(depth):
                        target[k * padded + channel] = np.float32(0)


@compiled
def _sample_channels(
    cells: Floats,
    all_known: NDArray[np.generic],
    displacements: Floats,
    origin: NDArray[np.int64],
    share: float,
    all_values: Floats,
    all_seen: NDArray[np.uint8],
    first: int,
    last: int,
) -> None:
    """``_sample_known`` of several channels, laid out as by ``_lay_out``: all of a cell at once."""
    _, height, width, depth, padded = cells.shape
    plane = width * depth
    rows, channels = displacements.shape[2], all_values.shape[1]
    block = np.empty(LANES, np.float32)
    for row in range(first, last):
        number, i = row // rows, row % rows
        volume, flat = cells[min(number, len(cells) - 1)], all_known[min(number, len(all_known) - 1)].reshape(-1)
        for j in range(displacements.shape[3]):
            p0, p1 = np.float32(i + origin[0]), np.float32(j + origin[1])
            u0, u1, u2 = displacements[number, 0, i, j], displacements[number, 1, i, j], displacements[number, 2, i, j]
            values, seen = all_values[number, :, i, j], all_seen[number, 0, i, j]
            for k in range(len(u0)):
                x0, x1, x2 = p0 + u0[k], p1 + u1[k], np.float32(k + origin[2]) + u2[k]
                i0, s0 = _within(x0, height)
                j0, s1 = _within(x1, width)
                k0, s2 = _within(x2, depth)
                b0, b1, b2 = spread(s0), spread(s1), spread(s2)
                at = (i0 * width + j0) * depth + k0
                step0 = plane * padded if i0 < height - 1 else 0
                step1 = depth * padded if j0 < width - 1 else 0
                step2 = padded if k0 < depth - 1 else 0
                for c in range(0, padded, LANES):
                    to = at * padded + c
                    m00 = _mix(load(volume, to), load(volume, to + step2), b2)
                    m01 = _mix(load(volume, to + step1), load(volume, to + step1 + step2), b2)
                    to += step0
                    m10 = _mix(load(volume, to), load(volume, to + step2), b2)
                    m11 = _mix(load(volume, to + step1), load(volume, to + step1 + step2), b2)
                    store(block, 0, _mix(_mix(m00, m01, b1), _mix(m10, m11, b1), b0))
                    for channel in range(c, min(c + LANES, channels)):
                        values[channel, k] = block[channel - c]
                is_inside = 0 <= x0 < height - 1 and 0 <= x1 < width - 1 and 0 <= x2 < depth - 1
                amount = _known_around(flat, at, depth, plane) if is_inside else flat[0]
                if is_inside and (amount == 0 or amount == 8):
                    seen[k] = amount > 0
                else:
                    seen[k] = _with_zeros(flat, height, width, depth, x0, x1, x2) > share


@compiled
def _mix(a: Any, b: Any, share: Any) -> Any:
    return a + share * (b - a)


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
def _with_zeros(flat: NDArray[np.generic], height: int, width: int, depth: int, x0: float, x1: float, x2: float) -> Any:
    """A sample of a flat volume that is 0 beyond its voxels."""
    if not (-1 < x0 < height and -1 < x1 < width and -1 < x2 < depth):
        return np.float32(0)
    i0, j0, k0 = int(np.floor(x0)), int(np.floor(x1)), int(np.floor(x2))
    b0, b1, b2 = x0 - np.float32(i0), x1 - np.float32(j0), x2 - np.float32(k0)
    a0, a1, a2 = np.float32(1) - b0, np.float32(1) - b1, np.float32(1) - b2
    here: Any = np.float32(0)
    for corner in range(8):
        p, q, r = i0 + (corner >> 2), j0 + (corner >> 1 & 1), k0 + (corner & 1)
        if 0 <= p < height and 0 <= q < width and 0 <= r < depth:
            weight = (b0 if corner & 4 else a0) * (b1 if corner & 2 else a1) * (b2 if corner & 1 else a2)
            here += weight * np.float32(flat[(p * width + q) * depth + r])
    return here


@compiled
def _compose(rest: Floats, linear: Floats, before: Floats, turn: Floats, result: Floats, first: int, last: int) -> None:
    """Linear + turn·v + rest(p + v), v being ``before``: the rows ``[first, last)``."""
    _, height, width, depth = rest.shape
    size, plane = height * width * depth, width * depth
    for i in range(first, last):
        for j in range(width):
            for k in range(depth):
                v0, v1, v2 = before[0, i, j, k], before[1, i, j, k], before[2, i, j, k]
                i0, b0 = _within(np.float32(i) + v0, height)
                j0, b1 = _within(np.float32(j) + v1, width)
                k0, b2 = _within(np.float32(k) + v2, depth)
                at = (i0 * width + j0) * depth + k0
                step0, step1 = plane if i0 < height - 1 else 0, depth if j0 < width - 1 else 0
                step2 = 1 if k0 < depth - 1 else 0
                for axis in range(3):
                    here = turn[axis, 0] * v0 + turn[axis, 1] * v1 + turn[axis, 2] * v2
                    here += _between(rest, at + axis * size, step0, step1, step2, b0, b1, b2)
                    result[axis, i, j, k] = linear[axis, i, j, k] + here


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
