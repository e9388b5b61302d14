"""The compiled kernels. Importing them imports numba."""

from dataclasses import replace
from functools import partial

from mcbo.kernels import REFERENCE
from mcbo.kernels.cpu.correlation import as_slab, cost_slabs, coupled_argmin
from mcbo.kernels.cpu.cosine import CosineTransform
from mcbo.kernels.cpu.features import StreamedFeatures, mind_ssc, pooled_mind, variance_of
from mcbo.kernels.cpu.mask import fill_outside
from mcbo.kernels.cpu.pooling import pool
from mcbo.kernels.cpu.sampling import gradient_of, make_consistent
from mcbo.kernels.cpu.search import between_cells, masked_cost, sharpness
from mcbo.kernels.cpu.sums import data_terms, information_of, rigid_equations, similarities
from mcbo.kernels.cpu.system import bent, conjugate_gradient
from mcbo.kernels.cpu.warping import compose, linear_displacement, sample_known, to_voxels
from mcbo.kernels.simd import LANES
from mcbo.kernels.threads import side_by_side, turns_side_by_side
from mcbo.steps.convex import solve

COMPILED = replace(
    REFERENCE,
    name="numba",
    max_rows=8,  # a solve of 64³ cells, R = 4, takes 0.57, 0.48, 0.52 s with 4, 8, 16 (two cores, AMD EPYC, 2026-11-24)
    at_once=2,
    batch=8,  # rows of all of them are shared out among threads; more take more memory than they save time
    lanes=LANES,
    in_batches=side_by_side,
    in_turns=turns_side_by_side,
    cost_slabs=cost_slabs,
    coupled_argmin=coupled_argmin,
    as_slab=as_slab,
    solve=partial(solve, cost_slabs=cost_slabs, coupled_argmin=coupled_argmin),
    mind_ssc=mind_ssc,
    variance_of=variance_of,
    pooled_mind=pooled_mind,
    streamed_mind=StreamedFeatures,
    make_consistent=make_consistent,
    gradient_of=gradient_of,
    data_terms=data_terms,
    information_of=information_of,
    similarities=similarities,
    rigid_equations=rigid_equations,
    bent=bent,
    conjugate_gradient=conjugate_gradient,
    cosine_transform=CosineTransform,
    masked_cost=masked_cost,
    between_cells=between_cells,
    sharpness=sharpness,
    linear_displacement=linear_displacement,
    pool=pool,
    fill_outside=fill_outside,
    sample_known=sample_known,
    compose=compose,
    to_voxels=to_voxels,
)
"""For the CPU: the numbers of ``REFERENCE`` up to rounding."""
