"""Images and displacements in ITK's convention, LPS millimeters; its transforms take fixed to moving points, as ours do.

SimpleITK is imported only where it is needed: registering NIfTI files works without it.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.errors import InputError, ShapeError
from mcbo.core.field import shape_of
from mcbo.core.memory import check_fits
from mcbo.core.types import Displacement
from mcbo.geometry.grid import Grid, check_lives_on
from mcbo.io.nifti import to_tensor
from mcbo.io.source import File

if TYPE_CHECKING:
    import SimpleITK as sitk

Affine: TypeAlias = NDArray[np.float64]

LPS = np.diag((-1.0, -1.0, 1.0, 1.0))
"""Between RAS and LPS millimeters."""


def grid_of(image: "sitk.Image") -> Grid:
    """The grid of a SimpleITK image."""
    return grid_from(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def grid_from(size: Sequence[int], spacing: Sequence[float], origin: Sequence[float], direction: Sequence[float]) -> Grid:
    """The grid of a size along columns, rows, slices, a spacing, an origin and directions in LPS mm, as ITK has them."""
    affine = np.eye(4)
    with np.errstate(all="ignore"):  # the grid refuses what is not finite
        affine[:3, :3] = np.reshape(direction, (3, 3)) * np.array(spacing)
    affine[:3, 3] = origin
    height, width, depth = size
    return Grid((height, width, depth), LPS @ affine)


def geometry_of(grid: Grid) -> dict[str, list[float]]:
    """The reverse: spacing, origin and direction, by these names."""
    affine = LPS @ grid.affine
    direction = affine[:3, :3] / np.array(grid.spacing_mm)
    return {"spacing": list(grid.spacing_mm), "origin": affine[:3, 3].tolist(), "direction": direction.ravel().tolist()}


def read_grid(path: File) -> Grid | None:
    """The grid of a 3D image as ITK reads its header; None if it refuses it."""
    import SimpleITK as sitk

    shows = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # it would print what is asked for here
    try:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        direction = np.reshape(reader.GetDirection(), (reader.GetDimension(),) * 2)[:3, :3].ravel().tolist()
        return grid_from(reader.GetSize()[:3], reader.GetSpacing()[:3], reader.GetOrigin()[:3], direction)
    except (RuntimeError, ValueError, ShapeError):
        return None
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shows)


def from_sitk(image: "sitk.Image", *, numbers: int = 1) -> tuple[Tensor, Grid]:
    """A 3D SimpleITK image as ``(1, numbers, H, W, D)`` and its grid; raises ``InputError`` if it is anything else."""
    import SimpleITK as sitk

    if image.GetDimension() != 3:
        raise InputError(f"expected a 3D image, found {image.GetDimension()} dimensions")
    if image.GetPixelID() in _label_maps():  # of which SimpleITK makes no array, but aborts
        found = image.GetPixelIDTypeAsString()
        raise InputError(f"expected one number per voxel, found a {found}: convert it with SimpleITK.LabelMapToLabel")
    if image.GetNumberOfComponentsPerPixel() != numbers:
        expected = "one number" if numbers == 1 else f"{numbers} numbers"
        raise InputError(f"expected {expected} per voxel, found {image.GetNumberOfComponentsPerPixel()}")
    check_fits(8 * math.prod(image.GetSize()) * numbers, "an array of an image")
    array = sitk.GetArrayViewFromImage(image)
    return to_tensor(array.reshape(*array.shape[:3], -1).transpose(3, 2, 1, 0))[None], grid_of(image)


def to_sitk(volume: Tensor, grid: Grid) -> "sitk.Image":
    """A volume ``(1, C, H, W, D)`` as a SimpleITK image, of vectors if C > 1; raises ``ShapeError`` if the grid differs."""
    import SimpleITK as sitk

    if volume.dim() != 5 or tuple(volume.shape[2:]) != grid.shape:
        raise ShapeError(f"image: expected a volume of shape {(1, 1, *grid.shape)}, got {tuple(volume.shape)}")
    array = np.ascontiguousarray(volume[0].cpu().numpy().transpose(3, 2, 1, 0))
    image = sitk.GetImageFromArray(array if len(volume[0]) > 1 else array[..., 0], isVector=len(volume[0]) > 1)
    geometry = geometry_of(grid)
    image.SetSpacing(geometry["spacing"])
    image.SetOrigin(geometry["origin"])
    image.SetDirection(geometry["direction"])
    return image


def to_vectors(
    displacement: Displacement, grid: Grid, moving: Grid | None = None, *, dtype: torch.dtype = torch.float32
) -> "sitk.Image":
    """A displacement ``(1, 3, H, W, D)``, voxels of the fixed grid, as an image of vectors: LPS, mm, fixed to moving.

    Where ITK reads the files of the grids otherwise, the vectors lead from where it has the fixed image to where it has the
    moving one. Without the moving grid, that is taken to be read alike.

    Raises:
        ShapeError: if the grid has another shape.
    """
    check_lives_on(displacement, grid)
    seen = grid.seen_by_itk()
    to_moving = LPS @ (np.eye(4) if moving is None else moving.to_itk()) @ grid.affine
    return to_sitk(_moved(displacement, to_moving, LPS @ seen.affine, dtype=dtype), seen)


def _moved(displacement: Displacement, to_end: Affine, from_start: Affine, *, dtype: torch.dtype) -> Tensor:
    """``E·(p + u) − S·p``, for the voxels p of a displacement u, ``(1, 3, H, W, D)``, and two affines ``(4, 4)``."""
    result = torch.einsum("ij,bjhwd->bihwd", torch.from_numpy(to_end[:3, :3]).to(displacement), displacement).to(dtype)
    rest = torch.from_numpy(to_end - from_start)
    if rest.any():
        for axis, size in enumerate(shape_of(displacement)):
            places = torch.arange(size, dtype=rest.dtype) * rest[:3, axis, None] + (rest[:3, 3, None] if axis == 0 else 0)
            result += places.to(result).view(1, 3, *(size if a == axis else 1 for a in range(3)))
    return result


def to_component_axis(vectors: "sitk.Image") -> "sitk.Image":
    """A 3D image of vectors as one of numbers with a fourth axis, along which the components lie: ``(X, Y, Z, 3)``.

    So grand-challenge.org has displacement fields; three numbers in a voxel are a color there.
    """
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.moveaxis(sitk.GetArrayViewFromImage(vectors), -1, 0), isVector=False)
    direction = np.eye(4)
    direction[:3, :3] = np.reshape(vectors.GetDirection(), (3, 3))
    image.SetSpacing((*vectors.GetSpacing(), 1.0))
    image.SetOrigin((*vectors.GetOrigin(), 0.0))
    image.SetDirection(direction.ravel().tolist())
    return image


def from_vectors(image: "sitk.Image") -> tuple[Displacement, Grid]:
    """An image of finite LPS vectors in mm as ``(1, 3, H, W, D)`` float32 voxels, and its grid; else raises ``InputError``."""
    return from_lps_vectors(*from_sitk(image, numbers=3))


def from_lps_vectors(vectors: Tensor, grid: Grid) -> tuple[Displacement, Grid]:
    """Finite LPS vectors in mm, ``(1, 3, H, W, D)``, as voxels of their grid, and that; else raises ``InputError``."""
    if not torch.isfinite(vectors).all():
        raise InputError("expected finite vectors, found some that are NaN or infinite")
    matrix = torch.from_numpy(np.linalg.inv((LPS @ grid.affine)[:3, :3])).to(torch.float32)
    return torch.einsum("ij,bjhwd->bihwd", matrix, vectors.float()), grid


def to_transform(displacement: Displacement, grid: Grid, moving: Grid | None = None) -> "sitk.DisplacementFieldTransform":
    """A displacement ``(1, 3, H, W, D)``, voxels of the fixed grid, as an ITK transform; see ``to_vectors``."""
    import SimpleITK as sitk

    return sitk.DisplacementFieldTransform(to_vectors(displacement, grid, moving, dtype=torch.float64))


def on_grid(displacement: Displacement, grid: Grid) -> Displacement:
    """A displacement in voxels of a grid as ITK has it, in voxels of the grid itself: to the same places in the world."""
    if grid.in_itk is None:
        return displacement
    return _moved(displacement, np.linalg.inv(grid.affine) @ grid.in_itk, np.eye(4), dtype=displacement.dtype)


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


def _label_maps() -> set[int]:
    import SimpleITK as sitk

    return {sitk.sitkLabelUInt8, sitk.sitkLabelUInt16, sitk.sitkLabelUInt32, sitk.sitkLabelUInt64}
