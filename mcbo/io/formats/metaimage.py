"""MetaImage, one file or a header beside its data. Format: https://itk.org/Wiki/ITK/MetaIO/Documentation."""

import re
from pathlib import Path

from torch import Tensor

from mcbo.core.errors import InputError
from mcbo.geometry.grid import FARTHEST_MM, Grid
from mcbo.io.files import reading, shown
from mcbo.io.formats.format import DEFLATE, Claim, Format, check_count, check_unpacked, data_file
from mcbo.io.formats.itk_image import read_itk
from mcbo.io.formats.length_unit import in_unit, one_unit
from mcbo.io.microscopy.selection import Selection

_HEADER_BYTES = 2**20
_MAX_LINE = 2**12
_MAX_DIMENSION = 5
"""Three in space, and perhaps time and vectors; MetaIO has 10."""

_LINE = re.compile(r"\s*([^\s=][^=]*?)\s*=\s*(.*?)\s*")
_LAST = "ElementDataFile"
_KEYS = {
    name.lower(): name
    for name in (
        "NDims", "DimSize", "ElementType", "ElementNumberOfChannels", "BinaryData", "CompressedData", "CompressedDataSize",
        "HeaderSize", _LAST,
    )
}  # fmt: skip
"""What is judged. MetaIO skips keys that it does not know, such as these in another case."""

_MATRICES = {"TransformMatrix", "Rotation", "Orientation"}
_VECTORS = {"Offset", "Position", "Origin", "CenterOfRotation", "ElementSpacing", "ElementSize"}
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,3})?")

_TYPES = {
    "CHAR": 1, "UCHAR": 1, "ASCII_CHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4,
    "LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8,
}  # fmt: skip
"""Bytes at least: a LONG has 8 on some systems."""


def judge(path: Path) -> Claim:
    """What a header claims; raises ``InputError`` for one that is not plain, or names other files than one beside it."""
    fields, end = _header(path)
    dimension = _whole(fields, "NDims", 1, 10)
    if not 2 <= dimension <= _MAX_DIMENSION:
        raise InputError(f"expected a 3D image, found {dimension}D data")
    sizes = [_number(text, "DimSize", 1, 2**31 - 1) for text in fields.get("DimSize", "").split()]
    if len(sizes) != dimension:
        raise InputError(
            f"expected a header with a DimSize of {dimension} numbers, found {shown(fields.get('DimSize', 'none'))}"
        )
    numbers = _whole(fields, "ElementNumberOfChannels", 1, 1000, default=1)
    count = check_count([*sizes, numbers] if numbers > 1 else sizes)
    value_bytes = _TYPES.get(fields.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY"))
    if value_bytes is None:
        raise InputError(f"expected one number per voxel, found an ElementType {shown(fields.get('ElementType', 'none'))}")
    _check_geometry(fields, dimension)
    if fields.get("ObjectType", "Image") != "Image":
        raise InputError(f"expected the ObjectType Image, found {shown(fields['ObjectType'])}")
    named = fields[_LAST]
    if named.upper() == "LIST" or "%" in named:
        raise InputError(f"expected one data file, found a list or a pattern, {shown(named)}: save the image as .mha or .nrrd")
    local = named.upper() == "LOCAL"
    held = (path if local else data_file(path, named)).stat().st_size - (end if local else 0)
    skip = _whole(fields, "HeaderSize", -1, max(held, 0), default=0)
    for key in ("ElementByteOrderMSB", "BinaryDataByteOrderMSB"):
        _flag(fields, key, default=False)
    compressed, binary = (_flag(fields, key, default) for key, default in (("CompressedData", False), ("BinaryData", True)))
    if compressed and "CompressedDataSize" in fields:
        held = _whole(fields, "CompressedDataSize", 1, max(held - skip, 1))
    elif compressed and (local or skip):  # MetaIO would read what lies in memory, and say nothing
        raise InputError("expected a header with CompressedDataSize, found none: save it again")
    if compressed and (skip < 0 or not binary):
        raise InputError("expected compressed data to be binary, of a HeaderSize that is not negative: save it again")
    if compressed:
        claim = Claim(count, count * value_bytes, held, DEFLATE)
        claim.check()
        check_unpacked(path if local else path.parent / named, (end if local else 0) + skip, held, claim.stored_bytes)
        return claim
    return Claim(count, count * value_bytes, held - max(skip, 0), 1 if binary else value_bytes)


def _header(path: Path) -> tuple[dict[str, str], int]:
    with path.open("rb") as file:
        return _fields(file.read(_HEADER_BYTES))


def _fields(head: bytes) -> tuple[dict[str, str], int]:
    """The fields of a header up to the last one, and where it ends."""
    fields: dict[str, str] = {}
    at = 0
    while _LAST not in fields:
        stop = head.find(b"\n", at)
        if stop < 0 and len(head) < _HEADER_BYTES:
            stop = len(head)
        if stop < 0 or stop - at > _MAX_LINE or at >= len(head):
            raise InputError(
                f"expected a MetaImage, a header that ends with {_LAST} within {_HEADER_BYTES} bytes, in lines of {_MAX_LINE}, "
                "found none"
            )
        line = head[at:stop].decode("latin-1").rstrip("\r")
        at = stop + 1
        match = _LINE.fullmatch(line)
        if match is None and line.strip():
            raise InputError(f"expected a MetaImage, a header of lines 'name = value', found {shown(line)}")
        if match is None:
            continue
        key = match[1]
        known = _KEYS.get(key.lower(), key if key in _MATRICES | _VECTORS else None)
        if known and (key != known or key in fields):
            raise InputError(f"expected each field once, spelled {known}, found {shown(key)}")
        fields[key] = match[2]
    return fields, min(at, len(head))


def _check_geometry(fields: dict[str, str], dimension: int) -> None:
    """MetaIO reads numbers as far as it can, and takes 0 for the rest; ITK does not finish with huge ones."""
    for keys, count in ((_MATRICES, dimension**2), (_VECTORS, dimension)):
        for key in keys & fields.keys():
            numbers = fields[key].split()
            usable = all(_NUMBER.fullmatch(number) and abs(float(number)) <= FARTHEST_MM for number in numbers)
            if len(numbers) != count or not usable:
                raise InputError(
                    f"expected a header with {key} of {count} numbers up to {FARTHEST_MM:g}, found {shown(fields[key])}"
                )


def _flag(fields: dict[str, str], key: str, default: bool) -> bool:
    """As MetaIO has it, what begins with T, t or 1 is true; but only what can be meant as no is not."""
    text = fields.get(key, str(default))
    if text[:1] not in tuple("TtFfNn01"):
        raise InputError(f"expected a header with {key} True or False, found {shown(text or 'none')}")
    return text[:1] in ("T", "t", "1")


def _whole(fields: dict[str, str], key: str, least: int, most: int, default: int | None = None) -> int:
    if key not in fields and default is not None:
        return default
    return _number(fields.get(key, ""), key, least, most)


def _number(text: str, key: str, least: int, most: int) -> int:
    number = int(text) if re.fullmatch("-?[0-9]{1,13}", text) else least - 1
    if not least <= number <= most:
        raise InputError(f"expected a header with {key} from {least} to {most}, found {shown(text or 'none')}")
    return number


def place(path: Path, grid: Grid) -> Grid:
    """A grid as ITK reads a file, in the unit of its header."""
    with reading(path, "an image"):
        return in_unit(path, grid, one_unit([_header(path)[0].get("DistanceUnits", "")]))


def _read(path: Path, selection: Selection) -> tuple[Tensor, Grid]:
    del selection
    volume, grid = read_itk(path, "MetaImageIO", judge)
    return volume, place(path, grid)


FORMAT = Format("MetaImage", (".mha", ".mhd"), _read, judge)
