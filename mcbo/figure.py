"""Pictures of a case."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from mcbo.field import warp
from mcbo.phantom import Phantom
from mcbo.types import Displacement

_ARROW_EVERY = 8  # voxels


def draw_case(path: Path, phantom: Phantom, displacement: Displacement, *, titles: Sequence[str]) -> None:
    """Draws fixed, moving, warped images and displacement in the middle slice of axis 1.

    Args:
        path: of the PNG.
        phantom: the images.
        displacement: found for all moving images, ``(1, 3, H, W, D)`` voxels.
        titles: names of the fixed and the moving images.
    """
    index = phantom.fixed.shape[3] // 2
    figure = Figure(figsize=(13, 7.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 4)
    fixed = _slice(phantom.fixed, index)
    for row, (name, moving) in enumerate(zip(titles[1:], (phantom.cet1, phantom.t2), strict=True)):
        image = _slice(moving, index)
        warped = _slice(warp(moving, displacement), index)
        _show(axes[row, 0], fixed, f"fixed: {titles[0]}")
        _show(axes[row, 1], image, f"moving: {name}")
        _show(axes[row, 2], warped, f"warped {name}")
        for axis in (axes[row, 1], axes[row, 2]):  # outlines of what the fixed image shows, to judge by
            axis.contour(_smooth(fixed), levels=[0.45 * float(_smooth(fixed).max())], colors="#e69f00", linewidths=0.7)
    _show_displacement(axes[0, 3], displacement, index, "displacement found")
    _show_displacement(axes[1, 3], phantom.displacement, index, "displacement, truth")
    figure.suptitle("MCBO demo: outlines of bright echoes in orange; arrows point from fixed to moving; magnitude in voxels")
    figure.savefig(path, format="png", dpi=110)


def _slice(volume: Tensor, index: int) -> Tensor:
    return volume[0, 0, :, index].cpu()


def _smooth(image: Tensor) -> Tensor:
    kernel = np.hanning(9)[1:-1]
    kernel /= kernel.sum()
    smooth = np.apply_along_axis(np.convolve, 0, image.numpy(), kernel, mode="same")
    return Tensor(np.apply_along_axis(np.convolve, 1, smooth, kernel, mode="same"))


def _show(axis: Axes, image: Tensor, title: str) -> None:
    axis.imshow(image.numpy(), cmap="gray", vmin=0, vmax=float(np.quantile(image.numpy(), 0.995)))
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()


def _show_displacement(axis: Axes, displacement: Displacement, index: int, title: str) -> None:
    field = displacement[0, :, :, index].cpu().numpy()
    drawn = axis.imshow(np.linalg.norm(field, axis=0), cmap="viridis", vmin=0)
    rows, columns = np.mgrid[: field.shape[1], : field.shape[2]][:, ::_ARROW_EVERY, ::_ARROW_EVERY]
    arrows = field[:, ::_ARROW_EVERY, ::_ARROW_EVERY]
    axis.quiver(columns, rows, arrows[2], arrows[0], color="white", angles="xy", scale_units="xy", scale=0.7, width=0.006)
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()
    axis.figure.colorbar(drawn, ax=axis, shrink=0.8)
