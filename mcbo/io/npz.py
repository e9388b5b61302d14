"""Untrusted NumPy archives (``.npz``): one array, its size checked before it is allocated, and no pickle."""

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
from mcbo.io.files import reading, regular_size, shown

MAX_BYTES = 2**34
"""Of an array: a displacement of 1024³ voxels has 12 GiB."""

_HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}

_UNREADABLE = (OSError, EOFError, ValueError, OverflowError, RuntimeError, zlib.error, zipfile.BadZipFile)
"""Errors of zipfile and numpy at broken archives."""

_NO_HEADER = (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError, UserWarning)
"""Errors of numpy, and of Python's parser below it, at broken headers."""


def read_array(path: Path, what: str, *, name: str | None = None) -> NDArray[Any]:
    """Reads an array of numbers from an archive: the one of this name, or the only one. ``what`` says in errors what it is.

    Raises:
        InputError: if there is none, or it claims more than the archive holds; the message names the file.
    """
    regular_size(path, what)
    with reading(path, what, _UNREADABLE), path.open("rb") as file, zipfile.ZipFile(file) as archive, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # numpy's, at headers of Python 2, which are refused
        member = _member(archive, name)
        with archive.open(member) as stream:
            _check_claim(stream, member.file_size)
        with archive.open(member) as stream:  # opened again: rewinding may end the check of its CRC
            array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
    return array


def _member(archive: zipfile.ZipFile, name: str | None) -> zipfile.ZipInfo:
    members = archive.infolist()
    if name is None and len(members) > 1:
        listed = ", ".join(member.filename.removesuffix(".npy") for member in members[:9])
        raise InputError(f"expected one array, found {len(members)} ({listed})")
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
    """Raises ``ValueError`` unless an array of numbers fills its member exactly."""
    version = npy.read_magic(stream)
    if version not in _HEADER_READERS:
        raise ValueError(f"its format {version} is not known")
    try:
        shape, _, dtype = _HEADER_READERS[version](stream)
    except _NO_HEADER as error:  # numpy's own message advises allowing pickles
        raise ValueError("the header of its array is broken") from error
    if dtype.kind not in "biuf":
        raise ValueError(f"it holds data of type {dtype}, not numbers")
    claimed = stream.tell() + math.prod(shape) * dtype.itemsize
    if min(shape, default=1) < 1 or claimed != size:
        raise ValueError(f"its header claims the shape {shape}, {claimed} bytes, but it has {size}")
