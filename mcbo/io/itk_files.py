"""Images and transforms in files that ITK reads and writes: NRRD, MetaImage, TIFF stacks; ``.h5``, ``.tfm``, LPS vectors."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from mcbo.core.errors import InputError, OutputError, ShapeError
from mcbo.core.types import Displacement
from mcbo.geometry.grid import Grid
from mcbo.io.files import regular_size, write_whole
from mcbo.io.itk import from_sitk, from_transform, from_vectors, to_sitk, to_transform, to_vectors
from mcbo.io.nifti_header import MAX_VOXELS

if TYPE_CHECKING:
    import SimpleITK as sitk

TRANSFORM_SUFFIXES = (".h5", ".hdf5", ".tfm", ".txt", ".mat", ".xfm")
"""What ITK reads transforms from."""

VECTOR_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
"""What displacements are written to as images of vectors."""

IMAGE_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd", ".tif", ".tiff", ".gipl", ".gipl.gz")
"""Images that are read here; nibabel reads the others."""

MAX_TEXT_VOXELS = 1 << 22
"""Of a displacement in a text file, which takes about 60 bytes a voxel."""

_TIFF = (".tif", ".tiff")


def read_transform(path: Path, fixed: Grid | None) -> tuple[Displacement, Grid]:
    """A displacement from an ITK transform or an image of LPS vectors.

    Args:
        path: ``.h5``, ``.tfm``, ``.mat`` …, or ``.nii.gz`` (as ANTs writes them), ``.nrrd``, ``.mha``.
        fixed: see ``from_transform``; an image of vectors with another grid is refused.

    Raises:
        InputError: if it is not such a file.
    """
    import SimpleITK as sitk

    regular_size(path, "a transform")
    try:
        if suffix_of(path) in TRANSFORM_SUFFIXES:
            return from_transform(sitk.ReadTransform(str(path)), fixed)
        displacement, grid = from_vectors(_read(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except RuntimeError as error:
        raise InputError(f"{path}: expected an ITK transform, but it cannot be read: {_reason(error)}") from error
    if fixed is not None and not grid.matches(fixed):
        raise InputError(f"{path}: expected the grid of --reference, {fixed.shape}, found {grid.shape} or another place")
    return displacement, grid


def write_transform(path: Path, displacement: Displacement, grid: Grid) -> None:
    """Writes a displacement as an ITK transform or as an image of LPS vectors in millimeters, as the suffix says.

    Raises:
        OutputError: if it cannot be written.
    """
    import SimpleITK as sitk

    suffix = suffix_of(path)
    if suffix in VECTOR_SUFFIXES:
        directions = grid.affine[:3, :3] / np.array(grid.spacing_mm)
        if suffix.startswith(".nii") and not np.allclose(directions.T @ directions, np.eye(3), atol=1e-4):
            raise OutputError(f"{path}: expected a name ending in .h5 or .nrrd: ITK keeps no sheared axes in NIfTI")
        _write(path, to_vectors(displacement, grid))
    elif suffix in (".h5", ".tfm"):
        if suffix == ".tfm" and displacement[0, 0].numel() > MAX_TEXT_VOXELS:
            raise OutputError(f"{path}: expected a name ending in .h5 for a displacement of {grid.shape}: .tfm is text")
        transform = to_transform(displacement, grid)
        write_whole(path, lambda file: _beside(file, lambda name: sitk.WriteTransform(transform, name)))
    else:
        raise OutputError(f"{path}: expected a name ending in {', '.join(('.h5', '.tfm', *VECTOR_SUFFIXES))}")


def read_image(path: Path, *, spacing_mm: Sequence[float] | None = None) -> tuple[Tensor, Grid]:
    """An image that nibabel does not read, with one number per voxel.

    Args:
        path: NRRD, MetaImage, TIFF stack; or a folder of TIFF files, one slice each, taken by name.
        spacing_mm: voxel size along columns, rows, slices: for TIFF, which does not tell.

    Returns:
        ``(1, 1, H, W, D)`` as stored (integers stay integers), and its grid. Axis 0 runs along columns, as in NIfTI.

    Raises:
        InputError: if it is not that.
    """
    is_tiff = path.is_dir() or suffix_of(path) in _TIFF
    if is_tiff and spacing_mm is None:
        raise InputError(f"{path}: expected --spacing with the voxel size in mm (columns,rows,slices): TIFF does not tell")
    if not path.is_dir():
        regular_size(path, "an image")
    try:
        image = _read_folder(path) if path.is_dir() else _read(path)
        if is_tiff and spacing_mm is not None:  # the others tell theirs
            image.SetSpacing([float(size) for size in spacing_mm])
        volume, grid = from_sitk(image)
    except (InputError, ShapeError) as error:
        raise InputError(f"{path}: {error}") from error
    except RuntimeError as error:
        raise InputError(f"{path}: expected an image, but it cannot be read: {_reason(error)}") from error
    if volume.shape[1] != 1:
        raise InputError(f"{path}: expected one number per voxel, found {volume.shape[1]}")
    return volume, grid


def write_image(path: Path, volume: Tensor, grid: Grid) -> None:
    """Writes an image ``(1, 1, H, W, D)`` as NRRD or MetaImage.

    Raises:
        OutputError: if it cannot be written.
    """
    _write(path, to_sitk(volume, grid))


def suffix_of(path: Path) -> str:
    """``.nii.gz`` of ``a.nii.gz``, ``.nrrd`` of ``a.b.NRRD``."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def _read(path: Path) -> "sitk.Image":
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
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
    if not files:
        raise InputError("expected TIFF files in this folder, one a slice, found none")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(files[0]))
    reader.ReadImageInformation()
    _check_size([*reader.GetSize(), len(files), reader.GetNumberOfComponents()])
    return sitk.ReadImage([str(file) for file in files])


def _check_size(size: Sequence[int]) -> None:
    count = int(np.prod([int(n) for n in size], dtype=object))
    if not 0 < count <= MAX_VOXELS:
        raise InputError(f"expected at most {MAX_VOXELS} numbers, found {count} in the header: {tuple(size)}")


def _write(path: Path, image: "sitk.Image") -> None:
    import SimpleITK as sitk

    if suffix_of(path) not in VECTOR_SUFFIXES:
        raise OutputError(f"{path}: expected a name ending in {', '.join(VECTOR_SUFFIXES)}")
    write_whole(path, lambda file: _guarded(lambda: sitk.WriteImage(image, str(file), useCompression=True)))


def _beside(partial: Path, write: Callable[[str], object]) -> None:
    """Lets ITK write beside a partial file and copies: HDF5 wants a lock of its own, and the partial file is locked."""
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
        raise OSError(_reason(error)) from error


def _reason(error: RuntimeError) -> str:
    """The last line of ITK's message: the others tell of its source code."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else "unknown"
