"""Known displacements, given on every n-th voxel, and the distance of a result from them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcbo.core.errors import InputError
from mcbo.core.field import format_shape, shape_of
from mcbo.core.types import Displacement
from mcbo.dataset.learn2reg import Case
from mcbo.geometry.mask import field_of_view
from mcbo.io.nifti import read_image
from mcbo.io.npz import read_array
from mcbo.io.source import File


@dataclass(frozen=True)
class Truth:
    """The known displacement of a case, on the voxels 0, n, 2n, … of each axis.

    Attributes:
        displacement: ``(h, w, d, 3)`` float32 voxels, fixed to moving.
        seen: ``(h, w, d)``, true in the fixed image's field of view.
        step: n.
    """

    displacement: NDArray[np.float32]
    seen: NDArray[np.bool_]
    step: int

    def mean_error(self, displacement: Displacement, spacing_mm: Sequence[float] | NDArray[np.float64]) -> float:
        """Mean distance of a displacement from the truth in the field of view, mm; voxel size along axes 0, 1, 2."""
        n = self.step
        found = displacement[0, :, ::n, ::n, ::n].movedim(0, -1).cpu().numpy()
        difference = (found - self.displacement)[self.seen] * np.asarray(spacing_mm, dtype=np.float64)
        return float(np.linalg.norm(difference, axis=-1).mean())


def read_truths(folder: Path, cases: Sequence[Case], *, required: bool) -> dict[str, Truth]:
    """The truths ``CASE.npz`` in a folder, by case name.

    Raises:
        InputError: if one is invalid, or if truths are ``required`` and the folder has none.
    """
    paths = {case.name: folder / f"{case.name}.npz" for case in cases}
    truths = {case.name: read_truth(paths[case.name], case.fixed) for case in cases if paths[case.name].is_file()}
    if required and not truths:
        raise InputError(f"{folder}: expected a known displacement CASE.npz of a chosen case, found none")
    return truths


def read_truth(path: Path, fixed: File) -> Truth:
    """Reads the array ``displacement``, ``(h, w, d, 3)`` voxels, of an ``.npz``; its shape and the fixed image's give the step.

    Raises:
        InputError: if the array or the image is invalid.
    """
    array = read_array(path, "an .npz with an array 'displacement'", name="displacement")
    displacement = np.asarray(array, dtype=np.float32)
    volume = read_image(fixed).volume
    shape = shape_of(volume)
    steps = (n for n in range(1, max(shape) + 1) if displacement.shape == (*(math.ceil(size / n) for size in shape), 3))
    step = next(steps, None)
    if step is None:
        raise InputError(
            f"{path}: expected every n-th voxel of {format_shape(shape)} with three components each, "
            f"found an array of shape {displacement.shape}"
        )
    if not np.isfinite(displacement).all():
        raise InputError(f"{path}: expected finite displacements, found some that are NaN or infinite")
    return Truth(displacement, field_of_view(volume)[0, 0, ::step, ::step, ::step].numpy(), step)
