"""Reads a DICOM series: the one in a folder, or the one that is chosen of several."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mcbo.core.errors import InputError
from mcbo.core.log import log
from mcbo.geometry.grid import Grid
from mcbo.io.dicom.arrange import SEVERAL_FRAMES, arrange
from mcbo.io.dicom.header import SUFFIXES, Slice, begins_as_dicom, compression, has_pixels, is_series_folder
from mcbo.io.files import is_file, is_folder, reading, shown, suffix_of
from mcbo.io.formats.format import Claim, Format, check_count, check_memory, file_size
from mcbo.io.formats.itk_image import check_name
from mcbo.io.microscopy.selection import Selection
from mcbo.io.microscopy.tiff import SUFFIXES as TIFF_SUFFIXES
from mcbo.io.nifti import to_tensor
from mcbo.io.sandbox.client import HEADER_S, Limits, read_outside
from mcbo.io.sandbox.wire import Frame

_INDEX = "DICOMDIR"

_S_PER_FILE = 0.02
_MAX_LISTED = 20


def read_dicom(path: Path, selection: Selection) -> tuple[Tensor, Grid]:
    """Reads a series of a folder.

    Args:
        path: the folder.
        selection: its ``series`` is a UID or a description, needed where the folder has several.

    Returns:
        ``(1, 1, H, W, D)`` with rescaled intensities, int32 or int64 where they are whole, and the grid: axis 0 along the
        columns of a slice, axis 2 along the slices, from the first by position.

    Raises:
        InputError: if it is one slice, a file of several frames, or slices that do not make a volume.
        MemoryBudgetError: if it does not fit.
    """
    check_name(path)
    with reading(path, "a DICOM series"):
        if not is_folder(path):
            file_size(path, "a DICOM image")
            raise InputError(_why_no_series(path))
        if any(suffix_of(file) in TIFF_SUFFIXES for file in path.iterdir()):
            raise InputError("expected a DICOM series, or TIFF files, found both: move one of them to another folder")
        found = list_series(path)
        slices, grid = arrange(_without_copies(found[_choose(found, selection.series)]))
        _warn_of_others(path, found)
        array = _read_slices(slices)
        if array.shape != grid.shape[::-1]:
            raise InputError(f"expected slices as their headers say, {grid.shape}, found {array.shape[::-1]}: copy them again")
        return to_tensor(array.transpose(2, 1, 0))[None, None], grid


def list_series(folder: Path) -> dict[str, list[Slice]]:
    """The slices of each series in a folder, by UID; files that hold no image are left out.

    Raises:
        InputError: if an image among them cannot be read, since what is read without it would be another volume.
    """
    files = sorted(file for file in folder.iterdir() if begins_as_dicom(file) and file.name.upper() != _INDEX)
    found: dict[str, list[Slice]] = {}
    for file, header in zip(files, _read_headers(files), strict=True):
        if header is not None:
            found.setdefault(str(header.get("series", "")), []).append(Slice(file, header))
        elif has_pixels(file):
            raise InputError(
                f"expected whole DICOM images, found {shown(file.name)}, which cannot be read: it is cut off or damaged; copy "
                "it again, or move it elsewhere"
            )
    return found


def _warn_of_others(folder: Path, series: dict[str, list[Slice]]) -> None:
    """Names the files of a folder that belong to no series."""
    known = {one.path for slices in series.values() for one in slices}
    files = sorted(file for file in folder.iterdir() if is_file(file) and not file.name.startswith("."))
    others = [file.name for file in files if file not in known and file.name.upper() != _INDEX]
    if others:
        listed = ", ".join(others[:_MAX_LISTED]) + (", …" if len(others) > _MAX_LISTED else "")
        log.warning("%s: ignored %d file(s) that are no DICOM images: %s", folder, len(others), listed)


def _read_headers(files: Sequence[Path]) -> list[dict[str, Any] | None]:
    """Of each file the header as ``Slice`` has it; None if it is no image."""
    sizes = [file_size(file, "a DICOM file") for file in files]
    found: list[dict[str, Any] | None] = []

    def judge(told: Frame) -> Limits:
        found.extend(told["headers"])
        return Limits()

    of_all = Limits.of_data(sum(sizes), 0)  # GDCM reads pixels with every header
    limits = Limits(of_all.seconds + _S_PER_FILE * len(files), 2**28 + 4 * max(sizes, default=0))
    read_outside("with_itk", _request("headers", files), expected="DICOM files", judge=judge, limits=limits)
    return found


def _read_slices(slices: Sequence[Slice]) -> Any:
    """The pixels, rescaled as each header says: ``(slices, rows, columns)``."""
    held = 0
    for one in slices:
        size = file_size(one.path, "a DICOM file")
        pixels = math.prod(one.header["size"][:2])
        with reading(shown(one.path.name), "a slice"):
            Claim(pixels, pixels * int(one.header["stored_bytes"]), size, compression(one.path)).check()
        held += size
    types = {one.header["type"] for one in slices}  # which ITK would take from the first slice for all of them
    as_float = len(types) > 1

    def judge(told: Frame) -> Limits:
        count = check_count(told["size"])
        check_memory(count, int(told["value_bytes"]))
        of_data = Limits.of_data(held, count * int(told["value_bytes"]))
        return Limits(of_data.seconds + HEADER_S + _S_PER_FILE * len(slices), of_data.bytes)

    request = _request("slices", [one.path for one in slices]) | {"as_float": as_float}
    return read_outside("with_itk", request, expected="a DICOM series", judge=judge)[0]


def _request(what: str, files: Sequence[Path]) -> Frame:
    for file in files:
        check_name(file)
    return {"what": what, "files": [str(file.absolute()) for file in files]}


def _why_no_series(path: Path) -> str:
    """What is to be said of a single file."""
    if path.name.upper() == _INDEX:
        return (
            "expected the folder of a DICOM series, found the index of a medium (DICOMDIR): give the folder that has the slices"
        )
    header = _read_headers([path])[0]
    if header is None:
        return (
            "expected the folder of a DICOM series, found a file that cannot be read as a DICOM image: give a folder of "
            "slices, or an image in another format"
        )
    if Slice(path, header).frames > 1:
        return SEVERAL_FRAMES
    return f"expected a volume, found one slice of a DICOM series: give its folder, {shown(str(path.parent))}"


def _choose(series: dict[str, list[Slice]], name: str | None) -> str:
    """The UID of the series that is named, or of the only one."""
    if not series:
        raise InputError(
            "expected a DICOM series, found DICOM files without images (reports, structures, states): give the folder of its "
            "slices"
        )
    named = [] if name is None else _matches(series, name)
    if len(named) == 1 or (name is None and len(series) == 1):
        return (named or list(series))[0]
    listed = "; ".join(
        f"{shown(slices[0].text('description') or 'no description')}, {_counted(slices)}, {shown(uid)}"
        for uid, slices in list(series.items())[:_MAX_LISTED]
    )
    more = f"; and {len(series) - _MAX_LISTED} more" if len(series) > _MAX_LISTED else ""
    several = f"one of {len(series)} DICOM series" if len(series) > 1 else "the only DICOM series"
    got = "" if name is None else f", got {shown(name)}{', which is that of several' if named else ''}"
    raise InputError(f"expected --series with the description or UID of {several}{got}: {listed}{more}")


def _counted(slices: Sequence[Slice]) -> str:
    frames = sum(one.frames for one in slices)
    return f"{frames} slice{'s' if frames > 1 else ''}{' in one file' if len(slices) == 1 < frames else ''}"


def _matches(series: dict[str, list[Slice]], name: str) -> list[str]:
    """The UIDs of the series with a UID or, in any case, a description."""
    return [uid for uid, slices in series.items() if name == uid or name.lower() == slices[0].text("description").lower()]


def _without_copies(slices: Sequence[Slice]) -> list[Slice]:
    """One of all files with the same UID of their image."""
    unique = {one.text("uid") or str(one.path): one for one in reversed(slices)}
    if len(unique) < len(slices):
        log.warning("%s: %d file(s) are copies of others, and left out", slices[0].path.parent, len(slices) - len(unique))
    return list(unique.values())


FORMAT = Format("DICOM", SUFFIXES, read_dicom, takes=is_series_folder)
