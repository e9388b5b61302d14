"""Untrusted JSON, read within limits; Python itself limits whole numbers to 4300 digits.

``pydantic_core.from_json`` would not do: its limit of 201 levels is fixed, and of two equal keys it silently takes the last.
"""

import json
import re
from pathlib import Path
from typing import Any

from mcbo.core.errors import InputError
from mcbo.io.files import reading, regular_size, shown
from mcbo.io.source import File

MAX_BYTES = 2**23
"""Of a dataset: 50,000 pairs. Parsed, such a file takes up to 30 times as much memory: 0.25 GB."""

MAX_DEPTH = 50
"""Levels of brackets. Datasets have 4."""

MAX_VALUES = 2**23
"""Numbers, texts, lists and objects, each of up to 100 bytes of memory."""

_SURROGATE = re.compile(r"\\u[dD]")
"""How half a character begins, or a whole one that is written as two halves."""


def read_description(path: File) -> dict[str, object]:
    """The object in a dataset JSON; raises ``InputError`` as ``read_json``, or if it is no object."""
    content = read_json(path, "a dataset JSON")
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object (a dataset JSON), found a {type(content).__name__}")
    return content


def read_json(path: File, expected: str, *, max_bytes: int = MAX_BYTES) -> Any:
    """The content of a file; raises ``InputError``, beginning with its name, as ``parse_json`` or for more bytes."""
    size = regular_size(path, expected)
    if size > max_bytes:
        raise InputError(f"{path}: expected {expected} of at most {max_bytes} bytes, found {size}")
    with reading(path, expected):  # ValueError: not UTF-8
        with Path(path).open("rb") as file:
            text = file.read(max_bytes).decode("utf-8-sig")
        return parse_json(text, expected)


def parse_json(text: str, expected: str, *, max_values: int = MAX_VALUES, surrogates: bool = True) -> Any:
    """The content of a JSON text.

    Args:
        text: may come from anywhere.
        expected: for messages, ``a dataset JSON``.
        max_values: each comma, colon and bracket counts as one.
        surrogates: whether texts may contain halves of characters, as file names do that are not UTF-8; no file
            can be written with them as they are.

    Raises:
        InputError: if it is no JSON, too large, nested too deeply, has a key twice in one object, or half a character.
    """
    if sum(map(text.count, ",:[{")) > max_values:
        raise InputError(f"expected {expected} of at most {max_values} values, found more")
    try:
        content = json.loads(text, object_pairs_hook=_once)
        depth = _depth(content)
    except RecursionError:
        depth = MAX_DEPTH + 1
    except ValueError as error:  # no JSON, or numbers of too many digits
        raise InputError(f"expected {expected}, but it cannot be read: {error}") from error
    if depth > MAX_DEPTH:
        raise InputError(f"expected {expected} of at most {MAX_DEPTH} levels of brackets, found more")
    if not surrogates and _SURROGATE.search(text) and not _is_encodable(content):
        raise InputError(f"expected {expected} of whole characters, found halves of some (\\ud800 to \\udfff): correct them")
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


def _is_encodable(content: object) -> bool:
    try:
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def format_json(content: object) -> str:
    """Content as ``parse_json`` returns it, without halves of characters, as text for a file."""
    return json.dumps(content, indent=4, ensure_ascii=False) + "\n"
