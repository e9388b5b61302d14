"""Where a registration starts: an initial alignment that is given, fitted to landmarks, or of the centers of mass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from mcbo.core.errors import InputError, naming
from mcbo.core.log import log
from mcbo.geometry.grid import Grid
from mcbo.geometry.linear_fit import Model, fit_landmarks
from mcbo.geometry.units import MM, symbol_of
from mcbo.io.files import unchanged
from mcbo.io.image_like import Digests
from mcbo.io.initial_transform import check_matrix, read_initial
from mcbo.io.landmarks import read_landmarks
from mcbo.io.microscopy.bigwarp import Side, read_pairs
from mcbo.io.microscopy.physical import to_voxels
from mcbo.methods.world import Placed, centering

_CLOSE_VOXELS, _APART_VOXELS = 2.0, 4.0
"""Pairs as close as the first are never left out; pairs that are further apart on average than the last fit badly."""

Points: TypeAlias = ArrayLike | str | Path
"""Landmarks: a file, or ``(n, 3)`` voxels of their image."""


@dataclass(frozen=True)
class Start:
    """What a registration starts from; at most one of these is given.

    Attributes:
        initial: ``(4, 4)`` from fixed to moving world positions, RAS mm; or a file, see ``read_initial``.
        landmarks: of the fixed and of the moving image, the same points in the same order.
        model: of the transform that is fitted to them.
        center: whether the centers of mass are aligned.
    """

    initial: NDArray[np.generic] | str | Path | None = None
    landmarks: tuple[Points, Points] | None = None
    model: Model = "rigid"
    center: bool = False

    def check(self) -> None:
        """Raises ``InputError`` if more than one is given."""
        if sum((self.initial is not None, self.landmarks is not None, self.center)) > 1:
            raise InputError("expected one of an initial alignment, initial landmarks and center, got several")
        if self.landmarks is None and self.model != "rigid":
            raise InputError("landmark_transform: expected with initial landmarks only, which are not given")
        if self.landmarks is not None and (isinstance(self.landmarks, str | Path) or len(self.landmarks) != 2):
            raise InputError("initial_landmarks: expected two, those of the fixed and of the moving image")

    @property
    def files(self) -> list[Path]:
        """Those that it is read from."""
        given = [self.initial, *(self.landmarks or ())]
        return [Path(one) for one in given if isinstance(one, str | Path)]

    def digests(self, read: Mapping[str, str | None]) -> list[str | None]:
        """Of the files, in that order, from those of all files that were read."""
        return [read.get(str(path)) for path in self.files]


def start_of(start: Start, images: Sequence[Placed], digests: Digests) -> NDArray[np.float64]:
    """The initial alignment, ``(4, 4)`` from fixed to moving, RAS mm; what is read goes into ``digests``.

    Raises:
        InputError: for files, matrices and landmarks that tell none.
    """
    fixed, first, *others = (image.grid for image in images)
    if isinstance(start.initial, str | Path):
        with unchanged(Path(start.initial)) as digests[str(start.initial)]:
            return read_initial(Path(start.initial), fixed, first if all(first.matches(other) for other in others) else None)
    if start.initial is not None:
        return check_matrix(start.initial)
    if start.landmarks is not None:
        return _fitted(start.landmarks, start.model, (fixed, first), digests)
    motion = np.eye(4)
    if start.center:
        motion = centering(images)
        log.info(
            "centers of mass aligned: moved by %s %s",
            np.round(motion[:3, 3] / MM[fixed.unit], 1).tolist(),
            symbol_of(fixed.unit),
        )
    return motion


def _fitted(landmarks: tuple[Points, Points], model: Model, grids: tuple[Grid, Grid], digests: Digests) -> NDArray[np.float64]:
    sides: tuple[Side, Side] = ("fixed", "moving")
    ends = [_in_world(points, grid, side, digests).numpy() for points, grid, side in zip(landmarks, grids, sides, strict=True)]
    named = landmarks[1] if isinstance(landmarks[1], str | Path) else "initial landmarks"
    with naming(str(named)):
        voxel_mm = max(max(grid.spacing_mm) for grid in grids)
        fit = fit_landmarks(*ends, model=model, close=_CLOSE_VOXELS * voxel_mm)
        matrix = check_matrix(fit.matrix)
    unit = grids[0].unit
    before, after = (
        round(float(np.mean(distances)) / MM[unit], 6)
        for distances in (np.linalg.norm(ends[0] - ends[1], axis=1)[fit.fits], fit.distances[fit.fits])
    )
    log.info(
        "initial landmarks (%s, %d pairs): mean distance %.3g %s before, %.3g after",
        model, int(fit.fits.sum()), before, symbol_of(unit), after,
    )  # fmt: skip
    if fit.distances[fit.fits].mean() > _APART_VOXELS * voxel_mm:
        told = "are these the same points in the same order, and in voxels where a table does not say otherwise?"
        log.warning("%s: the landmarks fit badly: %s", named, told)
    for number in np.flatnonzero(~fit.fits):
        log.warning(
            "%s: pair %d was left out: it is %.3g %s from where the others say", named, number + 1,
            fit.distances[number] / MM[unit], symbol_of(unit),
        )  # fmt: skip
    return matrix


def _in_world(points: Points, grid: Grid, side: Side, digests: Digests) -> torch.Tensor:
    """Landmarks ``(n, 3)`` in world mm, RAS, as the grid of their image has it."""
    if isinstance(points, str | Path):
        path = Path(points)
        with unchanged(path) as digests[str(points)]:
            pairs = read_pairs(path)
            if pairs is None:
                return read_landmarks(path).to_world(grid)
            with naming(path):
                return grid.to_world(to_voxels(pairs.points(side), grid))
    try:
        array = torch.from_numpy(np.array(points, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise InputError(f"initial_landmarks: expected points (n, 3) of the {side} image, got {points!r:.80}") from error
    if array.ndim != 2 or array.shape[1] != 3 or not bool(array.isfinite().all()):
        raise InputError(
            f"initial_landmarks: expected finite points (n, 3) of the {side} image, got shape {tuple(array.shape)}"
        )
    return grid.to_world(array)
