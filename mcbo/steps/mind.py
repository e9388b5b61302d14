"""MIND-SSC: features that do not depend on the modality.

Source: Heinrich et al., MICCAI 2013 (self-similarity context); numbers from docs/method.md, step 1.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from mcbo.core.errors import ShapeError
from mcbo.core.types import Features, Mask, Volume
from mcbo.geometry import cells

Offset: TypeAlias = tuple[int, int, int]

Box: TypeAlias = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Part of a volume: the first voxel and the one after the last along axes 0, 1, 2."""

FACE_NEIGHBORS: tuple[Offset, ...] = ((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))
PAIRS: tuple[tuple[Offset, Offset], ...] = tuple(
    (a, b) for a, b in itertools.combinations(FACE_NEIGHBORS, 2) if any(x + y for x, y in zip(a, b, strict=True))
)
"""The 12 pairs of face neighbors that are not opposite each other (opposite ones sum to zero)."""

VARIANCE_RANGE = (1e-3, 1e3)
"""Bounds of the local variance, in units of its mean over the image (docs/method.md, step 1)."""


@dataclass(frozen=True)
class MindSettings:
    """Scale of the features, voxels: radius of the patch, and distance of the neighbors whose patches are compared."""

    radius: int
    dilation: int

    @property
    def reach(self) -> int:
        """Voxels from a voxel to the farthest that its features depend on."""
        return self.radius + self.dilation


class FeatureSource(Protocol):
    """The features of an image, to be had on a grid of cells."""

    def pooled(self, box: Box, spacing: int) -> Features:
        """Means over cells of ``spacing``³ voxels of a box, without the voxels at its end that fill no cell."""

    def pooled_known(self, mask: Mask, spacing: int) -> tuple[Features, Tensor]:
        """As ``cells.pool_known``."""


@dataclass(frozen=True)
class WholeFeatures:
    """All features of an image, ``(1, C, H, W, D)``, and how they are pooled where some are unknown."""

    features: Features
    pool_known: Callable[..., tuple[Features, Tensor]]

    def pooled(self, box: Box, spacing: int) -> Features:
        i, j, k = (slice(*span) for span in box)
        part = self.features[..., i, j, k]
        return part if spacing == 1 else functional.avg_pool3d(part, spacing, stride=spacing)

    def pooled_known(self, mask: Mask, spacing: int) -> tuple[Features, Tensor]:
        return self.pool_known(self.features, mask, spacing)


def mind_ssc(volume: Volume, *, radius: int, dilation: int, mean_variance: Tensor | None = None) -> Features:
    """MIND-SSC features of B images, each for itself.

    Invariant to scaling and shifting the intensities, which have to be finite. Where an image is constant within reach, all
    features are 1. Patches have ``(2·radius + 1)``³ voxels; ``dilation`` is the distance, voxels, of the six neighbors whose
    patches are compared. By default, the local variance is clamped by its mean over each image; ``mean_variance``, ``(B,)`` or
    ``(1,)``, is used instead if given: ``variance_of`` another image, as that of the same image under another motion.

    Returns:
        ``(B, 12, H, W, D)`` float32 from 0 to 1.

    Raises:
        ShapeError: if ``volume`` is not ``(B, 1, H, W, D)``.
    """
    features, variance, exponents = _distances(volume, radius=radius, dilation=dilation)
    if mean_variance is None:
        mean = variance.mean(dim=(1, 2, 3, 4), keepdim=True)
    else:
        mean = torch.ldexp(mean_variance.view(-1, 1, 1, 1, 1), -2 * exponents.double()).float()
    low, high = VARIANCE_RANGE
    variance.clamp_(min=mean * low, max=mean * high)
    # Only a constant image has a variance of zero; then 0/1 gives features of exp(0) = 1, not NaN.
    variance.masked_fill_(variance == 0, 1)
    return features.div_(variance).neg_().exp_()


def variance_of(volume: Volume, *, radius: int, dilation: int) -> Tensor:
    """The mean of the local variance, by which ``mind_ssc`` divides, over each image: ``(B,)`` float64, squared intensity."""
    _, variance, exponents = _distances(volume, radius=radius, dilation=dilation)
    return torch.ldexp(variance.mean(dim=(1, 2, 3, 4), dtype=torch.float64), 2 * exponents.flatten().double())


def _distances(volume: Volume, *, radius: int, dilation: int) -> tuple[Features, Tensor, Tensor]:
    """Of each image, scaled by 2⁻ᵉ to at most 1: patch distances minus their least, their mean over channels, and e."""
    exponents = _exponents(volume)
    volume = torch.ldexp(volume.float(), -exponents)
    padded = functional.pad(volume, [dilation] * 6, mode="replicate")
    height, width, depth = volume.shape[2:]

    def neighbor(offset: Offset) -> Tensor:
        i, j, k = (dilation * (1 + step) for step in offset)
        return padded[..., i : i + height, j : j + width, k : k + depth]

    features = volume.new_empty((len(volume), len(PAIRS), height, width, depth))
    for channel, (a, b) in enumerate(PAIRS):
        features[:, channel] = _patch_mean((neighbor(a) - neighbor(b)).square_(), radius=radius)[:, 0]
    features -= features.amin(dim=1, keepdim=True)
    return features, features.mean(dim=1, keepdim=True), exponents


def pooled_mind(
    volume: Volume,
    known: Tensor,
    *,
    radius: int,
    dilation: int,
    spacing: cells.Spacing,
    mean_variance: Tensor | None = None,
    mind: Callable[..., Features] = mind_ssc,
) -> tuple[Features, Tensor]:
    """Means of the features of B images over the known part of each cell, and how much is known of it.

    ``known`` is ``(B, 1, H, W, D)`` from 0 to 1; ``mind`` makes the features. Returns ``(B, 12, h, w, d)``, 0 where nothing is
    known, and ``(B, 1, h, w, d)`` from 0 to 1.
    """
    features = mind(volume, radius=radius, dilation=dilation, mean_variance=mean_variance)
    sums = cells.pool_sums(torch.cat([features * known, known.expand(len(features), *known.shape[1:])], dim=1), spacing)
    covered = sums[:, -1:]
    return sums[:, :-1] / covered.clamp(min=1e-6), covered / math.prod(cells.per_axis(spacing))


def scale_to_one(volume: Volume) -> Volume:
    """The volumes as float32, the largest magnitude of each scaled to between ½ and 1 by a power of two, which is exact.

    It keeps squares of very large or very small intensities inside float32.

    Raises:
        ShapeError: if ``volume`` is not ``(B, 1, H, W, D)``.
    """
    return torch.ldexp(volume.float(), -_exponents(volume))


def _exponents(volume: Volume) -> Tensor:
    """Of the power of two that is above the largest magnitude of each volume, ``(B, 1, 1, 1, 1)`` int32."""
    check_volumes(volume)
    return torch.frexp(volume.float().abs().amax(dim=(1, 2, 3, 4), keepdim=True)).exponent


def check_volumes(volumes: Volume) -> None:
    """Raises ShapeError unless volumes are ``(B, 1, H, W, D)``."""
    if volumes.dim() != 5 or volumes.shape[1] != 1:
        raise ShapeError(f"mind_ssc: expected volumes of shape (B, 1, H, W, D), got {tuple(volumes.shape)}")


def check_volume(volume: Volume) -> None:
    """Raises ShapeError unless a volume is ``(1, 1, H, W, D)``."""
    if volume.dim() != 5 or volume.shape[:2] != (1, 1):
        raise ShapeError(f"mind_ssc: expected a volume of shape (1, 1, H, W, D), got {tuple(volume.shape)}")


def _patch_mean(volume: Tensor, *, radius: int) -> Tensor:
    """Mean over cubes of ``(2·radius + 1)``³ voxels; outside, the nearest voxel repeats."""
    volume = functional.pad(volume, [radius] * 6, mode="replicate")
    size = 2 * radius + 1
    for axis in (-3, -2, -1):
        kept = volume.shape[axis] - 2 * radius
        total = volume.narrow(axis, 0, kept).clone()
        for step in range(1, size):
            total += volume.narrow(axis, step, kept)
        volume = total
    return volume.div_(size**3)
