"""The one convention, and the names of the tensors that follow it.

A **displacement** ``u`` has shape ``(1, 3, H, W, D)`` and is measured in voxels of the grid it lives on. Channel ``a``
moves along array axis ``a`` (0, 1, 2; never x, y, z). It maps fixed to moving: ``warped(p) = moving(p + u(p))``. On a
grid of cells (features pooled by a grid spacing g) the unit is the cell, and the name says so: ``displacement_cells``. On disk
a displacement is ``(H, W, D, 3)`` float32 voxels; only ``nifti.py`` converts it.

Everything is float32 unless a name says otherwise. The batch axis is 1 (the unit of work is a case) unless a shape says B.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor

Shape: TypeAlias = tuple[int, int, int]
"""Voxels or cells along axes 0, 1, 2."""

Triple: TypeAlias = tuple[float, float, float]
"""A number along each of the axes 0, 1, 2, such as a voxel size in millimeters."""

Volume: TypeAlias = Tensor
"""``(1, 1, H, W, D)`` intensities, in the unit of the file."""

Features: TypeAlias = Tensor
"""``(1, 12, H, W, D)`` MIND-SSC features from 0 to 1; or the same on a grid of cells."""

Mask: TypeAlias = Tensor
"""``(1, 1, H, W, D)`` bool: true where an image is known and counts."""

Displacement: TypeAlias = Tensor
"""``(1, 3, H, W, D)`` voxels (or cells where the name says so), fixed to moving."""

CostSlab: TypeAlias = Any
"""Costs of all K candidates on some rows of a grid. The layout belongs to the kernels that made it."""


@dataclass(frozen=True)
class Kernels:
    """The compute kernels behind one interface; a faster twin gives the same numbers up to rounding (a test compares them).

    Attributes:
        name: in logs and reports.
        max_rows: rows of the thickest slab that is worth its memory, over all solves that run at once.
        slab_cells: cells of the thickest slab that is worth its memory.
        is_ring: whether the costs of a solve lie in one ring of rows, each of which is dropped as soon as it can be.
        at_once: how many of the two solves of a level, forward and backward, ``in_batches`` runs at once.
        batch: under how many poses small images are worth doing at once; ``mind_ssc`` takes all images under so many.
        lanes: the layout of costs pads axis 2 to multiples of so many cells.
        in_batches: ``(function, items, most)`` calls a function for all items of a sequence, ``most`` of them at once, and
            returns the results in order; perhaps side by side, so that calls must not depend on each other.
        in_turns: the same for a generator function, which returns its result in the end. At a ``yield``, another call may begin
            or go on: what is then held is held for all items at once.
        as_slab: a whole cost volume ``(K, h, w, d)`` as one slab.
        solve: ``convex.solve`` on these kernels.
        box_mean, sample_known: as in ``core.field``.
        streamed_mind: as ``mind_ssc``, but gives a ``mind.FeatureSource`` that holds no features and makes them anew each time;
            None if these kernels cannot.
        pool, pool_known, to_voxels: as in ``geometry.cells``.
        compose, linear_displacement: as in ``geometry.rigid``.
        fill_outside: as in ``geometry.mask``.
        cosine_transform: ``linear_solver.CosineTransform``, whose ``solver`` may serve one caller at a time.
        bent: ``gauss_newton.bent``, given Hessian and weight.
        stretched: ``deformable_search.stretched``, given trust and weight.
        others: as the functions of these names in ``steps``.
    """

    name: str
    max_rows: int
    slab_cells: int
    is_ring: bool
    at_once: int
    batch: int
    lanes: int
    in_batches: Callable[..., list[Any]]
    in_turns: Callable[..., list[Any]]
    cost_slabs: Callable[..., Iterator[CostSlab]]
    coupled_argmin: Callable[..., Tensor]
    as_slab: Callable[[Tensor], CostSlab]
    solve: Callable[..., Displacement]
    masked_cost: Callable[..., Tensor]
    between_cells: Callable[..., Tensor]
    sharpness: Callable[..., Tensor]
    mind_ssc: Callable[..., Features]
    variance_of: Callable[..., Tensor]
    pooled_mind: Callable[..., tuple[Features, Tensor]]
    streamed_mind: Callable[..., Any] | None
    pool: Callable[..., tuple[Tensor, Tensor]]
    pool_known: Callable[..., tuple[Features, Tensor]]
    fill_outside: Callable[..., Volume]
    make_consistent: Callable[..., tuple[Displacement, Displacement]]
    gradient_of: Callable[..., Callable[[Displacement], Displacement]]
    box_mean: Callable[..., Tensor]
    sample_known: Callable[..., tuple[Tensor, Tensor]]
    compose: Callable[..., Displacement]
    linear_displacement: Callable[..., Displacement]
    to_voxels: Callable[..., Displacement]
    data_terms: Callable[..., tuple[Tensor, Tensor, Tensor]]
    information_of: Callable[..., Any]
    conjugate_gradient: Callable[..., Tensor]
    cosine_transform: Callable[..., Any]
    similarities: Callable[..., Tensor]
    rigid_equations: Callable[..., tuple[Tensor, Tensor, Tensor]]
    bent: Callable[..., Callable[[Tensor], Tensor]]
    stretched: Callable[..., Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Masks:
    """Where the images of a case are known: one mask for the fixed image, one for each moving image, of their shape."""

    fixed: Mask
    movings: tuple[Mask, ...]


Choice: TypeAlias = Literal["full", "rigid", "identity"]
Freedom: TypeAlias = Literal["deformable", "affine", "rigid"]
"""Results that a user may demand."""


@dataclass(frozen=True)
class Judgement:
    """Which candidate was written, and its confidence.

    Attributes:
        chosen: ``full``, ``rigid``, ``identity``, or ``cautious``: one small rigid step where there is no evidence for more.
        similarity: of each candidate (``similarity.py``), from about 0 for unrelated images to 1.
        confidence: the probability that the images were aligned by more than chance.
        reason: why it is not the full result, with the numbers that decided; empty if it is.
        overruled: what would have been chosen, if the user demanded another choice; else empty.
    """

    chosen: str
    similarity: dict[str, float]
    confidence: float
    reason: str = ""
    overruled: str = ""

    @property
    def explanation(self) -> str:
        """Why it is not the full result, or what was overruled, as a sentence without a full stop; or nothing."""
        if not self.overruled:
            return self.reason
        why = f": {self.reason}" if self.reason else ""
        return f"the user demanded it; the judgement was {self.overruled}{why}"

    @property
    def summary(self) -> str:
        """One line for the log."""
        before, after = (self.similarity[name] for name in ("identity", self.chosen))
        what = f"{self.chosen} result, confidence {self.confidence:.2f}; similarity {before:.2f} before, {after:.2f} after"
        return f"{what}; {self.explanation}" if self.explanation else what
