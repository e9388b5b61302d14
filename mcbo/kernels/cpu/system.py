"""Linear systems on a grid of cells, compiled for the CPU: twins of ``linear_solver.py`` and of the matrix of Gauss–Newton."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.field import shape_of
from mcbo.core.types import Displacement
from mcbo.kernels.simd import LANES, Floats, aligned_floats, aligned_zeros, compiled, load, spread, store, total
from mcbo.kernels.threads import in_threads
from mcbo.steps import gauss_newton
from mcbo.steps.linear_solver import CG_TOLERANCE

_PART = 2**13
"""Floats of a vector whose products are summed in float32."""
_MARGIN = LANES
"""Floats before and after a line in a buffer."""


def bent(hessian: Tensor, bending: float) -> Callable[[Displacement], Displacement]:
    """Twin of ``gauss_newton.bent``."""
    shape = shape_of(hessian)
    if shape[2] < LANES:  # shorter than a vector: too small to matter
        return gauss_newton.bent(hessian, bending)
    matrix = hessian.contiguous().numpy()
    once = aligned_floats(3, *shape)

    def product(field: Displacement) -> Displacement:
        values, result = field[0].contiguous().numpy(), aligned_floats(3, *shape)
        in_threads(_laplacian, 3 * shape[0], values, once)
        in_threads(_bend, shape[0], values, once, matrix, np.float32(bending), np.float32(gauss_newton.RIDGE), result)
        return torch.from_numpy(result).unsqueeze(0)

    return product


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], right: Tensor, precondition: Callable[[Tensor], Tensor], *, rounds: int
) -> Tensor:
    """Twin of ``linear_solver.conjugate_gradient``: each vector is read once per iteration for all that is done to it."""
    residual = right.clone(memory_format=torch.contiguous_format)
    x, r = torch.zeros_like(residual), residual.view(-1).numpy()
    parts = -(-len(r) // _PART)
    sums = np.empty(parts)

    def dot(a: Tensor, b: Floats) -> float:
        in_threads(_sum_products, parts, a.contiguous().view(-1).numpy(), b, sums)
        return float(sums.sum())

    direction = precondition(residual).contiguous().clone()
    d = direction.view(-1).numpy()
    size = first = dot(residual, d)
    for _ in range(rounds):
        if size <= CG_TOLERANCE**2 * first or first == 0:
            break
        image = product(direction).contiguous().view(-1).numpy()
        length = size / max(dot(direction, image), 1e-30)
        in_threads(_advance, parts, np.float32(length), d, image, x.view(-1).numpy(), r)
        z = precondition(residual).contiguous().view(-1).numpy()
        after = dot(residual, z)
        in_threads(_turn, parts, np.float32(after / size), z, d)
        size = after
    return x


@compiled
def _sum_products(a: Floats, b: Floats, sums: NDArray[np.float64], first: int, last: int) -> None:
    """Dot products of the parts ``[first, last)`` of two vectors, ``_PART`` long each."""
    for part in range(first, last):
        end = min((part + 1) * _PART, len(a))
        whole = part * _PART + (end - part * _PART) // LANES * LANES
        one, other = spread(0.0), spread(0.0)  # two sums, so that none waits for the one before
        for z in range(part * _PART, whole, LANES):
            one, other = other + load(a, z) * load(b, z), one
        amount = np.float64(total(one + other))
        for z in range(whole, end):
            amount += a[z] * b[z]
        sums[part] = amount


@compiled
def _advance(length: float, direction: Floats, image: Floats, x: Floats, residual: Floats, first: int, last: int) -> None:
    """A step along a direction, and what is left: the parts ``[first, last)`` of the vectors."""
    for z in range(first * _PART, min(last * _PART, len(x))):
        x[z] += length * direction[z]
        residual[z] -= length * image[z]


@compiled
def _turn(share: float, z: Floats, direction: Floats, first: int, last: int) -> None:
    """The next direction: the parts ``[first, last)`` of the vectors."""
    for k in range(first * _PART, min(last * _PART, len(z))):
        direction[k] = z[k] + share * direction[k]


@compiled
def _laplacian_at(values: Floats, at: int, around: NDArray[np.int64], line: Floats, z: int) -> Any:
    """Σ over face neighbors of (u − neighbor), ``LANES`` cells from z on; ``around`` are the lines beside that at ``at``."""
    here = load(values, at + z)
    apart = spread(6.0) * here - load(line, _MARGIN + z - 1) - load(line, _MARGIN + z + 1)
    for k in range(4):
        apart = apart - load(values, around[k] + z)
    return apart


@compiled
def _set_out(values: Floats, shape: tuple[int, int, int], row: int, j: int, around: NDArray[np.int64], line: Floats) -> int:
    """Prepares ``_laplacian_at`` for a line, and says where it begins; rows count through all components. Borders reflect."""
    height, width, depth = shape
    component, i = row // height * height, row % height
    at = (row * width + j) * depth
    around[0] = ((component + max(i - 1, 0)) * width + j) * depth
    around[1] = ((component + min(i + 1, height - 1)) * width + j) * depth
    around[2] = (row * width + max(j - 1, 0)) * depth
    around[3] = (row * width + min(j + 1, width - 1)) * depth
    for start in range(0, depth, LANES):
        z = min(start, depth - LANES)
        store(line, _MARGIN + z, load(values, at + z))
    line[_MARGIN - 1], line[_MARGIN + depth] = line[_MARGIN], line[_MARGIN + depth - 1]
    return at


@compiled
def _laplacian(values: Floats, result: Floats, first: int, last: int) -> None:
    """The Laplacian of the rows ``[first, last)`` of ``(3, h, w, d)``, counted through all components."""
    _, height, width, depth = values.shape
    line, around = aligned_zeros(depth + LANES + 2 * _MARGIN), np.empty(4, np.int64)
    for row in range(first, last):
        for j in range(width):
            at = _set_out(values, (height, width, depth), row, j, around, line)
            for start in range(0, depth, LANES):
                z = min(start, depth - LANES)
                store(result, at + z, _laplacian_at(values, at, around, line, z))


@compiled
def _bend(
    field: Floats, once: Floats, hessian: Floats, bending: float, ridge: float, result: Floats, first: int, last: int
) -> None:
    """Hessian · field + bending · Laplacian of ``once`` + ridge · field: the rows ``[first, last)``."""
    _, height, width, depth = field.shape
    size = height * width * depth
    line, around = aligned_zeros(depth + LANES + 2 * _MARGIN), np.empty(4, np.int64)
    heavy, small = spread(bending), spread(ridge)
    for i in range(first, last):
        for j in range(width):
            here = (i * width + j) * depth
            for axis in range(3):
                at = _set_out(once, (height, width, depth), axis * height + i, j, around, line)
                low, high = (1, 2) if axis == 0 else (0, 2) if axis == 1 else (0, 1)
                own = (0, 3, 5)[axis]
                other0 = (1, 1, 2)[axis]
                other1 = (2, 4, 4)[axis]
                for start in range(0, depth, LANES):
                    z = min(start, depth - LANES)
                    mine = load(field, axis * size + here + z)
                    one = load(hessian, own * size + here + z) * mine + small * mine
                    one = one + load(hessian, other0 * size + here + z) * load(field, low * size + here + z)
                    one = one + load(hessian, other1 * size + here + z) * load(field, high * size + here + z)
                    store(result, at + z, one + heavy * _laplacian_at(once, at, around, line, z))
