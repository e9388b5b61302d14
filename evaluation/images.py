"""Reads images, labels and displacements, in NIfTI and ``.npz``."""

import math
import tokenize
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from evaluation.errors import EvaluationError, reason
from evaluation.files import file_size
from evaluation.nifti import BROKEN, MAX_VALUES, Nifti, open_nifti

FIELD_DTYPES = (np.dtype(np.float32), np.dtype(np.float16))
"""The challenge requires float32; before 2022 it was float16, in ``.npz`` files."""

UNREADABLE = (*BROKEN, zipfile.BadZipFile, RuntimeError)  # the last for unusual compression
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
    nifti = open_nifti(path, "a whole displacement file")
    if nifti.dtype.kind not in "biuf":
        raise EvaluationError(f"{path}: expected float32, found data of type {nifti.dtype}")
    return FieldFile(path, nifti.stored, nifti.dtype, nifti.read)


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


@dataclass(frozen=True)
class Layout:
    """How the array of a displacement lies that is not ``(H, W, D, 3)``, and what to do about it.

    Attributes:
        remedy: for an error message.
        components_first: whether the components are the first axis.
        axes: order of the other axes, as for ``numpy.transpose``, that gives those of the fixed image; None if none does.
        itk: whether there is an axis too many before that of the components, as ITK writes vectors: in millimeters and LPS.
    """

    remedy: str
    components_first: bool = False
    axes: tuple[int, int, int] | None = None
    itk: bool = False

    def arrange(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array as ``(H, W, D, 3)``; ``axes`` is not None."""
        if self.itk:
            array = array[..., 0, :]
        if self.components_first:
            array = np.moveaxis(array, 0, -1)
        return array if self.axes is None else array.transpose(*self.axes, 3)


def find_layout(found: tuple[int, ...], shape: Shape) -> Layout | None:
    """How an array of one shape lies for a fixed image of another; None if as the challenge wants it."""
    kept = (0, 1, 2)
    if found == (*shape, 3):
        return None
    if found == (*shape, 1, 3):
        remedy = "ITK writes fields like this, in millimeters and LPS: convert it to (H, W, D, 3) voxels"
        return Layout(remedy, axes=kept, itk=True)
    if found == (3, *shape):
        remedy = "move the components to the last axis: numpy.moveaxis(field, 0, -1); it is channel first"
        return Layout(remedy, components_first=True, axes=kept)
    for first in (False, True):
        sizes = found[1:] if first else found[:-1]
        if len(found) != 4 or (found[0] if first else found[-1]) != 3:
            continue
        also = ", and its components are first (channel first)" if first else ""
        if sizes != shape and sorted(sizes) == sorted(shape):
            orders = [order for order in permutations(kept) if tuple(sizes[axis] for axis in order) == shape]
            # Reversed, if that fits, is what arrays of SimpleITK are.
            axes = (2, 1, 0) if (2, 1, 0) in orders else orders[0]
            called = "reversed (z, y, x, as in arrays of SimpleITK)" if axes == (2, 1, 0) else "in another order"
            moved = f"numpy.transpose(field, {(*(axis + 1 for axis in axes), 0) if first else (*axes, 3)})"
            return Layout(f"its axes are {called}{also}: {moved}", first, (axes[0], axes[1], axes[2]))
        if all(n in (size // 2, -(-size // 2)) for n, size in zip(sizes, shape, strict=True)) and sizes != shape:
            scaled = "resample it to the grid of the fixed image, and double its values if they count its own voxels"
            return Layout(f"it is at half resolution{also}: {scaled}", first)
    return Layout("resample it to the grid of the fixed image, and scale its values with it")


def field_problems(file: FieldFile, shape: Shape) -> list[str]:
    """Why the challenge would refuse an array of this shape and type for a fixed image of that shape, with remedies."""
    problems = []
    if layout := find_layout(file.shape, shape):
        problems.append(f"{file.path}: expected shape {(*shape, 3)}, found {file.shape}; {layout.remedy}")
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
    nifti = open_nifti(path, "a 3D image")
    if len(nifti.shape) != 3:
        raise EvaluationError(f"{path}: expected a 3D image, found {len(nifti.shape)}D data of shape {nifti.shape}")
    _check_numbers(nifti)
    zooms = nifti.zooms
    if not np.isfinite(zooms).all():  # the affine may tell
        zooms = np.linalg.norm(nifti.affine[:3, :3], axis=0)
    if not (np.isfinite(zooms).all() and (zooms > 0).all()):
        raise EvaluationError(f"{path}: expected voxel sizes above 0, found {zooms.tolist()} mm")
    return (nifti.shape[0], nifti.shape[1], nifti.shape[2]), zooms


def read_affine(path: Path) -> Array:
    """Affine of an image or displacement file, ``(4, 4)``, voxel to world in mm; it can be inverted."""
    affine = open_nifti(path, "an image").affine
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine) < 4:
        raise EvaluationError(f"{path}: expected an affine that can be inverted, found {affine.tolist()}")
    return affine


def read_volume(path: Path, shape: tuple[int, ...]) -> Array:
    """An image of labels, a mask or intensities, ``(H, W, D)``, finite; EvaluationError if its shape is another."""
    nifti = open_nifti(path, "an image")
    if nifti.shape != shape:
        raise EvaluationError(f"{path}: expected shape {shape}, that of the fixed image, found {nifti.stored}")
    _check_numbers(nifti)
    try:
        with np.errstate(all="ignore"):
            volume = nifti.read().astype(np.float64)
    except UNREADABLE as error:
        raise _unreadable(path, "an image", error) from error
    if not bool((np.abs(volume) <= np.finfo(np.float32).max).all()):
        raise EvaluationError(f"{path}: expected finite values, found some that are NaN, infinite or beyond float32")
    return volume


def _check_numbers(nifti: Nifti) -> None:
    if nifti.dtype.kind not in "biuf":
        raise EvaluationError(f"{nifti.path}: expected one number per voxel, found data of type {nifti.dtype}")


def read_labels(path: Path, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """A label map ``(H, W, D)`` as it is stored; numbers that are not whole are rounded, as the official programs do.

    Raises:
        EvaluationError: if its shape is another, or it has labels that int64 cannot hold, or float64 not tell apart.
    """
    nifti = open_nifti(path, "an image")
    if nifti.shape != shape or nifti.dtype.kind not in "iu" or (nifti.slope, nifti.intercept) != (1, 0):
        stored = np.rint(read_volume(path, shape))
        if np.abs(stored).max() >= 2**53:
            raise EvaluationError(f"{path}: expected labels below 2⁵³, or stored as integers, found {np.abs(stored).max():g}")
    else:
        try:
            stored = nifti.read()
        except UNREADABLE as error:
            raise _unreadable(path, "an image", error) from error
        if nifti.dtype.kind == "u" and int(stored.max()) >= 2**63:
            raise EvaluationError(f"{path}: expected labels below 2⁶³, found {int(stored.max())}")
    labels: NDArray[np.int64] = stored.astype(np.int64)
    return labels


def _unreadable(path: Path, expected: str, error: Exception) -> EvaluationError:
    return EvaluationError(f"{path}: expected {expected}, but it cannot be read: {reason(error)}")
