"""Image files: the door through which volumes come in and displacements go out. The only module that uses nibabel."""

import contextlib
import os
import secrets
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
from isal import igzip
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, SpatialImage
from numpy.typing import NDArray
from torch import Tensor

from mcbo.errors import InputError, OutputError
from mcbo.types import Displacement, Triple, Volume

FORMATS = ("nii.gz", "npz")
"""What displacements are written as."""

MAX_VOXELS = 1 << 31
"""More than any image that is used here (8 GB of float32): a header that claims more is broken or hostile."""

_PARTIAL = ".partial-"
_STALE_AFTER_S = 3600.0

_UNREADABLE = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, OverflowError, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True)
class Image:
    """A volume as it came from a file.

    Attributes:
        path: the file.
        volume: ``(1, 1, H, W, D)`` float32 on the CPU, in the file's intensities.
        affine: voxel to world (mm), ``(4, 4)`` float64.
    """

    path: Path
    volume: Volume
    affine: NDArray[np.float64]

    @property
    def spacing_mm(self) -> Triple:
        """Voxel size along axes 0, 1, 2."""
        sizes = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(sizes[0]), float(sizes[1]), float(sizes[2])


def read_image(path: Path) -> Image:
    """Reads a 3D image that can be registered.

    Raises:
        InputError: if it is missing, empty, cut off, not 3D, not finite or constant; the message names the file.
    """
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: expected a NIfTI image, found an empty file")
        nifti = nibabel.load(path)
        if not isinstance(nifti, SpatialImage):
            raise InputError(f"{path}: expected a NIfTI image, found a {type(nifti).__name__}")
        array = np.asanyarray(nifti.dataobj)
        affine = np.zeros((4, 4)) if nifti.affine is None else np.asarray(nifti.affine, dtype=np.float64)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected an image") from error
    except MemoryError as error:
        raise InputError(f"{path}: expected an image that fits into memory: {error}") from error
    except _UNREADABLE as error:
        raise InputError(f"{path}: expected a whole NIfTI image, but it cannot be read: {error}") from error
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine) < 4:
        raise InputError(f"{path}: expected an affine that can be inverted, found {affine.tolist()}")
    if array.dtype.kind not in "biuf":
        raise InputError(f"{path}: expected one number per voxel, found data of type {array.dtype}")
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise InputError(f"{path}: expected a 3D image, found {array.ndim}D data of shape {array.shape}")
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    broken = array.size - int(np.isfinite(array).sum())
    if broken:
        raise InputError(
            f"{path}: expected finite intensities, found {broken} voxel(s) that are NaN, infinite or beyond float32"
        )
    if array.size == 0 or array.min() == array.max():
        value = f"only the value {array.flat[0]:g}" if array.size else "no voxels"
        raise InputError(f"{path}: expected an image with structure to register, found {value}")
    return Image(path=path, volume=torch.from_numpy(array)[None, None], affine=affine)


def write_displacement(path: Path, displacement: Displacement, affine: NDArray[np.float64]) -> None:
    """Writes a displacement as the challenge wants it: ``(H, W, D, 3)`` float32 voxels, affine of the fixed image.

    Args:
        path: ending in ``.nii.gz``, ``.nii`` or ``.npz`` (one array, no affine).
        displacement: ``(1, 3, H, W, D)`` voxels.
        affine: of the fixed image.

    Raises:
        OutputError: if it cannot be written; no partial file stays under that name.
    """
    # NIfTI keeps axis 0 fastest and components slowest; in that order it is written as it lies.
    array = displacement[0].float().cpu().permute(0, 3, 2, 1).contiguous().numpy().transpose(3, 2, 1, 0)
    if path.suffix == ".npz":
        write_whole(path, lambda file: np.savez_compressed(file, array))
    else:
        write_whole(path, lambda file: _save(nibabel.Nifti1Image(array, affine), file))


def read_displacement(path: Path) -> Displacement:
    """Reads what ``write_displacement`` wrote: ``(1, 3, H, W, D)`` float32 voxels.

    Raises:
        InputError: if it is not that.
    """
    try:
        if path.suffix == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                array = archive[archive.files[0]]
        else:
            array = np.asanyarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
    except _UNREADABLE as error:
        raise InputError(f"{path}: expected a displacement, but it cannot be read: {error}") from error
    if array.ndim != 4 or array.shape[3] != 3:
        raise InputError(f"{path}: expected a displacement of shape (H, W, D, 3), found {array.shape}")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).movedim(-1, 0)[None]


def read_field(path: Path) -> tuple[Displacement, NDArray[np.float64]]:
    """Reads a displacement and the affine of its fixed image.

    Raises:
        InputError: if it is not that; ``.npz`` has no affine.
    """
    if path.suffix == ".npz":
        raise InputError(f"{path}: expected NIfTI: an .npz has no affine (`import` makes one, with --reference FIXED)")
    displacement = read_displacement(path)
    return displacement, np.asarray(nibabel.load(path).affine, dtype=np.float64)  # type: ignore[attr-defined]


def read_voxels(path: Path) -> tuple[Tensor, NDArray[np.float64]]:
    """Reads any 3D image, be it constant, for what is warped and not registered; labels stay whole numbers.

    Returns:
        ``(1, 1, H, W, D)`` as ``to_tensor`` gives it, and the affine.

    Raises:
        InputError: if it cannot be read, is not 3D, or has no number per voxel.
    """
    try:
        image = nibabel.load(path)
        if not isinstance(image, SpatialImage) or image.affine is None:
            raise InputError(f"{path}: expected an image with an affine, found a {type(image).__name__}")
        shape = image.shape[:3] if len(image.shape) > 3 and set(image.shape[3:]) == {1} else image.shape
        if len(shape) != 3:
            raise InputError(f"{path}: expected a 3D image, found data of shape {image.shape}")
        if np.prod(shape, dtype=np.float64) > MAX_VOXELS:
            raise InputError(f"{path}: expected at most {MAX_VOXELS} voxels, found {shape} in the header")
        array = np.asanyarray(image.dataobj).reshape(shape)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected an image") from error
    except (*_UNREADABLE, MemoryError) as error:
        raise InputError(f"{path}: expected a whole image, but it cannot be read: {error}") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"{path}: expected one number per voxel, found data of type {array.dtype}")
    return to_tensor(array)[None, None], np.asarray(image.affine, dtype=np.float64)


def to_tensor(array: NDArray[np.generic]) -> Tensor:
    """An array in a type that torch computes with: float32, int32, or int64 where that is needed."""
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    small = array.dtype.itemsize < 4 or array.dtype == np.int32
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int32 if small else np.int64))


def write_volume(path: Path, volume: Volume, affine: NDArray[np.float64]) -> None:
    """Writes an image ``(1, 1, H, W, D)`` as NIfTI: float32, or labels in the smallest integer type that holds them.

    Raises:
        OutputError: as ``write_displacement``.
    """
    array = volume[0, 0].cpu().numpy()
    array = array.astype(np.float32 if array.dtype.kind == "f" else smallest_type(array))
    write_whole(path, lambda file: _save(nibabel.Nifti1Image(array, affine, dtype=array.dtype), file))


def smallest_type(labels: NDArray[np.generic]) -> np.dtype[np.generic]:
    """The first of uint8, int16, int32 and int64 that holds all of them."""
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    fits = (t for t in (np.uint8, np.int16, np.int32) if np.iinfo(t).min <= low and high <= np.iinfo(t).max)
    return np.dtype(next(fits, np.int64))


def _save(image: nibabel.Nifti1Image, path: Path) -> None:
    """Writes NIfTI, compressed if the name says so; the same image makes the same bytes.

    By ISA-L, level 1: a displacement of 256³ voxels takes 0.5 s instead of zlib's 4.7 s at the same size (AMD EPYC, one core,
    2026-11-24); higher levels of either gain less than 1 %.
    """
    if path.suffix != ".gz":
        nibabel.save(image, path)
        return
    with path.open("wb") as file, igzip.IGzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as compressed:
        image.to_stream(compressed)


def prepare_folder(folder: Path) -> None:
    """Makes a folder and sees, before anything is computed, that results can be written there.

    Raises:
        OutputError: if not.
    """
    probe = folder / f".writable-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
        for left in folder.glob(f"{_PARTIAL}*"):  # by a run that was killed in mid-write
            if time.time() - left.stat().st_mtime > _STALE_AFTER_S:
                left.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: results cannot be written there by user {os.getuid()}: {error.strerror or error}"
        ) from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file under another name first, so that what is seen under ``path`` is always whole.

    Raises:
        OutputError: if that fails.
    """
    # The suffix has to stay. A process number would not do: in every container it is 1.
    partial = path.with_name(f"{_PARTIAL}{secrets.token_hex(4)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # where the folder itself is out of reach, there is nothing to clear away
            partial.unlink(missing_ok=True)
