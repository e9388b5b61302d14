"""The package's exception, and how untrusted text is shown."""

import logging
import reprlib

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
