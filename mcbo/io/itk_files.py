"""Images and transforms in files of ITK: NRRD, MetaImage, GIPL; ``.h5``, ``.tfm``, images of LPS vectors."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.errors import InputError, OutputError
from mcbo.core.types import Displacement
from mcbo.geometry.grid import Grid
from mcbo.io.files import reading, reason_of, regular_size, write_whole
from mcbo.io.itk import from_sitk, from_transform, from_vectors, to_transform, to_vectors
from mcbo.io.nifti_header import MAX_VOXELS

if TYPE_CHECKING:
    import SimpleITK as sitk

TRANSFORM_SUFFIXES = (".h5", ".hdf5", ".tfm", ".txt", ".mat", ".xfm")
"""Of transforms that ITK reads."""

SUFFIXES_WRITTEN = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Of written images, those of vectors included."""

IMAGE_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".gipl.gz")
"""Of images that ITK reads; nibabel reads the others."""

MAX_TEXT_VOXELS = 1 << 22
"""Of a displacement in a text file, at about 60 bytes per voxel."""


def read_transform(path: Path, fixed: Grid | None) -> tuple[Displacement, Grid]:
    """A displacement from an ITK transform, see ``from_transform``, or from an image of LPS vectors, as ANTs writes them.

    Raises:
        InputError: if it is not such a file, or its vectors are on another grid than the fixed one.
    """
    import SimpleITK as sitk

    regular_size(path, "a transform")
    with reading(path, "an ITK transform", (RuntimeError,)):
        if suffix_of(path) in TRANSFORM_SUFFIXES:
            return from_transform(sitk.ReadTransform(str(path)), fixed)
        displacement, grid = from_vectors(_read(path))
    if fixed is not None and not grid.matches(fixed):
        raise InputError(f"{path}: expected the grid of --reference, {fixed.shape}, found {grid.shape} or another position")
    return displacement, grid


def write_transform(path: Path, displacement: Displacement, grid: Grid) -> None:
    """Writes a displacement as an ITK transform or image of LPS vectors in mm, by suffix; raises ``OutputError`` on failure."""
    import SimpleITK as sitk

    suffix = suffix_of(path)
    if suffix in SUFFIXES_WRITTEN:
        directions = grid.affine[:3, :3] / np.array(grid.spacing_mm)
        if suffix.startswith(".nii") and not np.allclose(directions.T @ directions, np.eye(3), atol=1e-4):
            raise OutputError(f"{path}: expected a name ending in .h5 or .nrrd: ITK does not store sheared axes in NIfTI")
        write_image(path, to_vectors(displacement, grid))
    elif suffix in (".h5", ".tfm"):
        if suffix == ".tfm" and displacement[0, 0].numel() > MAX_TEXT_VOXELS:
            raise OutputError(f"{path}: expected a name ending in .h5 for a displacement of {grid.shape}: .tfm is text")
        transform = to_transform(displacement, grid)
        write_whole(path, lambda file: _beside(file, lambda name: sitk.WriteTransform(transform, name)))
    else:
        raise OutputError(f"{path}: expected a name ending in {', '.join(('.h5', '.tfm', *SUFFIXES_WRITTEN))}")


def read_image(path: Path) -> tuple[Tensor, Grid]:
    """An image that nibabel does not read, with one number per voxel: NRRD, MetaImage, GIPL.

    Returns:
        ``(1, 1, H, W, D)`` as stored (integers stay integers), and its grid. Axis 0 runs along columns, as in NIfTI.

    Raises:
        InputError: if it is not that.
    """
    regular_size(path, "an image")
    with reading(path, "an image", (RuntimeError,)):
        return from_sitk(_read(path))


def read_pages(path: Path) -> NDArray[Any]:
    """All pages of a TIFF of ITK's kinds and compressions: ``(pages, rows, columns)``; raises ``RuntimeError`` for others."""
    import SimpleITK as sitk

    reader = _header(path)
    _check_size([*reader.GetSize(), reader.GetNumberOfComponents()])
    pages: NDArray[Any] = sitk.GetArrayFromImage(reader.Execute())
    return pages[None] if pages.ndim == 2 else pages


def write_image(path: Path, image: "sitk.Image") -> None:
    """Writes an image in the format that its suffix says; raises ``OutputError`` if it cannot be written."""
    import SimpleITK as sitk

    write_whole(path, lambda file: _guarded(lambda: sitk.WriteImage(image, str(file), useCompression=True)))


def suffix_of(path: Path) -> str:
    """``.nii.gz`` of ``a.nii.gz``, ``.nrrd`` of ``a.b.NRRD``."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def _header(path: Path) -> "sitk.ImageFileReader":
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def _read(path: Path) -> "sitk.Image":
    reader = _header(path)
    size = [*reader.GetSize(), reader.GetNumberOfComponents()]
    if reader.GetDimension() == 4 and size[3] == 1:
        reader.SetExtractSize([*size[:3], 0])
    elif reader.GetDimension() != 3:
        raise InputError(f"expected a 3D image, found {reader.GetDimension()}D data of size {tuple(reader.GetSize())}")
    _check_size(size)
    image: sitk.Image = reader.Execute()
    return image


def _check_size(size: Sequence[int]) -> None:
    count = int(np.prod([int(n) for n in size], dtype=object))
    if not 0 < count <= MAX_VOXELS:
        raise InputError(f"expected at most {MAX_VOXELS} numbers, found {count} in the header: {tuple(size)}")


def _beside(partial: Path, write: Callable[[str], object]) -> None:
    """Has ITK write beside the partial file, then copies: HDF5 takes a lock of its own, and the partial file is locked."""
    written = partial.with_name(f"{partial.name[:17]}-itk{partial.name[17:]}")
    try:
        _guarded(lambda: write(str(written)))
        shutil.copyfile(written, partial)
    finally:
        written.unlink(missing_ok=True)


def _guarded(write: Callable[[], object]) -> None:
    try:
        write()
    except RuntimeError as error:
        raise OSError(reason_of(error)) from error
