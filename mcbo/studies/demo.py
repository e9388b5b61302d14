"""The built-in demo: a phantom written as a dataset folder, registered, scored, and drawn."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
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
    """Writes a phantom, with voxels of 1 mm, as a case of a Learn2Reg dataset folder; returns the path of its JSON."""
    names = [f"{TASK}_{case}_{channel}" for channel in CHANNELS]
    points = (phantom.fixed_landmarks, phantom.moving_landmarks, phantom.moving_landmarks)
    for name, image, landmarks in zip(names, (phantom.fixed, phantom.cet1, phantom.t2), points, strict=True):
        write_volume(folder / "imagesTr" / f"{name}.nii.gz", image, np.eye(4))
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
_OUTLINES = {0.2: "#56b4e9", 0.65: "#e69f00"}  # colors, by intensity relative to the largest of the smoothed fixed image


def draw_case(phantom: Phantom, displacements: Sequence[Displacement]) -> bytes:
    """PNG of the images and the displacements found for ceT1 and for T2 in the middle slice of axis 1."""
    titles = list(CHANNELS.values())
    index = phantom.fixed.shape[3] // 2
    figure = Figure(figsize=(13, 7.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 4)
    fixed = _slice(phantom.fixed, index)
    smooth = gaussian_filter(fixed, 1.8)  # suppresses speckle
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
    largest = float(lengths(phantom.displacement).max())
    _show_displacement(axes[0, 3], displacements[0], index, f"displacement found for {titles[1]}, voxels", largest)
    _show_displacement(axes[1, 3], phantom.displacement, index, "true displacement, voxels", largest)
    figure.suptitle(
        "Outlines: what the fixed image shows bright (orange) and dark (blue); they should fit the warped images. "
        "Arrows: from fixed to moving."
    )
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    return drawn.getvalue()


def _slice(volume: Volume, index: int) -> Slice:
    return volume[0, 0, :, index].numpy()


def _show(axis: Axes, image: Slice, title: str) -> None:
    axis.imshow(image, cmap="gray", vmin=0, vmax=float(np.quantile(image, 0.995)))
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()


def _show_displacement(axis: Axes, displacement: Displacement, index: int, title: str, largest: float) -> None:
    field = displacement[0, :, :, index].numpy()
    drawn = axis.imshow(np.linalg.norm(field, axis=0), cmap="viridis", vmin=0, vmax=largest)
    rows, columns = np.mgrid[: field.shape[1], : field.shape[2]][:, ::_ARROW_EVERY, ::_ARROW_EVERY]
    arrows = field[:, ::_ARROW_EVERY, ::_ARROW_EVERY]
    axis.quiver(columns, rows, arrows[2], arrows[0], color="white", angles="xy", scale_units="xy", scale=0.7, width=0.006)
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()
    axis.figure.colorbar(drawn, ax=axis, shrink=0.8)
