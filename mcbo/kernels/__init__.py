"""The compute kernels: the torch reference here, compiled twins for the CPU in ``cpu``, for NVIDIA GPUs in ``cuda``."""

from collections.abc import Callable, Generator
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from mcbo.core.field import box_mean, sample_known
from mcbo.core.types import Kernels, Volume
from mcbo.geometry.cells import pool, pool_known, to_voxels
from mcbo.geometry.mask import fill_outside
from mcbo.geometry.rigid import compose, linear_displacement
from mcbo.steps.adam import gradient_of
from mcbo.steps.consistency import make_consistent
from mcbo.steps.convex import coupled_argmin, solve
from mcbo.steps.cost_volume import cost_slabs
from mcbo.steps.deformable_search import sharpness, stretched
from mcbo.steps.gauss_newton import bent, data_terms, information_of
from mcbo.steps.linear_solver import CosineTransform, conjugate_gradient
from mcbo.steps.masked_search import between_cells, masked_cost
from mcbo.steps.mind import FeatureSource, MindSettings, WholeFeatures, mind_ssc, pooled_mind, variance_of
from mcbo.steps.rigid_refinement import rigid_equations
from mcbo.steps.similarity import similarities

Result = TypeVar("Result")

# MKL, to which torch leaves such functions, chooses its code here, before two threads do so at once: then, one of them used
# less exact code, and 1 of 100 runs on busy cores differed in the last digits (torch 2.13.0, 2026-11-29).
torch.ones(1).sqrt()


def in_batches(function: Callable[[Any], Result], items: Any, most: int) -> list[Result]:
    """Calls a function of several items for all of a sequence, at most so many at once; returns the results in order."""
    return [function(items[first : first + most]) for first in range(0, len(items), most)]


def in_turns(function: Callable[[Any], Generator[None, None, Result]], items: Any, most: int) -> list[Result]:
    """As ``in_batches``, for a generator function: what it does up to each ``yield`` is a turn. Here, one follows another."""

    def to_the_end(some: Any) -> Result:
        turns = function(some)
        while True:
            try:
                next(turns)
            except StopIteration as end:
                return cast(Result, end.value)

    return in_batches(to_the_end, items, most)


def features_source(
    volume: Volume, mind: MindSettings, kernels: Kernels, *, streamed: bool = True, mean_variance: Tensor | None = None
) -> FeatureSource:
    """The features of an image, ``(1, 1, H, W, D)``: streamed, if these kernels can, or whole. See ``mind.mind_ssc``."""
    options = {"radius": mind.radius, "dilation": mind.dilation, "mean_variance": mean_variance}
    if streamed and kernels.streamed_mind is not None:
        return cast(FeatureSource, kernels.streamed_mind(volume, **options))
    return WholeFeatures(kernels.mind_ssc(volume, **options), kernels.pool_known)


CACHED_CELLS = 2**16
"""Thicker slabs leave a processor's caches. Seconds for R = 4 on two cores (AMD EPYC, 2026-11-23, medians of 3):
64×60×68 cells with 16, 8, 4, 2 rows 2.35, 2.51, 2.82, 3.45; 40×128×128 cells 7.96, 7.16, 5.61, 6.29."""

REFERENCE = Kernels(
    name="torch",
    max_rows=2**16,
    slab_cells=CACHED_CELLS,
    is_ring=False,
    at_once=1,
    batch=1,
    lanes=1,
    in_batches=in_batches,
    in_turns=in_turns,
    cost_slabs=cost_slabs,
    coupled_argmin=coupled_argmin,
    as_slab=lambda cost: cost,
    solve=partial(solve, cost_slabs=cost_slabs, coupled_argmin=coupled_argmin),
    masked_cost=masked_cost,
    between_cells=between_cells,
    sharpness=sharpness,
    mind_ssc=mind_ssc,
    variance_of=variance_of,
    pooled_mind=pooled_mind,
    streamed_mind=None,
    pool=pool,
    pool_known=pool_known,
    fill_outside=fill_outside,
    make_consistent=make_consistent,
    gradient_of=gradient_of,
    box_mean=box_mean,
    sample_known=sample_known,
    compose=compose,
    linear_displacement=linear_displacement,
    to_voxels=to_voxels,
    data_terms=data_terms,
    information_of=information_of,
    conjugate_gradient=conjugate_gradient,
    cosine_transform=CosineTransform,
    similarities=similarities,
    rigid_equations=rigid_equations,
    bent=bent,
    stretched=stretched,
)
"""Plain torch, for every device: the numbers that every twin has to match."""
