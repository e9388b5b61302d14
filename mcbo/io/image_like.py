"""Images as the Python API takes them: paths, arrays, tensors, images of nibabel and SimpleITK."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.errors import InputError
from mcbo.geometry.grid import Grid
from mcbo.io.files import reading
from mcbo.io.formats.format import check_memory
from mcbo.io.formats.registry import needs_spacing
from mcbo.io.images import positive_sizes, read_any
from mcbo.io.initial_transform import matrix_of
from mcbo.io.itk import from_sitk
from mcbo.io.nifti import check_finite, check_structure, to_tensor

ImageLike: TypeAlias = Any
"""A path; a numpy array or torch tensor ``(H, W, D)``; a pair of one of these and its affine (voxel to world, RAS mm); an image
of nibabel or SimpleITK."""


@dataclass(frozen=True)
class Geometry:
    """Of arrays without their own: the affine ``(4, 4)``, voxel to world, RAS mm, or the voxel size along axes 0, 1, 2.

    The voxel size is also that of TIFF files, which do not store it: columns, rows, slices.
    """

    affine: NDArray[np.generic] | None = None
    spacing_mm: Sequence[float] | None = None

    def matrix(self) -> NDArray[np.float64]:
        """The affine; raises ``InputError`` if both are given, or sizes are not three positive numbers."""
        if self.affine is not None and self.spacing_mm is not None:
            raise InputError("expected affine or spacing, got both")
        if self.affine is not None:
            return matrix_of(self.affine, "an affine as ")
        sizes = (1.0, 1.0, 1.0) if self.spacing_mm is None else positive_sizes(self.spacing_mm)
        if sizes is None:
            raise InputError(f"spacing: expected three positive numbers, got {self.spacing_mm}")
        return np.diag([*sizes, 1.0])


def to_volume(image: ImageLike, name: str, geometry: Geometry) -> tuple[Tensor, Grid]:
    """Any 3D image as ``(1, 1, H, W, D)`` on the CPU, integers as such, and its grid; raises ``InputError`` with its name."""
    if isinstance(image, str | Path):
        return read_any(Path(image), spacing_mm=geometry.spacing_mm if needs_spacing(Path(image)) else None)
    with reading(name, "an image", ()):
        if isinstance(image, tuple) and len(image) == 2:
            return _from_array(image[0], matrix_of(image[1], "beside an array (several images make a list) its affine as "))
        if hasattr(image, "GetDirection"):  # of SimpleITK
            return from_sitk(image)
        if hasattr(image, "dataobj"):  # of nibabel
            return _from_nibabel(image)
        return _from_array(image, geometry.matrix())


def to_intensities(image: ImageLike, name: str, geometry: Geometry) -> tuple[Tensor, Grid]:
    """``to_volume`` in float32; raises ``InputError`` also for intensities that are not finite, or all the same."""
    volume, grid = to_volume(image, name, geometry)
    volume = volume.float()
    check_finite(volume, name)
    check_structure(volume, name)
    return volume, grid


def name_of(image: ImageLike, other: str) -> str:
    """The path of an image; another name if it has none."""
    return str(image) if isinstance(image, str | Path) else other


def _from_nibabel(image: Any) -> tuple[Tensor, Grid]:
    """Its file is read here, not in another process: the user has opened it already."""
    check_memory(math.prod(image.shape), np.dtype(np.float64).itemsize)
    with reading("nibabel", "a whole image", (Exception,)):  # its formats raise errors of any kind
        array, affine = np.asanyarray(image.dataobj), np.asarray(image.affine, dtype=np.float64)
    return _from_array(array, affine)


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
