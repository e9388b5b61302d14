"""The run: the only loop over cases, from files to files."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from mcbo.config import Cascade, Config, Preset, format_shape
from mcbo.dataset import Case, Pair, wanted
from mcbo.errors import InputError, McboError, MemoryBudgetError, OutputError
from mcbo.field import shape_of, warp
from mcbo.header import read_header
from mcbo.kernels import REFERENCE
from mcbo.memory import check_budget
from mcbo.nifti import Image, check_image, prepare_folder, read_image, write_displacement, write_volume
from mcbo.pipeline import Registration, register
from mcbo.progress import log, show_progress
from mcbo.report import Entry, digest, is_done, read_entries, write_report
from mcbo.runtime import (
    budget_bytes,
    describe_device,
    is_gpu_unused,
    peak_meter,
    select_device,
    select_kernels,
    wait_for,
)
from mcbo.timing import StageTimer
from mcbo.types import Displacement, Judgement


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what.

    Attributes:
        output: folder of the results.
        suffix: of the displacements, ``.nii.gz``, ``.nii`` or ``.npz``.
        report_name: file name of the report in the output folder.
        movings: channels whose displacements are written; all, if empty.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        memory_gb: what the tensors of a case may use; a share of what is free, if None.
        warped: also write the warped moving images.
        overwrite: do again what an earlier run has done.
        reference: compute with plain torch although there are compiled kernels, to compare the two.
    """

    output: Path
    suffix: str = ".nii.gz"
    report_name: str = "report.json"
    movings: tuple[str, ...] = ()
    device: str = "auto"
    memory_gb: float | None = None
    warped: bool = False
    overwrite: bool = False
    reference: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        written: displacement files.
        failed: a sentence for every pair that has none, by the displacement's name.
        started: whether any case got past the check of its input.
    """

    written: tuple[Path, ...]
    failed: dict[str, str]
    started: bool


@dataclass
class _CaseResult:
    """What became of a case, and what the report says of it."""

    written: list[Path] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    started: bool = False
    entry: Entry = field(default_factory=dict)


def run(cases: Sequence[Case], config: Preset, options: Options) -> Outcome:
    """Registers every case and writes displacements and a report; what fails does not stop the rest.

    The report is written after each case, so that a run that was cut off can be taken up: a case whose inputs, config and
    version are those of an earlier report, and whose files are as they were written, is not done again.

    Raises:
        DeviceError: if the device is not there.
        OutputError: if nothing can be written to the output folder; nothing was started then.
    """
    device = select_device(options.device)
    prepare_folder(options.output)
    log.info("device: %s", describe_device(device))
    log.info("preset %s, %d case(s), output to %s", config.name, len(cases), options.output)
    report = options.output / options.report_name
    entries = read_entries(report, config)
    if options.device == "auto" and is_gpu_unused(device):
        log.warning("an NVIDIA driver is here, but this build of torch cannot use it: the CPU is used (see the README, Submit)")
    results: dict[str, _CaseResult] = {}
    failed: dict[str, str] = {}
    try:
        with show_progress(len(cases)) as view, peak_meter(device) as meter:
            for case in cases:
                view.begin_case(case.name)
                start = time.perf_counter()
                result = _done_before(case, entries.get(case.name), config, options)
                if result is None:
                    timer = StageTimer(meter=meter, listener=view.stage, wait=lambda: wait_for(device))
                    result = _run_case(case, config, options, device, timer)
                    result.entry |= {"seconds": round(time.perf_counter() - start, 3), "stages": _stages(timer)}
                    state = "done" if not result.failed else "failed" if not result.written else "done in part"
                    log.info("case %s: %s, %.1f s", case.name, state, time.perf_counter() - start)
                results[case.name] = result
                entries[case.name] = _merged(entries.get(case.name), result.entry)
                failed |= result.failed
                try:
                    write_report(report, entries, config, device)
                except OutputError as error:  # told once; displacements may still be writable
                    if options.report_name not in failed:
                        log.error("%s", error)
                    failed[options.report_name] = str(error)
                view.end_case()
    except (KeyboardInterrupt, SystemExit):
        log.error("stopped after %d of %d case(s); what was written stays, the next run goes on", len(results), len(cases))
        raise
    written = tuple(path for result in results.values() for path in result.written)
    return Outcome(written=written, failed=failed, started=any(result.started for result in results.values()))


def _done_before(case: Case, entry: Entry | None, config: Preset, options: Options) -> _CaseResult | None:
    """The result of a case that an earlier run has done, or None if it has to be done."""
    asked = wanted(case, options.movings)
    outputs = [path for pair in asked for path in output_files(pair, options)]
    if options.overwrite or entry is None or not is_done(entry, _digests(case, config, options), outputs):
        return None
    log.info("case %s: done before with the same input and config, skipped (--overwrite does it again)", case.name)
    paths = [output_files(pair, options)[0] for pair in asked]
    return _CaseResult(written=paths, started=True, entry=entry)


def _merged(earlier: Entry | None, entry: Entry) -> Entry:
    """What the report says of a case: of the same input, files that earlier runs wrote for other channels or formats stay."""
    if earlier is None or earlier is entry or earlier.get("inputs") != entry.get("inputs"):
        return entry
    failed = {
        name: text for name, text in earlier.get("failed", {}).items() if not any(name in file for file in entry["written"])
    }
    return entry | {"written": earlier.get("written", {}) | entry["written"], "failed": failed | entry["failed"]}


def _used(case: Case, config: Preset, options: Options) -> Sequence[Pair]:
    """The pairs whose moving images are read: where modalities are fused, those that are not asked for help the others."""
    return case.pairs if config.modality_fusion else wanted(case, options.movings)


def _digests(case: Case, config: Preset, options: Options) -> dict[str, str | None]:
    """SHA-256 of the input files of a case, None for those that cannot be read."""
    paths = (case.fixed, *(pair.moving for pair in _used(case, config, options)))
    return {str(path): digest(path) if path.is_file() else None for path in paths}  # to open a named pipe would never end


def output_files(pair: Pair, options: Options) -> list[Path]:
    """The files of a pair: its displacement and, if asked for, the warped moving image."""
    paths = [options.output / f"{pair.field_name}{options.suffix}"]
    if options.warped:
        paths.append(options.output / f"warped_{pair.field_name.removeprefix('disp_')}.nii.gz")
    return paths


def _run_case(case: Case, config: Preset, options: Options, device: torch.device, timer: StageTimer) -> _CaseResult:
    """Reads, registers and writes one case. A broken moving image costs its own displacement only."""
    asked = wanted(case, options.movings)
    result = _CaseResult()
    try:
        with timer.stage("read"):
            result.entry["inputs"] = _digests(case, config, options)
            _check_memory(case, config, options, device)
            fixed = read_image(case.fixed)
            movings, refused = read_movings(_used(case, config, options), fixed)
        for message in refused.values() if movings else ():
            log.warning("case %s goes on without this image: %s", case.name, message)
        asked_and_read = [pair for pair in asked if pair.field_name in movings]
        result.failed = {pair.field_name: refused[pair.field_name] for pair in asked if pair.field_name in refused}
        if asked_and_read:
            registration = _register(case, fixed, movings, config, options, device, timer)
            result.started = True
            result.entry["shape"] = shape_of(fixed.volume)
            if isinstance(registration.config, Config):
                result.entry["levels"] = [asdict(level) for level in registration.config.levels]
            if registration.judgements:
                judgements = dict(zip(movings, registration.judgements, strict=True))
                result.entry["judgement"] = {pair.field_name: asdict(judgements[pair.field_name]) for pair in asked_and_read}
                for pair in asked_and_read:
                    _tell(pair.field_name, judgements[pair.field_name], config)
            displacements = dict(zip(movings, registration.displacements, strict=True))
            with timer.stage("write"):
                for pair in asked_and_read:
                    _write_pair(pair, displacements[pair.field_name], fixed, movings, options, result)
    except (McboError, MemoryError, RuntimeError) as error:  # torch tells a lack of memory by RuntimeError
        result.started = not isinstance(error, InputError | MemoryBudgetError)
        message = str(error) if isinstance(error, McboError) else f"{case.fixed}: {error or type(error).__name__}"
        result.failed |= {pair.field_name: message for pair in asked if output_files(pair, options)[0] not in result.written}
    for pair in asked:
        if pair.field_name in result.failed:
            log.error("%s is not written: %s", pair.field_name, result.failed[pair.field_name])
            for path in output_files(pair, options):
                _remove(path)
    files = [path for pair in asked if pair.field_name not in result.failed for path in output_files(pair, options)]
    result.entry |= {
        "device": describe_device(device),
        "written": {path.name: digest(path) for path in files},
        "failed": result.failed,
    }
    return result


def _check_memory(case: Case, config: Preset, options: Options, device: torch.device) -> None:
    """Refuses, before any volume is read, a case that cannot be registered within the memory that it may use.

    Raises:
        InputError: if the fixed image's header is broken, or the image too small for the preset.
        MemoryBudgetError: if a case of this shape needs more than there is.
    """
    shape = check_image(read_header(case.fixed))
    there = sum(pair.moving.is_file() for pair in _used(case, config, options))
    fused = max(there, 1) if config.modality_fusion else 1
    try:
        check_budget(shape, config, movings=fused, budget_bytes=budget_bytes(device, options.memory_gb))
    except McboError as error:
        raise type(error)(f"{case.fixed}: {error}") from error


def _remove(path: Path) -> None:
    """Takes away what is left under the name of a result that this run owes and has not: it would be taken for this run's."""
    if path.is_file():
        with contextlib.suppress(OSError):
            path.unlink()
            log.warning("%s is removed, since it is not of this run", path)


def read_movings(pairs: Sequence[Pair], fixed: Image) -> tuple[dict[str, Image], dict[str, str]]:
    """Reads moving images, by displacement name; and a sentence for each that cannot be registered to the fixed one."""
    images: dict[str, Image] = {}
    refused: dict[str, str] = {}
    for pair in pairs:
        try:
            shape, expected = check_image(read_header(pair.moving)), shape_of(fixed.volume)
            if shape != expected:
                raise InputError(
                    f"{pair.moving}: expected the shape of the fixed image {fixed.path.name}, {format_shape(expected)}, "
                    f"found {format_shape(shape)}"
                )
            image = read_image(pair.moving)
        except InputError as error:
            refused[pair.field_name] = str(error)
            continue
        images[pair.field_name] = image
        if not np.allclose(image.affine, fixed.affine, atol=1e-3):
            log.warning(
                "%s: its affine differs from that of %s; both are taken voxel by voxel, as the challenge does",
                image.path.name,
                fixed.path.name,
            )
    return images, refused


def _register(
    case: Case,
    fixed: Image,
    movings: dict[str, Image],
    config: Preset,
    options: Options,
    device: torch.device,
    timer: StageTimer,
) -> Registration:
    """Registers a case on the device; errors then name its fixed image."""
    try:
        registration = register(
            fixed.volume.to(device),
            [image.volume.to(device) for image in movings.values()],
            spacing_mm=fixed.spacing_mm,
            config=config,
            kernels=REFERENCE if options.reference else select_kernels(device),
            budget_bytes=budget_bytes(device, options.memory_gb),
            timer=timer,
        )
    except McboError as error:
        raise type(error)(f"{case.fixed}: {error}") from error
    for level in registration.dropped:
        log.info(
            "case %s: level %d left out: %s voxels make too few cells of %d; the other weights are scaled to sum to 1",
            case.name,
            level.grid_spacing,
            format_shape(shape_of(fixed.volume)),
            level.grid_spacing,
        )
    return registration


def _tell(name: str, judgement: Judgement, config: Preset) -> None:
    """Says what was chosen and, where it can hardly be believed, warns."""
    before, after = judgement.similarity["identity"], judgement.confidence
    log.info("%s: %s result, similarity %.2f before, %.2f after", name, judgement.chosen, before, after)
    if isinstance(config, Cascade) and after < config.doubtful_similarity:
        log.warning(
            "%s: low confidence: similarity %.2f; unrelated images have 0, right results mostly more than %.2f (%s result)",
            name,
            after,
            config.doubtful_similarity,
            judgement.chosen,
        )


def _write_pair(
    pair: Pair,
    displacement: Displacement,
    fixed: Image,
    movings: dict[str, Image],
    options: Options,
    result: _CaseResult,
) -> None:
    """Writes what belongs to a pair, the displacement last, so that where it is, all is; and notes it in ``result``."""
    path, *warped_path = output_files(pair, options)
    try:
        if warped_path:
            warped = warp(movings[pair.field_name].volume.to(displacement.device), displacement)
            write_volume(warped_path[0], warped, fixed.affine)
        write_displacement(path, displacement, fixed.affine)
        result.written.append(path)
    except OutputError as error:
        result.failed[pair.field_name] = str(error)


def _stages(timer: StageTimer) -> dict[str, dict[str, float]]:
    return {
        name: {"seconds": round(record.seconds, 3), "peak_memory_mb": round(record.peak_bytes / 1e6)}
        for name, record in timer.records.items()
    }
