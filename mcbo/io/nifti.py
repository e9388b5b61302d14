"""Image files: the door through which volumes come in and displacements go out."""

import math
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
from isal import igzip
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.errors import InputError
from mcbo.core.types import Displacement, Shape, Triple, Volume
from mcbo.geometry.grid import voxel_size_mm
from mcbo.io.files import regular_size, write_whole
from mcbo.io.nifti_header import MAX_VOXELS, UNREADABLE, Header, read_header, read_values
from mcbo.io.npz import read_array
from mcbo.io.source import File

FORMATS = ("nii.gz", "npz")
"""What displacements are written as."""


@dataclass(frozen=True)
class Image:
    """A volume as it came from a file.

    Attributes:
        path: the file.
        volume: ``(1, 1, H, W, D)`` float32 on the CPU, in the file's intensities.
        affine: voxel to world (mm), ``(4, 4)`` float64.
    """

    path: File
    volume: Volume
    affine: NDArray[np.float64]

    @property
    def spacing_mm(self) -> Triple:
        """Voxel size along axes 0, 1, 2."""
        return voxel_size_mm(self.affine)


def read_image(path: File) -> Image:
    """Reads a 3D image that can be registered.

    Raises:
        InputError: if it is missing, empty, cut off, not 3D, not finite or constant; the message names the file.
    """
    header = read_header(path)
    check_image(header)
    try:
        array = read_values(header)
    except MemoryError as error:
        raise InputError(f"{path}: expected an image that fits into memory: {error}") from error
    broken = array.size - sum(int(np.isfinite(plane).sum()) for plane in array)  # by planes, to spare memory
    if broken:
        raise InputError(
            f"{path}: expected finite intensities, found {broken} voxel(s) that are NaN, infinite or beyond float32"
        )
    if array.min() == array.max():
        raise InputError(f"{path}: expected an image with structure to register, found only the value {array.flat[0]:g}")
    return Image(path=path, volume=torch.from_numpy(array)[None, None], affine=header.affine)


def check_image(header: Header) -> Shape:
    """The shape of an image that can be registered, as its header has it.

    Raises:
        InputError: if it is not 3D, or not one number per voxel.
    """
    if header.dtype.kind not in "iuf":
        raise InputError(f"{header.path}: expected one number per voxel, found data of type {header.dtype}")
    if len(header.shape) != 3:
        raise InputError(f"{header.path}: expected a 3D image, found {len(header.shape)}D data of shape {header.shape}")
    return header.shape


def read_grid(path: File) -> tuple[Shape, NDArray[np.float64]]:
    """Shape, ``(H, W, D)``, and affine, ``(4, 4)`` float64, of an image, from its header alone.

    Raises:
        InputError: if that cannot be read, or is not of a 3D image of one number per voxel.
    """
    header = read_header(path)
    return check_image(header), header.affine


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
    if path.suffix == ".npz":
        array = read_array(path, "a displacement")
    else:
        header = read_header(path)
        if header.dtype.kind not in "iuf":
            raise InputError(f"{path}: expected a displacement of numbers, found data of type {header.dtype}")
        array = read_values(header)
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
    return read_displacement(path), read_header(path).affine


def read_voxels(path: Path) -> tuple[Tensor, NDArray[np.float64]]:
    """Reads any 3D image, be it constant, for what is warped and not registered; labels stay whole numbers.

    Returns:
        ``(1, 1, H, W, D)``, integers if the file has them without scaling, else float32; and the affine.

    Raises:
        InputError: if it cannot be read, is not 3D, or has no number per voxel.
    """
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return _read_otherwise(path)
    header = read_header(path)
    check_image(header)
    whole = header.dtype.kind in "iu" and (header.slope, header.intercept) == (1, 0)
    small = header.dtype.itemsize < 4 or header.dtype == np.int32
    try:
        array = read_values(header, dtype=(np.int32 if small else np.int64) if whole else np.float32)
    except MemoryError as error:
        raise InputError(f"{path}: expected an image that fits into memory: {error}") from error
    return torch.from_numpy(array)[None, None], header.affine


def _read_otherwise(path: Path) -> tuple[Tensor, NDArray[np.float64]]:
    """Reads what nibabel knows besides NIfTI: Analyze, MGH, MINC and others."""
    regular_size(path, "an image")
    try:
        image = nibabel.load(path)
        if not isinstance(image, SpatialImage) or image.affine is None:
            raise InputError(f"{path}: expected an image with an affine, found a {type(image).__name__}")
        shape = image.shape[:3] if set(image.shape[3:]) <= {1} else image.shape
        if len(shape) != 3 or not 0 < math.prod(shape) <= MAX_VOXELS:
            raise InputError(f"{path}: expected a 3D image of at most {MAX_VOXELS} voxels, found data of shape {image.shape}")
        array = np.asanyarray(image.dataobj).reshape(shape)
    except (*UNREADABLE, MemoryError) as error:
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
