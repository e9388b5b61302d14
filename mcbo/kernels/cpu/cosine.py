"""The cosine transform on the CPU, with half of the arithmetic: twin of ``linear_solver.CosineTransform``.

Cosines of even number are the same read backwards, those of odd number the opposite. So, along each axis, the even ones follow
from the sum of a vector and its mirror image, the odd ones from the difference, each from half as many numbers. Along three
axes that makes eight blocks of an eighth of the size; each is worked on from beginning to end in the caches of a core.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.types import Displacement, Shape
from mcbo.kernels.simd import Floats, aligned_floats, compiled
from mcbo.kernels.threads import in_threads, side_by_side
from mcbo.steps import linear_solver

FEW_CELLS = 2**18
"""Of fewer, blocks are no faster than whole matrices: 9.3 and 8.3 ms for 64×54×60 cells, 31 and 43 for 86³ (AMD EPYC, one
core, 2026-11-29)."""
_BLOCKS = tuple(itertools.product((0, 1), repeat=3))
"""Whether a block has the odd numbers of cosines, along axes 0, 1, 2."""


class CosineTransform(linear_solver.CosineTransform):
    """As its base class, for float32; divides faster. What ``solver`` returns keeps a work space: for one caller at a time."""

    def __init__(self, shape: Shape, *, like: Tensor) -> None:
        super().__init__(shape, like=like)
        sizes = [(-(-size // 2), size // 2) for size in shape]  # of what is even, and odd
        self._halves = [
            [matrix[odd::2, : size[odd]].contiguous() for odd in (0, 1)]
            for matrix, size in zip(self.matrices, sizes, strict=True)
        ]
        self._shapes = [(3, *(size[odd] for size, odd in zip(sizes, odds, strict=True))) for odds in _BLOCKS]
        self._starts = np.cumsum([0, *map(math.prod, self._shapes)])
        self._rows = 3 * sizes[0][0]

    def solver(self, symbol: Tensor) -> Callable[[Displacement], Displacement]:
        if symbol.numel() < FEW_CELLS:
            return super().solver(symbol)
        symbols = [symbol[a::2, b::2, c::2].contiguous() for a, b, c in _BLOCKS]
        folded, scratch = aligned_floats(3 * symbol.numel()), aligned_floats(3 * symbol.numel())  # once: new pages take time
        blocks, scratches = self._blocks_of(folded), self._blocks_of(scratch)

        def divide(numbers: range) -> range:
            for number in numbers:
                self._divide(number, blocks[number], scratches[number], symbols[number])
            return numbers

        def solve(right: Displacement) -> Displacement:
            in_threads(_fold, self._rows, right[0].contiguous().numpy(), self._starts, folded)
            side_by_side(divide, range(len(blocks)), len(blocks))
            result = torch.empty_like(right, memory_format=torch.contiguous_format)
            in_threads(_unfold, self._rows, folded, self._starts, result[0].numpy())
            return result

        return solve

    def _blocks_of(self, folded: Floats) -> list[Tensor]:
        parts = (torch.from_numpy(folded[begin:end]) for begin, end in itertools.pairwise(self._starts))
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def _divide(self, number: int, block: Tensor, scratch: Tensor, symbol: Tensor) -> None:
        """Transforms a block, ``(3, h, w, d)``, divides it by ``(h, w, d)``, and transforms it back, in place."""
        _, height, width, depth = block.shape
        if 0 in block.shape:
            return
        first, second, third = (half[odd] for half, odd in zip(self._halves, _BLOCKS[number], strict=True))
        planes_of = (3 * height, width, width)
        lines, planes, whole = (-1, depth), (-1, width, depth), (3, height, -1)
        torch.mm(block.view(lines), third.T, out=scratch.view(lines))
        torch.bmm(second.expand(planes_of), scratch.view(planes), out=block.view(planes))
        torch.bmm(first.expand(3, height, height), block.view(whole), out=scratch.view(whole))
        scratch.div_(symbol)
        torch.bmm(first.T.expand(3, height, height), scratch.view(whole), out=block.view(whole))
        torch.bmm(second.T.expand(planes_of), block.view(planes), out=scratch.view(planes))
        torch.mm(scratch.view(lines), third, out=block.view(lines))


@compiled
def _fold(values: Floats, starts: NDArray[np.int64], folded: Floats, first: int, last: int) -> None:
    """Sums and differences of ``(3, h, w, d)`` and its mirror images: to the blocks, which begin at ``starts``.

    A row, of some counted through all components, goes with its mirror image. A row, column or voxel that is its own mirror
    image counts once in a sum, and in no difference. Of the four lines, s is even along axes 0 and 1, t odd along axis 1, u
    along axis 0, v along both.
    """
    _, height, width, depth = values.shape
    lines = np.zeros((4, depth), np.float32)
    s, t, u, v = lines[0], lines[1], lines[2], lines[3]
    rows, columns = (height + 1) // 2, (width + 1) // 2
    for row in range(first, last):
        component, i = row // rows, row % rows
        behind = height - 1 - i
        for j in range(columns):
            beside = width - 1 - j
            a, b = values[component, i, j], values[component, i, beside]
            c, d = values[component, behind, j], values[component, behind, beside]
            share = np.float32((0.5 if i == behind else 1.0) * (0.5 if j == beside else 1.0))
            for k in range(depth):
                s[k] = share * ((a[k] + c[k]) + (b[k] + d[k]))
                t[k] = share * ((a[k] + c[k]) - (b[k] + d[k]))
                u[k] = share * ((a[k] - c[k]) + (b[k] - d[k]))
                v[k] = share * ((a[k] - c[k]) - (b[k] - d[k]))
            for number in range(4):
                even, odd = _halves_of(number, component, i, j, (height, width, depth), starts, folded)
                if len(even) == 0:
                    continue
                line = lines[number]
                for k in range(len(odd)):
                    even[k] = line[k] + line[depth - 1 - k]
                    odd[k] = line[k] - line[depth - 1 - k]
                if len(even) > len(odd):
                    even[-1] = line[depth // 2]


@compiled
def _unfold(folded: Floats, starts: NDArray[np.int64], values: Floats, first: int, last: int) -> None:
    """Values and their mirror images, as sums and differences of what the blocks became."""
    _, height, width, depth = values.shape
    lines = np.zeros((4, depth), np.float32)
    s, t, u, v = lines[0], lines[1], lines[2], lines[3]
    rows, columns = (height + 1) // 2, (width + 1) // 2
    for row in range(first, last):
        component, i = row // rows, row % rows
        behind = height - 1 - i
        for j in range(columns):
            beside = width - 1 - j
            for number in range(4):
                line = lines[number]
                even, odd = _halves_of(number, component, i, j, (height, width, depth), starts, folded)
                if len(even) == 0:
                    line[:] = 0
                    continue
                for k in range(len(odd)):
                    line[k] = even[k] + odd[k]
                    line[depth - 1 - k] = even[k] - odd[k]
                if len(even) > len(odd):
                    line[depth // 2] = even[-1]
            a, b = values[component, i, j], values[component, i, beside]
            c, d = values[component, behind, j], values[component, behind, beside]
            for k in range(depth):
                a[k] = (s[k] + u[k]) + (t[k] + v[k])
                b[k] = (s[k] + u[k]) - (t[k] + v[k])
                c[k] = (s[k] - u[k]) + (t[k] - v[k])
                d[k] = (s[k] - u[k]) - (t[k] - v[k])


@compiled
def _halves_of(
    number: int, component: int, i: int, j: int, shape: tuple[int, int, int], starts: NDArray[np.int64], folded: Floats
) -> tuple[Floats, Floats]:
    """Line (i, j) of two blocks, the one that is even along axis 2 and the one that is odd.

    ``number`` is that of the four lines of ``_fold``: 2 if the blocks are odd along axis 0, plus 1 if they are along axis 1.
    Odd blocks lack the middle row or column of an odd size; then, both lines are empty.
    """
    height, width, depth = shape
    rows, columns = (height + 1 - number // 2) // 2, (width + 1 - number % 2) // 2
    if i >= rows or j >= columns:
        return folded[:0], folded[:0]
    line = (component * rows + i) * columns + j
    even, odd = starts[2 * number] + line * ((depth + 1) // 2), starts[2 * number + 1] + line * (depth // 2)
    return folded[even : even + (depth + 1) // 2], folded[odd : odd + depth // 2]
