"""Standard output and error that may be full, closed, a broken pipe, or ASCII: none of that ends a command in a traceback."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO, cast

import typer

from mcbo.core.log import printable

_GONE = {errno.EPIPE, errno.EBADF}
"""Errors of a stream that nobody reads any more, as after ``| head``."""


class Stream(io.TextIOBase):
    """A text stream on which writing never fails: what it cannot encode is escaped, what it cannot take is dropped.

    Attributes:
        problem: why something was dropped, if it was.
        gone: nobody reads the stream, by the caller's choice; else it is a fault, such as a full disk.
        asked_for: whether what was written is what the command was called for, and not only a log.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._is_terminal = False
        self.problem: str | None = None
        self.gone = False
        self.asked_for = False
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._is_terminal = stream.isatty()
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
        number = error.errno if isinstance(error, OSError) else errno.EBADF
        self.problem = (error.strerror if isinstance(error, OSError) else None) or str(error)
        self.gone = number in _GONE or (number == errno.EIO and self._is_terminal)  # a terminal that was closed
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

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._is_terminal

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


def show(text: str) -> None:
    """Prints what a command was called for: if that cannot be printed, not even because nobody reads it, the command fails."""
    if isinstance(sys.stdout, Stream):
        sys.stdout.asked_for = True
    for line in text.split("\n"):
        typer.echo(printable(line))
