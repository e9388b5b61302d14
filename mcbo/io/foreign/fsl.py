"""FSL's coordinates, in which FLIRT and FNIRT write: voxels times their size, mirrored unless the affine mirrors.

Source: FSL's documentation of FLIRT ("What is the format of the matrix used by FLIRT"); ``fsl.transform`` of fslpy.
"""

import numpy as np
from numpy.typing import NDArray

from mcbo.geometry.grid import Grid


def from_voxels(grid: Grid) -> NDArray[np.float64]:
    """From voxels of a grid to FSL's coordinates of it, mm: ``(4, 4)``."""
    matrix = np.diag([*grid.spacing_mm, 1.0])
    if np.linalg.det(grid.affine) > 0:
        matrix[0] = (-grid.spacing_mm[0], 0, 0, (grid.shape[0] - 1) * grid.spacing_mm[0])
    return matrix


def to_world(grid: Grid) -> NDArray[np.float64]:
    """From FSL's coordinates of a grid to the world, RAS mm: ``(4, 4)``."""
    return np.asarray(grid.affine @ np.linalg.inv(from_voxels(grid)))


def flirt(matrix: NDArray[np.float64], fixed: Grid, moving: Grid) -> NDArray[np.float64]:
    """A matrix of FLIRT, from moving (``-in``) to fixed (``-ref``), as one from fixed to moving world positions, RAS mm."""
    return np.asarray(to_world(moving) @ np.linalg.inv(matrix) @ np.linalg.inv(to_world(fixed)))
