"""Images and transforms in files of ITK: written here, and transforms read, in another process (``sandbox``)."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mcbo.core.errors import InputError, OutputError
from mcbo.core.memory import MEMORY_SHARE, available_bytes
from mcbo.core.types import Displacement
from mcbo.geometry.grid import Grid
from mcbo.io.files import reading, reason_of, suffix_of, write_whole
from mcbo.io.formats import metaimage, nifti_image, nrrd
from mcbo.io.formats.format import check_count, check_memory, file_size
from mcbo.io.formats.itk_image import Judge, read_itk, to_volume
from mcbo.io.itk import from_lps_vectors, geometry_of, to_transform, to_vectors
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


def read_transform(path: Path, fixed: Grid | None) -> tuple[Displacement, Grid]:
    """A displacement from any 3D ITK transform, fixed to moving, or from an image of LPS vectors, as ANTs writes them.

    A transform is sampled on the fixed grid; without one, a displacement field keeps its own.

    Raises:
        InputError: if it is not such a file, needs a grid, or its vectors are on another grid than the fixed one.
        MemoryBudgetError: if it does not fit into memory.
    """
    suffix = suffix_of(path)
    if suffix in TRANSFORM_SUFFIXES:
        reference = None if fixed is None else geometry_of(fixed) | {"size": list(fixed.shape)}
        with reading(path, "an ITK transform"):
            array, about = read_itk_transform(path, {"what": "transform", "reference": reference})
            displacement, grid = from_lps_vectors(*to_volume(array, about, 3))
        return displacement, grid if fixed is None else fixed
    if suffix not in _VECTORS:
        known = ", ".join((*TRANSFORM_SUFFIXES, *_VECTORS))
        raise InputError(f"{path}: expected a transform in a file ending in {known}: convert it to one of these")
    vectors, grid = read_itk(path, *_VECTORS[suffix], numbers=3, expected="an image of vectors")
    with reading(path, "an image of vectors"):
        displacement = from_lps_vectors(vectors, grid)[0]
    if fixed is not None and not grid.matches(fixed):
        raise InputError(f"{path}: expected the grid of --reference, {fixed.shape}, found {grid.shape} or another position")
    return displacement, grid


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


_VECTORS: dict[str, tuple[str, Judge]] = {
    **dict.fromkeys(nrrd.FORMAT.suffixes, ("NrrdImageIO", nrrd.judge)),
    **dict.fromkeys(metaimage.FORMAT.suffixes, ("MetaImageIO", metaimage.judge)),
    ".nii.gz": ("NiftiImageIO", nifti_image.judge),
    ".nii": ("NiftiImageIO", nifti_image.judge),
}
"""Formats of images of vectors, by suffix."""


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


def write_image(path: Path, image: "sitk.Image") -> None:
    """Writes an image in the format that its suffix says; raises ``OutputError`` if it cannot be written."""
    import SimpleITK as sitk

    write_whole(path, lambda file: _guarded(lambda: sitk.WriteImage(image, str(file), useCompression=True)))


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
