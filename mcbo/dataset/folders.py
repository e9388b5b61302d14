"""Paths that others wrote: where they may lead, and how they are shown."""

import os
import posixpath
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

from mcbo.core.errors import InputError
from mcbo.dataset.fetch import list_files
from mcbo.io.files import shown
from mcbo.io.source import Source, shown_url

TRUST_REMEDY = "copy the files into the dataset's folder, or allow it with --trust-paths or MCBO_TRUST_PATHS=1"

MAX_NAME_BYTES = 255
"""Of a file or folder: what Linux file systems allow."""

MAX_PATH_BYTES = 4095
"""Of a whole path: what Linux allows."""


@dataclass
class Folder:
    """A dataset's folder, out of which no path may lead.

    Attributes:
        path: as it was given.
        trusted: whether paths may lead anywhere.
    """

    path: Path
    trusted: bool = False
    _parents: dict[Path, Path] = field(default_factory=dict)

    def __str__(self) -> str:
        return str(self.path)

    def names(self, subfolder: str = ".") -> list[str]:
        """Names of what is in a subfolder, sorted; none if there is no such folder."""
        return sorted(path.name for path in (self.path / subfolder).glob("*"))

    def join(self, text: str, where: str) -> Path:
        """The path of an entry, checked by its text and its links; the file need not be there.

        Args:
            text: relative to the folder, or absolute.
            where: which entry this is, for the sentence.

        Raises:
            InputError: if it is no path that the system could open, or leads out of the folder.
        """
        _check_text(text, where)
        path = self.path / text
        if not self.trusted:
            self._check_inside(path, where)
        return path

    def _check_inside(self, path: Path, where: str) -> None:
        try:
            root, real = self._real(self.path), self._real(path.parent) / path.name
            if path.name == ".." or real.is_symlink():
                real = real.resolve()
        except (OSError, RuntimeError) as error:  # loops of links, among others
            raise InputError(f"{where}: expected the path of an image, but {path} cannot be followed: {error}") from error
        if not real.is_relative_to(root):
            raise InputError(
                f"{where}: expected a path inside the dataset's folder {self.path}, found {shown(str(path))}, "
                f"which leads to {shown(str(real))}; {TRUST_REMEDY}"
            )

    def _real(self, folder: Path) -> Path:
        """A folder without links; looked up once, since thousands of images share it."""
        if folder not in self._parents:
            self._parents[folder] = folder.resolve()
        return self._parents[folder]


@dataclass(frozen=True)
class RemoteFolder:
    """The same at a URL. Nothing is a link there, so the text of a path tells where it leads.

    Attributes:
        url: of the folder, with or without a slash at its end.
        trusted: whether paths may lead to other folders of the same bucket or server.
    """

    url: str
    trusted: bool = False

    def __str__(self) -> str:
        return shown_url(self.url)

    def names(self, subfolder: str = ".") -> list[str]:
        """Names of the files in a subfolder, sorted; none if there is no such subfolder.

        Raises:
            InputError: if that cannot be listed, or the folder itself is not there.
        """
        return list_files(self.join(subfolder, str(self)).url, missing_ok=subfolder != ".")

    def join(self, text: str, where: str) -> Source:
        """The file of an entry; as ``Folder.join``.

        Raises:
            InputError: if it is no path, or leads out of the folder.
        """
        _check_text(text, where)
        relative = posixpath.normpath(text)
        if text.startswith("/") or "://" in text or (relative.split("/")[0] == ".." and not self.trusted):
            raise InputError(
                f"{where}: expected a path inside the dataset's folder {self}, found {shown(text)}; "
                "paths must be relative to it" + ("" if self.trusted else " and stay below it")
            )
        parts = urlsplit(self.url)
        if parts.scheme in ("http", "https"):
            relative = quote(relative)  # else a server might take %2e%2e for "..", or what follows a "?" for a question
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
