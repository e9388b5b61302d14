"""Folders of datasets, local or at a URL, and the checks on the untrusted paths in them."""

import functools
import os
import posixpath
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

from mcbo.core.errors import InputError
from mcbo.dataset.fetch import list_files
from mcbo.io.files import shown
from mcbo.io.source import Source, shown_url

TRUST_REMEDY = "copy the files into the dataset's folder, or allow it with --trust-paths or MCBO_TRUST_PATHS=1"

MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4095
"""Linux's limits for a file's or folder's name, and for a whole path."""


@dataclass
class Folder:
    """A dataset's folder, out of which paths may lead only if it is trusted."""

    path: Path
    trusted: bool = False
    _resolve: Callable[[Path], Path] = field(default_factory=lambda: functools.cache(Path.resolve))
    """Looks up each folder once, since thousands of images share it."""

    def __str__(self) -> str:
        return str(self.path)

    def names(self, subfolder: str = ".") -> list[str]:
        """Sorted names of everything in a subfolder; none if it does not exist."""
        return sorted(path.name for path in (self.path / subfolder).glob("*"))

    def join(self, text: str, where: str) -> Path:
        """The path of an entry, relative or absolute, checked by its text and its links; the file need not exist.

        Raises:
            InputError: beginning with ``where``, if no system could open the path, or it leads out of the folder.
        """
        _check_text(text, where)
        path = self.path / text
        if not self.trusted:
            self._check_inside(path, where)
        return path

    def _check_inside(self, path: Path, where: str) -> None:
        try:
            root, real = self._resolve(self.path), self._resolve(path.parent) / path.name
            if path.name == ".." or real.is_symlink():
                real = real.resolve()
        except (OSError, RuntimeError) as error:  # loops of links, among others
            raise InputError(f"{where}: expected the path of an image, but {path} cannot be followed: {error}") from error
        if not real.is_relative_to(root):
            raise InputError(
                f"{where}: expected a path inside the dataset's folder {self.path}, found {shown(str(path))}, "
                f"which leads to {shown(str(real))}; {TRUST_REMEDY}"
            )


@dataclass(frozen=True)
class RemoteFolder:
    """A ``Folder`` at a URL, with or without a final slash; if trusted, paths may lead anywhere in its bucket or server.

    There are no links, so the text of a path shows where it leads.
    """

    url: str
    trusted: bool = False

    def __str__(self) -> str:
        return shown_url(self.url)

    def names(self, subfolder: str = ".") -> list[str]:
        """Sorted names of a subfolder's files, none if it does not exist; raises ``InputError`` if they cannot be listed."""
        return list_files(self.join(subfolder, str(self)).url, missing_ok=subfolder != ".")

    def join(self, text: str, where: str) -> Source:
        """The file of an entry; raises as ``Folder.join``, and for absolute paths."""
        _check_text(text, where)
        relative = posixpath.normpath(text)
        if text.startswith("/") or "://" in text or (relative.split("/")[0] == ".." and not self.trusted):
            raise InputError(
                f"{where}: expected a path inside the dataset's folder {self}, found {shown(text)}; "
                "paths must be relative to it" + ("" if self.trusted else " and stay below it")
            )
        parts = urlsplit(self.url)
        if parts.scheme in ("http", "https"):
            relative = quote(relative)  # else a server might read %2e%2e as "..", or what follows a "?" as a query
        path = posixpath.normpath(posixpath.join(parts.path or "/", relative))
        return Source(parts._replace(path=path, query="", fragment="").geturl())


def _check_text(text: str, where: str) -> None:
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        wrong = "which no file name can contain"
    else:
        if not text.isprintable():
            wrong = "with unprintable characters"
        elif len(encoded) > MAX_PATH_BYTES or any(len(name) > MAX_NAME_BYTES for name in encoded.split(b"/")):
            wrong = f"which is longer than a path ({MAX_PATH_BYTES} bytes) or a name in it ({MAX_NAME_BYTES}) can be"
        else:
            return
    raise InputError(f"{where}: expected the path of an image, found {shown(text)}, {wrong}; correct the entry")
