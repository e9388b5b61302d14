"""Landmarks of BigWarp: a ``.csv`` without names of columns; each line is a pair of points, one in each image.

The columns are name, active, x, y, z of the moving image, x, y, z of the fixed one, in physical coordinates (``physical.py``).
Source: ``LandmarkTableModel`` of https://github.com/saalfeldlab/bigwarp, whose columns for points not yet placed hold Infinity.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from mcbo.core.errors import InputError
from mcbo.io.files import is_file, reading

Side: TypeAlias = Literal["moving", "fixed"]

MAX_BYTES = 64 << 20
_COLUMNS = 8
_FIRST: dict[Side, int] = {"moving": 2, "fixed": 5}


@dataclass(frozen=True)
class Pairs:
    """The pairs of a file.

    Attributes:
        rows: its cells.
        active: which of the rows count.
    """

    rows: tuple[tuple[str, ...], ...]
    active: tuple[int, ...]

    def points(self, side: Side) -> Tensor:
        """``(N, 3)`` float64: x, y, z of the active pairs in one image; raises ``InputError`` if some are not placed."""
        first = _FIRST[side]
        points = [_numbers(self.rows[number][first : first + 3]) for number in self.active]
        for number, point in zip(self.active, points, strict=True):
            if point is None:
                raise InputError(
                    f"line {number + 1}: expected x, y, z of the {side} image, found {','.join(self.rows[number])[:80]!r}"
                )
        return torch.tensor(points, dtype=torch.float64).reshape(-1, 3)

    def format_with(self, side: Side, points: Tensor) -> str:
        """The file's text with other active points in one image."""
        rows, first = [list(row) for row in self.rows], _FIRST[side]
        for number, point in zip(self.active, points.tolist(), strict=True):
            rows[number][first : first + 3] = [repr(value) for value in point]
        return to_text(rows)


def read_pairs(path: Path) -> Pairs | None:
    """The pairs of a file; None if it is none of BigWarp; raises ``InputError`` for one of points in two dimensions."""
    if path.suffix.lower() != ".csv" or not is_file(path) or path.stat().st_size > MAX_BYTES:
        return None
    with reading(path, "landmarks as text"):
        text = path.read_text(encoding="utf-8-sig")
    with reading(path, "landmarks of BigWarp", (csv.Error,)):
        rows = [tuple(row) for row in csv.reader(io.StringIO(text, newline=None)) if any(cell.strip() for cell in row)]
        if not rows or len(rows[0]) < 6 or _active(rows[0]) is None:
            return None
        if len(rows[0]) == 6:
            raise InputError("expected landmarks of BigWarp in 3D, found some of two dimensions")
        for number, row in enumerate(rows, start=1):
            if len(row) != _COLUMNS or _active(row) is None:
                raise InputError(
                    f"line {number}: expected name, active (true or false) and six numbers, found {','.join(row)[:80]!r}"
                )
    return Pairs(tuple(rows), tuple(number for number, row in enumerate(rows) if _active(row)))


def to_text(rows: Sequence[Sequence[str]]) -> str:
    """Rows as BigWarp writes them, all cells in quotation marks."""
    output = io.StringIO()
    csv.writer(output, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    return output.getvalue()


def _active(row: Sequence[str]) -> bool | None:
    """Whether a row counts; None if it does not say."""
    return {"true": True, "false": False}.get(row[1].strip().lower())


def _numbers(cells: Sequence[str]) -> list[float] | None:
    try:
        numbers = [float(cell) for cell in cells]
    except ValueError:
        return None
    return numbers if all(math.isfinite(number) for number in numbers) else None
