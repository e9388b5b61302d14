"""Run time and peak memory of a registration, stage by stage and from files to file, on a phantom of any size.

On a GPU, also what it is asked to do, and how far its displacements are from those of the CPU.
"""

import logging
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import numpy as np
import torch

from mcbo.core.errors import InputError, McboError, MemoryBudgetError
from mcbo.core.field import format_shape
from mcbo.core.log import log
from mcbo.core.types import Shape
from mcbo.dataset.folders import Folder
from mcbo.dataset.learn2reg import Case, scan_folder
from mcbo.io.files import format_bytes, shown
from mcbo.io.nifti import read_displacement, write_volume
from mcbo.methods.config import Preset
from mcbo.methods.memory_model import PROCESS_GB
from mcbo.report import CaseReport, read_report
from mcbo.runs.options import Options, Setup
from mcbo.runs.runner import run
from mcbo.runtime import budget_bytes, held_bytes, select_device
from mcbo.studies.device_use import BETWEEN, DeviceUse, profiled, use_per_stage
from mcbo.studies.phantom import make_phantom

MAX_SIZE = 1024
MAX_REPEAT = 1000
PHANTOM_BYTES = 200
"""Per voxel, while a phantom is drawn (204 at 96³, 149 at 160³)."""

MIN_SIZE = 16
"""Smaller phantoms show too little anatomy."""

COMPARED_SIZE = 96
"""Of the phantom on which a GPU is compared with the CPU: large enough for all stages, and done in seconds."""

_HOST_STAGES = ("read", "masks", "write")
"""Their memory is that of the process (masks are found while images are read); the others', on a GPU, that of its tensors."""


@dataclass(frozen=True)
class Stage:
    """Median seconds of a stage over the runs, and the highest of its peaks of memory."""

    seconds: float
    peak_memory_gb: float


@dataclass(frozen=True)
class Difference:
    """Lengths of the differences between a displacement of a GPU and that of the CPU, voxels."""

    mean: float
    largest: float


@dataclass(frozen=True)
class Gpu:
    """What is only measured on a GPU.

    Attributes:
        held_gb: memory of the GPU that torch holds after all sizes: tensors, and what it keeps for the next ones.
        first_seconds: of the first case of the process, which loads kernels and fetches memory; None unless it has this size.
        stages: what the GPU was asked to do in a run of its own, by stage; empty if that is not known.
    """

    held_gb: float
    first_seconds: float | None
    stages: dict[str, DeviceUse]

    @property
    def whole(self) -> DeviceUse:
        """All stages together."""
        return sum(self.stages.values(), DeviceUse())


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
        stages: by name. On a GPU, those of the host have the memory of the process.
        gpu: None on a CPU, and where it is not asked for.
    """

    shape: Shape
    movings: int
    seconds: float
    microseconds_per_voxel: float
    peak_memory_gb: float
    model_gb: float
    stages: dict[str, Stage]
    gpu: Gpu | None = None


def measure(
    sizes: Sequence[int], *, config: Preset, options: Options, movings: int, repeat: int, has_background: bool = True
) -> list[Measurement]:
    """Registers phantoms of ``size``³ voxels, ``repeat`` times each, in this process, after a warm-up run.

    ``movings`` is 1 for the phantom's ceT1, 2 for ceT1 and T2; the fixed image is a wedge in its box, or fills it. ``options``
    give device and kernels; their output is not used. On a CPU, only errors are logged: it is no one's case. On a GPU,
    the warm-up run is as large as the first size. Unless the options say to use plain torch, it is taken for the first case of
    the process, and every size is run once more to see what the GPU is asked to do.

    Raises:
        InputError: for a size or a count out of range.
        McboError: if a run fails.
    """
    limits = (("--size or --scaling", sizes, MIN_SIZE, MAX_SIZE), ("--repeat", [repeat], 1, MAX_REPEAT))
    for option, values, least, most in (*limits, ("--modalities", [movings], 1, movings)):
        if min(values) < least:
            raise InputError(f"{option}: expected at least {least}, got {shown(min(values))}")
        if max(values) > most:
            raise InputError(f"{option}: expected at most {most}, got {shown(max(values))}")
    if movings > 2:
        raise InputError(f"--modalities: expected 1 or 2, got {shown(movings)}")
    needed, free = PHANTOM_BYTES * max(sizes) ** 3, budget_bytes(torch.device("cpu"), None)
    if needed > free:
        raise MemoryBudgetError(
            f"--size or --scaling: a phantom of {max(sizes)}³ voxels takes {format_bytes(needed)} to draw, but the run may use "
            f"{format_bytes(free)}"
        )
    device = select_device(options.device)
    with tempfile.TemporaryDirectory(prefix="mcbo-benchmark-") as folder:
        prepare = partial(
            Benchmark.prepare,
            movings=movings,
            folder=Path(folder),
            config=config,
            options=options,
            has_background=has_background,
        )
        first_seconds = prepare(sizes[0] if device.type == "cuda" else MIN_SIZE).register().seconds
        measurements = [prepare(size).measure(repeat) for size in sizes]
        if device.type != "cuda":
            return measurements
        gpu = Gpu(held_bytes(device) / 1e9, first_seconds=None, stages={})
        if options.reference:  # so many launches that it takes minutes to digest them
            return [replace(one, gpu=gpu) for one in measurements]
        # After all that is timed, since a profiler may slow down whatever comes after it.
        seen = [replace(gpu, stages=prepare(size).observe(device)) for size in sizes]
        seen[0] = replace(seen[0], first_seconds=first_seconds)
        return [replace(one, gpu=its_gpu) for one, its_gpu in zip(measurements, seen, strict=True)]


@dataclass(frozen=True)
class Benchmark:
    """A single case on the disk, its shape and number of moving images, and how it is registered."""

    shape: Shape
    movings: int
    cases: Sequence[Case]
    config: Preset
    options: Options

    @classmethod
    def prepare(
        cls, size: int, *, movings: int, folder: Path, config: Preset, options: Options, has_background: bool = True
    ) -> Self:
        """A phantom, drawn unless the folder has it already."""
        images, shape = folder / f"{size}", (size, size, size)
        if not images.exists():
            _write_phantom(shape, movings, images, has_background)
        options = replace(options, output=folder / f"{size}-output", overwrite=True)
        return cls(shape, movings, scan_folder(Folder(images)).cases, config, options)

    def register(self) -> CaseReport:
        """One run, from files to files."""
        level = log.level
        if select_device(self.options.device).type == "cpu":  # a GPU may have reasons to warn that change what is measured
            log.setLevel(logging.ERROR)
        try:
            outcome = run(self.cases, self.config, self.options)
        finally:
            log.setLevel(level)
        if outcome.failed:
            raise McboError(f"benchmark: {next(iter(outcome.failed.values()))}")
        (case,) = read_report(self.options.output / self.options.report_name).cases.values()
        return case

    def measure(self, repeat: int) -> Measurement:
        """Several runs."""
        done = [self.register() for _ in range(repeat)]
        stages = {
            name: Stage(
                seconds=statistics.median(case.stages[name].seconds for case in done),
                peak_memory_gb=max(case.stages[name].peak_memory_mb for case in done) / 1000,
            )
            for name in done[0].stages
        }
        seconds = statistics.median(case.seconds for case in done)
        setup = Setup(self.config, self.options, select_device(self.options.device))
        ignored = _HOST_STAGES if setup.device.type == "cuda" else ()
        model = self.config.peak_bytes(self.shape, movings=self.config.joint(self.movings), kernels=setup.kernels)
        return Measurement(
            shape=self.shape,
            movings=self.movings,
            seconds=seconds,
            microseconds_per_voxel=1e6 * seconds / math.prod(self.shape),
            peak_memory_gb=max(stage.peak_memory_gb for name, stage in stages.items() if name not in ignored),
            model_gb=model / 1e9,
            stages=stages,
        )

    def observe(self, device: torch.device) -> dict[str, DeviceUse]:
        """One more run: what the GPU is asked to do, by stage; nothing, and a warning, if the profiler does not see it."""
        _, events = profiled(device, self.register)
        if any(event.kind == "kernel" for event in events):
            return use_per_stage(events)
        log.warning("torch's profiler saw no kernel of %s, so neither launches nor busy seconds are known", device)
        return {}


def compare_with_cpu(config: Preset, options: Options, *, movings: int, size: int = COMPARED_SIZE) -> dict[str, Difference]:
    """Registers a phantom on the device of ``options`` and on the CPU: the differences of displacements, by name.

    Where numba is not installed, the CPU computes with plain torch.

    Raises:
        McboError: if a run fails.
    """
    with tempfile.TemporaryDirectory(prefix="mcbo-benchmark-") as folder:
        here = Benchmark.prepare(size, movings=movings, folder=Path(folder), config=config, options=options)
        cpu = replace(here.options, device="cpu", output=Path(folder) / "cpu", reference=find_spec("numba") is None)
        written = list(here.register().written)
        replace(here, options=cpu).register()
        lengths = {
            name: (read_displacement(here.options.output / name) - read_displacement(cpu.output / name)).norm(dim=1)
            for name in written
        }
    return {name: Difference(float(length.mean()), float(length.max())) for name, length in lengths.items()}


def _write_phantom(shape: Shape, movings: int, folder: Path, has_background: bool) -> None:
    phantom = make_phantom(shape, wedge=has_background)
    for channel, image in enumerate((phantom.fixed, phantom.cet1, phantom.t2)[: 1 + movings]):
        write_volume(folder / f"Phantom_0001_{channel:04}.nii.gz", image, np.eye(4))


def to_content(measurement: Measurement) -> dict[str, object]:
    """For a JSON file."""
    content = {name: value for name, value in asdict(measurement).items() if value is not None}
    if measurement.gpu:
        content["gpu"]["whole"] = asdict(measurement.gpu.whole)
    return content


def to_text(about: dict[str, str], measurements: Sequence[Measurement], *, subject: str = "phantom") -> str:
    """The stages of a single size as a table, or one line for each of several sizes."""
    lines = [f"{name}: {value}" for name, value in about.items()] + [""]
    if len(measurements) == 1:
        (one,) = measurements
        lines += [f"{subject} of {format_shape(one.shape)} voxels, {one.movings} moving image(s), from files to file", ""]
        return "\n".join([*lines, *(_cpu_lines(one) if one.gpu is None else _gpu_lines(one, one.gpu))])
    lines.append(f"{'voxels':>14}{'seconds':>10}{'µs/voxel':>10}{'ratio':>8}{'peak GB':>10}{'model GB':>10}")
    first = measurements[0].microseconds_per_voxel
    lines += [
        f"{format_shape(m.shape):>14}{m.seconds:10.2f}{m.microseconds_per_voxel:10.2f}{m.microseconds_per_voxel / first:8.2f}"
        f"{m.peak_memory_gb:10.2f}{m.model_gb:10.2f}"
        for m in measurements
    ]
    return "\n".join([*lines, "", "ratio: microseconds per voxel against those of the first size"])


def _cpu_lines(one: Measurement) -> list[str]:
    return [
        f"{'stage':24}{'seconds':>10}{'peak GB':>10}",
        *(f"{name:24}{stage.seconds:10.2f}{stage.peak_memory_gb:10.2f}" for name, stage in one.stages.items()),
        f"{'all':24}{one.seconds:10.2f}{one.peak_memory_gb:10.2f}",
        "",
        f"memory model: {one.model_gb:.2f} GB of tensors; a process adds {PROCESS_GB[0]:g} to {PROCESS_GB[1]:g} GB",
    ]


def _gpu_lines(one: Measurement, gpu: Gpu) -> list[str]:
    def row(name: str, seconds: float | None, peak_gb: float | None, use: DeviceUse | None) -> str:
        figures = [f"{seconds:.3f}" if seconds is not None else "", f"{peak_gb:.2f}" if peak_gb is not None else ""]
        figures += [f"{use.busy_s:.3f}", *map(str, (use.launches, use.copies, use.waits))] if use else []
        return (f"{name:24}" + "".join(f"{figure:>10}" for figure in figures)).rstrip()

    lines = [
        f"{'stage':24}" + "".join(f"{head:>10}" for head in ("seconds", "peak GB", "busy s", "launches", "copies", "waits"))
    ]
    for name, stage in one.stages.items():
        lines.append(row(name, stage.seconds, None if name in _HOST_STAGES else stage.peak_memory_gb, gpu.stages.get(name)))
    if BETWEEN in gpu.stages:
        lines.append(row(BETWEEN, None, None, gpu.stages[BETWEEN]))
    lines += [row("all", one.seconds, one.peak_memory_gb, gpu.whole if gpu.stages else None), ""]
    if gpu.first_seconds is not None:
        lines.append(f"first case of this process: {gpu.first_seconds:.2f} s")
    lines.append(f"memory model: {one.model_gb:.2f} GB of tensors on the GPU; torch holds {gpu.held_gb:.2f} GB of its memory")
    return lines


def differences_to_text(differences: Mapping[str, Difference]) -> str:
    """A line for each displacement."""
    lines = [f"on the GPU and on the CPU, a phantom of {format_shape((COMPARED_SIZE,) * 3)} voxels:"]
    lines += [f"{name}: {one.mean:.4f} voxels apart on average, {one.largest:.4f} at most" for name, one in differences.items()]
    return "\n".join(lines)
