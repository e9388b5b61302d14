"""Similarity of two feature volumes, on a scale on which unrelated images score 0 and identical ones 1.

S = 1 − D/D₀. D is the mean feature distance over the known part; D₀ its value if the features were independent: the squared
difference of their means plus both variances. A wrong motion of related images scores within a few hundredths of 0, so S ranks
results.
"""

import torch
from torch import Tensor

from mcbo.core.types import Features


def similarity(fixed: Features, moved: Features, known: Tensor) -> float:
    """S of ``(1, C, h, w, d)`` features, at most 1; −1 if ``known``, ``(1, 1, h, w, d)`` weights, sums to less than 1."""
    return float(similarities(fixed, moved, known))


def similarities(fixed: Features, moved: Features, known: Tensor) -> Tensor:
    """``similarity`` of one fixed and B moved volumes, each with its own weights: ``(B,)`` float64, on their device."""
    weight = known.sum(dim=(1, 2, 3, 4), dtype=torch.float64).unsqueeze(1)

    def mean(values: Tensor) -> Tensor:
        return (values * known).sum(dim=(2, 3, 4), dtype=torch.float64) / weight

    f, m = mean(fixed), mean(moved)
    distance = mean((fixed - moved).square()).sum(dim=1)
    spread = mean(fixed.square()) - f.square() + mean(moved.square()) - m.square()
    unrelated = ((f - m).square() + spread).sum(dim=1)
    return torch.where(weight[:, 0] < 1, -1.0, 1 - distance / unrelated.clamp(min=1e-9))
