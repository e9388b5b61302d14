"""Displacements and cells on a GPU: twins of ``consistency.py``, of ``adam.gradient_of``, of box means and of pooling."""

from collections.abc import Callable

import torch
from torch import Tensor

from mcbo.core.field import shape_of, stretch_factors
from mcbo.core.types import Displacement, Features, Mask, Shape
from mcbo.geometry.cells import WEIGHT_FLOOR, cell_shape
from mcbo.kernels.cuda.launch import Launch, Module, per_cell

MODULE = Module("fields.cu")


def make_consistent(
    launch: Launch, forward: Displacement, backward: Displacement, *, rounds: int, stretch: bool
) -> tuple[Displacement, Displacement]:
    """Twin of ``consistency.make_consistent``."""
    shape = shape_of(forward)
    factors = stretch_factors(shape) if stretch else (1.0, 1.0, 1.0)
    cells = forward[0, 0].numel()
    pair = forward.contiguous(), backward.contiguous()
    for _ in range(rounds):
        after = torch.empty_like(pair[0]), torch.empty_like(pair[1])
        per_cell(launch, MODULE, "half_step", cells, *pair, *after, *shape, *factors, times=2)
        pair = after
    return pair


def gradient_of(launch: Launch, fixed: Features, moving: Features, *, stretch: bool) -> Callable[[Displacement], Displacement]:
    """Twin of ``adam.gradient_of``."""
    shape = shape_of(fixed)
    factors = stretch_factors(shape) if stretch else (1.0, 1.0, 1.0)
    fixed, moving = fixed.contiguous(), moving.contiguous()

    def gradient(displacement: Displacement) -> Displacement:
        u = displacement.detach().contiguous()
        result = torch.empty_like(u)
        features = fixed, moving, u, result
        per_cell(launch, MODULE, "distance_gradient", u[0, 0].numel(), *features, fixed.shape[1], *shape, *factors)
        return result

    return gradient


def box_mean(launch: Launch, tensor: Tensor, *, size: int, rounds: int = 1) -> Tensor:
    """Twin of ``field.box_mean``."""
    values, stride = tensor.contiguous(), 1
    for length in reversed(shape_of(tensor)):
        for _ in range(rounds):
            after = torch.empty_like(values)
            count = values.numel() // (length * stride)
            per_cell(launch, MODULE, "line_mean", values.numel(), values, after, count, length, stride, size // 2)
            values = after
        stride *= length
    return values


def pool_known(launch: Launch, features: Features, mask: Mask, spacing: int) -> tuple[Features, Tensor]:
    """Twin of ``cells.pool_known``."""
    pooled = empty_cells(features, shape_of(mask), spacing)
    pool_rows(launch, features, mask, pooled, spacing, first_row=0, cells=(0, pooled[1].shape[2]))
    return pooled


def empty_cells(like: Tensor, shape: Shape, spacing: int, *, channels: int | None = None) -> tuple[Features, Tensor]:
    """Memory for the means of cells, ``(1, C, h, w, d)``, and for what is known of them; contents undefined."""
    cells = cell_shape(shape, spacing)
    means = torch.empty((1, channels or like.shape[1], *cells), dtype=torch.float32, device=like.device)
    return means, torch.empty((1, 1, *cells), dtype=torch.float32, device=like.device)


def pool_rows(
    launch: Launch,
    features: Features,
    mask: Mask,
    pooled: tuple[Features, Tensor],
    spacing: int,
    *,
    first_row: int,
    cells: tuple[int, int],
) -> None:
    """Pools the rows ``[first, last)`` of cells into ``pooled``.

    ``features``, ``(1, C, n, W, D)``, are those rows of the volume of ``mask`` that the cells cover, from ``first_row`` on.
    """
    channels, rows = features.shape[1:3]
    _, known = pooled
    plane = known.shape[3] * known.shape[4]
    sizes = channels, *shape_of(mask), rows, first_row, *shape_of(known), cells[0] * plane, (cells[1] - cells[0]) * plane
    fields = features.contiguous(), mask.contiguous(), *pooled
    arguments = *fields, *sizes, spacing, WEIGHT_FLOOR
    per_cell(launch, MODULE, "pool_known", (cells[1] - cells[0]) * plane, *arguments, times=channels + 1)
