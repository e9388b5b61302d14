"""One run at a time, by a lock that the kernel releases however the run ends; and whether its folder is still there.

The package ``filelock`` would not do: it has no shared lock, so two runs that only check would refuse each other; it leaves its
file behind; and it fails on file systems without locks.
"""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mcbo.core.errors import OutputError
from mcbo.core.log import log

ENOTSUPP = 524
"""Of the kernel alone, which some network file systems let through."""

UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, ENOTSUPP}
"""Errors of file systems that cannot do what was asked."""

_NO_LOCKS = UNSUPPORTED | {errno.ENOLCK, errno.EBADF}
"""Errors of file systems without locks. NFS, whose locks are those of ``fcntl``, has none for a file opened to be read only."""


_OPENED = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""How lock files are opened: no link is followed, and a named pipe in their place holds nobody up."""


@dataclass(frozen=True)
class Place:
    """A folder, kept open: so its number in the file system is given to no other, even if it is removed."""

    folder: Path
    descriptor: int

    def check(self) -> None:
        """Raises ``OutputError`` if the path no longer leads to the folder."""
        try:
            here, there = os.fstat(self.descriptor), self.folder.stat()
        except OSError as error:
            found = error.strerror or str(error)
        else:
            if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino):
                return
            found = "another one is in its place"
        where = self._moved_to()
        raise OutputError(
            f"{self.folder}: expected the folder in which the run began, but it was renamed, removed or replaced ({found}); "
            + (f"what was finished before is in {where}" if where else "what was in it is lost")
        )

    def _moved_to(self) -> Path | None:
        """Where the folder is now; None if it was removed, or the system does not say."""
        with contextlib.suppress(OSError):
            where = Path(f"/proc/self/fd/{self.descriptor}").readlink()
            if where.is_dir() and os.path.samestat(where.stat(), os.fstat(self.descriptor)):
                return where
        return None


@contextlib.contextmanager
def hold(path: Path) -> Iterator[Place]:
    """Holds the lock file ``path`` for the block, then removes it; on a file system without locks, only logs a warning.

    The block gets the folder of the lock file, to check that it is still there.

    Raises:
        OutputError: if another run holds it, with what that run wrote into it; or if it cannot be created.
    """
    with contextlib.ExitStack() as closing:
        try:
            descriptor = _acquire(path)
            closing.callback(_release, path, descriptor)
            # O_PATH needs no permission to read the folder.
            folder = os.open(path.parent, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise OutputError(f"{path}: the lock file of this run cannot be created: {error.strerror or error}") from error
        closing.callback(os.close, folder)
        yield Place(path.parent, folder)


def _release(path: Path, descriptor: int) -> None:
    """Removes a lock file, then releases the lock: so a run that has opened it sees, once it has the lock, that it is gone."""
    with contextlib.suppress(OSError):
        if is_same_file(path, descriptor):
            path.unlink()
    os.close(descriptor)


def refuse_if_held(path: Path) -> None:
    """Raises ``OutputError``, with what the lock file says, if another run holds it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _OPENED)
    except OSError:  # there is none
        return
    try:
        _lock(path, descriptor, shared=True)
    finally:
        os.close(descriptor)


def _acquire(path: Path) -> int:
    """The descriptor of the file, opened, locked and naming this process."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _OPENED, 0o666)
        with contextlib.ExitStack() as closing:
            closing.callback(os.close, descriptor)
            if not _lock(path, descriptor):
                log.warning(
                    "%s: this file system does not support locks; make sure that no other run writes there", path.parent
                )
            elif not is_same_file(path, descriptor):  # removed by the run that held it before
                continue
            with contextlib.suppress(OSError):  # a full disk: the lock holds without its text
                os.ftruncate(descriptor, 0)
                since = time.strftime("%Y-%m-%d %H:%M:%S %z")
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)
            closing.pop_all()  # locked: the descriptor stays open
            return descriptor


def _lock(path: Path, descriptor: int, *, shared: bool = False) -> bool:
    """As ``lock_file``; raises ``OutputError`` if another run holds the lock."""
    try:
        return lock_file(descriptor, wait=False, shared=shared)
    except BlockingIOError as error:
        holder = ""
        with contextlib.suppress(OSError):
            holder = os.read(descriptor, 1000).decode("utf-8", "replace").strip()
        raise OutputError(
            f"{path.parent}: expected no other run with the same report, but one is at work there "
            f"({holder or 'its process is not known yet'}): wait for it, stop it, or choose another --output"
        ) from error


def lock_file(descriptor: int, *, wait: bool, shared: bool = False) -> bool:
    """Locks an open file until it is closed; False if its file system has no locks, or none for how it was opened.

    Raises:
        BlockingIOError: without ``wait``, if another process holds the lock.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
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
