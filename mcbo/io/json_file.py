"""Untrusted JSON files, read within limits; Python itself limits whole numbers to 4300 digits.

``pydantic_core.from_json`` would not do: its limit of 201 levels is fixed, and of two equal keys it silently takes the last.
"""

import json
from pathlib import Path

from mcbo.core.errors import InputError
from mcbo.io.files import reading, regular_size, shown
from mcbo.io.source import File

MAX_BYTES = 2**23
"""50,000 pairs. Parsed, such a file takes up to 30 times as much memory: 0.25 GB."""

MAX_DEPTH = 50
"""Levels of brackets. Datasets have 4."""


def read_description(path: File) -> dict[str, object]:
    """The object in a dataset JSON; raises ``InputError`` as ``read_json``, or if it is no object."""
    content = read_json(path, "a dataset JSON")
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object (a dataset JSON), found a {type(content).__name__}")
    return content


def read_json(path: File, what: str) -> object:
    """The content of a JSON file, which error messages call ``what``.

    Raises:
        InputError: if the file is not that, too large, nested too deeply, or has a key twice in one object.
    """
    size = regular_size(path, what)
    if size > MAX_BYTES:
        raise InputError(f"{path}: expected {what} of at most {MAX_BYTES} bytes, found {size}")
    with reading(path, what):  # ValueError: not UTF-8, not JSON, numbers of too many digits
        with Path(path).open("rb") as file:
            text = file.read(MAX_BYTES).decode("utf-8-sig")
        try:
            content = json.loads(text, object_pairs_hook=_once)
            depth = _depth(content)
        except RecursionError:
            depth = MAX_DEPTH + 1
    if depth > MAX_DEPTH:
        raise InputError(f"{path}: expected {what} of at most {MAX_DEPTH} levels of brackets, found more")
    return content


def _once(items: list[tuple[str, object]]) -> dict[str, object]:
    """An object without repeated keys, since it is unclear which value was meant."""
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
