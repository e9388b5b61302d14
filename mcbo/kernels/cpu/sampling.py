"""Sampling along displacements, compiled for the CPU: twins of ``consistency.make_consistent`` and ``adam.gradient_of``.

Sampling is trilinear with zeros outside, as ``field.warp`` does it.
"""

from collections.abc import Callable

import numpy as np
import torch

from mcbo.core.field import shape_of, stretch_factors
from mcbo.core.types import Displacement, Features
from mcbo.kernels import simd
from mcbo.kernels.cpu.warping import NOTHING, below, between, channels_last, put, some, whole_numbers, with_zeros
from mcbo.kernels.simd import (
    LANES,
    Floats,
    aligned_floats,
    aligned_zeros,
    any_at_most,
    compiled,
    load,
    places,
    spread,
    store,
    total,
)
from mcbo.kernels.threads import in_threads
from mcbo.steps import consistency


def make_consistent(
    forward: Displacement, backward: Displacement, *, rounds: int, stretch: bool
) -> tuple[Displacement, Displacement]:
    """Twin of ``consistency.make_consistent``."""
    if forward.numel() >= simd.MOST_PLACES:
        return consistency.make_consistent(forward, backward, rounds=rounds, stretch=stretch)
    factors = np.array(stretch_factors(shape_of(forward)) if stretch else (1.0, 1.0, 1.0), dtype=np.float32)
    f, b = forward[0].contiguous().numpy(), backward[0].contiguous().numpy()
    next_f, next_b = (aligned_floats(*f.shape) for _ in range(2))
    for turn in range(rounds):
        in_threads(_half_step, f.shape[1], f, b, next_f, factors)
        in_threads(_half_step, f.shape[1], b, f, next_b, factors)
        if turn == 0:  # the arguments are not ours to write to
            f, b = (aligned_floats(*f.shape) for _ in range(2))
        f, b, next_f, next_b = next_f, next_b, f, b
    return torch.from_numpy(f)[None], torch.from_numpy(b)[None]


def gradient_of(fixed: Features, moving: Features, *, stretch: bool) -> Callable[[Displacement], Displacement]:
    """Twin of ``adam.gradient_of``. Up to 16 channels."""
    fixed_cells, moving_cells = (channels_last(one.contiguous().numpy())[0] for one in (fixed, moving))
    shape = shape_of(fixed)
    factors = np.array(stretch_factors(shape) if stretch else (1.0, 1.0, 1.0), dtype=np.float32)
    scale = 2.0 / (shape[0] * shape[1] * shape[2])

    def gradient(displacement: Displacement) -> Displacement:
        u = displacement.detach()[0].contiguous().numpy()
        result = torch.empty_like(displacement, memory_format=torch.contiguous_format)
        in_threads(_fill_gradient, shape[0], fixed_cells, moving_cells, u, factors, np.float32(scale), result[0].numpy())
        return result

    return gradient


@compiled
def _half_step(ours: Floats, theirs: Floats, result: Floats, factors: Floats, first: int, last: int) -> None:
    """½(ours − theirs∘(id + ours)): the rows ``[first, last)`` of axis 0."""
    _, height, width, depth = ours.shape
    size = height * width * depth
    block, steps = aligned_zeros(LANES), whole_numbers()
    half = spread(0.5)
    factor0, factor1, factor2 = spread(factors[0]), spread(factors[1]), spread(factors[2])
    for i in range(first, last):
        for j in range(width):
            for k in range(0, depth, LANES):
                count, here = min(LANES, depth - k), (i * width + j) * depth + k
                x0 = spread(np.float32(i)) + some(ours, here, count, block) * factor0
                x1 = spread(np.float32(j)) + some(ours, here + size, count, block) * factor1
                x2 = spread(np.float32(k)) + load(steps, 0) + some(ours, here + 2 * size, count, block) * factor2
                at0, b0, out0 = below(x0, height)
                at1, b1, out1 = below(x1, width)
                at2, b2, out2 = below(x2, depth)
                at = (at0 * places(width) + at1) * places(depth) + at2
                is_inside = not any_at_most(spread(NOTHING), out0 + out1 + out2)
                for axis in range(3):
                    to = here + axis * size
                    if is_inside:
                        there = between(theirs, at + places(axis * size), height, width, depth, b0, b1, b2)
                    else:
                        there = with_zeros(theirs, places(axis * size), height, width, depth, x0, x1, x2)
                    put(half * (some(ours, to, count, block) - there), result, to, count, block)


@compiled
def _fill_gradient(
    fixed: Floats, moving: Floats, displacement: Floats, factors: Floats, scale: float, result: Floats, first: int, last: int
) -> None:
    """Gradient with respect to u of the mean over cells of Σ over channels (M(p + u) − F(p))²: rows ``[first, last)``."""
    height, width, depth, _ = fixed.shape
    corners = np.zeros((8, LANES), np.float32)
    for i in range(first, last):
        for j in range(width):
            for k in range(depth):
                x0 = i + displacement[0, i, j, k] * factors[0]
                x1 = j + displacement[1, i, j, k] * factors[1]
                x2 = k + displacement[2, i, j, k] * factors[2]
                i0, j0, k0 = int(np.floor(x0)), int(np.floor(x1)), int(np.floor(x2))
                b0, b1, b2 = spread(x0 - np.float32(i0)), spread(x1 - np.float32(j0)), spread(x2 - np.float32(k0))
                if 0 <= i0 < height - 1 and 0 <= j0 < width - 1 and 0 <= k0 < depth - 1:
                    at = ((i0 * width + j0) * depth + k0) * LANES
                    m000, m001 = load(moving, at), load(moving, at + LANES)
                    at += depth * LANES
                    m010, m011 = load(moving, at), load(moving, at + LANES)
                    at += (width - 1) * depth * LANES
                    m100, m101 = load(moving, at), load(moving, at + LANES)
                    at += depth * LANES
                    m110, m111 = load(moving, at), load(moving, at + LANES)
                else:
                    for corner in range(8):
                        p, q, r = i0 + (corner >> 2), j0 + (corner >> 1 & 1), k0 + (corner & 1)
                        if 0 <= p < height and 0 <= q < width and 0 <= r < depth:
                            store(corners, corner * LANES, load(moving, ((p * width + q) * depth + r) * LANES))
                        else:
                            store(corners, corner * LANES, spread(0.0))
                    m000, m001, m010, m011 = load(corners, 0), load(corners, 16), load(corners, 32), load(corners, 48)
                    m100, m101, m110, m111 = load(corners, 64), load(corners, 80), load(corners, 96), load(corners, 112)
                # Interpolated along axis 2, then 1, then 0; the slopes of each axis on the way.
                m00, m01 = m000 + b2 * (m001 - m000), m010 + b2 * (m011 - m010)
                m10, m11 = m100 + b2 * (m101 - m100), m110 + b2 * (m111 - m110)
                m0, m1 = m00 + b1 * (m01 - m00), m10 + b1 * (m11 - m10)
                error = m0 + b0 * (m1 - m0) - load(fixed, ((i * width + j) * depth + k) * LANES)
                slope_0 = m1 - m0
                s0, s1 = m01 - m00, m11 - m10
                slope_1 = s0 + b0 * (s1 - s0)
                s00, s01, s10, s11 = m001 - m000, m011 - m010, m101 - m100, m111 - m110
                s0, s1 = s00 + b1 * (s01 - s00), s10 + b1 * (s11 - s10)
                slope_2 = s0 + b0 * (s1 - s0)
                result[0, i, j, k] = scale * factors[0] * total(error * slope_0)
                result[1, i, j, k] = scale * factors[1] * total(error * slope_1)
                result[2, i, j, k] = scale * factors[2] * total(error * slope_2)
