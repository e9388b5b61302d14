"""Reads landmarks: Learn2Reg's tables of voxel coordinates, and tables whose first line names their columns."""

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import EvaluationError, shown
from evaluation.files import read_text
from evaluation.images import read_affine

MAX_COORDINATE = 1e6
"""Voxels, or millimeters in the world. Points of the moving image may lie outside it, but no image is as large as that."""

_NUMBER = re.compile(r"\s*[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,4})?\s*", re.ASCII)

_VOXELS = (("x", "y", "z"), ("i", "j", "k"), ("axis-0", "axis-1", "axis-2"))

_TO_RAS = {("r", "a", "s"): (1, 1, 1), ("l", "p", "s"): (-1, -1, 1)}
"""Columns in millimeters (3D Slicer), and the signs that make them RAS."""

_REMEDY = (
    "write three voxel coordinates a line, or name the columns in the first line: x,y,z, i,j,k or axis-0,axis-1,axis-2 in "
    "voxels; r,a,s or l,p,s in mm; x,y,z,t in mm as ANTs has it (LPS)"
)


@dataclass(frozen=True)
class _Columns:
    """Of a table.

    Attributes:
        at: where the coordinates are, counted from 0.
        count: how many columns there are.
        named: whether the first line has their names.
        to_ras: signs that make millimeters RAS; None for voxels.
        defined: the column that is 0 where a point was never placed, if there is one.
        time: the column that has to be 0 in tables of ANTs.
    """

    at: tuple[int, ...] = (0, 1, 2)
    count: int = 3
    named: bool = False
    to_ras: tuple[int, int, int] | None = None
    defined: int | None = None
    time: int | None = None


def read_landmarks(path: Path, *, inside: tuple[int, int, int] | None = None, image: Path | None = None) -> NDArray[np.float64]:
    """``(n, 3)`` voxels from a CSV: three numbers a line, separated by commas, or columns named by the first line.

    Args:
        path: the CSV.
        inside: shape of a volume in which the points have to lie (up to the outer faces of its voxels), if any.
        image: of the points, whose affine makes voxels of millimeters.

    Raises:
        EvaluationError: for any other content.
    """
    text = read_text(path, "landmarks")
    if not text.strip():
        raise EvaluationError(f"{path}: expected landmarks, found an empty file")
    try:
        rows = list(csv.reader(io.StringIO(text.rstrip(), newline=None), strict=True))
    except csv.Error as error:
        raise EvaluationError(f"{path}: expected three numbers a line, found text that is no table: {error}") from error
    columns = _columns(rows[0], path)
    if not columns.named:  # the challenge's, which quotes nothing
        rows = [line.split(",") for line in text.rstrip().splitlines()]
    start = 1 if columns.named else 0
    points = np.array([_point(row, columns, path, n) for n, row in enumerate(rows[start:], start + 1)], dtype=np.float64)
    if not points.size:
        raise EvaluationError(f"{path}: expected landmarks, found no line but that of names")
    if columns.to_ras is not None:
        points = _to_voxels(points * columns.to_ras, path, image)
    if inside is not None:
        outside = ((points < -0.5) | (points > np.array(inside) - 0.5)).any(axis=1)
        for n in np.flatnonzero(outside):
            size, found = "×".join(map(str, inside)), f"found {shown(','.join(rows[start + n]))} in line {start + n + 1}"
            raise EvaluationError(f"{path}: expected points inside the volume of {size} voxels, {found}")
    return points


def _columns(first: list[str], path: Path) -> _Columns:
    found = f"found {shown(','.join(first))} in line 1"
    if any(";" in cell for cell in first):
        raise EvaluationError(f"{path}: expected numbers separated by commas, found semicolons")
    if all(map(_NUMBER.fullmatch, first)):
        if first == ["0", "1", "2"]:
            raise EvaluationError(f"{path}: expected three numbers a line, {found}; remove these names, which pandas wrote")
        if len(first) != 3:
            raise EvaluationError(f"{path}: expected three numbers a line, {found}; {_REMEDY}")
        return _Columns()
    names = [cell.strip().lower() for cell in first]
    known = [triple for triple in (*_VOXELS, *_TO_RAS) if set(triple) <= set(names)]
    if len(known) != 1 or any(names.count(name) > 1 for name in known[0]) or "axis-3" in names:
        raise EvaluationError(f"{path}: expected three numbers a line, {found}; remove the header, if it is one, or {_REMEDY}")
    time = names.index("t") if known[0] == ("x", "y", "z") and "t" in names else None
    return _Columns(
        tuple(names.index(name) for name in known[0]),
        len(names),
        named=True,
        to_ras=_TO_RAS.get(known[0]) if time is None else (-1, -1, 1),
        defined=names.index("defined") if "defined" in names else None,
        time=time,
    )


def _point(row: list[str], columns: _Columns, path: Path, line: int) -> list[float]:
    found = f"found {shown(','.join(row))} in line {line}"
    if len(row) != columns.count or not all(_NUMBER.fullmatch(row[at]) for at in columns.at):
        named = f" in the columns that line 1 names, of {columns.count}" if columns.named else ""
        raise EvaluationError(f"{path}: expected three numbers a line{named}, {found}")
    point = [float(row[at]) for at in columns.at]
    if max(map(abs, point)) > MAX_COORDINATE:
        raise EvaluationError(f"{path}: expected coordinates of at most {MAX_COORDINATE:g} voxels, {found}")
    if columns.defined is not None and row[columns.defined].strip() == "0":  # points of two files correspond by their line
        raise EvaluationError(f"{path}: expected points that were placed, {found}; remove it from both files")
    if columns.time is not None and not (_NUMBER.fullmatch(row[columns.time]) and float(row[columns.time]) == 0):
        raise EvaluationError(f"{path}: expected t to be 0, as ANTs has it for points in LPS millimeters, {found}")
    return point


def _to_voxels(world: NDArray[np.float64], path: Path, image: Path | None) -> NDArray[np.float64]:
    """Voxels of an image, from RAS mm."""
    if image is None:
        raise EvaluationError(f"{path}: expected voxel coordinates, found columns in mm")
    inverse = np.linalg.inv(read_affine(image))
    return np.asarray(world @ inverse[:3, :3].T + inverse[:3, 3])
