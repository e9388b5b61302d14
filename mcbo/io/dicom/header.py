"""A file of a DICOM series, and how such files are known."""

import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcbo.core.errors import InputError
from mcbo.io.files import is_file, shown, suffix_of
from mcbo.io.formats.format import DEFLATE

SUFFIXES = (".dcm", ".ima", ".dicom")
"""By which a file counts as DICOM even if it does not begin as such; most files of series have none."""

CONVERT = "dcm2niix, which writes NIfTI"

_OTHERS = (".tif", ".tiff", ".btf", ".nii", ".nii.gz", ".gz", ".gipl")
"""Suffixes of files that are not looked into."""

_SYNTAX = re.compile(rb"\x02\0\x10\0UI..([0-9.]{1,64})", re.DOTALL)
"""Where the transfer syntax stands."""

_META_BYTES = 2**14
"""At the beginning, more than what is told of a file rather than of its image."""

_RAW = re.compile(r"1\.2\.840\.10008\.1\.2(\.[12])?")
_DEFLATED = "1.2.840.10008.1.2.1.99"

_PACKED = 2**14
"""Largest ratio of other compression: JPEG packs an empty slice of 2048×2048 pixels into less than its header takes."""

_ROWS = re.compile(rb"\x28\0\x10\0|\0\x28\0\x10")
_HEADER_BYTES = 2**22

_PREAMBLE_BYTES = 128
_FIRST_ELEMENT = re.compile(rb"\x08\0[\0\x05\x08]\0(UL|CS|[^\0]\0\0\0)", re.DOTALL)
"""With which files without a preamble begin: length of the group, character set or image type, and their kind or length."""


@dataclass(frozen=True)
class Slice:
    """A file of a series: its header by the names of ``DICOM_TAGS``, and what its pixels are, as ``with_itk`` tells it."""

    path: Path
    header: dict[str, Any]

    def text(self, name: str) -> str:
        """A tag's text; empty if it is missing."""
        return str(self.header.get(name, ""))

    def numbers(self, name: str, count: int) -> NDArray[np.float64]:
        """A tag's numbers; raises ``InputError`` if there are not so many, or they are not finite."""
        try:
            found = np.array([float(part) for part in self.text(name).split("\\")])
        except ValueError:
            found = np.empty(0)
        if len(found) != count or not np.isfinite(found).all():
            raise InputError(
                f"expected slices with their {name} in the header, found {shown(self.text(name))} in {shown(self.path.name)}: "
                f"convert the series with {CONVERT}"
            )
        return found

    @property
    def frames(self) -> int:
        """How many images the file holds; several in enhanced DICOM."""
        match = re.fullmatch("[0-9]{1,9}", self.text("frames"))
        return max(int(match[0]) if match else 1, *(int(size) for size in self.header["size"][2:3]), 1)


def begins_as_dicom(path: Path) -> bool:
    """Whether a regular file begins with DICOM's preamble, or without one with the elements that come first."""
    if suffix_of(path) in _OTHERS or not is_file(path):
        return False
    try:
        if path.stat().st_size <= _PREAMBLE_BYTES:  # also that of files of the system, which may block
            return False
        with path.open("rb") as file:
            head = file.read(_PREAMBLE_BYTES + 4)
    except OSError:
        return False
    return head[_PREAMBLE_BYTES:] == b"DICM" or _FIRST_ELEMENT.match(head) is not None


def compression(path: Path) -> int:
    """The largest ratio of compression that a file may have, by its transfer syntax; one that names none is not compressed."""
    with path.open("rb") as file:
        found = _SYNTAX.search(file.read(_META_BYTES))
    syntax = found[1].decode() if found else ""
    if not syntax or _RAW.fullmatch(syntax):
        return 1
    return DEFLATE if syntax == _DEFLATED else _PACKED


def has_pixels(path: Path) -> bool:
    """Whether a DICOM file that cannot be read was an image, by its element with the number of rows."""
    with path.open("rb") as file:
        return _ROWS.search(file.read(_HEADER_BYTES)) is not None


def is_series_folder(path: Path, *, most: int | None = None) -> bool:
    """Whether a folder has DICOM files directly in it, as far as so many files tell."""
    try:
        return any(begins_as_dicom(file) for file in islice(path.iterdir(), most))
    except OSError:  # no folder, or a closed one
        return False
