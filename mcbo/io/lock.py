"""One run at a time: a lock that the kernel holds for a run, and releases when the run ends, however it ends.

The package ``filelock`` would not do: it has no shared lock, so that two runs that only ask would refuse each other, it leaves
its file behind, and to it a file system without locks is an error.
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
    """Holds the lock file ``path`` within the block and removes it in the end.

    Where the file system does not support locks, a warning says so and the block runs all the same.

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
            # While it is held: whoever opened it meanwhile finds, once it has the lock, that it is not there any more.
            if is_same_file(path, descriptor):
                path.unlink()
        os.close(descriptor)


def refuse_if_held(path: Path) -> None:
    """Refuses to go on beside another run that holds a lock file.

    Raises:
        OutputError: if one does; with what it wrote into the file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # there is none
        return
    try:
        lock_file(descriptor, wait=False, shared=True)
    except BlockingIOError as error:
        raise _refusal(path, descriptor) from error
    finally:
        os.close(descriptor)


def _acquire(path: Path) -> int:
    """Opens and locks the file; returns its descriptor."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            supported = lock_file(descriptor, wait=False)
        except BlockingIOError as error:
            refusal = _refusal(path, descriptor)
            os.close(descriptor)
            raise refusal from error
        except OSError:
            os.close(descriptor)
            raise
        if not supported:
            log.warning("%s: this file system does not support locks; make sure that no other run writes there", path.parent)
        elif not is_same_file(path, descriptor):  # removed by the run that held it before
            os.close(descriptor)
            continue
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its text
            os.ftruncate(descriptor, 0)
            since = time.strftime("%Y-%m-%d %H:%M:%S %z")
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)
        return descriptor


def _refusal(path: Path, descriptor: int) -> OutputError:
    holder = os.read(descriptor, 1000).decode("utf-8", "replace").strip() or "it has not said yet which"
    return OutputError(
        f"{path.parent}: expected no other run with the same report, but one is at work there ({holder}): wait for it, "
        "stop it, or choose another --output"
    )
