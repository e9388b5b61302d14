"""Dense correlation: the cost of every candidate displacement in every cell.

docs/method.md, step 3. The torch reference; faster twins in ``kernels/`` give the same numbers.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from mcbo.core.errors import ShapeError
from mcbo.core.field import box_sum, shape_of
from mcbo.core.types import Features

BOX_SIZE, BOX_ROUNDS = 3, 2
"""Two 3×3×3 box means smooth the cost of each candidate."""
HALO = BOX_ROUNDS * (BOX_SIZE // 2)
"""Rows on either side that the box means reach."""


def candidates(search_radius: int) -> Tensor:
    """All displacements of the search cube, ``(K, 3)`` int64 cells, K = (2R+1)³.

    Axis 0 runs fastest: the published program numbers them so, and of equally good candidates it takes the first. (On the
    golden tiles that order decides 3 % of the voxels.)
    """
    steps = torch.arange(-search_radius, search_radius + 1)
    return torch.cartesian_prod(steps, steps, steps).flip(1)


def check_shapes(fixed: Features, moving: Features) -> None:
    """Raises ShapeError if two feature volumes do not have one shape."""
    if fixed.shape != moving.shape:
        raise ShapeError(f"cost_slabs: expected features of one shape, got {tuple(fixed.shape)} and {tuple(moving.shape)}")


def cost_slabs(fixed: Features, moving: Features, *, search_radius: int, rows: int, keep: int) -> Iterator[Tensor]:
    """Yields the smoothed cost of all candidates, a slab of rows of axis 0 at a time.

    cost(p, c) = Σ over channels of (F(p) − M(p + c))², M zero outside its grid, then two zero-padded 3×3×3 box means.
    Rows that the box means of the next slab need are carried over, so that nothing is computed twice; and every voxel sees
    the same additions in the same order for any ``rows``, so that the result is the same to the last bit.

    Args:
        fixed: ``(1, C, h, w, d)`` features.
        moving: of the same shape.
        search_radius: R, cells; K = (2R+1)³ candidates in the order of ``candidates``.
        rows: of a slab (the last one may have fewer).
        keep: how many slabs before the newest the caller still uses; a kernel may write over older ones.

    Yields:
        ``(K, ≤ rows, w, d)`` float32, in ascending rows.

    Raises:
        ShapeError: if the two shapes differ.
    """
    del keep  # every slab is memory of its own
    check_shapes(fixed, moving)
    height, width, depth = shape_of(fixed)
    side = 2 * search_radius + 1
    padded = functional.pad(moving[0], [search_radius] * 6)
    carried = fixed.new_empty((side, side, side, 0, width, depth))
    done = 0  # rows whose squared differences are summed
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        reach = min(stop + HALO, height)
        cost = fixed.new_empty((side, side, side, stop - start, width, depth))
        kept = fixed.new_empty((side, side, side, min(2 * HALO, reach), width, depth))
        for i in range(side):
            for j in range(side):
                window = padded[:, done : reach + side - 1, j : j + width, i : i + depth]
                fresh = _squared_differences(fixed[0, :, done:reach], window)
                fresh = box_sum(fresh, axes=(-2, -1), size=BOX_SIZE, rounds=BOX_ROUNDS)  # in which no row needs another
                block = torch.cat([carried[i, j], fresh], dim=1)
                kept[i, j] = block[:, block.shape[1] - kept.shape[3] :]
                first = block.shape[1] - reach + start
                block = box_sum(block, axes=[1], size=BOX_SIZE, rounds=BOX_ROUNDS)
                torch.mul(block[:, first : first + stop - start], 1 / BOX_SIZE ** (3 * BOX_ROUNDS), out=cost[i, j])
        done, carried = reach, kept
        yield cost.flatten(0, 2)


def _squared_differences(fixed: Tensor, moving: Tensor) -> Tensor:
    """Σ over channels of (F − M shifted along axis 0)², for all shifts: ``(side, n, w, d)``.

    From ``(C, n, w, d)`` and ``(C, n + side − 1, w, d)``.
    """
    shifted = moving.unfold(1, fixed.shape[1], 1).movedim(-1, 2)  # a view: (C, side, n, w, d)
    total = fixed.new_zeros(shifted.shape[1:])
    difference = torch.empty_like(total)
    # Channel by channel, because what is worked on then stays in the processor's cache (16 times faster than at once).
    for f, m in zip(fixed, shifted, strict=True):
        torch.sub(f, m, out=difference)
        total += difference.square_()
    return total
