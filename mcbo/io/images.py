"""Any 3D image or displacement with its grid; the suffix decides which library reads or writes it."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.errors import InputError, OutputError
from mcbo.core.types import Displacement, Volume
from mcbo.geometry.grid import Grid
from mcbo.io import itk_files, nifti
from mcbo.io.files import reading
from mcbo.io.itk import to_sitk
from mcbo.io.itk_files import IMAGE_SUFFIXES, SUFFIXES_WRITTEN, suffix_of
from mcbo.io.microscopy.images import microscopy_reader
from mcbo.io.microscopy.selection import ALL, Selection
from mcbo.io.nifti_header import read_header


def read_any(path: Path, selection: Selection = ALL) -> tuple[Volume, Grid]:
    """Reads a 3D image: what nibabel reads (NIfTI, Analyze, MGH, MINC …), NRRD, MetaImage, TIFF, OME-Zarr.

    A folder is an OME-Zarr, or holds TIFF files, one per slice. ``selection`` is for these formats alone.

    Returns:
        ``(1, 1, H, W, D)``, int32 or int64 where the file has whole numbers, else float32; and its grid, in RAS whatever the
        file's own convention.

    Raises:
        InputError: if it is not such an image.
    """
    if read := microscopy_reader(path):
        return read(path, selection)
    if suffix_of(path) in IMAGE_SUFFIXES:
        return itk_files.read_image(path)
    volume, affine = nifti.read_voxels(path)
    return volume, _grid(path, volume, affine)


def read_intensities(path: Path, selection: Selection = ALL) -> tuple[Volume, Grid]:
    """``read_any`` in float32; raises ``InputError`` also for intensities that are not finite."""
    volume, grid = read_any(path, selection)
    volume = volume.float()
    nifti.check_finite(volume, path)
    return volume, grid


def read_labels(path: Path, selection: Selection = ALL) -> tuple[Tensor, Grid]:
    """``read_any`` as ``as_labels`` converts it; raises ``InputError`` also for what that refuses."""
    volume, grid = read_any(path, selection)
    try:
        return as_labels(volume), grid
    except InputError as error:
        raise InputError(f"{path}: {error} (for intensities: --image)") from error


def as_labels(volume: Tensor) -> Tensor:
    """A volume of ``read_any`` as int32 or int64; floating point is fine for whole numbers.

    Raises:
        InputError: if values are not whole, or so large that floating point may have changed them.
    """
    if not volume.is_floating_point():
        return volume
    if not torch.isfinite(volume).all() or (volume != volume.round()).any():
        raise InputError("expected whole numbers as labels, found others")
    if volume.abs().max() >= 1 << 24:
        raise InputError("expected labels below 2²⁴, or stored as integers, found larger ones in floating point")
    return volume.int()


def write_any(path: Path, volume: Tensor, grid: Grid) -> None:
    """Writes an image ``(1, 1, H, W, D)`` as NIfTI, NRRD or MetaImage, by suffix; raises ``OutputError`` on failure."""
    if suffix_of(path) not in SUFFIXES_WRITTEN:
        raise OutputError(f"{path}: expected a name ending in {' or '.join(SUFFIXES_WRITTEN)}")
    if suffix_of(path).startswith(".nii"):
        nifti.write_volume(path, volume, grid.affine)
        return
    if not volume.is_floating_point():
        dtype = nifti.smallest_type(volume.numpy())
        volume = torch.from_numpy(volume.numpy().astype(dtype))
    itk_files.write_image(path, to_sitk(volume, grid))


def read_field(path: Path) -> tuple[Displacement, Grid]:
    """Reads a displacement ``(1, 3, H, W, D)`` in voxels of its grid, and that grid.

    Raises:
        InputError: if it is not NIfTI of shape ``(H, W, D, 3)`` with finite numbers; ``.npz`` has no affine.
    """
    if path.suffix == ".npz":
        raise InputError(f"{path}: expected NIfTI: an .npz has no affine (`import` makes one, with --reference FIXED)")
    displacement = nifti.read_displacement(path)
    if not torch.isfinite(displacement).all():
        raise InputError(f"{path}: expected finite displacements, found some that are NaN or infinite")
    return displacement, _grid(path, displacement, read_header(path).affine)


def _grid(path: Path, tensor: Tensor, affine: NDArray[np.float64]) -> Grid:
    height, width, depth = tensor.shape[2:]
    with reading(path, "an image"):
        return Grid((height, width, depth), affine)
