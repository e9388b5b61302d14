"""The package's exception, and how untrusted text is shown."""

import re
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
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
