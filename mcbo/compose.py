"""Two displacements, one after the other, as one."""

import torch

from mcbo.continued import continued
from mcbo.grid import Grid, displaced
from mcbo.types import Displacement


def compose(first: Displacement, first_grid: Grid, second: Displacement, second_grid: Grid) -> tuple[Displacement, float]:
    """From A to C, out of A to B and B to C: the point that ``first`` reaches is moved on by ``second``.

    Warping an image C with the result is warping it with ``second`` onto B and then with ``first`` onto A, without the blur
    of sampling twice.

    Args:
        first: ``(1, 3, H, W, D)`` voxels of A.
        first_grid: of image A.
        second: ``(1, 3, h, w, d)`` voxels of B.
        second_grid: of image B.

    Returns:
        The displacement ``(1, 3, H, W, D)`` in float32 voxels of A, and the share of A's voxels whose point in B lies outside
        of B's grid: there the second is continued (``continued.py``).

    Raises:
        ShapeError: if a displacement does not live on its grid.
    """
    onward = continued(second, second_grid)
    result = torch.empty_like(first, dtype=torch.float32)
    beyond = 0
    for start, stop in first_grid.slabs():
        between = second_grid.to_voxels(first_grid.to_world(displaced(first_grid, first, start, stop)))
        total = first_grid.to_voxels(second_grid.to_world(onward.moved(between))) - first_grid.voxels(start, stop).to(
            first.device
        )
        result[0, :, start:stop] = total.T.reshape(3, stop - start, *first_grid.shape[1:])
        beyond += int((~second_grid.inside(between)).sum())
    return result, beyond / result[0, 0].numel()
