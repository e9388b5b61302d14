"""The images and the displacement of a pair, made small enough for the page, whose planes then show any slice."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from isal import igzip
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mcbo.core.field import sample, shape_of
from mcbo.core.types import Displacement, Shape, Volume
from mcbo.geometry.grid import SLAB_VOXELS, voxel_size_mm
from mcbo.qc.lengths import Lengths
from mcbo.qc.picture import grays
from mcbo.qc.plane import Array, nearest_axes
from mcbo.qc.view import PairImages

MOST_VOXELS = 800_000
"""Of an image on the page, 93³: with three of them, a pair takes 1 to 4 MB."""
MOST_VOXELS_OF_ALL = 12 * MOST_VOXELS
"""Pairs of a page share this, so that a page of hundreds remains one that browsers open."""
_LEAST_VOXELS = 1000
_NODES_SHARE = 0.125
"""Of the voxels, those at which the displacement is kept, which is smoother than images are."""
_COUNTS = 32_767
"""Steps of a displacement's components, from zero to the largest."""


@dataclass(frozen=True)
class SmallVolumes:
    """A pair in small. Bytes are compressed (``packed``); their axes are those of the fixed grid, axis 2 fastest.

    Attributes:
        shape: voxels of the fixed grid.
        image_shape: of the images, each voxel of which is a mean; half-pixel corners, as ``core.field.resize`` has them.
        node_shape: where the displacement is kept; the outermost nodes are the grid's outermost voxels.
        images: ``fixed``, ``moving`` and ``warped`` as 8 bits, black to white, and ``seen``, how much of a voxel the fixed
            image's field of view covers; none without images.
        displacement: components, 16 bits, one after the other.
        voxels_per_count: unit of its numbers.
        largest_error_mm: by how much the displacement between nodes differs from the file, at most.
        place: voxel to world (RAS), ``(3, 4)``, in the unit of the page.
        along: displacement in voxels to what is told of it, ``(3, 3)``, in the same unit: RAS, or X, Y, Z of microscopes.
    """

    shape: Shape
    image_shape: Shape
    node_shape: Shape
    images: dict[str, bytes]
    displacement: bytes
    voxels_per_count: float
    largest_error_mm: float
    place: Array
    along: Array


def make_small(
    images: PairImages | None, displacement: Displacement, affine: Array, lengths: Lengths, *, most_voxels: int = MOST_VOXELS
) -> SmallVolumes:
    """A pair in small: images on the displacement's grid, whose affine, voxel to world (mm), is ``(4, 4)``."""
    shape, spacing_mm = shape_of(displacement), voxel_size_mm(affine)
    image_shape = coarser(shape, spacing_mm, most_voxels)
    nodes = functional.interpolate(
        displacement, size=coarser(shape, spacing_mm, round(most_voxels * _NODES_SHARE)), mode="trilinear", align_corners=True
    )
    step = max(float(nodes.abs().max()), 1e-9) / _COUNTS
    counts = (nodes / step).round().to(torch.int16)
    small = {}
    if images is not None:
        for name, volume, (black, white) in (
            ("fixed", images.fixed, images.fixed_window),
            ("moving", images.moving, images.moving_window),
            ("warped", images.warped, images.moving_window),
            ("seen", images.seen, (0.0, 1.0)),
        ):
            mean = functional.adaptive_avg_pool3d(volume.float(), image_shape)
            small[name] = packed(grays(mean[0, 0].numpy(), black=black, white=white))
    return SmallVolumes(
        shape=shape,
        image_shape=image_shape,
        node_shape=shape_of(nodes),
        images=small,
        displacement=packed(counts[0].numpy()),
        voxels_per_count=step,
        largest_error_mm=_largest_error_mm(displacement, counts.float() * step, affine),
        place=affine[:3] * lengths.per_mm,
        along=_along(affine, lengths),
    )


def coarser(shape: Shape, spacing_mm: tuple[float, float, float], most: int) -> Shape:
    """The voxels of a coarser grid of the same extent, at most ``most``: the finest axes lose first, none has fewer than 2."""
    most = max(most, _LEAST_VOXELS)
    low, high = math.log(min(spacing_mm)), math.log(max(n * side for n, side in zip(shape, spacing_mm, strict=True)))

    def at(side_mm: float) -> Shape:
        i, j, k = (min(n, max(2, math.floor(n * side / side_mm))) for n, side in zip(shape, spacing_mm, strict=True))
        return i, j, k

    if math.prod(shape) <= most:
        return shape
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if math.prod(at(math.exp(middle))) > most else (low, middle)
    return at(math.exp(high))


def packed(array: NDArray[np.uint8] | NDArray[np.int16]) -> bytes:
    """The differences of neighbors, which compress better, little-endian, as gzip, the same each time."""
    flat = array.reshape(-1)
    with np.errstate(over="ignore"):
        steps = np.diff(flat, prepend=flat.dtype.type(0))  # modulo 2⁸ or 2¹⁶, as is the sum that undoes it
    return igzip.compress(steps.astype(flat.dtype.newbyteorder("<")).tobytes(), 2, mtime=0)


def _along(affine: Array, lengths: Lengths) -> Array:
    if not lengths.is_microscopy:
        return affine[:3, :3] * lengths.per_mm
    along = np.zeros((3, 3))
    for row, axis in enumerate(nearest_axes(affine)[0]):  # as the pictures' arrows have them
        along[row, axis] = voxel_size_mm(affine)[axis] * lengths.per_mm
    return along


def _largest_error_mm(displacement: Displacement, nodes: Tensor, affine: Array) -> float:
    squares = torch.zeros(())
    for axis, side in enumerate(voxel_size_mm(affine)):
        between = functional.interpolate(
            nodes[:, axis : axis + 1], size=shape_of(displacement), mode="trilinear", align_corners=True
        )
        squares = between.sub_(displacement[:, axis : axis + 1]).mul_(side).square_().add_(squares)
    return float(squares.max().sqrt())


def warped_whole(moving: Volume, displacement: Displacement) -> Volume:
    """``core.field.warp``, a few slices at a time, which takes less memory."""
    i, j, k = shape_of(moving)
    rows = max(1, SLAB_VOXELS // (j * k))
    parts = [
        sample(moving, displacement.narrow(2, first, min(rows, i - first)), offset=(first, 0, 0), outside="zeros")
        for first in range(0, i, rows)
    ]
    return torch.cat(parts, dim=2)
