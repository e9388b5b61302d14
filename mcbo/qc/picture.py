"""Slices of images and maps as PNG: bytes that a page can hold. Pixels are square, whatever the voxels are."""

import io
import math
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
"""Longest side of a picture; a page shows three side by side, and a case has to stay below 5 MB."""
_EDGE_PIXELS = 512
"""Longest side of a drawing of edges; it is nearly empty, so it can be finer than the voxels."""
_EDGE_WIDTH = 1.8
"""Standard deviation, in the finest voxel size, of the smoothing before edges are looked for; less would show speckle."""
_EDGE_SHARE = 0.2
"""Of the pixels that show something, those with the steepest gradient may be edges."""
_EDGE_COLORS = {"none": (0, 0, 0, 0), "edge": (255, 176, 0, 255), "beside it": (0, 0, 0, 150)}
"""Orange with a dark rim, so that it shows on bright and on dark tissue; red, green, blue, opacity."""


@dataclass(frozen=True)
class Scale:
    """Colors for numbers.

    Attributes:
        colors: name of a matplotlib color map that the color-blind can read.
        low, high: what the first and the last color stand for; what lies beyond gets these.
    """

    colors: str
    low: float
    high: float


def window(volume: NDArray[np.float32]) -> tuple[float, float]:
    """The intensities to show as black and as white: without the rare extremes, whatever share the background has.

    Args:
        volume: ``(H, W, D)``, not constant.
    """
    step = max(1, round((volume.size / 2e6) ** (1 / 3)))  # some 2 million voxels say enough
    seen = volume[::step, ::step, ::step]
    above = seen[seen > seen.min()]
    black = float(np.quantile(seen, 0.005))
    white = float(np.quantile(above, 0.995)) if above.size else black
    return black, white if white > black else black + 1


def pixels(plane: Plane, *, longest: int | None = None) -> tuple[int, int]:
    """Width and height of the picture of a plane: square pixels of the finest voxel size, at most ``MOST_PIXELS`` a side.

    Args:
        plane: the plane.
        longest: the longer side, if it has to be that.
    """
    width, height = plane.size_mm
    side = longest or min(MOST_PIXELS, max(width, height) / min(plane.spacing_mm))
    scale = side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def gray_png(image: Slice, plane: Plane, *, black: float, white: float) -> bytes:
    """An image of the plane, ``(rows, columns)``, in gray."""
    fine = _resized(image, pixels(plane), Image.Resampling.BILINEAR)
    return _png(Image.fromarray(_bytes((fine - black) / (white - black))))


def color_png(values: Slice, plane: Plane, scale: Scale, *, marked: NDArray[np.bool_] | None = None) -> bytes:
    """Numbers on the plane in the colors of a scale.

    Args:
        values: ``(rows, columns)``.
        plane: the plane.
        scale: its last color is left to what is marked, if anything may be.
        marked: what to show black; drawn voxel by voxel then, so that single voxels stay visible.
    """
    method = Image.Resampling.BILINEAR if marked is None else Image.Resampling.NEAREST
    fine = _resized(values, pixels(plane), method)
    # 255 indices for numbers, the last for marks.
    index = np.rint(np.clip((fine - scale.low) / (scale.high - scale.low), 0, 1) * 254).astype(np.uint8)
    if marked is not None:
        # A voxel that a smaller picture would skip still shows.
        index[_resized(_grown(marked, plane), pixels(plane), Image.Resampling.NEAREST) > 0] = 255
    picture = Image.fromarray(index).convert("P")
    palette = (colormaps[scale.colors](np.linspace(0, 1, 255))[:, :3] * 255).round().astype(np.uint8)
    picture.putpalette(np.append(palette, [[0, 0, 0]], axis=0).astype(np.uint8).tobytes())
    return _png(picture)


def edge_png(image: Slice, plane: Plane, *, seen: NDArray[np.bool_]) -> bytes:
    """The edges of an image, all else transparent: zero crossings of the Laplacian where the gradient is steep.

    Args:
        image: ``(rows, columns)``.
        plane: the plane.
        seen: of the same shape; where the image shows something. The outline of that is no edge.
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
    out = io.BytesIO()
    picture.save(out, format="PNG", transparency=bytes(color[3] for color in _EDGE_COLORS.values()), optimize=True)
    return out.getvalue()


def color_steps(scale: Scale, *, count: int = 9) -> list[str]:
    """Some of a scale's colors from low to high, as ``#rrggbb``."""
    return [to_hex(colormaps[scale.colors](part)) for part in np.linspace(0, 1, count)]


def _grown(marked: NDArray[np.bool_], plane: Plane) -> Slice:
    """Marks that reach as far as the picture is coarser than the voxels."""
    width, height = pixels(plane)
    coarse = max(plane.shape[0] / height, plane.shape[1] / width)
    if coarse > 1:
        marked = ndimage.maximum_filter(marked, size=2 * math.ceil(coarse / 2) + 1)
    return marked.astype(np.float32)


def _resized(image: Slice | NDArray[np.bool_], size: tuple[int, int], method: Image.Resampling) -> Slice:
    """To so many pixels of width and height; going down, linear interpolation averages what a pixel covers."""
    picture = Image.fromarray(np.ascontiguousarray(image, dtype=np.float32))
    return np.asarray(picture.resize(size, method), dtype=np.float32)


def _bytes(image: Slice) -> NDArray[np.uint8]:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, format="PNG", optimize=True)
    return out.getvalue()
