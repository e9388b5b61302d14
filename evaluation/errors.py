"""What can go wrong, and how what strangers wrote is shown."""

import reprlib

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 120


class EvaluationError(Exception):
    """Something to be judged is missing or malformed; the message says what was expected and found."""


def shown(value: object) -> str:
    """What a file holds, for a sentence: quoted, on one line, and cut where it is long or deep."""
    return _short.repr(value)


def printable(text: str) -> str:
    """Text that does nothing to a terminal but print one line: the rest is written as Python escapes it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def reason(error: BaseException) -> str:
    """Why a library gave up, in its words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
