"""Reads a JSON that describes something, whoever wrote it: within limits, and with a sentence for whatever is wrong.

Python's own limit of 4300 digits holds for whole numbers. ``pydantic_core.from_json`` would not do: its limit of 201 levels is
fixed, and of a key that stands twice in one object it silently takes the last.
"""

import json
from pathlib import Path

from mcbo.core.errors import InputError
from mcbo.io.files import regular_size, shown
from mcbo.io.source import File

MAX_BYTES = 2**23
"""50,000 pairs. What Python makes of such a file takes up to 30 times as much memory: 0.25 GB."""

MAX_DEPTH = 50
"""Levels of brackets. Datasets have 4."""


def read_description(path: File, *, kind: str = "a dataset JSON") -> dict[str, object]:
    """The object that a JSON file holds.

    Args:
        path: of the file.
        kind: what it should be, for messages.

    Raises:
        InputError: if the file is not that, too large, nested too deeply, or has a key twice in one object.
    """
    size = regular_size(path, kind)
    if size > MAX_BYTES:
        raise InputError(f"{path}: expected {kind} of at most {MAX_BYTES} bytes, found {size}")
    try:
        with Path(path).open("rb") as file:
            text = file.read(MAX_BYTES).decode("utf-8-sig")
        content = json.loads(text, object_pairs_hook=_once)
        depth = _depth(content)
    except RecursionError:
        depth = MAX_DEPTH + 1
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, not JSON, numbers of too many digits
        raise InputError(f"{path}: expected {kind}, but it cannot be read: {error}") from error
    if depth > MAX_DEPTH:
        raise InputError(f"{path}: expected {kind} of at most {MAX_DEPTH} levels of brackets, found more")
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object ({kind}), found a {type(content).__name__}")
    return content


def _once(items: list[tuple[str, object]]) -> dict[str, object]:
    """An object; of two equal keys, nobody can tell which was meant."""
    found: dict[str, object] = {}
    for key, value in items:
        if key in found:
            raise ValueError(f"the key {shown(key)} stands twice in one object")
        found[key] = value
    return found


def _depth(content: object) -> int:
    """Levels of brackets, counted without recursion."""
    depth, level = 0, [content]
    while level:
        depth += 1
        inner = [value.values() if isinstance(value, dict) else value for value in level if isinstance(value, dict | list)]
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
    return depth
