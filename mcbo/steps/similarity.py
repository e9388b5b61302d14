"""How well two feature volumes agree, on a scale on which unrelated images score 0 and identical ones 1.

S = 1 − D/D₀. D is the mean feature distance over the known part; D₀ what it would be if the same features had nothing to do
with each other: the squared difference of their means and both their variances. A wrong motion of right images scores within a
few hundredths of 0, so S says whether a result can be believed, and which of several is the best.
"""

import torch
from torch import Tensor

from mcbo.core.types import Features


def similarity(fixed: Features, moved: Features, known: Tensor) -> float:
    """S, at most 1; −1 where less than one cell is known.

    Args:
        fixed: ``(1, C, h, w, d)``.
        moved: of the same shape.
        known: ``(1, 1, h, w, d)`` weights.
    """
    weight = known.sum(dtype=torch.float64)
    if float(weight) < 1:
        return -1.0

    def mean(values: Tensor) -> Tensor:
        return (values * known).sum(dim=(0, 2, 3, 4), dtype=torch.float64) / weight

    f, m = mean(fixed), mean(moved)
    distance = mean((fixed - moved).square()).sum()
    spread = mean(fixed.square()) - f.square() + mean(moved.square()) - m.square()
    unrelated = ((f - m).square() + spread).sum()
    return float(1 - distance / unrelated.clamp(min=1e-9))
