"""Run time and peak memory of a registration, stage by stage and from files to file, on a phantom of any size."""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mcbo.core.errors import InputError, McboError
from mcbo.core.field import format_shape
from mcbo.core.types import Shape
from mcbo.dataset.folders import Folder
from mcbo.dataset.learn2reg import scan_folder
from mcbo.io.nifti import write_volume
from mcbo.methods.config import Preset
from mcbo.methods.memory_model import PROCESS_GB
from mcbo.report import CaseReport, read_report
from mcbo.runs.options import Options, Setup
from mcbo.runs.runner import run
from mcbo.runtime import select_device
from mcbo.studies.phantom import make_phantom

MIN_SIZE = 16
"""Smaller phantoms show too little anatomy."""


@dataclass(frozen=True)
class Stage:
    """Median seconds of a stage over the runs, and the highest of its peaks of memory."""

    seconds: float
    peak_memory_gb: float


@dataclass(frozen=True)
class Measurement:
    """Run time and memory of a case, from files to file.

    Attributes:
        shape: voxels.
        movings: number of moving images.
        seconds: median over the runs.
        microseconds_per_voxel: the same, divided by the voxels.
        peak_memory_gb: the highest of all stages: of the process on a CPU, of the tensors on a GPU.
        model_gb: memory of the tensors according to the memory model.
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
    """Registers phantoms of ``size``³ voxels, ``repeat`` times each, in this process, after a warm-up run.

    ``movings`` is 1 for the phantom's ceT1, 2 for ceT1 and T2. ``options`` give device and kernels; their output is not used.

    Raises:
        InputError: for a size or a count out of range.
        McboError: if a run fails.
    """
    limits = (("--size or --scaling", min(sizes), MIN_SIZE), ("--repeat", repeat, 1), ("--modalities", movings, 1))
    for option, value, least in limits:
        if value < least:
            raise InputError(f"{option}: expected at least {least}, got {value}")
    if movings > 2:
        raise InputError(f"--modalities: expected 1 or 2, got {movings}")
    _measure_one(MIN_SIZE, config, options, movings, 1)
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
    kernels = Setup(config, options, select_device(options.device)).kernels
    return Measurement(
        shape=shape,
        movings=movings,
        seconds=seconds,
        microseconds_per_voxel=1e6 * seconds / size**3,
        peak_memory_gb=max(stage.peak_memory_gb for stage in stages.values()),
        model_gb=config.peak_bytes(shape, movings=config.joint(movings), kernels=kernels) / 1e9,
        stages=stages,
    )


def _write_phantom(shape: Shape, movings: int, folder: Path) -> None:
    phantom = make_phantom(shape, wedge=True)
    for channel, image in enumerate((phantom.fixed, phantom.cet1, phantom.t2)[: 1 + movings]):
        write_volume(folder / f"Phantom_0001_{channel:04}.nii.gz", image, np.eye(4))


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
