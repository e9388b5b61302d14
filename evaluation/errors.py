"""What ends a command early: the package's exception, signals, streams that cannot be written; and text that is safe to print.

Imports nothing that takes time.
"""

import contextlib
import errno
import io
import logging
import os
import re
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


MAX_WORD = 1000
"""Characters of a word that are printed; names may be longer."""

_LOGIN = re.compile(r"(?:(?<=//)|(?<=\w:/))(?:[^/\s]*@|[^/\s:@]+:(?!\s|\d+(?:[/\s?#]|$))[^@]{0,200}?@)")
_PARAMETER = re.compile(
    r"[?&;#](?:[\w.%-]{0,60}(?:signature|token|secret|passw|credential|accesskey)[\w.%-]{0,60}"
    r"|(?:[\w.%-]{0,60}[_.-])?(?:sig|key|apikey|auth|code|pwd))=[^\s&;'\"]*",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\s'\"]+")
_BEHIND = ":,.)"


class EvaluationError(Exception):
    """An input is missing or malformed; the message says what was expected and what was found, without secrets of URLs."""

    def __init__(self, message: object = "") -> None:
        super().__init__(without_secrets(str(message)))


def without_secrets(text: str) -> str:
    """Text without the logins, signatures and tokens of URLs in it, be they well formed or not."""
    if "/" in text:
        text = _WORD.sub(_without_query, _LOGIN.sub("", text))
    return _PARAMETER.sub(_end_of, text) if "=" in text else text


def _without_query(match: re.Match[str]) -> str:
    """A word; if it is a URL, without what follows its path."""
    word = match[0]
    scheme = word.find(":/")
    query = re.compile("[?#]").search(word, scheme) if scheme > 0 else None
    return word if query is None else word[: query.start()] + _end_of(match)


def _end_of(match: re.Match[str]) -> str:
    return match[0][len(match[0].rstrip(_BEHIND)) :]


def _shortened(match: re.Match[str]) -> str:
    word = match[0]
    return word if len(word) <= MAX_WORD else f"{word[: MAX_WORD * 3 // 4]}…{word[-MAX_WORD // 4 :]}"


def shown(value: object) -> str:
    """A value for an error message: without secrets, quoted, on one line, shortened where it is long or deep."""
    return _short.repr(without_secrets(value) if isinstance(value, str) else value)


_MARKUP = (
    (re.compile(r"[\\`*\[\]~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=\])\("), r"\\\g<0>"),
    (re.compile(r":(?=//)|(?<=\bwww)\.", re.IGNORECASE), r"\\\g<0>"),  # of links without brackets
    (re.compile("&"), "&amp;"),
    (re.compile("<"), "&lt;"),
    (re.compile(">"), "&gt;"),
    (re.compile(r"\|"), r"\|"),
    (re.compile("@"), "@&#8203;"),  # a space of no width: neither a mention nor an address
)
"""What Markdown would take for more than text, and what stands for it."""


def in_markdown(text: str) -> str:
    """Text for Markdown, in a table too: on one line, without columns, links, images, HTML or emphasis."""
    text = printable(" ".join(text.split()))
    for pattern, instead in _MARKUP:
        text = pattern.sub(instead, text)
    return text


_RUN = re.compile("[ ]*[=+@\t\r\n\uff1d\uff0b\uff0d\uff20-]")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)


def in_spreadsheet(cell: object) -> object:
    """A cell of a CSV; text that a spreadsheet would take for a formula gets an apostrophe in front, unless it is a number."""
    runs = isinstance(cell, str) and _RUN.match(cell) and not _NUMBER.fullmatch(cell)
    return f"'{cell}" if runs else cell


@contextlib.contextmanager
def printable_usage() -> Iterator[None]:
    """Makes what typer says of a wrong usage, which repeats what was given, safe to print."""
    try:
        yield
    except Exception as error:
        if isinstance(message := getattr(error, "message", None), str):
            error.message = printable(message)  # type: ignore[attr-defined]
        raise


def printable(text: str) -> str:
    """Text that is safe to print as one line: without secrets and endless words; control characters become Python escapes."""
    text = re.sub(r"\S+", _shortened, without_secrets(text))
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
