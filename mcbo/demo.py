"""The built-in demo: a phantom written as a dataset folder, registered, scored and drawn."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from evaluation.settings import from_options
from evaluation.summary import score, to_table
from mcbo.config import Preset
from mcbo.dataset import read_json
from mcbo.errors import InputError
from mcbo.figure import draw_case
from mcbo.files import prepare_folder, write_whole
from mcbo.findings import look_at
from mcbo.html_report import write_page
from mcbo.ledger import Outcome
from mcbo.nifti import read_displacement, write_volume
from mcbo.options import Options
from mcbo.phantom import Phantom, make_phantom
from mcbo.runner import run

log = logging.getLogger("mcbo")

SHAPE = (96, 80, 88)
SPACING_MM = 1.0
CASE = "0001"
TASK = "ReMIND2Reg"
CHANNELS = {"0000": "iUS", "0001": "ceT1", "0002": "T2"}


def run_demo(options: Options, *, config: Preset) -> Outcome:
    """Makes the data set in ``OUTPUT/dataset``, results in ``OUTPUT/results``, ``OUTPUT/demo.png`` and ``.html`` to look at.

    Args:
        options: of the run; ``output`` is the demo's folder, ``movings`` must be empty.
        config: the preset to show.
    """
    if options.movings:
        raise InputError("--demo: expected no --moving, since the demo shows both modalities")
    prepare_folder(options.output)
    phantom = make_phantom(SHAPE, wedge=True)
    dataset = write_dataset(phantom, options.output / "dataset")
    results = options.output / "results"
    outcome = run(read_json(dataset, split="val").cases, config, replace(options, output=results))
    if outcome.failed:
        return outcome
    table = to_table(score(dataset, results, from_options(["tre"])))
    picture = options.output / "demo.png"
    fields = [read_displacement(path) for path in outcome.written]
    write_whole(picture, lambda file: draw_case(file, phantom, fields, titles=list(CHANNELS.values())))
    page = picture.with_suffix(".html")
    write_page(page, look_at(results / options.report_name))
    _tell(table, dataset, results, picture)
    log.info("page: %s", page)
    return outcome


def write_dataset(phantom: Phantom, folder: Path, *, case: str = CASE) -> Path:
    """Writes a phantom as a case of a Learn2Reg dataset folder; returns the path of its JSON."""
    affine: NDArray[np.float64] = np.diag([SPACING_MM] * 3 + [1.0])
    images = zip(CHANNELS, (phantom.fixed, phantom.cet1, phantom.t2), strict=True)
    for channel, image in images:
        name = f"{TASK}_{case}_{channel}"
        write_volume(folder / "imagesTr" / f"{name}.nii.gz", image, affine)
        points = phantom.fixed_landmarks if channel == "0000" else phantom.moving_landmarks
        table = pd.DataFrame(points)
        write_whole(
            folder / "landmarksTr" / f"{name}.csv",
            lambda file, table=table: table.to_csv(file, header=False, index=False, float_format="%.3f"),  # type: ignore[misc]
        )
    pairs = [
        {"fixed": f"./imagesTr/{TASK}_{case}_0000.nii.gz", "moving": f"./imagesTr/{TASK}_{case}_{channel}.nii.gz"}
        for channel in CHANNELS
        if channel != "0000"
    ]
    content = {
        "name": TASK,
        "description": "A phantom with known displacement, drawn by the demo; not patient data",
        "licence": "Apache-2.0",
        "modality": {str(index): name for index, name in enumerate(CHANNELS.values())},
        "tensorImageShape": {str(index): SHAPE for index in range(len(CHANNELS))},
        "numRegistration_val": len(pairs),
        "registration_val": pairs,
    }
    path = folder / f"{TASK}_dataset.json"
    write_whole(path, lambda file: file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8"))
    return path


def _tell(table: pd.DataFrame, dataset: Path, results: Path, picture: Path) -> None:
    for name, row in table.iterrows():
        log.info("%s: TRE %.2f mm before, %.2f mm after", name, row["TRE_lm_initial"], row["TRE_lm"])
    before, after = table["TRE_lm_initial"].mean(), table["TRE_lm"].mean()
    log.info("mean TRE %.2f mm → %.2f mm (%.0f %% less)", before, after, 100 * (1 - after / before))
    log.info("data set: %s", dataset)
    log.info("displacements and report: %s", results)
    log.info("picture: %s", picture)
