"""Images and displacements as ITK knows them: LPS millimeters, for 3D Slicer, ANTs and whatever else is built on it.

SimpleITK is imported where it is first needed, here and in ``itk_files.py`` alone: registering NIfTI files needs none.
ITK's transforms take a fixed point to a moving point, as ours do; only axes, unit and the place of the components differ.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mcbo.core.errors import InputError, ShapeError
from mcbo.core.types import Displacement, Shape
from mcbo.geometry.grid import Grid, check_lives_on
from mcbo.io.nifti import to_tensor

if TYPE_CHECKING:
    import SimpleITK as sitk

LPS = np.diag((-1.0, -1.0, 1.0, 1.0))
"""From RAS to LPS millimeters, and back."""


def grid_of(image: "sitk.Image") -> Grid:
    """Where a SimpleITK image lies."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return Grid(_shape(image.GetSize()), LPS @ affine)


def from_sitk(image: "sitk.Image") -> tuple[Tensor, Grid]:
    """A 3D SimpleITK image as ``(1, C, H, W, D)`` in its type of numbers, and its grid.

    Raises:
        InputError: if it is not 3D, or complex.
    """
    import SimpleITK as sitk

    if image.GetDimension() != 3:
        raise InputError(f"image: expected 3 dimensions, got {image.GetDimension()}")
    array = sitk.GetArrayFromImage(image)
    if array.dtype.kind not in "biuf":
        raise InputError(f"image: expected one number per voxel, got {image.GetPixelIDTypeAsString()}")
    array = array.reshape(*array.shape[:3], -1).transpose(3, 2, 1, 0)
    return to_tensor(array)[None], grid_of(image)


def to_sitk(volume: Tensor, grid: Grid) -> "sitk.Image":
    """A volume ``(1, C, H, W, D)`` as a SimpleITK image; of vectors if C is more than 1.

    Raises:
        ShapeError: if it does not live on the grid.
    """
    import SimpleITK as sitk

    if volume.dim() != 5 or tuple(volume.shape[2:]) != grid.shape:
        raise ShapeError(f"image: expected a volume of shape {(1, 1, *grid.shape)}, got {tuple(volume.shape)}")
    array = np.ascontiguousarray(volume[0].cpu().numpy().transpose(3, 2, 1, 0))
    image = sitk.GetImageFromArray(array if len(volume[0]) > 1 else array[..., 0], isVector=len(volume[0]) > 1)
    affine = LPS @ grid.affine
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / np.array(grid.spacing_mm)).ravel().tolist())
    return image


def to_vectors(displacement: Displacement, grid: Grid, *, dtype: torch.dtype = torch.float32) -> "sitk.Image":
    """A displacement as an image of vectors: LPS, mm, fixed to moving.

    Args:
        displacement: ``(1, 3, H, W, D)`` voxels.
        grid: of the fixed image.
        dtype: of the vectors; float64 for a transform.

    Raises:
        ShapeError: if it does not live on the grid.
    """
    check_lives_on(displacement, grid)
    matrix = torch.from_numpy((LPS @ grid.affine)[:3, :3]).to(displacement)
    return to_sitk(torch.einsum("ij,bjhwd->bihwd", matrix, displacement).to(dtype), grid)


def from_vectors(image: "sitk.Image") -> tuple[Displacement, Grid]:
    """What ``to_vectors`` made, or any other program: ``(1, 3, H, W, D)`` float32 voxels and the grid.

    Raises:
        InputError: if it is not an image of three finite numbers a voxel.
    """
    vectors, grid = from_sitk(image)
    if vectors.shape[1] != 3:
        raise InputError(f"expected three numbers a voxel, found {vectors.shape[1]}")
    if not torch.isfinite(vectors).all():
        raise InputError("expected finite vectors, found some that are NaN or infinite")
    matrix = torch.from_numpy(np.linalg.inv((LPS @ grid.affine)[:3, :3])).to(torch.float32)
    return torch.einsum("ij,bjhwd->bihwd", matrix, vectors.float()), grid


def to_transform(displacement: Displacement, grid: Grid) -> "sitk.DisplacementFieldTransform":
    """A displacement ``(1, 3, H, W, D)``, voxels of the fixed grid, as an ITK transform."""
    import SimpleITK as sitk

    return sitk.DisplacementFieldTransform(to_vectors(displacement, grid, dtype=torch.float64))


def from_transform(transform: "sitk.Transform", fixed: Grid | None) -> tuple[Displacement, Grid]:
    """Any 3D ITK transform as a displacement.

    Args:
        transform: fixed to moving, as ITK's registration and resampling have it.
        fixed: the grid to have it on; may be none for a displacement field, which has its own.

    Raises:
        InputError: if it is not 3D, or needs a grid.
    """
    import SimpleITK as sitk

    if transform.GetDimension() != 3:
        raise InputError(f"expected a transform of 3 dimensions, found {transform.GetDimension()}")
    simple = transform
    if isinstance(simple, sitk.CompositeTransform) and simple.GetNumberOfTransforms() == 1:
        simple = simple.GetNthTransform(0)
    if fixed is None:
        if not isinstance(simple, sitk.DisplacementFieldTransform):
            raise InputError(f"a {simple.GetName()} has no grid of its own: expected --reference with the fixed image")
        return from_vectors(simple.GetDisplacementField())
    like = to_sitk(torch.zeros((1, 1, 1, 1, 1)), Grid((1, 1, 1), fixed.affine))
    sampler = sitk.TransformToDisplacementFieldFilter()
    sampler.SetReferenceImage(like)
    sampler.SetSize(fixed.shape)
    sampler.SetOutputPixelType(sitk.sitkVectorFloat64)
    return from_vectors(sampler.Execute(transform))[0], fixed


def _shape(size: Sequence[int]) -> Shape:
    height, width, depth = size
    return int(height), int(width), int(depth)
