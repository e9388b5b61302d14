"""What the moving image would look like where the fixed one is: a regression of its intensities on the fixed image's texture.

Electron microscopy shows membranes, light microscopy what a dye is bound to: hardly an edge of one is an edge of the other. But
what is stained has a texture of its own, and a rough alignment is enough to learn which. Means, spreads and slopes of the fixed
image at several scales are fitted to the moving image by ridge regression; the fit, applied to every voxel, takes the place of
the fixed image. A dozen coefficients for 10⁵ voxels learn the dye, not the alignment.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mcbo.core.field import box_sum
from mcbo.core.types import Volume
from mcbo.steps.gauss_newton import central_differences

BOXES = (3, 5, 9)
"""Sides of the boxes, voxels; each is used twice in succession, which makes a nearly Gaussian window."""
RIDGE = 0.01
"""Of the variance of a filter's response, added to it."""


def predict(fixed: Volume, known: Tensor, moved: Volume, seen: Tensor) -> Volume:
    """The moving image as predicted from the fixed one, ``(1, 1, h, w, d)``.

    Args:
        fixed: ``(1, 1, h, w, d)`` intensities.
        known: of the same shape, 0 or 1.
        moved: the moving image, roughly aligned.
        seen: where it is known.
    """
    both = (known * seen)[0, 0] > 0
    if int(both.sum()) < 2:
        return fixed
    responses = list(filtered(fixed, known))
    samples = torch.stack([response[0, 0][both] for response in responses]).double()
    mean, spread = samples.mean(dim=1, keepdim=True), samples.std(dim=1, keepdim=True).clamp(min=1e-12)
    samples = (samples - mean) / spread
    target = moved[0, 0][both].double()
    level = target.mean()
    products = samples @ samples.T / samples.shape[1]
    products.diagonal().add_(RIDGE)
    slopes = torch.linalg.solve(products, samples @ (target - level) / samples.shape[1]) / spread[:, 0]
    predicted = torch.full_like(fixed, float(level - (slopes * mean[:, 0]).sum()))
    for slope, response in zip(slopes.tolist(), responses, strict=True):
        predicted.add_(response, alpha=slope)
    return predicted


def filtered(volume: Volume, known: Tensor) -> Iterator[Volume]:
    """Responses to the filters: the image; and in boxes of known voxels, its mean, its spread, and the mean of its slope."""
    slope = torch.stack(central_differences(volume[0, 0])).norm(dim=0)[None, None]
    yield volume
    yield slope
    for size in BOXES:
        weight = box_sum(known, size=size, rounds=2).clamp(min=1e-3)

        def mean(values: Tensor, size: int = size, weight: Tensor = weight) -> Tensor:
            return box_sum(values * known, size=size, rounds=2) / weight

        local = mean(volume)
        yield local
        yield (mean(volume.square()) - local.square()).clamp(min=0).sqrt()
        yield mean(slope)
