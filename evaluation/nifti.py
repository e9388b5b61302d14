"""Reads NIfTI files, compressed or not, by their content.

A header is checked against the size of its file before any value is read. nibabel interprets its fields, as in the official
programs.
"""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from evaluation.errors import EvaluationError, log, printable, reason
from evaluation.files import file_size

MAX_VALUES = 2**29
"""A displacement of 512³ voxels has 4·10⁸ values; scoring one takes four times its bytes in float64."""

MAX_OFFSET = 2**26
"""Bytes of header and extensions before the values."""

MAX_SURPLUS = 2**26
"""Bytes of a file beyond what its header claims."""

MAX_RATIO, GZIP_BYTES = 1032, 2**16
"""Deflate expands at most 1032 times; the bytes are an allowance for gzip's own header."""

BROKEN = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, OverflowError, zlib.error, MemoryError)
"""What is raised for broken files."""

_GZIP = b"\x1f\x8b"
_CHUNK, _PART = 2**20, 2**24
"""Bytes that are read at a time, and inflated at most."""
_GZIP_FORMAT = 31
"""zlib's code for it, at its largest window."""


@dataclass(frozen=True)
class Nifti:
    """A NIfTI file; its values are not yet read.

    Attributes:
        path: the file.
        stored: sizes of all axes.
        dtype: of the values on disk.
        affine: voxel to world, mm, ``(4, 4)``; it may be singular.
        zooms: voxel size along axes 0, 1, 2 as the header has it.
        slope, intercept: a value is ``slope · stored + intercept``.
        offset: bytes before the values.
    """

    path: Path
    stored: tuple[int, ...]
    dtype: np.dtype[Any]
    affine: NDArray[np.float64]
    zooms: NDArray[np.float64]
    slope: float
    intercept: float
    offset: int

    @property
    def shape(self) -> tuple[int, ...]:
        """``stored`` without axes of size 1 at its end, from the fourth on."""
        last = max(axis for axis, size in enumerate(self.stored) if axis < 3 or size > 1)
        return self.stored[: last + 1]

    def read(self) -> NDArray[Any]:
        """The values, in ``shape``; raises one of ``BROKEN`` if the file is cut off or damaged."""
        values = np.empty(math.prod(self.stored), self.dtype)
        with self.path.open("rb") as file:
            content = _Content(file)
            content.upto(self.offset)
            at, into = 0, values.view(np.uint8).data
            for part in content.parts(len(into)):
                into[at : at + len(part)] = part
                at += len(part)
            if at < len(into):
                raise EOFError(f"it is cut off: {len(into) - at} of {len(into)} bytes are missing")
            if content.has_garbage_behind():
                _warn(f"{self.path}: bytes behind its compressed data are ignored, as gzip does; save it again")
        shaped = values.reshape(self.shape, order="F")
        if (self.slope, self.intercept) == (1, 0):
            return shaped
        with np.errstate(all="ignore"):
            return shaped.astype(np.float64) * self.slope + self.intercept


def open_nifti(path: Path, expected: str) -> Nifti:
    """Reads a header; ``expected`` names the kind of file in the errors.

    Raises:
        EvaluationError: if the file is no NIfTI of one file, or its header claims more than it can hold.
    """
    size = file_size(path, expected)
    try:
        with path.open("rb") as file:
            content = _Content(file)
            head = content.upto(nibabel.Nifti2Header.template_dtype.itemsize)
        return _parse(path, head, size, compressed=content.compressed)
    except BROKEN as error:
        raise EvaluationError(f"{path}: expected {expected}, but it cannot be read: {reason(error)}") from error


def _parse(path: Path, head: bytes, size: int, *, compressed: bool) -> Nifti:
    kinds: dict[int, Any] = {348: (nibabel.Nifti1Header, head[344:347]), 540: (nibabel.Nifti2Header, head[4:7])}
    length = next((n for n in kinds if head[:4] in (n.to_bytes(4, "little"), n.to_bytes(4, "big"))), 0)
    magic = kinds[length][1] if length else b""
    if len(head) < length or magic not in (b"n+1", b"n+2"):
        raise ImageFileError(f"it is not NIfTI{', but the header of a pair of files' if magic[:2] == b'ni' else ''}")
    order = "<" if head[:4] == length.to_bytes(4, "little") else ">"
    with np.errstate(all="ignore"):
        header = kinds[length][0](head[:length], endianness=order, check=False)
    stored, dtype, offset = _claim(header, size, compressed=compressed)
    pixdim = header["pixdim"]
    pixdim[1:4] = np.where(pixdim[1:4] == 0, 1, np.abs(pixdim[1:4]))  # as nibabel mends them, and the next one
    pixdim[0] = pixdim[0] if pixdim[0] in (-1, 1) else 1
    for code in ("sform_code", "qform_code"):  # below 0 means "not set" to ITK and to NIfTI's own library
        header[code] = max(header[code].item(), 0)
    with np.errstate(all="ignore"):
        slope, intercept = header.get_slope_inter()
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    zooms = np.asarray(header.get_zooms()[:3], dtype=np.float64)
    return Nifti(path, stored, dtype, affine, zooms, 1.0 if slope is None else slope, intercept or 0.0, offset)


def _claim(header: Any, size: int, *, compressed: bool) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type and offset of the values; HeaderDataError unless a file of ``size`` bytes can hold them."""
    count = int(header["dim"][0])
    shape = [int(n) for n in header["dim"][1 : max(count, 0) + 1]]
    if not 1 <= count <= 7 or min(shape) < 1 or math.prod(shape) > MAX_VALUES:
        raise HeaderDataError(f"its header claims {count} dimensions and the shape {tuple(shape)}")
    offset = float(header["vox_offset"])
    if not header.template_dtype.itemsize + 4 <= offset <= MAX_OFFSET or offset != int(offset):
        raise HeaderDataError(f"its header claims that the values begin at byte {offset:g}")
    try:
        dtype = header.get_data_dtype()
    except KeyError as error:
        raise HeaderDataError(f"its header claims data of an unknown type, number {error}") from error
    claimed = int(offset) + math.prod(shape) * dtype.itemsize
    if claimed > (size * MAX_RATIO + GZIP_BYTES if compressed else size):
        raise HeaderDataError(f"its header claims {claimed} bytes, more than a file of {size} bytes can hold")
    if size > claimed + MAX_SURPLUS:
        raise HeaderDataError(f"it has {size} bytes, although its header claims no more than {claimed}")
    return tuple(shape), dtype, int(offset)


class _Content:
    """The uncompressed bytes of a file, from its beginning to the end of what it has of gzip streams."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, file.read(_CHUNK)
        self.compressed = self._left.startswith(_GZIP)
        self._stream = zlib.decompressobj(_GZIP_FORMAT)

    def upto(self, count: int) -> bytes:
        """So many bytes, or as many as there are."""
        return b"".join(self.parts(count))

    def parts(self, count: int) -> Iterator[bytes]:
        """The same in pieces."""
        while count and (part := self._inflate(count) if self.compressed else self._plain(count)):
            count -= len(part)
            yield part

    def has_garbage_behind(self) -> bool:
        """Has the checksum compared, if a stream ends near, and says whether something else than zeros and gzip follows it."""
        surplus = 0
        while self.compressed and not self._stream.eof:
            surplus += len(self._decompress(_CHUNK))
            if surplus > _CHUNK:
                return False
        behind = (self._left + self._file.read(_CHUNK)).lstrip(b"\0") if self.compressed else b""
        return bool(behind) and not behind.startswith(_GZIP)

    def _plain(self, count: int) -> bytes:
        self._left = self._left or self._file.read(_CHUNK)
        part, self._left = self._left[:count], self._left[count:]
        return part

    def _inflate(self, count: int) -> bytes:
        """Up to so many bytes; none behind the last stream."""
        while True:
            if self._stream.eof:  # another stream may follow, behind zeros
                self._left = (self._left + self._file.read(_CHUNK)).lstrip(b"\0")
                if not self._left.startswith(_GZIP):
                    return b""
                self._stream = zlib.decompressobj(_GZIP_FORMAT)
            if part := self._decompress(count):
                return part

    def _decompress(self, count: int) -> bytes:
        """Up to so many bytes of this stream; none if it ends, or more of the file is needed."""
        data = self._left or self._file.read(_CHUNK)
        if not data:
            raise EOFError("it is cut off: its compressed data have no end")
        part = self._stream.decompress(data, min(count, _PART))
        self._left = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
        return part


@cache
def _warn(text: str) -> None:
    """Once for each text."""
    log.warning("%s", printable(text))
