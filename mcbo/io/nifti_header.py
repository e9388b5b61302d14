"""NIfTI files: what a header claims is checked before anything of that size is read or allocated."""

import io
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import nibabel
import numpy as np
from isal import igzip, isal_zlib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from mcbo.core.errors import InputError
from mcbo.io.files import reading, regular_size
from mcbo.io.source import File

MAX_VOXELS = 2**30
"""1024³. Registration takes at least 100 bytes per voxel, so 107 GB; a larger claim is more likely a broken header."""

MAX_OFFSET = 2**26
"""Bytes before the voxels. Headers end at 352 or 544; extensions, even whole DICOM headers, are smaller than this."""

MAX_SURPLUS = 2**26
"""Bytes of a file beyond what its header claims. Sparse files may have any size, and all of it would be hashed."""

MAX_RATIO = 1032
"""Largest compression ratio of deflate: 258 bytes from two bits (zlib's technical notes)."""

_HEAD_BYTES = 2**20
"""Bytes of a file that must hold its header. Without a limit, gzip would skip zeros behind the end of a stream forever."""

_STREAM_BYTES = 2**16
"""Allowance for gzip's own header and trailer in a small file."""

BLOCK_VALUES = 2**20
"""Values read at a time: 16 slices of 256², so that the scattered writes fill whole cache lines."""

_STRIP = 4
"""Of axis 1, copied at a time: what is read of a block for one index of axis 0 is still in the cache for the next."""

GZIP_ERROR: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # its stubs take the class for an instance
UNREADABLE = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, OverflowError, zlib.error, GZIP_ERROR)
"""Errors of the libraries at broken files."""

_GZIP = b"\x1f\x8b"
_FORMATS: dict[int, Any] = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}


@dataclass(frozen=True)
class Header:
    """What a NIfTI file claims to hold.

    Attributes:
        path: the file.
        shape: one to seven sizes; trailing axes of size 1 behind the third are left out.
        dtype: of the values on disk, in their byte order.
        affine: voxel to world (mm), ``(4, 4)`` float64, invertible.
        slope, intercept: an intensity is ``slope·value + intercept``.
        offset: bytes before the first value, uncompressed.
    """

    path: File
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    affine: NDArray[np.float64]
    slope: float
    intercept: float
    offset: int


def read_header(path: File) -> Header:
    """Reads a header of NIfTI-1 or NIfTI-2, compressed or not, and refuses impossible claims.

    Raises:
        InputError: if the file is missing, none of these, or claims more than it can hold; the message names it.
    """
    size = regular_size(path, "a NIfTI image")
    with reading(path, "a whole NIfTI image", UNREADABLE):
        with Path(path).open("rb") as file:
            block = file.read(_HEAD_BYTES)
        compressed = block.startswith(_GZIP)
        if compressed:
            with igzip.IGzipFile("", "rb", fileobj=io.BytesIO(block)) as stream:
                block = stream.read(540)
        header = _parse(path, block)
        claimed = header.offset + math.prod(header.shape) * header.dtype.itemsize
        if claimed > (size * MAX_RATIO + _STREAM_BYTES if compressed else size):
            raise InputError(
                f"expected a whole NIfTI image, but its header claims {claimed} bytes, more than "
                f"{'a compressed file' if compressed else 'a file'} of {size} bytes can hold"
            )
        if size > claimed + MAX_SURPLUS:
            raise InputError(
                f"expected a whole NIfTI image, found a file of {size} bytes, although its header claims no more than {claimed}"
            )
    return header


def read_values(header: Header, *, dtype: type[np.float32 | np.int32 | np.int64] = np.float32) -> NDArray[Any]:
    """Reads the values that a header claims, in the header's shape, and nothing beyond them.

    In addition to the result, ``BLOCK_VALUES`` values or one slice are in memory, in the file's type and in float64. Labels are
    read as integers, since float32 rounds them above 2²⁴.

    Raises:
        InputError: if the file is cut off or damaged, or does not fit into memory.
    """
    lead, last = header.shape[:-1], header.shape[-1]
    thick = max(1, BLOCK_VALUES // math.prod(lead))
    with reading(header.path, "a whole NIfTI image", UNREADABLE):
        values = np.empty(header.shape, dtype)
        with _open(header.path) as stream, np.errstate(over="ignore", invalid="ignore"):
            stream.seek(header.offset)
            for low in range(0, last, thick):
                high = min(low + thick, last)
                block = _read_exactly(stream, math.prod(lead) * (high - low) * header.dtype.itemsize)
                part = _scaled(np.frombuffer(block, header.dtype), header).reshape((*lead, high - low), order="F")
                copy_reordered(values[..., low:high], part)
            stream.read(1)  # lets gzip compare its checksum, if the file ends here
    return values


def copy_reordered(into: NDArray[Any], array: NDArray[Any]) -> None:
    """Copies an array into one of the same shape, of which one has the first axis fastest in memory, the other the last."""
    for row in range(0, into.shape[1], _STRIP) if into.ndim > 2 else ():
        into[:, row : row + _STRIP] = array[:, row : row + _STRIP]
    if into.ndim <= 2:
        into[...] = array


def _scaled(values: NDArray[Any], header: Header) -> NDArray[Any]:
    if (header.slope, header.intercept) == (1, 0):
        return values
    return values.astype(np.float64) * header.slope + header.intercept


def _read_exactly(stream: IO[bytes], count: int) -> bytes:
    parts, missing = [], count
    while missing and (part := stream.read(missing)):
        parts.append(part)
        missing -= len(part)
    if missing:
        raise EOFError(f"it is cut off: {missing} of {count} bytes of a block are missing")
    return parts[0] if len(parts) == 1 else b"".join(parts)


@contextmanager
def _open(path: File) -> Iterator[IO[bytes]]:
    """The uncompressed bytes of a file, compressed or not by its first bytes, whatever its name."""
    with Path(path).open("rb") as file:
        if file.peek(2)[:2] != _GZIP:
            yield file
            return
        with igzip.IGzipFile("", "rb", fileobj=file) as stream:
            yield cast(IO[bytes], stream)


def _parse(path: File, block: bytes) -> Header:
    length = next((n for n in _FORMATS if block[:4] in (n.to_bytes(4, "little"), n.to_bytes(4, "big"))), None)
    magic = block[344:348] if length == 348 else block[4:8]
    if length is None or len(block) < length or magic[:3] not in (b"n+1", b"n+2"):
        pair = ", but the header of a pair of files; make it one file" if magic[:2] == b"ni" else ""
        raise InputError(f"expected a whole NIfTI image, found none (it does not begin with such a header){pair}")
    order = "<" if block[:4] == length.to_bytes(4, "little") else ">"
    try:
        with np.errstate(all="ignore"):
            fields = _FORMATS[length](block[:length], endianness=order, check=False)
            affine = np.asarray(fields.get_best_affine(), dtype=np.float64)
        dtype = fields.get_data_dtype()
    except KeyError as error:
        raise InputError(f"expected one number per voxel, found data of an unknown type, number {error}") from error
    shape = _checked_shape([int(size) for size in fields["dim"]])
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine) < 4:
        raise InputError(f"expected an affine that can be inverted, found {affine.tolist()}")
    slope = _checked_finite("slope", float(fields["scl_slope"]))
    intercept = _checked_finite("intercept", float(fields["scl_inter"])) if slope else 0.0
    offset, least = float(fields["vox_offset"]), length + 4
    if not least <= offset <= MAX_OFFSET or offset != int(offset):
        raise InputError(
            f"expected a header with voxels that begin {least} to {MAX_OFFSET} bytes into the file, found {offset:g}"
        )
    return Header(path, shape, dtype, affine, slope or 1.0, intercept, int(offset))  # a slope of 0 means "not scaled"


def _checked_shape(dim: list[int]) -> tuple[int, ...]:
    count, sizes = dim[0], dim[1 : max(dim[0], 0) + 1]
    if not 1 <= count <= 7:
        raise InputError(f"expected a 3D image, found a header with {count} dimensions")
    if min(sizes) < 1:
        raise InputError(f"expected an image with voxels, found a header that claims the shape {tuple(sizes)}")
    if math.prod(sizes[:3]) > MAX_VOXELS:
        raise InputError(f"expected an image of at most {MAX_VOXELS} voxels, found a header for the shape {tuple(sizes)}")
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes = sizes[:-1]
    return tuple(sizes)


def _checked_finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise InputError(f"expected a header with a finite {name} of intensities, found {value}")
    return value
