"""Images and transforms in files of ITK: written here, and transforms read, in another process (``sandbox``)."""

import contextlib
import errno
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mcbo.core.errors import InputError, OutputError
from mcbo.core.memory import MEMORY_SHARE, available_bytes
from mcbo.core.types import Displacement
from mcbo.geometry.grid import Grid, is_sheared
from mcbo.io.files import check_can_hold, reading, reason_of, suffix_of, write_whole
from mcbo.io.formats import metaimage, nifti_image, nrrd
from mcbo.io.formats.format import check_count, check_memory, file_size
from mcbo.io.formats.itk_image import Judge, check_name, read_itk, to_volume
from mcbo.io.itk import from_lps_vectors, geometry_of, on_grid, to_transform, to_vectors
from mcbo.io.sandbox.client import HEADER_S, Limits, read_outside
from mcbo.io.sandbox.wire import Frame

if TYPE_CHECKING:
    import SimpleITK as sitk

TRANSFORM_SUFFIXES = (".h5", ".hdf5", ".tfm", ".txt", ".mat", ".xfm")
"""Of transforms that ITK reads."""

SUFFIXES_WRITTEN = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Of written images, those of vectors included."""

MAX_TEXT_VOXELS = 1 << 22
"""Of a displacement in a text file, at about 60 bytes per voxel."""

_TRANSFORM_RATIO = 100
"""Memory that a transform may take per byte of its file: ITK holds five copies, and HDF5 may have compressed it."""

_S_PER_VOXEL = 2e-5
"""To evaluate a chain of transforms."""

_TEXT_BYTES = 26
"""Of a number in a ``.tfm``, at most."""

_HEADER_BYTES = 1 << 16
"""More than any header takes, and what compression may add to noise."""

_HDF5_LOCKS = "HDF5_USE_FILE_LOCKING"


def read_transform(path: Path, fixed: Grid | None) -> tuple[Displacement, Grid]:
    """A displacement from any 3D ITK transform, fixed to moving, or from an image of LPS vectors, as ANTs writes them.

    A transform is sampled on the fixed grid; without one, a displacement field keeps its own.

    Raises:
        InputError: if it is not such a file, needs a grid, or its vectors are on another grid than the fixed one.
        MemoryBudgetError: if it does not fit into memory.
    """
    check_name(path)
    suffix = suffix_of(path)
    if suffix in TRANSFORM_SUFFIXES:
        reference = None if fixed is None else geometry_of(fixed.seen_by_itk()) | {"size": list(fixed.shape)}
        with reading(path, "an ITK transform"):
            array, about = read_itk_transform(path, {"what": "transform", "reference": reference})
            displacement, grid = from_lps_vectors(*to_volume(array, about, 3))
        return (displacement, grid) if fixed is None else (on_grid(displacement, fixed), fixed)
    if suffix not in _VECTORS:
        known = ", ".join((*TRANSFORM_SUFFIXES, *_VECTORS))
        raise InputError(f"{path}: expected a transform in a file ending in {known}: convert it to one of these")
    io, judge, place = _VECTORS[suffix]
    vectors, grid = read_itk(path, io, judge, numbers=3, expected="an image of vectors")
    with reading(path, "an image of vectors"):
        displacement = from_lps_vectors(vectors, grid)[0]
    placed = place(path, grid)
    if fixed is None:
        return displacement, placed
    if placed.in_itk is not None and placed.matches(fixed):  # its header has the unit of its vectors, too
        return displacement, fixed
    if not grid.matches(fixed.seen_by_itk()):
        raise InputError(f"{path}: expected the grid of --reference, {fixed.shape}, found {grid.shape} or another position")
    return on_grid(displacement, fixed), fixed


def read_itk_transform(path: Path, request: Frame) -> tuple[NDArray[Any], Frame]:
    """What ``sandbox.with_itk`` makes of a transform; raises ``InputError`` and ``MemoryBudgetError`` without its name."""
    size = file_size(path, "an ITK transform")
    free = int(MEMORY_SHARE * available_bytes())
    reading_it = Limits(Limits.of_data(size, 0).seconds, 2**28 + min(_TRANSFORM_RATIO * size, free))

    def judge(header: Frame) -> Limits:
        count = check_count([*header["size"], header["numbers"]])
        check_memory(count, header["value_bytes"])
        return Limits(HEADER_S + _S_PER_VOXEL * math.prod(header["size"]), 2**28 + 2 * count * header["value_bytes"])

    request = request | {"path": str(path.absolute())}
    return read_outside("with_itk", request, expected="an ITK transform", judge=judge, limits=reading_it)


_VECTORS: dict[str, tuple[str, Judge, Callable[[Path, Grid], Grid]]] = {
    **dict.fromkeys(nrrd.FORMAT.suffixes, ("NrrdImageIO", nrrd.judge, nrrd.place)),
    **dict.fromkeys(metaimage.FORMAT.suffixes, ("MetaImageIO", metaimage.judge, metaimage.place)),
    **dict.fromkeys((".nii.gz", ".nii"), ("NiftiImageIO", nifti_image.judge, lambda _, grid: grid)),
}
"""Formats of images of vectors, by suffix; the last makes a grid as ITK reads it one in the unit of the file."""


def write_transform(path: Path, displacement: Displacement, grid: Grid, moving: Grid | None = None) -> None:
    """Writes a displacement as an ITK transform or image of LPS vectors in mm, by suffix; raises ``OutputError`` on failure.

    See ``itk.to_vectors`` for what ``moving`` is good for.
    """
    suffix = suffix_of(path)
    if suffix in SUFFIXES_WRITTEN:
        if suffix.startswith(".nii") and is_sheared(grid.affine):
            raise OutputError(f"{path}: expected a name ending in .h5 or .nrrd: ITK does not store sheared axes in NIfTI")
        write_image(path, to_vectors(displacement, grid, moving))
    elif suffix in (".h5", ".tfm"):
        if suffix == ".tfm" and displacement[0, 0].numel() > MAX_TEXT_VOXELS:
            raise OutputError(f"{path}: expected a name ending in .h5 for a displacement of {grid.shape}: .tfm is text")
        transform = to_transform(displacement, grid, moving)
        _write_transform(path, transform, bytes_per_number=_TEXT_BYTES if suffix == ".tfm" else 8)
    else:
        raise OutputError(f"{path}: expected a name ending in {', '.join(('.h5', '.tfm', *SUFFIXES_WRITTEN))}")


def write_image(path: Path, image: "sitk.Image", *, compressed: bool = True) -> None:
    """Writes an image in the format that its suffix says; raises ``OutputError`` if it cannot be written."""
    import SimpleITK as sitk

    def write(file: Path) -> None:
        _write_checked(
            file,
            image,
            bytes_per_number=sitk.GetArrayViewFromImage(image).itemsize,
            write=lambda name: sitk.WriteImage(image, name, useCompression=compressed),
            read=sitk.ReadImage,
        )

    write_whole(path, write)


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
