"""Grids of cells that cover a whole volume, centered on it, and the way from voxels to cells and back.

A grid of spacing g has ⌈n/g⌉ cells on an axis of n voxels; what it reaches over the volume is the same on both sides, so that a
flipped volume has flipped cells. (The grids of ``mcbo2024`` begin at voxel 0 and leave out what does not fill a cell.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mcbo.core.field import along_axis, shape_of
from mcbo.core.types import Displacement, Mask, Shape, Triple

KNOWN_CELL_SHARE = 0.45
"""A cell is taken for known if more than this share of it is. Not one half: cells that reach half over a border have just that,
and rounding would decide."""

WEIGHT_FLOOR = 1e-3
"""Weight of unknown voxels in the means of cells: negligible, but it gives cells without known voxels a mean."""

Spacing: TypeAlias = int | Shape
"""Voxels per cell: along every axis, or along axes 0, 1, 2."""


def per_axis(spacing: Spacing) -> Shape:
    """The spacing along axes 0, 1, 2."""
    return (spacing, spacing, spacing) if isinstance(spacing, int) else spacing


def cell_shape(shape: Shape, spacing: Spacing) -> Shape:
    """Cells along each axis."""
    height, width, depth = (-(-size // step) for size, step in zip(shape, per_axis(spacing), strict=True))
    return height, width, depth


def isotropic_spacing(shape: Shape, spacing_mm: Triple, count: int) -> Shape:
    """The spacing along axes 0, 1, 2 of about ``count`` cells along the longest side, nearly isotropic in millimeters."""
    longest = max(n * s for n, s in zip(shape, spacing_mm, strict=True))
    height, width, depth = (
        min(max(1, round(longest / count / s)), n) for n, s in zip(shape, spacing_mm, strict=True)
    )  # up to the whole axis, where it is thin
    return height, width, depth


def cell_centers(shape: Shape, spacing: Spacing, *, device: torch.device) -> list[Tensor]:
    """Where the centers of the cells lie along each axis, in voxels, float64."""
    return [
        (torch.arange(cells, dtype=torch.float64, device=device) - (cells - 1) / 2) * step + (size - 1) / 2
        for size, step, cells in zip(shape, per_axis(spacing), cell_shape(shape, spacing), strict=True)
    ]


@dataclass(frozen=True)
class Cover:
    """The voxels of cells, along axes 0, 1, 2.

    Attributes:
        starts: of each cell, its first voxel, int64; it may lie before the volume.
        taps: what each voxel of a cell counts, from there on, float32.
    """

    starts: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
    taps: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def cover_of(shape: Shape, spacing: Spacing) -> Cover:
    """The cells that cover a volume. A voxel on the border of two counts half in each."""
    starts, taps = [], []
    for size, step in zip(shape, per_axis(spacing), strict=True):
        count = -(-size // step)
        over = count * step - size  # voxels that the cells reach over the volume, half of them on either side
        ends = [0.5] if over % 2 else []
        taps.append(np.array([*ends, *[1.0] * (step - len(ends)), *ends], dtype=np.float32))
        starts.append(np.arange(count) * step - (over + 1) // 2)
    return Cover((starts[0], starts[1], starts[2]), (taps[0], taps[1], taps[2]))


def center_of(weights: Tensor) -> Tensor:
    """The center of mass of ``(1, 1, h, w, d)`` weights, ``(3,)`` float64 cells, on their device; without mass, of the grid."""
    sums = [weights[0, 0].sum(dim=[other for other in range(3) if other != axis], dtype=torch.float64) for axis in range(3)]
    centers = []
    for line in sums:
        middle = (len(line) - 1) / 2
        place = torch.arange(len(line), dtype=line.dtype, device=line.device) - middle
        centers.append((line * place).sum() / line.sum().clamp(min=1e-6) + middle)
    return torch.stack(centers)


def pool_sums(volume: Tensor, spacing: Spacing) -> Tensor:
    """Sums over cells; a voxel on the border of two cells counts half in each.

    Args:
        volume: ``(1, C, H, W, D)``.
        spacing: g, voxels.

    Returns:
        ``(1, C, h, w, d)``.
    """
    cover = cover_of(shape_of(volume), spacing)
    for axis, step, starts, taps in zip((-3, -2, -1), per_axis(spacing), cover.starts, cover.taps, strict=True):
        cells, before = len(starts), -int(starts[0])
        after = (cells - 1) * step + len(taps) - volume.shape[axis] - before
        padding = [0, 0] * 3
        padding[2 * (-1 - axis)], padding[2 * (-1 - axis) + 1] = before, after
        padded = functional.pad(volume, padding)
        total: Tensor | None = None
        for tap, weight in enumerate(taps.tolist()):
            part = padded.narrow(axis, tap, (cells - 1) * step + 1).unfold(axis, 1, step)[..., 0]
            if total is None:
                total = part * weight
            else:
                total.add_(part, alpha=weight)
        assert total is not None  # noqa: S101 (a grid spacing is at least 1)
        volume = total
    return volume


def pool(features: Tensor, weights: Tensor | None, spacing: Spacing) -> tuple[Tensor, Tensor]:
    """Means over the weighted part of each cell, and how much of each cell that part is.

    Args:
        features: ``(1, C, H, W, D)``.
        weights: ``(1, 1, H, W, D)`` from 0 to 1, such as a mask; None for 1 everywhere.
        spacing: g, voxels.

    Returns:
        ``(1, C, h, w, d)`` means, 0 where a cell has no weight, and ``(1, 1, h, w, d)`` covered shares from 0 to 1.
    """
    if weights is None:
        weights = torch.ones_like(features[:, :1])
    covered = pool_sums(weights, spacing)
    means = features.new_empty((1, features.shape[1], *covered.shape[2:]))
    for channel in range(features.shape[1]):  # channel by channel, to hold one masked copy only
        means[:, channel] = pool_sums(features[:, channel : channel + 1] * weights, spacing)[:, 0]
    means /= covered.clamp(min=1e-6)
    return means, covered / math.prod(per_axis(spacing))


def pool_known(features: Tensor, mask: Mask, spacing: int) -> tuple[Tensor, Tensor]:
    """Means of ``(1, C, H, W, D)`` over the known part of each cell, and how much is known of it, ``(1, 1, h, w, d)``."""
    known = mask.to(features.dtype)
    means, _ = pool(features, known + WEIGHT_FLOOR, spacing)
    return means, (pool_sums(known, spacing) / spacing**3).clamp(max=1)


def to_cells(displacement: Displacement, spacing: int, *, pool: Callable[..., tuple[Tensor, Tensor]] = pool) -> Displacement:
    """The mean displacement of each cell, ``(1, 3, h, w, d)`` cells, of one in voxels; ``pool`` may be a twin of that above."""
    return pool(displacement, None, spacing)[0] / spacing


def between_centers(count: int, size: int, spacing: int, *, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Of each of ``size`` voxels along an axis, the cell of ``count`` whose center lies before it, and how far on it lies.

    ``(size,)`` int64, and float64 cells from 0 to 1. Voxels beyond the outermost centers lie on them.
    """
    index = torch.arange(size, dtype=torch.float64, device=device)
    place = ((index - (size - 1) / 2) / spacing + (count - 1) / 2).clamp(0, count - 1)
    low = place.floor().clamp(max=max(count - 2, 0)).long()
    return low, place - low


def to_voxels(displacement: Displacement, shape: Shape, spacing: int) -> Displacement:
    """A displacement of cells, ``(1, 3, *shape)`` voxels: trilinear between the centers of the cells, constant beyond them."""
    for axis, (cells, size) in enumerate(zip(shape_of(displacement), shape, strict=True)):
        low, place = between_centers(cells, size, spacing, device=displacement.device)
        share = along_axis(place.to(displacement.dtype), axis)
        first = displacement.index_select(axis + 2, low)
        second = displacement.index_select(axis + 2, (low + 1).clamp(max=cells - 1))
        displacement = torch.lerp(first, second, share.expand_as(first))
    return displacement * spacing
