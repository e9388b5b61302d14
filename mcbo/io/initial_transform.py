"""Initial transforms: a 4×4 matrix or an affine ITK transform, from fixed to moving world positions."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcbo.core.errors import InputError
from mcbo.geometry.grid import FARTHEST_MM, Grid
from mcbo.io.files import reading, regular_size, shown, suffix_of
from mcbo.io.foreign.linear import parse_matrix, read_linear
from mcbo.io.formats.itk_image import check_name
from mcbo.io.itk import LPS
from mcbo.io.itk_files import TRANSFORM_SUFFIXES, read_itk_transform

_MAX_TEXT = 1 << 16


def read_initial(path: Path, fixed: Grid | None = None, moving: Grid | None = None) -> NDArray[np.float64]:
    """Reads an initial transform as a matrix ``(4, 4)``, RAS mm, fixed to moving.

    The file is text with four lines of four numbers, as the result; an affine ITK transform (LPS mm, fixed to moving, as for
    ITK's resampling): ``.tfm``, ``.txt``, ``.h5``, ``.mat``; or one of ``foreign.linear``, of which FLIRT's needs both grids.

    Raises:
        InputError: if it is none of these.
    """
    check_name(path)
    regular_size(path, "an initial transform")
    with reading(path, "an initial transform"):
        matrix = read_linear(path, fixed, moving)
        if matrix is None:
            with path.open("rb") as file:
                head = file.read(_MAX_TEXT)
            is_itk = head.lstrip().startswith(b"#Insight") or suffix_of(path) in set(TRANSFORM_SUFFIXES) - {".txt"}
            matrix = _read_itk(path) if is_itk else parse_matrix(head.decode("latin-1"))
        return check_matrix(matrix)


def check_matrix(matrix: NDArray[np.generic]) -> NDArray[np.float64]:
    """A matrix that can be an initial transform, in float64.

    Raises:
        InputError: if it is not 4×4 and finite with the last row 0 0 0 1, or mirrors or flattens space.
    """
    array = matrix_of(matrix, "")
    if array.shape != (4, 4) or not np.isfinite(array).all() or not np.allclose(array[3], (0, 0, 0, 1), atol=1e-9):
        raise InputError(f"expected a 4×4 matrix of finite numbers whose last row is 0 0 0 1, got {shown(array.tolist())}")
    if np.abs(array).max() > FARTHEST_MM:
        raise InputError(f"expected a transform of numbers up to {FARTHEST_MM:g}, got {array.tolist()}")
    if not np.linalg.det(array[:3, :3]) > 1e-6:
        raise InputError(f"expected a transform that neither mirrors nor flattens space, got {array.tolist()}")
    return array


def matrix_of(matrix: Any, role: str) -> NDArray[np.float64]:
    """A matrix of numbers in float64; raises ``InputError``, naming its role, for anything else, such as a second image."""
    try:
        return np.asarray(matrix, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"expected {role}a 4×4 matrix of numbers, got {matrix!r:.80}") from error


def _read_itk(path: Path) -> NDArray[np.float64]:
    matrix, _ = read_itk_transform(path, {"what": "linear"})
    return np.asarray(LPS @ matrix @ LPS)
