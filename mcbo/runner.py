"""The run: the only loop over cases, from files to files."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from mcbo.config import Config, format_shape
from mcbo.dataset import Case, Pair
from mcbo.errors import InputError, McboError
from mcbo.field import shape_of, warp
from mcbo.nifti import Image, read_image, write_displacement, write_volume, write_whole
from mcbo.pipeline import Registration, register
from mcbo.progress import log, show_progress
from mcbo.runtime import (
    budget_bytes,
    describe_device,
    peak_meter,
    select_device,
    select_kernels,
    versions,
    wait_for,
)
from mcbo.timing import StageTimer

REPORT_NAME = "report.json"


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what.

    Attributes:
        output: folder of the results.
        suffix: of the displacements, ``.nii.gz``, ``.nii`` or ``.npz``.
        movings: channels whose displacements are written; all, if empty.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        memory_gb: what a case may use; a share of what is free, if None.
        warped: also write the warped moving images.
    """

    output: Path
    suffix: str = ".nii.gz"
    movings: tuple[str, ...] = ()
    device: str = "auto"
    memory_gb: float | None = None
    warped: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        written: displacement files.
        failed: a sentence for every pair that has none, by the displacement's name.
        started: whether any case got past its input files.
    """

    written: tuple[Path, ...]
    failed: dict[str, str]
    started: bool


def run(cases: Sequence[Case], config: Config, options: Options) -> Outcome:
    """Registers every case and writes displacements and ``report.json``; a case that fails does not stop the others.

    Raises:
        DeviceError: if the device is not there.
        OutputError: if the output folder or the report cannot be written.
    """
    device = select_device(options.device)
    prepare_output(options.output)
    log.info("device: %s", describe_device(device))
    log.info("preset %s, %d case(s), output to %s", config.name, len(cases), options.output)
    report: dict[str, object] = {
        "versions": versions(),
        "device": describe_device(device),
        "threads": torch.get_num_threads(),
        "config": asdict(config),
        "cases": {},
    }
    entries: dict[str, object] = {}
    written: list[Path] = []
    failed: dict[str, str] = {}
    started = False
    with show_progress(len(cases)) as view, peak_meter(device) as meter:
        for case in cases:
            view.begin_case(case.name)
            timer = StageTimer(meter=meter, listener=view.stage, wait=lambda: wait_for(device))
            start = time.perf_counter()
            entry: dict[str, object] = {"fixed": str(case.fixed)}
            try:
                with timer.stage("read"):
                    images = read_case(case, skip_unasked=not config.modality_fusion, movings=options.movings)
                started = True
                paths = _register_case(case, images, config, options, device, timer, entry)
                written += paths
                entry["written"] = [path.name for path in paths]
            except (McboError, MemoryError, RuntimeError) as error:  # torch tells a lack of memory by RuntimeError
                message = str(error) or "out of memory: allow less with --memory-gb"
                log.error("case %s failed: %s", case.name, message)
                entry["error"] = message
                failed |= {pair.field_name: message for pair in wanted(case, options.movings)}
            entry["seconds"] = round(time.perf_counter() - start, 3)
            entry["stages"] = {
                name: {"seconds": round(record.seconds, 3), "peak_memory_mb": round(record.peak_bytes / 1e6)}
                for name, record in timer.records.items()
            }
            entries[case.name] = entry
            view.end_case()
            log.info("case %s: %s, %.1f s", case.name, "failed" if "error" in entry else "done", entry["seconds"])
    report["cases"] = entries
    text = json.dumps(report, indent=1, ensure_ascii=False)
    write_whole(options.output / REPORT_NAME, lambda file: file.write_text(text + "\n", encoding="utf-8"))
    return Outcome(written=tuple(written), failed=failed, started=started)


def wanted(case: Case, movings: Sequence[str]) -> list[Pair]:
    """The pairs of a case whose displacements are to be written."""
    return [pair for pair in case.pairs if not movings or pair.moving_channel in movings]


def read_case(case: Case, *, skip_unasked: bool, movings: Sequence[str]) -> tuple[Image, dict[str, Image]]:
    """Reads the fixed image and, by displacement name, the moving images of a case.

    Args:
        case: what to read.
        skip_unasked: leave out moving images whose displacement is not wanted (where modalities do not help each other).
        movings: channels that are wanted; all, if empty.

    Raises:
        InputError: if an image cannot be registered, or lies on another grid than the fixed one.
    """
    fixed = read_image(case.fixed)
    pairs = wanted(case, movings) if skip_unasked else case.pairs
    images = {pair.field_name: read_image(pair.moving) for pair in pairs}
    for image in images.values():
        shape, expected = shape_of(image.volume), shape_of(fixed.volume)
        if shape != expected:
            raise InputError(
                f"{image.path}: expected the shape of the fixed image {fixed.path.name}, {format_shape(expected)}, "
                f"found {format_shape(shape)}"
            )
        if not np.allclose(image.affine, fixed.affine, atol=1e-3):
            log.warning(
                "%s: its affine differs from that of %s; both are taken voxel by voxel, as the challenge does",
                image.path.name,
                fixed.path.name,
            )
    return fixed, images


def _register_case(
    case: Case,
    images: tuple[Image, dict[str, Image]],
    config: Config,
    options: Options,
    device: torch.device,
    timer: StageTimer,
    entry: dict[str, object],
) -> list[Path]:
    """Registers a case that has been read, writes its files, notes in ``entry`` what the report should say."""
    fixed, movings = images
    result: Registration = register(
        fixed.volume.to(device),
        [image.volume.to(device) for image in movings.values()],
        config=config,
        kernels=select_kernels(device),
        budget_bytes=budget_bytes(device, options.memory_gb),
        timer=timer,
    )
    for level in result.dropped:
        log.info(
            "case %s: level %d left out: %s voxels make too few cells of %d; the other weights are scaled to sum to 1",
            case.name,
            level.grid_spacing,
            format_shape(shape_of(fixed.volume)),
            level.grid_spacing,
        )
    entry["shape"] = shape_of(fixed.volume)
    entry["levels"] = [asdict(level) for level in result.config.levels]
    paths = []
    displacements = dict(zip(movings, result.displacements, strict=True))
    with timer.stage("write"):
        for pair in wanted(case, options.movings):
            path = options.output / f"{pair.field_name}{options.suffix}"
            write_displacement(path, displacements[pair.field_name], fixed.affine)
            paths.append(path)
            if options.warped:
                moving = movings[pair.field_name].volume.to(device)
                warped = warp(moving, displacements[pair.field_name])
                name = f"warped_{pair.field_name.removeprefix('disp_')}.nii.gz"
                write_volume(options.output / name, warped, fixed.affine)
    return paths


def prepare_output(folder: Path) -> None:
    """Makes sure, before anything is computed, that results can be written.

    Raises:
        OutputError: if not.
    """
    write_whole(folder / ".writable", lambda file: file.touch())
    (folder / ".writable").unlink(missing_ok=True)
