"""The compute kernels: the torch reference here, compiled twins for the CPU in ``cpu``."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from mcbo.core.field import box_mean
from mcbo.core.types import Kernels
from mcbo.geometry.cells import pool_known
from mcbo.steps.adam import gradient_of
from mcbo.steps.consistency import make_consistent
from mcbo.steps.convex import coupled_argmin, solve
from mcbo.steps.cost_volume import cost_slabs
from mcbo.steps.deformable_search import sharpness, stretched
from mcbo.steps.gauss_newton import bent, data_terms, information_of
from mcbo.steps.linear_solver import conjugate_gradient
from mcbo.steps.masked_search import between_cells, masked_cost
from mcbo.steps.mind import mind_ssc

Result = TypeVar("Result")


def in_turn(one: Callable[[], Result], other: Callable[[], Result]) -> tuple[Result, Result]:
    """Runs two calls one after the other; returns both results."""
    return one(), other()


REFERENCE = Kernels(
    name="torch",
    max_rows=2**16,
    slab_cells=2**16,
    is_ring=False,
    at_once=1,
    lanes=1,
    both=in_turn,
    cost_slabs=cost_slabs,
    coupled_argmin=coupled_argmin,
    as_slab=lambda cost: cost,
    solve=partial(solve, cost_slabs=cost_slabs, coupled_argmin=coupled_argmin),
    masked_cost=masked_cost,
    between_cells=between_cells,
    sharpness=sharpness,
    mind_ssc=mind_ssc,
    pool_known=pool_known,
    make_consistent=make_consistent,
    gradient_of=gradient_of,
    box_mean=box_mean,
    data_terms=data_terms,
    information_of=information_of,
    conjugate_gradient=conjugate_gradient,
    bent=bent,
    stretched=stretched,
)
"""Plain torch, for every device: the numbers that every twin has to match."""
