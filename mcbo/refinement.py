"""Adam instance optimization: a displacement made finer by gradient descent on the feature distance.

docs/method.md, step 7; after Siebert et al., Learn2Reg 2021 (ConvexAdam).
"""

import torch
from torch import Tensor
from torch.nn import functional

from mcbo.config import Refinement
from mcbo.field import box_mean, half_pixel_stretch, resize, shape_of, warp
from mcbo.types import Displacement, Features


def refine(
    fixed: Features, moving: Features, displacement: Displacement, *, settings: Refinement, stretch: bool
) -> Displacement:
    """Refines a displacement on a grid ``settings.grid_spacing`` times coarser than the features.

    The result is the smoothed field at the last of ``settings.iterations`` evaluations; the step that would follow from that
    evaluation is not applied, so the evaluation itself is not made.

    Args:
        fixed: ``(1, C, H, W, D)`` features.
        moving: of the same shape.
        displacement: ``(1, 3, H, W, D)`` voxels, where to start.
        settings: grid, steps and weights.
        stretch: sample as the published program does (``field.half_pixel_stretch``).

    Returns:
        ``(1, 3, H, W, D)`` voxels.
    """
    spacing = settings.grid_spacing
    fixed_cells = functional.avg_pool3d(fixed, spacing, stride=spacing)
    moving_cells = functional.avg_pool3d(moving, spacing, stride=spacing)

    def smooth(field: Tensor) -> Tensor:
        return box_mean(field, size=settings.parameter_box, rounds=settings.parameter_rounds)

    parameters = resize(displacement, shape_of(fixed_cells), scale=1 / spacing)
    adam = torch.optim.Adam([parameters], lr=settings.learning_rate)
    for _ in range(settings.iterations - 1):
        smoothed = smooth(parameters).requires_grad_()
        ahead = half_pixel_stretch(smoothed) if stretch else smoothed
        distance = (warp(moving_cells, ahead) - fixed_cells).square().mean(dim=1).mul(fixed.shape[1]).mean()
        loss = distance + settings.regularization_weight * roughness(smoothed)
        (gradient,) = torch.autograd.grad(loss, smoothed)
        # The box mean is its own adjoint, so it carries the gradient from the smoothed field to the parameters.
        parameters.grad = smooth(gradient)
        adam.step()
    fine = resize(smooth(parameters), shape_of(fixed), scale=spacing)
    return box_mean(fine, size=settings.result_box, rounds=settings.result_rounds)


def roughness(displacement: Displacement) -> Tensor:
    """Sum over the three axes of the mean squared forward difference; a scalar, in units of the grid squared."""
    return torch.stack([displacement.diff(dim=axis).square().mean() for axis in (2, 3, 4)]).sum()
