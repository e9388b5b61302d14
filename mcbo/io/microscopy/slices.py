"""A folder of TIFF files, one for each slice, in the order of the number in which their names differ."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from torch import Tensor

from mcbo.core.errors import InputError
from mcbo.core.log import log
from mcbo.geometry.grid import Grid
from mcbo.io.files import reading, suffix_of
from mcbo.io.formats.folder import remedy
from mcbo.io.microscopy import tiff
from mcbo.io.microscopy.selection import Selection
from mcbo.io.nifti import to_tensor
from mcbo.io.nifti_header import MAX_VOXELS

_SHOWN = 12
"""Names or numbers in a message, at most."""


def read_slices(folder: Path, selection: Selection) -> tuple[Tensor, Grid]:
    """Reads a folder of slices: ``(1, 1, H, W, D)`` as stored, axis 0 along columns, axis 2 along the numbers; and its grid.

    Files of other kinds are ignored, and a warning names them; another warns of numbers that are missing.

    Raises:
        InputError: if it holds no slices, or those of several series, sizes or types; or as ``read_tiff``.
    """
    files = in_order(folder)
    first, stated = tiff.read_slice(files[0], selection)
    rows, columns = first.shape
    if len(files) * first.size > MAX_VOXELS:
        raise InputError(
            f"{folder}: expected an image of at most {MAX_VOXELS} voxels, found {len(files)} slices of {columns}×{rows}"
        )
    try:
        grid = stated.grid((columns, rows, len(files)), selection)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    values = np.empty((len(files), rows, columns), first.dtype)
    values[0] = first
    for number, file in enumerate(files[1:], start=1):
        plane, _ = tiff.read_slice(file, selection)
        if plane.shape != first.shape or plane.dtype != first.dtype:
            raise InputError(
                f"{folder}: expected slices of one size and type, found {_about(first)} in {files[0].name}, {_about(plane)} in "
                f"{file.name}"
            )
        values[number] = plane
    return to_tensor(values.transpose(2, 1, 0))[None, None], grid


def choices(folder: Path) -> tuple[int, int]:
    """How many channels and time points each slice has, by the first; raises ``InputError`` as ``read_slices``."""
    return tiff.choices(in_order(folder)[0], is_slice=True)


def in_order(folder: Path) -> list[Path]:
    """The slices in a folder: slice2 before slice10; raises ``InputError`` if they are none, or not of one series."""
    with reading(folder, "a folder of slices"):
        content = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    found = [path for path in content if path.is_file()]
    files = [file for file in found if suffix_of(file) in tiff.SUFFIXES]
    if not files:
        raise InputError(
            f"{folder}: expected TIFF files in this folder, one per slice, found none, and no DICOM: {remedy(folder, content)}"
        )
    if len(files) < 2:
        raise InputError(f"{folder}: expected TIFF files in this folder, one per slice, found {len(files)}")
    if others := [file.name for file in found if file not in files]:
        log.warning("%s: ignored %d file(s) that are no TIFF: %s", folder, len(others), _listed(others))
    patterns = Counter(_pattern(file) for file in files)
    if len(patterns) > 1:
        listed = _listed([f"{pattern} ({count})" for pattern, count in patterns.most_common()])
        raise InputError(f"{folder}: expected the slices of one series, names that differ in a number alone, found {listed}")
    numbers = np.array([_numbers(file) for file in files], dtype=object)
    varying = [column for column in range(numbers.shape[1]) if len(set(numbers[:, column])) > 1]
    counters = [column for column in varying if len(set(numbers[:, column])) == len(files)]
    if not varying or len(counters) < len(varying):
        _refuse_several(folder, files, numbers, [column for column in varying if column not in counters])
    order = sorted(range(len(files)), key=lambda i: numbers[i, counters[-1]])
    if any(numbers[i, column] > numbers[j, column] for column in counters for i, j in pairwise(order)):
        _refuse_several(folder, files, numbers, counters)
    _warn_of_gaps(folder, [int(numbers[i, counters[-1]]) for i in order])
    return [files[i] for i in order]


def _pattern(file: Path) -> str:
    """A name with # for its numbers."""
    return re.sub("[0-9]+", "#", file.name.lower())


def _numbers(file: Path) -> list[int]:
    return [int(digits) for digits in re.findall("[0-9]+", file.name)]


def _refuse_several(folder: Path, files: Sequence[Path], numbers: np.ndarray, columns: Sequence[int]) -> None:
    """Raises ``InputError``, naming series by a number that several of their files share."""
    if not columns:
        raise InputError(f"{folder}: expected names that differ in a number, found {_listed([file.name for file in files])}")
    parts = re.split("[0-9]+", files[0].name)
    series = [
        "".join(part + (str(value) if i == columns[0] else "#" if i < numbers.shape[1] else "") for i, part in enumerate(parts))
        for value in sorted(set(numbers[:, columns[0]]))
    ]
    raise InputError(
        f"{folder}: expected the slices of one series, names that differ in one number, found {_listed(series)}: put each into "
        "a folder of its own"
    )


def _warn_of_gaps(folder: Path, numbers: Sequence[int]) -> None:
    gaps = [(low, high) for low, high in pairwise(numbers)]
    step = Counter(high - low for low, high in gaps).most_common(1)[0][0]
    wide = [(low, high) for low, high in gaps if high - low > step]
    if wide:
        between = [f"{low} and {high}" for low, high in wide]
        log.warning("%s: slices are missing, their neighbors are taken for adjacent: between %s", folder, _listed(between))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _about(plane: np.ndarray) -> str:
    return f"{plane.shape[1]}×{plane.shape[0]} {plane.dtype}"
