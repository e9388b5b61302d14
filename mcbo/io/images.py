"""Any 3D image or displacement with its grid; the suffix decides which library reads or writes it."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.errors import InputError, OutputError
from mcbo.core.types import Displacement, Volume
from mcbo.geometry.grid import Grid
from mcbo.io import itk_files, nifti
from mcbo.io.files import reading, regular_size, suffix_of, unchanged
from mcbo.io.foreign import fields as foreign
from mcbo.io.formats import nifti_image
from mcbo.io.formats.parts import image_digest
from mcbo.io.formats.registry import format_of
from mcbo.io.itk import to_sitk
from mcbo.io.itk_files import SUFFIXES_WRITTEN
from mcbo.io.microscopy.selection import ALL, Selection
from mcbo.io.nifti_header import read_header

MAX_DISPLACEMENT = 1e6
"""Voxels; many times as far as any image is large."""

_FEW_LABELS = 32
"""So few values may be labels, however they are spread."""


def read_any(path: Path, selection: Selection = ALL) -> tuple[Volume, Grid]:
    """Reads a 3D image of one of ``formats.registry``; a folder is an OME-Zarr, or holds TIFF files, one per slice.

    Returns:
        ``(1, 1, H, W, D)``, int32 or int64 where the file has whole numbers, else float32; and its grid, in RAS whatever the
        file's own convention.

    Raises:
        InputError: if it is not such an image.
        MemoryBudgetError: if it does not fit into memory.
    """
    return format_of(path).read(path, selection)


def read_digested(path: Path, selection: Selection = ALL) -> tuple[Volume, Grid, str | None]:
    """``read_any``, and the ``image_digest`` of what was read; raises ``InputError`` also if the file is saved anew meanwhile.

    Of NIfTI, each byte is read once. Libraries open the files of other formats themselves, which are digested before and after.
    """
    if format_of(path) is nifti_image.FORMAT:
        return nifti_image.read_hashed(path, selection)
    with unchanged(path, image_digest) as before:
        volume, grid = read_any(path, selection)
    return volume, grid, before


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
        raise InputError("expected labels below 2²⁴, or stored as integers below 2⁶³, found larger ones")
    return volume.int()


def looks_like_intensities(labels: Tensor) -> bool:
    """Whether whole numbers ``(1, 1, H, W, D)`` are many and mostly change from voxel to voxel, as labels do not."""
    volume = labels[0, 0].numpy()
    one, next_to_it = volume[:-1], volume[1:]
    both = (one != 0) & (next_to_it != 0)
    changes = np.count_nonzero(one[both] != next_to_it[both])
    return changes > both.sum() / 2 and len(np.unique(volume)) > _FEW_LABELS


def write_any(path: Path, volume: Tensor, grid: Grid) -> None:
    """Writes an image ``(1, 1, H, W, D)`` as NIfTI, NRRD or MetaImage, by suffix; raises ``OutputError`` on failure."""
    if suffix_of(path) not in SUFFIXES_WRITTEN:
        raise OutputError(f"{path}: expected a name ending in {' or '.join(SUFFIXES_WRITTEN)}")
    if suffix_of(path).startswith(".nii"):
        nifti.write_volume(path, volume, grid.affine, grid.unit)
        return
    if not volume.is_floating_point():
        dtype = nifti.smallest_type(volume.numpy())
        volume = torch.from_numpy(volume.numpy().astype(dtype))
    itk_files.write_image(path, to_sitk(volume, grid))


def read_field(path: Path) -> tuple[Displacement, Grid]:
    """Reads a displacement ``(1, 3, H, W, D)`` in voxels of its grid, and that grid.

    Raises:
        InputError: if it is not NIfTI of shape ``(H, W, D, 3)`` with finite numbers, or says that it is another program's;
            ``.npz`` has no affine.
        MemoryBudgetError: if it does not fit into memory.
    """
    if path.suffix == ".npz":
        raise InputError(f"{path}: expected NIfTI: an .npz has no affine (`import` makes one, with --reference FIXED)")
    regular_size(path, "a displacement")
    if not suffix_of(path).startswith(".nii"):
        raise InputError(
            f"{path}: expected a whole NIfTI image, found none; `mcbo import {path.name} --output NEW.nii.gz` makes one of a "
            "transform of another program"
        )
    with reading(path, "a displacement"):
        foreign.check_displacement(read_header(path))
    displacement = nifti.read_displacement(path)
    low, high = (float(bound) for bound in torch.aminmax(displacement))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"{path}: expected finite displacements, found some that are NaN or infinite")
    if max(-low, high) > MAX_DISPLACEMENT:
        raise InputError(f"{path}: expected displacements of at most {MAX_DISPLACEMENT:g} voxels, found {max(-low, high):g}")
    header = read_header(path)
    grid = replace(_grid(path, displacement, header.affine), unit=header.unit)
    if unit := foreign.looks_like_positions(displacement[0].movedim(0, -1).numpy(), grid):
        remedy = "`mcbo import --vectors ras-position` converts them" if unit == "mm" else "subtract the voxel's own"
        raise InputError(f"{path}: expected displacements, found positions in {unit}, by their spread: {remedy}")
    return displacement, grid


def _grid(path: Path, tensor: Tensor, affine: NDArray[np.float64]) -> Grid:
    height, width, depth = tensor.shape[2:]
    with reading(path, "an image"):
        return Grid((height, width, depth), affine)
