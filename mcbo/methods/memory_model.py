"""The memory model: how much the tensors of a case need, and how thick the cost slabs may be within a budget.

The whole cost volume of a 256³ pair at full resolution would take 46 GiB. ``convex.solve`` holds a few slabs of it at a time;
everything else is counted here per voxel. A test counts the bytes of all tensors of a run of the torch reference and compares.
A process adds what Python and its libraries take (0.4 GB) and, on the CPU, what lies between tensors and what is kept free
for the next ones: up to 1.6 GB in all were seen at 256³.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mcbo.core.errors import MemoryBudgetError
from mcbo.core.field import format_shape
from mcbo.core.memory import format_gb
from mcbo.core.types import Kernels, Shape
from mcbo.kernels.cuda.features import CHUNK_VOXELS
from mcbo.methods.config import Level
from mcbo.steps.convex import slabs_behind
from mcbo.steps.cost_volume import HALO
from mcbo.steps.deformable_search import DeformStage
from mcbo.steps.gauss_newton import RefineStage
from mcbo.steps.initialization import BATCH_BYTES, fast_length
from mcbo.steps.masked_search import SearchStage

FLOAT_BYTES = 4
PROCESS_GB = (0.4, 1.6)
"""What a process takes beside its tensors, least and most, as above."""
FEATURE_CHANNELS = 12
POSE_COPIES = 4.4
"""Tensors as large as the features of a pose that exist at a time while it is compared."""
OVERVIEW_FLOATS = 3
"""Per cell of the overview and image: the image, where it is known, and its pooled features."""
SPECTRA_COPIES = 6
"""Spectra of a pose of the coarse search that exist at a time; their grid is half as large again along each axis."""
MASK_BYTES = 4
"""Per voxel: a mask, one byte, and what ``mask.field_of_view`` holds while it makes it."""
MASKED_COST_FLOATS = 2.3
"""Per candidate and cell of a masked search: its cost, the cost once filled up, and, in bytes, whether it is judged."""
LAID_OUT_COST_FLOATS = 1.1
"""The same again as the compiled kernels lay it out, whose lines of cells are filled up to multiples of ``COST_LANES``."""
COST_LANES = 16
SMALL_ROW_CELLS = 2**12
"""Two solves run at a time only if their rows have no more cells. Seconds for both, R = 4, in turn and at a time, on two cores
(AMD EPYC, 2026-11-24): 32³ cells 0.076, 0.057; 64³ 0.58, 0.55; 128³ 4.8, 5.2."""


@dataclass(frozen=True)
class Slabs:
    """How the two solves of a level share the memory.

    Attributes:
        rows: of a slab.
        at_once: solves that run at a time, 1 or 2.
        lanes: cells along axis 2 are filled up to multiples of it.
        is_ring: costs lie in a ring of rows; nothing but them is kept for the next slab.
    """

    rows: int
    at_once: int = 1
    lanes: int = 1
    is_ring: bool = False


def held_bytes(shape: Shape, *, movings: int, streamed: bool = False) -> int:
    """Bytes that a case of the multilevel method holds throughout.

    Per voxel: an image and, unless they are streamed, 12 features for the fixed and every moving image, a displacement for
    every moving image, and the fused one.
    """
    floats = (1 + movings) * (1 + (0 if streamed else FEATURE_CHANNELS)) + 3 * (movings + 1)
    return FLOAT_BYTES * floats * _cells(shape) + (chunk_bytes(shape) if streamed else 0)


def chunk_bytes(shape: Shape) -> int:
    """Bytes of streamed features in the making: of some rows, and their means over cells of one voxel."""
    return FLOAT_BYTES * FEATURE_CHANNELS * (min(CHUNK_VOXELS, _cells(shape)) + shape[1] * shape[2])


def refine_bytes(shape: Shape, *, streamed: bool = False) -> int:
    """Bytes that making features, upsampling or refining a displacement needs on top, whichever is most.

    Per voxel, 22 floats; 13 where features are streamed.
    """
    return FLOAT_BYTES * (13 if streamed else 22) * _cells(shape)


def solve_bytes(grid: Shape, *, search_radius: int, passes: int, slabs: Slabs) -> int:
    """Bytes that the two solves of a level need on top on a grid of cells.

    Costs: the slabs that the passes are in, the rows that the box means of the next slab need (twice, while they are handed
    over), and what ``coupled_argmin`` reduces. Rows of displacements: two of every pass, and four times those in work. Beside
    them, per cell: the features of both images, what each solve that runs lays out anew of them, and two displacements.
    """
    rows = slabs.rows
    held = min(slabs_behind(passes, rows) + 1, -(-grid[0] // rows))
    cost_rows = held * rows + (4 if held > 1 else 2) * HALO + rows / 8
    if slabs.is_ring:
        cost_rows = min(rows + passes - 1, grid[0])
    filled = -(-grid[2] // slabs.lanes) * slabs.lanes / grid[2]
    row_floats = (2 * search_radius + 1) ** 3 * cost_rows * filled + 3 * (2 * passes + 4 * (rows + 2))
    cell_floats = FEATURE_CHANNELS * (2 + 2 * slabs.at_once * filled) + 3 * 2
    return int(FLOAT_BYTES * (slabs.at_once * row_floats * grid[1] * grid[2] + cell_floats * _cells(grid)))


def solved_bytes(
    shape: Shape,
    levels: Sequence[Level],
    *,
    passes: int,
    movings: int,
    kernels: Kernels,
    slabs: Sequence[Slabs] | None = None,
    streamed: bool = False,
) -> int:
    """Bytes of all tensors of a case of the multilevel method at their peak.

    ``levels`` fit the shape, ``movings`` are fused; ``slabs`` are those of every level, by default the thickest worth it.
    """
    peaks = [refine_bytes(shape, streamed=streamed)]
    for k, level in enumerate(levels):
        grid = tile_grid(shape, level)
        its_slabs = slabs[k] if slabs else in_turn(thickest(grid, kernels), kernels)
        peaks.append(solve_bytes(grid, search_radius=level.search_radius, passes=passes, slabs=its_slabs))
    return held_bytes(shape, movings=movings, streamed=streamed) + max(peaks)


def cascade_bytes(
    shape: Shape,
    *,
    movings: int,
    searches: Sequence[SearchStage | DeformStage],
    refinements: Sequence[RefineStage],
    overview: Shape,
    poses: int,
    coarse: Shape | None,
    kernels: Kernels,
) -> int:
    """Bytes of all tensors of a case of the cascade at their peak; ``movings`` share a displacement.

    Per voxel: the images, filled and masked; the moving ones once more, under the rigid motion; unless they are streamed, 12
    features of the fixed image; four displacements. On top, whichever is most: the features of a moving image in the making;
    or, on a grid of cells, all features twice over and the costs of all candidates. Before all that, the rigid search has
    images and masks, and as many ``poses`` at once on the grid of its ``overview`` as the kernels want and ``BATCH_BYTES``
    allows; or as many spectra on the ``coarse`` grid of the search before.
    """
    voxels = _cells(shape)
    streamed = kernels.streamed_mind is not None
    held = voxels * (2 * (1 + movings) + 1.25 * movings + (0 if streamed else FEATURE_CHANNELS) + 3 * 4 + 4)
    peaks = [voxels * (8.0 if streamed else FEATURE_CHANNELS + 4.0) + (chunk_bytes(shape) / FLOAT_BYTES if streamed else 0)]
    for stage in searches:
        depth = -(-shape[2] // stage.grid_spacing)
        filled = -(-depth // COST_LANES) * COST_LANES / depth
        costs = 1.0 if streamed else MASKED_COST_FLOATS  # kernels that stream features make one array
        costs += 0.0 if kernels.is_ring else LAID_OUT_COST_FLOATS * filled
        candidates = (2 * stage.search_radius + 1) ** 3 * costs
        peaks.append(voxels / stage.grid_spacing**3 * (candidates + 2 * FEATURE_CHANNELS * 2 * movings + 30))
    peaks += [voxels / stage.grid_spacing**3 * (FEATURE_CHANNELS * (2 + 3 * movings) + 60) for stage in refinements]
    needed = int(FLOAT_BYTES * (held + max(peaks)))
    images = FLOAT_BYTES * 2 * (1 + movings) * voxels
    each = pose_bytes(overview)
    at_once = min(kernels.batch, poses, max(int(BATCH_BYTES / each), 1))
    needed = max(needed, images + at_once * each + FLOAT_BYTES * OVERVIEW_FLOATS * (1 + movings) * _cells(overview))
    if coarse and kernels.batch > 1:
        frequencies = math.prod(fast_length(n + n // 2) for n in coarse)  # half of them, complex
        spectra = frequencies * FLOAT_BYTES * (FEATURE_CHANNELS + 2)
        needed = max(needed, images + int(min(BATCH_BYTES, kernels.batch * SPECTRA_COPIES * spectra)))
    return needed


def pose_bytes(overview: Shape) -> int:
    """Bytes of a moving image under one of several poses at once, while its features are compared."""
    return int(FLOAT_BYTES * FEATURE_CHANNELS * POSE_COPIES * _cells(overview))


def image_bytes(shape: Shape, *, movings: int, masks: bool = False) -> int:
    """Bytes of the images of a case as they are read, a fixed and ``movings`` moving ones, and of ``masks`` in the making."""
    return (FLOAT_BYTES + (MASK_BYTES if masks else 0)) * (1 + movings) * _cells(shape)


def result_bytes(shape: Shape, *, pairs: int, warped: bool) -> int:
    """Bytes of the displacements of a case, and of its warped images if they are written."""
    return FLOAT_BYTES * (4 if warped else 3) * pairs * _cells(shape)


def check_budget(shape: Shape, *, movings: int, needed: int, budget_bytes: int) -> None:
    """Raises ``MemoryBudgetError``, which says how much would do, if a case needs more bytes than its budget."""
    if needed > budget_bytes:
        raise MemoryBudgetError(
            f"{format_shape(shape)} voxels with {movings} moving image(s) need at least {format_gb(needed)} of memory, "
            f"but the run may use {format_gb(budget_bytes)}: free some, or allow more with --memory-gb"
        )


def _cells(grid: Shape) -> int:
    return grid[0] * grid[1] * grid[2]


def tile_grid(shape: Shape, level: Level) -> Shape:
    """Cells of the largest tile of a level."""
    height, width, depth = (-(-size // level.tiles) // level.grid_spacing for size in shape)
    return height, width, depth


def may_stream(kernels: Kernels) -> bool:
    """Whether the multilevel method may stream features: on a GPU, whose memory is small.

    On a CPU, means over cells of streamed features differ by rounding from those of whole ones, and there no memory budget may
    change a result.
    """
    return kernels.streamed_mind is not None and kernels.is_ring


def plan(
    shape: Shape, levels: Sequence[Level], *, passes: int, movings: int, budget_bytes: int, kernels: Kernels
) -> tuple[bool, list[Slabs]]:
    """Whether features are streamed: where the kernels can, and it is that or thinner slabs; and ``slabs_per_level``."""
    whole = solved_bytes(shape, levels, passes=passes, movings=movings, kernels=kernels)
    streamed = may_stream(kernels) and whole > budget_bytes
    return streamed, slabs_per_level(
        shape, levels, passes=passes, movings=movings, budget_bytes=budget_bytes, kernels=kernels, streamed=streamed
    )


def slabs_per_level(
    shape: Shape,
    levels: Sequence[Level],
    *,
    passes: int,
    movings: int,
    budget_bytes: int,
    kernels: Kernels,
    streamed: bool = False,
) -> list[Slabs]:
    """Per level the thickest slabs that fit, and both solves at a time where the kernels can and it pays and fits.

    Raises:
        MemoryBudgetError: if slabs of one row do not fit; the message says how much would do.
    """
    held = held_bytes(shape, movings=movings, streamed=streamed)

    def needed(level: Level, slabs: Slabs) -> int:
        solving = solve_bytes(tile_grid(shape, level), search_radius=level.search_radius, passes=passes, slabs=slabs)
        return held + max(solving, refine_bytes(shape, streamed=streamed))

    def choices(level: Level) -> Iterator[Slabs]:
        """The best first."""
        grid = tile_grid(shape, level)
        rows = thickest(grid, kernels)
        if kernels.at_once > 1 and grid[1] * grid[2] <= SMALL_ROW_CELLS:
            yield Slabs(-(-rows // kernels.at_once), kernels.at_once, kernels.lanes, kernels.is_ring)
        yield from (in_turn(thinner, kernels) for thinner in range(rows, 0, -1))

    least = max(needed(level, in_turn(1, kernels)) for level in levels)
    check_budget(shape, movings=movings, needed=least, budget_bytes=budget_bytes)
    return [next(slabs for slabs in choices(level) if needed(level, slabs) <= budget_bytes) for level in levels]


def thickest(grid: Shape, kernels: Kernels) -> int:
    """Rows of the thickest slab that is worth its memory."""
    return max(1, min(grid[0], kernels.slab_cells // (grid[1] * grid[2]), kernels.max_rows))


def in_turn(rows: int, kernels: Kernels) -> Slabs:
    """Slabs of so many rows for solves that run in turn."""
    return Slabs(rows, lanes=kernels.lanes, is_ring=kernels.is_ring)
