"""A displacement with the two grids it stands between, as one has it in Python."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from mcbo.core.errors import InputError
from mcbo.core.log import log
from mcbo.core.types import Displacement
from mcbo.geometry.grid import Grid
from mcbo.geometry.inverse import fixed_to_moving, invert, moving_to_fixed
from mcbo.geometry.resample import resample
from mcbo.io.image_like import Geometry, ImageLike, name_of, to_volume
from mcbo.io.images import as_labels
from mcbo.io.itk import to_transform

if TYPE_CHECKING:
    import SimpleITK as sitk

DIRECTIONS = ("fixed-to-moving", "moving-to-fixed")
UNITS = ("voxel", "mm")


@dataclass(frozen=True, eq=False)
class Transform:
    """From fixed to moving.

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
        """As Learn2Reg has it: ``(H, W, D, 3)`` float32 voxels of the fixed grid; see ``types.py``."""
        array: NDArray[np.float32] = self.tensor[0].movedim(0, -1).contiguous().numpy()
        return array

    @property
    def affine(self) -> NDArray[np.float64]:
        """Of the fixed image: voxel to world, RAS mm, ``(4, 4)``."""
        return self.fixed.affine

    def warp(self, image: ImageLike, *, labels: bool = False, outside: float = 0.0) -> NDArray[np.generic]:
        """An image that lies as the moving image does, brought onto the fixed grid.

        Args:
            image: see ``ImageLike``; a bare array lies on the moving image's grid.
            labels: keep whole numbers; else values are interpolated.
            outside: the value where the image says nothing.

        Returns:
            ``(H, W, D)``, float32, or int32 or int64 for labels.

        Raises:
            InputError: if it is no image, a bare array of another shape than the moving image, or no labels; or if ``outside``
                is no value of their kind.
        """
        name = name_of(image, "image")
        volume, grid = to_volume(image, name, Geometry(affine=self.moving.affine))
        if isinstance(image, np.ndarray | torch.Tensor) and grid.shape != self.moving.shape:
            raise InputError(
                f"{name}: expected the shape of the moving image, {self.moving.shape}, or an affine beside the array, "
                f"got {grid.shape}"
            )
        mode: Literal["label", "linear"] = "label" if labels else "linear"
        try:
            volume = as_labels(volume) if labels else volume
            warped = resample(volume, grid, self.fixed, displacement=self.tensor, mode=mode, outside=outside)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        array: NDArray[np.generic] = warped[0, 0].numpy()
        return array

    def warp_points(
        self,
        points: ArrayLike,
        *,
        unit: Literal["voxel", "mm"] = "voxel",
        direction: Literal["fixed-to-moving", "moving-to-fixed"] = "fixed-to-moving",
    ) -> NDArray[np.float64]:
        """Where points of one image lie in the other.

        Args:
            points: ``(N, 3)``.
            unit: ``voxel``, of the image they lie in, counted from 0 (the answer: of the other image); or ``mm``, world, RAS.
            direction: ``fixed-to-moving`` for points of the fixed image; ``moving-to-fixed`` for points of the moving one.

        Returns:
            ``(N, 3)``, in the same unit.

        Raises:
            InputError: for points, a unit or a direction that is none.
        """
        if unit not in UNITS or direction not in DIRECTIONS:
            raise InputError(f"expected a unit of {UNITS} and a direction of {DIRECTIONS}, got {unit!r} and {direction!r}")
        try:
            given = torch.from_numpy(np.array(points, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise InputError(f"points: expected finite numbers of shape (N, 3), got {points!r:.80}") from error
        if given.dim() != 2 or given.shape[1] != 3 or not bool(given.isfinite().all()):
            raise InputError(f"points: expected finite numbers of shape (N, 3), got the shape {tuple(given.shape)}")
        start, end = (self.fixed, self.moving) if direction == DIRECTIONS[0] else (self.moving, self.fixed)
        world = start.to_world(given) if unit == "voxel" else given
        found = (fixed_to_moving if direction == DIRECTIONS[0] else moving_to_fixed)(world, self.tensor, self.fixed)
        if bool(found.folded.any()):
            log.warning("%d point(s) have no one answer, because the displacement folds there", int(found.folded.sum()))
        return (end.to_voxels(found.world) if unit == "voxel" else found.world).numpy()

    def inverse(self) -> "Transform":
        """From moving to fixed: a displacement on the moving image's grid. Where the given one folds, a warning tells."""
        found = invert(self.tensor, self.fixed, self.moving)
        if found.folded:
            log.warning("inverse: %.2f %% of its voxels have no one fixed point: trust none there", 100 * found.folded)
        return Transform(found.displacement, fixed=self.moving, moving=self.fixed)

    def to_itk(self) -> "sitk.DisplacementFieldTransform":
        """For SimpleITK: LPS mm, from fixed to moving, as ``sitk.Resample`` takes it."""
        return to_transform(self.tensor, self.fixed)
