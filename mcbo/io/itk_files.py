"""Images and transforms in files of ITK: NRRD, MetaImage, TIFF stacks; ``.h5``, ``.tfm``, images of LPS vectors."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from mcbo.core.errors import InputError, McboError, OutputError
from mcbo.core.types import Displacement
from mcbo.geometry.grid import Grid
from mcbo.io.files import is_folder, reading, reason_of, regular_size, write_whole
from mcbo.io.itk import from_sitk, from_transform, from_vectors, to_transform, to_vectors
from mcbo.io.nifti_header import MAX_VOXELS

if TYPE_CHECKING:
    import SimpleITK as sitk

TRANSFORM_SUFFIXES = (".h5", ".hdf5", ".tfm", ".txt", ".mat", ".xfm")
"""Of transforms that ITK reads."""

SUFFIXES_WRITTEN = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Of written images, those of vectors included."""

IMAGE_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd", ".tif", ".tiff", ".gipl", ".gipl.gz")
"""Of images that ITK reads; nibabel reads the others."""

MAX_TEXT_VOXELS = 1 << 22
"""Of a displacement in a text file, at about 60 bytes per voxel."""

_TIFF = (".tif", ".tiff")


def read_transform(path: Path, fixed: Grid | None) -> tuple[Displacement, Grid]:
    """A displacement from an ITK transform, see ``from_transform``, or from an image of LPS vectors, as ANTs writes them.

    Raises:
        InputError: if it is not such a file, or its vectors are on another grid than the fixed one.
    """
    import SimpleITK as sitk

    check_name(path)
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

    check_name(path, OutputError)
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


def read_image(path: Path, *, spacing_mm: Sequence[float] | None = None) -> tuple[Tensor, Grid]:
    """An image that nibabel does not read, with one number per voxel: NRRD, MetaImage, TIFF.

    Slices in a folder of TIFF files are in the order of their names. ``spacing_mm``, along columns, rows, slices, is for TIFF,
    which does not store it.

    Returns:
        ``(1, 1, H, W, D)`` as stored (integers stay integers), and its grid. Axis 0 runs along columns, as in NIfTI.

    Raises:
        InputError: if it is not that.
    """
    if is_tiff(path) and spacing_mm is None:
        raise InputError(f"{path}: expected --spacing with the voxel size in mm (columns,rows,slices): TIFF does not store it")
    check_name(path)
    if not is_folder(path):
        regular_size(path, "an image")
    with reading(path, "an image", (RuntimeError,)):
        image = _read_folder(path) if is_folder(path) else _read(path)
        if is_tiff(path) and spacing_mm is not None:
            image.SetSpacing([float(size) for size in spacing_mm])
        return from_sitk(image)


def write_image(path: Path, image: "sitk.Image") -> None:
    """Writes an image in the format that its suffix says; raises ``OutputError`` if it cannot be written."""
    import SimpleITK as sitk

    check_name(path, OutputError)
    write_whole(path, lambda file: _guarded(lambda: sitk.WriteImage(image, str(file), useCompression=True)))


def is_tiff(path: Path) -> bool:
    """Whether a file is a TIFF, or a folder of them, so that its voxel size has to be given."""
    return is_folder(path) or suffix_of(path) in _TIFF


def check_name(path: Path, error: type[McboError] = InputError) -> None:
    """Raises an error for a name that is not UTF-8, which would end ITK, and with it this process."""
    try:
        str(path).encode()
    except UnicodeEncodeError as reason:
        raise error(f"{path}: expected a name in UTF-8, as this format needs; rename it") from reason


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


def _read_folder(folder: Path) -> "sitk.Image":
    import SimpleITK as sitk

    files = sorted(file for file in folder.iterdir() if suffix_of(file) in _TIFF and file.is_file())
    for file in files:
        check_name(file)
    if not files:
        raise InputError("expected TIFF files in this folder, one per slice, found none")
    reader = _header(files[0])
    _check_size([*reader.GetSize(), len(files), reader.GetNumberOfComponents()])
    return sitk.ReadImage([str(file) for file in files])


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
