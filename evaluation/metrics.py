"""The official metrics, as functions of arrays.

A displacement is ``(H, W, D, 3)`` voxels, fixed to moving: ``warped(p) = moving(p + u(p))``.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

Array = NDArray[np.float64]


def landmark_errors_mm(
    displacement: NDArray[np.floating] | None, fixed_landmarks: Array, moving_landmarks: Array, spacing_mm: Array
) -> Array:
    """Distance of each fixed landmark, displaced, from its moving counterpart.

    The displacement is sampled by cubic-spline interpolation of each component (``scipy.ndimage.map_coordinates`` with its
    defaults), as the Learn2Reg evaluation does.

    Args:
        displacement: ``(H, W, D, 3)`` voxels; None for none, which gives the initial error.
        fixed_landmarks: ``(n, 3)`` voxels of the fixed image.
        moving_landmarks: ``(n, 3)`` voxels of the moving image; row i belongs to row i.
        spacing_mm: of the moving image, ``(3,)``.

    Returns:
        ``(n,)`` mm. Their mean is the TRE of the case.
    """
    found = fixed_landmarks
    if displacement is not None:
        moved = [map_coordinates(displacement[..., axis], fixed_landmarks.T) for axis in range(3)]
        found = fixed_landmarks + np.stack(moved, axis=1)
    return np.asarray(np.linalg.norm((found - moving_landmarks) * spacing_mm, axis=1))
