"""Which reader an image of a microscope has, and what a user says of each of several images, those of DICOM included."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from torch import Tensor

from mcbo.core.errors import InputError
from mcbo.geometry.grid import Grid
from mcbo.io.dicom.header import is_series_folder
from mcbo.io.dicom.series import list_series
from mcbo.io.files import identity, is_folder, shown, suffix_of
from mcbo.io.microscopy import ome_zarr, slices, tiff
from mcbo.io.microscopy.selection import Selection, index_of, voxel_size

Value = TypeVar("Value")
Reader: TypeAlias = Callable[[Path, Selection], tuple[Tensor, Grid]]

NONE = "-"
"""In a list with one entry for each image: nothing for this one."""


def microscopy_reader(path: Path) -> Reader | None:
    """The reader of a TIFF, a folder of slices or an OME-Zarr; None for other files."""
    if is_folder(path):
        if is_series_folder(path):
            return None
        return ome_zarr.read_ome_zarr if ome_zarr.is_ome_zarr(path) else slices.read_slices
    return tiff.read_tiff if suffix_of(path) in tiff.SUFFIXES else None


def finest_that_fits(path: Path, budget_bytes: int) -> Path:
    """The folder of the finest level of an OME-Zarr that can be registered within a budget; any other path as it is."""
    return ome_zarr.level_that_fits(path, budget_bytes // ome_zarr.BYTES_PER_VOXEL) if ome_zarr.is_ome_zarr(path) else path


def name_of_image(path: Path) -> str:
    """The name of a file or folder; of a level of an OME-Zarr ``image.ome.zarr/0``."""
    store = next((folder for folder in path.parents if folder.suffix.lower() == ".zarr"), None)
    return path.name if store is None else f"{store.name}/{path.relative_to(store)}"


def choices(path: Path) -> tuple[int, int]:
    """How many channels and time points an image has; raises ``InputError`` if it cannot be read."""
    reader = microscopy_reader(path)
    if reader is None:
        return 1, 1
    if reader is tiff.read_tiff:
        return tiff.choices(path)
    return ome_zarr.choices(path) if reader is ome_zarr.read_ome_zarr else slices.choices(path)


def selections(
    images: Sequence[object], *, spacing: Any = None, channel: Any = None, time: Any = None, series: Any = None
) -> list[Selection]:
    """What a user says of each of several images.

    Args:
        images: of which each ``Path`` is a file; of others, arrays, only the voxel size is said.
        spacing: a voxel size (``selection.voxel_size``) of all images that do not store it; or a list, one for each image, in
            their order, None or ``-`` where the file's own counts.
        channel: counted from 0, of all images with several; or such a list.
        time: the same of time points.
        series: UID or description of a DICOM series, of all folders with several; or such a list.

    Raises:
        InputError: for other values, a list of another length, or what no image needs.
    """
    several = isinstance(spacing, list | tuple) and not all(isinstance(size, int | float | np.number) for size in spacing)
    sizes = _for_each(spacing if several else [spacing], len(images), "--spacing", voxel_size)
    unsaid = [not isinstance(image, Path) or microscopy_reader(image) is not None for image in images]
    if any(sizes) and not any(unsaid):
        raise InputError("--spacing: expected with TIFF or OME-Zarr only; all other formats store their voxel size")
    if several and len(spacing) > 1:
        for image, size, is_unsaid in zip(images, sizes, unsaid, strict=True):
            if size is not None and not is_unsaid:
                raise InputError(f"{image}: expected no --spacing, since its format stores the voxel size: give - instead")
    channels = _indices(images, channel, "--channel", "channels", 0)
    times = _indices(images, time, "--time", "time points", 1)
    names = _series(images, series)
    return [
        Selection(index, point, size if is_unsaid else None, series=name)
        for index, point, size, is_unsaid, name in zip(channels, times, sizes, unsaid, names, strict=True)
    ]


def to_settings(selected: Sequence[Selection]) -> dict[str, list[str | int | None]]:
    """What was said of images, for a report; ``from_settings`` reads it."""
    return {
        "spacing": [None if one.spacing is None else one.spacing.text for one in selected],
        "channel": [one.channel for one in selected],
        "time": [one.time for one in selected],
        "series": [one.series for one in selected],
    }


def from_settings(settings: Mapping[str, Any], number: int) -> Selection:
    """What was said of an image, counted from 0; raises ``InputError`` for settings of another kind."""
    listed = {key: settings.get(key) for key in ("channel", "time", "spacing", "series")}
    of_it = {key: each[number] if isinstance(each, list) and number < len(each) else None for key, each in listed.items()}
    channel, time = (index_of(of_it[key], key) for key in ("channel", "time"))
    series = of_it["series"]
    return Selection(channel, time, voxel_size(of_it["spacing"]), series=series if isinstance(series, str) else None)


def _indices(images: Sequence[object], values: Any, option: str, what: str, which: int) -> list[int | None]:
    listed = values if isinstance(values, list | tuple) else [values]
    given = _for_each(listed, len(images), option, lambda value: index_of(value, option))
    if all(index is None for index in given):
        return given
    if len(listed) > 1 or len(images) == 1:
        for image, index in zip(images, given, strict=True):
            if index is not None and not (isinstance(image, Path) and microscopy_reader(image)):
                raise InputError(f"{option}: expected for a TIFF or OME-Zarr only, got {index} for {image!s:.80}")
        return given
    has_several = [isinstance(image, Path) and choices(image)[which] > 1 for image in images]
    if not any(has_several) and given[0] != 0:
        raise InputError(f"{option}: expected for an image with several {what}, got {given[0]}, but none has more than one")
    return [index if one else None for index, one in zip(given, has_several, strict=True)]


def _series(images: Sequence[object], values: Any) -> list[str | None]:
    listed = values if isinstance(values, list | tuple) else [values]
    given = _for_each(listed, len(images), "--series", str)
    if all(name is None for name in given):
        return given
    folders = [image if isinstance(image, Path) and is_series_folder(image) else None for image in images]
    if len(listed) > 1 or len(images) == 1:
        for image, name, folder in zip(images, given, folders, strict=True):
            if name is not None and folder is None:
                raise InputError(f"--series: expected for a folder with DICOM series only, got {shown(name)} for {image!s:.80}")
        return given
    known = [folder for folder in folders if folder is not None]
    if not known:
        raise InputError(f"--series: expected for a folder with DICOM series only, got {shown(given[0])}, but none is given")
    if len({identity(folder) for folder in known}) < len(known):
        raise InputError(f"--series: expected one for each of {len(images)} images, since some are in one folder, got it once")
    several = [folder for folder in known if len(list_series(folder)) > 1] or known
    return [name if folder in several else None for name, folder in zip(given, folders, strict=True)]


def _for_each(values: Sequence[Any], count: int, option: str, parse: Callable[[Any], Value | None]) -> list[Value | None]:
    """The values of an option that is given once for all of ``count`` images, or once for each."""
    if len(values) not in (1, count):
        raise InputError(
            f"{option}: expected it once, or once for each of {count} image(s), in their order, got it {len(values)} times"
        )
    parsed = [None if value is None or value == NONE else parse(value) for value in values]
    return parsed * count if len(parsed) == 1 else parsed
