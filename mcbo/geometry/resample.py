"""One resampler for images and labels: from any grid, by way of a displacement, onto any grid."""

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from mcbo.core.errors import InputError, ShapeError
from mcbo.core.field import sample_at
from mcbo.core.memory import check_fits
from mcbo.core.types import Displacement
from mcbo.geometry.grid import Grid, displaced

Mode: TypeAlias = Literal["linear", "nearest", "label"]
"""Trilinear; the nearest voxel; or the label whose trilinear share is largest, which draws smoother borders than nearest."""


def resample(
    volume: Tensor,
    its_grid: Grid,
    onto: Grid,
    *,
    displacement: Displacement | None = None,
    mode: Mode = "linear",
    outside: float = 0.0,
) -> Tensor:
    """Brings a volume onto a grid: voxel p there gets what the volume has at the world position of ``p + u(p)``.

    With a displacement from fixed to moving, ``volume`` is the moving image and ``onto`` the fixed grid. A voxel reaches half a
    voxel beyond its center, as in ITK: there the border's value counts, farther out ``outside``.

    Args:
        volume: ``(1, C, H, W, D)`` of any number type; one channel unless linear.
        its_grid: where it lies.
        onto: the grid to reach.
        displacement: ``(1, 3, h, w, d)`` voxels of ``onto``; none is no motion.
        mode: how values between voxels are made. Nearest and label return the numbers they found, however large.
        outside: the value where the volume says nothing.

    Returns:
        ``(1, C, h, w, d)``; linear in float32 (float64 for float64), else in the type of the volume.

    Raises:
        ShapeError: if a tensor does not live on its grid.
        InputError: if the result cannot hold ``outside``.
        MemoryBudgetError: if the result does not fit into memory.
    """
    if volume.dim() != 5 or tuple(volume.shape[2:]) != its_grid.shape or (mode != "linear" and volume.shape[1] != 1):
        raise ShapeError(f"resample: expected a volume of shape {(1, 1, *its_grid.shape)}, got {tuple(volume.shape)}")
    if mode == "linear" and volume.dtype != torch.float64:
        volume = volume.float()
    _check_outside(outside, volume.dtype)
    if volume.device.type == "cpu":
        check_fits(volume.element_size() * volume.shape[1] * math.prod(onto.shape), "a resampled image")
    result = volume.new_empty((1, volume.shape[1], *onto.shape))
    for first, last in onto.slabs():
        positions = its_grid.to_voxels(onto.to_world(displaced(onto, displacement, first, last))).to(volume.device)
        values = _SAMPLERS[mode](volume, positions)
        values[..., ~its_grid.inside(positions)] = outside
        result[:, :, first:last] = values.view(1, -1, last - first, *onto.shape[1:])
    return result


def _check_outside(outside: float, dtype: torch.dtype) -> None:
    kind = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    if dtype.is_floating_point and not math.isfinite(outside):
        return
    if not kind.min <= outside <= kind.max or not (dtype.is_floating_point or float(outside).is_integer()):
        expected = "a number" if dtype.is_floating_point else "a whole number"
        raise InputError(f"outside: expected {expected} from {kind.min:g} to {kind.max:g}, got {outside}")


def _nearest(volume: Tensor, positions: Tensor) -> Tensor:
    return _pick(volume, (positions + 0.5).floor().long())


def _largest_share(volume: Tensor, positions: Tensor) -> Tensor:
    """Of the labels at the eight corners, the one with the largest sum of trilinear weights; of equals, the smallest."""
    low = positions.floor().long()
    corners = torch.cartesian_prod(*[torch.arange(2, device=positions.device)] * 3)
    labels = torch.stack([_pick(volume, low + corner)[0, 0] for corner in corners])
    mixed = (labels != labels[0]).any(dim=0).nonzero()[:, 0]
    result = labels[0].clone()
    labels, part = labels[:, mixed], (positions - low)[mixed]
    weights = torch.stack([torch.where(corner.bool(), part, 1 - part).prod(dim=1) for corner in corners])
    best, share = labels[0].clone(), torch.full_like(weights[0], -1.0)
    for label in labels:
        found = (weights * (labels == label)).sum(dim=0)
        # What rounding alone tells apart is equal; the order of the corners must not decide.
        better = (found > share + 1e-9) | ((found > share - 1e-9) & (label < best))
        best, share = torch.where(better, label, best), torch.where(better, found, share)
    result[mixed] = best
    return result[None, None]


def _pick(volume: Tensor, index: Tensor) -> Tensor:
    """The voxels at whole positions ``(N, 3)``, the nearest of the border for those beyond: ``(1, 1, N)``.

    Labels are picked, not sampled by ``field.sample_at``: float32 would change those above 2²⁴.
    """
    upper = index.new_tensor(volume.shape[2:]) - 1
    i, j, k = index.clamp(min=torch.zeros_like(upper), max=upper).unbind(-1)
    return volume[0, 0, i, j, k][None, None]


_SAMPLERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": sample_at,
    "nearest": _nearest,
    "label": _largest_share,
}
