"""Reads landmarks."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import EvaluationError, shown
from evaluation.files import read_text

MAX_COORDINATE = 1e6
"""Voxels from the origin. Points of the moving image may lie outside it, but no image is as large as that."""

_NUMBER = re.compile(r"\s*[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,4})?\s*", re.ASCII)


def read_landmarks(path: Path, *, inside: tuple[int, int, int] | None = None) -> NDArray[np.float64]:
    """``(n, 3)`` voxels from a CSV without header, three numbers a line, separated by commas.

    Args:
        path: the CSV.
        inside: shape of a volume in which the points have to lie (up to the outer faces of its voxels), if any.

    Raises:
        EvaluationError: for any other content.
    """
    text = read_text(path, "landmarks")
    if not text.strip():
        raise EvaluationError(f"{path}: expected landmarks, found an empty file")
    if ";" in text:
        raise EvaluationError(f"{path}: expected numbers separated by commas, found semicolons")
    points = []
    for number, line in enumerate(text.rstrip().splitlines(), start=1):
        found = f"found {shown(line)} in line {number}"
        words = line.split(",")
        if len(words) != 3 or not all(map(_NUMBER.fullmatch, words)):
            header = "; remove the header, if it is one" if number == 1 else ""
            raise EvaluationError(f"{path}: expected three numbers a line, {found}{header}")
        point = list(map(float, words))
        if max(map(abs, point)) > MAX_COORDINATE:
            raise EvaluationError(f"{path}: expected coordinates of at most {MAX_COORDINATE:g} voxels, {found}")
        if inside is not None and any(not -0.5 <= x <= n - 0.5 for x, n in zip(point, inside, strict=True)):
            size = "×".join(map(str, inside))
            raise EvaluationError(f"{path}: expected points inside the volume of {size} voxels, {found}")
        points.append(point)
    return np.array(points)
