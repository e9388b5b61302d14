"""The built-in demo: a phantom written as a dataset folder, registered, scored, and drawn."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter

from evaluation.settings import from_options
from evaluation.summary import score, to_table
from mcbo.core.errors import InputError
from mcbo.core.field import lengths, warp
from mcbo.core.log import log
from mcbo.core.types import Displacement, Volume
from mcbo.dataset.learn2reg import read_json
from mcbo.io.files import no_empty_folder, prepare_folder, write_bytes
from mcbo.io.lock import hold
from mcbo.io.nifti import read_displacement, write_volume
from mcbo.methods.config import Preset
from mcbo.qc.findings import look_at
from mcbo.qc.page import write_page
from mcbo.qc.picture import Slice
from mcbo.runs.ledger import Outcome
from mcbo.runs.options import Options
from mcbo.runs.runner import run
from mcbo.runtime import check_device_name, select_device
from mcbo.studies.phantom import Phantom, make_phantom

SHAPE = (96, 80, 88)
VOXEL_MM = 1
TASK = "ReMIND2Reg"
_DESCRIPTION = "A phantom with known displacement, drawn by the demo; not patient data"
CHANNELS = {"0000": "iUS", "0001": "ceT1", "0002": "T2"}


def run_demo(options: Options, *, config: Preset) -> Outcome:
    """Writes ``dataset/``, ``results/``, ``demo.png`` and ``demo.html`` to ``options.output``; ``movings`` must be empty."""
    if options.movings:
        raise InputError("--demo: expected no --moving, since the demo shows both modalities")
    check_device_name(options.device)
    if options.scheduler is None:
        select_device(options.device)
    with no_empty_folder(options.output):
        prepare_folder(options.output)
        with hold(options.output / ".demo.lock"):
            _check_own(options.output / "dataset" / f"{TASK}_dataset.json")
            return _run(options, config)


def _check_own(path: Path) -> None:
    """Raises ``InputError`` if a dataset JSON is there that is not the demo's."""
    if path.is_file() and _DESCRIPTION not in path.read_bytes().decode("utf-8", "replace"):
        raise InputError(
            f"{path}: expected no dataset but the demo's, found another, which would be lost; choose another --output"
        )


def _run(options: Options, config: Preset) -> Outcome:
    phantom = make_phantom(SHAPE, wedge=True)
    dataset = write_dataset(phantom, options.output / "dataset")
    results = options.output / "results"
    outcome = run(read_json(dataset, split="val").cases, config, replace(options, output=results))
    if outcome.failed:
        return outcome
    table = to_table(score(dataset, results, from_options(["tre"])))
    picture = options.output / "demo.png"
    fields = [read_displacement(path) for path in outcome.written]
    write_bytes(picture, draw_case(phantom, fields))
    page = picture.with_suffix(".html")
    write_page(page, look_at(results / options.report_name))
    for name, row in table.iterrows():
        log.info("%s: TRE %.2f mm before, %.2f mm after", name, row["TRE_lm_initial"], row["TRE_lm"])
    before, after = table["TRE_lm_initial"].mean(), table["TRE_lm"].mean()
    log.info("mean TRE %.2f mm → %.2f mm (%.0f %% less)", before, after, 100 * (1 - after / before))
    log.info("dataset: %s", dataset)
    log.info("displacements and report: %s", results)
    log.info("picture: %s", picture)
    log.info("page: %s", page)
    return outcome


def write_dataset(phantom: Phantom, folder: Path, *, case: str = "0001") -> Path:
    """Writes a phantom, with voxels of ``VOXEL_MM``, as a case of a Learn2Reg dataset folder; returns the path of its JSON."""
    names = [f"{TASK}_{case}_{channel}" for channel in CHANNELS]
    points = (phantom.fixed_landmarks, phantom.moving_landmarks, phantom.moving_landmarks)
    for name, image, landmarks in zip(names, (phantom.fixed, phantom.cet1, phantom.t2), points, strict=True):
        write_volume(folder / "imagesTr" / f"{name}.nii.gz", image, np.diag([VOXEL_MM, VOXEL_MM, VOXEL_MM, 1.0]))
        table = "".join(",".join(f"{value:.3f}" for value in point) + "\n" for point in landmarks)
        write_bytes(folder / "landmarksTr" / f"{name}.csv", table.encode("ascii"))
    fixed, *movings = (f"./imagesTr/{name}.nii.gz" for name in names)
    pairs = [{"fixed": fixed, "moving": moving} for moving in movings]
    content = {
        "name": TASK,
        "description": _DESCRIPTION,
        "simulated": True,
        "licence": "Apache-2.0",
        "modality": {str(index): name for index, name in enumerate(CHANNELS.values())},
        "tensorImageShape": {str(index): SHAPE for index in range(len(CHANNELS))},
        "numRegistration_val": len(pairs),
        "registration_val": pairs,
    }
    path = folder / f"{TASK}_dataset.json"
    write_bytes(path, (json.dumps(content, indent=1) + "\n").encode("ascii"))
    return path


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
            axis.set_title(title, fontsize=11)
            axis.set_title(f" {letter}", fontsize=13, fontweight="bold", loc="left")
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
