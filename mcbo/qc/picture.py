"""Slices of images and maps as PNG bytes, with square pixels whatever the voxel size."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mcbo.qc.plane import Plane

Slice = NDArray[np.float32]

MOST_PIXELS = 384
"""Longest side of a picture; the page shows three side by side, and a pair has to stay below 6 MB."""
_EDGE_PIXELS = 512
"""Longest side of a drawing of edges, which compresses well and so can be finer than the voxels."""
_EDGE_WIDTH = 1.8
"""Standard deviation of the smoothing before edge detection, in the finest voxel size; less would show speckle."""
_EDGE_SHARE = 0.2
"""Edges are sought among this share of the pixels in the field of view, those with the steepest gradient."""
_EDGE_COLORS = {"none": (0, 0, 0, 0), "edge": (255, 176, 0, 255), "beside it": (0, 0, 0, 150)}
"""Red, green, blue, opacity: orange with a dark rim, visible on bright and on dark tissue."""


@dataclass(frozen=True)
class Scale:
    """A matplotlib color map, safe for the color-blind, and the numbers at its ends; numbers beyond get the end colors."""

    colors: str
    low: float
    high: float


def window(volume: NDArray[np.float32]) -> tuple[float, float]:
    """The intensities of an ``(H, W, D)`` volume to show as black and white: robust to outliers and to a large background."""
    step = max(1, round((volume.size / 2e6) ** (1 / 3)))  # a sample of some 2 million voxels
    seen = volume[::step, ::step, ::step]
    above = seen[seen > seen.min()]
    black = float(np.quantile(seen, 0.005))
    white = float(np.quantile(above, 0.995)) if above.size else black
    return black, white if white > black else black + 1


def pixels(plane: Plane, *, longest: int | None = None) -> tuple[int, int]:
    """Width and height of a plane's picture, in square pixels of the finest voxel size: at most ``MOST_PIXELS`` a side.

    ``longest`` sets the longer side instead.
    """
    width, height = plane.size_mm
    side = longest or min(MOST_PIXELS, max(width, height) / min(plane.spacing_mm))
    scale = side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def gray_png(image: Slice, plane: Plane, *, black: float, white: float) -> bytes:
    """An image of the plane, ``(rows, columns)``, in gray."""
    return _png(Image.fromarray(grays(_resized(image, pixels(plane), Image.Resampling.BILINEAR), black=black, white=white)))


def grays(image: NDArray[np.float32], *, black: float, white: float) -> NDArray[np.uint8]:
    """Intensities of any shape as 8 bits: 0 is black, 255 white."""
    parts = np.clip((image - black) / (white - black), 0, 1)
    return np.asarray(np.rint(parts * 255), dtype=np.uint8)


def color_png(values: Slice, plane: Plane, scale: Scale, *, marked: NDArray[np.bool_] | None = None) -> bytes:
    """Numbers on the plane, ``(rows, columns)``, in the colors of a scale, and those ``marked`` in black.

    With ``marked``, the voxels are not interpolated, so that single ones stay visible.
    """
    size = pixels(plane)
    fine = _resized(values, size, Image.Resampling.BILINEAR if marked is None else Image.Resampling.NEAREST)
    # 255 indices for numbers, the last for marks.
    index = np.rint(np.clip((fine - scale.low) / (scale.high - scale.low), 0, 1) * 254).astype(np.uint8)
    if marked is not None:
        coarse = max(plane.shape[0] / size[1], plane.shape[1] / size[0])
        if coarse > 1:  # dilated by as much as the picture is coarser than the voxels, so that it skips none
            marked = ndimage.maximum_filter(marked, size=2 * math.ceil(coarse / 2) + 1)
        index[_resized(marked, size, Image.Resampling.NEAREST) > 0] = 255
    picture = Image.fromarray(index).convert("P")
    palette = (colormaps[scale.colors](np.linspace(0, 1, 255))[:, :3] * 255).round().astype(np.uint8)
    picture.putpalette(np.append(palette, [[0, 0, 0]], axis=0).astype(np.uint8).tobytes())
    return _png(picture)


def edge_png(image: Slice, plane: Plane, *, seen: NDArray[np.bool_]) -> bytes:
    """The edges of an image, ``(rows, columns)``, on transparency: zero crossings of the Laplacian where the gradient is steep.

    ``seen`` is the field of view, of the same shape; its outline is not an edge.
    """
    size = pixels(plane, longest=_EDGE_PIXELS)
    fine = _resized(image, size, Image.Resampling.BILINEAR)
    sigma = _EDGE_WIDTH * min(plane.spacing_mm) * size[0] / plane.size_mm[0]
    steep = ndimage.gaussian_gradient_magnitude(fine, sigma)
    inside = ndimage.gaussian_laplace(fine, sigma) > 0
    crossing = inside & ~ndimage.binary_erosion(inside, border_value=1)
    shown = ndimage.binary_erosion(_resized(seen, size, Image.Resampling.NEAREST) > 0, iterations=math.ceil(1.5 * sigma))
    edges = crossing & shown
    if edges.any():
        edges &= steep >= np.quantile(steep[shown], 1 - _EDGE_SHARE)
    edges = ndimage.binary_dilation(edges)
    rim = ndimage.binary_dilation(edges) & ~edges
    picture = Image.fromarray((edges + 2 * rim).astype(np.uint8)).convert("P")
    picture.putpalette(bytes(part for color in _EDGE_COLORS.values() for part in color[:3]))
    return _png(picture, opacity=bytes(color[3] for color in _EDGE_COLORS.values()))


def overlaid(pairs: Sequence[tuple[bytes, bytes]], *, height: int, gap: int = 4) -> bytes:
    """Pictures side by side, each with a transparent one over it, scaled to a height in pixels."""
    shown = []
    for pair in pairs:
        below, above = (Image.open(io.BytesIO(png)).convert("RGBA") for png in pair)
        size = max(1, round(height * below.width / below.height)), height
        shown.append(Image.alpha_composite(below.resize(size), above.resize(size)))
    whole = Image.new("RGB", (sum(picture.width + gap for picture in shown) - gap, height))
    left = 0
    for picture in shown:
        whole.paste(picture, (left, 0))
        left += picture.width + gap
    return _png(whole)


def color_steps(scale: Scale, *, count: int = 9) -> list[str]:
    """Evenly spaced colors of a scale, from low to high, as ``#rrggbb``."""
    return [to_hex(colormaps[scale.colors](part)) for part in np.linspace(0, 1, count)]


def _resized(image: Slice | NDArray[np.bool_], size: tuple[int, int], method: Image.Resampling) -> Slice:
    """Resized to a width and height in pixels; when shrinking, ``BILINEAR`` averages what a pixel covers."""
    picture = Image.fromarray(np.ascontiguousarray(image, dtype=np.float32))
    return np.asarray(picture.resize(size, method), dtype=np.float32)


def _png(picture: Image.Image, *, opacity: bytes | None = None) -> bytes:
    out = io.BytesIO()
    picture.save(out, format="PNG", optimize=True, transparency=opacity)
    return out.getvalue()
