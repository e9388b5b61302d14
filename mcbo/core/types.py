"""The one convention, and the names of the tensors that keep to it.

A **displacement** ``u`` has shape ``(1, 3, H, W, D)`` and is measured in voxels of the grid it lives on. Channel ``a``
moves along array axis ``a`` (0, 1, 2; never x, y, z). It maps fixed to moving: ``warped(p) = moving(p + u(p))``. On a
grid of cells (features pooled by a grid spacing g) the same holds with the cell as the unit, and the name says so:
``displacement_cells``. On disk a displacement is ``(H, W, D, 3)`` float32 voxels; ``nifti.py`` does that conversion and
nothing else does.

Everything is float32 unless a name says otherwise. The batch axis is always 1: the unit of work is a case.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

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
        name: how logs and reports call it.
        max_rows: rows of the thickest slab that is worth its memory, of all solves that run at a time together.
        at_once: of the two solves of a level, forward and backward, how many ``both`` runs at a time.
        lanes: cells along axis 2 that the layout of costs is filled up to multiples of.
        both: ``(one, other)`` calls both and returns what they return, as a pair.
        cost_slabs: ``(fixed, moving, search_radius=R, rows=n, keep=k)`` yields the cost of rows ``[0, n)``, ``[n, 2n)``, … of
            axis 0, in that order, each once. See ``cost_volume.cost_slabs``.
        coupled_argmin: ``(cost_slab, displacement, first=a, last=b, search_radius=R, coupling_weight=w)`` picks, per cell of
            the rows ``[a, b)`` of the slab, the candidate that minimizes ``cost + w·|candidate − displacement|²``. See
            ``convex.coupled_argmin``.
        as_slab: a whole cost volume ``(K, h, w, d)`` as one slab.
        mind_ssc: ``(volume, radius=r, dilation=d)`` makes features. See ``mind.mind_ssc``.
        make_consistent: ``(forward, backward, rounds=n, stretch=s)``. See ``consistency.make_consistent``.
        gradient_of: ``(fixed, moving, stretch=s)`` makes a function from a displacement to the gradient of the feature
            distance. See ``adam.gradient_of``.
    """

    name: str
    max_rows: int
    at_once: int
    lanes: int
    both: Callable[[Callable[[], Any], Callable[[], Any]], tuple[Any, Any]]
    cost_slabs: Callable[..., Iterator[CostSlab]]
    coupled_argmin: Callable[..., Tensor]
    mind_ssc: Callable[..., Features]
    as_slab: Callable[[Tensor], CostSlab]
    make_consistent: Callable[..., tuple[Displacement, Displacement]]
    gradient_of: Callable[..., Callable[[Displacement], Displacement]]


@dataclass(frozen=True)
class Masks:
    """Where the images of a case are known: one mask for the fixed image, one for each moving image, of their shape."""

    fixed: Mask
    movings: tuple[Mask, ...]


@dataclass(frozen=True)
class Judgement:
    """What was written and how far it can be believed.

    Attributes:
        chosen: ``full``, ``rigid``, ``identity``, or ``cautious``: one small rigid step where there is no evidence for more.
        similarity: of each candidate (``similarity.py``), from about 0 for unrelated images to 1.
        confidence: that of what was chosen.
    """

    chosen: str
    similarity: dict[str, float]
    confidence: float

    @property
    def summary(self) -> str:
        """One line for the log."""
        return f"{self.chosen} result, similarity {self.similarity['identity']:.2f} before, {self.confidence:.2f} after"
