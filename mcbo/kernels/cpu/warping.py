"""Images and displacements moved along displacements, compiled for the CPU: twins from ``field``, ``cells`` and ``rigid``.

Sampling is trilinear between voxel centers. ``field.sample`` leaves it to torch, which uses one core for one image.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core import field
from mcbo.core.field import shape_of
from mcbo.core.types import Displacement, Shape
from mcbo.geometry import rigid
from mcbo.geometry.cells import between_centers
from mcbo.kernels import simd
from mcbo.kernels.simd import (
    LANES,
    Floats,
    aligned_floats,
    aligned_zeros,
    any_at_most,
    compiled,
    floats_of,
    floor_of,
    gather,
    gather_pairs,
    greater,
    inlined,
    lesser,
    load,
    peek,
    places,
    round_up,
    spread,
    store,
    store_bytes,
    store_places,
    where_less,
)
from mcbo.kernels.threads import in_threads

NOTHING = 1e-37
"""Squared voxels: what is less, is rounding."""


def sample_known(
    volume: Tensor, known: Tensor, displacement: Displacement, *, offset: Shape, share: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Twin of ``field.sample_known``."""
    if volume[0, 0].numel() >= simd.MOST_PLACES:
        return field.sample_known(volume, known, displacement, offset=offset, share=share)
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
    if not known.is_floating_point():
        known = known.bool()
    there = known.contiguous().view(len(known), -1).numpy()
    if known.dtype == torch.bool:  # three bytes are read with the last one
        there = np.pad(there.view(np.uint8), ((0, 0), (0, 3)))
    flags = np.empty((len(known), known[0].numel() + 3), np.uint8)
    in_threads(_mark, len(known) * known.shape[2], there, shape_of(known), flags)
    image = volume.contiguous().numpy()
    cells = image.reshape(len(image), *image.shape[2:], 1) if image.shape[1] == 1 else channels_last(image)
    rest = there, flags, displacement.contiguous().numpy(), np.array(offset), np.float32(share)
    in_threads(_sample_known, batch * shape[0], cells, *rest, values.numpy(), seen.view(torch.uint8).numpy())
    return values, seen


def channels_last(images: Floats) -> Floats:
    """``(B, C, h, w, d)`` as ``(B, h, w, d, 16)``, or a multiple of 16, filled with zeros."""
    batch, channels, *shape = images.shape
    cells = aligned_floats(batch, *shape, round_up(channels))
    in_threads(_lay_out, batch * shape[0], images, cells)
    return cells


def compose(displacement: Displacement, linear: Displacement, matrix: Tensor, first: Displacement) -> Displacement:
    """Twin of ``rigid.compose``."""
    if displacement.numel() >= simd.MOST_PLACES:
        return rigid.compose(displacement, linear, matrix, first)
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
def _mark(
    all_known: NDArray[np.generic], shape: tuple[int, int, int], all_flags: NDArray[np.uint8], first: int, last: int
) -> None:
    """What is known of a voxel and its next neighbors: 0 nothing, 1 everything, 2 something. Some rows of all volumes."""
    height, width, depth = shape
    sums, pairs = np.empty(depth + 1, all_known.dtype), np.empty(depth, all_known.dtype)
    for row in range(first, last):
        number, i = row // height, row % height
        known, below = all_known[number], (min(i + 1, height - 1) - i) * width * depth
        for j in range(width):
            at, beside = (i * width + j) * depth, (min(j + 1, width - 1) - j) * depth
            a, b = known[at : at + depth], known[at + beside : at + beside + depth]
            c, d = known[at + below : at + below + depth], known[at + below + beside : at + below + beside + depth]
            flags = all_flags[number, at : at + depth]
            for k in range(depth):
                sums[k] = a[k] + b[k] + c[k] + d[k]
            sums[depth] = sums[depth - 1]
            for k in range(depth):
                pairs[k] = sums[k] + sums[k + 1]
            for k in range(depth):
                flags[k] = 0 if pairs[k] == 0 else 1 if pairs[k] == 8 else 2


@compiled
def _sample_known(
    cells: Floats,
    all_known: NDArray[np.generic],
    all_flags: NDArray[np.uint8],
    displacements: Floats,
    origin: NDArray[np.int64],
    share: float,
    all_values: Floats,
    all_seen: NDArray[np.uint8],
    first: int,
    last: int,
) -> None:
    """Samples of ``(B, H, W, D, 1)``, or what ``channels_last`` gives, and whether more than a share is known there.

    For the rows ``[first, last)``, counted through all displacements; there may be one volume for all of them.
    """
    _, height, width, depth, padded = cells.shape
    _, _, rows, columns, length = displacements.shape
    size, channels = rows * columns * length, all_values.shape[1]
    block, bytes_, numbers = aligned_zeros(LANES * LANES), np.zeros(LANES, np.uint8), np.zeros(LANES, np.int32)
    line, shares = aligned_zeros(LANES), aligned_zeros(3 * LANES)
    steps = whole_numbers()
    corner_steps = (width * depth * padded if height > 1 else 0, depth * padded if width > 1 else 0, padded if depth > 1 else 0)
    across = floor_of(load(steps, 0)) * places(LANES)
    for row in range(first, last):
        number, i = row // rows, row % rows
        volume, which = cells[min(number, len(cells) - 1)], min(number, len(all_known) - 1)
        known, flags, u = all_known[which], all_flags[which], displacements[number]
        values, seen = all_values[number], all_seen[number].reshape(-1)
        for j in range(columns):
            p0, p1 = spread(np.float32(i + origin[0])), spread(np.float32(j + origin[1]))
            for k in range(0, length, LANES):
                count, here = min(LANES, length - k), (i * columns + j) * length + k
                x0 = p0 + some(u, here, count, block)
                x1 = p1 + some(u, here + size, count, block)
                x2 = spread(np.float32(k + origin[2])) + load(steps, 0) + some(u, here + 2 * size, count, block)
                at0, b0, out0 = below(x0, height)
                at1, b1, out1 = below(x1, width)
                at2, b2, out2 = below(x2, depth)
                at = (at0 * places(width) + at1) * places(depth) + at2
                if padded == 1:
                    put(between(volume, at, height, width, depth, b0, b1, b2), values, here, count, block)
                else:
                    store_places(numbers, 0, at)
                    store(shares, 0, b0)
                    store(shares, LANES, b1)
                    store(shares, 2 * LANES, b2)
                    for c in range(0, padded, LANES):
                        for lane in range(count):
                            one = _between_cells(volume, np.int64(numbers[lane]) * padded + c, corner_steps, shares, lane)
                            store(block, lane * LANES, one)
                        for channel in range(c, min(c + LANES, channels)):
                            one = gather(block, across + places(channel - c))
                            put(one, values, channel * size + here, count, line)
                flag = gather(flags, at)
                outside = where_less(out0 + out1 + out2, spread(NOTHING), spread(0.0), spread(2.0))
                if any_at_most(spread(2.0), outside + flag):
                    amount = with_zeros(known, places(0), height, width, depth, x0, x1, x2)
                    flag = where_less(spread(share), amount, spread(1.0), spread(0.0))
                if count == LANES:
                    store_bytes(seen, here, floor_of(flag))
                else:
                    store_bytes(bytes_, 0, floor_of(flag))
                    seen[here : here + count] = bytes_[:count]


@inlined
def _between_cells(cells: Floats, at: int, steps: tuple[int, int, int], shares: Floats, lane: int) -> Any:
    """Neighboring channels between a cell, of a flat index, and its next neighbors, which lie so many floats on."""
    step0, step1, step2 = steps
    b0, b1, b2 = spread(peek(shares, lane)), spread(peek(shares, LANES + lane)), spread(peek(shares, 2 * LANES + lane))
    m00 = _mix(load(cells, at), load(cells, at + step2), b2)
    m01 = _mix(load(cells, at + step1), load(cells, at + step1 + step2), b2)
    far = at + step0
    m10 = _mix(load(cells, far), load(cells, far + step2), b2)
    m11 = _mix(load(cells, far + step1), load(cells, far + step1 + step2), b2)
    return _mix(_mix(m00, m01, b1), _mix(m10, m11, b1), b0)


@compiled
def whole_numbers() -> Floats:
    """0 to ``LANES`` − 1."""
    numbers = aligned_zeros(LANES)
    for lane in range(LANES):
        numbers[lane] = lane
    return numbers


@inlined
def some(array: Floats, at: int, count: int, block: Floats) -> Any:
    """The values of an array from a flat index on, of which there are so many; zeros beyond."""
    if count == LANES:
        return load(array, at)
    for lane in range(LANES):
        block[lane] = peek(array, at + lane) if lane < count else np.float32(0)
    return load(block, 0)


@inlined
def put(value: Any, array: Floats, at: int, count: int, block: Floats) -> None:
    """Writes the first lanes, of which there are so many, to an array from a flat index on."""
    if count == LANES:
        store(array, at, value)
        return
    store(block, 0, value)
    flat = array.reshape(-1)
    for lane in range(count):
        flat[at + lane] = block[lane]


@inlined
def below(x: Any, size: int) -> tuple[Any, Any, Any]:
    """The voxels below places that are moved into the grid, how far above them these are, and their squared way there.

    The last voxel is one above the one before it. What is no number is moved to the first.
    """
    inside = lesser(greater(x, spread(0.0)), spread(np.float32(size - 1)))
    low = floor_of(lesser(inside, spread(np.float32(max(size - 2, 0)))))
    way = x - inside
    return low, inside - floats_of(low), way * way


@inlined
def between(volume: Floats, at: Any, height: int, width: int, depth: int, b0: Any, b1: Any, b2: Any) -> Any:
    """The trilinear interpolants between voxels and their next neighbors in a volume of this shape."""
    beside = at + places(depth if width > 1 else 0)
    beyond = places(width * depth if height > 1 else 0)
    m00, m01 = _along_axis_2(volume, at, depth, b2), _along_axis_2(volume, beside, depth, b2)
    m10, m11 = _along_axis_2(volume, at + beyond, depth, b2), _along_axis_2(volume, beside + beyond, depth, b2)
    return _mix(_mix(m00, m01, b1), _mix(m10, m11, b1), b0)


@inlined
def _along_axis_2(volume: Floats, at: Any, depth: int, share: Any) -> Any:
    if depth == 1:
        return gather(volume, at)
    near, far = gather_pairs(volume, at)
    return _mix(near, far, share)


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


@inlined
def _mix(a: Any, b: Any, share: Any) -> Any:
    return a + share * (b - a)


@inlined
def with_zeros(volume: NDArray[np.generic], first: Any, height: int, width: int, depth: int, x0: Any, x1: Any, x2: Any) -> Any:
    """Samples of a volume, of this first index, that is 0 beyond its voxels; 0 where there is no number."""
    near0, far0, a0, b0 = _around(x0, height)
    near1, far1, a1, b1 = _around(x1, width)
    near2, far2, a2, b2 = _around(x2, depth)
    near0, far0 = first + near0 * places(width * depth), first + far0 * places(width * depth)
    near1, far1 = near1 * places(depth), far1 * places(depth)
    low, high = near0 + near1, near0 + far1
    near = b1 * (a2 * gather(volume, high + near2) + b2 * gather(volume, high + far2))
    near = near + a1 * (a2 * gather(volume, low + near2) + b2 * gather(volume, low + far2))
    low, high = far0 + near1, far0 + far1
    far = b1 * (a2 * gather(volume, high + near2) + b2 * gather(volume, high + far2))
    far = far + a1 * (a2 * gather(volume, low + near2) + b2 * gather(volume, low + far2))
    return a0 * near + b0 * far


@inlined
def _around(x: Any, size: int) -> tuple[Any, Any, Any, Any]:
    """The voxels below and above places, moved into the grid, and their weights, which are 0 for those that were not in it."""
    x = lesser(greater(x, spread(-1.0)), spread(np.float32(size)))
    low = floats_of(floor_of(x + spread(1.0))) - spread(1.0)
    share, none, last = x - low, spread(0.0), spread(np.float32(size - 1))
    near = where_less(low, none, none, where_less(last, low, none, spread(1.0) - share))
    far = where_less(low, last, share, none)
    return floor_of(lesser(greater(low, none), last)), floor_of(lesser(low + spread(1.0), last)), near, far


@compiled
def _compose(rest: Floats, linear: Floats, before: Floats, turn: Floats, result: Floats, first: int, last: int) -> None:
    """Linear + turn·v + rest(p + v), v being ``before``: the rows ``[first, last)``."""
    _, height, width, depth = rest.shape
    size = height * width * depth
    block, steps = aligned_zeros(LANES), whole_numbers()
    for i in range(first, last):
        for j in range(width):
            for k in range(0, depth, LANES):
                count, here = min(LANES, depth - k), (i * width + j) * depth + k
                v0 = some(before, here, count, block)
                v1 = some(before, here + size, count, block)
                v2 = some(before, here + 2 * size, count, block)
                at0, b0, _ = below(spread(np.float32(i)) + v0, height)
                at1, b1, _ = below(spread(np.float32(j)) + v1, width)
                at2, b2, _ = below(spread(np.float32(k)) + load(steps, 0) + v2, depth)
                at = (at0 * places(width) + at1) * places(depth) + at2
                for axis in range(3):
                    moved = between(rest, at + places(axis * size), height, width, depth, b0, b1, b2)
                    turned = spread(turn[axis, 0]) * v0 + spread(turn[axis, 1]) * v1 + spread(turn[axis, 2]) * v2
                    there = here + axis * size
                    put(some(linear, there, count, block) + turned + moved, result, there, count, block)


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
