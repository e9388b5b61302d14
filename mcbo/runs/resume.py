"""Resume: which cases the reports in the output folder say are done, and how new results join them."""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcbo.core.errors import InputError
from mcbo.core.log import without_secrets
from mcbo.dataset.learn2reg import Case, Pair, wanted
from mcbo.io.files import digest
from mcbo.io.nifti_header import read_header
from mcbo.io.source import File
from mcbo.report import CaseReport, earlier_cases
from mcbo.runs.case import CaseResult
from mcbo.runs.options import Options, Setup
from mcbo.runs.outputs import output_files
from mcbo.runtime import describe_device

_REPORTS = ("report*.json", ".entry-*.json")
"""Where else a case may be reported: by shards, and by workers whose client died."""


def entry_file(case: Case, options: Options) -> Path:
    """The report of this case alone, which a worker leaves until the client's own report includes the case."""
    name = hashlib.sha256(f"{options.report_name}\n{case.name}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return options.output / f".entry-{name}.json"


def read_earlier(own: Mapping[str, CaseReport], setup: Setup) -> dict[str, list[CaseReport]]:
    """What the reports in the output folder say of each case; first ``own``, the cases of this run's report."""
    found = {name: [report] for name, report in own.items()}
    paths = {path for pattern in _REPORTS for path in setup.options.output.glob(pattern)}
    for path in sorted(paths - {setup.options.output / setup.options.report_name}):
        for name, report in earlier_cases(path, setup.config).items():
            found.setdefault(name, []).append(report)
    return found


def done_before(case: Case, inputs: dict[str, str | None], earlier: Sequence[CaseReport], setup: Setup) -> CaseResult | None:
    """The result of a case that an earlier run finished, or None if it has to be computed; ``inputs`` as ``input_digests``.

    Images may be gone since then, as when a share is not mounted. Then the case cannot be computed again, but its files and
    its entry in the report are kept; the pairs whose images are gone have failed in this run.
    """
    options = setup.options
    requested = wanted(case, options.movings)
    outputs = [path for pair in requested for path in output_files(pair, options)]
    # Not Path.exists, which raises if the folder must not be read.
    gone = [path for path in _input_files(case, setup) if not os.path.exists(path)]  # noqa: PTH110
    if options.overwrite and not gone:
        return None
    for report in earlier:
        known = inputs | {key: report.inputs.get(key) for key in map(input_key, gone)}
        if report.coordinates == "voxels" and report.holds(known, outputs):
            break
    else:
        return None
    result = CaseResult(started=True, is_fresh=False, report=report)
    for pair in requested:
        missing = next((path for path in (case.fixed, pair.moving) if path in gone), None)
        if missing is None:
            result.written.append(output_files(pair, options)[0])
        else:
            result.failed[pair.field_name] = f"{missing}: unreachable; the result of an earlier run is kept"
            result.note(f"{pair.field_name} is not done: {result.failed[pair.field_name]}", logging.ERROR)
    if not gone:
        here = describe_device(setup.device)
        where = "" if report.device in ("", here) else f"; on {report.device}, so that it may differ from here by rounding"
        result.note(f"case {case.name}: done before with the same input and config, skipped (--overwrite recomputes it){where}")
    return result


def merged(earlier: CaseReport | None, result: CaseResult) -> CaseReport:
    """What the report says of a case; for the same input, results of earlier runs for other channels or formats stay in it."""
    now = result.report
    if earlier is None or earlier is now or earlier.inputs != now.inputs:
        return now
    if not result.is_fresh:  # from another report, as it was found
        return now.model_copy(update={"written": earlier.written | now.written})
    tried = now.failed.keys() | now.sanity.keys()
    joined: dict[str, Any] = {
        "written": {name: value for name, value in earlier.written.items() if name not in result.lost} | now.written,
        "warnings": [text for text in earlier.warnings if text.partition(":")[0] not in tried] + now.warnings,
    }
    for part in ("failed", "placeholder", "sanity", *(["judgement"] if earlier.judgement or now.judgement else [])):
        others = {name: value for name, value in getattr(earlier, part).items() if name not in tried}
        joined[part] = others | getattr(now, part)
    return now.model_copy(update=joined)


def used_pairs(case: Case, setup: Setup) -> Sequence[Pair]:
    """The pairs whose moving images are read: where modalities are fused, also those that only help the requested ones."""
    return case.pairs if setup.config.modality_fusion else wanted(case, setup.options.movings)


def input_digests(case: Case, setup: Setup, *, known: bool = True) -> dict[str, str | None]:
    """SHA-256 of the input files of a case, by absolute path, the fixed image first.

    None for those that cannot be read or are no images, and for all as long as they need not be ``known``.
    """
    return {input_key(path): image_digest(path) if known else None for path in _input_files(case, setup)}


def _input_files(case: Case, setup: Setup) -> list[File]:
    return [case.fixed, *(pair.moving for pair in used_pairs(case, setup))]


def input_key(path: File) -> str:
    """The name of an input file in reports."""
    return without_secrets(str(path.absolute()))


def image_digest(path: File) -> str | None:
    """SHA-256 of an image; None if it cannot be read or is none."""
    try:
        read_header(path)  # refuses files that are far larger than their images
    except InputError:
        return None
    return digest(path)
