"""The field of view: where an image shows something, and what to put where it shows nothing.

An ultrasound wedge lies in an empty box. Its edge is the strongest structure in the image and means nothing, so it must neither
be matched nor leak into the features of what is inside.
"""

import cc3d
import numpy as np
import torch
from numpy.typing import NDArray

from mcbo.core.field import box_sum, shape_of
from mcbo.core.types import Mask, Shape, Volume

MIN_BORDER_SHARE = 0.25
"""A background value holds at least this share of the voxels on the six faces."""
MIN_BACKGROUND_SHARE = 0.02
"""A smaller background is left in the field of view."""
SLAB_ROWS = 16
"""Rows along axis 0 that are labeled at once. ``cc3d`` holds Python's lock meanwhile, so that all other threads wait: 3 ms, if
a row has 256² voxels. Slabs take no longer than the whole volume at once, since they stay in the cache."""


def field_of_view(volume: Volume) -> Mask:
    """Everything but the background: the regions of one value, any value, that touch the border.

    The value is the commonest one on the six faces. An image without such a background (noise everywhere, or a cut-out that is
    full of anatomy) is all field of view, and so is one that is nothing but background.

    Args:
        volume: ``(1, 1, H, W, D)`` intensities.
    """
    image = volume[0, 0].cpu().numpy()
    faces = np.concatenate([image[:, :, [0, -1]].ravel(), image[:, [0, -1]].ravel(), image[[0, -1]].ravel()])
    values, counts = np.unique(faces, return_counts=True)
    has_background = counts.max() >= MIN_BORDER_SHARE * faces.size
    inside = _enclosed(image, values[counts.argmax()]) if has_background else np.ones(image.shape, dtype=bool)
    if not MIN_BACKGROUND_SHARE < (inside.size - np.count_nonzero(inside)) / inside.size < 1:
        inside[...] = True
    return torch.from_numpy(inside)[None, None].to(volume.device)


def _enclosed(image: NDArray[np.generic], value: np.generic) -> NDArray[np.bool_]:
    """Everything but the regions of a value that touch the border of an image ``(H, W, D)``; voxels of a region meet at faces.

    A shell of that value around the image makes these regions one. It is labeled slab by slab; then the regions of neighboring
    slabs that meet are joined, and only what lies beyond the shell's region of each slab needs a second look.
    """
    shell = np.ones([size + 2 for size in image.shape], dtype=bool)
    np.equal(image, value, out=shell[1:-1, 1:-1, 1:-1])
    first = 0  # regions of earlier slabs; numbers count on, and 0 is none
    shells, above = [0], np.zeros(shell.shape[1:], dtype=np.int64)
    meetings, voxels, regions = [], [], []
    for low in range(0, len(shell), SLAB_ROWS):
        slab = shell[low : low + SLAB_ROWS]
        labels, count = cc3d.connected_components(slab, connectivity=6, return_N=True)
        top, bottom = (np.where(plane > 0, first + plane.astype(np.int64), 0) for plane in (labels[0], labels[-1]))
        shells.append(int(top[0, 0]))
        meet = (above > 0) & (top > 0) & ((above != shells[-2]) | (top != shells[-1]))
        meetings.append(np.stack([above[meet], top[meet]]))
        enclosed = labels != labels[0, 0, 0]
        beyond = np.flatnonzero(enclosed & slab)
        voxels.append(low * above.size + beyond)
        regions.append(first + labels.reshape(-1)[beyond].astype(np.int64))
        slab[...] = enclosed
        first, above = first + count, bottom
    outside = np.zeros(first + 1, dtype=bool)
    outside[shells[1:]] = True
    met = np.concatenate(meetings, axis=1)
    known = -1
    while known < (known := int(np.count_nonzero(outside))):
        outside[met[:, outside[met].any(axis=0)]] = True
    shell.reshape(-1)[np.concatenate(voxels)[outside[np.concatenate(regions)]]] = False
    return np.ascontiguousarray(shell[1:-1, 1:-1, 1:-1])


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
