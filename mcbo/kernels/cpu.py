"""The compiled kernels, ready to be chosen. Importing this brings numba."""

from mcbo.kernels.correlation import as_slab, cost_slabs, coupled_argmin
from mcbo.kernels.features import mind_ssc
from mcbo.kernels.sampling import gradient_of, make_consistent
from mcbo.types import Kernels

COMPILED = Kernels(
    name="numba",
    # Seconds of a solve of 64³ cells, R = 4, with 2, 4, 8, 16 rows: 0.66, 0.57, 0.48, 0.52; of 32³ with 2, 4, 8, 16, 32 rows:
    # 0.055, 0.049, 0.045, 0.069, 0.062 (two cores, AMD EPYC, 2026-11-24).
    max_rows=8,
    cost_slabs=cost_slabs,
    coupled_argmin=coupled_argmin,
    as_slab=as_slab,
    mind_ssc=mind_ssc,
    make_consistent=make_consistent,
    gradient_of=gradient_of,
)
"""For the CPU: the numbers of ``REFERENCE`` up to rounding."""
