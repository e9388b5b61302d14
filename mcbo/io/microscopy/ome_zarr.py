"""OME-Zarr in a local folder: one channel and time point of a level. Needs zarr (``pip install mcbo[microscopy]``).

Format: OME-Zarr 0.4 and 0.5, https://ngff.openmicroscopy.org/0.5; of 0.6 the coordinate systems that an image of 0.5 has, too.
"""

import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mcbo.core.errors import InputError
from mcbo.core.log import log
from mcbo.geometry.grid import Grid
from mcbo.io.files import is_file, is_folder, reading, shown
from mcbo.io.microscopy.selection import Selection, Stated, length_of, mm_of, selected
from mcbo.io.nifti import to_tensor
from mcbo.io.nifti_header import MAX_RATIO, MAX_VOXELS

BYTES_PER_VOXEL = 40
"""Of an image that is registered: as stored, in float32, its displacement, the inverse, and warped."""

_METADATA = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
_MAX_METADATA_BYTES = 8 << 20
_MAX_CHUNKS = 1 << 18
_MAX_CHUNK_BYTES = 1 << 28
_FREE_BYTES = 1 << 26
"""That may be claimed whatever the size of the files."""

_CODECS = {
    "blosc", "bytes", "bz2", "crc32c", "delta", "endian", "fixedscaleoffset", "gzip", "lz4", "lzma", "sharding_indexed",
    "shuffle", "transpose", "zlib", "zstd",
}  # fmt: skip
"""Those that only compute; others, such as pickle, run what a file tells them to."""

MISSING = "expected zarr, which reads and writes OME-Zarr, found it is not installed: pip install 'mcbo[microscopy]'"


@dataclass(frozen=True)
class Axis:
    """An axis: its name and kind (``space``, ``time``, ``channel``), and the unit of a length."""

    name: str
    kind: str
    unit: str


@dataclass(frozen=True)
class Level:
    """A level of a pyramid: the path of its array in the group; for each axis the size of a voxel, and where the first lies."""

    path: str
    scale: tuple[float, ...]
    translation: tuple[float, ...]


@dataclass(frozen=True)
class Pyramid:
    """A multiscale image: its folder, axes and levels, the finest first."""

    folder: Path
    axes: tuple[Axis, ...]
    levels: tuple[Level, ...]

    def position(self, kind: str) -> int | None:
        """Which axis is of a kind; None if there is none."""
        return next((i for i, axis in enumerate(self.axes) if axis.kind == kind), None)

    def space(self) -> tuple[int, int, int]:
        """Which axes are columns, rows and slices."""
        found = [i for i, axis in enumerate(self.axes) if axis.kind == "space"]
        if len(found) != 3:
            raise InputError(f"expected a 3D image, found {len(found)} axes in space")
        if {self.axes[i].name for i in found} == {"x", "y", "z"}:
            found.sort(key=lambda i: self.axes[i].name, reverse=True)
        return found[2], found[1], found[0]


def is_ome_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr group or array."""
    return is_folder(path) and any(is_file(path / name) for name in _METADATA)


def read_ome_zarr(path: Path, selection: Selection) -> tuple[Tensor, Grid]:
    """Reads an OME-Zarr: ``(1, 1, H, W, D)`` as stored, axis 0 along columns (x), axis 2 along slices (z); and its grid.

    Args:
        path: folder of an image, of which the finest level is read that has at most ``MAX_VOXELS``; or of one of its levels.
        selection: what to read of it.

    Raises:
        InputError: if it is no image in space, or holds several and none is selected; if zarr is not installed; or if its files
            cannot hold what they claim, or lie elsewhere.
    """
    path = level_that_fits(path, MAX_VOXELS)
    with _opened(path) as (pyramid, level, array):
        space = pyramid.space()
        lead = _lead(pyramid, array.shape, selection)
        shape = (array.shape[space[0]], array.shape[space[1]], array.shape[space[2]])
        if math.prod(shape) > MAX_VOXELS:
            raise InputError(f"expected an image of at most {MAX_VOXELS} voxels, found metadata for the shape {shape}")
        grid = _stated(pyramid, level).grid(shape, selection)
        _check_data(array, path, pyramid.folder, [1 if i in lead else n for i, n in enumerate(array.shape)])
        values = np.asarray(array[tuple(lead.get(i, slice(None)) for i in range(array.ndim))])
        rest = [i for i in range(array.ndim) if i not in lead]
        return to_tensor(values.transpose([rest.index(i) for i in space]))[None, None], grid


def choices(path: Path) -> tuple[int, int]:
    """How many channels and time points an image has; raises ``InputError`` as ``read_ome_zarr``."""
    with _opened(level_that_fits(path, MAX_VOXELS)) as (pyramid, _, array):
        channel, time = pyramid.position("channel"), pyramid.position("time")
        return (1 if channel is None else array.shape[channel]), (1 if time is None else array.shape[time])


def level_that_fits(path: Path, most_voxels: int) -> Path:
    """The folder of the finest level of an image that has at most so many voxels in space, else of the coarsest.

    The folder of an array is returned as it is.
    """
    if _is_array(path):
        return path
    with _reading(path) as zarr:
        pyramid = _pyramid(path, zarr)
        space = pyramid.space()
        for number, level in enumerate(pyramid.levels):
            folder = _inside(path, level.path)
            shape = [_array(folder, zarr).shape[i] for i in space]
            if math.prod(shape) <= most_voxels or number == len(pyramid.levels) - 1:
                if len(pyramid.levels) > 1:
                    size = "×".join(map(str, shape))
                    log.info("%s: level %d of 0–%d (%s), %s voxels", path, number, len(pyramid.levels) - 1, level.path, size)
                return folder
    raise InputError(f"{path}: expected an image with levels, found none")


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """The library; its errors in the block become ``InputError``."""
    try:
        import zarr
    except ImportError as error:
        raise InputError(f"{path}: {MISSING}") from error
    with reading(path, "an OME-Zarr image", (Exception,)):  # of many kinds
        yield zarr


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Pyramid, Level, Any]]:
    """The level whose array is in a folder, and its image."""
    with _reading(path) as zarr:
        for group in path.parents[:4]:
            if not is_ome_zarr(group) or not _multiscales(group, zarr):
                continue
            pyramid = _pyramid(group, zarr)
            for level in pyramid.levels:
                if (group / level.path) == path:
                    array = _array(_inside(group, level.path), zarr)
                    if array.ndim != len(pyramid.axes):
                        raise InputError(
                            f"expected an array of {len(pyramid.axes)} axes, as its metadata say, found {array.ndim}"
                        )
                    yield pyramid, level, array
                    return
        raise InputError("expected the folder of an OME-Zarr image, found an array that none lists as its level")


def _is_array(path: Path) -> bool:
    """Whether a Zarr folder holds an array, not a group."""
    if (path / ".zarray").is_file():
        return True
    with _reading(path) as zarr:
        node = zarr.open(zarr.storage.LocalStore(_checked(path), read_only=True), mode="r")
        return isinstance(node, zarr.Array)


def _checked(path: Path) -> Path:
    """A folder whose metadata are not too long to be read."""
    for name in _METADATA:
        if (path / name).is_file() and (path / name).stat().st_size > _MAX_METADATA_BYTES:
            raise InputError(f"expected metadata of at most {_MAX_METADATA_BYTES} bytes, found more in {name}")
    return path


def _array(folder: Path, zarr: Any) -> Any:
    """The array in a folder; raises ``InputError`` for one that is not plain numbers."""
    array = zarr.open_array(zarr.storage.LocalStore(_checked(folder), read_only=True), mode="r")
    if array.dtype.kind not in "biuf":
        raise InputError(f"expected one number per voxel, found data of type {array.dtype}")
    unknown = sorted(name for name in _codec_names(array.metadata.to_dict()) if name not in _CODECS)
    if unknown:
        raise InputError(f"expected data in one of the codecs {', '.join(sorted(_CODECS))}, found {shown(', '.join(unknown))}")
    return array


def _codec_names(metadata: Any) -> Iterator[str]:
    """Names of all codecs in an array's metadata, those within others, too."""
    for key in ("codecs", "index_codecs", "filters", "compressor"):
        listed = metadata.get(key) or []
        for codec in [listed] if isinstance(listed, dict) else listed:
            yield str(codec.get("id") or codec.get("name")).removeprefix("numcodecs.")
            yield from _codec_names(codec.get("configuration") or {})


def _multiscales(group: Path, zarr: Any) -> list[Any]:
    """What a group's metadata say of its images; nothing if there are none."""
    attributes = dict(zarr.open_group(zarr.storage.LocalStore(_checked(group), read_only=True), mode="r").attrs)
    about = attributes["ome"] if isinstance(attributes.get("ome"), dict) else attributes
    listed = about.get("multiscales")
    return listed if isinstance(listed, list) else []


def _pyramid(group: Path, zarr: Any) -> Pyramid:
    """The image that a group's metadata describe; raises ``InputError`` if there is none."""
    listed = _multiscales(group, zarr)
    if not listed:
        inside = sorted(folder.name for folder in group.iterdir() if is_ome_zarr(folder))[:12]
        raise InputError(
            "expected the folder of an image, found a Zarr group without multiscales"
            + (f"; it holds {', '.join(inside)}: name one of these" if inside else "")
        )
    image = listed[0]
    systems = image.get("coordinateSystems")
    listed_axes = image.get("axes", systems[0]["axes"] if systems else ["t", "c", "z", "y", "x"])
    axes = tuple(_axis(axis) for axis in listed_axes)
    common = [step for step in image.get("coordinateTransformations") or [] if "output" not in step]
    levels = tuple(
        _level(str(dataset["path"]), [*(dataset.get("coordinateTransformations") or []), *common], len(axes))
        for dataset in image["datasets"]
    )
    return Pyramid(group, axes, levels)


def _axis(axis: Any) -> Axis:
    if isinstance(axis, str):
        axis = {"name": axis}
    name = str(axis["name"])
    kind = str(axis.get("type") or {"t": "time", "c": "channel"}.get(name, "space" if name in "xyz" else name))
    return Axis(name, kind, str(axis.get("unit") or ""))


def _level(path: str, steps: Sequence[Any], count: int) -> Level:
    """A level whose transformations follow each other; raises ``InputError`` for others than scales and translations."""
    scale, translation = np.ones(count), np.zeros(count)
    for step in steps:
        for part in step.get("transformations") or [] if step.get("type") == "sequence" else [step]:
            kind = part.get("type")
            values = np.array(part.get(kind) or [], dtype=np.float64)
            if kind == "scale" and values.shape == (count,):
                scale, translation = scale * values, translation * values
            elif kind == "translation" and values.shape == (count,):
                translation = translation + values
            elif kind != "identity":
                raise InputError(f"expected scales and translations of {count} numbers each, found {shown(part)}")
    return Level(path, tuple(scale.tolist()), tuple(translation.tolist()))


def _stated(pyramid: Pyramid, level: Level) -> Stated:
    """Where an image lies. Without units of length, its numbers are no voxel size."""
    space = pyramid.space()
    units = [length_of(pyramid.axes[i].unit) for i in space]
    sizes = [mm_of(level.scale[i], mm) for i, (_, mm) in zip(space, units, strict=True)]
    positions = [level.translation[i] / level.scale[i] if level.scale[i] else 0.0 for i in space]
    if not np.isfinite(positions).all():
        raise InputError(f"expected a finite translation, found {level.translation}")
    origin = (positions[0], positions[1], positions[2])
    numbers = "×".join(f"{level.scale[i]:g}" for i in space)
    if None in (mm for _, mm in units):
        return Stated(origin=origin, hint=f"its scale is {numbers} without a unit of length")
    if None in sizes:
        raise InputError(f"expected a scale above 0, found {numbers}")
    return Stated((sizes[0], sizes[1], sizes[2]), units[0][0], origin)


def _lead(pyramid: Pyramid, shape: Sequence[int], selection: Selection) -> dict[int, int]:
    """The index along each axis that is not in space."""
    counts = {kind: 1 if (i := pyramid.position(kind)) is None else shape[i] for kind in ("channel", "time")}
    channel, time = selected(selection, channels=counts["channel"], times=counts["time"])
    lead = {}
    for i, axis in enumerate(pyramid.axes):
        if axis.kind == "space":
            continue
        if axis.kind not in counts and shape[i] > 1:
            raise InputError(f"expected axes of space, channel and time, found {shown(axis.name)} of size {shape[i]}")
        lead[i] = {"channel": channel, "time": time}.get(axis.kind, 0)
    return lead


def _inside(group: Path, path: str) -> Path:
    """The folder of an array in a group, which no name and no link leads out of."""
    parts = re.split(r"[/\\]", path)
    folder = group.joinpath(*parts)
    if any(part in ("", ".", "..") or ":" in part for part in parts) or not folder.resolve().is_relative_to(group.resolve()):
        raise InputError(f"expected the path of an array within the folder, found {shown(path)}")
    return folder


def _check_data(array: Any, folder: Path, group: Path, shape: Sequence[int]) -> None:
    """Raises ``InputError`` if the files of an array cannot hold a part of that shape, or lie elsewhere."""
    chunk_bytes = math.prod(array.shards or array.chunks) * array.dtype.itemsize
    claimed = math.prod(shape) * array.dtype.itemsize
    if chunk_bytes > max(_MAX_CHUNK_BYTES, 4 * claimed):
        raise InputError(f"expected chunks of at most {_MAX_CHUNK_BYTES} bytes, found some of {chunk_bytes}")
    count = math.prod(-(-size // chunk) for size, chunk in zip(shape, array.chunks, strict=True))
    if count > _MAX_CHUNKS:
        raise InputError(f"expected at most {_MAX_CHUNKS} chunks, found metadata for {count}")
    held = _held_bytes(folder, group.resolve(), 2 * chunk_bytes + _FREE_BYTES)
    if claimed > held * MAX_RATIO + _FREE_BYTES:
        raise InputError(
            f"expected a whole image, but its metadata claim {claimed} bytes, more than {held} bytes of chunks can hold"
        )


def _held_bytes(folder: Path, root: Path, most: int) -> int:
    """Bytes of all files in a folder; raises ``InputError`` for what is no file, leads out of the root, or is too large."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink() and (entry.is_dir() or not Path(entry.path).resolve().is_relative_to(root)):
                raise InputError(
                    f"expected chunks within the folder, found the link {shown(entry.name)}: put a copy in its place"
                )
            if entry.is_dir():
                total += _held_bytes(Path(entry.path), root, most)
            elif not entry.is_file():
                raise InputError(f"expected chunks as files, found {shown(entry.name)}, which is none")
            else:
                size = entry.stat().st_size
                if size > most:
                    raise InputError(f"expected chunks of at most {most} bytes, found {size} in {shown(entry.name)}")
                total += size
    return total
