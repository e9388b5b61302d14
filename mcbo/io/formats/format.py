"""What a format of images has to offer, and the checks that all share."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from isal import isal_zlib
from torch import Tensor

from mcbo.core.errors import InputError
from mcbo.core.memory import check_fits
from mcbo.geometry.grid import Grid
from mcbo.io.files import regular_size, shown
from mcbo.io.microscopy.selection import Selection
from mcbo.io.nifti_header import GZIP_ERROR, MAX_RATIO, MAX_SURPLUS, MAX_VOXELS

DEFLATE = MAX_RATIO
"""Largest ratio of compression of gzip and zlib."""

ALLOWANCE_BYTES = 2**16
"""For a compressed file's own header and trailer, where the file is small."""

MAX_FILE_BYTES = 2**34
"""1024³ numbers in double precision, and as much again."""

_CHUNK_BYTES = 2**20

_TEXT_BYTES = 32
"""Of a number at most, where data are text."""


@dataclass(frozen=True)
class Format:
    """A format of images.

    Attributes:
        name: for messages.
        suffixes: of its files, in lower case.
        read: given a file and what the user says of it: ``(1, 1, H, W, D)``, int32 or int64 where the file has whole numbers,
            else float32; and the grid. Raises ``InputError``, beginning with the file's name, and ``MemoryBudgetError``.
        judge: what the header of a regular file claims; raises ``InputError`` if that alone rules it out.
        takes: whether a folder is such an image; None if none is.
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[Path, Selection], tuple[Tensor, Grid]]
    judge: "Callable[[Path], Claim]" = lambda _: Claim(0, 0, 0)
    takes: Callable[[Path], bool] | None = None


@dataclass(frozen=True)
class Claim:
    """What a header says.

    Attributes:
        numbers: of the image, in all; 0 if only a foreign reader can tell.
        stored_bytes: what they take on disk at least, uncompressed.
        held_bytes: what is there of them, compressed or not.
        ratio: how much smaller compression may have made them; 1 if they are not compressed.
    """

    numbers: int
    stored_bytes: int
    held_bytes: int
    ratio: int = 1

    def check(self) -> None:
        """Raises ``InputError`` if the file cannot hold what its header claims, or is much larger; sparse ones may be."""
        limit = self.held_bytes if self.ratio == 1 else self.held_bytes * self.ratio + ALLOWANCE_BYTES
        if self.stored_bytes > limit:
            raise InputError(
                f"expected a whole image, but its header claims {self.stored_bytes} bytes, more than {self.held_bytes} bytes "
                f"of {'packed ' if self.ratio > 1 else ''}data can hold: it is cut off or damaged; save or copy it again"
            )
        if self.numbers and self.held_bytes > _TEXT_BYTES * self.numbers + MAX_SURPLUS:
            raise InputError(
                f"expected a whole image, found {self.held_bytes} bytes of data, although its header claims no more than "
                f"{self.stored_bytes}: save it again"
            )


def check_count(size: Sequence[int]) -> int:
    """How many numbers a size makes; raises ``InputError`` for none, or more than anything here could work on."""
    count = math.prod(size) if min(size, default=0) > 0 else 0
    if not 0 < count <= MAX_VOXELS:
        raise InputError(f"expected at most {MAX_VOXELS} numbers, found {count} in the header: {tuple(size)}")
    return count


def check_memory(numbers: int, value_bytes: int) -> None:
    """Raises ``MemoryBudgetError`` for numbers that do not fit while they are read.

    Counted are four copies in the other process, one here, and the tensors.
    """
    check_fits(numbers * (5 * value_bytes + 8), f"reading {numbers} numbers")


def check_unpacked(path: Path, offset: int, held_bytes: int, needed_bytes: int) -> None:
    """Unpacks so many bytes from an offset on, zlib or gzip, and keeps none of it; for readers that do not mind a short end.

    Raises:
        InputError: if it is damaged, or makes fewer bytes than needed.
    """
    made = 0
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(min(_CHUNK_BYTES, held_bytes))
        left = held_bytes - len(data)
        stream = isal_zlib.decompressobj(wbits=31 if data.startswith(b"\x1f\x8b") else 15)
        try:
            while data and made <= needed_bytes and not stream.eof:
                made += len(stream.decompress(data, 16 * _CHUNK_BYTES))
                data = stream.unconsumed_tail
                if not data:
                    data = file.read(min(_CHUNK_BYTES, left))
                    left -= len(data)
        except GZIP_ERROR as error:
            raise InputError(f"expected whole packed data, but they are damaged: {error}; save or copy it again") from error
    if made < needed_bytes or (made == needed_bytes and not stream.eof):
        raise InputError(f"expected packed data for {needed_bytes} bytes, found {made}: it is cut off; save or copy it again")


def file_size(path: Path, expected: str) -> int:
    """``regular_size`` of a file that is read as a whole; raises ``InputError`` also for one that is larger than any image."""
    size = regular_size(path, expected)
    if size > MAX_FILE_BYTES:
        raise InputError(f"{path}: expected {expected} of at most {MAX_FILE_BYTES} bytes, found {size}")
    return size


def data_file(header: Path, name: str) -> Path:
    """A file that a header names: a regular file beside it; raises ``InputError`` otherwise."""
    plain = name.removeprefix("./")
    rule = "expected a data file in the header's folder, by its name alone"
    if not plain or plain in (".", "..") or not plain.isprintable() or any(mark in plain for mark in "/\\%"):
        raise InputError(f"{rule}, found {shown(name)}: put it there, or save header and data as one file")
    path = header.parent / plain
    regular_size(path, "a data file")
    if path.is_symlink() and path.resolve().parent != header.parent.resolve():
        raise InputError(f"{rule}, found the link {shown(name)} to {shown(str(path.resolve()))}: put a copy in its place")
    return path
