"""The built-in demo: a phantom written as a dataset folder, registered, scored, and drawn."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from mcbo.core.errors import InputError
from mcbo.dataset.learn2reg import read_json
from mcbo.io.files import no_empty_folder, prepare_folder, write_bytes
from mcbo.io.lock import hold
from mcbo.io.nifti import write_volume
from mcbo.methods.config import Preset
from mcbo.runs.ledger import Outcome
from mcbo.runs.options import Options
from mcbo.runs.runner import run
from mcbo.runtime import check_device_name, select_device
from mcbo.studies.phantom import VOXEL_MM, Phantom, make_phantom

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
    with ThreadPoolExecutor(1) as beside:
        loading = beside.submit(_load_what_shows)
        phantom = make_phantom(SHAPE, wedge=True)
        dataset = write_dataset(phantom, options.output / "dataset")
        results = options.output / "results"
        outcome = run(read_json(dataset, split="val").cases, config, replace(options, output=results))
    if not outcome.failed:
        show = loading.result()
        show(phantom, dataset, results / options.report_name, outcome.written, options.output / "demo.png")
    return outcome


def _load_what_shows() -> Callable[[Phantom, Path, Path, Sequence[Path], Path], None]:
    from mcbo.studies.demo_results import show_results

    return show_results


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
