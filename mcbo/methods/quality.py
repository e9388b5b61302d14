"""Whether a result is plausible: folds, reach, and how far apart the features are before and after.

The feature distance is that of MIND-SSC features of images pooled to a coarse grid (``similarity.py``): 0 for identical images,
about 1 for unrelated ones. It is cheap, and knows no truth: a wrong motion that brings features together passes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mcbo.core.field import check_finite, determinants, shape_of
from mcbo.core.types import Displacement, Features, Kernels, Mask, Shape, Triple, Volume
from mcbo.geometry import cells
from mcbo.geometry.mask import field_of_view
from mcbo.methods.config import Preset

MAX_CELLS = 96
"""Along any axis of the coarse grid: 256³ voxels make 86³ cells, and a comparison takes well under a second."""
_ENOUGH = 48
"""Voxels along the shortest axis from which on two make a cell: at 64³ that takes 0.03 s instead of 0.15."""
_RADIUS, _DILATION = 1, 2
_BORDER = 2
"""Voxels at every face whose determinants are not checked, as in the challenge's regularity metrics."""
_VOXELS, _MANY_VOXELS = 2**19, 2**22
"""Whose determinants are computed at once: as many as stay in a processor's caches, or, on a GPU, take 0.4 GB."""
_NEAR_RANGE = 0.95
"""A component this close to the end of the search range may have been stopped by it."""


@dataclass(frozen=True)
class Sanity:
    """Checks of a displacement that need no ground truth.

    Attributes:
        folded_share: of the voxels checked, with det J ≤ 0.
        largest_voxels: the largest magnitude of the components along axes 0, 1, 2.
        search_range_voxels: how far the preset looks along axes 0, 1, 2 (``Preset.search_range``).
        distance_before: feature distance of the images as they are.
        distance_after: with the displacement.
    """

    folded_share: float
    largest_voxels: Triple
    search_range_voxels: Triple
    distance_before: float
    distance_after: float

    @property
    def warnings(self) -> list[str]:
        """One sentence per problem. That an image which is left where it is comes no closer is none."""
        found = []
        if max(self.largest_voxels) > 0 and self.distance_after >= self.distance_before:
            found.append(
                f"the feature distance did not fall: {self.distance_before:.3f} before, {self.distance_after:.3f} after; "
                "the result may be worse than none"
            )
        for axis, (largest, reach) in enumerate(zip(self.largest_voxels, self.search_range_voxels, strict=True)):
            if largest > _NEAR_RANGE * reach:
                found.append(
                    f"the largest displacement along axis {axis}, {largest:.1f} voxels, is at the end of the search range "
                    f"of {reach:.1f}; the true one may be larger"
                )
        return found


@dataclass(frozen=True)
class Coarse:
    """An image on the coarse grid: ``(1, 1, h, w, d)``, filled beyond its field of view, and that."""

    volume: Volume
    mask: Mask


def examine(
    fixed: Volume, movings: Mapping[str, Volume], displacements: Mapping[str, Displacement], *, config: Preset, kernels: Kernels
) -> dict[str, Sanity]:
    """Checks every result of a case; moving images and displacements by name, a tensor that several share is checked once.

    Raises:
        NonFiniteError: if a displacement is not finite.
    """
    spacing = coarse_spacing(shape_of(fixed))
    coarse_fixed = coarsen(fixed, spacing, kernels)
    features = _features(coarse_fixed.volume, kernels)
    reach = config.search_range(shape_of(fixed))
    regularity: dict[int, tuple[float, Triple]] = {}
    results: dict[str, Sanity] = {}
    for name, displacement in displacements.items():
        if id(displacement) not in regularity:
            check_finite(displacement, "result")
            folded = folded_share(displacement, voxels=_VOXELS if displacement.device.type == "cpu" else _MANY_VOXELS)
            regularity[id(displacement)] = folded, largest(displacement)
        folded, longest = regularity[id(displacement)]
        moving = coarsen(movings[name], spacing, kernels)
        before, after = (
            feature_distance(features, coarse_fixed.mask, moving, u, spacing=spacing, kernels=kernels)
            for u in (displacement.new_zeros(()).expand_as(displacement), displacement)
        )
        results[name] = Sanity(folded, longest, reach, before, after)
    return results


def coarse_spacing(shape: Shape) -> int:
    """Voxels per cell of the coarse grid: as few as keep it small, but two where there are enough, to see past the noise."""
    return max(-(-max(shape) // MAX_CELLS), 2 if min(shape) >= _ENOUGH else 1)


def coarsen(volume: Volume, spacing: int, kernels: Kernels) -> Coarse:
    """Pools an image by means; its field of view is that of the voxels at the centers of the cells.

    Args:
        volume: ``(1, 1, H, W, D)`` intensities.
        spacing: voxels per cell.
        kernels: compute kernels.
    """
    volume = volume.float()
    mask = field_of_view(at_centers(volume, spacing))
    pooled, _ = kernels.pool(volume, None, spacing) if spacing > 1 else (volume, None)
    return Coarse(kernels.fill_outside(pooled, mask, reach=_RADIUS + _DILATION), mask)


def at_centers(tensor: Tensor, spacing: int) -> Tensor:
    """The voxels nearest to the centers of the cells, ``(1, C, h, w, d)`` of ``(1, C, H, W, D)``."""
    for axis, place in enumerate(cells.cell_centers(shape_of(tensor), spacing, device=tensor.device), start=2):
        tensor = tensor.index_select(axis, place.floor().clamp(0, tensor.shape[axis] - 1).long())
    return tensor


def feature_distance(
    fixed: Features, known: Mask, moving: Coarse, displacement: Displacement, *, spacing: int, kernels: Kernels
) -> float:
    """1 − S·√(the share of the fixed image that has a counterpart), S as in ``similarity.py``.

    ``fixed`` are features ``(1, 12, h, w, d)`` on the coarse grid, ``known`` is their field of view.
    """
    displacement_cells = at_centers(displacement, spacing) / spacing
    warped, seen = kernels.sample_known(moving.volume, moving.mask, displacement_cells, offset=(0, 0, 0))
    shared = (known & seen).to(warped.dtype)
    similarity = kernels.similarities(fixed, _features(warped, kernels), shared)
    fetched = torch.stack([similarity[0], shared.sum().double(), known.sum().double()])  # at once, as a GPU is waited for
    score, seen_cells, known_cells = (float(value) for value in fetched.tolist())
    return 1 - score * math.sqrt(seen_cells / max(known_cells, 1.0))


def _features(volume: Volume, kernels: Kernels) -> Features:
    return kernels.mind_ssc(volume, radius=_RADIUS, dilation=_DILATION)


def folded_share(displacement: Displacement, *, voxels: int) -> float:
    """Share of the voxels, without two at every face, where p + u(p) folds: det J ≤ 0 by central differences.

    The displacement has at least 5 voxels along each axis; about ``voxels`` are looked at at once.
    """
    height, width, depth = shape_of(displacement)
    inner = slice(_BORDER, -_BORDER)
    rows = max(voxels // (width * depth), 1)
    folded = torch.zeros((), dtype=torch.int64, device=displacement.device)
    for first in range(_BORDER, height - _BORDER, rows):
        last = min(first + rows, height - _BORDER)
        found = determinants(displacement[:, :, first - 1 : last + 1])[:, :, 1:-1, inner, inner]
        folded += (found <= 0).sum()
    return int(folded) / ((height - 2 * _BORDER) * (width - 2 * _BORDER) * (depth - 2 * _BORDER))


def largest(displacement: Displacement) -> Triple:
    """The largest magnitude of the components along axes 0, 1, 2, voxels."""
    a, b, c = displacement.abs().flatten(2).amax(dim=2)[0].tolist()
    return a, b, c
