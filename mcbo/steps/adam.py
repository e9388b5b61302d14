"""Adam instance optimization: refines a displacement by gradient descent on the feature distance.

docs/method.md, step 7; after Siebert et al., Learn2Reg 2021 (ConvexAdam).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mcbo.core.field import half_pixel_stretch, resize, shape_of, warp
from mcbo.core.types import Displacement, Features, Kernels


@dataclass(frozen=True)
class AdamSettings:
    """Adam instance optimization of a level.

    Attributes:
        grid_spacing: voxels per cell of the parameter grid.
        iterations: evaluations of the loss.
        learning_rate: Adam's, in cells of that grid.
        regularization_weight: of the roughness against the feature distance.
        parameter_box, parameter_rounds: box means that smooth the parameters.
        result_box, result_rounds: box means that smooth the result on the full grid.
    """

    grid_spacing: int
    iterations: int
    learning_rate: float
    regularization_weight: float
    parameter_box: int
    parameter_rounds: int
    result_box: int
    result_rounds: int


def refine(
    fixed: Features,
    moving: Features,
    displacement: Displacement,
    *,
    settings: AdamSettings,
    stretch: bool,
    kernels: Kernels,
) -> Displacement:
    """Refines a displacement on a grid of cells of ``settings.grid_spacing`` voxels.

    Features are means over these cells, ``(1, C, h, w, d)``, the displacement to start from and the result ``(1, 3, H, W, D)``
    voxels. ``stretch`` samples as the published program does (``field.half_pixel_stretch``). The result is the smoothed field
    at the last of ``settings.iterations`` evaluations; the step after it would not be applied, so that evaluation itself is
    left out.
    """
    spacing = settings.grid_spacing

    def smooth(field: Tensor) -> Tensor:
        return kernels.box_mean(field, size=settings.parameter_box, rounds=settings.parameter_rounds)

    parameters = resize(displacement, shape_of(fixed), scale=1 / spacing)
    adam = torch.optim.Adam([parameters], lr=settings.learning_rate)
    distance_gradient = kernels.gradient_of(fixed, moving, stretch=stretch)
    for _ in range(settings.iterations - 1):
        smoothed = smooth(parameters)
        gradient = distance_gradient(smoothed)
        add_roughness_gradient(gradient, smoothed, weight=settings.regularization_weight)
        # The box mean is its own adjoint, so it carries the gradient from the smoothed field to the parameters.
        parameters.grad = smooth(gradient)
        adam.step()
    fine = resize(smooth(parameters), shape_of(displacement), scale=spacing)
    return kernels.box_mean(fine, size=settings.result_box, rounds=settings.result_rounds)


def gradient_of(fixed: Features, moving: Features, *, stretch: bool) -> Callable[[Displacement], Displacement]:
    """The gradient of the feature distance, mean over cells of Σ over channels (M(p + u) − F(p))², as a function of u.

    Features are ``(1, C, h, w, d)``, u and its gradient ``(1, 3, h, w, d)`` cells. ``stretch`` samples as the published program
    does (``field.half_pixel_stretch``). The plain torch reference; a faster twin is in ``kernels/``.
    """

    def gradient(displacement: Displacement) -> Displacement:
        u = displacement.detach().requires_grad_()
        ahead = half_pixel_stretch(u) if stretch else u
        distance = (warp(moving, ahead) - fixed).square().mean(dim=1).mul(fixed.shape[1]).mean()
        (result,) = torch.autograd.grad(distance, u)
        return result

    return gradient


def add_roughness_gradient(gradient: Displacement, displacement: Displacement, *, weight: float) -> None:
    """Adds to ``gradient``, in place, ``weight`` times that of the sum over axes of the mean squared forward difference."""
    for axis in (2, 3, 4):
        size = displacement.shape[axis]
        if size > 1:
            step = displacement.diff(dim=axis)
            step *= 2 * weight / step.numel()
            gradient.narrow(axis, 1, size - 1).add_(step)
            gradient.narrow(axis, 0, size - 1).sub_(step)
