"""Files at URLs: shown as the URL without its secrets, and opened as a local copy."""

import errno
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from mcbo.core.log import without_secrets

_URL = re.compile(r"((?:[A-Za-z][A-Za-z0-9+.-]*::?)+)(/+)|()(//)(?=[^/]*:[^/]*@)")
"""With one slash, since a path drops the second. Without a scheme, two slashes and a login are enough."""


def is_url(text: str) -> bool:
    """Whether a text is meant as a URL rather than a path."""
    return _URL.match(text) is not None


def shown_url(url: str) -> str:
    """A URL for logs and reports, without a password before the host or a signature behind the path; a path as it is.

    A URL that a path has collapsed to one slash may hold a password, too.
    """
    match = _URL.match(url)
    if match is None:
        return without_secrets(url)
    scheme, slashes = match[1] or "", match[2] or "//"
    try:
        parts = urlsplit(f"//{without_secrets('//' + url[match.end() :])[2:]}")
    except ValueError:  # not a valid address
        return f"{scheme}//…"
    path = re.sub(r";[^/;=]*=[^/]*", "", parts.path)
    return f"{scheme.lower()}{slashes}{parts.netloc.rpartition('@')[2]}{path}"


@dataclass(frozen=True, repr=False)
class Source:
    """A file at a URL, used like a path: ``str`` is the URL without its secrets, and ``open`` opens the local copy.

    Without a copy, opening it raises an ``OSError`` that states the problem.
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
        """Itself, since a URL does not depend on the working folder."""
        return self


File: TypeAlias = Path | Source
"""A local file or one at a URL: ``Path(file)`` can be opened, ``str(file)`` can be shown."""
