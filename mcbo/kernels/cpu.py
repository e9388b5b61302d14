"""The compiled kernels, ready to be chosen. Importing this brings numba."""

from mcbo.kernels.correlation import as_slab, cost_slabs, coupled_argmin
from mcbo.kernels.features import mind_ssc
from mcbo.kernels.sampling import gradient_of, make_consistent
from mcbo.types import Kernels

COMPILED = Kernels(
    name="numba",
    cost_slabs=cost_slabs,
    coupled_argmin=coupled_argmin,
    as_slab=as_slab,
    mind_ssc=mind_ssc,
    make_consistent=make_consistent,
    gradient_of=gradient_of,
)
"""For the CPU: the numbers of ``REFERENCE`` up to rounding."""
