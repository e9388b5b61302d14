"""The compute kernels in CUDA C++: twins of the torch reference for NVIDIA GPUs."""

from dataclasses import replace
from functools import partial

from mcbo.core.types import Kernels
from mcbo.kernels import REFERENCE
from mcbo.kernels.cuda import correlation, features, fields, search, system
from mcbo.kernels.cuda.launch import Launch, Module
from mcbo.steps.mind import pooled_mind

SLAB_CELLS = 2**19
"""Of the thickest slab, whose costs take 1.5 GB with R = 4."""

BATCH = 64
"""Poses under which small images are compared at once: at least as many as a round of the pattern search or the lattice has."""

MODULES: tuple[Module, ...] = (
    correlation.module_of(4, rounds=2, masked=False),
    *(correlation.module_of(radius, rounds=2, masked=True) for radius in (4, 3, 2, 1)),
    correlation.module_of(2, rounds=1, masked=True),
    *(search.module_of(radius) for radius in (4, 3, 2, 1)),
    *(features.module_of(radius) for radius in (1, 2, 3)),
    fields.MODULE,
    system.MODULE,
)
"""What the presets use. Others are compiled when they are needed."""


def make_kernels(launch: Launch) -> Kernels:
    """The kernels on whatever ``launch`` runs them."""
    return replace(
        REFERENCE,
        name="cuda",
        slab_cells=SLAB_CELLS,
        is_ring=True,
        batch=BATCH,
        cost_slabs=partial(correlation.cost_slabs, launch),
        coupled_argmin=partial(search.coupled_argmin, launch),
        solve=partial(search.solve, launch),
        masked_cost=partial(correlation.masked_cost, launch),
        between_cells=partial(search.between_cells, launch),
        sharpness=partial(search.sharpness, launch),
        mind_ssc=partial(features.mind_ssc, launch),
        variance_of=partial(features.variance_of, launch),
        pooled_mind=partial(pooled_mind, mind=partial(features.mind_ssc, launch)),
        streamed_mind=partial(features.StreamedFeatures, launch),
        pool_known=partial(fields.pool_known, launch),
        make_consistent=partial(fields.make_consistent, launch),
        gradient_of=partial(fields.gradient_of, launch),
        box_mean=partial(fields.box_mean, launch),
        data_terms=partial(system.data_terms, launch),
        information_of=system.information_of,
        conjugate_gradient=system.conjugate_gradient,
        bent=partial(system.bent, launch),
        stretched=partial(system.stretched, launch),
    )
