"""Tables of points: which columns hold the coordinates, and of which space, by their names.

Sources: Learn2Reg (no names), napari's writer of points (``index,axis-0,…``), 3D Slicer's export of markups as a table
(``label,r,a,s,…`` or ``label,l,p,s,…``), antsApplyTransformsToPoints (``x,y,z,t,…``, LPS).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mcbo.core.errors import InputError

Space: TypeAlias = Literal["table", "RAS", "LPS"]
"""The convention of a file's numbers: voxels along axes 0, 1, 2 unless the user says otherwise; or world millimeters."""

MAX_COORDINATE = 1e6
"""Voxels or millimeters from the origin; no image is as large as that."""

_SPACES: dict[tuple[str, str, str], Space] = {
    ("x", "y", "z"): "table",
    ("i", "j", "k"): "table",
    ("axis-0", "axis-1", "axis-2"): "table",
    ("r", "a", "s"): "RAS",
    ("l", "p", "s"): "LPS",
}

_NUMBER = re.compile(r"\s*[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,4})?\s*", re.ASCII)

_PANDAS_NAMES = ["0", "1", "2"]
"""What pandas writes above an array without names."""

_REMEDY = (
    "a table has three columns of voxel coordinates, or a first line that names its columns: x,y,z, i,j,k or "
    "axis-0,axis-1,axis-2 in voxels; r,a,s or l,p,s in mm; x,y,z,t in mm as ANTs has it (LPS)"
)


@dataclass(frozen=True)
class Layout:
    """How to read a table.

    Attributes:
        space: of its numbers.
        columns: where the three coordinates are, counted from 0.
        width: number of columns.
        has_names: whether its first line names them.
        defined: the column that is 0 where a point was never placed, if there is one.
        time: the column that is 0 in tables of ANTs, for points in space.
    """

    space: Space
    columns: tuple[int, int, int]
    width: int
    has_names: bool
    defined: int | None = None
    time: int | None = None


def layout_of(first: Sequence[str]) -> Layout:
    """The layout that the first line of a table tells; raises ``InputError`` if that is not one of those above."""
    if all(_NUMBER.fullmatch(cell) for cell in first):
        if list(first) == _PANDAS_NAMES:
            raise InputError(f"{_found(first)}: numbers of columns, as pandas writes them: write the table with header=False")
        if len(first) != 3:
            raise InputError(f"{_found(first)}: {_REMEDY}")
        return Layout("table", (0, 1, 2), 3, has_names=False)
    names = [cell.strip().lower() for cell in first]
    known = [triple for triple in _SPACES if set(triple) <= set(names)]
    if len(known) != 1 or any(names.count(name) > 1 for name in known[0]):
        several = " more than one set of coordinates" if known else ""
        raise InputError(f"{_found(first)}{several}: {_REMEDY}")
    if "axis-3" in names:
        raise InputError(f"{_found(first)}, points of more than three axes: save points of a 3D layer")
    first_column, second, third = (names.index(name) for name in known[0])
    time = names.index("t") if known[0] == ("x", "y", "z") and "t" in names else None
    return Layout(
        _SPACES[known[0]] if time is None else "LPS",
        (first_column, second, third),
        len(names),
        has_names=True,
        defined=names.index("defined") if "defined" in names else None,
        time=time,
    )


def point_of(row: Sequence[str], layout: Layout, number: int) -> list[float] | None:
    """The coordinates in a line of a table, that of the point with this number; None if it was never placed.

    Raises:
        InputError: if it has not as many cells as the first line, or they are not finite numbers.
    """
    found = f"found {str(list(row))[:80]}"
    if len(row) != layout.width:
        due = f"{layout.width} columns, as the first line names" if layout.has_names else "three finite numbers"
        raise InputError(f"point {number}: expected {due}, {found}")
    if layout.defined is not None and row[layout.defined].strip() == "0":
        return None
    cells = [row[column] for column in layout.columns]
    if not all(map(_NUMBER.fullmatch, cells)):
        raise InputError(f"point {number}: expected three finite numbers, {found}")
    point = list(map(float, cells))
    if max(map(abs, point)) > MAX_COORDINATE:
        raise InputError(f"point {number}: expected coordinates of at most {MAX_COORDINATE:g}, {found}")
    if layout.time is not None and not _is_zero(row[layout.time]):
        raise InputError(f"point {number}: expected t to be 0, as ANTs has it for points in LPS millimeters, {found}")
    return point


def _is_zero(cell: str) -> bool:
    return _NUMBER.fullmatch(cell) is not None and float(cell) == 0


def _found(first: Sequence[str]) -> str:
    return f"line 1: expected three numbers or three names, found {','.join(first)[:80]!r}"
