"""Pictures of a case."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter
from torch import Tensor

from mcbo.field import warp
from mcbo.phantom import Phantom
from mcbo.types import Displacement

_ARROW_EVERY = 8  # voxels
_OUTLINES = {0.2: "#56b4e9", 0.65: "#e69f00"}  # colors, at parts of the largest smoothed echo


def draw_case(path: Path, phantom: Phantom, displacements: Sequence[Displacement], *, titles: Sequence[str]) -> None:
    """Draws fixed, moving, warped images and displacement in the middle slice of axis 1.

    Args:
        path: of the PNG.
        phantom: the images.
        displacements: found for ceT1 and for T2, each ``(1, 3, H, W, D)`` voxels.
        titles: names of the fixed and the moving images.
    """
    index = phantom.fixed.shape[3] // 2
    figure = Figure(figsize=(13, 7.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 4)
    fixed = _slice(phantom.fixed, index)
    smooth = gaussian_filter(fixed.numpy(), 1.8)  # through the speckle
    movings = zip(titles[1:], (phantom.cet1, phantom.t2), displacements, strict=True)
    for row, (name, moving, displacement) in enumerate(movings):
        image = _slice(moving, index)
        warped = _slice(warp(moving, displacement), index)
        _show(axes[row, 0], fixed, f"fixed: {titles[0]}")
        _show(axes[row, 1], image, f"moving: {name}")
        _show(axes[row, 2], warped, f"warped {name}")
        for axis in (axes[row, 1], axes[row, 2]):
            levels = [part * float(smooth.max()) for part in _OUTLINES]
            axis.contour(smooth, levels=levels, colors=list(_OUTLINES.values()), linewidths=0.9)
    largest = float(phantom.displacement.norm(dim=1).max())
    _show_displacement(axes[0, 3], displacements[0], index, f"displacement found for {titles[1]}, voxels", largest)
    _show_displacement(axes[1, 3], phantom.displacement, index, "true displacement, voxels", largest)
    figure.suptitle(
        "Outlines: what the fixed image shows bright (orange) and dark (blue); they should fit the warped images. "
        "Arrows: from fixed to moving."
    )
    figure.savefig(path, format="png", dpi=110)


def _slice(volume: Tensor, index: int) -> Tensor:
    return volume[0, 0, :, index].cpu()


def _show(axis: Axes, image: Tensor, title: str) -> None:
    axis.imshow(image.numpy(), cmap="gray", vmin=0, vmax=float(np.quantile(image.numpy(), 0.995)))
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()


def _show_displacement(axis: Axes, displacement: Displacement, index: int, title: str, largest: float) -> None:
    field = displacement[0, :, :, index].cpu().numpy()
    drawn = axis.imshow(np.linalg.norm(field, axis=0), cmap="viridis", vmin=0, vmax=largest)
    rows, columns = np.mgrid[: field.shape[1], : field.shape[2]][:, ::_ARROW_EVERY, ::_ARROW_EVERY]
    arrows = field[:, ::_ARROW_EVERY, ::_ARROW_EVERY]
    axis.quiver(columns, rows, arrows[2], arrows[0], color="white", angles="xy", scale_units="xy", scale=0.7, width=0.006)
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()
    axis.figure.colorbar(drawn, ax=axis, shrink=0.8)
