"""NIfTI files: what a header claims is checked before anything of that size is read or allocated."""

import hashlib
import io
import math
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, TypeAlias

import nibabel
import numpy as np
from isal import isal_zlib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from mcbo.core.errors import InputError
from mcbo.core.log import log
from mcbo.geometry.units import MM, Unit
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

Form: TypeAlias = Literal["sform", "qform"]
"""The two ways in which a header may say where its image lies."""

_UNITS: dict[int, Unit] = {1: "m", 2: "mm", 3: "um"}
"""By the lowest three bits of ``xyzt_units``."""

_TIME_BITS = 0o70
"""The next three."""

ValueType: TypeAlias = type[np.float32 | np.int32 | np.int64]
"""Of values in memory."""

_GZIP = b"\x1f\x8b"
_GZIP_FORMAT = 31
"""zlib's code for it, at its largest window."""

_CHUNK = 2**18
"""Bytes of a file that are read at a time."""

_FORMATS: dict[int, Any] = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}


@dataclass(frozen=True)
class Intent:
    """What a header says its values are: NIfTI's code, a name that is free, and a first parameter."""

    code: int = 0
    name: str = ""
    parameter: float = 0.0


@dataclass(frozen=True)
class Header:
    """What a NIfTI file claims to hold.

    Attributes:
        path: the file.
        shape: one to seven sizes; trailing axes of size 1 behind the third are left out.
        dtype: of the values on disk, in their byte order.
        affine: voxel to world (mm), ``(4, 4)`` float64, invertible: the sform, the qform, or a guess where neither is set.
        unit: in which the file gives lengths; mm, if it does not tell.
        forms: sform and qform (mm), each None where its code is 0.
        sizes_mm: of a voxel, as ``pixdim`` has them, which ITK takes.
        slope, intercept: an intensity is ``slope·value + intercept``.
        offset: bytes before the first value, uncompressed.
        intent: of its values.
        has_time: whether it gives a unit of time (or of frequency) to the fourth axis.
    """

    path: File
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    affine: NDArray[np.float64]
    unit: Unit
    forms: tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]
    sizes_mm: tuple[float, float, float]
    slope: float
    intercept: float
    offset: int
    intent: Intent = Intent()
    has_time: bool = False


def read_header(path: File, *, form: Form = "sform") -> Header:
    """Reads a header of NIfTI-1 or NIfTI-2, compressed or not, and refuses impossible claims.

    ``form`` is the one that is taken where both are set.

    Raises:
        InputError: if the file is missing, none of these, or claims more than it can hold; the message names it.
    """
    with _reading(path), Path(path).open("rb") as file:
        return _header_of(path, file.read(_HEAD_BYTES), os.fstat(file.fileno()).st_size, form)


def read_values(header: Header, *, dtype: ValueType = np.float32) -> NDArray[Any]:
    """Reads the values that a header claims, in the header's shape, and nothing beyond them.

    In addition to the result, ``BLOCK_VALUES`` values or one slice are in memory, in the file's type and in float64. Labels are
    read as integers, since float32 rounds them above 2²⁴.

    Raises:
        InputError: if the file is cut off or damaged, or does not fit into memory.
    """
    with _reading(header.path), Path(header.path).open("rb") as file:
        return _values_of(header, file, dtype)


def read_whole(
    path: File,
    *,
    check: Callable[[Header], object],
    dtype: Callable[[Header], ValueType] = lambda _: np.float32,
    form: Form = "sform",
) -> tuple[Header, NDArray[Any], str]:
    """``read_header``, ``check``, ``read_values`` and the SHA-256 of the file, from bytes that are each read once.

    So all of it belongs together, even if the file is saved anew meanwhile.
    """
    with ExitStack() as closing:
        with _reading(path):
            raw = closing.enter_context(Path(path).open("rb", buffering=0))
            hashed = _Hashed(raw)
            file = closing.enter_context(io.BufferedReader(hashed, _HEAD_BYTES))
            header = _header_of(path, file.peek(_HEAD_BYTES), os.fstat(raw.fileno()).st_size, form)
        check(header)
        with _reading(path):
            values = _values_of(header, file, dtype(header))
            while file.read(_HEAD_BYTES):  # what follows the values
                pass
        return header, values, hashed.sha256.hexdigest()


class _Hashed(io.RawIOBase):
    """The bytes of a file, and the SHA-256 of those that were read."""

    def __init__(self, file: io.FileIO) -> None:
        super().__init__()
        self._file, self.sha256 = file, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fills the buffer, unless the file ends before."""
        view, filled = memoryview(buffer), 0
        while filled < len(view) and (count := self._file.readinto(view[filled:])):
            filled += count
        self.sha256.update(view[:filled])
        return filled


@contextmanager
def _reading(path: File) -> Iterator[None]:
    """Errors in the block, which reads a file, become sentences; what would block is not opened."""
    regular_size(path, "a NIfTI image")
    with reading(path, "a whole NIfTI image", UNREADABLE):
        yield


def _header_of(path: File, block: bytes, size: int, form: Form) -> Header:
    """The header of a file of so many bytes, which begins with a block."""
    compressed = block.startswith(_GZIP)
    if compressed:
        block = _read_upto(Inflated(io.BytesIO(block)), 540)
    header = _parse(path, block, form)
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


def _values_of(header: Header, file: BinaryIO, dtype: ValueType) -> NDArray[Any]:
    """The values behind a header, from the beginning of its file."""
    lead, last = header.shape[:-1], header.shape[-1]
    thick = max(1, BLOCK_VALUES // math.prod(lead))
    values = np.empty(header.shape, dtype)
    stream: IO[bytes] | Inflated = Inflated(file) if _is_packed(file) else file
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, header.offset, _HEAD_BYTES):
            _read_exactly(stream, min(_HEAD_BYTES, header.offset - first))
        for low in range(0, last, thick):
            high = min(low + thick, last)
            block = _read_exactly(stream, math.prod(lead) * (high - low) * header.dtype.itemsize)
            part = _scaled(np.frombuffer(block, header.dtype), header).reshape((*lead, high - low), order="F")
            copy_reordered(values[..., low:high], part)
    if isinstance(stream, Inflated) and stream.has_garbage_behind():
        log.warning("%s: bytes behind its compressed data are ignored, as gzip does; save it again", header.path)
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


class Inflated:
    """The content of a file of gzip streams, read from its beginning to its end; what lies behind them is not touched."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._left, self._stream = file, b"", isal_zlib.decompressobj(_GZIP_FORMAT)

    def read(self, count: int) -> bytes:
        """Up to so many bytes; none at the end of the last stream."""
        while True:
            if self._stream.eof:  # another stream may follow, behind zeros
                self._left = (self._left + self._file.read(_CHUNK)).lstrip(b"\0")
                if not self._left.startswith(_GZIP):
                    return b""
                self._stream = isal_zlib.decompressobj(_GZIP_FORMAT)
            if part := self._inflate(count):
                return part

    def has_garbage_behind(self) -> bool:
        """Has the checksum compared, if a stream ends near, and says whether something else than zeros and gzip follows it."""
        surplus = 0
        while not self._stream.eof:
            surplus += len(self._inflate(_CHUNK))
            if surplus > _CHUNK:
                return False
        behind = (self._left + self._file.read(_CHUNK)).lstrip(b"\0")
        return bool(behind) and not behind.startswith(_GZIP)

    def _inflate(self, count: int) -> bytes:
        """Up to so many bytes of this stream; none if it ends, or more of the file is needed."""
        data = self._left or self._file.read(_CHUNK)
        if not data:
            raise EOFError("it is cut off: its compressed data have no end")
        part = self._stream.decompress(data, count)
        self._left = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
        return part


def _read_upto(stream: IO[bytes] | Inflated, count: int) -> bytes:
    parts, missing = [], count
    while missing and (part := stream.read(missing)):
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _read_exactly(stream: IO[bytes] | Inflated, count: int) -> bytes:
    block = _read_upto(stream, count)
    if len(block) < count:
        raise EOFError(f"it is cut off: {count - len(block)} of {count} bytes of a block are missing")
    return block


def _is_packed(file: Any) -> bool:
    """Whether a file is compressed: by its first bytes, whatever its name."""
    return bytes(file.peek(2)[:2]) == _GZIP


def _parse(path: File, block: bytes, form: Form) -> Header:
    length = next((n for n in _FORMATS if block[:4] in (n.to_bytes(4, "little"), n.to_bytes(4, "big"))), None)
    magic = block[344:348] if length == 348 else block[4:8]
    if length is None or len(block) < length or magic[:3] not in (b"n+1", b"n+2"):
        pair = ", but the header of a pair of files; make it one file" if magic[:2] == b"ni" else ""
        raise InputError(f"expected a whole NIfTI image, found none (it does not begin with such a header){pair}")
    order = "<" if block[:4] == length.to_bytes(4, "little") else ">"
    try:
        with np.errstate(all="ignore"):
            fields = _FORMATS[length](block[:length], endianness=order, check=False)
            _mend_pixdim(fields["pixdim"])
            unit = _UNITS.get(int(fields["xyzt_units"]) & 7, "mm")
            forms = _form(fields, "sform", unit), _form(fields, "qform", unit)
            guess = in_mm(fields.get_base_affine(), unit)
        dtype = fields.get_data_dtype()
    except KeyError as error:
        raise InputError(f"expected one number per voxel, found data of an unknown type, number {error}") from error
    shape = _checked_shape([int(size) for size in fields["dim"]])
    chosen = next((one for one in (forms if form == "sform" else forms[::-1]) if one is not None), None)
    affine = guess if chosen is None else chosen
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine) < 4:
        raise InputError(f"expected an affine that can be inverted, found {affine.tolist()}")
    slope = float(fields["scl_slope"])
    slope = slope if math.isfinite(slope) else 0.0  # nibabel and ITK take it for "not scaled", too
    intercept = _checked_finite("intercept", float(fields["scl_inter"])) if slope else 0.0
    offset, least = float(fields["vox_offset"]), length + 4
    if not least <= offset <= MAX_OFFSET or offset != int(offset):
        raise InputError(
            f"expected a header with voxels that begin {least} to {MAX_OFFSET} bytes into the file, found {offset:g}"
        )
    x, y, z = (float(size) * MM[unit] for size in fields["pixdim"][1:4])
    slope = slope or 1.0  # a slope of 0 means "not scaled"
    name = bytes(fields["intent_name"].item()).decode("latin-1")
    intent = Intent(int(fields["intent_code"]), name, float(fields["intent_p1"]))
    has_time = bool(int(fields["xyzt_units"]) & _TIME_BITS)
    return Header(path, shape, dtype, affine, unit, forms, (x, y, z), slope, intercept, int(offset), intent, has_time)


def _form(fields: Any, name: Form, unit: Unit) -> NDArray[np.float64] | None:
    """The sform or qform, mm; None if its code is 0, or if it is a quaternion of an impossible length beside an sform."""
    if int(fields[f"{name}_code"]) <= 0:
        return None
    try:
        return in_mm(getattr(fields, f"get_{name}")(), unit)
    except ValueError:
        if int(fields["sform_code"]) <= 0:
            raise
        return None


def in_mm(affine: Any, unit: Unit) -> NDArray[np.float64]:
    """An affine ``(4, 4)`` to another unit, as one to millimeters."""
    return np.asarray(np.diag([MM[unit]] * 3 + [1.0]) @ np.asarray(affine, dtype=np.float64))


def _mend_pixdim(pixdim: NDArray[np.floating]) -> None:
    """Voxel sizes of 0 or below, and a first number other than ±1, as nibabel mends them; they are common in old files."""
    pixdim[1:4] = np.where(pixdim[1:4] == 0, 1, np.abs(pixdim[1:4]))
    pixdim[0] = pixdim[0] if pixdim[0] in (-1, 1) else 1


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
