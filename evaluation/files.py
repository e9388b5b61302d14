"""Opens untrusted files: which paths are allowed, how large a file may be, and JSON."""

import json
import os
import stat
from pathlib import Path

from evaluation.errors import EvaluationError, reason, shown

MAX_TEXT_BYTES = 2**23
"""Of a JSON or of landmarks: 50,000 pairs, a quarter of a million points. In memory, JSON takes up to 30 times as much."""

MAX_DEPTH = 50
"""Levels of brackets in a JSON. Datasets have 4."""

MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4095
"""Linux's limits."""


def file_size(path: Path, expected: str) -> int:
    """Bytes of a regular file that is not empty; ``expected`` names its kind in the errors.

    Raises:
        EvaluationError: for anything else. It is not opened: reading a named pipe would block forever.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: expected {expected}, but it cannot be read: {reason(error)}") from error
    if stat.S_ISDIR(status.st_mode):
        raise EvaluationError(f"{path}: expected {expected}, found a folder")
    if not stat.S_ISREG(status.st_mode):
        raise EvaluationError(f"{path}: expected {expected}, found a named pipe, a socket or a device")
    if not status.st_size:
        raise EvaluationError(f"{path}: expected {expected}, found an empty file")
    return status.st_size


def read_text(path: Path, expected: str) -> str:
    """A text file in UTF-8, with or without a byte order mark, of at most ``MAX_TEXT_BYTES``."""
    size = file_size(path, expected)
    if size > MAX_TEXT_BYTES:
        raise EvaluationError(f"{path}: expected {expected} of at most {MAX_TEXT_BYTES} bytes, found {size}")
    try:
        with path.open("rb") as file:
            return file.read(MAX_TEXT_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: expected {expected}, but the file cannot be read: {reason(error)}") from error


def read_json(path: Path) -> dict[str, object]:
    """A JSON object, within the limits above; a key that appears twice in an object is an error."""
    content = _read_json(path)
    if not isinstance(content, dict):
        raise EvaluationError(f"{path}: expected a JSON object, found a {type(content).__name__}")
    return content


def read_json_list(path: Path) -> list[object]:
    """A JSON list, likewise."""
    content = _read_json(path)
    if not isinstance(content, list):
        raise EvaluationError(f"{path}: expected a JSON list, found a {type(content).__name__}")
    return content


def _read_json(path: Path) -> object:
    text = read_text(path, "a JSON file")
    try:
        content = json.loads(text, object_pairs_hook=_without_repeats)
        too_deep = _is_deeper(content, MAX_DEPTH)
    except RecursionError:
        too_deep = True
    except ValueError as error:  # not JSON, a repeated key, or a number of more than Python's 4300 digits
        raise EvaluationError(f"{path}: expected a JSON file, but it cannot be read: {error}") from error
    if too_deep:
        raise EvaluationError(f"{path}: expected a JSON file of at most {MAX_DEPTH} levels of brackets, found more")
    parsed: object = content
    return parsed


def _without_repeats(items: list[tuple[str, object]]) -> dict[str, object]:
    seen: dict[str, object] = {}
    for key, value in items:
        if key in seen:
            raise ValueError(f"the key {shown(key)} stands twice in one object")
        seen[key] = value
    return seen


def _is_deeper(content: object, levels: int) -> bool:
    inside = content.values() if isinstance(content, dict) else content if isinstance(content, list) else None
    if inside is None:
        return False
    return levels == 0 or any(_is_deeper(value, levels - 1) for value in inside)


def entry_path(root: Path, text: object, where: str, *, trusted: bool) -> Path:
    """The path that a dataset entry names, absolute or relative to ``root``, the dataset's folder.

    Raises:
        EvaluationError: if it is no path, or leads out of ``root`` and is not ``trusted``; ``where`` names the entry.
    """
    try:
        encoded = os.fsencode(text) if isinstance(text, str) and text.isprintable() else b""
    except UnicodeEncodeError:
        encoded = b""
    if not isinstance(text, str) or not encoded:
        raise EvaluationError(f"{where}: expected the path of an image, found {shown(text)}; correct the entry")
    if len(encoded) > MAX_PATH_BYTES or max(map(len, encoded.split(b"/"))) > MAX_NAME_BYTES:
        raise EvaluationError(f"{where}: expected the path of an image, found {shown(text)}, too long; correct the entry")
    path = root / text
    if not trusted:
        check_inside(path, root, where)
    return path


def check_inside(path: Path, root: Path, where: str) -> None:
    """Raises EvaluationError if a path, with its links followed, leads out of a folder."""
    real, bounds = os.path.realpath(path), os.path.realpath(root)
    if os.path.commonpath([real, bounds]) != bounds:
        raise EvaluationError(
            f"{where}: expected a path inside the dataset's folder {root}, found {shown(str(path))}, which leads to "
            f"{shown(real)}; copy the file into that folder, or allow it with --trust-paths or MCBO_TRUST_PATHS=1"
        )
