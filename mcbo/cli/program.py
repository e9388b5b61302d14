"""What ``process.py`` and ``python -m mcbo`` share: running a command line, exit statuses, and the layout of ``--help``."""

from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from mcbo.core.errors import McboError
from mcbo.core.log import log, printable
from mcbo.core.memory import exhausted, is_exhausted

ALL_WRITTEN, BAD_INPUT, SOME_FAILED, TERMINATED = 0, 1, 2, 143
"""Exit statuses; the last is what a shell reports for a program that SIGTERM ended (128 + 15)."""

_WRONG_USAGE = 2
"""Typer's own exit status."""


def run_app(app: typer.Typer, arguments: Sequence[str], *, name: str) -> int:
    """Runs a command line and returns its exit status: 1 for invalid input or usage, else what the command chose, else 0.

    A command chooses by appending to the list ``context.obj``. An ``McboError`` becomes one sentence on stderr. ``name`` is the
    program's in usage lines; ``arguments`` come without it.
    """
    status: list[int] = []
    log.handlers.clear()  # of an earlier call
    try:
        app(list(arguments), prog_name=name, obj=status)
    except McboError as error:
        _say(str(error))
        return BAD_INPUT
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_exhausted(error):
            raise
        _say(str(exhausted(name)))
        return BAD_INPUT
    except SystemExit as stop:
        if not status:
            return BAD_INPUT if stop.code == _WRONG_USAGE else int(stop.code or 0)
    return status[0] if status else ALL_WRITTEN


def _say(error: str) -> None:
    if log.handlers:  # the command set them up: --log-json counts for errors, too
        log.error("%s", error)
    else:
        typer.echo(printable(f"ERROR: {error}"), err=True)


class Command(TyperCommand):
    """A command whose help lists flags without a type, and whose ``--help`` and ``--version`` no environment variable sets."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _plain(super().get_params(ctx))


class Group(TyperGroup):
    """The same for a program with several commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _plain(super().get_params(ctx))


def _plain(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.is_flag:
            parameter.metavar = ""
            parameter.allow_from_autoenv &= not parameter.is_eager
        if parameter.envvar is not None:  # else its parameter's name would be a second variable
            parameter.allow_from_autoenv = False
    return parameters
