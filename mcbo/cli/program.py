"""What ``process.py`` and ``python -m mcbo`` share: running a command line, exit statuses, and the layout of ``--help``."""

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from mcbo.cli.streams import guarded
from mcbo.core.entry import INTERRUPTED, TERMINATED
from mcbo.core.errors import InputError, McboError
from mcbo.core.log import log, printable
from mcbo.core.memory import exhausted, is_exhausted
from mcbo.io.source import is_url, shown_url

ALL_WRITTEN, BAD_INPUT, SOME_FAILED = 0, 1, 2
"""Exit statuses, besides those of ``entry``."""

_BROKEN_PIPE = os.strerror(errno.EPIPE)

_WRONG_USAGE = 2
"""Typer's own exit status."""


def run_app(app: typer.Typer, arguments: Sequence[str], *, name: str, takes_urls: bool = True) -> int:
    """Runs a command line and returns its exit status: 1 for invalid input or usage, else what the command chose, else 0.

    A command chooses by appending to the list ``context.obj``. An ``McboError`` becomes one sentence on stderr, and so does a
    file that cannot be opened, and SIGINT or SIGTERM (status 130 or 143), with what the error's notes say. A stream that cannot
    be written makes a command that succeeded fail with 1, unless it is only a log that nobody reads. ``name`` is the program's
    in usage lines; ``arguments`` come without it. Unless it ``takes_urls``, one among them is refused: as a path, it would be
    taken apart, and its password made part of a name.
    """
    log.handlers.clear()  # of an earlier call
    with _heard(), guarded() as streams:
        status = _run(app, arguments, name, takes_urls=takes_urls)
        for stream, which in zip(streams, ("standard output", "standard error"), strict=True):
            stream.flush()
            if stream.failed:
                status = status or BAD_INPUT
                if stream.problem != _BROKEN_PIPE:  # after ``| head`` nobody wants to be told
                    _fail(f"{which}: cannot be written: {stream.problem}")
        return status


def _run(app: typer.Typer, arguments: Sequence[str], name: str, *, takes_urls: bool) -> int:
    status: list[int] = []
    try:
        for value in () if takes_urls else (part for argument in arguments for part in (argument, argument.partition("=")[2])):
            if is_url(value) and ("//" in value or "@" in value):
                raise InputError(f"{shown_url(value)}: expected a local file or folder, got a URL; only process.py reads those")
        app(list(arguments), prog_name=name, obj=status)
    except McboError as error:
        return _fail(str(error))
    except (MemoryError, RuntimeError, OSError) as error:
        if is_exhausted(error):
            return _fail(str(exhausted(name)))
        if not isinstance(error, OSError):
            raise
        return _fail(f"{error.filename or 'a file'}: {error.strerror or error}")
    except SystemExit as stop:
        if stop.code in (INTERRUPTED, TERMINATED):
            for note in _notes(stop) or ["stopped before it was done; finished results are kept"]:
                _fail(note)
            return int(stop.code)
        if not status:
            return BAD_INPUT if stop.code == _WRONG_USAGE else int(stop.code or 0)
    return status[0] if status else ALL_WRITTEN


def _notes(error: BaseException | None) -> list[str]:
    """What was added to an error, or to those from which it arose: typer makes its own of a ``KeyboardInterrupt``."""
    if error is None:
        return []
    return getattr(error, "__notes__", None) or _notes(error.__cause__ or error.__context__)


@contextlib.contextmanager
def _heard() -> Iterator[None]:
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
    """Ends the run; further signals are ignored, so that none cuts the cleanup short."""
    for other in (signal.SIGTERM, signal.SIGINT):
        signal.signal(other, _ignore)  # not SIG_IGN: Python complains of one that is already on its way
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(TERMINATED)


def _ignore(*_: object) -> None:
    pass


def _fail(message: str) -> int:
    if log.handlers:  # the command set them up: --log-json counts for errors, too
        log.error("%s", message)
    else:
        say(f"ERROR: {message}", err=True)
    return BAD_INPUT


def say(text: str, *, err: bool = False) -> None:
    """Prints one line; names in it can neither control the terminal, nor begin a line of their own, nor tell secrets."""
    typer.echo(printable(text), err=err)


class Command(TyperCommand):
    """A command whose help lists flags without a type, and whose ``--help`` and ``--version`` no environment variable sets."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _plain(super().get_params(ctx))

    def make_context(self, *arguments: Any, **more: Any) -> Any:
        with _printable_usage():
            return super().make_context(*arguments, **more)


class Group(TyperGroup):
    """The same for a program with several commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _plain(super().get_params(ctx))

    def make_context(self, *arguments: Any, **more: Any) -> Any:
        with _printable_usage():
            return super().make_context(*arguments, **more)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        with _printable_usage():
            return super().resolve_command(ctx, args)


@contextlib.contextmanager
def _printable_usage() -> Iterator[None]:
    """Makes what typer says of a wrong usage, which repeats what was given, safe to print."""
    try:
        yield
    except Exception as error:
        if isinstance(message := getattr(error, "message", None), str):
            error.message = printable(message)  # type: ignore[attr-defined]
        raise


def _plain(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.is_flag:
            parameter.metavar = ""
            parameter.allow_from_autoenv &= not parameter.is_eager
        elif isinstance(parameter, TyperArgument):  # whose name says more than "<list[Path]>"
            parameter.display_type_rich = lambda **_: None  # type: ignore[method-assign]
        if parameter.envvar is not None:  # else its parameter's name would be a second variable
            parameter.allow_from_autoenv = False
    return parameters
