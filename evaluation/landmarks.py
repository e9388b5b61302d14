"""Reads landmarks."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import EvaluationError, shown
from evaluation.files import read_text

MAX_COORDINATE = 1e6
"""Voxels from the origin. Points of the moving image may lie outside of it, but no image is as large as that."""

_NUMBER = re.compile(r"\s*[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,4})?\s*", re.ASCII)


def read_landmarks(path: Path, *, inside: tuple[int, int, int] | None = None) -> NDArray[np.float64]:
    """``(n, 3)`` voxels from a CSV without header, three numbers a line, separated by commas.

    Args:
        path: the CSV.
        inside: shape of a volume that the points have to lie in (up to the outer faces of its voxels), if any.

    Raises:
        EvaluationError: if it is not that.
    """
    text = read_text(path, "landmarks")
    if not text.strip():
        raise EvaluationError(f"{path}: expected landmarks, found an empty file")
    if ";" in text:
        raise EvaluationError(f"{path}: expected numbers separated by commas, found semicolons")
    points = []
    for number, line in enumerate(text.rstrip().splitlines(), start=1):
        point = _three_numbers(line)
        if point is None:
            header = "; no header belongs there" if number == 1 else ""
            raise EvaluationError(f"{path}: expected three numbers a line, found {shown(line)} in line {number}{header}")
        if max(map(abs, point)) > MAX_COORDINATE:
            raise EvaluationError(
                f"{path}: expected coordinates of at most {MAX_COORDINATE:g} voxels, found {shown(line)} in line {number}"
            )
        if inside is not None and any(not -0.5 <= x <= n - 0.5 for x, n in zip(point, inside, strict=True)):
            raise EvaluationError(
                f"{path}: expected points inside the volume of {'×'.join(map(str, inside))} voxels, "
                f"found {shown(line)} in line {number}"
            )
        points.append(point)
    return np.array(points)


def _three_numbers(line: str) -> list[float] | None:
    words = line.split(",")
    return list(map(float, words)) if len(words) == 3 and all(map(_NUMBER.fullmatch, words)) else None
