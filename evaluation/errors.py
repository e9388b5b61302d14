"""What ends a command early: the package's exception, signals, streams that cannot be written; and text that is safe to print.

Imports nothing that takes time.
"""

import contextlib
import errno
import io
import logging
import os
import reprlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn, TextIO, cast

INTERRUPTED, TERMINATED = 130, 143
"""Exit statuses that a shell reports for programs that SIGINT (128 + 2) or SIGTERM (128 + 15) ended."""

_GONE = {errno.EPIPE, errno.EBADF}
"""Errors of a stream that nobody reads any more, as after ``| head``."""

log = logging.getLogger("evaluation")
"""For what a user should know although it is no error."""

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 120


class EvaluationError(Exception):
    """An input is missing or malformed; the message says what was expected and what was found."""


def shown(value: object) -> str:
    """A value from a file, for an error message: quoted, on one line, shortened where it is long or deep."""
    return _short.repr(value)


def printable(text: str) -> str:
    """Text that is safe to print as one line: control characters become Python escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def reason(error: BaseException) -> str:
    """Why a library failed, in its own words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def begin() -> None:
    """Until the program is loaded, signals end it at once; closed standard streams give their numbers to no other file."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(TERMINATED))
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free


def finish(status: int) -> NoReturn:
    """Exits with a status. Of a stopped program, no further signal changes it while Python clears up, which takes a while."""
    if status in (INTERRUPTED, TERMINATED):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    sys.exit(status)


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """For the block, SIGINT and SIGTERM end it in an orderly way. Only the first thread of a process can hear them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, _: object) -> None:
    """Ends the program; further signals are ignored, so that none cuts the cleanup short."""
    for other in (signal.SIGTERM, signal.SIGINT):
        signal.signal(other, lambda *_: None)  # not SIG_IGN: Python complains of one that is already on its way
    sys.exit(INTERRUPTED if number == signal.SIGINT else TERMINATED)


class Stream(io.TextIOBase):
    """A text stream on which writing never fails: what it cannot encode is escaped, what it cannot take is dropped.

    Attributes:
        problem: why something was dropped, if it was.
        gone: nobody reads the stream, by the caller's choice; else it is a fault, such as a full disk.
        asked_for: whether what was written is what the command was called for, and not only a note.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.problem: str | None = None
        self.gone = False
        self.asked_for = False
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        if self._stream is None:
            self.problem, self.gone = "it is closed", True
        elif self.problem is None:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:
                self._lose(self._stream, error)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None and self.problem is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._lose(self._stream, error)

    def _lose(self, stream: TextIO, error: OSError | ValueError) -> None:
        self.problem = reason(error)
        self.gone = (error.errno if isinstance(error, OSError) else errno.EBADF) in _GONE
        with contextlib.suppress(OSError, ValueError):  # what is still in its buffer would fail again when Python ends
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)

    @property
    def failed(self) -> bool:
        """Whether what was dropped matters."""
        return self.problem is not None and (self.asked_for or not self.gone)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def writable(self) -> bool:
        return True


@contextlib.contextmanager
def guarded() -> Iterator[tuple[Stream, Stream]]:
    """For the block, standard output and error on which writing never fails."""
    before = sys.stdout, sys.stderr
    streams = Stream(sys.stdout), Stream(sys.stderr)
    sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in streams)
    try:
        yield streams
    finally:
        sys.stdout, sys.stderr = before
