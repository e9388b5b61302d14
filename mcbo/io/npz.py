"""NumPy archives (``.npz``) of strangers: one array, its size known before it is allocated, and no pickle."""

import math
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

from numpy.lib import format as npy
from numpy.typing import NDArray

from mcbo.core.errors import InputError
from mcbo.io.files import regular_size, shown

MAX_BYTES = 2**34
"""Of an array: a displacement of 1024³ voxels has 12 GiB."""

_HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}

_UNREADABLE = (
    *(OSError, EOFError, ValueError, OverflowError, MemoryError, RuntimeError, NotImplementedError),
    *(zlib.error, zipfile.BadZipFile),
)
"""What zipfile and numpy raise at archives that are broken in one way or another."""

_NO_HEADER = (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError, UserWarning)
"""What numpy raises where an array's header is none, and Python's parser below it."""


def read_array(path: Path, what: str, *, name: str | None = None) -> NDArray[Any]:
    """Reads an array of numbers out of an archive.

    Args:
        path: the archive.
        what: it should hold, for the sentence.
        name: of the array; the first, if None.

    Raises:
        InputError: if there is none, or it claims what the archive cannot hold; the message names the file.
    """
    regular_size(path, what)
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive, warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # numpy's, at headers of Python 2: nobody needs them
            member = _member(archive, name)
            with archive.open(member) as stream:
                _check_claim(stream, member.file_size)
            with archive.open(member) as stream:
                array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
                return array
    except _UNREADABLE as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{path}: expected {what}, but it cannot be read: {reason}") from error


def _member(archive: zipfile.ZipFile, name: str | None) -> zipfile.ZipInfo:
    members = archive.infolist()
    found = next((member for member in members if name is None or member.filename == f"{name}.npy"), None)
    if found is None:
        raise ValueError("it is empty" if name is None else f"it has no array {shown(name)}")
    if found.flag_bits & 1:
        raise ValueError("it is encrypted")
    if found.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("its compression is not that of numpy")
    if found.file_size > MAX_BYTES:
        raise ValueError(f"it claims {found.file_size} bytes, more than {MAX_BYTES}")
    return found


def _check_claim(stream: IO[bytes], size: int) -> None:
    """Sees that an array fills its member exactly."""
    version = npy.read_magic(stream)
    if version not in _HEADER_READERS:
        raise ValueError(f"its format {version} is not known")
    try:
        shape, _, dtype = _HEADER_READERS[version](stream)
    except _NO_HEADER as error:  # its own words would advise to allow pickles
        raise ValueError("the header of its array is broken") from error
    if dtype.kind not in "biuf":
        raise ValueError(f"it holds data of type {dtype}, not numbers")
    claimed = stream.tell() + math.prod(shape) * dtype.itemsize
    if min(shape, default=1) < 1 or claimed != size:
        raise ValueError(f"its header claims the shape {shape}, {claimed} bytes, but it has {size}")
