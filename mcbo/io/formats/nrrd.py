"""NRRD, one file or a header beside its data. Format: https://teem.sourceforge.net/nrrd/format.html."""

import re
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from mcbo.core.errors import InputError
from mcbo.geometry.grid import Grid
from mcbo.io.files import reading, shown
from mcbo.io.formats.format import DEFLATE, Claim, Format, check_count, data_file
from mcbo.io.formats.itk_image import read_itk
from mcbo.io.formats.length_unit import in_unit, one_unit
from mcbo.io.microscopy.selection import Selection

_HEADER_BYTES = 2**20
_MAX_LINE = 2**14
_MAX_DIMENSION = 5
"""Three in space, and perhaps time and vectors; the format has 16."""

_FIELD = re.compile(r"([A-Za-z][A-Za-z0-9 ]*): ?(.*)")
_SEGMENT = re.compile(r"Segment(ation)?[0-9]*_\w+:=")
_SEGMENTS = "segments:"
"""Among the fields, whether there are keys of a segmentation; no field is called so."""

_TYPES = {
    1: "(?:signed |unsigned )?char|uchar|u?int8(?:_t)?",
    2: "(?:signed |unsigned )?short(?: int)?|ushort|u?int16(?:_t)?",
    4: "(?:signed |unsigned )?int|uint|u?int32(?:_t)?|float",
    8: "(?:signed |unsigned )?long long(?: int)?|u?longlong|u?int64(?:_t)?|double",
}
"""Names of types by their size in bytes; without ``block``, which is not of numbers."""


def judge(path: Path) -> Claim:
    """What a header claims; raises ``InputError`` for one that is not plain, or names other files than one beside it."""
    fields, end = _header(path)
    dimension = _whole(fields, "dimension", 1, 16)
    if not 2 <= dimension <= _MAX_DIMENSION:
        raise InputError(f"expected a 3D image, found {dimension}D data")
    sizes = [_number(text, "sizes", 1, 2**31) for text in fields.get("sizes", "").split()]
    if len(sizes) != dimension:
        raise InputError(f"expected a header with {dimension} sizes, found {shown(fields.get('sizes', 'none'))}")
    if _SEGMENTS in fields and dimension == 4 and sizes[0] > 1:
        raise InputError(
            f"expected one label per voxel, found a segmentation of 3D Slicer with {sizes[0]} layers, since its segments "
            "overlap: export segments that do not overlap to a labelmap, in its module Segmentations"
        )
    _unit(fields, dimension)
    count = check_count(sizes)
    value_bytes = next((size for size, names in _TYPES.items() if re.fullmatch(names, fields.get("type", "").lower())), None)
    if value_bytes is None:
        raise InputError(f"expected one number per voxel, found data of type {shown(fields.get('type', 'none'))}")
    named = fields.get("datafile")
    detached = path if named is None else data_file(path, named)
    held = detached.stat().st_size - (end if named is None else 0)
    _whole(fields, "lineskip", 0, 2**31, default=0)
    skip = _whole(fields, "byteskip", -1, 2**40, default=0)
    encoding = fields.get("encoding", "").lower()
    if encoding == "raw":
        return Claim(count, count * value_bytes, max(held - max(skip, 0), 0))
    if encoding in ("gzip", "gz") and skip >= 0:
        return Claim(count, count * value_bytes, held, DEFLATE)
    if encoding in ("txt", "text", "ascii") and skip >= 0:
        return Claim(count, count * value_bytes, held, value_bytes)
    if encoding == "hex" and skip >= 0:
        return Claim(count, count * value_bytes, held)
    raise InputError(
        f"expected data encoded as raw, gzip, text or hex, found {shown(encoding)}{' with a byte skip' if skip else ''}: "
        "save it again in one of these"
    )


def _unit(fields: dict[str, str], dimension: int) -> str:
    """The unit of the axes in space, empty if there is none; raises ``InputError`` if they have several."""
    in_space = fields.get("spaceunits")
    if in_space is not None:
        return one_unit(_quoted(in_space)[:3])  # a fourth is that of time
    kinds = fields.get("kinds", "").lower().split()
    units = _quoted(fields.get("units", ""))
    if len(kinds) == dimension:
        units = [unit for unit, kind in zip(units, kinds, strict=False) if kind in ("domain", "space")]
    return one_unit(units[:3])


def _quoted(text: str) -> list[str]:
    """Names in quotation marks, of a field that was read as Latin-1."""
    with suppress(UnicodeDecodeError):
        text = text.encode("latin-1").decode()
    return re.findall(r'"([^"]*)"', text)


def _header(path: Path) -> tuple[dict[str, str], int]:
    with path.open("rb") as file:
        return _fields(file.read(_HEADER_BYTES))


def _fields(head: bytes) -> tuple[dict[str, str], int]:
    """The fields of a header, names without spaces and in lower case; and where it ends."""
    if not re.match(rb"NRRD000[1-5]\r?\n", head):
        raise InputError("expected an NRRD file, but it cannot be read: it does not begin with NRRD000 and a digit up to 5")
    fields: dict[str, str] = {}
    at = head.index(b"\n") + 1
    while at < len(head):
        stop = head.find(b"\n", at)
        stop = len(head) if stop < 0 else stop
        line = head[at:stop].decode("latin-1").rstrip("\r")
        at = stop + 1
        if not line:
            return fields, at
        if len(line) > _MAX_LINE or (len(head) == _HEADER_BYTES and stop == len(head)):
            raise InputError(f"expected a header of at most {_HEADER_BYTES} bytes, in lines of {_MAX_LINE}, found more")
        if line.startswith("#") or ":=" in line:
            if _SEGMENT.match(line):
                fields[_SEGMENTS] = "yes"
            continue
        match = _FIELD.fullmatch(line)
        if match is None:
            raise InputError(f"expected a header of lines 'name: value', found {shown(line)}")
        name = match[1].lower().replace(" ", "")
        if name in fields:
            raise InputError(f"expected each field once, found {shown(match[1])} twice")
        fields[name] = match[2].strip()
    return fields, len(head)


def _whole(fields: dict[str, str], name: str, least: int, most: int, default: int | None = None) -> int:
    text = fields.get(name)
    if text is None and default is not None:
        return default
    return _number(text or "", name, least, most)


def _number(text: str, name: str, least: int, most: int) -> int:
    number = int(text) if re.fullmatch("-?[0-9]{1,13}", text) else least - 1
    if not least <= number <= most:
        raise InputError(f"expected a header with {name} from {least} to {most}, found {shown(text or 'none')}")
    return number


def place(path: Path, grid: Grid) -> Grid:
    """A grid as ITK reads a file, in the unit of its header."""
    with reading(path, "an image"):
        fields = _header(path)[0]
        return in_unit(path, grid, _unit(fields, int(fields["dimension"])))


def _read(path: Path, selection: Selection) -> tuple[Tensor, Grid]:
    del selection
    volume, grid = read_itk(path, "NrrdImageIO", judge)
    return volume, place(path, grid)


FORMAT = Format("NRRD", (".nrrd", ".nhdr"), _read, judge)
