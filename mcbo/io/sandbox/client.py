"""Reads a file in the other process: what it refuses, crashes at, or does not finish in time becomes one sentence."""

import atexit
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcbo.core.errors import InputError, McboError, MemoryBudgetError
from mcbo.core.log import printable
from mcbo.io.sandbox.server import THREADS
from mcbo.io.sandbox.wire import READY, Frame, receive_frame, send_frame

HEADER_S = 6.0
"""For a header; without a hang, it takes milliseconds."""

STALLED_S = 10.0
"""Without a byte of data, once it has begun to come."""

START_S = 60.0
"""To start the process and import a library; they may lie on a network drive."""

_ROOT = Path(__file__).parents[3]
"""Where this package lies."""

_MARGIN_S = 2.0
"""The other process ends itself in time; this is how much later it is ended from here."""

_BYTES_PER_S = 5e6
"""The slowest that data are read: text, on a slow drive."""


@dataclass(frozen=True)
class Limits:
    """What a reader may take: seconds from now, and bytes of address space on top of those of its libraries."""

    seconds: float = HEADER_S
    bytes: int = 2**28

    @classmethod
    def of_data(cls, held_bytes: int, claimed_bytes: int, *, copies: int = 3) -> "Limits":
        """For data of so many bytes on disk and in memory, where there may be several copies of them."""
        return cls(HEADER_S + (held_bytes + claimed_bytes) / _BYTES_PER_S, 2**28 + held_bytes + copies * claimed_bytes)


_NAMES = {"with_itk": "ITK", "with_nibabel": "nibabel"}

_REMEDY = "it is damaged, or made to do harm; save it again with the program that it comes from"

Judge = Callable[[Frame], Limits]
"""Given what a reader found in a header, allows it to read the data, within limits; or raises an error."""


def read_outside(
    reader: str, request: Frame, *, expected: str, judge: Judge, limits: Limits | None = None
) -> tuple[NDArray[Any], Frame]:
    """Reads a file in the other process.

    Args:
        reader: ``with_itk`` or ``with_nibabel``.
        request: what its ``open_file`` takes; paths are absolute, since the other process keeps its working folder.
        expected: for messages, ``an image``.
        judge: is asked before any data are read.
        limits: for the header.

    Returns:
        The array, and what the reader says of it.

    Raises:
        InputError: if it cannot be read, in a sentence without the file's name; also what ``judge`` raises.
        MemoryBudgetError: if that takes more memory than allowed; the sentence lacks the name, too.
    """
    allowed = limits or Limits()
    with _lock:
        connection, server = _connect(reader)
        try:
            with connection:
                array, about = _converse(connection, request, allowed, judge, expected)
        except _LostError as lost:
            raise InputError(f"expected {expected}, but {_reason(server, reader, lost.seconds)}") from lost
        except McboError:
            server.finish()
            raise
        except BaseException:  # whatever it is doing, it is of no use now: Ctrl-C among others
            server.end()
            raise
        server.finish()
        return array, about


class _LostError(Exception):
    """The reader did not answer within so many seconds, or is gone."""

    def __init__(self, seconds: float | None) -> None:
        super().__init__()
        self.seconds = seconds


def _converse(
    connection: socket.socket, request: Frame, limits: Limits, judge: Judge, expected: str
) -> tuple[NDArray[Any], Frame]:
    try:
        seconds = limits.seconds
        connection.settimeout(START_S)
        send_frame(connection, request | {"limits": asdict(limits)})
        connection.settimeout(seconds + _MARGIN_S)
        header = _answer(connection, "header", expected)
        limits = judge(header)
        seconds = limits.seconds
        send_frame(connection, {"limits": asdict(limits)})
        connection.settimeout(seconds + _MARGIN_S)
        about = _answer(connection, "array", expected)
        array = _empty(about.pop("shape"), np.dtype(about.pop("type")), limits)
        connection.settimeout(STALLED_S)
        _fill(connection, array)
    except TimeoutError as error:
        raise _LostError(seconds) from error
    except OSError as error:
        raise _LostError(None) from error
    return array, about


def _answer(connection: socket.socket, key: str, expected: str) -> Frame:
    frame = receive_frame(connection)
    if frame is None:
        raise _LostError(None)
    if key in frame:
        answer: Frame = frame[key]
        return answer
    if "memory" in frame:
        raise MemoryBudgetError(f"expected {expected}, but reading it takes more memory than its size explains: {_REMEDY}")
    if "refused" in frame:
        raise InputError(frame["refused"])
    raise InputError(f"expected {expected}, but it cannot be read: {_last_line(frame.get('error'))}; save it again")


def _last_line(error: object) -> str:
    """Of what a library says the end: ITK begins with places in its source code, on lines of their own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[-1][:300]) if lines else "it does not say why"


def _empty(shape: Sequence[int], dtype: np.dtype[Any], limits: Limits) -> NDArray[Any]:
    if math.prod(shape) * dtype.itemsize > limits.bytes:
        raise InputError(f"its header and its data differ: these have the shape {tuple(shape)}")
    return np.empty(shape, dtype)


def _reason(server: "_Server", reader: str, seconds: float | None) -> str:
    """Why a reader did not answer, as the end of a sentence."""
    who = _NAMES.get(reader, reader)
    status = server.finish() if seconds is None else -signal.SIGALRM
    if seconds is not None:
        server.end()
    if status in (-signal.SIGALRM, -signal.SIGXCPU):
        return f"{who} does not finish reading it{'' if seconds is None else f' within {seconds:.0f} s'}: {_REMEDY}"
    if status is not None and status < 0:
        return f"{who} crashes at it ({signal.Signals(-status).name}): {_REMEDY}"
    return f"{who} gives up at it without saying why: {_REMEDY}"


def _fill(connection: socket.socket, array: NDArray[Any]) -> None:
    view = array.reshape(-1).view(np.uint8).data
    got = 0
    while got < len(view):
        count = connection.recv_into(view[got:])
        if not count:
            raise _LostError(None)
        got += count


class _Server:
    """The other process and the control socket to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            threads = str(min(THREADS, os.cpu_count() or 1))
            numbers = {"OPENBLAS_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": threads, "MALLOC_ARENA_MAX": "2"}
            paths = os.pathsep.join(str(Path(path).absolute()) for path in (str(_ROOT), *sys.path))  # "" is the working folder
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "mcbo.io.sandbox.server", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # libraries' warnings, and C++'s last words
                env=os.environ | numbers | {"PYTHONPATH": paths},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self.control = ours
        self.client = os.getpid()

    def take(self, connection: socket.socket, reader: str) -> bool:
        """Hands over a connection; whether a reader will answer over it."""
        with suppress(OSError):
            self.control.settimeout(START_S)
            socket.send_fds(self.control, [reader.encode()], [connection.fileno()])
            return self.control.recv(len(READY)) == READY
        return False

    def finish(self) -> int | None:
        """Waits until the reader has ended: its exit status, negative for a signal; None if the process is gone, too."""
        frame = None
        with suppress(OSError, ValueError):
            self.control.settimeout(_MARGIN_S)
            frame = receive_frame(self.control)
        if frame is None:
            self.end()
            return None
        return int(frame["status"])

    def end(self) -> None:
        """Ends the process and what it forked."""
        self.control.close()
        if os.getpid() == self.client and self.process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # it may hang in a drive that is gone
                self.process.wait(_MARGIN_S)


_lock = threading.Lock()
_server: _Server | None = None


def _connect(reader: str) -> tuple[socket.socket, _Server]:
    """A connection to a reader; the process is started if there is none, or it was idle for too long."""
    global _server
    for _ in range(2):
        if _server is None or _server.client != os.getpid():
            _server = _Server()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                if _server.take(theirs, reader):
                    return ours, _server
        except BaseException:
            ours.close()
            raise
        ours.close()
        close()
    raise InputError(f"expected to start {sys.executable} as a reader, but it ends at once: check the installation")


def close() -> None:
    """Ends the other process, if there is one."""
    global _server
    if _server is not None:
        _server.end()
        _server = None


atexit.register(close)
