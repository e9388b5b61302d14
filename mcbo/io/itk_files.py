"""Images and transforms in files of ITK: NRRD, MetaImage, TIFF stacks; ``.h5``, ``.tfm``, images of LPS vectors."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.errors import InputError, OutputError
from mcbo.core.types import Displacement
from mcbo.geometry.grid import Grid
from mcbo.io.files import check_can_hold, reading, reason_of, regular_size, write_whole
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

_TEXT_BYTES = 26
"""Of a number in a ``.tfm``, at most."""

_HEADER_BYTES = 1 << 16
"""More than any header takes, and what compression may add to noise."""

_HDF5_LOCKS = "HDF5_USE_FILE_LOCKING"


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
        _write_transform(path, transform, bytes_per_number=_TEXT_BYTES if suffix == ".tfm" else 8)
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
    if not path.is_dir():
        regular_size(path, "an image")
    with reading(path, "an image", (RuntimeError,)):
        image = _read_folder(path) if path.is_dir() else _read(path)
        if is_tiff(path) and spacing_mm is not None:
            image.SetSpacing([float(size) for size in spacing_mm])
        return from_sitk(image)


def write_image(path: Path, image: "sitk.Image") -> None:
    """Writes an image in the format that its suffix says; raises ``OutputError`` if it cannot be written."""
    import SimpleITK as sitk

    def write(file: Path) -> None:
        _write_checked(
            file,
            image,
            bytes_per_number=sitk.GetArrayViewFromImage(image).itemsize,
            write=lambda name: sitk.WriteImage(image, name, useCompression=True),
            read=sitk.ReadImage,
        )

    write_whole(path, write)


def is_tiff(path: Path) -> bool:
    """Whether a file is a TIFF, or a folder of them, so that its voxel size has to be given."""
    return path.is_dir() or suffix_of(path) in _TIFF


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
    if not files:
        raise InputError("expected TIFF files in this folder, one per slice, found none")
    reader = _header(files[0])
    _check_size([*reader.GetSize(), len(files), reader.GetNumberOfComponents()])
    return sitk.ReadImage([str(file) for file in files])


def _check_size(size: Sequence[int]) -> None:
    count = int(np.prod([int(n) for n in size], dtype=object))
    if not 0 < count <= MAX_VOXELS:
        raise InputError(f"expected at most {MAX_VOXELS} numbers, found {count} in the header: {tuple(size)}")


def _write_transform(path: Path, transform: "sitk.DisplacementFieldTransform", *, bytes_per_number: int) -> None:
    """Writes a transform whole or not at all; raises ``OutputError`` if it cannot be written."""
    import SimpleITK as sitk

    def write(file: Path) -> None:
        with locks_optional():
            _write_checked(
                file,
                transform.GetDisplacementField(),
                bytes_per_number=bytes_per_number,
                write=lambda name: sitk.WriteTransform(transform, name),
                read=lambda name: sitk.ReadTransform(name).GetDisplacementField(),
            )

    write_whole(path, write, lock=False)  # HDF5 locks it itself


def _write_checked(
    file: Path,
    image: "sitk.Image",
    *,
    bytes_per_number: int,
    write: Callable[[str], object],
    read: Callable[[str], "sitk.Image"],
) -> None:
    """Has ITK write an image, and reads it back, since ITK hardly looks whether what it writes arrives on the disk.

    HDF5 even crashes at the end of the process if it cannot write the first bytes; so the room is asked for first.

    Raises:
        OSError: if there is no room, or what was read is not what was written.
    """
    import SimpleITK as sitk

    values = sitk.GetArrayViewFromImage(image)  # valid as long as the image
    check_can_hold(file, values.size * bytes_per_number + _HEADER_BYTES)
    try:
        with _name_for_itk(file) as name:
            write(name)
            written = read(name)
    except RuntimeError as error:
        raise OSError(errno.EIO, reason_of(error)) from error
    found = sitk.GetArrayViewFromImage(written)
    slabs = zip(values, found, strict=False)  # which take less memory at a time
    if values.shape != found.shape or not all(_same(one, other) for one, other in slabs):
        raise OSError(errno.EIO, "the file system did not keep what was written")


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return np.array_equal(one, other) or (one.dtype.kind == "f" and np.array_equal(one, other, equal_nan=True))


@contextlib.contextmanager
def _name_for_itk(file: Path) -> Iterator[str]:
    """A path that ITK can take: one that is not UTF-8 would end the process. The file's own name is ASCII."""
    try:
        str(file).encode("utf-8")
    except UnicodeEncodeError:
        folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{folder}/{file.name}"
        finally:
            os.close(folder)
    else:
        yield str(file)


@contextlib.contextmanager
def locks_optional() -> Iterator[None]:
    """Lets HDF5 do without locks of its own, where the file system has none, unless the environment says something else."""
    if _HDF5_LOCKS in os.environ:
        yield
        return
    os.environ[_HDF5_LOCKS] = "FALSE"
    try:
        yield
    finally:
        os.environ.pop(_HDF5_LOCKS, None)
