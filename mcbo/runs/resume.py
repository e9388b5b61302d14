"""What need not be done again: the entries that earlier runs left in the output folder, and how new ones join them."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcbo.core.errors import InputError
from mcbo.dataset.learn2reg import Case, Pair, wanted
from mcbo.io.files import digest
from mcbo.io.nifti_header import read_header
from mcbo.io.source import File
from mcbo.methods.config import Preset
from mcbo.report import Entry, read_entries
from mcbo.runs.case import CaseResult
from mcbo.runs.options import Options
from mcbo.runs.outputs import output_files

_REPORTS = ("report*.json", ".entry-*.json")
"""What else may know of a case: reports of shards, and what workers said to a client that is dead."""


def entry_file(case: Case, options: Options) -> Path:
    """Where a worker says what became of a case, until the client has it in the report: a report of this case alone."""
    name = hashlib.sha256(f"{options.report_name}\n{case.name}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return options.output / f".entry-{name}.json"


def read_earlier(config: Preset, options: Options) -> dict[str, list[Entry]]:
    """What all reports in the output folder that are ours say of each case, this run's own report first."""
    own = options.output / options.report_name
    others = sorted({path for pattern in _REPORTS for path in options.output.glob(pattern)} - {own})
    found: dict[str, list[Entry]] = {}
    for path in (own, *others):
        for name, entry in read_entries(path, config).items():
            found.setdefault(name, []).append(entry)
    return found


def done_before(case: Case, earlier: Sequence[Entry], config: Preset, options: Options) -> CaseResult | None:
    """The result of a case that an earlier run has done, or None if it has to be done.

    Images may be gone since, as when a share is not mounted. Then the case cannot be done again, but what was written of it
    stays, and so does its entry; the pairs whose images are gone have failed in this run.
    """
    if not earlier:
        return None
    asked = wanted(case, options.movings)
    outputs = [path for pair in asked for path in output_files(pair, options)]
    inputs, options_then = input_digests(case, config, options), deciding(config, options)
    gone = [path for path in _input_files(case, config, options) if not os.path.exists(path)]  # noqa: PTH110 (of a folder that is closed to us, a Path raises)
    if options.overwrite and not gone:
        return None

    def holds(entry: Entry) -> bool:
        then = entry.get("inputs", {})
        return is_done(entry, inputs | {key: then.get(key) for key in map(_key, gone)}, outputs, options_then)

    entry = next((entry for entry in earlier if holds(entry)), None)
    if entry is None:
        return None
    result = CaseResult(started=True, is_fresh=False, entry=entry)
    for pair in asked:
        path = next((path for path in (case.fixed, pair.moving) if path in gone), None)
        if path is None:
            result.written.append(output_files(pair, options)[0])
        else:
            result.failed[pair.field_name] = f"{path}: out of reach; what an earlier run wrote of this pair stays"
            result.complain(f"{pair.field_name} is not done: {result.failed[pair.field_name]}")
    if not gone:
        result.say(f"case {case.name}: done before with the same input and config, skipped (--overwrite does it again)")
    return result


def merged(earlier: Entry | None, result: CaseResult) -> Entry:
    """What the report says of a case: of the same input, files that earlier runs wrote for other channels or formats stay."""
    entry = result.entry
    if earlier is None or earlier is entry or any(earlier.get(key) != entry.get(key) for key in ("inputs", "options")):
        return entry
    if not result.is_fresh:  # an entry of another report, as it was found
        return entry | {"written": {**earlier.get("written", {}), **entry["written"]}}
    dealt_with = entry["failed"].keys() | entry.get("sanity", {}).keys()

    def of_others(values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name not in dealt_with}

    by_pair = [key for key in ("failed", "placeholder", "sanity", "judgement", "fallback") if key in earlier or key in entry]
    joined = entry | {key: of_others(earlier.get(key, {})) | entry.get(key, {}) for key in by_pair}
    kept = {file: value for file, value in earlier["written"].items() if file not in result.lost}
    warnings = [text for text in earlier["warnings"] if text.partition(":")[0] not in dealt_with]
    return joined | {"written": kept | entry["written"], "warnings": warnings + entry["warnings"]}


def deciding(config: Preset, options: Options) -> dict[str, object]:
    """The options on which a displacement depends."""
    return {"fallback": options.fallback and not config.uses_masks}


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


def is_done(entry: Entry | None, inputs: Mapping[str, str | None], outputs: list[Path], options: Mapping[str, object]) -> bool:
    """Whether a case need not be done again: the same inputs and options, and every output there, as it was written."""
    before = None if entry is None else entry.get("inputs")
    if entry is None or not isinstance(before, dict) or entry.get("options") != options:
        return False
    if list(before.items()) != list(inputs.items()):  # in their order: which is fixed counts
        return False
    written = entry.get("written")
    return isinstance(written, dict) and all(
        path.name in written and written[path.name] == digest(path) is not None for path in outputs
    )
