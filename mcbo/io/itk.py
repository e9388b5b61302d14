"""Images and displacements in ITK's convention, LPS millimeters; its transforms take fixed to moving points, as ours do.

SimpleITK is imported only where it is needed: registering NIfTI files works without it.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.errors import InputError, ShapeError
from mcbo.core.types import Displacement
from mcbo.geometry.grid import Grid, check_lives_on
from mcbo.io.nifti import to_tensor

if TYPE_CHECKING:
    import SimpleITK as sitk

LPS = np.diag((-1.0, -1.0, 1.0, 1.0))
"""Between RAS and LPS millimeters."""


def grid_of(image: "sitk.Image") -> Grid:
    """The grid of a SimpleITK image."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return Grid(image.GetSize(), LPS @ affine)


def from_sitk(image: "sitk.Image", *, numbers: int = 1) -> tuple[Tensor, Grid]:
    """A 3D SimpleITK image as ``(1, numbers, H, W, D)`` and its grid; raises ``InputError`` if it is anything else."""
    import SimpleITK as sitk

    if image.GetDimension() != 3:
        raise InputError(f"expected a 3D image, found {image.GetDimension()} dimensions")
    if image.GetNumberOfComponentsPerPixel() != numbers:
        expected = "one number" if numbers == 1 else f"{numbers} numbers"
        raise InputError(f"expected {expected} per voxel, found {image.GetNumberOfComponentsPerPixel()}")
    array = sitk.GetArrayFromImage(image)
    return to_tensor(array.reshape(*array.shape[:3], -1).transpose(3, 2, 1, 0))[None], grid_of(image)


def to_sitk(volume: Tensor, grid: Grid) -> "sitk.Image":
    """A volume ``(1, C, H, W, D)`` as a SimpleITK image, of vectors if C > 1; raises ``ShapeError`` if the grid differs."""
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
    """A displacement ``(1, 3, H, W, D)``, voxels of the fixed grid, as an image of vectors: LPS, mm, fixed to moving.

    Raises:
        ShapeError: if the grid has another shape.
    """
    check_lives_on(displacement, grid)
    matrix = torch.from_numpy((LPS @ grid.affine)[:3, :3]).to(displacement)
    return to_sitk(torch.einsum("ij,bjhwd->bihwd", matrix, displacement).to(dtype), grid)


def from_vectors(image: "sitk.Image") -> tuple[Displacement, Grid]:
    """An image of finite LPS vectors in mm as ``(1, 3, H, W, D)`` float32 voxels, and its grid; else raises ``InputError``."""
    vectors, grid = from_sitk(image, numbers=3)
    if not torch.isfinite(vectors).all():
        raise InputError("expected finite vectors, found some that are NaN or infinite")
    matrix = torch.from_numpy(np.linalg.inv((LPS @ grid.affine)[:3, :3])).to(torch.float32)
    return torch.einsum("ij,bjhwd->bihwd", matrix, vectors.float()), grid


def to_transform(displacement: Displacement, grid: Grid) -> "sitk.DisplacementFieldTransform":
    """A displacement ``(1, 3, H, W, D)``, voxels of the fixed grid, as an ITK transform."""
    import SimpleITK as sitk

    return sitk.DisplacementFieldTransform(to_vectors(displacement, grid, dtype=torch.float64))


def matrix_of_transform(transform: "sitk.Transform") -> NDArray[np.float64]:
    """The matrix ``(4, 4)`` of a linear 3D transform of ITK, LPS mm; raises ``InputError`` for any other."""
    if transform.GetDimension() != 3 or not transform.IsLinear():
        raise InputError(
            f"expected an affine transform of 3 dimensions, found a {transform.GetName()} of {transform.GetDimension()}; "
            "`compose` combines a displacement field with a result"
        )
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([transform.TransformPoint(axis) for axis in np.eye(3).tolist()]).T - origin[:, None]
    matrix[:3, 3] = origin
    return matrix


def from_transform(transform: "sitk.Transform", fixed: Grid | None) -> tuple[Displacement, Grid]:
    """Any 3D ITK transform, fixed to moving, as a displacement on the fixed grid; a displacement field may keep its own.

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
