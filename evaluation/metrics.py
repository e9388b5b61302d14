"""The official metrics, as functions of arrays.

A displacement is ``(H, W, D, 3)`` voxels, fixed to moving: ``warped(p) = moving(p + u(p))``. Whole 256³ fields are worked on in
slabs of rows, so that memory stays small.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import surface_distance
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

Array = NDArray[np.float64]
Field = NDArray[np.floating]

BORDER = 2
"""Voxels that the official programs cut off each face before they look at determinants."""
SHIFT, CLIP = 3.0, (1e-9, 1e9)
"""What the official programs add to the determinant, and where they clip it, before the logarithm."""
_ROWS = 16


def displaced(landmarks: Array, displacement: Field) -> Array:
    """Where a displacement takes landmarks of the fixed image, ``(n, 3)`` voxels.

    It is sampled by cubic-spline interpolation of each component (``scipy.ndimage.map_coordinates`` with its defaults), as the
    Learn2Reg evaluation does.

    Args:
        landmarks: ``(n, 3)`` voxels.
        displacement: ``(H, W, D, 3)`` voxels.
    """
    moved = [map_coordinates(displacement[..., axis], landmarks.T) for axis in range(3)]
    return np.asarray(landmarks + np.stack(moved, axis=1))


def landmark_errors(found: Array, moving_landmarks: Array, spacing: Array) -> Array:
    """Distance of each landmark as found from its counterpart in the moving image.

    Args:
        found: ``(n, 3)`` voxels, of ``displaced``; or the landmarks of the fixed image, which gives the initial error.
        moving_landmarks: ``(n, 3)`` voxels of the moving image; row i belongs to row i.
        spacing: of the moving image, ``(3,)``; in mm for errors in mm, ones for errors in voxels.

    Returns:
        ``(n,)`` in the unit of ``spacing``. Their mean is the TRE of the case.
    """
    return np.asarray(np.linalg.norm((found - moving_landmarks) * spacing, axis=1))


@dataclass(frozen=True)
class Regularity:
    """How smooth a displacement is, over the voxels not within ``BORDER`` of a face.

    Attributes:
        sd_log_jacobian: official SDlogJ: standard deviation of log(clip(det J + 3)).
        official_foldings: as the official programs count them, after the + 3 and the clip: always 0.
        folded_voxels: voxels with det J ≤ 0.
        folded_fraction: the same, as a part of all voxels looked at.
    """

    sd_log_jacobian: float
    official_foldings: float
    folded_voxels: int
    folded_fraction: float


def regularity(displacement: Field, mask: NDArray[np.bool_] | None = None) -> Regularity:
    """Regularity of the map p → p + u(p), by central differences.

    Args:
        displacement: ``(H, W, D, 3)`` voxels, at least 5 along each axis.
        mask: ``(H, W, D)``; where given, SDlogJ looks at its voxels only, as the official program does. Foldings are counted
            everywhere.
    """
    count = folded = 0
    looked_at = 0
    total = squares = 0.0
    official = 0.0
    inner = slice(BORDER, -BORDER)
    for start, determinant in _determinants(displacement):
        looked_at += determinant.size
        folded += int((determinant <= 0).sum())
        clipped = np.clip(determinant + SHIFT, *CLIP)
        official += float((clipped <= 0).sum())
        # Around the value of no deformation, sums of squares lose no digits.
        deviation = np.log(clipped) - math.log(1 + SHIFT)
        if mask is not None:
            deviation = deviation[mask[start : start + len(determinant), inner, inner]]
        count += deviation.size
        total += float(deviation.sum())
        squares += float(np.square(deviation).sum())
    spread = math.sqrt(max(squares / count - (total / count) ** 2, 0.0)) if count else math.nan
    return Regularity(spread, official, folded, folded / looked_at if looked_at else math.nan)


def _determinants(displacement: Field) -> Iterator[tuple[int, Array]]:
    """Yields the first row and the Jacobian determinants of slabs of the inner voxels, ``(≤ rows, W − 4, D − 4)``."""
    height = displacement.shape[0]
    inner = slice(BORDER, -BORDER)
    for start in range(BORDER, height - BORDER, _ROWS):
        stop = min(start + _ROWS, height - BORDER)
        slab = displacement[start - 1 : stop + 1].astype(np.float64)
        jacobian = [
            (slab[2:, inner, inner] - slab[:-2, inner, inner]) / 2,
            (slab[1:-1, BORDER + 1 : -BORDER + 1 or None, inner] - slab[1:-1, BORDER - 1 : -BORDER - 1, inner]) / 2,
            (slab[1:-1, inner, BORDER + 1 : -BORDER + 1 or None] - slab[1:-1, inner, BORDER - 1 : -BORDER - 1]) / 2,
        ]
        for axis in range(3):
            jacobian[axis][..., axis] += 1
        a, b, c = jacobian
        yield (
            start,
            np.asarray(
                a[..., 0] * (b[..., 1] * c[..., 2] - b[..., 2] * c[..., 1])
                - a[..., 1] * (b[..., 0] * c[..., 2] - b[..., 2] * c[..., 0])
                + a[..., 2] * (b[..., 0] * c[..., 1] - b[..., 1] * c[..., 0])
            ),
        )


def warp_labels(labels: NDArray[np.integer], displacement: Field) -> NDArray[np.integer]:
    """Labels at p + u(p), by the nearest voxel; 0 outside.

    Args:
        labels: of the moving image, ``(H, W, D)``.
        displacement: ``(H, W, D, 3)`` voxels.
    """
    warped = np.empty(displacement.shape[:3], dtype=labels.dtype)
    for start in range(0, len(warped), _ROWS):
        slab = displacement[start : start + _ROWS]
        positions = np.indices(slab.shape[:3]).astype(np.float64) + np.moveaxis(slab, -1, 0)
        positions[0] += start
        map_coordinates(labels, positions, output=warped[start : start + _ROWS], order=0)
    return warped


def dice(fixed: NDArray[np.integer], warped: NDArray[np.integer], labels: Sequence[int]) -> list[float]:
    """Dice coefficient of each label between fixed and warped moving labels."""
    return [float(surface_distance.compute_dice_coefficient(fixed == label, warped == label)) for label in labels]


def hd95(fixed: NDArray[np.integer], warped: NDArray[np.integer], labels: Sequence[int]) -> list[float]:
    """95th percentile of the Hausdorff distance of each label, in voxels (unit spacing, as the challenge has it).

    Infinite for a label that is missing from one of the two.
    """
    distances = []
    for label in labels:
        if not (fixed == label).any() or not (warped == label).any():
            distances.append(math.inf)
            continue
        with warnings.catch_warnings():  # the library uses names that scipy has deprecated
            warnings.simplefilter("ignore", DeprecationWarning)
            surfaces = surface_distance.compute_surface_distances(fixed == label, warped == label, (1.0, 1.0, 1.0))
            distances.append(float(surface_distance.compute_robust_hausdorff(surfaces, 95.0)))
    return distances
