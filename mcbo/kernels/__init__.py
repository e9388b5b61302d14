"""The compute kernels: the torch reference here, compiled twins for the CPU in ``cpu``."""

from collections.abc import Callable
from typing import TypeVar

from mcbo.core.types import Kernels
from mcbo.steps.adam import gradient_of
from mcbo.steps.consistency import make_consistent
from mcbo.steps.convex import coupled_argmin
from mcbo.steps.cost_volume import cost_slabs
from mcbo.steps.mind import mind_ssc

Result = TypeVar("Result")


def in_turn(one: Callable[[], Result], other: Callable[[], Result]) -> tuple[Result, Result]:
    """Runs two calls one after the other; returns both results."""
    return one(), other()


REFERENCE = Kernels(
    name="torch",
    max_rows=2**16,
    at_once=1,
    lanes=1,
    both=in_turn,
    cost_slabs=cost_slabs,
    coupled_argmin=coupled_argmin,
    as_slab=lambda cost: cost,
    mind_ssc=mind_ssc,
    make_consistent=make_consistent,
    gradient_of=gradient_of,
)
"""Plain torch, for every device: the numbers that every twin has to match."""
