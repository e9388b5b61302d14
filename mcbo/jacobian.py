"""Where a displacement folds space: the determinant of its Jacobian."""

import torch
from torch import Tensor

from mcbo.types import Displacement


def determinants(displacement: Displacement) -> Tensor:
    """Determinant of the Jacobian of p → p + u(p), by central differences; one-sided ones at the faces.

    1 where volume is kept, less than 1 where the moving image is sampled more densely, 0 or less where space folds.

    Args:
        displacement: ``(1, 3, h, w, d)`` voxels, at least 2 along each axis.

    Returns:
        ``(1, 1, h, w, d)``.
    """
    a, b, c = (list(torch.gradient(displacement[:, axis], dim=(1, 2, 3))) for axis in range(3))
    a[0], b[1], c[2] = a[0] + 1, b[1] + 1, c[2] + 1
    return (
        a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0])
    ).unsqueeze(1)
