"""Resume: which cases the reports in the output folder say are done, and how new results join them."""

import hashlib
import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TypeVar

from mcbo.core.errors import InputError
from mcbo.dataset.learn2reg import Case, Pair, wanted
from mcbo.io.files import digest
from mcbo.io.nifti_header import read_header
from mcbo.io.source import File
from mcbo.methods.config import Preset
from mcbo.report import CaseReport, earlier_cases
from mcbo.runs.case import CaseResult
from mcbo.runs.options import Options
from mcbo.runs.outputs import output_files

Value = TypeVar("Value")

_REPORTS = ("report*.json", ".entry-*.json")
"""Where else a case may be reported: by shards, and by workers whose client died."""


def entry_file(case: Case, options: Options) -> Path:
    """The report of this case alone, which a worker leaves until the client has the case in its own report."""
    name = hashlib.sha256(f"{options.report_name}\n{case.name}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return options.output / f".entry-{name}.json"


def read_earlier(own: Mapping[str, CaseReport], config: Preset, options: Options) -> dict[str, list[CaseReport]]:
    """What our reports in the output folder say of each case, this run's own report first.

    Args:
        own: the cases of that.
        config: the preset.
        options: of the run.
    """
    found = {name: [report] for name, report in own.items()}
    paths = {path for pattern in _REPORTS for path in options.output.glob(pattern)}
    for path in sorted(paths - {options.output / options.report_name}):
        for name, report in earlier_cases(path, config).items():
            found.setdefault(name, []).append(report)
    return found


def done_before(case: Case, earlier: Sequence[CaseReport], config: Preset, options: Options) -> CaseResult | None:
    """The result of a case that an earlier run has done, or None if it has to be done.

    Images may be gone since, as when a share is not mounted. Then the case cannot be done again, but its files are kept, and
    so is what the report says of it; the pairs whose images are gone have failed in this run.
    """
    if not earlier:
        return None
    asked = wanted(case, options.movings)
    outputs = [path for pair in asked for path in output_files(pair, options)]
    inputs = input_digests(case, config, options)
    # Not Path.exists, which raises if the folder is closed to us.
    gone = [path for path in _input_files(case, config, options) if not os.path.exists(path)]  # noqa: PTH110
    if options.overwrite and not gone:
        return None

    def holds(report: CaseReport) -> bool:
        known = inputs | {key: report.inputs.get(key) for key in map(_key, gone)}
        return report.coordinates == "voxels" and report.holds(known, outputs)

    report = next(filter(holds, earlier), None)
    if report is None:
        return None
    result = CaseResult(started=True, is_fresh=False, report=report)
    for pair in asked:
        path = next((path for path in (case.fixed, pair.moving) if path in gone), None)
        if path is None:
            result.written.append(output_files(pair, options)[0])
        else:
            result.failed[pair.field_name] = f"{path}: unreachable; the result of an earlier run is kept"
            result.complain(f"{pair.field_name} is not done: {result.failed[pair.field_name]}")
    if not gone:
        result.say(f"case {case.name}: done before with the same input and config, skipped (--overwrite does it again)")
    return result


def merged(earlier: CaseReport | None, result: CaseResult) -> CaseReport:
    """What the report says of a case: of the same input, files that earlier runs wrote for other channels or formats stay."""
    now = result.report
    if earlier is None or earlier is now or earlier.inputs != now.inputs:
        return now
    if not result.is_fresh:  # from another report, as it was found
        return now.model_copy(update={"written": earlier.written | now.written})
    dealt_with = now.failed.keys() | now.sanity.keys()
    kept = {file: value for file, value in earlier.written.items() if file not in result.lost}
    joined = now.model_copy(
        update={
            "written": kept | now.written,
            "failed": _of_others(earlier.failed, dealt_with) | now.failed,
            "placeholder": _of_others(earlier.placeholder, dealt_with) | now.placeholder,
            "sanity": _of_others(earlier.sanity, dealt_with) | now.sanity,
            "warnings": [text for text in earlier.warnings if text.partition(":")[0] not in dealt_with] + now.warnings,
        }
    )
    if earlier.judgement or now.judgement:
        joined.judgement = _of_others(earlier.judgement, dealt_with) | now.judgement
    return joined


def _of_others(values: Mapping[str, Value], dealt_with: Set[str]) -> dict[str, Value]:
    return {name: value for name, value in values.items() if name not in dealt_with}


def used_pairs(case: Case, config: Preset, options: Options) -> Sequence[Pair]:
    """The pairs whose moving images are read: where modalities are fused, those that are not asked for help the others."""
    return case.pairs if config.modality_fusion else wanted(case, options.movings)


def input_digests(case: Case, config: Preset, options: Options) -> dict[str, str | None]:
    """SHA-256 of the input files of a case, by absolute path; None for those that cannot be read or are no images."""
    return {_key(path): _digest_image(path) for path in _input_files(case, config, options)}


def _input_files(case: Case, config: Preset, options: Options) -> list[File]:
    return [case.fixed, *(pair.moving for pair in used_pairs(case, config, options))]


def _key(path: File) -> str:
    return str(path.absolute())


def _digest_image(path: File) -> str | None:
    try:
        read_header(path)  # refuses files that are far larger than their images
    except InputError:
        return None
    return digest(path)
