"""Known displacements, on every n-th voxel, and how far a result is from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcbo.core.errors import InputError
from mcbo.core.field import format_shape, shape_of
from mcbo.core.types import Displacement, Shape
from mcbo.dataset.learn2reg import Case
from mcbo.geometry.mask import field_of_view
from mcbo.io.nifti import read_image
from mcbo.io.npz import read_array
from mcbo.io.source import File

ARRAY = "displacement"
"""Name of the array in a truth's file."""


@dataclass(frozen=True)
class Truth:
    """The known displacement of a case, on the voxels 0, n, 2n, … of each axis.

    Attributes:
        displacement: ``(h, w, d, 3)`` float32 voxels, fixed to moving.
        seen: ``(h, w, d)``, true inside the fixed image's field of view.
        step: n.
    """

    displacement: NDArray[np.float32]
    seen: NDArray[np.bool_]
    step: int

    def mean_error(self, displacement: Displacement, spacing_mm: Sequence[float] | NDArray[np.float64]) -> float:
        """Mean distance from the truth over what is seen, mm.

        Args:
            displacement: ``(1, 3, H, W, D)`` voxels.
            spacing_mm: voxel size along axes 0, 1, 2.
        """
        n = self.step
        found = displacement[0, :, ::n, ::n, ::n].movedim(0, -1).cpu().numpy()
        difference = (found - self.displacement)[self.seen] * np.asarray(spacing_mm, dtype=np.float64)
        return float(np.linalg.norm(difference, axis=-1).mean())


def read_truths(folder: Path, cases: Sequence[Case], *, required: bool) -> dict[str, Truth]:
    """The truths ``CASE.npz`` that a folder has, by the case's name.

    Args:
        folder: it need not be there.
        cases: whose truths.
        required: refuse a folder that has none.

    Raises:
        InputError: if one is not what it has to be, or none is there although required.
    """
    paths = {case.name: folder / f"{case.name}.npz" for case in cases}
    truths = {case.name: read_truth(paths[case.name], case.fixed) for case in cases if paths[case.name].is_file()}
    if required and not truths:
        raise InputError(f"{folder}: expected a known displacement CASE.npz of a chosen case, found none")
    return truths


def read_truth(path: Path, fixed: File) -> Truth:
    """Reads a known displacement. Its step follows from its shape and that of the fixed image.

    Args:
        path: ``.npz`` whose array ``displacement`` is ``(h, w, d, 3)`` voxels.
        fixed: the fixed image.

    Raises:
        InputError: if either is not what it has to be.
    """
    displacement = np.asarray(read_array(path, f"an .npz with an array {ARRAY!r}", name=ARRAY), dtype=np.float32)
    volume = read_image(fixed).volume
    step = _step(displacement.shape, shape_of(volume))
    if step is None:
        raise InputError(
            f"{path}: expected every n-th voxel of {format_shape(shape_of(volume))} with three components each, "
            f"found an array of shape {displacement.shape}"
        )
    if not np.isfinite(displacement).all():
        raise InputError(f"{path}: expected finite displacements, found some that are NaN or infinite")
    return Truth(displacement, field_of_view(volume)[0, 0, ::step, ::step, ::step].numpy(), step)


def _step(found: tuple[int, ...], shape: Shape) -> int | None:
    """The smallest n for which every n-th voxel of ``shape`` makes an array of that shape."""
    steps = range(1, max(shape) + 1)
    return next((n for n in steps if found == (*(len(range(0, size, n)) for size in shape), 3)), None)
