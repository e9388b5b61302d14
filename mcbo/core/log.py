"""The logger of this package, and text that may be shown."""

import logging
import re

log = logging.getLogger("mcbo")

MAX_WORD = 1000
"""Characters of a word that are shown, such as of a file's name; the rest of a longer one is left out."""

_LOGIN = re.compile(r"(?:(?<=//)|(?<=\w:/))(?:[^/\s]*@|[^/\s:@]+:(?!\s|\d+(?:[/\s?#]|$))[^@]{0,200}?@)")
"""User and password before a host, in a URL of whatever scheme or none; a path has collapsed its slashes to one."""

_PARAMETER = re.compile(
    r"[?&;#](?:[\w.%-]{0,60}(?:signature|token|secret|passw|credential|accesskey)[\w.%-]{0,60}"
    r"|(?:[\w.%-]{0,60}[_.-])?(?:sig|key|apikey|auth|code|pwd))=[^\s&;'\"]*",
    re.IGNORECASE,
)
"""A signature or the like, also in what only resembles a URL, such as the name of a file that was downloaded."""

_WORD = re.compile(r"[^\s'\"]+")
_BEHIND = ":,.)"
"""What may follow a URL in a sentence."""


def without_secrets(text: str) -> str:
    """Text without the passwords, signatures and tokens of the URLs in it. Takes a time that grows with its length."""
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


def printable(text: str) -> str:
    """Text as one line that is safe for a terminal: characters that cannot be printed are escaped as Python escapes them.

    File names may hold line ends, colors, codes that clear the screen, and characters that no encoding can write; thousands of
    characters; and secrets.
    """
    text = re.sub(r"\S+", _shortened, without_secrets(text))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
