"""Files at URLs: written as the URL, without what may be secret in it, and opened as a local copy."""

import errno
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:)(/+)")
"""With one slash, since a path drops the second."""


def is_url(text: str) -> bool:
    """Whether a text is meant as a URL rather than a path; ``dataset.remote`` knows which URLs can be read."""
    return _URL.match(text) is not None


def shown_url(url: str) -> str:
    """A URL for logs and reports, without a password before the host or a signature after ``?``; a path as it is.

    With as many slashes as it has, since a password may also be in what a path made of a URL.
    """
    match = _URL.match(url)
    if match is None:
        return url
    try:
        parts = urlsplit(f"//{url[match.end() :]}")
    except ValueError:  # no address that could be taken apart
        return f"{match[1]}//…"
    return f"{match[1].lower()}{match[2]}{parts.netloc.rpartition('@')[2]}{parts.path}"


@dataclass(frozen=True, repr=False)
class Source:
    """A file at a URL. Of a path it has what cases and readers need; ``open`` takes it as one.

    Attributes:
        url: of the file, with its secrets; the text of this value has none.
        local: the copy on this machine; None if there is none.
        problem: why there is none; opening it raises an ``OSError`` that says so.
    """

    url: str
    local: Path | None = None
    problem: str = "it has not been fetched"

    @property
    def name(self) -> str:
        """The last part of the URL's path."""
        return str(self).rstrip("/").rpartition("/")[2]

    def __str__(self) -> str:
        return shown_url(self.url)

    __repr__ = __str__

    def __fspath__(self) -> str:
        if self.local is None:
            raise OSError(errno.EREMOTEIO, self.problem)
        return str(self.local)

    def is_file(self) -> bool:
        """Whether there is a copy."""
        return self.local is not None and self.local.is_file()

    def absolute(self) -> "Source":
        """Itself: a URL means the same in any working folder."""
        return self


File: TypeAlias = Path | Source
"""A file on this machine or at a URL. ``Path(file)`` is where it can be opened, its text is how people know it."""
