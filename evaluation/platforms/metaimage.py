"""Reads displacements in MetaImage files (``.mha``), ITK's convention: millimeters, LPS, fixed to moving.

Not by ITK: its reader can be led to other files by a header, and reads a broken zlib stream as numbers without a word.
"""

import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import EvaluationError, reason, shown
from evaluation.files import file_size
from evaluation.images import Array, Shape, read_affine
from evaluation.nifti import MAX_RATIO, MAX_VALUES

MAX_HEADER = 2**16
"""Bytes. Headers with all the tags of a DICOM series have a few thousand."""
OFF_GRID = 0.01
"""Voxels by which a corner of the volume may lie elsewhere than that of the fixed image."""

_LPS = np.diag((-1.0, -1.0, 1.0))
_TYPES = {"MET_FLOAT": "f4", "MET_DOUBLE": "f8"}
_NUMBER = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?", re.ASCII)
_ONCE = {
    "matrix": ("TransformMatrix", "Orientation", "Rotation"),
    "origin": ("Offset", "Position", "Origin"),
    "spacing": ("ElementSpacing", "ElementSize"),
}
"""Names of one thing; ITK takes any."""
_EXPECTED = "a MetaImage of displacements"


@dataclass(frozen=True)
class VectorHeader:
    """What the header of a MetaImage of vectors says; ``affine`` is ``(4, 4)``, voxel to LPS mm."""

    shape: Shape
    affine: Array
    dtype: np.dtype[np.floating]
    interleaved: bool
    compressed: bool
    begins_at: int


def read_metaimage(path: Path, *, fixed: Path, moving: Path, shape: Shape) -> NDArray[np.float32]:
    """A displacement ``(H, W, D, 3)``, voxels, fixed to moving, from a MetaImage on the grid of the fixed image.

    Its voxels are vectors of three components, or scalars whose fourth axis has three: in LPS millimeters, from a point of the
    fixed image to its counterpart in the moving one, as a displacement field of ITK.

    Args:
        path: of the ``.mha``, with its data inside.
        fixed: the fixed image, for its affine.
        moving: the moving image, likewise.
        shape: of the fixed image.

    Raises:
        EvaluationError: if it is anything else, lies on another grid, or has values that are not finite.
    """
    header = read_header(path)
    affine = read_affine(fixed)
    _check_grid(path, header, shape, affine)
    vectors = _read_vectors(path, header)
    broken = vectors.size - int(np.isfinite(vectors).sum())
    if broken:
        raise EvaluationError(f"{path}: expected finite displacements, found {broken} values that are NaN or infinite")
    to_moving = np.linalg.inv(read_affine(moving))
    carried = to_moving @ affine  # a voxel of the fixed image, in voxels of the moving one
    with np.errstate(all="ignore"):  # overflow gives infinity, which is an error below
        field = vectors @ (to_moving[:3, :3] @ _LPS).T
        if not np.allclose(carried, np.eye(4), rtol=0, atol=1e-9):
            positions = np.moveaxis(np.indices(shape), 0, -1)
            field += positions @ (carried[:3, :3] - np.eye(3)).T + carried[:3, 3]
        result = field.astype(np.float32)
    if not np.isfinite(result).all():
        raise EvaluationError(f"{path}: expected displacements that float32 can hold, found larger ones")
    return result


def read_header(path: Path) -> VectorHeader:
    """The header of a MetaImage of vectors, checked against the size of the file before any value is read.

    Raises:
        EvaluationError: if it is none, its data lie elsewhere, or it claims more than the file can hold.
    """
    size = file_size(path, _EXPECTED)
    try:
        with path.open("rb") as file:
            start = file.read(MAX_HEADER)
        fields, begins_at = _parse(start)
        header = _judge(fields, begins_at)
    except OSError as error:
        raise EvaluationError(f"{path}: expected {_EXPECTED}, but it cannot be read: {reason(error)}") from error
    except ValueError as error:
        raise EvaluationError(f"{path}: expected {_EXPECTED}, but {error}") from error
    claimed, held = 3 * math.prod(header.shape) * header.dtype.itemsize, size - begins_at
    if claimed > held * MAX_RATIO if header.compressed else claimed != held:
        raise EvaluationError(f"{path}: expected {_EXPECTED}, but its header claims {claimed} bytes, and {held} follow it")
    return header


def _parse(start: bytes) -> tuple[dict[str, str], int]:
    """``Key = value`` of each line up to that of the data, and where the data begin; ValueError if it is no such header."""
    fields: dict[str, str] = {}
    position = 0
    while (end := start.find(b"\n", position)) >= 0:
        line = start[position:end].decode("latin-1").strip()
        position = end + 1
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            raise ValueError(f"its header has the line {shown(line)}")
        if key in fields:
            raise ValueError(f"its header has {shown(key)} twice")
        fields[key] = value
        if key == "ElementDataFile":
            return fields, position
    raise ValueError(f"the first {len(start)} bytes have no line ElementDataFile")


def _judge(fields: dict[str, str], begins_at: int) -> VectorHeader:
    """A header as this package understands it; ValueError if it asks for anything else."""
    for key, expected in (("ObjectType", "Image"), ("BinaryData", "True"), ("ElementDataFile", "LOCAL")):
        if fields.get(key) != expected:
            raise ValueError(f"its header has {key} {shown(fields.get(key))}, not {expected}")
    if "HeaderSize" in fields:
        raise ValueError("its header has a HeaderSize")
    dimensions = _whole(fields, "NDims", 1)[0]
    if dimensions not in (3, 4):
        raise ValueError(f"it has {dimensions} dimensions, not 3 (vectors) or 4 (a fourth axis of three components)")
    sizes = _whole(fields, "DimSize", dimensions)
    channels = _whole(fields, "ElementNumberOfChannels", 1)[0] if "ElementNumberOfChannels" in fields else 1
    components = channels if dimensions == 3 else sizes[3] * channels
    if components != 3 or (dimensions == 4 and channels != 1):
        raise ValueError(f"it has {channels} numbers in each voxel of {sizes}, not vectors of three components")
    if min(sizes) < 1 or 3 * math.prod(sizes[:3]) > MAX_VALUES:
        raise ValueError(f"its header claims the sizes {sizes}")
    if fields.get("ElementType") not in _TYPES:
        raise ValueError(f"its voxels are {shown(fields.get('ElementType'))}, not {' or '.join(_TYPES)}")
    big = _flag(fields, "BinaryDataByteOrderMSB") or _flag(fields, "ElementByteOrderMSB")
    affine = np.eye(4)
    axes = np.reshape(_real(fields, "matrix", dimensions**2, np.eye(dimensions)), (dimensions, dimensions))
    spacing = np.array(_real(fields, "spacing", dimensions, np.ones(dimensions)))
    affine[:3, :3] = axes[:3, :3].T * spacing[:3]  # the file lists the directions of the axes one after another
    affine[:3, 3] = _real(fields, "origin", dimensions, np.zeros(dimensions))[:3]
    return VectorHeader(
        shape=(sizes[0], sizes[1], sizes[2]),
        affine=affine,
        dtype=np.dtype((">" if big else "<") + _TYPES[fields["ElementType"]]),
        interleaved=dimensions == 3,
        compressed=_flag(fields, "CompressedData"),
        begins_at=begins_at,
    )


def _whole(fields: dict[str, str], key: str, count: int) -> list[int]:
    words = fields.get(key, "").split()
    if len(words) != count or not all(re.fullmatch("[0-9]{1,9}", word, re.ASCII) for word in words):
        raise ValueError(f"its header has {key} {shown(fields.get(key))}, not {count} whole number{'s'[: count != 1]}")
    return list(map(int, words))


def _real(fields: dict[str, str], name: str, count: int, default: Array) -> list[float]:
    present = [key for key in _ONCE[name] if key in fields]
    if not present:
        return [float(x) for x in default.ravel()]
    words = fields[present[0]].split()
    if len(present) > 1 or len(words) != count or not all(map(_NUMBER.fullmatch, words)):
        raise ValueError(f"its header has {' and '.join(present)} {shown(fields[present[0]])}, not one of {count} numbers")
    return list(map(float, words))


def _flag(fields: dict[str, str], key: str) -> bool:
    value = fields.get(key, "False")
    if value not in ("True", "False"):
        raise ValueError(f"its header has {key} {shown(value)}, not True or False")
    return value == "True"


def _check_grid(path: Path, header: VectorHeader, shape: Shape, fixed: Array) -> None:
    """Raises EvaluationError if a field lies on another grid than the fixed image, whose affine is in RAS."""
    if header.shape != shape:
        raise EvaluationError(f"{path}: expected the shape {shape} of the fixed image, found {header.shape}")
    expected = np.eye(4)
    expected[:3] = _LPS @ fixed[:3]
    corners = np.array([[x, y, z, 1] for x in (0, shape[0] - 1) for y in (0, shape[1] - 1) for z in (0, shape[2] - 1)])
    with np.errstate(all="ignore"):  # a header may say 1e999
        apart = np.abs(corners @ (header.affine - expected).T).max()
    if not apart <= OFF_GRID * np.linalg.norm(fixed[:3, :3], axis=0).min():
        raise EvaluationError(
            f"{path}: expected the grid of the fixed image, found another: a corner lies {apart:.3g} mm from its own; copy the "
            "origin, the spacing and the direction"
        )


def _read_vectors(path: Path, header: VectorHeader) -> Array:
    """LPS millimeters, ``(H, W, D, 3)``."""
    claimed = 3 * math.prod(header.shape) * header.dtype.itemsize
    try:
        with path.open("rb") as file:
            file.seek(header.begins_at)
            data = _inflate(file.read(), claimed) if header.compressed else file.read(claimed)
    except (OSError, zlib.error, MemoryError) as error:
        raise EvaluationError(f"{path}: expected {_EXPECTED}, but its data cannot be read: {reason(error)}") from error
    if len(data) != claimed:
        raise EvaluationError(f"{path}: expected {_EXPECTED} with {claimed} bytes of data, found {len(data)}")
    values = np.frombuffer(data, dtype=header.dtype)
    across = header.shape[::-1]
    if header.interleaved:
        return values.reshape(*across, 3).transpose(2, 1, 0, 3).astype(np.float64)
    return values.reshape(3, *across).transpose(3, 2, 1, 0).astype(np.float64)


def _inflate(data: bytes, claimed: int) -> bytes:
    """The inflated data, but not much more than claimed; zlib.error if they are broken or cut off."""
    stream = zlib.decompressobj()
    inflated = stream.decompress(data, claimed + 1)
    if len(inflated) == claimed and not stream.eof:
        stream.decompress(stream.unconsumed_tail, 1)
    if not stream.eof:
        raise zlib.error("the compressed data are cut off, or longer than the header claims")
    return inflated
