"""The memory model: how much the tensors of a case need, and how thick the cost slabs may be within a budget.

The whole cost volume of a 256³ pair at full resolution would take 46 GiB. ``convex.solve`` holds a few slabs of it at a time;
everything else is small beside that and is counted here per voxel.
"""

from collections.abc import Sequence

from mcbo.config import Config, Level, format_shape
from mcbo.cost_volume import HALO
from mcbo.errors import MemoryBudgetError
from mcbo.types import Shape

FLOAT_BYTES = 4
FEATURE_CHANNELS = 12
MAX_SLAB_CELLS = 2**16
"""Thicker slabs leave the processor's caches. Seconds for R = 4 on two cores (AMD EPYC, 2026-11-23, medians of 3):
64×60×68 cells with 16, 8, 4, 2 rows 2.35, 2.51, 2.82, 3.45; 40×128×128 cells 7.96, 7.16, 5.61, 6.29."""


def resident_bytes(shape: Shape, *, movings: int, levels: int) -> int:
    """Bytes of what a case holds besides cost slabs: an upper bound for images, features, displacements and refinement.

    Per voxel: an image and 12 features each for the fixed and every moving image; a displacement per level, per moving image
    and three in work; and 12 more floats, which covers the refinement (on an eighth of the voxels) and the making of features.

    Args:
        shape: voxels.
        movings: moving images that are fused.
        levels: of the config.
    """
    voxels = shape[0] * shape[1] * shape[2]
    floats = (1 + movings) * (1 + FEATURE_CHANNELS) + 3 * (levels + movings + 3) + 12
    return FLOAT_BYTES * voxels * floats


def slab_bytes(grid: Shape, *, search_radius: int, passes: int, rows: int) -> int:
    """Bytes that ``convex.solve`` holds at most on a grid of cells.

    ``passes`` slabs in use, one in the making, two carried halos, and an eighth for what ``coupled_argmin`` works with.
    """
    row = FLOAT_BYTES * (2 * search_radius + 1) ** 3 * grid[1] * grid[2]
    held_rows = min((passes + 1) * rows, grid[0] + rows) + 4 * HALO
    return row * held_rows * 9 // 8


def tile_grid(shape: Shape, level: Level) -> Shape:
    """Cells of the largest tile of a level."""
    height, width, depth = (-(-size // level.tiles) // level.grid_spacing for size in shape)
    return height, width, depth


def rows_per_level(shape: Shape, config: Config, *, movings: int, budget_bytes: int) -> Sequence[int]:
    """The thickest slabs that fit, one number per level.

    Args:
        shape: voxels.
        config: already fitted to the shape.
        movings: moving images that are fused.
        budget_bytes: what the case may use in all.

    Raises:
        MemoryBudgetError: if slabs of one row do not fit; the message says how much would do.
    """
    resident = resident_bytes(shape, movings=movings, levels=len(config.levels))
    passes = len(config.coupling_weights) + 1

    def needed(level: Level, rows: int) -> int:
        grid = tile_grid(shape, level)
        return resident + slab_bytes(grid, search_radius=level.search_radius, passes=passes, rows=rows)

    least = max(needed(level, 1) for level in config.levels)
    if least > budget_bytes:
        raise MemoryBudgetError(
            f"{format_shape(shape)} voxels with {movings} moving image(s) need at least {_gb(least)} of memory, "
            f"but the run may use {_gb(budget_bytes)}: free some, or allow more with --memory-gb"
        )
    return [
        max(rows for rows in range(1, max_rows(tile_grid(shape, level)) + 1) if needed(level, rows) <= budget_bytes)
        for level in config.levels
    ]


def max_rows(grid: Shape) -> int:
    """Rows of the thickest slab that is worth its memory."""
    return max(1, min(grid[0], MAX_SLAB_CELLS // (grid[1] * grid[2])))


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
