"""The field of view: where an image shows something, and what to put where it shows nothing.

An ultrasound wedge lies in an empty box. Its edge is the strongest structure in the image and means nothing, so it must neither
be matched nor leak into the features of what is inside.
"""

import numpy as np
import torch
from scipy import ndimage

from mcbo.core.field import box_sum, shape_of
from mcbo.core.types import Mask, Shape, Volume

MIN_BORDER_SHARE = 0.25
"""A background value holds at least this share of the voxels on the six faces."""
MIN_BACKGROUND_SHARE = 0.02
"""A smaller background is left in the field of view."""


def field_of_view(volume: Volume) -> Mask:
    """Everything but the background: the regions of one value, any value, that touch the border.

    The value is the commonest one on the six faces. An image without such a background (noise everywhere, or a cut-out that is
    full of anatomy) is all field of view, and so is one that is nothing but background.

    Args:
        volume: ``(1, 1, H, W, D)`` intensities.
    """
    image = volume[0, 0].cpu().numpy()
    faces = np.concatenate([np.take(image, (0, -1), axis=axis).ravel() for axis in range(3)])
    values, counts = np.unique(faces, return_counts=True)
    whole = torch.ones_like(volume, dtype=torch.bool)
    if counts.max() < MIN_BORDER_SHARE * faces.size:
        return whole
    regions, count = ndimage.label(image == values[counts.argmax()])
    touching = np.zeros(count + 1, dtype=bool)
    for axis in range(3):
        touching[np.take(regions, (0, -1), axis=axis)] = True
    touching[0] = False
    background = touching[regions]
    if not MIN_BACKGROUND_SHARE < background.mean() < 1:
        return whole
    return torch.from_numpy(~background)[None, None].to(volume.device)


def fill_outside(volume: Volume, mask: Mask, *, reach: int) -> Volume:
    """Continues an image beyond its mask, for ``reach`` voxels, so that its features near the edge are those of its inside.

    A voxel beside known ones becomes their mean, over its 26 neighbors; then the next layer. What lies further out becomes the
    mean of the inside; no patch of a feature inside reaches it.

    Args:
        volume: ``(1, 1, H, W, D)`` intensities.
        mask: of the same shape; true where the image is known.
        reach: voxels, at least patch radius + dilation of the features.
    """
    if int(mask.sum()) in (0, mask.numel()):
        return volume
    known = mask.to(volume.dtype)
    filled = volume * known
    inside_mean = filled.sum() / known.sum()
    for _ in range(reach):
        weights, sums = box_sum(known, size=3), box_sum(filled, size=3)
        fresh = (known == 0) & (weights > 0)
        filled = torch.where(fresh, sums.div_(weights.clamp_(min=1)), filled)
        known.masked_fill_(fresh, 1)
    return torch.where(known > 0, filled, inside_mean)


def bounding_box(mask: Mask, *, margin: int) -> tuple[slice, slice, slice]:
    """The smallest box around a mask, and a margin of voxels around it, within the image; all of it if the mask is empty."""
    shape: Shape = shape_of(mask)
    others = [tuple(a for a in range(3) if a != axis) for axis in range(3)]
    seen = torch.cat([mask[0, 0].amax(dim=axes) for axes in others]).cpu()  # one copy, for which a GPU is waited for once
    spans = []
    for size, line in zip(shape, torch.split(seen, list(shape)), strict=True):
        places = torch.nonzero(line).flatten().tolist() or range(size)
        spans.append(slice(max(places[0] - margin, 0), min(places[-1] + 1 + margin, size)))
    return spans[0], spans[1], spans[2]
