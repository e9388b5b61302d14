"""Images as the Python API takes them: paths, arrays, tensors, images of nibabel and SimpleITK."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.errors import InputError
from mcbo.geometry.grid import Grid
from mcbo.geometry.units import unit_of
from mcbo.io.files import reading, saved_anew
from mcbo.io.formats.format import check_memory
from mcbo.io.images import read_any, read_digested
from mcbo.io.initial_transform import matrix_of
from mcbo.io.itk import from_sitk, to_sitk
from mcbo.io.microscopy.selection import ALL, Selection
from mcbo.io.nifti import check_finite, check_structure, to_nibabel, to_tensor
from mcbo.io.nifti_header import in_mm

ImageLike: TypeAlias = Any
"""A path; a numpy array or torch tensor ``(H, W, D)``; a pair of one of these and its affine (voxel to world, RAS mm); an image
of nibabel or SimpleITK."""


@dataclass(frozen=True)
class Geometry:
    """Of arrays without their own: the affine ``(4, 4)``, voxel to world, RAS mm, or the voxel size along axes 0, 1, 2.

    Of files, ``selection`` says which part to read, and the voxel size where they do not state it.
    """

    affine: NDArray[np.generic] | None = None
    selection: Selection = ALL

    def matrix(self) -> NDArray[np.float64]:
        """The affine; raises ``InputError`` if both are given."""
        size = self.selection.spacing
        if self.affine is not None and size is not None:
            raise InputError("expected affine or spacing, got both")
        if self.affine is not None:
            return matrix_of(self.affine, "an affine as ")
        return np.eye(4) if size is None else np.diag([*size.mm, 1.0])


Digests: TypeAlias = dict[str, str | None]
"""By path, ``images.image_digest`` of what was read."""


def to_volume(image: ImageLike, name: str, geometry: Geometry, digests: Digests | None = None) -> tuple[Tensor, Grid]:
    """Any 3D image as ``(1, 1, H, W, D)`` on the CPU, integers as such, and its grid; raises ``InputError`` with its name.

    What is read from a path is put into ``digests``, if given.
    """
    if isinstance(image, str | Path):
        if digests is None:
            return read_any(Path(image), geometry.selection)
        volume, grid, found = read_digested(Path(image), geometry.selection)
        if digests.setdefault(str(image), found) != found:  # read before, for another purpose
            raise saved_anew(Path(image))
        return volume, grid
    with reading(name, "an image", ()):
        if isinstance(image, tuple) and len(image) == 2:
            return _from_array(image[0], matrix_of(image[1], "beside an array (several images make a list) its affine as "))
        if hasattr(image, "GetDirection"):  # of SimpleITK
            return from_sitk(image)
        if hasattr(image, "dataobj"):  # of nibabel
            return _from_nibabel(image)
        return _from_array(image, geometry.matrix())


def to_intensities(image: ImageLike, name: str, geometry: Geometry, digests: Digests | None = None) -> tuple[Tensor, Grid]:
    """``to_volume`` in float32; raises ``InputError`` also for intensities that are not finite, or all the same."""
    volume, grid = to_volume(image, name, geometry, digests)
    volume = volume.float()
    check_finite(volume, name)
    check_structure(volume, name)
    return volume, grid


def like_given(volume: Tensor, grid: Grid, image: ImageLike) -> Any:
    """A volume ``(1, 1, H, W, D)`` as the type that an image has: of nibabel, SimpleITK or torch; else an array."""
    if hasattr(image, "GetDirection"):
        return to_sitk(volume, grid.seen_by_itk())
    if hasattr(image, "dataobj"):
        return to_nibabel(volume[0, 0].numpy(), grid.affine, grid.unit)
    return volume[0, 0] if isinstance(image, Tensor) else volume[0, 0].numpy()


def name_of(image: ImageLike, other: str) -> str:
    """The path of an image; another name if it has none."""
    return str(image) if isinstance(image, str | Path) else other


def _from_nibabel(image: Any) -> tuple[Tensor, Grid]:
    """Its file is read here, not in another process: the user has opened it already."""
    check_memory(math.prod(image.shape), np.dtype(np.float64).itemsize)
    with reading("nibabel", "a whole image", (Exception,)):  # its formats raise errors of any kind
        array = np.asanyarray(image.dataobj)
        unit = unit_of(image.header.get_xyzt_units()[0]) if hasattr(image.header, "get_xyzt_units") else None
        affine = in_mm(image.affine, unit or "mm")  # which is in the unit of the file
    volume, grid = _from_array(array, affine)
    return volume, replace(grid, unit=unit or "mm")


def _from_array(data: Any, affine: NDArray[np.float64]) -> tuple[Tensor, Grid]:
    if isinstance(data, Tensor):
        with reading("the tensor", "a dense one", (TypeError, RuntimeError)):
            data = data.detach().cpu()
            data = (data.float() if data.dtype == torch.bfloat16 else data).numpy()  # which has no such type
    array = data
    if not isinstance(array, np.ndarray):
        raise InputError(
            f"expected a path, an array, a tensor or an image of nibabel or SimpleITK, got a {type(data).__name__}"
        )
    given = array.shape
    if array.ndim == 5 and array.shape[:2] == (1, 1):
        array = array[0, 0]
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3 or not array.size:
        raise InputError(f"expected a 3D image, got data of shape {given}")
    height, width, depth = array.shape
    return to_tensor(array)[None, None], Grid((height, width, depth), affine)
