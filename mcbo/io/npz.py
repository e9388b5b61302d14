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
from mcbo.core.memory import check_fits
from mcbo.io.files import reading, regular_size, shown
from mcbo.io.nifti_header import MAX_RATIO

MAX_BYTES = 2**34
"""Of an array: a displacement of 1024³ voxels has 12 GiB."""

_FLOAT_BYTES = 4
"""Of the numbers that arrays are converted to."""

_ALLOWANCE_BYTES = 2**16
"""For members that are too small to be packed well."""

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
    held = regular_size(path, what)
    with reading(path, what, _UNREADABLE), path.open("rb") as file, zipfile.ZipFile(file) as archive, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # numpy's, at headers of Python 2, which are refused
        member = _member(archive, name, held)
        with archive.open(member) as stream:
            _check_claim(stream, member.file_size)
        with archive.open(member) as stream:  # opened again: rewinding may end the check of its CRC
            array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
    return array


def _member(archive: zipfile.ZipFile, name: str | None, held: int) -> zipfile.ZipInfo:
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
    if found.file_size > min(found.compress_size, held) * MAX_RATIO + _ALLOWANCE_BYTES:
        raise ValueError(f"it claims {found.file_size} bytes, more than {min(found.compress_size, held)} packed bytes can hold")
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
    check_fits(claimed + _FLOAT_BYTES * math.prod(shape), f"an array of the shape {shape}")
