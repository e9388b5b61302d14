"""Landmark files, comma-separated tables and 3D Slicer's markups: read, and written back with other positions.

Everything else in a file (labels, descriptions, identifiers, header lines) is kept as it is.
"""

import copy
import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcbo.core.errors import InputError, OutputError
from mcbo.geometry.grid import Grid, apply_affine
from mcbo.io.files import reading, regular_size, shown, write_bytes
from mcbo.io.json_file import format_json, parse_json
from mcbo.io.tables import Space, layout_of, point_of

MAX_BYTES = 64 << 20
"""A million points of a table take about half of it."""

MAX_VALUES = 1 << 22
"""Cells of a table: a million points; or values of markups: 100,000 points. Each takes up to 200 bytes of memory."""

MAX_COORDINATE = 1e9
"""Voxels or mm; more overflows on the way."""

SUFFIXES = (".csv", ".fcsv", ".mrk.json")

_RUN = re.compile("[ ]*[=+@\t\r\n\uff1d\uff0b\uff0d\uff20-]")
"""How a cell begins that a spreadsheet would run."""


@dataclass(frozen=True)
class Landmarks:
    """Points ``(N, 3)`` float64 of a file, in its own space; ``format_with`` makes its text with other points of that space."""

    points: Tensor
    space: Space
    format_with: Callable[[Tensor], str]

    def to_ras(self) -> Tensor:
        """Points ``(N, 3)`` in world millimeters, RAS; a table is taken to be in RAS."""
        return flipped(self.points) if self.space == "LPS" else self.points

    def to_world(self, grid: Grid, *, in_voxels: bool = True) -> Tensor:
        """Points ``(N, 3)`` in world millimeters, RAS, as the grid of their image has them.

        ``in_voxels`` says what the numbers of a table are: voxels, or mm. Those of other files are where ITK has the image.
        """
        if self.space == "table":
            return grid.to_world(self.points) if in_voxels else self.points
        return apply_affine(np.linalg.inv(grid.to_itk()), self.to_ras())

    def format_ras(self, world: Tensor) -> str:
        """The file's text with other points ``(N, 3)``, given in world millimeters, RAS."""
        return self.format_with(flipped(world) if self.space == "LPS" else world)


def flipped(points: Tensor) -> Tensor:
    """RAS to LPS, or back: ``(N, 3)``."""
    return points * points.new_tensor((-1, -1, 1))


def read_landmarks(path: Path) -> Landmarks:
    """Reads ``.csv``, ``.fcsv`` or ``.mrk.json``, by suffix; raises ``InputError`` for other formats and non-finite numbers."""
    parse = _PARSERS.get(_suffix(path))
    if parse is None:
        raise InputError(f"{path}: expected landmarks in a file ending in {', '.join(SUFFIXES)}")
    size = regular_size(path, "landmarks")
    with reading(path, "landmarks as text"):
        if size > MAX_BYTES:
            raise InputError(f"expected at most {MAX_BYTES} bytes, found {size}")
        with path.open("rb") as file:
            return parse(file.read(MAX_BYTES).decode("utf-8-sig"))


def write_landmarks(path: Path, text: str, *, like: Path) -> None:
    """Writes a landmark file; raises ``OutputError`` if its suffix is not that of ``like``, or it cannot be written."""
    if _suffix(path) != _suffix(like):
        raise OutputError(f"{path}: expected the format of {like.name}, a name ending in {_suffix(like)}")
    write_bytes(path, text.encode("utf-8"))


def _suffix(path: Path) -> str:
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), path.suffix)


def parse_table(text: str) -> Landmarks:
    """A table, as ``tables.layout_of`` reads it; all but the coordinates of points that were placed stays as it is.

    In what is written, an apostrophe keeps spreadsheets from running it.
    """
    rows = _csv(text, strict=True)
    layout = layout_of(next(iter(rows), []))
    if not layout.has_names:  # Learn2Reg's, which quotes nothing
        rows = [line.split(",") for line in text.splitlines()]
    while rows and "".join(rows[-1]).strip() == "" and len(rows[-1]) < 2:
        rows.pop()
    start = 1 if layout.has_names else 0
    if len(rows) == start:
        raise InputError("expected points, found none")
    found = {n: point_of(row, layout, n - start + 1) for n, row in enumerate(rows) if n >= start}
    points = {n: point for n, point in found.items() if point is not None}

    def format_with(moved: Tensor) -> str:
        result = [list(row) for row in rows]
        for n, point in zip(points, moved.tolist(), strict=True):
            for column, value in zip(layout.columns, _texts(point), strict=True):
                result[n][column] = value
        output = io.StringIO()
        csv.writer(output, lineterminator="\n").writerows(map(_harmless, row) for row in result)
        return output.getvalue()

    return Landmarks(_tensor(list(points.values())), layout.space, format_with)


def parse_fcsv(text: str) -> Landmarks:
    """Markups of 3D Slicer 4: comment lines, then ``id,x,y,z,…``; RAS, as in early files, if no coordinate system is named."""
    lines = io.StringIO(text, newline=None).read().rstrip("\n").split("\n")
    settings = dict(line[1:].split("=", 1) for line in lines if line.startswith("#") and "=" in line)
    settings = {key.strip().lower(): value.strip() for key, value in settings.items()}
    named = settings.get("coordinatesystem", "RAS").upper()
    spaces: dict[str, Space] = {"0": "RAS", "RAS": "RAS", "1": "LPS", "LPS": "LPS"}
    if named not in spaces:
        raise InputError(f"expected the coordinate system RAS (0) or LPS (1), found {shown(named)}")
    columns = [name.strip() for name in settings.get("columns", "id,x,y,z").split(",")]
    if not {"x", "y", "z"} <= set(columns):
        raise InputError(f"expected columns named x, y and z, found {shown(columns)}")
    where = [columns.index(name) for name in ("x", "y", "z")]
    rows = {n: _csv(line)[0] for n, line in enumerate(lines) if line.strip() and not line.startswith("#")}
    points = [_point([row[i] for i in where if i < len(row)], f"line {n + 1}") for n, row in rows.items()]

    def format_with(moved: Tensor) -> str:
        result = list(lines)
        for (number, row), point in zip(rows.items(), moved.tolist(), strict=True):
            cells = list(row)
            for i, value in zip(where, _texts(point), strict=True):
                cells[i] = value
            output = io.StringIO()
            csv.writer(output, lineterminator="").writerow(cells)
            result[number] = output.getvalue()
        return "".join(f"{line}\n" for line in result)

    return Landmarks(_tensor(points), spaces[named], format_with)


def parse_markups(text: str) -> Landmarks:
    """Markups of 3D Slicer 4.11 and later, JSON in millimeters; points that were never placed stay as they are."""
    content: Any = parse_json(text, "markups in JSON", max_values=MAX_VALUES, surrogates=False)
    groups = content.get("markups") if isinstance(content, dict) else None
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise InputError("expected a list 'markups' as 3D Slicer writes it")
    systems = {str(group.get("coordinateSystem", "LPS")).upper() for group in groups} or {"LPS"}
    if len(systems) != 1 or not systems <= {"RAS", "LPS"}:
        raise InputError(f"expected one coordinate system, RAS or LPS, found {', '.join(sorted(systems))[:80]}")
    for group in groups:
        units = group.get("coordinateUnits", "mm")
        if units not in ("mm", ["mm"] * 3):
            raise InputError(f"expected coordinates in mm, found {shown(units)}")
    points = [_point(control["position"], f"point {n}") for n, control in enumerate(_controls(groups), start=1)]

    def format_with(moved: Tensor) -> str:
        result = copy.deepcopy(content)
        for control, point in zip(_controls(result["markups"]), moved.tolist(), strict=True):
            control["position"] = point
        return format_json(result)

    return Landmarks(_tensor(points), "RAS" if systems == {"RAS"} else "LPS", format_with)


def _harmless(cell: str) -> str:
    """A cell of a table; text that a spreadsheet takes for a formula gets an apostrophe in front, unless it is a number."""
    return f"'{cell}" if _RUN.match(cell) and _numbers([cell]) is None else cell


def _csv(text: str, *, strict: bool = False) -> list[list[str]]:
    if text.count(",") + text.count("\n") > MAX_VALUES:
        raise InputError(f"expected at most {MAX_VALUES} cells, found more")
    try:
        return list(csv.reader(io.StringIO(text, newline=None), strict=strict))
    except csv.Error as error:
        raise InputError(f"expected text separated by commas, but it cannot be read: {error}") from error


def _controls(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The control points that were placed."""
    lists = [group.get("controlPoints") or [] for group in groups]
    if not all(isinstance(controls, list) and all(isinstance(c, dict) for c in controls) for controls in lists):
        raise InputError("expected 'controlPoints' as lists of objects")
    controls: list[dict[str, Any]] = [control for controls in lists for control in controls]
    placed = ("defined", "preview")
    return [c for c in controls if c.get("position") is not None and c.get("positionStatus", "defined") in placed]


def _point(cells: object, name: str) -> list[float]:
    found = _numbers(cells) if isinstance(cells, list) and len(cells) == 3 else None
    if found is None:
        raise InputError(f"{name}: expected three finite numbers, found {shown(cells)} (each at most {MAX_COORDINATE:g})")
    return found


def _numbers(cells: Sequence[object]) -> list[float] | None:
    """The cells as numbers; None if one of them is not a finite number, or too large."""
    try:
        numbers = [float(cell) for cell in cells if isinstance(cell, str | int | float) and not isinstance(cell, bool)]
    except (ValueError, OverflowError):
        return None
    return numbers if len(numbers) == len(cells) and all(abs(number) <= MAX_COORDINATE for number in numbers) else None


def _texts(point: Sequence[float]) -> list[str]:
    return [f"{value:.6f}" for value in point]


def _tensor(points: list[list[float]]) -> Tensor:
    return torch.tensor(points, dtype=torch.float64).reshape(-1, 3)


_PARSERS = {".csv": parse_table, ".fcsv": parse_fcsv, ".mrk.json": parse_markups}
"""Each raises ``InputError`` for a text that is not in its format."""
