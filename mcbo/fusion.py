"""Fusion of the displacements of several moving modalities, and of several levels.

docs/method.md, step 8.
"""

from collections.abc import Sequence

import torch

from mcbo.types import Displacement


def fuse_modalities(displacements: Sequence[Displacement]) -> Displacement:
    """The signed maximum of each component: (−6, −1) gives −1. With one displacement, that one.

    Args:
        displacements: each ``(1, 3, H, W, D)`` voxels, one per moving modality; the order does not matter.
    """
    fused = displacements[0]
    for other in displacements[1:]:
        fused = torch.maximum(fused, other)
    return fused


def fuse_levels(displacements: Sequence[Displacement], weights: Sequence[float]) -> Displacement:
    """The weighted sum Σ wᵢ·uᵢ over levels.

    Args:
        displacements: each ``(1, 3, H, W, D)`` voxels, one per level.
        weights: one per level, summing to 1.
    """
    total = torch.zeros_like(displacements[0])
    for displacement, weight in zip(displacements, weights, strict=True):
        total.add_(displacement, alpha=weight)
    return total
