"""Compiled code on disk: whoever can write there decides what runs, so only folders into which nobody else may write are used.

What is cut off or damaged, as by a full disk or a power failure, counts as absent.
"""

import hashlib
import os
import pickle
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from mcbo.core.errors import OutputError
from mcbo.core.log import log

_SEAL_BYTES = hashlib.sha256().digest_size


def is_open(found: os.stat_result) -> bool:
    """Whether others than its owner may write to what has this status."""
    return bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def own_folder(folder: Path) -> Path:
    """Makes a folder with mode 0700, if need be.

    Raises:
        OutputError: if that fails, or it belongs to another user, or others may write to it.
    """
    user = os.getuid()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except (OSError, ValueError) as error:
        raise OutputError(f"{folder}: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(found.st_mode) and found.st_uid == user and not is_open(found):
        return folder
    raise OutputError(
        f"{folder}: expected a folder of user {user} that nobody else may write to, found {stat.filemode(found.st_mode)} "
        f"of user {found.st_uid}"
    )


def temporary_folder(name: str) -> Path:
    """A folder for each user in the temp folder; not made yet. Raises ``OutputError`` if there is no temp folder."""
    try:
        return Path(tempfile.gettempdir(), f"{name}-{os.getuid()}")
    except OSError as error:
        raise OutputError(f"TMPDIR: {error.strerror or error}") from error


@cache
def kernel_folder(sources: Path, chosen: str) -> Path | None:
    """Where the compiled functions of the files in a folder are kept; None, and a warning, if that is nowhere.

    What was ``chosen``, if anything. Else beside the source, where whoever may write could change the source itself; else in
    the home folder, else in the temp folder.
    """
    beside = sources / "__pycache__"
    if not chosen and _takes_files(beside):
        return beside
    problems = []
    for candidate in _candidates(chosen):
        try:
            folder = own_folder(candidate())
        except (OutputError, RuntimeError) as error:  # also: a user without a home
            problems.append(str(error))
            continue
        if not _takes_files(folder):
            problems.append(f"{folder}: it cannot be written to")
            continue
        if chosen and problems:
            complain("chosen", "NUMBA_CACHE_DIR is not used, but %s: %s", folder, problems[0])
        return folder
    complain("nowhere", "compiled kernels are not kept, so that every run compiles anew what it needs: %s", "; ".join(problems))
    return None


def _candidates(chosen: str) -> Iterator[Callable[[], Path]]:
    if chosen:
        yield Path(chosen).absolute
    yield lambda: Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mcbo-numba")
    yield lambda: temporary_folder("mcbo-numba")


def _takes_files(folder: Path) -> bool:
    try:
        folder.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def sealed(content: bytes) -> bytes:
    """Content with its digest behind it."""
    return content + hashlib.sha256(content).digest()


def unsealed(whole: bytes) -> bytes | None:
    """What was ``sealed``; None if it is not whole."""
    content, seal = whole[:-_SEAL_BYTES], whole[-_SEAL_BYTES:]
    return content if content and hashlib.sha256(content).digest() == seal else None


class KernelFiles:
    """The files of a compiled function, in place of numba's own, which are taken for whole: an index, and one for each key.

    Args:
        folder: ``kernel_folder``; without one, nothing is saved.
        name: of the function, unique in the folder.
        stamp: of what the code was compiled from; files with another one count as absent.
        dump: numba's, for what pickle alone cannot do.
        shipped: a folder that is only read, and first: what was compiled ahead of time.
    """

    def __init__(
        self, folder: Path | None, name: str, stamp: str, dump: Callable[[object], bytes], *, shipped: Path | None = None
    ) -> None:
        self._folder, self._name, self._stamp, self._dump = folder, name, stamp, dump
        self._shipped = None if shipped is None else KernelFiles(shipped, name, stamp, dump)

    def load(self, key: object) -> Any:
        """What was saved; None if there is nothing, or it is damaged."""
        shipped = None if self._shipped is None else self._shipped.load(key)
        if shipped is not None:
            return shipped
        name = self._index().get(key)
        stamp, its_key, data = (None if name is None else self._read(name)) or ("", None, None)
        return data if (stamp, its_key) == (self._stamp, key) else None  # else another version wrote it since

    def save(self, key: object, data: object) -> None:
        """Saves what ``load`` returns for an equal key; raises ``OSError``."""
        if self._folder is None:
            return
        index = self._index()
        if key not in index:
            index[key] = f"{self._name}.{len(index) + 1}.nbc"
            self._write(self._folder, self._index_name, (self._stamp, None, index))
        self._write(self._folder, index[key], (self._stamp, key, data))

    def flush(self) -> None:
        """Forgets everything."""
        if self._folder is not None:
            self._write(self._folder, self._index_name, (self._stamp, None, {}))

    @property
    def _index_name(self) -> str:
        return f"{self._name}.nbi"

    def _index(self) -> dict[object, str]:
        stamp, _, index = self._read(self._index_name) or ("", None, {})
        return index if stamp == self._stamp else {}

    def _read(self, name: str) -> tuple[str, object, Any] | None:
        if self._folder is None:
            return None
        try:
            whole = (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        with suppress(Exception):  # of any kind, since it is unpickled
            stamp, key, data = pickle.loads(unsealed(whole) or b"")  # noqa: S301 (nobody else may write there)
            return stamp, key, data
        complain("damaged", "%s: expected a compiled kernel, found a damaged file: compiled anew", self._folder / name)
        return None

    def _write(self, folder: Path, name: str, data: object) -> None:
        partial = folder / f"{name}.{secrets.token_hex(8)}"
        try:
            partial.write_bytes(sealed(self._dump(data)))
            partial.replace(folder / name)
        except OSError:
            with suppress(OSError):
                partial.unlink()
            raise


@cache
def stamp_of(sources: Path) -> str:
    """Of all files below a folder, since functions are inlined into those of others."""
    whole = hashlib.sha256()
    for path in sorted(sources.glob("**/*.py")):
        whole.update(path.read_bytes())
    return whole.hexdigest()


class Complaint:
    """Says once in a process what is wrong with a cache, as a warning; what follows is for the verbose log."""

    def __init__(self) -> None:
        self._said: set[object] = set()

    def __call__(self, about: object, message: str, *arguments: object) -> None:
        (log.debug if about in self._said else log.warning)(message, *arguments)
        self._said.add(about)


complain = Complaint()
