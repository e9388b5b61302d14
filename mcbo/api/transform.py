"""A displacement between two grids, as Python users get it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from mcbo.core.errors import InputError, naming
from mcbo.core.field import lengths
from mcbo.core.log import log
from mcbo.core.memory import within_host_memory
from mcbo.core.types import Displacement
from mcbo.geometry.grid import Grid
from mcbo.geometry.inverse import fixed_to_moving, invert, moving_to_fixed
from mcbo.geometry.resample import resample
from mcbo.geometry.units import MM, symbol_of
from mcbo.io.image_like import Geometry, ImageLike, like_given, name_of, to_volume
from mcbo.io.images import as_labels
from mcbo.io.itk import to_transform
from mcbo.io.microscopy.images import selections
from mcbo.io.microscopy.selection import VoxelSize

if TYPE_CHECKING:
    import SimpleITK as sitk

Unit: TypeAlias = Literal["voxel", "mm"]
Direction: TypeAlias = Literal["fixed-to-moving", "moving-to-fixed"]


@dataclass(frozen=True, eq=False)
class Transform:
    """A displacement from fixed to moving, and its grids.

    Attributes:
        tensor: ``(1, 3, H, W, D)`` float32 voxels of the fixed grid, on the CPU.
        fixed: grid of the fixed image.
        moving: grid of the moving image.
    """

    tensor: Displacement
    fixed: Grid
    moving: Grid

    @property
    def displacement(self) -> NDArray[np.float32]:
        """As in Learn2Reg: ``(H, W, D, 3)`` float32 voxels of the fixed grid; see ``types.py``."""
        array: NDArray[np.float32] = self.tensor[0].movedim(0, -1).contiguous().numpy()
        return array

    @property
    def affine(self) -> NDArray[np.float64]:
        """Of the fixed image: voxel to world, RAS mm, ``(4, 4)``."""
        return self.fixed.affine

    def __repr__(self) -> str:
        return f"<mcbo.Transform: {sentence_of(self.tensor, self.fixed)}>"

    @within_host_memory("warp")
    def warp(
        self,
        image: ImageLike,
        *,
        labels: bool = False,
        outside: float = 0.0,
        spacing: Sequence[float] | str | None = None,
        channel: int | None = None,
        time: int | None = None,
        series: str | None = None,
    ) -> Any:
        """Warps an image in the space of the moving image onto the fixed grid.

        Args:
            image: see ``ImageLike``; a bare array lies on the moving image's grid.
            labels: the image holds labels, which stay whole numbers; else values are interpolated.
            outside: the value outside of the image.
            spacing: of a TIFF or OME-Zarr that does not state its voxel size, as for ``mcbo.register``; if None, that of the
                moving image.
            channel: of a TIFF or OME-Zarr with several, counted from 0.
            time: the same of time points.
            series: UID or description of a DICOM series, for a folder with several.

        Returns:
            ``(H, W, D)``, float32, or int32 or int64 for labels: a tensor for a tensor, an image of nibabel or SimpleITK for
            one of these, and an array for anything else.

        Raises:
            InputError: if it is no image, a bare array of another shape than the moving image, or no labels; or if ``outside``
                does not fit their type.
        """
        name = name_of(image, "image")
        if isinstance(image, str | Path):
            (selection,) = selections([Path(image)], spacing=spacing, channel=channel, time=time, series=series)
            default = VoxelSize(self.moving.spacing_mm, self.moving.unit)
            geometry = Geometry(selection=replace(selection, default_spacing=default))
        elif any(value is not None for value in (spacing, channel, time, series)):
            raise InputError(f"{name}: expected no spacing, channel, time or series of an image that is no path")
        else:
            geometry = Geometry(affine=self.moving.affine)
        volume, grid = to_volume(image, name, geometry)
        if isinstance(image, np.ndarray | torch.Tensor) and grid.shape != self.moving.shape:
            raise InputError(
                f"{name}: expected the shape of the moving image, {self.moving.shape}, or an affine beside the array, "
                f"got {grid.shape}"
            )
        mode: Literal["label", "linear"] = "label" if labels else "linear"
        with naming(name):
            volume = as_labels(volume) if labels else volume
            warped = resample(volume, grid, self.fixed, displacement=self.tensor, mode=mode, outside=outside)
        return like_given(warped, self.fixed, image)

    @within_host_memory("warp_points")
    def warp_points(
        self, points: ArrayLike, *, unit: Unit = "voxel", direction: Direction = "fixed-to-moving"
    ) -> NDArray[np.float64]:
        """Maps points of one image to the other.

        Args:
            points: ``(N, 3)``.
            unit: ``voxel``, of the image that the points lie in, counted from 0 (those returned: of the other image); or
                ``mm``, world, RAS.
            direction: ``fixed-to-moving`` for points of the fixed image; ``moving-to-fixed`` for points of the moving one.

        Returns:
            ``(N, 3)``, in the same unit.

        Raises:
            InputError: for points, units or directions other than these.
        """
        units, directions = get_args(Unit), get_args(Direction)
        if unit not in units or direction not in directions:
            raise InputError(f"expected a unit of {units} and a direction of {directions}, got {unit!r} and {direction!r}")
        try:
            given = torch.from_numpy(np.array(points, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise InputError(f"points: expected finite numbers of shape (N, 3), got {points!r:.80}") from error
        if given.dim() != 2 or given.shape[1] != 3 or not bool(given.isfinite().all()):
            raise InputError(f"points: expected finite numbers of shape (N, 3), got the shape {tuple(given.shape)}")
        start, end, mapped = self.fixed, self.moving, fixed_to_moving
        if direction == "moving-to-fixed":
            start, end, mapped = self.moving, self.fixed, moving_to_fixed
        world = start.to_world(given) if unit == "voxel" else given
        found = mapped(world, self.tensor, self.fixed)
        if bool(found.folded.any()):
            log.warning("%d point(s) lie in folds of the displacement; their inverse is not unique", int(found.folded.sum()))
        return (end.to_voxels(found.world) if unit == "voxel" else found.world).numpy()

    @within_host_memory("inverse")
    def inverse(self) -> "Transform":
        """From moving to fixed, on the moving image's grid. A warning says how much of it lies in folds of this one."""
        found = invert(self.tensor, self.fixed, self.moving)
        if found.folded:
            log.warning("inverse: %.2f %% of its voxels lie in folds of the displacement: not unique there", 100 * found.folded)
        return Transform(found.displacement, fixed=self.moving, moving=self.fixed)

    @within_host_memory("to_itk")
    def to_itk(self) -> "sitk.DisplacementFieldTransform":
        """For SimpleITK: LPS mm, from fixed to moving, as ``sitk.Resample`` takes it."""
        return to_transform(self.tensor, self.fixed, self.moving)


def sentence_of(displacement: Displacement, grid: Grid) -> str:
    """``96×80×88 voxels of 1×1×1 mm, moved by 3.1 mm on average, 7.4 mm at most``, in the unit of the fixed image."""
    scale, unit = MM[grid.unit], symbol_of(grid.unit)
    spacing = [size / scale for size in grid.spacing_mm]
    moved = lengths(displacement * displacement.new_tensor(spacing).view(1, 3, 1, 1, 1))
    shape, sizes = ("×".join(f"{number:.3g}" for number in numbers) for numbers in (grid.shape, spacing))
    return f"{shape} voxels of {sizes} {unit}, moved by {moved.mean():.3g} {unit} on average, {moved.max():.3g} {unit} at most"
