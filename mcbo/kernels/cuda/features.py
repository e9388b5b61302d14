"""MIND-SSC on a GPU: twin of ``mind.mind_ssc``, and features that are made where they are needed."""

from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional

from mcbo.core.field import shape_of
from mcbo.core.types import Features, Mask, Shape, Volume
from mcbo.geometry.cells import cell_shape
from mcbo.kernels.cuda.fields import empty_cells, pool_rows
from mcbo.kernels.cuda.launch import Launch, Module, per_cell
from mcbo.steps.mind import PAIRS, VARIANCE_RANGE, Box, check_volume, check_volumes

CHUNK_VOXELS = 2**22
"""Voxels whose features are made at a time: 200 MB."""
_TILE = (16, 32)
_ROWS = 64
"""Rows of axis 0 that a block marches through."""
_SUM_BLOCKS = 128
"""Blocks that sum the variance of a volume, of 256 threads as in ``features.cu``."""


def module_of(radius: int) -> Module:
    """The source for a radius of patches, voxels."""
    return Module("features.cu", (("RADIUS", radius),))


def mind_ssc(launch: Launch, volume: Volume, *, radius: int, dilation: int, mean_variance: Tensor | None = None) -> Features:
    """Twin of ``mind.mind_ssc``."""
    check_volumes(volume)
    volume = volume.float().contiguous()
    whole = (0, 0, 0), shape_of(volume)
    scales = _scales(volume)
    features, sums = _distances(launch, volume, scales, whole, radius=radius, dilation=dilation)
    if mean_variance is None:
        means = (sums.sum(dim=1) / volume[0].numel()).float()
    else:
        means = (mean_variance * scales.double().square()).float()
    return _exponentiated(launch, features, means, radius=radius)


def variance_of(launch: Launch, volume: Volume, *, radius: int, dilation: int) -> Tensor:
    """Twin of ``mind.variance_of``."""
    images = (StreamedFeatures(launch, one[None], radius=radius, dilation=dilation) for one in volume)
    return torch.cat([image.mean_variance for image in images])


class StreamedFeatures:
    """MIND-SSC features of an image, made a few rows at a time whenever they are asked for: as ``mind.WholeFeatures``.

    They are twelve times as large as the image, which is what a GPU has to hold instead.
    """

    def __init__(
        self, launch: Launch, volume: Volume, *, radius: int, dilation: int, mean_variance: Tensor | None = None
    ) -> None:
        check_volume(volume)
        self._launch, self._volume = launch, volume.float().contiguous()
        self._shape = shape_of(volume)
        self._scales = _scales(self._volume)
        self._distances = partial(_distances, launch, self._volume, self._scales, radius=radius, dilation=dilation)
        self._radius = radius
        squares = self._scales.double().square()
        if mean_variance is None:
            total = torch.zeros(1, dtype=torch.float64, device=volume.device)
            height, width, depth = self._shape
            for first, last in self._chunks(0, height, width * depth, 1):
                total += self._distances(((first, 0, 0), (last - first, width, depth)))[1].sum(dim=1)
            mean_variance = total / volume[0].numel() / squares
        self.mean_variance = mean_variance
        self._means = (mean_variance * squares).float()

    def pooled(self, box: Box, spacing: int) -> Features:
        (i, _), (j, j_end), (k, k_end) = box
        cells = [(end - first) // spacing for first, end in box]
        result = torch.empty((1, len(PAIRS), *cells), dtype=torch.float32, device=self._volume.device)
        for first, last in self._chunks(0, cells[0], (j_end - j) * (k_end - k), spacing):
            part = (i + first * spacing, j, k), ((last - first) * spacing, j_end - j, k_end - k)
            features = self._features(*part)
            result[:, :, first:last] = functional.avg_pool3d(features, spacing, stride=spacing) if spacing > 1 else features
            del features  # before memory is needed for the next
        return result

    def pooled_known(self, mask: Mask, spacing: int) -> tuple[Features, Tensor]:
        height, width, depth = self._shape
        result = empty_cells(self._volume, self._shape, spacing, channels=len(PAIRS))
        cells = cell_shape(self._shape, spacing)[0]
        before = (cells * spacing - height + 1) // 2  # rows that the first cell reaches over the volume
        for first, last in self._chunks(0, cells, width * depth, spacing):
            low, high = max(first * spacing - before, 0), min(last * spacing - before + 1, height)
            features = self._features((low, 0, 0), (high - low, width, depth))
            pool_rows(self._launch, features, mask, result, spacing, first_row=low, cells=(first, last))
            del features
        return result

    def _features(self, begin: Shape, size: Shape) -> Features:
        features, _ = self._distances((begin, size))
        return _exponentiated(self._launch, features, self._means, radius=self._radius)

    @staticmethod
    def _chunks(first: int, last: int, plane: int, spacing: int) -> list[tuple[int, int]]:
        """Cuts a range of rows of cells so that a part has about ``CHUNK_VOXELS``; ``plane``: voxels of a row of voxels."""
        rows = max(1, CHUNK_VOXELS // (plane * spacing))
        return [(row, min(row + rows, last)) for row in range(first, last, rows)]


def _scales(volume: Volume) -> Tensor:
    """Of each volume, the power of two that brings its largest magnitude to between ½ and 1, ``(B,)``."""
    exponent = torch.frexp(volume.abs().amax(dim=(1, 2, 3, 4))).exponent
    return torch.ldexp(torch.ones(len(volume), device=volume.device), -exponent)


def _distances(
    launch: Launch, volume: Volume, scales: Tensor, part: tuple[Shape, Shape], *, radius: int, dilation: int
) -> tuple[Tensor, Tensor]:
    """Patch distances minus their least, ``(B, 12, h, w, d)``, of a box (its begin and size); partial sums of their means."""
    module, batch = module_of(radius), len(volume)
    begin, (h, w, d) = part
    distances = torch.empty((batch, len(PAIRS), h, w, d), dtype=torch.float32, device=volume.device)
    blocks = -(-w // _TILE[0]) * -(-d // _TILE[1]), batch * len(PAIRS), -(-h // _ROWS)
    fields = volume, scales, _pairs_on(volume.device), distances
    sizes = *shape_of(volume), dilation, *begin, h, w, d, _ROWS
    launch(module, "fill_distances", blocks, (_TILE[0] * _TILE[1], 1, 1), *fields, *sizes)
    sums = torch.empty((batch, _SUM_BLOCKS), dtype=torch.float64, device=volume.device)
    launch(module, "subtract_least", (_SUM_BLOCKS, batch, 1), (256, 1, 1), distances, sums, h * w * d)
    return distances, sums


def _exponentiated(launch: Launch, distances: Tensor, means: Tensor, *, radius: int) -> Features:
    """The features, in place of distances; ``means``, ``(B,)``, are those of the variance of whole images."""
    voxels = distances[0, 0].numel()
    arguments = distances, means, voxels, *VARIANCE_RANGE
    per_cell(launch, module_of(radius), "exponentiate", voxels, *arguments, times=len(distances))
    return distances


@cache
def _pairs_on(device: torch.device) -> Tensor:
    """The pairs of neighbors, ``(12, 2, 3)`` int32."""
    return torch.tensor(PAIRS, dtype=torch.int32, device=device)
