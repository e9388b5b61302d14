"""Any 3D image or displacement with its grid; the suffix decides which library reads or writes it."""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.errors import InputError, OutputError
from mcbo.core.types import Displacement, Triple, Volume
from mcbo.geometry.grid import Grid
from mcbo.io import itk_files, nifti
from mcbo.io.files import digest, is_file, is_folder, reading, shown, unchanged
from mcbo.io.itk import to_sitk
from mcbo.io.itk_files import IMAGE_SUFFIXES, SUFFIXES_WRITTEN, is_tiff, suffix_of
from mcbo.io.nifti_header import read_header

SIZES_MM = (1e-9, 1e6)
"""Least and largest side of a voxel: from a thousandth of a nanometer to a kilometer."""

_DETACHED = {
    ".mhd": re.compile(r"^ElementDataFile *= *([^\r\n]+)\r?$", re.IGNORECASE | re.MULTILINE),
    ".nhdr": re.compile(r"^data ?file: *([^\r\n]+)\r?$", re.IGNORECASE | re.MULTILINE),
}
"""Where headers name the files that hold their voxels."""

_HEAD_BYTES = 2**20
"""Of such a header."""


def read_any(path: Path, *, spacing_mm: Sequence[float] | None = None) -> tuple[Volume, Grid]:
    """Reads a 3D image: what nibabel reads (NIfTI, Analyze, MGH, MINC …), NRRD, MetaImage, TIFF stacks.

    A folder holds TIFF files, one per slice. ``spacing_mm``, along columns, rows, slices, is for TIFF alone.

    Returns:
        ``(1, 1, H, W, D)``, int32 or int64 where the file has whole numbers, else float32; and its grid, in RAS whatever the
        file's own convention.

    Raises:
        InputError: if it is not such an image.
    """
    if is_folder(path) or suffix_of(path) in IMAGE_SUFFIXES:
        return itk_files.read_image(path, spacing_mm=spacing_mm)
    volume, affine = nifti.read_voxels(path)
    return volume, _grid(path, volume, affine)


def read_digested(path: Path, *, spacing_mm: Sequence[float] | None = None) -> tuple[Volume, Grid, str | None]:
    """``read_any``, and the ``image_digest`` of what was read; raises ``InputError`` also if the file is saved anew meanwhile.

    Of NIfTI, each byte is read once. Libraries open the files of other formats themselves, which are digested before and after.
    """
    if nifti.is_nifti(path):
        volume, affine, sha256 = nifti.read_hashed_voxels(path)
        return volume, _grid(path, volume, affine), sha256
    with unchanged(path, image_digest) as before:
        volume, grid = read_any(path, spacing_mm=spacing_mm)
    return volume, grid, before


def image_digest(path: Path) -> str | None:
    """SHA-256 of an image; None if it, or one of the files that belong to it, cannot be read or is not known."""
    parts = _parts(path)
    if parts == [path]:
        return digest(path)
    digests = [digest(part) for part in parts]
    if not parts or None in digests:
        return None
    whole = hashlib.sha256()
    for part, one in zip(parts, digests, strict=True):
        whole.update(f"{part.name}\0{one}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def _parts(path: Path) -> list[Path]:
    """The files of an image: slices in a folder, or a header and the files that it names; none if they are not known."""
    if is_folder(path):
        return sorted(file for file in path.iterdir() if is_tiff(file) and file.is_file())
    key = _DETACHED.get(path.suffix.lower())
    if key is None or not is_file(path):
        return [path] if nifti.is_nifti(path) or suffix_of(path) in IMAGE_SUFFIXES else nifti.files_of(path)
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).decode("latin-1")
    found = key.search(head)
    name = found[1].strip() if found else "LOCAL"
    if name.upper() == "LOCAL":
        return [path]
    listed = head[found.end() :].split("\n") if found and name.split()[0].upper() == "LIST" else [name]
    names = [line.strip().encode("latin-1") for line in listed if line.strip()]
    return [] if "%" in name else [path, *(path.parent / os.fsdecode(one) for one in names)]


def read_intensities(path: Path, *, spacing_mm: Sequence[float] | None = None) -> tuple[Volume, Grid]:
    """``read_any`` in float32; raises ``InputError`` also for intensities that are not finite."""
    volume, grid = read_any(path, spacing_mm=spacing_mm)
    volume = volume.float()
    nifti.check_finite(volume, path)
    return volume, grid


def read_labels(path: Path, *, spacing_mm: Sequence[float] | None = None) -> tuple[Tensor, Grid]:
    """``read_any`` as ``as_labels`` converts it; raises ``InputError`` also for what that refuses."""
    volume, grid = read_any(path, spacing_mm=spacing_mm)
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


def spacing_of(text: str) -> Triple:
    """Three positive numbers from ``0.5,0.5,2``; raises ``InputError`` if it is not that."""
    sizes = positive_sizes(text.split(","))
    if sizes is None:
        raise InputError(
            f"--spacing: expected three positive numbers from {SIZES_MM[0]:g} to {SIZES_MM[1]:g}, such as 0.5,0.5,2, "
            f"got {shown(text)}"
        )
    return sizes


def positive_sizes(values: Any) -> Triple | None:
    """Three numbers within ``SIZES_MM``; None if the values are anything else."""
    try:
        first, second, third = (float(value) for value in values)
    except (TypeError, ValueError):
        return None
    return (first, second, third) if all(SIZES_MM[0] <= size <= SIZES_MM[1] for size in (first, second, third)) else None


def _grid(path: Path, tensor: Tensor, affine: NDArray[np.float64]) -> Grid:
    height, width, depth = tensor.shape[2:]
    with reading(path, "an image"):
        return Grid((height, width, depth), affine)
