"""Opens untrusted files: which paths are allowed, how large a file may be, and JSON. Writes files whole or not at all."""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from evaluation.errors import EvaluationError, reason, shown

MAX_TEXT_BYTES = 2**23
"""Of a JSON or of landmarks: 50,000 pairs, a quarter of a million points. In memory, JSON takes up to 30 times as much."""

MAX_DEPTH = 50
"""Levels of brackets in a JSON. Datasets have 4."""

_NO_SYNC = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EROFS, errno.EACCES, errno.EPERM, 524}
"""Errors of file systems that cannot sync; 524 is the kernel's own ENOTSUPP. Any other is a failed write."""

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


def check_outputs(outputs: Mapping[str, Path | None], inputs: Iterable[Path]) -> None:
    """Checks, before the work starts, the files that a command is to write, by option; of those that it does not write, None.

    Raises:
        EvaluationError: if one is an input, by whatever name, or another output, too; if it is a link, a folder, a pipe or a
            device; or if it cannot be written where it is.
    """
    known = {identity(path): path for path in inputs}
    known.pop(None, None)
    seen: dict[str, str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        _check_kind(option, path)
        other = seen.setdefault(os.path.realpath(path), option)
        if other != option:
            raise EvaluationError(f"{option}: expected another file than that of {other}, found {path} for both")
        check_not_input(path, known)
        clear_left(path.parent)


def check_not_input(path: Path, known: Mapping[tuple[int, int] | None, Path]) -> None:
    """Raises EvaluationError if a file to write is one of those whose ``identity`` is known."""
    lost = known.get(identity(path))
    if lost is not None:
        same = "" if str(lost) == str(path) else f" (the same file as {lost})"
        raise EvaluationError(f"{path}: expected another output than an input{same}, which would be lost")


def identity(path: Path) -> tuple[int, int] | None:
    """The same for all paths of a file; None if it is not there."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _check_kind(option: str, path: Path) -> None:
    try:
        if path.is_symlink():
            raise EvaluationError(
                f"{option}: expected a file to write, found a link: {path}; name the file that it leads to, "
                f"{os.path.realpath(path)}, or remove the link"
            )
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "a named pipe, a socket or a device"
            raise EvaluationError(f"{option}: {path}: cannot be written there: expected a file, found {kind}")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        with _partial(folder / "probe"):  # permissions do not tell of all reasons
            pass
    except OSError as error:
        raise EvaluationError(f"{option}: {path}: cannot be written there: {reason(error)}") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all; EvaluationError if it cannot be written."""

    def write(file: Path) -> None:
        file.write_bytes(content)
        if file.stat().st_size != len(content):
            raise OSError(errno.EIO, f"{file.stat().st_size} of {len(content)} bytes arrived")

    write_whole(path, write)


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Has ``write`` write under another name in the same folder, syncs, then renames it.

    Folders above are made. After an error neither they nor the partial file stay.

    Raises:
        EvaluationError: if it cannot be written.
    """
    made = [folder for folder in path.parents if not os.path.lexists(folder)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _partial(path) as (partial, descriptor):
            write(partial)
            _sync(descriptor)
            partial.replace(path)
        with contextlib.suppress(PermissionError):
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                _sync(folder)
            finally:
                os.close(folder)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the first that is not empty
            for folder_made in made:
                folder_made.rmdir()
        if isinstance(error, OSError):
            raise EvaluationError(f"{path}: cannot be written: {reason(error)}") from error
        raise


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[tuple[Path, int]]:
    """An empty file beside ``path`` and its descriptor; removed after the block unless renamed.

    Its name and lock are those of mcbo's own, which clears what killed programs left.
    """
    partial = path.with_name(f".partial-{secrets.token_hex(4)}-{path.name[-50:]}")
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with contextlib.suppress(OSError):  # no locks there
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield partial, descriptor
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        os.close(descriptor)


def clear_left(folder: Path) -> None:
    """Removes what killed programs left in a folder: partial files that nobody has locked."""
    with contextlib.suppress(OSError):
        for left in folder.glob(".partial-????????-?*"):
            with contextlib.suppress(OSError):  # locked, without locks, or not ours
                descriptor = os.open(left, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    left.unlink()
                finally:
                    os.close(descriptor)


def _sync(descriptor: int) -> None:
    """Flushes a file or folder to the disk, where the file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
