"""What the demo shows of its results: scores, a picture, and the page of the report.

A module of its own, since its imports take a second: ``demo.py`` loads it while the case is registered.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter

from evaluation.settings import from_options
from evaluation.summary import score, to_table
from mcbo.core.field import lengths, warp
from mcbo.core.log import log
from mcbo.core.types import Displacement, Volume
from mcbo.io.files import write_bytes
from mcbo.io.nifti import read_displacement
from mcbo.qc.findings import look_at
from mcbo.qc.page import write_page
from mcbo.qc.picture import Slice
from mcbo.studies.phantom import VOXEL_MM, Phantom


def show_results(phantom: Phantom, dataset: Path, report: Path, written: Sequence[Path], picture: Path) -> None:
    """Scores the displacements ``written`` of a phantom, draws them, writes the page beside the picture, and says so."""
    page = picture.with_suffix(".html")
    with ThreadPoolExecutor(1) as beside:
        paging = beside.submit(lambda: write_page(page, look_at(report)))
        table = to_table(score(dataset, report.parent, from_options(["tre"])))
        write_bytes(picture, draw_case(phantom, [read_displacement(path) for path in written]))
        paging.result()
    for name, row in table.iterrows():
        log.info("%s: TRE %.2f mm before, %.2f mm after", name, row["TRE_lm_initial"], row["TRE_lm"])
    before, after = table["TRE_lm_initial"].mean(), table["TRE_lm"].mean()
    log.info("mean TRE %.2f mm → %.2f mm (%.0f %% less)", before, after, 100 * (1 - after / before))
    log.info("dataset: %s", dataset)
    log.info("displacements and report: %s", report.parent)
    log.info("picture: %s", picture)
    log.info("page: %s", page)


_ARROW_EVERY = 8  # voxels
_BAR_MM = 20
_OUTLINES = {0.2: "#56b4e9", 0.65: "#e69f00"}  # colors, by intensity relative to the largest of the smoothed fixed image


def draw_case(phantom: Phantom, displacements: Sequence[Displacement]) -> bytes:
    """PNG of the middle slice of axis 1: a row for each displacement found, for ceT1 and perhaps for T2.

    Moving and warped image have one gray window. The row for T2 ends with the true displacement. One row needs a caption.
    """
    index = phantom.fixed.shape[3] // 2
    figure = Figure(figsize=(13, 3.7 * len(displacements)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(displacements), 4, squeeze=False)
    fixed = _slice(phantom.fixed, index)
    smooth = gaussian_filter(fixed, 1.8)  # suppresses speckle
    outlines = [part * float(smooth.max()) for part in _OUTLINES]
    largest_mm = float(lengths(phantom.displacement).max()) * VOXEL_MM
    movings = (
        ("ceT1", phantom.cet1, "displacement found", displacements[0]),
        ("T2", phantom.t2, "true displacement", phantom.displacement),
    )
    rows = zip(axes, movings, displacements, strict=False)
    for number, (row, (name, moving, kind, shown), displacement) in enumerate(rows):
        images = fixed, _slice(moving, index), _slice(warp(moving, displacement), index)
        white = [float(np.quantile(part, 0.995)) for part in (fixed, np.stack(images[1:]))]
        _show(row[0], images[0], white[0])
        for axis, image in zip(row[1:3], images[1:], strict=True):
            _show(axis, image, white[1])
            axis.contour(smooth, levels=outlines, colors=list(_OUTLINES.values()), linewidths=0.9)
        _show_displacement(row[3], shown, index, largest_mm)
        titles = ("fixed: iUS", f"moving: {name}", f"warped {name}", f"{kind}, mm")
        for axis, title, letter in zip(row, titles, "abcdefgh"[4 * number :], strict=False):
            axis.set_title(title, fontsize=11, y=1)  # a given height is not sought, which takes long
            axis.set_title(f" {letter}", fontsize=13, fontweight="bold", loc="left", y=1)
            _draw_scale_bar(axis)
    if len(displacements) > 1:
        figure.suptitle(
            "Outlines: what the fixed image shows bright (orange) and dark (blue); they should fit the warped images (c, g). "
            "Arrows: from fixed to moving."
        )
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    return drawn.getvalue()


def _slice(volume: Volume, index: int) -> Slice:
    return volume[0, 0, :, index].numpy()


def _show(axis: Axes, image: Slice, white: float) -> None:
    axis.imshow(image, cmap="gray", vmin=0, vmax=white)
    axis.set_axis_off()


def _show_displacement(axis: Axes, displacement: Displacement, index: int, largest_mm: float) -> None:
    field = displacement[0, :, :, index].numpy()
    drawn = axis.imshow(np.linalg.norm(field, axis=0) * VOXEL_MM, cmap="viridis", vmin=0, vmax=largest_mm)
    rows, columns = np.mgrid[: field.shape[1], : field.shape[2]][:, ::_ARROW_EVERY, ::_ARROW_EVERY]
    arrows = field[:, ::_ARROW_EVERY, ::_ARROW_EVERY]
    axis.quiver(columns, rows, arrows[2], arrows[0], color="white", angles="xy", scale_units="xy", scale=0.7, width=0.006)
    axis.set_axis_off()
    axis.figure.colorbar(drawn, ax=axis, shrink=0.8, label="mm")


def _draw_scale_bar(axis: Axes) -> None:
    """In the lower left corner."""
    edge = [patheffects.withStroke(linewidth=3, foreground="black")]
    height = axis.get_ylim()[0]  # the lower edge: rows run down
    start, end = 4, 4 + _BAR_MM / VOXEL_MM
    axis.plot([start, end], [height - 4, height - 4], color="white", linewidth=2.5, path_effects=edge)
    axis.text(start, height - 6, f"{_BAR_MM} mm", color="white", fontsize=9, va="bottom", path_effects=edge)
