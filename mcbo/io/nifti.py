"""Volumes and displacements in the files of the challenge, NIfTI and ``.npz``."""

import errno
import io
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from isal import igzip_threaded
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.errors import InputError, naming
from mcbo.core.field import shape_of
from mcbo.core.memory import check_fits
from mcbo.core.types import Displacement, Shape, Volume
from mcbo.geometry.grid import Grid, is_sheared
from mcbo.geometry.units import MM, Unit
from mcbo.io.files import Digesting, check_size, digest, write_whole
from mcbo.io.nifti_header import (
    BLOCK_VALUES,
    Form,
    Header,
    ValueType,
    copy_reordered,
    read_header,
    read_values,
    read_whole,
)
from mcbo.io.npz import read_array
from mcbo.io.source import File

FORMATS = ("nii.gz", "npz")
"""File formats of displacements."""

BLOCK_BYTES = 2**20
"""Compressed at a time. What a file contains depends on it, but not on the number of threads."""

WORK_BYTES = 96
"""Per voxel of a displacement, with what is made of it: exporting it for ITK takes most."""

MAX_THREADS = 8
"""That compress a file: they take its values as fast as one thread can hand them out."""


_UNIT_NAMES: dict[Unit, str] = {"um": "micron", "mm": "mm", "m": "meter"}

_ALIGNED = 2
"""The code of a form: coordinates aligned to another file's."""


@dataclass(frozen=True)
class Image:
    """A volume as in its file: ``(1, 1, H, W, D)`` float32 on the CPU; the affine, voxel to world (mm), is ``(4, 4)``.

    ``unit`` is that of its file; ``sha256`` that of the bytes from which it was made, or empty if they were not digested.
    """

    path: File
    volume: Volume
    affine: NDArray[np.float64]
    unit: Unit = "mm"
    sha256: str = ""

    @property
    def grid(self) -> Grid:
        """Where it lies."""
        return Grid(shape_of(self.volume), self.affine, self.unit)


def read_image(path: File) -> Image:
    """Reads a 3D image that can be registered.

    Raises:
        InputError: if it is missing, empty, cut off, not 3D, not finite or constant; the message names the file.
    """
    header, values, sha256 = read_whole(path, check=check_image)
    volume = torch.from_numpy(values)[None, None]
    check_finite(volume, path)
    check_structure(volume, path)
    return Image(path, volume, header.affine, header.unit, sha256)


def check_finite(volume: Volume, name: object) -> None:
    """Raises ``InputError``, beginning with a name, if intensities are not finite."""
    values = volume.numpy()  # whose operations take one thread, while each thread that reads would get several from torch
    if not (np.isfinite(values.min()) and np.isfinite(values.max())):
        broken = values.size - sum(int(np.isfinite(plane).sum()) for plane in values[0, 0])  # by planes, to save memory
        raise InputError(
            f"{name}: expected finite intensities, found {broken} voxel(s) that are NaN, infinite or beyond float32"
        )


def check_structure(volume: Volume, name: object) -> None:
    """Raises ``InputError``, beginning with a name, if all intensities are the same."""
    values = volume.numpy()
    if (low := values.min()) == values.max():
        raise InputError(f"{name}: expected an image with structure to register, found only the value {float(low):g}")


def check_image(header: Header) -> Shape:
    """The shape of an image; raises ``InputError`` if its header is not that of a 3D image with one number per voxel."""
    if header.dtype.kind not in "iuf":
        raise InputError(f"{header.path}: expected one number per voxel, found data of type {header.dtype}")
    if len(header.shape) != 3:
        raise InputError(f"{header.path}: expected a 3D image, found {len(header.shape)}D data of shape {header.shape}")
    return header.shape


def read_grid(path: File) -> Grid:
    """The grid of an image, from its header alone; raises as ``read_image``."""
    header = read_header(path)
    return Grid(check_image(header), header.affine, header.unit)


def write_displacement(path: Path, displacement: Displacement, affine: NDArray[np.float64], unit: Unit = "mm") -> str | None:
    """Writes a displacement ``(1, 3, H, W, D)`` in voxels as the challenge wants it: ``(H, W, D, 3)`` float32 voxels.

    ``.nii.gz`` and ``.nii`` get the affine of the fixed image, mm, in the unit of its file; ``.npz`` has one array and no
    affine.

    Returns:
        The digest of the file.

    Raises:
        OutputError: if it cannot be written; no partial file stays under that name.
    """
    array = displacement[0].float().cpu().numpy()
    if path.suffix == ".npz":
        return write_whole(path, lambda file: _save_npz(file, np.moveaxis(array, 0, -1)))
    shape = (*array.shape[1:], 3)
    return write_whole(path, lambda file: _save(file, list(array), _head(shape, array.dtype, affine, unit)))


def in_file_order(tensor: Tensor) -> Tensor:
    """The same tensor, ``(1, C, H, W, D)``, laid out in memory as files have it, axis 0 fastest: written without a copy."""
    return tensor.permute(0, 1, 4, 3, 2).contiguous().permute(0, 1, 4, 3, 2)


def read_displacement(path: Path) -> Displacement:
    """Reads a displacement as ``(1, 3, H, W, D)`` float32 voxels.

    Raises:
        InputError: if the file is not ``(H, W, D, 3)``.
        MemoryBudgetError: if it does not fit into memory, nor what is usually made of it.
    """
    if path.suffix == ".npz":
        array = read_array(path, "a displacement")
        _check_displacement(path, array.shape)
    else:
        header = read_header(path)
        if header.dtype.kind not in "iuf":
            raise InputError(f"{path}: expected a displacement of numbers, found data of type {header.dtype}")
        _check_displacement(path, header.shape)
        array = read_values(header)
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).movedim(-1, 0)[None]


def _check_displacement(path: Path, shape: tuple[int, ...]) -> None:
    if len(shape) != 4 or shape[3] != 3:
        raise InputError(f"{path}: expected a displacement of shape (H, W, D, 3), found {shape}")
    with naming(path):
        check_fits(WORK_BYTES * math.prod(shape[:3]), f"work on a displacement of {'×'.join(map(str, shape[:3]))} voxels")


def read_voxels(
    path: File, *, form: Form = "sform", check: Callable[[Header], object] = check_image
) -> tuple[Header, Tensor, str]:
    """Reads a 3D image of NIfTI, even a constant one, to be warped rather than registered.

    Returns:
        Its header; ``(1, 1, H, W, D)``, integers if the file has them without scaling and below 2⁶³, else float32; and the
        SHA-256 of the bytes from which they were made.

    Raises:
        InputError: if it cannot be read, is not 3D, or does not have one number per voxel.
    """
    header, values, sha256 = read_whole(path, check=check, dtype=_voxel_type, form=form)
    if header.dtype.kind == "u" and values.dtype == np.int64 and values.min() < 0:  # as integers, they are too large
        values = values.view(np.uint64).astype(np.float32)
    return header, torch.from_numpy(values)[None, None], sha256


def _voxel_type(header: Header) -> ValueType:
    whole = header.dtype.kind in "iu" and (header.slope, header.intercept) == (1, 0)
    return _whole_type(header.dtype) if whole else np.float32


def to_tensor(array: NDArray[np.generic]) -> Tensor:
    """An array of real numbers as float32, int32, or int64 if needed; raises ``InputError`` for other types.

    Whole numbers from 2⁶³ on become float32, too.
    """
    if array.dtype.kind not in "biuf":
        raise InputError(f"expected one number per voxel, found data of type {array.dtype}")
    with np.errstate(over="ignore"):
        is_large = array.dtype.kind == "u" and array.dtype.itemsize == 8 and array.size and int(array.max()) >= 2**63
        dtype = np.float32 if array.dtype.kind == "f" or is_large else _whole_type(array.dtype)
        return torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))


def _whole_type(dtype: np.dtype[Any]) -> type[np.int32 | np.int64]:
    return np.int32 if dtype.itemsize < 4 or dtype == np.int32 else np.int64


def write_volume(path: Path, volume: Volume, affine: NDArray[np.float64], unit: Unit = "mm") -> str:
    """Writes an image ``(1, 1, H, W, D)`` as NIfTI, float32 or in the smallest integer type; raises ``OutputError``.

    The affine is in mm; ``unit`` is that of the file. Returns the digest of the file.
    """
    array = volume[0, 0].cpu().numpy()
    dtype = np.dtype(np.float32) if array.dtype.kind == "f" else smallest_type(array)
    head = _head(array.shape, dtype, affine, unit)
    return write_whole(path, lambda file: _save(file, [array.astype(dtype, copy=False)], head))


def smallest_type(labels: NDArray[np.generic]) -> np.dtype[np.generic]:
    """The first of uint8, int16, int32 and int64 that holds all of them."""
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    fits = (t for t in (np.uint8, np.int16, np.int32) if np.iinfo(t).min <= low and high <= np.iinfo(t).max)
    return np.dtype(next(fits, np.int64))


def _head(shape: tuple[int, ...], dtype: np.dtype[Any], affine: NDArray[np.float64], unit: Unit) -> bytes:
    """What precedes the values of a NIfTI file."""
    head = io.BytesIO()
    to_nibabel(np.broadcast_to(np.zeros((), dtype), shape), affine, unit).header.write_to(head)
    return head.getvalue()


def to_nibabel(array: NDArray[Any], affine: NDArray[np.float64], unit: Unit) -> nibabel.Nifti1Image:
    """An array as an image of nibabel; the affine is in mm, that of the image in ``unit``.

    Both forms are the affine, so that every reader takes the same; of sheared axes, only the sform: a qform has none.
    """
    unit = "um" if unit == "nm" else "mm" if unit == "cm" else unit  # NIfTI has no others
    scaled = np.diag([1 / MM[unit]] * 3 + [1.0]) @ affine
    image = nibabel.Nifti1Image(array, scaled, dtype=array.dtype)
    image.header.set_slope_inter(1, 0)
    image.header.set_xyzt_units(_UNIT_NAMES[unit])
    if not is_sheared(affine):
        image.header.set_qform(scaled, code=_ALIGNED)
    return image


def _save(path: Path, volumes: Sequence[NDArray[Any]], head: bytes) -> str:
    """Writes volumes ``(H, W, D)`` one behind the other, compressed if the name says so; returns the digest of the file.

    The same image makes the same bytes, however many threads compress it. ISA-L at level 1 takes a ninth of zlib's time for the
    same size; higher levels of either gain less than 1 %.
    """
    threads = min(torch.get_num_threads(), MAX_THREADS)
    with path.open("wb") as file:
        whole = Digesting(file)
        with (
            igzip_threaded.open(whole, "wb", compresslevel=1, threads=threads, block_size=BLOCK_BYTES)
            if path.suffix == ".gz"
            else nullcontext(whole)
        ) as stream:
            stream.write(head)
            for block in (block for volume in volumes for block in _blocks(volume)):
                stream.write(block.data)
    check_size(path, whole.size)
    return whole.digest()


def _blocks(volume: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """A volume ``(H, W, D)`` in slabs ``(d, W, H)``, as they follow each other in a file."""
    height, width, depth = volume.shape
    thick = max(1, BLOCK_VALUES // (height * width))
    for first in range(0, depth, thick):
        slab = volume[..., first : first + thick]
        if slab.T.flags.c_contiguous:
            yield slab.T
        else:
            block = np.empty(slab.shape[::-1], slab.dtype)
            copy_reordered(block.T, slab)
            yield block


def _save_npz(path: Path, array: NDArray[np.float32]) -> str | None:
    np.savez_compressed(path, array)
    if not zipfile.is_zipfile(path):  # whose mark is at the end
        raise OSError(errno.EIO, "its end did not arrive")
    return digest(path)
