"""The official metrics, as functions of arrays; large fields are processed in slabs of rows, which keeps memory small.

A displacement is ``(H, W, D, 3)`` voxels, fixed to moving: ``warped(p) = moving(p + u(p))``.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import surface_distance
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree
from surface_distance import lookup_tables

Array = NDArray[np.float64]
Field = NDArray[np.floating]

BORDER = 2
"""Voxels that the official programs cut off each face before they compute determinants."""
SHIFT, CLIP = 3.0, (1e-9, 1e9)
"""What the official programs add to the determinant, and where they clip the sum, before the logarithm."""
_CORNERS = tuple(product(range(2), repeat=3))
"""Of the cube between eight voxels."""
_BITS = lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL.ravel()
_AREAS = lookup_tables.create_table_neighbour_code_to_surface_area((1.0, 1.0, 1.0))
"""By the sum of the bits of those corners that lie inside."""
_FEW = 2**16
"""Pairs of points that are compared one by one in less time than a tree takes."""
_ROWS, _INNER = 16, slice(BORDER, -BORDER)
_NDV_ROWS = 4
_CANNOT_FOLD = 1 / 3
"""While the components of u change by less than this in all between neighbors, no tetrahedron turns over: corners as |∂u| < 1,
those in the middle of a cube as the inverse of their edges has the norm 1.5, and an edge is two steps long."""


def displaced(landmarks: Array, displacement: Field) -> Array:
    """Where a displacement takes landmarks of the fixed image; all ``(n, 3)`` voxels.

    Each component is sampled by cubic splines (``scipy.ndimage.map_coordinates`` with its defaults), as the Learn2Reg
    evaluation does.
    """
    moved = [map_coordinates(displacement[..., axis], landmarks.T) for axis in range(3)]
    return np.asarray(landmarks + np.stack(moved, axis=1))


def landmark_errors(found: Array, moving_landmarks: Array, spacing: Array) -> Array:
    """Distance of each landmark from its counterpart in the moving image. Their mean is the TRE of the case.

    Args:
        found: ``(n, 3)`` voxels, from ``displaced``; or the landmarks of the fixed image, for the initial error.
        moving_landmarks: ``(n, 3)`` voxels of the moving image; row i corresponds to row i.
        spacing: of the moving image, ``(3,)``; in mm for errors in mm, ones for errors in voxels.

    Returns:
        ``(n,)`` in the unit of ``spacing``.
    """
    return np.asarray(np.linalg.norm((found - moving_landmarks) * spacing, axis=1))


@dataclass(frozen=True)
class Regularity:
    """How smooth a displacement is, over the voxels not within ``BORDER`` of a face.

    Attributes:
        sd_log_jacobian: official SDlogJ: standard deviation of log(clip(det J + 3)); NaN over no voxels.
        folded_voxels: voxels with det J ≤ 0.
        folded_fraction: their fraction of all voxels looked at; NaN of none.
    """

    sd_log_jacobian: float
    folded_voxels: int
    folded_fraction: float


def regularity(displacement: Field, mask: NDArray[np.bool_] | None = None) -> Regularity:
    """Regularity of the map p → p + u(p), by central differences.

    Args:
        displacement: ``(H, W, D, 3)`` voxels, at least 5 along each axis.
        mask: ``(H, W, D)``; SDlogJ is then computed inside it, as by the official program. Foldings are counted everywhere.
    """
    looked_at = folded = count = 0
    total = squares = 0.0
    for start, determinant in _determinants(displacement):
        looked_at += determinant.size
        folded += int((determinant <= 0).sum())
        # Relative to the value without deformation, so that sums of squares lose no digits.
        deviation = np.log(np.clip(determinant + SHIFT, *CLIP)) - math.log(1 + SHIFT)
        if mask is not None:
            deviation = deviation[mask[start : start + len(determinant), _INNER, _INNER]]
        count += deviation.size
        total += float(deviation.sum())
        squares += float(np.square(deviation).sum())
    spread = math.sqrt(max(squares / count - (total / count) ** 2, 0.0)) if count else math.nan
    return Regularity(spread, folded, folded / looked_at if looked_at else math.nan)


def _determinants(displacement: Field) -> Iterator[tuple[int, Array]]:
    """Yields the first row and the Jacobian determinants of slabs of the inner voxels, ``(≤ rows, W − 4, D − 4)``."""
    end = displacement.shape[0] - BORDER
    if min(displacement.shape[:3]) <= 2 * BORDER:
        return
    for start in range(BORDER, end, _ROWS):
        slab = displacement[start - 1 : min(start + _ROWS, end) + 1].astype(np.float64)
        a, b, c = (np.gradient(slab, axis=axis)[1:-1, _INNER, _INNER] for axis in range(3))
        for axis, row in enumerate((a, b, c)):
            row[..., axis] += 1
        determinant = (
            a[..., 0] * (b[..., 1] * c[..., 2] - b[..., 2] * c[..., 1])
            - a[..., 1] * (b[..., 0] * c[..., 2] - b[..., 2] * c[..., 0])
            + a[..., 2] * (b[..., 0] * c[..., 1] - b[..., 1] * c[..., 0])
        )
        yield start, np.asarray(determinant)


def non_diffeomorphic_volume(displacement: Field, mask: NDArray[np.bool_] | None = None) -> float:
    """%NDV: how much volume the map p → p + u(p) turns inside out, in percent of the volume looked at.

    The cube between eight voxels is split into five tetrahedra in two ways, and the negative volume of the ten is averaged over
    both (Liu et al., "On finite difference Jacobian computation in deformable image registration", IJCV 2024). Looked
    at are all voxels but those on a face, each with the eight tetrahedra at its corner and the two in the middle of a cube.

    Args:
        displacement: ``(H, W, D, 3)`` voxels, at least 3 along each axis.
        mask: ``(H, W, D)``; only voxels inside count.

    Returns:
        Percent; 0 for a digital diffeomorphism, NaN over no voxels. Folds over folds can exceed 100.
    """
    negative = count = 0.0
    if min(displacement.shape[:3]) < 3:
        return math.nan
    for start in range(1, displacement.shape[0] - 1, _NDV_ROWS):
        end = min(start + _NDV_ROWS, displacement.shape[0] - 1)
        slab = np.ascontiguousarray(np.moveaxis(displacement[start - 1 : end + 1], -1, 0), dtype=np.float64)
        volumes = _negative_volumes(slab)
        if mask is not None:
            volumes = volumes[mask[start:end, 1:-1, 1:-1]]
        negative += float(volumes.sum())
        count += volumes.size
    return 100 * negative / count if count else math.nan


def _negative_volumes(slab: Array) -> Array:
    """The negative volume at each inner voxel of ``(3, rows + 2, W, D)``: ``(rows, W − 2, D − 2)``, in voxels."""
    shape = slab.shape[1:]
    if all(np.abs(np.diff(slab, axis=axis)).sum(axis=0).max() < _CANNOT_FOLD for axis in (1, 2, 3)):
        return np.zeros([n - 2 for n in shape])

    def edge(*offsets: int) -> Array:
        """From each inner voxel p to p + offsets, as mapped."""
        ends, starts = (
            slab[:, *(slice(1 + o, n - 1 + o) for o, n in zip(shift, shape, strict=True))] for shift in (offsets, (0, 0, 0))
        )
        return np.asarray(ends - starts + np.reshape(offsets, (3, 1, 1, 1)))

    # Differences forward and backward along each axis: with these signs, the volume of a corner is positive as it was.
    sides = [(edge(*unit), -edge(*(-x for x in unit))) for unit in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    total = np.zeros([n - 2 for n in shape])
    for b in sides[1]:
        for c in sides[2]:
            normal = _cross(b, c)
            for a in sides[0]:
                total += np.minimum(_dot(a, normal), 0)
    for sign in (1, -1):
        a, b, c = edge(sign, sign, 0), edge(0, sign, sign), edge(sign, 0, sign)
        total += np.minimum(sign * _dot(a, _cross(b, c)), 0)
    return total / -12  # six determinants are one volume; two ways to split


def _cross(a: Array, b: Array) -> tuple[Array, Array, Array]:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _dot(a: Array, b: Sequence[Array]) -> Array:
    return np.asarray(a[0] * b[0] + a[1] * b[1] + a[2] * b[2])


def warp_labels(labels: NDArray[np.integer], displacement: Field, *, outside: int = 0) -> NDArray[np.integer]:
    """Labels of the moving image, ``(H, W, D)``, at p + u(p), by the nearest voxel."""
    warped = np.empty(displacement.shape[:3], dtype=labels.dtype)
    for start in range(0, len(warped), _ROWS):
        slab = displacement[start : start + _ROWS]
        positions = np.indices(slab.shape[:3]).astype(np.float64) + np.moveaxis(slab, -1, 0)
        positions[0] += start
        map_coordinates(labels, positions, output=warped[start : start + _ROWS], order=0, cval=outside)
    return warped


def dice(fixed: NDArray[np.integer], warped: NDArray[np.integer], label: int) -> float:
    """Dice coefficient of a label between fixed and warped moving labels; NaN if it is in neither."""
    return dices((fixed == label).astype(np.int8), (warped == label).astype(np.int8), [1])[0]


def hd95(fixed: NDArray[np.integer], warped: NDArray[np.integer], label: int) -> float:
    """95th percentile of the Hausdorff distance of a label, in voxels (unit spacing, as in the challenge).

    Infinite if the label is missing from one of the two.
    """
    return hd95s((fixed == label).astype(np.int8), (warped == label).astype(np.int8), [1])[0]


def dices(fixed: NDArray[np.integer], warped: NDArray[np.integer], labels: Sequence[int]) -> list[float]:
    """``dice`` of each label, a small number above 0."""
    count = 1 + max((int(fixed.max()), int(warped.max()), *labels))
    sizes = np.bincount(fixed.ravel(), minlength=count) + np.bincount(warped.ravel(), minlength=count)
    common = np.bincount(fixed[fixed == warped].ravel(), minlength=count)
    return [float(2 * common[label] / sizes[label]) if sizes[label] else math.nan for label in labels]


def hd95s(fixed: NDArray[np.integer], warped: NDArray[np.integer], labels: Sequence[int]) -> list[float]:
    """``hd95`` of each label, a small number above 0.

    As the library surface-distance computes it for one label, but all labels at once, so that the time grows with their
    surfaces and not with their number.
    """
    known = set(labels)
    one, other = (_surface(volume, known) for volume in (fixed, warped))
    return [_robust_hausdorff(one[label], other[label]) if label in one and label in other else math.inf for label in labels]


_Surface = tuple[Array, Array]
"""Where a label ends: of each element the position ``(n, 3)``, in voxels, and the area."""


def _surface(volume: NDArray[np.integer], known: set[int]) -> dict[int, _Surface]:
    """The surfaces of known labels: an element lies between eight voxels of which some, but not all, have its label."""
    padded = np.pad(volume, 1)
    corners = [
        padded[tuple(slice(d, d + size + 1) for d, size in zip(corner, volume.shape, strict=True))] for corner in _CORNERS
    ]
    where = np.nonzero(np.any([corner != corners[0] for corner in corners[1:]], axis=0))
    around = np.stack([corner[where] for corner in corners])
    is_known = np.isin(np.arange(int(volume.max()) + 1), list(known))
    labels, elements, codes = [], [], []
    for k, label in enumerate(around):
        first = np.flatnonzero(is_known[label] & ~(around[:k] == label).any(axis=0))  # each label around a position once
        labels.append(label[first])
        elements.append(first)
        codes.append(np.tensordot(_BITS, around[:, first] == label[first], axes=1))
    found = np.concatenate(labels)
    order = np.argsort(found, kind="stable")
    positions = np.stack(where, axis=1)[np.concatenate(elements)[order]].astype(np.float64)
    areas = _AREAS[np.concatenate(codes)[order]]
    numbers, starts = np.unique(found[order], return_index=True)
    ends = [*starts[1:], len(found)]
    parts = zip(numbers.tolist(), starts, ends, strict=False)  # an end is left over where there is no label
    return {number: (positions[start:end], areas[start:end]) for number, start, end in parts}


def _robust_hausdorff(one: _Surface, other: _Surface) -> float:
    content: dict[str, Array] = {}
    sides = (("gt_to_pred", "gt"), ("pred_to_gt", "pred"))  # as the library calls them
    for (way, side), distances, (_, areas) in zip(sides, _distances(one[0], other[0]), (one, other), strict=True):
        order = np.lexsort((areas, distances))
        content |= {f"distances_{way}": distances[order], f"surfel_areas_{side}": areas[order]}
    return float(surface_distance.compute_robust_hausdorff(content, 95.0))


def _distances(one: Array, other: Array) -> tuple[Array, Array]:
    """Distances of the points of each set, ``(n, 3)`` and ``(m, 3)`` whole numbers, from the nearest of the other."""
    if len(one) * len(other) > _FEW:
        return np.asarray(cKDTree(other).query(one)[0]), np.asarray(cKDTree(one).query(other)[0])
    squares = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1) - 2 * one @ other.T  # exact, as they are whole
    return np.sqrt(squares.min(axis=1)), np.sqrt(squares.min(axis=0))
