"""MIND-SSC on a GPU: twin of ``mind.mind_ssc``."""

from functools import cache

import torch
from torch import Tensor

from mcbo.core.field import shape_of
from mcbo.core.types import Features, Volume
from mcbo.kernels.cuda.launch import Launch, Module, per_cell
from mcbo.steps.mind import PAIRS, VARIANCE_RANGE, check_volume

_TILE = (16, 32)
_ROWS = 64
"""Rows of axis 0 that a block marches through."""
_SUM_BLOCKS = 128
"""Blocks that sum the variance of a volume, of 256 threads as in ``features.cu``."""


def module_of(radius: int) -> Module:
    """The source for a radius of patches, voxels."""
    return Module("features.cu", (("RADIUS", radius),))


def mind_ssc(launch: Launch, volume: Volume, *, radius: int, dilation: int) -> Features:
    """Twin of ``mind.mind_ssc``."""
    check_volume(volume)
    volume = volume.float().contiguous()
    batch, (height, width, depth) = len(volume), shape_of(volume)
    module, voxels = module_of(radius), height * width * depth
    features = torch.empty((batch, len(PAIRS), height, width, depth), dtype=torch.float32, device=volume.device)
    scales = torch.ldexp(torch.ones(batch, device=volume.device), -torch.frexp(volume.abs().amax(dim=(1, 2, 3, 4))).exponent)
    blocks = -(-width // _TILE[0]) * -(-depth // _TILE[1]), batch * len(PAIRS), -(-height // _ROWS)
    fields = volume, scales, _pairs_on(volume.device), features
    launch(module, "fill_distances", blocks, (_TILE[0] * _TILE[1], 1, 1), *fields, height, width, depth, dilation, _ROWS)
    sums = torch.empty((batch, _SUM_BLOCKS), dtype=torch.float64, device=volume.device)
    launch(module, "subtract_least", (_SUM_BLOCKS, batch, 1), (256, 1, 1), features, sums, voxels)
    means = (sums.sum(dim=1) / voxels).float()
    per_cell(launch, module, "exponentiate", voxels, features, means, voxels, *VARIANCE_RANGE, times=batch)
    return features


@cache
def _pairs_on(device: torch.device) -> Tensor:
    """The pairs of neighbors, ``(12, 2, 3)`` int32."""
    return torch.tensor(PAIRS, dtype=torch.int32, device=device)
