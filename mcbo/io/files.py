"""Files written whole or not at all; checks and error messages for all readers."""

import contextlib
import errno
import hashlib
import os
import re
import reprlib
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from mcbo.core.errors import DiskSpaceError, InputError, MemoryBudgetError, OutputError, ShapeError
from mcbo.core.log import without_secrets
from mcbo.core.memory import is_exhausted
from mcbo.io.lock import UNSUPPORTED, is_same_file, lock_file
from mcbo.io.source import File

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 120

_PARTIAL = re.compile(r"\.partial-[0-9a-f]{8}-.")
"""Prefix of the name under which a file is written; the final name follows, since libraries go by its suffix."""

_NO_SYNC = UNSUPPORTED | {errno.EROFS, errno.EACCES, errno.EPERM}
"""Errors of file systems that cannot sync a file or a folder; any other is a failed write."""

UNKNOWN_ROOM = sys.maxsize
"""More bytes than anything needs. Network and virtual file systems may report a size of 0 blocks."""

_NAME_KEPT = 50
"""Characters of a name's end that a partial file's name has, so that it is not too long where the final name is not."""

Result = TypeVar("Result")


def write_whole(path: Path, write: Callable[[Path], Result], *, lock: bool = True) -> Result:
    """Has ``write`` write under another name in the same folder, then renames it: ``path`` is whole even after a power cut.

    Returns what ``write`` returns. The file is locked meanwhile, unless ``write`` locks it itself.

    Raises:
        OutputError: if that fails; no partial file stays, and no folder that was made for it.
    """
    try:
        with no_empty_folder(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _partial(path, lock=lock) as (partial, descriptor):
                result = write(partial)
                if is_same_file(partial, descriptor):
                    _sync(descriptor)
                else:  # a library has put another one in its place
                    _sync_path(partial)
                partial.replace(path)
        _sync_path(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    return result


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all (``OutputError``)."""

    def write(file: Path) -> None:
        file.write_bytes(content)
        check_size(file, len(content))

    write_whole(path, write)


def check_size(file: Path, size: int) -> None:
    """Raises ``OSError`` if a file that was written does not have so many bytes, as some file systems let pass in silence."""
    found = file.stat().st_size
    if found != size:
        raise OSError(errno.EIO, f"{found} of {size} bytes arrived")


def check_can_hold(file: Path, size: int) -> None:
    """Raises ``OSError`` if an empty file cannot grow to so many bytes: for libraries that do not notice a full disk."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    with file.open("r+b") as opened:
        try:
            os.posix_fallocate(opened.fileno(), 0, max(size, 1))
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
        finally:
            opened.truncate(0)


@contextlib.contextmanager
def no_empty_folder(folder: Path) -> Iterator[None]:
    """Removes, after the block, a folder and those above it that were made in the block and are empty, as after an error."""
    made = _missing(folder)
    try:
        yield
    finally:
        _remove_empty(made)


def _missing(folder: Path) -> list[Path]:
    """Those of a folder and the folders above it that are not there, the deepest first."""
    return [path for path in (folder, *folder.parents) if not os.path.lexists(path)]


def _remove_empty(folders: Iterable[Path]) -> None:
    with contextlib.suppress(OSError):  # the first that is not empty
        for folder in folders:
            folder.rmdir()


def prepare_folder(folder: Path) -> None:
    """Makes a folder and removes what killed runs left there; raises ``OutputError`` if results cannot be written there."""
    try:
        made = _missing(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe(folder)
        except BaseException:
            _remove_empty(made)
            raise
        for left in folder.iterdir():
            if _PARTIAL.match(left.name):
                _clear_if_left(left)
    except OSError as error:
        kind = kind_of(folder)
        found = "" if kind in (None, "a folder") else f" (expected a folder, found {kind})"
        raise OutputError(
            f"{folder}: results cannot be written there by user {os.getuid()}: {error.strerror or error}{found}"
        ) from error


def probe(folder: Path) -> None:
    """Raises ``OSError`` if no file can be made in a folder: permissions do not tell of all reasons."""
    with _partial(folder / "probe"):
        pass


def check_inputs_stay(targets: Iterable[Path], inputs: Iterable[File]) -> None:
    """Raises ``InputError`` if a file that will be written is one of the inputs, by whatever name (links included)."""
    known = {identity(path): path for path in inputs}
    known.pop(None, None)
    for target in targets:
        lost = known.get(identity(target))
        if lost is not None:
            same = "" if str(lost) == str(target) else f" (the same file as {lost})"
            raise InputError(f"{target}: expected another output than an input{same}, which would be lost")


def identity(path: File) -> tuple[int, int] | None:
    """The same for all paths of a file; None if it is not there."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def check_room(folder: Path, needed_bytes: int, what: str) -> None:
    """Raises ``DiskSpaceError``, with both figures, if the file system of a folder has less room than is needed."""
    free = free_disk_bytes(folder)
    if needed_bytes > free:
        raise DiskSpaceError(
            f"{folder}: {what} may take {format_bytes(needed_bytes)} (before compression), "
            f"but {format_bytes(free)} are free there: free some, or choose another --output"
        )


def free_disk_bytes(folder: Path) -> int:
    """Bytes that this user may still write to a folder's file system, ignoring quotas; ``UNKNOWN_ROOM`` if it does not say."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:  # the folder is gone, for example: whoever writes there next is told
        return UNKNOWN_ROOM
    return usage.free if usage.total else UNKNOWN_ROOM


def format_bytes(count: int) -> str:
    """``12 kB``, ``3.4 MB``, ``5.6 GB``."""
    if count < 1_000_000:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:.1f} MB" if count < 1_000_000_000 else f"{count / 1e9:.1f} GB"


@contextlib.contextmanager
def _partial(path: Path, *, lock: bool = True) -> Iterator[tuple[Path, int]]:
    """An empty file beside ``path``, locked while it is written, and its descriptor; removed after the block unless renamed.

    The kernel releases the locks of a process that dies, so an unlocked partial file has no writer. Neither clocks nor process
    numbers (1 in every container) show that.
    """
    while True:
        partial = path.with_name(f".partial-{secrets.token_hex(4)}-{_end_of_name(path)}")
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            if lock:
                lock_file(descriptor, wait=True)
            if is_same_file(partial, descriptor):  # else another run removed it before it was locked: try again
                yield partial, descriptor
                return
        finally:
            with contextlib.suppress(OSError):  # renamed, or the folder is gone
                partial.unlink(missing_ok=True)
            os.close(descriptor)


def clear_left(path: Path) -> None:
    """Removes what killed commands left of a file beside it."""
    with contextlib.suppress(OSError):
        for left in path.parent.iterdir():
            if _PARTIAL.match(left.name) and left.name.endswith(f"-{_end_of_name(path)}"):
                _clear_if_left(left)


def _end_of_name(path: Path) -> str:
    """As much of a name as a partial file's name has, in characters that every library can write."""
    return "".join(c if c.isascii() else "_" for c in path.name[-_NAME_KEPT:])


def _clear_if_left(partial: Path) -> None:
    """Removes a partial file that no living process writes; keeps it where the file system has no locks."""
    descriptor = None
    for mode in (os.O_RDWR, os.O_RDONLY):  # NFS locks only what may be written; a file of another user may only be read
        with contextlib.suppress(OSError):  # already gone, or not a file of ours
            descriptor = os.open(partial, mode | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            break
    if descriptor is None:
        return
    try:
        if lock_file(descriptor, wait=False) and is_same_file(partial, descriptor):
            with contextlib.suppress(OSError):  # a folder of that name
                partial.unlink()
    except OSError:
        pass  # another run is writing it, or its locks fail
    finally:
        os.close(descriptor)


def _sync_path(path: Path) -> None:
    """Flushes a file or folder to the disk, if it may be opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        return
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    """Flushes a file or folder to the disk, where the file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


PACKED = (".gz", ".bz2", ".zst")
"""Suffixes of compressed files, behind the one of their format."""

_KINDS = {"d": "a folder", "p": "a named pipe", "s": "a socket", "c": "a device", "b": "a device"}
"""Kinds of files that are not regular, by the first letter of ``stat.filemode``."""


def kind_of(path: File) -> str | None:
    """What a path leads to: ``a file``, ``a folder``, ``a named pipe`` and so on; None if nothing is there."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return "a link that leads nowhere" if isinstance(path, Path) and path.is_symlink() else None
    return "a file" if stat.S_ISREG(mode) else _KINDS.get(stat.filemode(mode)[0], "a special file")


def shown(value: object) -> str:
    """A value from a user or a file, for a message: without secrets, quoted, on one line, and cut if it is long or deep."""
    return _short.repr(without_secrets(value) if isinstance(value, str) else value)


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


def suffix_of(path: Path) -> str:
    """``.nii.gz`` of ``a.nii.gz``, ``.nrrd`` of ``a.b.NRRD``."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:] if suffixes[-1:] and suffixes[-1] in PACKED else suffixes[-1:])


def is_folder(path: Path) -> bool:
    """Whether a folder is there, as far as can be seen: ``Path.is_dir`` raises for names that are too long or hidden."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """The same for a file."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def regular_size(path: File, expected: str) -> int:
    """Bytes of a file, unopened, since a named pipe would block; raises ``InputError`` unless it is regular and not empty."""
    try:
        status = Path(path).stat()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected {expected}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected {expected}, but: {reason_of(error)}") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: expected {expected}, found {kind_of(path)}")
    if status.st_size == 0:
        raise InputError(f"{path}: expected {expected}, found an empty file")
    return status.st_size


def digest(path: File) -> str | None:
    """SHA-256 of a file, or of the names and contents of all files in a folder; None if it cannot be read or is neither."""
    if isinstance(path, Path) and is_folder(path):
        try:
            files = sorted(file for file in path.rglob("*") if file.is_file())
        except OSError:
            return None
        told = "".join(f"{file.relative_to(path)}\0{digest(file)}\n" for file in files)
        return hashlib.sha256(told.encode(errors="surrogateescape")).hexdigest()
    try:
        if not path.is_file():
            return None
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return None


def state_of(path: File) -> tuple[int, ...] | None:
    """Another one if the file was written to or replaced meanwhile; None if there is none."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@contextlib.contextmanager
def unchanged(path: Path, digest_of: Callable[[Path], str | None] = digest) -> Iterator[str | None]:
    """The digest of a file that the block reads; raises ``InputError`` if it is another one after that."""
    before = digest_of(path)
    yield before
    if digest_of(path) != before:
        raise saved_anew(path)


def saved_anew(path: File) -> InputError:
    """The error of a file that changed while it was read."""
    return InputError(f"{path}: expected a file that stays as it is while it is read, found that it changed: run again")


class Digesting:
    """A file that is written from beginning to end, its size, and what ``digest`` will say of it, without reading it again."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._sha256 = file, hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> int:
        self._sha256.update(data)
        self.size += memoryview(data).nbytes
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> str:
        """SHA-256 of what was written so far."""
        return self._sha256.hexdigest()
