"""Cost volumes on a GPU: twins of ``cost_volume.cost_slabs`` and ``masked_search.masked_cost``."""

from collections.abc import Iterator

import torch
from torch import Tensor

from mcbo.core.field import box_sum, shape_of
from mcbo.core.types import Features
from mcbo.kernels.cuda.launch import Launch, Module, per_cell
from mcbo.steps.cost_volume import BOX_ROUNDS, check_shapes

_TILE = (16, 32)
"""Cells of a block along axes 1 and 2, as in ``correlation.cu``."""
_SHARED_BYTES = 48 * 1024
"""Shared memory that every GPU gives a block without being asked."""


def module_of(search_radius: int, *, rounds: int, masked: bool) -> Module:
    """The source for a search radius, cells, and a number of box sums: as many candidates per block as its memory holds."""
    side = 2 * search_radius + 1
    wide = [size + 2 * rounds for size in _TILE]
    plane = 4 * wide[0] * (wide[1] + _TILE[1])
    most = min(_SHARED_BYTES // (plane * (2 if masked else 1)), 9)
    chunk = -(-side // -(-side // most))  # chunks of nearly equal size
    return Module("correlation.cu", (("SIDE", side), ("CHUNK", chunk), ("ROUNDS", rounds), ("MASKED", int(masked))))


def cost_slabs(
    launch: Launch, fixed: Features, moving: Features, *, search_radius: int, rows: int, keep: int
) -> Iterator[Tensor]:
    """Twin of ``cost_volume.cost_slabs``."""
    del keep  # every slab is memory of its own
    check_shapes(fixed, moving)
    height = fixed.shape[2]
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        cost = empty_ring(fixed, search_radius=search_radius, rows=min(rows, height))
        fill_rows(launch, fixed, moving, cost, search_radius=search_radius, start=start, stop=stop)
        yield cost[:, : stop - start].contiguous()


def fill_rows(
    launch: Launch, fixed: Features, moving: Features, cost: Tensor, *, search_radius: int, start: int, stop: int
) -> None:
    """Writes the costs of the rows ``[start, stop)`` to ``cost``, ``(K, n, w, d)``; row i of the grid is row i mod n there.

    Features are ``(1, C, h, w, d)``.
    """
    module = module_of(search_radius, rounds=BOX_ROUNDS, masked=False)
    unused = cost, cost, cost  # what only masked costs need
    _launch(launch, module, fixed.contiguous(), moving.contiguous(), unused, cost, start, stop)


def masked_cost(
    launch: Launch,
    fixed: Features,
    moving: Features,
    fixed_known: Tensor,
    moving_known: Tensor,
    *,
    search_radius: int,
    box_rounds: int = BOX_ROUNDS,
) -> Tensor:
    """Twin of ``masked_search.masked_cost``."""
    module = module_of(search_radius, rounds=box_rounds, masked=True)
    cost = fixed.new_empty(((2 * search_radius + 1) ** 3, *fixed.shape[2:]))
    support = box_sum(fixed_known[0, 0] * moving_known[0, 0], size=3, rounds=box_rounds)
    known = fixed_known.contiguous(), moving_known.contiguous(), support
    _launch(launch, module, fixed.contiguous(), moving.contiguous(), known, cost, 0, fixed.shape[2])
    cells = cost[0].numel()
    per_cell(launch, module, "fill_unjudged", cells, cost, cells)
    return cost


def _launch(
    launch: Launch,
    module: Module,
    fixed: Features,
    moving: Features,
    known: tuple[Tensor, Tensor, Tensor],
    cost: Tensor,
    start: int,
    stop: int,
) -> None:
    height, width, depth = shape_of(fixed)
    constants = dict(module.constants)
    side = constants["SIDE"]
    blocks = -(-width // _TILE[0]) * -(-depth // _TILE[1]), side * side, -(-side // constants["CHUNK"])
    arguments = fixed, moving, *known, cost, fixed.shape[1], height, width, depth, start, stop, cost.shape[1]
    launch(module, "fill_costs", blocks, (_TILE[0] * _TILE[1], 1, 1), *arguments)


def empty_ring(like: Features, *, search_radius: int, rows: int) -> Tensor:
    """Memory for the costs of ``rows`` rows of a grid: ``(K, rows, w, d)``, contents undefined."""
    shape = (2 * search_radius + 1) ** 3, rows, *like.shape[3:]
    return torch.empty(shape, dtype=torch.float32, device=like.device)
