"""What a person may give as an image in Python: paths, arrays, tensors, images of nibabel and SimpleITK."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.errors import InputError, ShapeError
from mcbo.geometry.grid import Grid
from mcbo.io.images import read_any
from mcbo.io.itk import from_sitk
from mcbo.io.nifti import to_tensor

ImageLike: TypeAlias = Any
"""A path; a numpy array or torch tensor ``(H, W, D)``; a pair of one of these and its affine (voxel to world, RAS mm); an image
of nibabel or SimpleITK."""


@dataclass(frozen=True)
class Geometry:
    """Where arrays without any geometry of their own lie.

    Attributes:
        affine: voxel to world, RAS mm, ``(4, 4)``; or
        spacing_mm: voxel size along axes 0, 1, 2 (and of TIFF files, which do not tell theirs: columns, rows, slices).
    """

    affine: NDArray[np.generic] | None = None
    spacing_mm: Sequence[float] | None = None

    def matrix(self) -> NDArray[np.float64]:
        """The affine.

        Raises:
            InputError: if both are given, or sizes are not three positive numbers.
        """
        if self.affine is not None and self.spacing_mm is not None:
            raise InputError("expected affine or spacing, got both")
        if self.affine is not None:
            return matrix_of(self.affine, "an affine")
        try:
            sizes = [1.0, 1.0, 1.0] if self.spacing_mm is None else [float(size) for size in self.spacing_mm]
        except (TypeError, ValueError):
            sizes = []
        if len(sizes) != 3 or not all(0 < size < np.inf for size in sizes):
            raise InputError(f"spacing: expected three positive numbers, got {self.spacing_mm}")
        return np.diag([*sizes, 1.0])


def matrix_of(matrix: Any, name: str) -> NDArray[np.float64]:
    """What should be a matrix of numbers, in float64.

    Raises:
        InputError: if it is something else, such as a second image: several are given as a list.
    """
    try:
        return np.asarray(matrix, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"expected {name} as a 4×4 matrix of numbers, got {matrix!r:.80}") from error


def to_volume(image: ImageLike, name: str, geometry: Geometry) -> tuple[Tensor, Grid]:
    """Any image as a tensor and its grid.

    Args:
        image: see ``ImageLike``.
        name: how errors call it.
        geometry: for arrays without their own, and for TIFF.

    Returns:
        ``(1, 1, H, W, D)``, integers as such, on the CPU.

    Raises:
        InputError: if it is not a 3D image.
    """
    if isinstance(image, str | Path):
        return read_any(Path(image), spacing_mm=geometry.spacing_mm if is_tiff(Path(image)) else None)
    try:
        if isinstance(image, tuple) and len(image) == 2:
            return _from_array(image[0], matrix_of(image[1], "beside an array (several images make a list) its affine"))
        if hasattr(image, "GetDirection"):  # of SimpleITK
            return _one_channel(*from_sitk(image))
        if hasattr(image, "dataobj"):  # of nibabel
            return _from_array(np.asanyarray(image.dataobj), np.asarray(image.affine, dtype=np.float64))
        return _from_array(image, geometry.matrix())
    except (InputError, ShapeError) as error:
        raise InputError(f"{name}: {error}") from error


def to_intensities(image: ImageLike, name: str, geometry: Geometry) -> tuple[Tensor, Grid]:
    """``to_volume`` in float32, of what can be registered.

    Raises:
        InputError: also for intensities that are not finite, or all the same.
    """
    volume, grid = to_volume(image, name, geometry)
    volume = volume.float()
    if not torch.isfinite(volume).all():
        raise InputError(f"{name}: expected finite intensities, found some that are NaN, infinite or beyond float32")
    if volume.min() == volume.max():
        raise InputError(f"{name}: expected an image with structure to register, found only the value {float(volume.min()):g}")
    return volume, grid


def name_of(image: ImageLike, other: str) -> str:
    """The path of an image, or else another name."""
    return str(image) if isinstance(image, str | Path) else other


def is_tiff(path: Path) -> bool:
    """Whether a file is a TIFF, or a folder of them, so that its voxel size has to be told."""
    return path.is_dir() or path.suffix.lower() in (".tif", ".tiff")


def _one_channel(volume: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
    if volume.shape[1] != 1:
        raise InputError(f"expected one number per voxel, found {volume.shape[1]}")
    return volume, grid


def _from_array(data: Any, affine: NDArray[np.float64]) -> tuple[Tensor, Grid]:
    if isinstance(data, Tensor):
        data = data.detach().cpu()
        data = data.float() if data.dtype == torch.bfloat16 else data  # which numpy does not have
    array = data.numpy() if isinstance(data, Tensor) else data
    if not isinstance(array, np.ndarray):
        raise InputError(
            f"expected a path, an array, a tensor or an image of nibabel or SimpleITK, got a {type(data).__name__}"
        )
    if array.dtype.kind not in "biuf":
        raise InputError(f"expected one number per voxel, got data of type {array.dtype}")
    given = array.shape
    if array.ndim == 5 and array.shape[:2] == (1, 1):
        array = array[0, 0]
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3 or not array.size:
        raise InputError(f"expected a 3D image, got data of shape {given}")
    height, width, depth = array.shape
    return to_tensor(array)[None, None], Grid((height, width, depth), affine)
