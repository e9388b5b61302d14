"""Files written whole or not at all; checks and error messages for all readers."""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import reprlib
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from mcbo.core.errors import DiskSpaceError, InputError, MemoryBudgetError, OutputError, ShapeError
from mcbo.core.memory import is_exhausted
from mcbo.io.source import File

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 120

_PARTIAL = re.compile(r"\.partial-[0-9a-f]{8}-.")
"""Prefix of the name under which a file is written; the final name follows, since libraries go by its suffix."""

LOCK_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
"""Errors of file systems without locks."""

_SYNC_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EROFS, errno.EACCES, errno.EPERM}
"""Errors of file systems that cannot sync a file or a folder; any other is a failed write."""


Result = TypeVar("Result")


def write_whole(path: Path, write: Callable[[Path], Result]) -> Result:
    """Has ``write`` write under another name in the same folder, then renames it: ``path`` is whole even after a power cut.

    Returns what ``write`` returns.

    Raises:
        OutputError: if that fails; no partial file stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _partial(path) as (partial, descriptor):
            result = write(partial)
            _sync(descriptor)
            partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _sync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    return result


def prepare_folder(folder: Path) -> None:
    """Makes a folder and removes what killed runs left there; raises ``OutputError`` if results cannot be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _partial(folder / "probe"):
            pass
        for left in folder.iterdir():
            if _PARTIAL.match(left.name):
                _clear_if_left(left)
    except OSError as error:
        raise OutputError(
            f"{folder}: results cannot be written there by user {os.getuid()}: {error.strerror or error}"
        ) from error


def check_room(folder: Path, needed_bytes: int, what: str) -> None:
    """Raises ``DiskSpaceError``, with both figures, if the file system of a folder has less room than is needed."""
    free = free_disk_bytes(folder)
    if needed_bytes > free:
        raise DiskSpaceError(
            f"{folder}: {what} may take {format_bytes(needed_bytes)} (before compression), "
            f"but {format_bytes(free)} are free there: free some, or choose another --output"
        )


def free_disk_bytes(folder: Path) -> int:
    """Bytes that this user may still write to the file system of a folder, ignoring quotas."""
    return shutil.disk_usage(folder).free


def format_bytes(count: int) -> str:
    """``12 kB``, ``3.4 MB``, ``5.6 GB``."""
    if count < 1_000_000:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:.1f} MB" if count < 1_000_000_000 else f"{count / 1e9:.1f} GB"


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[tuple[Path, int]]:
    """An empty file beside ``path``, locked while it is written, and its descriptor; removed after the block unless renamed.

    The kernel releases the locks of a process that dies, so an unlocked partial file has no writer. Neither clocks nor process
    numbers (1 in every container) show that.
    """
    while True:
        partial = path.with_name(f".partial-{secrets.token_hex(4)}-{path.name}")
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            lock_file(descriptor, wait=True)
            if is_same_file(partial, descriptor):  # else another run removed it before it was locked: try again
                yield partial, descriptor
                return
        finally:
            with contextlib.suppress(OSError):  # renamed, or the folder is gone
                partial.unlink(missing_ok=True)
            os.close(descriptor)


def _clear_if_left(partial: Path) -> None:
    """Removes a partial file that no living process writes; keeps it where the file system has no locks."""
    try:
        descriptor = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # already gone, or not a file of ours
        return
    try:
        if lock_file(descriptor, wait=False) and is_same_file(partial, descriptor):
            with contextlib.suppress(OSError):  # a folder of that name
                partial.unlink()
    except BlockingIOError:
        pass  # another run is writing it
    finally:
        os.close(descriptor)


def lock_file(descriptor: int, *, wait: bool, shared: bool = False) -> bool:
    """Locks an open file until it is closed; False if its file system has no locks.

    Raises:
        BlockingIOError: without ``wait``, if another process holds the lock.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in LOCK_UNSUPPORTED:
            raise
        return False
    return True


def is_same_file(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one at its path."""
    try:
        there, here = path.lstat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _sync(descriptor: int) -> None:
    """Flushes a file or folder to the disk, where the file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _SYNC_UNSUPPORTED:
            raise


PACKED = (".gz", ".bz2", ".zst")
"""Suffixes of compressed files, behind the one of their format."""

_KINDS = {"d": "a folder", "p": "a named pipe", "s": "a socket", "c": "a device", "b": "a device"}
"""Kinds of files that are not regular, by the first letter of ``stat.filemode``."""


def shown(value: object) -> str:
    """A value from an untrusted file, for a message: quoted, on one line, and cut if it is long or deep."""
    return _short.repr(value)


def reason_of(error: Exception) -> str:
    """An error of a library as the end of a sentence; of ITK's lines the last, since the others name its source code."""
    return getattr(error, "strerror", None) or str(error).strip().rpartition("\n")[2].strip() or type(error).__name__


@contextlib.contextmanager
def reading(name: object, expected: str, errors: tuple[type[Exception], ...] = (OSError, ValueError)) -> Iterator[None]:
    """Turns errors in the block, those of libraries included, into an ``InputError`` that begins with a name.

    A lack of memory becomes a ``MemoryBudgetError``.
    """
    try:
        yield
    except (InputError, ShapeError) as error:
        named = str(error).startswith(f"{name}: ")  # by a reader further in
        raise InputError(str(error) if named else f"{name}: {error}") from error
    except (MemoryError, MemoryBudgetError) as error:
        raise MemoryBudgetError(f"{name}: expected {expected} that fits into memory: {error}") from error
    except errors as error:
        if is_exhausted(error):
            raise MemoryBudgetError(f"{name}: expected {expected} that fits into memory: {reason_of(error)}") from error
        raise InputError(f"{name}: expected {expected}, but it cannot be read: {reason_of(error)}") from error


def is_folder(path: Path) -> bool:
    """Whether there is a folder; False for what cannot be a path, where pathlib raises errors."""
    return os.path.isdir(path)  # noqa: PTH112


def suffix_of(path: Path) -> str:
    """``.nii.gz`` of ``a.nii.gz``, ``.nrrd`` of ``a.b.NRRD``."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:] if suffixes[-1:] and suffixes[-1] in PACKED else suffixes[-1:])


def regular_size(path: File, expected: str) -> int:
    """Bytes of a file, unopened, since a named pipe would block; raises ``InputError`` unless it is regular and not empty."""
    try:
        status = Path(path).stat()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected {expected}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected {expected}, but: {reason_of(error)}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = stat.filemode(status.st_mode)[0]
        raise InputError(f"{path}: expected {expected}, found {_KINDS.get(kind, 'a special file')}")
    if status.st_size == 0:
        raise InputError(f"{path}: expected {expected}, found an empty file")
    return status.st_size


def digest(path: File) -> str | None:
    """SHA-256 of a file; None if it cannot be read or is not a regular file."""
    if not path.is_file():
        return None
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


class Digesting:
    """A file that is written from beginning to end, and what ``digest`` will say of it, without reading it again."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._sha256 = file, hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        self._sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> str:
        """SHA-256 of what was written so far."""
        return self._sha256.hexdigest()
