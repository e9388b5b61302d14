"""The two hot steps, ready to be chosen: the torch reference here, faster twins beside it."""

from mcbo.convex import coupled_argmin
from mcbo.cost_volume import cost_slabs
from mcbo.types import Kernels

REFERENCE = Kernels(name="torch", cost_slabs=cost_slabs, coupled_argmin=coupled_argmin)
"""Plain torch: every device, and the numbers that every twin has to match."""
