"""One run at a time, by a lock that the kernel releases however the run ends.

The package ``filelock`` would not do: it has no shared lock, so two runs that only check would refuse each other; it leaves its
file behind; and it fails on file systems without locks.
"""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from mcbo.core.errors import OutputError
from mcbo.core.log import log
from mcbo.io.files import is_same_file, lock_file


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Holds the lock file ``path`` for the block, then removes it; on a file system without locks, only logs a warning.

    Raises:
        OutputError: if another run holds it, with what that run wrote into it; or if it cannot be created.
    """
    try:
        descriptor = _acquire(path)
    except OSError as error:
        raise OutputError(f"{path}: the lock file of this run cannot be created: {error.strerror or error}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            # Before the lock is released: a run that has opened the file sees, once it has the lock, that the file is gone.
            if is_same_file(path, descriptor):
                path.unlink()
        os.close(descriptor)


def refuse_if_held(path: Path) -> None:
    """Raises ``OutputError``, with what the lock file says, if another run holds it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # there is none
        return
    try:
        _lock(path, descriptor, shared=True)
    finally:
        os.close(descriptor)


def _acquire(path: Path) -> int:
    """The descriptor of the file, opened, locked and naming this process."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
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
    """As ``files.lock_file``; raises ``OutputError`` if another run holds the lock."""
    try:
        return lock_file(descriptor, wait=False, shared=shared)
    except BlockingIOError as error:
        holder = os.read(descriptor, 1000).decode("utf-8", "replace").strip() or "its process is not known yet"
        raise OutputError(
            f"{path.parent}: expected no other run with the same report, but one is at work there ({holder}): wait for it, "
            "stop it, or choose another --output"
        ) from error
