"""Reads images, labels and displacements; headers are checked against the size of the file before any value is read."""

import math
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.lib import format as npy
from numpy.typing import NDArray

from evaluation.errors import EvaluationError, reason
from evaluation.files import file_size

FIELD_DTYPES = (np.dtype(np.float32), np.dtype(np.float16))
"""The challenge requires float32; before 2022 it was float16, in ``.npz`` files."""

MAX_VALUES = 2**29
"""A displacement of 512³ voxels has 4·10⁸ values; scoring one takes four times its bytes in float64."""

MAX_OFFSET = 2**26
"""Bytes of header and extensions before the values."""

MAX_RATIO, GZIP_BYTES = 1032, 2**16
"""Deflate expands at most 1032 times; the bytes are an allowance for gzip's own header."""

UNREADABLE = (
    *(ImageFileError, HeaderDataError, OSError, EOFError, ValueError, OverflowError, zlib.error, zipfile.BadZipFile),
    *(MemoryError, RuntimeError),  # absurd sizes; unusual compression
)
"""What the libraries raise for broken files."""

_NO_NPY = (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError, UserWarning)

Array = NDArray[np.float64]
Shape = tuple[int, int, int]

_NPY_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True)
class FieldFile:
    """A displacement file: the shape and type of its array, as on disk, and ``read``, which returns that array."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], NDArray[Any]]


def open_field(path: Path) -> FieldFile:
    """Opens a displacement file, ``.nii.gz`` or ``.npz`` with one array; EvaluationError if it is neither."""
    if path.suffix == ".npz":
        return _open_archive(path)
    image = open_image(path, "a whole displacement file")
    if image.get_data_dtype().kind not in "biuf":
        raise EvaluationError(f"{path}: expected float32, found data of type {image.get_data_dtype()}")
    return FieldFile(path, tuple(image.shape), image.get_data_dtype(), lambda: np.asanyarray(image.dataobj))


def _open_archive(path: Path) -> FieldFile:
    file_size(path, "a whole displacement file")
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive, warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # numpy's, for headers of Python 2
            members = archive.infolist()
            if len(members) != 1:
                listed = f" ({', '.join(member.filename.removesuffix('.npy') for member in members[:9])})" if members else ""
                raise EvaluationError(f"{path}: expected one array, found {len(members)}{listed}")
            shape, dtype = _claim_of(archive, members[0])
    except UNREADABLE as error:
        raise _unreadable(path, "a whole displacement file", error) from error

    def read() -> NDArray[Any]:
        with path.open("rb") as file, np.load(file) as loaded:
            return np.asarray(loaded[loaded.files[0]])

    return FieldFile(path, shape, dtype, read)


def _claim_of(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array whose bytes fill its member of the archive exactly."""
    if member.flag_bits & 1:
        raise ValueError("it is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("its compression is not that of numpy")
    with archive.open(member) as stream:
        version = npy.read_magic(stream)
        if version not in _NPY_HEADERS:
            raise ValueError(f"its format {version} is not known")
        try:
            shape, _, dtype = _NPY_HEADERS[version](stream)
        except _NO_NPY as error:  # numpy's own message would advise to allow pickles
            raise ValueError("the header of its array is broken") from error
        if dtype.kind not in "biuf":
            raise ValueError(f"it holds data of type {dtype}, not numbers")
        claimed = stream.tell() + math.prod(shape) * dtype.itemsize
    if min(shape, default=1) < 1 or math.prod(shape) > MAX_VALUES or claimed != member.file_size:
        raise ValueError(f"its header claims the shape {shape}, {claimed} bytes, but it has {member.file_size}")
    return shape, dtype


def load_field(file: FieldFile) -> NDArray[np.float32]:
    """The array of a displacement file; EvaluationError if it is cut off, broken, or not finite in float32."""
    try:
        with np.errstate(all="ignore"):  # overflow gives infinity, which is an error below
            field = np.asarray(file.read(), dtype=np.float32)
    except UNREADABLE as error:
        raise _unreadable(file.path, "a whole displacement file", error) from error
    broken = field.size - int(np.isfinite(field).sum())
    if broken:
        raise EvaluationError(f"{file.path}: expected finite displacements, found {broken} values that are NaN or infinite")
    return field


def field_problems(file: FieldFile, shape: Shape) -> list[str]:
    """Why the challenge would refuse an array of this shape and type for a fixed image of that shape, with remedies."""
    problems = []
    if file.shape != (*shape, 3):
        remedy = "resample it to the grid of the fixed image, and scale its values with it"
        if file.shape == (3, *shape):
            remedy = "move the components to the last axis: numpy.moveaxis(field, 0, -1)"
        elif file.shape == (*shape, 1, 3):
            remedy = "ITK writes fields like this, in millimeters and LPS: convert it to (H, W, D, 3) voxels"
        elif sorted(file.shape) == sorted((*shape, 3)):
            remedy = "its axes are in another order: transpose it to that of the fixed image"
        problems.append(f"{file.path}: expected shape {(*shape, 3)}, found {file.shape}; {remedy}")
    if file.dtype.newbyteorder("=") not in FIELD_DTYPES:
        problems.append(f"{file.path}: expected float32, found {file.dtype}; convert it with astype('float32')")
    return problems


def read_field(path: Path, *, shape: Shape) -> NDArray[np.float32]:
    """A displacement ``(H, W, D, 3)``, voxels, fixed to moving.

    Args:
        path: as for ``open_field``.
        shape: of the fixed image.

    Raises:
        EvaluationError: if it has another shape, is not float32 (or float16), not finite, or cannot be read.
    """
    file = open_field(path)
    for problem in field_problems(file, shape):
        raise EvaluationError(problem)
    return load_field(file)


def read_grid(path: Path) -> tuple[Shape, Array]:
    """Shape and voxel size (mm) of an image, from its header."""
    header = open_image(path, "a 3D image").header
    shape, zooms = header.get_data_shape(), np.asarray(header.get_zooms()[:3], dtype=np.float64)
    if len(shape) < 3:
        raise EvaluationError(f"{path}: expected a 3D image, found {len(shape)}D data of shape {tuple(shape)}")
    if not (np.isfinite(zooms).all() and (zooms > 0).all()):
        raise EvaluationError(f"{path}: expected voxel sizes above 0, found {zooms.tolist()} mm")
    return (int(shape[0]), int(shape[1]), int(shape[2])), zooms


def read_affine(path: Path) -> Array:
    """Affine of an image or displacement file, ``(4, 4)``, voxel to world in mm; it can be inverted."""
    affine = np.asarray(open_image(path, "an image").affine, dtype=np.float64)
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine) < 4:
        raise EvaluationError(f"{path}: expected an affine that can be inverted, found {affine.tolist()}")
    return affine


def read_volume(path: Path, shape: tuple[int, ...]) -> Array:
    """An image of labels, a mask or intensities, ``(H, W, D)``, finite; EvaluationError if its shape is another."""
    image = open_image(path, "an image")
    if tuple(image.shape) != shape:
        raise EvaluationError(f"{path}: expected shape {shape}, that of the fixed image, found {tuple(image.shape)}")
    if image.get_data_dtype().kind not in "biuf":
        raise EvaluationError(f"{path}: expected one number per voxel, found data of type {image.get_data_dtype()}")
    try:
        with np.errstate(all="ignore"):
            volume = np.asarray(image.dataobj, dtype=np.float64)
    except UNREADABLE as error:
        raise _unreadable(path, "an image", error) from error
    if not np.isfinite(volume).all():
        raise EvaluationError(f"{path}: expected finite values, found some that are NaN or infinite")
    return volume


def read_labels(path: Path, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """A label map ``(H, W, D)`` as it is stored; numbers that are not whole are rounded, as the official programs do.

    Raises:
        EvaluationError: if its shape is another, or it has labels that int64 cannot hold, or float64 not tell apart.
    """
    image = open_image(path, "an image")
    dtype = image.get_data_dtype()
    if tuple(image.shape) != shape or dtype.kind not in "iu" or (image.dataobj.slope, image.dataobj.inter) != (1, 0):
        values = np.rint(read_volume(path, shape))
        if np.abs(values).max() >= 2**53:
            raise EvaluationError(f"{path}: expected labels below 2⁵³, or stored as integers, found {np.abs(values).max():g}")
        stored = values
    else:
        try:
            stored = np.asanyarray(image.dataobj)
        except UNREADABLE as error:
            raise _unreadable(path, "an image", error) from error
        if dtype.kind == "u" and int(stored.max()) >= 2**63:
            raise EvaluationError(f"{path}: expected labels below 2⁶³, found {int(stored.max())}")
    labels: NDArray[np.int64] = stored.astype(np.int64)
    return labels


def open_image(path: Path, expected: str) -> Any:
    """A NIfTI image as nibabel has it, its values not yet read; ``expected`` names its kind in the errors.

    Raises:
        EvaluationError: if it is none, or its header claims more than the file can hold.
    """
    size = file_size(path, expected)
    try:
        # These two only: other readers of nibabel would parse untrusted XML and HDF5.
        kinds = (nibabel.Nifti1Image, nibabel.Nifti2Image)
        kind = next((kind for kind in kinds if kind.path_maybe_image(path)[0]), None)
        if kind is None:
            raise ImageFileError("it is not NIfTI")
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # nibabel's, for extensions of unusual length
            with nibabel.openers.ImageOpener(str(path)) as opened:
                block = opened.read(kind.header_class.template_dtype.itemsize)
            _check_claim(kind.header_class(block, check=False), size, compressed=path.suffix == ".gz")
            return kind.from_filename(path)
    except UNREADABLE as error:
        raise _unreadable(path, expected, error) from error


def _check_claim(header: Any, size: int, *, compressed: bool) -> None:
    """Checks that a file of ``size`` bytes can hold what its header claims, at an offset within limits."""
    count = int(header["dim"][0])
    shape = [int(n) for n in header["dim"][1 : max(count, 0) + 1]]
    if not 1 <= count <= 7 or min(shape) < 1 or math.prod(shape) > MAX_VALUES:
        raise HeaderDataError(f"its header claims {count} dimensions and the shape {tuple(shape)}")
    offset = float(header["vox_offset"])
    if not 352 <= offset <= MAX_OFFSET:
        raise HeaderDataError(f"its header claims that the values begin at byte {offset:g}")
    try:
        claimed = int(offset) + math.prod(shape) * header.get_data_dtype().itemsize
    except KeyError as error:
        raise HeaderDataError(f"its header claims data of an unknown type, number {error}") from error
    if claimed > (size * MAX_RATIO + GZIP_BYTES if compressed else size):
        raise HeaderDataError(f"its header claims {claimed} bytes, more than a file of {size} bytes can hold")


def _unreadable(path: Path, expected: str, error: Exception) -> EvaluationError:
    return EvaluationError(f"{path}: expected {expected}, but it cannot be read: {reason(error)}")
