"""The run: the only loop over cases, from files to files."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mcbo.config import Cascade, Config, Preset, format_shape
from mcbo.dataset import Case, Pair, wanted
from mcbo.errors import DiskSpaceError, InputError, McboError, MemoryBudgetError, OutputError
from mcbo.field import shape_of
from mcbo.files import prepare_folder
from mcbo.header import read_header
from mcbo.kernels import REFERENCE
from mcbo.lock import hold
from mcbo.memory import check_budget
from mcbo.nifti import Image, check_image, read_image
from mcbo.options import ON_FAILURE, Options
from mcbo.outputs import check_case_room, output_files, remove, warn_of_room, write_pair, write_placeholder
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
from mcbo.sanity import Examined, examine
from mcbo.timing import StageTimer
from mcbo.types import Judgement


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        written: displacement files.
        failed: a sentence for every pair that has none, by the displacement's name.
        started: whether any case got past the check of its input.
        placeholders: displacements of no motion, written for pairs that failed.
    """

    written: tuple[Path, ...]
    failed: dict[str, str]
    started: bool
    placeholders: tuple[Path, ...] = ()


@dataclass
class _CaseResult:
    """What became of a case, and what the report says of it; ``lost`` are names of files that were due and are not there."""

    written: list[Path] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    placeholders: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    started: bool = False
    entry: Entry = field(default_factory=dict)


def run(cases: Sequence[Case], config: Preset, options: Options) -> Outcome:
    """Registers every case and writes displacements and a report; what fails does not stop the rest, unless ``strict``.

    The report is written after each case, so that a run that was cut off can be taken up: a case whose inputs, config and
    version are those of an earlier report, and whose files are as they were written, is not done again.

    Raises:
        DeviceError: if the device is not there.
        OutputError: if nothing can be written to the output folder, or another run works on the same report; nothing was
            started then.
    """
    device = select_device(options.device)
    prepare_folder(options.output)
    with hold(options.output / f".{options.report_name}.lock"):
        log.info("device: %s", describe_device(device))
        log.info("preset %s, %d case(s), output to %s", config.name, len(cases), options.output)
        if options.device == "auto" and is_gpu_unused(device):
            log.warning(
                "an NVIDIA driver is here, but this build of torch cannot use it: the CPU is used (see the README, Submit)"
            )
        if options.fallback and isinstance(config, Cascade):
            log.info("--fallback: preset %s chooses between identity, rigid and full result by itself", config.name)
        warn_of_room(cases, options)
        return _run_cases(cases, config, options, device)


def _run_cases(cases: Sequence[Case], config: Preset, options: Options, device: torch.device) -> Outcome:
    report = options.output / options.report_name
    entries = read_entries(report, config)
    results: dict[str, _CaseResult] = {}
    failed: dict[str, str] = {}

    def tell_report(stopped: str | None = None) -> None:
        try:
            write_report(report, entries, config, device, stopped=stopped)
        except OutputError as error:  # told once; displacements may still be writable
            if options.report_name not in failed:
                log.error("%s", error)
            failed[options.report_name] = str(error)

    try:
        with show_progress(len(cases)) as view, peak_meter(device) as meter:
            for case in cases:
                view.begin_case(case.name)
                start = time.perf_counter()
                result = _done_before(case, entries.get(case.name), config, options)
                is_fresh = result is None
                if result is None:
                    timer = StageTimer(meter=meter, listener=view.stage, wait=lambda: wait_for(device))
                    result = _run_case(case, config, options, device, timer)
                    result.entry |= {"seconds": round(time.perf_counter() - start, 3), "stages": timer.summary()}
                results[case.name] = result
                entries[case.name] = _merged(entries.get(case.name), result)
                failed |= result.failed
                tell_report()
                if is_fresh:  # said last: what is told to be done is not done again by the next run, even after a power cut
                    state = "done" if not result.failed else "failed" if not result.written else "done in part"
                    log.info("case %s: %s, %.1f s", case.name, state, time.perf_counter() - start)
                view.end_case()
                if options.strict and failed:
                    stopped = f"stopped after {len(results)} of {len(cases)} case(s), since one failed and --strict was given"
                    log.error("%s; what was written stays", stopped)
                    tell_report(stopped)
                    break
    except (KeyboardInterrupt, SystemExit):
        log.error("stopped after %d of %d case(s); what was written stays, the next run goes on", len(results), len(cases))
        raise
    return Outcome(
        written=tuple(path for result in results.values() for path in result.written),
        failed=failed,
        started=any(result.started for result in results.values()),
        placeholders=tuple(path for result in results.values() for path in result.placeholders),
    )


def _done_before(case: Case, entry: Entry | None, config: Preset, options: Options) -> _CaseResult | None:
    """The result of a case that an earlier run has done, or None if it has to be done."""
    asked = wanted(case, options.movings)
    outputs = [path for pair in asked for path in output_files(pair, options)]
    deciding = _deciding(config, options)
    if options.overwrite or entry is None or not is_done(entry, _digests(case, config, options), outputs, deciding):
        return None
    log.info("case %s: done before with the same input and config, skipped (--overwrite does it again)", case.name)
    paths = [output_files(pair, options)[0] for pair in asked]
    return _CaseResult(written=paths, started=True, entry=entry)


def _merged(earlier: Entry | None, result: _CaseResult) -> Entry:
    """What the report says of a case: of the same input, files that earlier runs wrote for other channels or formats stay."""
    entry = result.entry
    if earlier is None or earlier is entry or any(earlier.get(key) != entry.get(key) for key in ("inputs", "options")):
        return entry
    dealt_with = entry["failed"].keys() | entry.get("sanity", {}).keys()

    def of_others(values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name not in dealt_with}

    by_pair = [key for key in ("failed", "placeholder", "sanity", "judgement", "fallback") if key in earlier or key in entry]
    merged = entry | {key: of_others(earlier.get(key, {})) | entry.get(key, {}) for key in by_pair}
    kept = {file: value for file, value in earlier["written"].items() if file not in result.lost}
    warnings = [text for text in earlier["warnings"] if text.partition(":")[0] not in dealt_with]
    return merged | {"written": kept | entry["written"], "warnings": warnings + entry["warnings"]}


def _deciding(config: Preset, options: Options) -> dict[str, object]:
    """The options on which a displacement depends."""
    return {"fallback": options.fallback and not isinstance(config, Cascade)}


def _used(case: Case, config: Preset, options: Options) -> Sequence[Pair]:
    """The pairs whose moving images are read: where modalities are fused, those that are not asked for help the others."""
    return case.pairs if config.modality_fusion else wanted(case, options.movings)


def _digests(case: Case, config: Preset, options: Options) -> dict[str, str | None]:
    """SHA-256 of the input files of a case, None for those that cannot be read."""
    return {str(path): digest(path) for path in (case.fixed, *(pair.moving for pair in _used(case, config, options)))}


def _run_case(case: Case, config: Preset, options: Options, device: torch.device, timer: StageTimer) -> _CaseResult:
    """Reads, registers and writes one case. A broken moving image costs its own displacement only."""
    asked = wanted(case, options.movings)
    result = _CaseResult()
    try:
        with timer.stage("read"):
            result.entry |= {"inputs": _digests(case, config, options), "options": _deciding(config, options)}
            _check_memory(case, config, options, device)
            fixed = read_image(case.fixed)
            movings, refused = read_movings(_used(case, config, options), fixed)
        for message in refused.values() if movings else ():
            log.warning("case %s goes on without this image: %s", case.name, message)
        asked_and_read = [pair for pair in asked if pair.field_name in movings]
        result.failed = {pair.field_name: refused[pair.field_name] for pair in asked if pair.field_name in refused}
        if asked_and_read:
            check_case_room(asked_and_read, shape_of(fixed.volume), options)
            registration = _register(case, fixed, movings, config, options, device, timer)
            result.started = True
            result.entry["shape"] = shape_of(fixed.volume)
            if isinstance(registration.config, Config):
                result.entry["levels"] = [asdict(level) for level in registration.config.levels]
            if registration.judgements:
                judgements = dict(zip(movings, registration.judgements, strict=True))
                result.entry["judgement"] = {pair.field_name: asdict(judgements[pair.field_name]) for pair in asked_and_read}
                for pair in asked_and_read:
                    _tell(pair.field_name, judgements[pair.field_name], config, result)
            with timer.stage("sanity"):
                examined = _examine(registration, fixed, movings, config, options)
            _note(examined, asked_and_read, result)
            with timer.stage("write"):
                for pair in asked_and_read:
                    try:
                        displacement = examined[pair.field_name].displacement
                        result.written.append(write_pair(pair, displacement, fixed, movings, options))
                    except OutputError as error:
                        result.failed[pair.field_name] = str(error)
    except (McboError, MemoryError, RuntimeError) as error:  # torch tells a lack of memory by RuntimeError
        result.started = not isinstance(error, InputError | MemoryBudgetError | DiskSpaceError)
        message = str(error) if isinstance(error, McboError) else f"{case.fixed}: {error or type(error).__name__}"
        result.failed |= {pair.field_name: message for pair in asked if output_files(pair, options)[0] not in result.written}
    for pair in asked:
        if pair.field_name in result.failed:
            log.error("%s is not written: %s", pair.field_name, result.failed[pair.field_name])
            result.placeholders += _stand_in(pair, options)
            for path in output_files(pair, options):
                result.lost.append(path.name)
                if path not in result.placeholders:
                    remove(path)
    files = [path for pair in asked if pair.field_name not in result.failed for path in output_files(pair, options)]
    result.entry |= {
        "device": describe_device(device),
        "written": {path.name: digest(path) for path in files},
        "failed": result.failed,
        "placeholder": {pair.field_name: "zero" for pair in asked if output_files(pair, options)[0] in result.placeholders},
        "warnings": result.warnings,
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


def _stand_in(pair: Pair, options: Options) -> list[Path]:
    """Writes a displacement of no motion for a failed pair, if that was asked for and can be done; its path."""
    if options.on_failure == ON_FAILURE[0]:
        return []
    try:
        path = write_placeholder(pair, options, budget_bytes=budget_bytes(torch.device("cpu"), options.memory_gb))
    except (McboError, MemoryError, RuntimeError) as error:
        log.error("%s: nothing can stand in for it either: %s", pair.field_name, error)
        return []
    log.warning("%s: no motion is written in its place (--on-failure zero); the next run tries again", pair.field_name)
    return [path]


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


def _examine(
    registration: Registration, fixed: Image, movings: dict[str, Image], config: Preset, options: Options
) -> dict[str, Examined]:
    """What is known of each result; and, with ``fallback``, the choice."""
    displacements = dict(zip(movings, registration.displacements, strict=True))
    device = registration.displacements[0].device
    return examine(
        fixed.volume.to(device),
        {name: image.volume.to(device) for name, image in movings.items()},
        displacements,
        config=registration.config,
        kernels=REFERENCE if options.reference else select_kernels(device),
        spacing_mm=fixed.spacing_mm,
        fallback=bool(_deciding(config, options)["fallback"]),
    )


def _note(examined: dict[str, Examined], pairs: Sequence[Pair], result: _CaseResult) -> None:
    """Tells what was found, and puts it into the report."""
    result.entry["sanity"] = {pair.field_name: asdict(examined[pair.field_name].sanity) for pair in pairs}
    for pair in pairs:
        name, found = pair.field_name, examined[pair.field_name]
        if found.chosen is not None:
            log.info("%s: %s result written (--fallback)", name, found.chosen)
            choices = result.entry.setdefault("fallback", {})
            choices[name] = {"chosen": found.chosen, "distances": found.distances}
        for sentence in found.sanity.warnings:
            _warn(f"{name}: {sentence}", result)


def _warn(sentence: str, result: _CaseResult) -> None:
    log.warning("%s", sentence)
    result.warnings.append(sentence)


def _tell(name: str, judgement: Judgement, config: Preset, result: _CaseResult) -> None:
    """Says what was chosen and, where it can hardly be believed, warns."""
    before, after = judgement.similarity["identity"], judgement.confidence
    log.info("%s: %s result, similarity %.2f before, %.2f after", name, judgement.chosen, before, after)
    if isinstance(config, Cascade) and after < config.doubtful_similarity:
        _warn(
            f"{name}: low confidence: similarity {after:.2f}; unrelated images have 0, right results mostly more than "
            f"{config.doubtful_similarity:.2f} ({judgement.chosen} result)",
            result,
        )
