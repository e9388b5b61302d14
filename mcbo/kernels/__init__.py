"""The hot steps, ready to be chosen: the torch reference here, compiled twins for the CPU in ``cpu.py``."""

from collections.abc import Callable
from typing import TypeVar

from mcbo.consistency import make_consistent
from mcbo.convex import coupled_argmin
from mcbo.cost_volume import cost_slabs
from mcbo.mind import mind_ssc
from mcbo.refinement import gradient_of
from mcbo.types import Kernels

Result = TypeVar("Result")


def in_turn(one: Callable[[], Result], other: Callable[[], Result]) -> tuple[Result, Result]:
    """What two calls return, one after the other."""
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
"""Plain torch: every device, and the numbers that every twin has to match."""
