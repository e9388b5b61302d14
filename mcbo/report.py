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

from mcbo.io.files import write_whole
from mcbo.methods.config import Preset
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


def read_entries(path: Path, config: Preset | None) -> dict[str, Entry]:
    """The cases of an earlier report, if it was made by this version with this config; else none.

    Without a config: of any report that was not edited.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="ascii"))
        if content.pop("sha256") != _own_digest(content):
            return {}
        here = versions()
        same = config is None or (
            content["config"] == json.loads(json.dumps(asdict(config)))
            and all(content["versions"][name] == here[name] for name in DECIDING)
        )
        return {name: entry for name, entry in content["cases"].items() if isinstance(entry, dict)} if same else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # no report of ours
        return {}


def _own_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of a report's content, however it is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).hexdigest()
