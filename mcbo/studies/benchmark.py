"""How long a registration takes and how much memory, stage by stage, from files to file, on a phantom of any size."""

import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from mcbo.core.errors import InputError, McboError
from mcbo.core.field import format_shape
from mcbo.core.types import Shape
from mcbo.dataset.folders import Folder
from mcbo.dataset.learn2reg import scan_folder
from mcbo.io.files import write_whole
from mcbo.io.nifti import write_volume
from mcbo.methods.config import Preset
from mcbo.methods.memory_model import PROCESS_GB
from mcbo.report import CaseReport, read_report
from mcbo.runs.options import Options
from mcbo.runs.runner import run
from mcbo.runtime import describe_device, describe_machine, select_device, versions
from mcbo.studies.phantom import make_phantom

MIN_SIZE = 16
"""Smaller phantoms have too little in them."""
_WARM_UP_SIZE = 16


@dataclass(frozen=True)
class Stage:
    """What a stage took: median seconds over runs, and the highest peak of memory among them."""

    seconds: float
    peak_memory_gb: float


@dataclass(frozen=True)
class Measurement:
    """What a case took, from files to file.

    Attributes:
        shape: voxels.
        movings: moving images.
        seconds: median over runs.
        microseconds_per_voxel: the same, over voxels.
        peak_memory_gb: the highest of all stages: of the process on a CPU, of the tensors on a GPU.
        model_gb: what the memory model says that the tensors take.
        stages: by name.
    """

    shape: Shape
    movings: int
    seconds: float
    microseconds_per_voxel: float
    peak_memory_gb: float
    model_gb: float
    stages: dict[str, Stage]


def measure(sizes: Sequence[int], *, config: Preset, options: Options, movings: int, repeat: int) -> list[Measurement]:
    """Registers a phantom of each size, as a file of ``size``³ voxels, ``repeat`` times in this process, warm.

    Args:
        sizes: voxels along each axis.
        config: the preset.
        movings: 1 for the phantom's ceT1, 2 for ceT1 and T2.
        options: device and kernels; where results go is not used.
        repeat: runs of each size.

    Raises:
        InputError: if a size or a count makes no sense.
        McboError: if a run fails.
    """
    limits = (("--size or --scaling", min(sizes), MIN_SIZE), ("--repeat", repeat, 1), ("--modalities", movings, 1))
    for option, value, least in limits:
        if value < least:
            raise InputError(f"{option}: expected at least {least}, got {value}")
    if movings > 2:
        raise InputError(f"--modalities: expected 1 or 2, got {movings}")
    _measure_one(_WARM_UP_SIZE, config, options, movings, 1)
    return [_measure_one(size, config, options, movings, repeat) for size in sizes]


def _measure_one(size: int, config: Preset, options: Options, movings: int, repeat: int) -> Measurement:
    shape = (size, size, size)
    with tempfile.TemporaryDirectory(prefix="mcbo-benchmark-") as folder:
        _write_phantom(shape, movings, Path(folder) / "input")
        cases = scan_folder(Folder(Path(folder) / "input")).cases
        options = replace(options, output=Path(folder) / "output", overwrite=True)
        done: list[CaseReport] = []
        for _ in range(repeat):
            outcome = run(cases, config, options)
            if outcome.failed:
                raise McboError(f"benchmark: {next(iter(outcome.failed.values()))}")
            done += read_report(options.output / options.report_name).cases.values()
    stages = {
        name: Stage(
            seconds=statistics.median(case.stages[name].seconds for case in done),
            peak_memory_gb=max(case.stages[name].peak_memory_mb for case in done) / 1000,
        )
        for name in done[0].stages
    }
    seconds = statistics.median(case.seconds for case in done)
    return Measurement(
        shape=shape,
        movings=movings,
        seconds=seconds,
        microseconds_per_voxel=1e6 * seconds / size**3,
        peak_memory_gb=max(stage.peak_memory_gb for stage in stages.values()),
        model_gb=config.peak_bytes(shape, movings=config.joint(movings)) / 1e9,
        stages=stages,
    )


def _write_phantom(shape: Shape, movings: int, folder: Path) -> None:
    phantom = make_phantom(shape, wedge=True)
    for channel, image in enumerate((phantom.fixed, phantom.cet1, phantom.t2)[: 1 + movings]):
        write_volume(folder / f"Phantom_0001_{channel:04}.nii.gz", image, np.eye(4))


def describe_run(config: Preset, device: str) -> dict[str, str]:
    """What a figure is worth nothing without: machine, device, versions, preset."""
    return {
        "preset": config.name,
        "device": describe_device(select_device(device)),
        "machine": describe_machine(),
        **versions(),
    }


def to_text(about: dict[str, str], measurements: Sequence[Measurement]) -> str:
    """The stages of a single size as a table, or one line for each of several sizes."""
    lines = [f"{name}: {value}" for name, value in about.items()] + [""]
    if len(measurements) == 1:
        (one,) = measurements
        lines += [
            f"phantom of {format_shape(one.shape)} voxels, {one.movings} moving image(s), from files to file",
            "",
            f"{'stage':24}{'seconds':>10}{'peak GB':>10}",
            *(f"{name:24}{stage.seconds:10.2f}{stage.peak_memory_gb:10.2f}" for name, stage in one.stages.items()),
            f"{'all':24}{one.seconds:10.2f}{one.peak_memory_gb:10.2f}",
            "",
            f"memory model: {one.model_gb:.2f} GB of tensors; a process adds {PROCESS_GB[0]:g} to {PROCESS_GB[1]:g} GB",
        ]
        return "\n".join(lines)
    lines.append(f"{'voxels':>14}{'seconds':>10}{'µs/voxel':>10}{'ratio':>8}{'peak GB':>10}{'model GB':>10}")
    first = measurements[0].microseconds_per_voxel
    lines += [
        f"{format_shape(m.shape):>14}{m.seconds:10.2f}{m.microseconds_per_voxel:10.2f}{m.microseconds_per_voxel / first:8.2f}"
        f"{m.peak_memory_gb:10.2f}{m.model_gb:10.2f}"
        for m in measurements
    ]
    return "\n".join([*lines, "", "ratio: microseconds per voxel against those of the first size"])


def write_json(
    path: Path, about: dict[str, str], measurements: Sequence[Measurement], plain: Sequence[Measurement] | None = None
) -> None:
    """Writes figures and circumstances.

    Args:
        path: of the file.
        about: the circumstances.
        measurements: the figures.
        plain: those of the plain torch code, if it was measured too.

    Raises:
        OutputError: if that fails.
    """
    content: dict[str, object] = {"about": about, "measurements": [asdict(m) for m in measurements]}
    if plain is not None:
        content["plain_torch"] = [asdict(m) for m in plain]
    write_whole(path, lambda file: file.write_text(json.dumps(content, indent=1) + "\n", encoding="ascii"))
