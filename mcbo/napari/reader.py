"""Displacements in NIfTI as layers of vectors. Files with anything else are left to other readers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mcbo.core.errors import McboError
from mcbo.geometry.grid import Grid
from mcbo.geometry.units import MM
from mcbo.io.nifti import read_displacement
from mcbo.io.nifti_header import Intent, read_header
from mcbo.napari.layers import LayerData, vectors_layer

Paths: TypeAlias = str | Sequence[str]


def get_reader(path: Paths) -> Callable[[Paths], list[LayerData]] | None:
    """A reader for one displacement, or one for each of several; None if any of the files is something else."""
    files = _files(path)
    return read_layers if files and all(is_displacement(file) for file in files) else None


def read_layers(path: Paths) -> list[LayerData]:
    """Reads displacements; raises ``McboError`` if one cannot be read."""
    return [_read(file) for file in _files(path)]


def is_displacement(file: Path) -> bool:
    """Whether a file is a displacement as we write it: ``(H, W, D, 3)`` float32, of no other meaning, and no series in time."""
    try:
        header = read_header(file)
    except McboError:
        return False
    is_plain = header.intent == Intent() and not header.has_time and (header.slope, header.intercept) == (1, 0)
    return is_plain and len(header.shape) == 4 and header.shape[3] == 3 and header.dtype.str[1:] == "f4"


def _files(path: Paths) -> list[Path]:
    return [Path(path)] if isinstance(path, str) else [Path(one) for one in path]


def _read(file: Path) -> LayerData:
    header = read_header(file)
    displacement = read_displacement(file)[0].movedim(0, -1).numpy()
    vectors, settings, kind = vectors_layer(displacement, header.affine, {}, name=file.name, unit=header.unit)
    height, width, depth = displacement.shape[:3]
    turn = _to_closest_ras(Grid((height, width, depth), header.affine))
    vectors = vectors @ turn[:3, :3].T
    vectors[:, 0] += turn[:3, 3]
    affine = np.diag([1 / MM[header.unit]] * 3 + [1.0]) @ header.affine @ np.linalg.inv(turn)
    return vectors, {**settings, "affine": affine, "units": (header.unit,) * 3}, kind


def _to_closest_ras(grid: Grid) -> NDArray[np.float64]:
    """From a grid's voxels to those of the same grid with axes in the order of the world's: ``(4, 4)``.

    napari cannot show slices of layers whose affine swaps axes.
    """
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for axis, letter in enumerate(grid.orientation):
        world = ("RAS" if letter in "RAS" else "LPI").index(letter)
        turn[world, axis] = 1 if letter in "RAS" else -1
        turn[world, 3] = 0 if letter in "RAS" else grid.shape[axis] - 1
    return turn
