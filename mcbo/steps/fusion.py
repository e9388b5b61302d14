"""Fusion of the displacements of several moving modalities, and of several levels.

docs/method.md, step 8.
"""

from collections.abc import Iterable, Sequence
from functools import reduce

import torch

from mcbo.core.errors import ShapeError
from mcbo.core.types import Displacement


def fuse_modalities(displacements: Sequence[Displacement]) -> Displacement:
    """The signed maximum of each component, (−6, −1) gives −1, over the moving modalities, each ``(1, 3, H, W, D)`` voxels."""
    return reduce(torch.maximum, displacements)


def fuse_levels(displacements: Iterable[Displacement], weights: Sequence[float]) -> Displacement:
    """The weighted sum Σ wᵢ·uᵢ over levels, each ``(1, 3, H, W, D)`` voxels; the weights sum to 1.

    Displacements are taken one by one, so that they need not all be held.
    """
    total: Displacement | None = None
    for displacement, weight in zip(displacements, weights, strict=True):
        total = displacement * weight if total is None else total.add_(displacement, alpha=weight)
    if total is None:
        raise ShapeError("fuse_levels: expected at least one level, got none")
    return total
