"""Displacements and the grid they live on: sampling and warping, resizing, box means, Jacobian determinants.

This is the only caller of ``grid_sample`` and so the only place that knows torch's normalized coordinates.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from mcbo.core.errors import NonFiniteError, ShapeError
from mcbo.core.types import Displacement, Shape


def shape_of(tensor: Tensor) -> Shape:
    """The last three sizes of a tensor: its grid."""
    height, width, depth = tensor.shape[-3:]
    return height, width, depth


def format_shape(shape: Shape) -> str:
    """``48×40×56``."""
    return "×".join(map(str, shape))


def lengths(displacement: Displacement) -> Tensor:
    """The length of each vector of ``(B, 3, H, W, D)``: ``(B, 1, H, W, D)``.

    Faster than ``norm``, which torch does not vectorize along that axis.
    """
    total = displacement[:, :1].square()
    for axis in (1, 2):
        total.addcmul_(displacement[:, axis : axis + 1], displacement[:, axis : axis + 1])
    return total.sqrt_()


def along_axis(values: Tensor, axis: int) -> Tensor:
    """``(n,)`` values laid along axis 0, 1 or 2 of a grid: ``(n, 1, 1)``, ``(1, n, 1)`` or ``(1, 1, n)``, a view."""
    return values.view([-1 if other == axis else 1 for other in range(3)])


def sample(volume: Tensor, displacement: Displacement, *, offset: Shape, outside: Literal["zeros", "border"]) -> Tensor:
    """Samples ``volume``, ``(1, C, H, W, D)`` or B of them, at ``offset + p + u(p)``, trilinearly: ``(B, C, h, w, d)``.

    Each of the displacements, ``(B, 3, h, w, d)`` voxels, lies on a box of that grid that begins at ``offset`` and may reach
    beyond it. There, the volume is zero or continues with the nearest voxel of its border (``outside``).
    """
    return _sample(volume, _positions(displacement, offset, shape_of(volume)), outside)


def sample_known(
    volume: Tensor, known: Tensor, displacement: Displacement, *, offset: Shape, share: float = 0.5
) -> tuple[Tensor, Tensor]:
    """``sample`` of a volume that continues with its border, and of where more than a ``share``, below 1, is known: bool.

    ``known``, ``(1, C, H, W, D)`` or B of them, is bool or from 0 to 1; beyond the volume, nothing is known.
    """
    positions = _positions(displacement, offset, shape_of(volume))
    return _sample(volume, positions, "border"), _sample(known.to(volume.dtype), positions, "zeros") > share


def _positions(displacement: Displacement, offset: Shape, size: Shape) -> Tensor:
    """``offset + p + u(p)`` in torch's normalized coordinates of a volume, ``(B, h, w, d, 3)``."""
    shape = shape_of(displacement)
    grid = torch.empty((len(displacement), *shape, 3), dtype=displacement.dtype, device=displacement.device)
    for axis, (count, first, n) in enumerate(zip(shape, offset, size, strict=True)):
        index = torch.arange(first, first + count, dtype=displacement.dtype, device=displacement.device)
        position = displacement[:, axis] + along_axis(index, axis)
        # Half-pixel corners: voxel center i lies at (2i + 1)/n − 1. grid_sample wants the last axis first.
        grid[..., 2 - axis] = position.mul_(2 / n).add_(1 / n - 1)
    return grid


def _sample(volume: Tensor, positions: Tensor, outside: Literal["zeros", "border"]) -> Tensor:
    volumes = volume.expand(len(positions), *volume.shape[1:])
    return functional.grid_sample(volumes, positions, mode="bilinear", padding_mode=outside, align_corners=False)


def warp(volume: Tensor, displacement: Displacement) -> Tensor:
    """Samples ``volume``, ``(1, C, H, W, D)``, at ``p + u(p)``, trilinearly, with zeros outside: of the same shape.

    Raises:
        ShapeError: if the displacement is not ``(1, 3, H, W, D)`` (voxels of that grid).
    """
    if displacement.shape[:2] != (1, 3) or displacement.shape[2:] != volume.shape[2:]:
        raise ShapeError(f"warp: expected a displacement of shape {(1, 3, *volume.shape[2:])}, got {tuple(displacement.shape)}")
    return sample(volume, displacement, offset=(0, 0, 0), outside="zeros")


def sample_at(volume: Tensor, positions: Tensor) -> Tensor:
    """Samples ``volume``, ``(1, C, H, W, D)``, trilinearly at positions, ``(N, 3)`` voxels of that grid: ``(1, C, N)``.

    Beyond the border, the nearest point of the border counts. Positions that come from world coordinates are float64: what far
    origins and large rotations cancel must not be rounded before.
    """
    sizes = positions.new_tensor(shape_of(volume))
    grid = ((positions + 0.5) * (2 / sizes) - 1).flip(-1).to(volume.dtype)
    sampled = functional.grid_sample(
        volume, grid[None, :, None, None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled[..., 0, 0]


def resize(displacement: Displacement, shape: Shape, *, scale: float) -> Displacement:
    """Brings a displacement to another grid, ``(1, 3, *shape)``: trilinear with half-pixel corners, values times ``scale``.

    ``scale`` is how many units of the new grid make one of the old: g from cells of g voxels to voxels.
    """
    if shape_of(displacement) != shape:
        displacement = functional.interpolate(displacement, size=shape, mode="trilinear", align_corners=False)
    return displacement * scale


def half_pixel_stretch(displacement: Displacement) -> Displacement:
    """Stretches each component of ``(1, 3, H, W, D)`` by n/(n−1), n the grid's size along its axis, unless n = 1.

    The published program divides displacements by (n−1)/2, the half width of a grid with corners at voxel *centers*, and
    samples with corners at voxel *edges*. It therefore samples at ``p + u(p)·n/(n−1)`` (docs/method.md, step 5). Presets
    that reproduce the paper ask for this stretch; nothing else should.
    """
    return displacement * displacement.new_tensor(stretch_factors(shape_of(displacement))).view(1, 3, 1, 1, 1)


def stretch_factors(shape: Shape) -> tuple[float, float, float]:
    """n/(n−1) per axis; 1 for an axis of one voxel."""
    height, width, depth = (size / max(size - 1, 1) for size in shape)
    return height, width, depth


def box_mean(tensor: Tensor, *, size: int, rounds: int = 1) -> Tensor:
    """Repeated means over ``size``³ boxes of ``(…, H, W, D)``, zero outside, always divided by ``size``³; ``size`` is odd.

    Being symmetric, this linear map is its own adjoint; ``adam.py`` uses that.
    """
    return box_sum(tensor, size=size, rounds=rounds).mul_(1 / size ** (3 * rounds))


def box_sum(tensor: Tensor, *, size: int, axes: Sequence[int] = (-3, -2, -1), rounds: int = 1) -> Tensor:
    """Repeated sums over windows of odd ``size``, axis by axis, zero outside. A new tensor of the same shape.

    The terms of each output are added in the same order wherever it lies, so that a volume cut in slabs gives the same bits.
    """
    for axis in [axis for axis in axes for _ in range(rounds)]:
        length = tensor.shape[axis]
        total = tensor.clone()
        for step in range(1, min(size // 2, length - 1) + 1):
            kept = length - step
            total.narrow(axis, step, kept).add_(tensor.narrow(axis, 0, kept))
            total.narrow(axis, 0, kept).add_(tensor.narrow(axis, step, kept))
        tensor = total
    return tensor


def determinants(displacement: Displacement) -> Tensor:
    """Determinant of the Jacobian of p → p + u(p), ``(1, 1, h, w, d)``, by central differences, one-sided at the faces.

    1 where volume is kept, less than 1 where the moving image is sampled more densely, 0 or less where space folds. u is
    ``(1, 3, h, w, d)`` voxels, at least 2 along each axis.
    """
    along = torch.gradient(displacement, dim=(2, 3, 4))
    a, b, c = ([slope[:, component] for slope in along] for component in range(3))
    a[0], b[1], c[2] = a[0] + 1, b[1] + 1, c[2] + 1
    return (
        a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0])
    ).unsqueeze(1)


def check_finite(tensor: Tensor, stage: str) -> None:
    """Raises NonFiniteError, naming the stage, if a tensor has NaN or infinity."""
    if not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():  # NaN passes through both; a displacement is not empty
        raise NonFiniteError(f"stage '{stage}' produced values that are not finite: expected finite displacements")
