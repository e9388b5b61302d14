"""What ``process.py`` and ``python -m mcbo`` share: running a command line, exit statuses, and the layout of ``--help``."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from mcbo.core.errors import InputError, McboError
from mcbo.core.log import log, printable
from mcbo.io.source import is_url, shown_url

ALL_WRITTEN, BAD_INPUT, SOME_FAILED, TERMINATED = 0, 1, 2, 143
"""Exit statuses; the last is what a shell reports for a program that SIGTERM ended (128 + 15)."""

_WRONG_USAGE = 2
"""Typer's own exit status."""


def run_app(app: typer.Typer, arguments: Sequence[str], *, name: str, takes_urls: bool = True) -> int:
    """Runs a command line and returns its exit status: 1 for invalid input or usage, else what the command chose, else 0.

    A command chooses by appending to the list ``context.obj``. An ``McboError`` becomes one sentence on stderr, and so does a
    file that cannot be opened. ``name`` is the program's in usage lines; ``arguments`` come without it. Unless it
    ``takes_urls``, one among them is refused: as a path, it would be taken apart, and its password made part of a name.
    """
    status: list[int] = []
    log.handlers.clear()  # of an earlier call
    try:
        for value in () if takes_urls else (part for argument in arguments for part in (argument, argument.partition("=")[2])):
            if is_url(value) and ("//" in value or "@" in value):
                raise InputError(f"{shown_url(value)}: expected a local file or folder, got a URL; only process.py reads those")
        app(list(arguments), prog_name=name, obj=status)
    except McboError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or 'a file'}: {error.strerror or error}")
    except SystemExit as stop:
        if not status:
            return BAD_INPUT if stop.code == _WRONG_USAGE else int(stop.code or 0)
    return status[0] if status else ALL_WRITTEN


def _fail(message: str) -> int:
    if log.handlers:  # the command set them up: --log-json counts for errors, too
        log.error("%s", message)
    else:
        say(f"ERROR: {message}", err=True)
    return BAD_INPUT


def say(text: str, *, err: bool = False) -> None:
    """Prints one line; names in it can neither control the terminal, nor begin a line of their own, nor tell secrets."""
    typer.echo(printable(text), err=err)


def say_lines(text: str) -> None:
    """The same for a text of several lines."""
    for line in text.split("\n"):
        say(line)


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


@contextmanager
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
        if parameter.envvar is not None:  # else its parameter's name would be a second variable
            parameter.allow_from_autoenv = False
    return parameters
