"""Displacements and cells on a GPU: twins of ``consistency.py``, of ``adam.gradient_of``, of box means and of pooling."""

from collections.abc import Callable

import torch
from torch import Tensor

from mcbo.core.field import shape_of, stretch_factors
from mcbo.core.types import Displacement, Features, Mask
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
    channels, shape = features.shape[1], shape_of(features)
    cells = cell_shape(shape, spacing)
    means = torch.empty((1, channels, *cells), dtype=torch.float32, device=features.device)
    known = torch.empty((1, 1, *cells), dtype=torch.float32, device=features.device)
    fields = features.contiguous(), mask.contiguous(), means, known
    sizes = channels, *shape, *cells, spacing
    per_cell(launch, MODULE, "pool_known", known.numel(), *fields, *sizes, WEIGHT_FLOOR, times=channels + 1)
    return means, known
