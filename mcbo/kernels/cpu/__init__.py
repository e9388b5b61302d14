"""The compiled kernels, ready to be chosen. Importing this brings numba."""

from mcbo.core.types import Kernels
from mcbo.kernels.cpu.correlation import as_slab, cost_slabs, coupled_argmin
from mcbo.kernels.cpu.features import mind_ssc
from mcbo.kernels.cpu.sampling import gradient_of, make_consistent
from mcbo.kernels.simd import LANES, side_by_side

COMPILED = Kernels(
    name="numba",
    # Seconds of both solves of 32³ cells, R = 4, at a time with 1, 2, 3, 4, 8 rows: 0.083, 0.063, 0.057, 0.055, 0.057; of 64³
    # with 1, 2, 4, 8: 0.64, 0.54, 0.51, 0.54; of a solve of 64³ with 2, 4, 8, 16: 0.66, 0.57, 0.48, 0.52 (two cores, AMD EPYC,
    # 2026-11-24).
    max_rows=8,
    at_once=2,
    lanes=LANES,
    both=side_by_side,
    cost_slabs=cost_slabs,
    coupled_argmin=coupled_argmin,
    as_slab=as_slab,
    mind_ssc=mind_ssc,
    make_consistent=make_consistent,
    gradient_of=gradient_of,
)
"""For the CPU: the numbers of ``REFERENCE`` up to rounding."""
