"""Files that lie elsewhere, as paths: to people a URL, to the system the local copy, where there is one."""

import errno
import os
import re
import sys
from pathlib import Path, PosixPath
from typing import Any
from urllib.parse import urlsplit

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:)(/+)")
"""With one slash, since a path drops the second."""

_NOT_FETCHED = "it was not fetched"


def is_url(text: str) -> bool:
    """Whether a text is meant as a URL, and no path; of which kind, and whether that is known, ``remote.py`` says."""
    return _URL.match(text) is not None


def shown_url(url: str) -> str:
    """A URL for logs and reports, without what may be secret: a password before the host, a signature behind ``?``.

    With as many slashes as it has, since a password may also stand in what a path made of a URL. What is no URL stays.
    """
    match = _URL.match(url)
    if match is None:
        return url
    try:
        parts = urlsplit(f"//{url[match.end() :]}")
    except ValueError:  # no address that could be taken apart
        return f"{match[1]}//…"
    return f"{match[1].lower()}{match[2]}{parts.netloc.rpartition('@')[2]}{parts.path}"


class RemotePath(PosixPath):
    """A path that is written as its URL and opened as its local copy, so that readers and sentences need not tell them apart.

    Without a copy it is a file that cannot be had, and says why. What is derived from it, such as its parent, is a plain path.

    Args:
        url: of the file.
        local_copy: where it lies here, if it was fetched.
        problem: why it was not.
    """

    url: str = ""
    local_copy: str | None = None
    problem: str = _NOT_FETCHED

    def __new__(cls, url: str, local_copy: str | None = None, problem: str = _NOT_FETCHED) -> "RemotePath":
        self = super().__new__(cls, local_copy or _nowhere(url))
        self.url, self.local_copy, self.problem = url, local_copy, problem
        return self

    def __init__(self, url: str, local_copy: str | None = None, problem: str = _NOT_FETCHED) -> None:
        del problem
        super().__init__(*([local_copy or _nowhere(url)] if sys.version_info >= (3, 12) else []))

    def __reduce__(self) -> tuple[Any, ...]:
        return RemotePath, (self.url, self.local_copy, self.problem)

    def __str__(self) -> str:
        return shown_url(self.url) if self.url else super().__str__()

    def __fspath__(self) -> str:
        return super().__str__()

    def with_segments(self, *segments: str | os.PathLike[str]) -> Path:  # type: ignore[override, unused-ignore]
        return Path(*segments)

    def absolute(self) -> "RemotePath":
        return self

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        if self.url and self.local_copy is None:
            raise OSError(errno.ENOTDIR, self.problem)  # of this kind, since ``is_file`` then says no
        return super().stat(follow_symlinks=follow_symlinks)


def _nowhere(url: str) -> str:
    """A path with the URL's name at its end, at which nothing can be."""
    parts = urlsplit(url)
    return f"/dev/null/{parts.scheme}/{parts.netloc.rpartition('@')[2]}{parts.path}"
