"""Files that are whole or not there, whatever befalls the run that writes them."""

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

from mcbo.core.errors import DiskSpaceError, InputError, OutputError
from mcbo.io.source import File

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 120

_PARTIAL = re.compile(r"\.partial-[0-9a-f]{8}-.")
"""How names begin under which files are written. The rest is the final name: what writes them goes by its suffix."""

LOCK_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
"""What file systems without locks answer."""

_SYNC_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EROFS, errno.EACCES, errno.EPERM}
"""What file systems that cannot sync a file or a folder answer; whatever else goes wrong then is a failed write."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file under another name first, so that what is seen under ``path`` is always whole, even after a power cut.

    Args:
        path: of the file.
        write: called with the other name, in the same folder and with the same suffix.

    Raises:
        OutputError: if that fails; nothing of the attempt stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _partial(path) as (partial, descriptor):
            write(partial)
            _sync(descriptor)
            partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _sync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def prepare_folder(folder: Path) -> None:
    """Makes a folder and sees, before anything is computed, that results can be written there; clears what killed runs left.

    Raises:
        OutputError: if not.
    """
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
    """Refuses what the file system of a folder has no room for.

    Raises:
        DiskSpaceError: with both figures.
    """
    free = free_disk_bytes(folder)
    if needed_bytes > free:
        raise DiskSpaceError(
            f"{folder}: {what} may take {format_bytes(needed_bytes)} (before compression), "
            f"but {format_bytes(free)} are free there: free some, or choose another --output"
        )


def free_disk_bytes(folder: Path) -> int:
    """Bytes that this user may still write to the file system of a folder; quotas are not seen."""
    return shutil.disk_usage(folder).free


def format_bytes(count: int) -> str:
    """``12 kB``, ``3.4 MB``, ``5.6 GB``."""
    if count < 1_000_000:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:.1f} MB" if count < 1_000_000_000 else f"{count / 1e9:.1f} GB"


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[tuple[Path, int]]:
    """An empty file beside ``path``, locked as long as it is written, and its descriptor; gone in the end unless renamed.

    The kernel releases the lock of a process that dies, so that a partial file without a lock is one that nobody writes:
    neither clocks nor process numbers (in every container 1) tell that.
    """
    while True:
        partial = path.with_name(f".partial-{secrets.token_hex(4)}-{path.name}")
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            lock_file(descriptor, wait=True)
            if is_same_file(partial, descriptor):  # else a run that clears up was faster than the lock: once more
                yield partial, descriptor
                return
        finally:
            with contextlib.suppress(OSError):  # renamed; or the folder itself is out of reach
                partial.unlink(missing_ok=True)
            os.close(descriptor)


def _clear_if_left(partial: Path) -> None:
    """Removes a partial file that no living process writes. Where the file system does not support locks, it stays."""
    try:
        descriptor = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # gone meanwhile, or nothing of ours
        return
    try:
        if lock_file(descriptor, wait=False) and is_same_file(partial, descriptor):
            with contextlib.suppress(OSError):  # a folder of that name
                partial.unlink()
    except BlockingIOError:
        pass  # another run is at it
    finally:
        os.close(descriptor)


def lock_file(descriptor: int, *, wait: bool, shared: bool = False) -> bool:
    """Locks an open file against other processes until it is closed; whether its file system can.

    Raises:
        BlockingIOError: if another process holds it and this one shall not wait.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in LOCK_UNSUPPORTED:
            return False
        raise
    return True


def is_same_file(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one under its path."""
    try:
        there, here = path.lstat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _sync(descriptor: int) -> None:
    """Brings what was written to the disk, where the file system can do that."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _SYNC_UNSUPPORTED:
            raise


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def shown(value: object) -> str:
    """What a stranger's file holds, for a sentence: quoted, on one line, and cut where it is long or deep."""
    return _short.repr(value)


def regular_size(path: File, expected: str) -> int:
    """Bytes of a regular file, without opening it: to open a named pipe would wait for ever.

    Args:
        path: the file.
        expected: what it should be, for the sentence.

    Raises:
        InputError: if it is anything but a file with content.
    """
    try:
        status = Path(path).stat()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected {expected}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected {expected}, but: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "a special file")
        raise InputError(f"{path}: expected {expected}, found {kind}")
    if status.st_size == 0:
        raise InputError(f"{path}: expected {expected}, found an empty file")
    return status.st_size


def digest(path: File) -> str | None:
    """SHA-256 of a file, or None if it cannot be read or is none: to open a named pipe would never end."""
    if not path.is_file():
        return None
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
