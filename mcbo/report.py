"""The report of a run: what was done, with what, how long it took; and what a later run need not do again.

It carries a digest of itself: what was edited by hand, or cut off, is no ground to skip anything.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mcbo.config import Preset
from mcbo.files import write_whole
from mcbo.runtime import DECIDING, versions

Entry = dict[str, Any]
"""What the report says of a case; see ``case_*.py``."""


def write_report(path: Path, entries: Mapping[str, Entry], config: Preset, device: str, *, stopped: str | None = None) -> None:
    """Writes the report, whole or not at all.

    Args:
        path: of the report.
        entries: by the case's name.
        config: the preset.
        device: where it ran, for people.
        stopped: why the run ended before all cases were tried, if it did.

    Raises:
        OutputError: if that fails.
    """
    content = {
        "versions": versions(),
        "device": device,
        "threads": torch.get_num_threads(),
        "config": asdict(config),
        "stopped": stopped,
        "cases": entries,
    }
    content["sha256"] = _own_digest(content)
    # File names may hold what no encoding can write, so everything outside ASCII is escaped.
    write_whole(path, lambda file: file.write_text(json.dumps(content, indent=1) + "\n", encoding="ascii"))


def read_entries(path: Path, config: Preset) -> dict[str, Entry]:
    """The cases of an earlier report, if it was made by this version with this config; else none."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="ascii"))
        if content.pop("sha256") != _own_digest(content):
            return {}
        here = versions()
        same = content["config"] == json.loads(json.dumps(asdict(config))) and all(
            content["versions"][name] == here[name] for name in DECIDING
        )
        return {name: entry for name, entry in content["cases"].items() if isinstance(entry, dict)} if same else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # no report of ours
        return {}


def digest(path: Path) -> str | None:
    """SHA-256 of a file, or None if it cannot be read or is none: to open a named pipe would never end."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _own_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of a report's content, however it is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).hexdigest()


def is_done(entry: Entry | None, inputs: Mapping[str, str | None], outputs: list[Path], options: Mapping[str, object]) -> bool:
    """Whether a case need not be done again: the same inputs and options, and every output there, as it was written."""
    if entry is None or entry.get("inputs") != inputs or entry.get("options") != options:
        return False
    written = entry.get("written")
    return isinstance(written, dict) and all(
        path.name in written and written[path.name] == digest(path) is not None for path in outputs
    )
