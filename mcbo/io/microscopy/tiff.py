"""TIFF: stacks and hyperstacks of ImageJ, OME-TIFF and others, in one file.

An image is what one channel and one time point hold. Values are those stored: palettes are not looked up, integers stay such.
"""

import logging
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.errors import InputError, MemoryBudgetError
from mcbo.core.log import log
from mcbo.geometry.grid import Grid
from mcbo.io.files import reading, regular_size
from mcbo.io.formats.itk_image import read_tiff_pages
from mcbo.io.microscopy.selection import Selection, Stated, selected
from mcbo.io.microscopy.tiff_layout import check_layout
from mcbo.io.microscopy.tiff_size import parse_ome, stated_size
from mcbo.io.nifti import to_tensor
from mcbo.io.nifti_header import MAX_RATIO, MAX_VOXELS

SUFFIXES = (".tif", ".tiff", ".btf", ".tf2", ".tf8")
"""The last three of BigTIFF, which the others may be, too."""

_ERRORS = (Exception,)
"""tifffile raises errors of any kind at broken files."""

_FREE_BYTES = 1 << 26
"""That a compressed file may claim whatever its size."""

_NAMES = {"C": "channels", "T": "time points", "S": "numbers a voxel"}

_UNNAMED = "IQ"
"""Axes along which slices lie where none is called depth: a sequence of pages, and unknown."""

logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # what it warns of is refused here


@dataclass(frozen=True)
class Stack:
    """The image of a file.

    Attributes:
        axes, shape: letters and sizes of all axes longer than one, rows (Y) and columns (X) last.
        page_axes: those of them that a page has.
        dtype: of the values.
        pages: in the order of the other axes; None where one is missing.
        offset: of the first value, where all values follow each other.
        stated: the voxel size.
    """

    axes: str
    shape: tuple[int, ...]
    page_axes: str
    dtype: np.dtype[Any]
    pages: Sequence[Any]
    offset: int | None
    stated: Stated

    def size(self, axis: str) -> int:
        """Along an axis; 1 if there is none."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1


def read_tiff(path: Path, selection: Selection) -> tuple[Tensor, Grid]:
    """Reads the image of a TIFF: ``(1, 1, H, W, D)`` as stored, axis 0 along columns, and its grid.

    Raises:
        InputError: if it is no image in space, holds several and none is selected, or states no voxel size, nor does the user.
    """
    with _opened(path) as (tif, ome):
        stack = _stack(tif, ome)
        if stack.size("Z") == 1:
            raise InputError(f"expected a 3D image, found one slice{_other_than_slices(stack.axes)}")
        lead = selected(selection, channels=stack.size("C"), times=stack.size("T"))
        grid = stack.stated.grid((stack.size("X"), stack.size("Y"), stack.size("Z")), selection)
        return to_tensor(_values(path, tif, stack, lead).transpose(2, 1, 0))[None, None], grid


def read_slice(path: Path, selection: Selection) -> tuple[NDArray[Any], Stated]:
    """Reads a TIFF of one slice: ``(rows, columns)`` as stored, and what it says of the voxel size; raises as ``read_tiff``."""
    with _opened(path, is_slice=True) as (tif, ome):
        stack = _stack(tif, ome)
        if stack.size("Z") > 1:
            raise InputError(f"expected one slice in each file of a folder, found {stack.size('Z')}")
        lead = selected(selection, channels=stack.size("C"), times=stack.size("T"))
        return _values(path, tif, stack, lead)[0], stack.stated


def choices(path: Path, *, is_slice: bool = False) -> tuple[int, int]:
    """How many channels and time points a TIFF holds, from its header alone; raises ``InputError`` as ``read_tiff``."""
    with _opened(path, is_slice=is_slice) as (tif, ome):
        stack = _stack(tif, ome)
        return stack.size("C"), stack.size("T")


@contextmanager
def _opened(path: Path, *, is_slice: bool = False) -> Iterator[tuple[tifffile.TiffFile, str | None]]:
    """A file whose layout has been checked, and its OME-XML; errors in the block become ``InputError``.

    The OME-XML of a slice tells of all of them; for its pages it is not taken into account.
    """
    regular_size(path, "a TIFF image")
    with reading(path, "a TIFF image", _ERRORS):
        check_layout(path)
        plain: dict[str, Any] = {"_multifile": False, "is_mmstack": False, "is_ndtiff": False}  # which name other files
        with tifffile.TiffFile(path, **plain) as tif:
            ome = tif.ome_metadata if tif.is_ome else None
            if ome is None or not (is_slice or "UUID" in ome or "BinaryOnly" in ome):
                yield tif, ome
                return
        plain |= {"is_ome": False} if is_slice else {"omexml": _of_one_file(ome)}
        with tifffile.TiffFile(path, **plain) as tif:
            yield tif, ome


def _of_one_file(text: str) -> str:
    """OME-XML without the names of files, which people change; raises ``InputError`` if there are several."""
    elements = list(parse_ome(text).iter())
    files = {element.text for element in elements if element.tag.endswith("UUID")}
    if len(files) > 1 or any(element.tag.endswith("BinaryOnly") for element in elements):
        raise InputError(
            f"expected an image in one file, found one of {max(len(files), 2)} files or more of an OME-TIFF: save it as one "
            "(Fiji: Bio-Formats Importer, then Save As)"
        )
    return re.sub(r"<(\w+:)?UUID\b[^>]*?(/>|>.*?</(\w+:)?UUID\s*>)", "", text, flags=re.DOTALL)


def _stack(tif: tifffile.TiffFile, ome: str | None) -> Stack:
    series = _volume(tif.series)
    first = series[0]
    if len(series) > 1:  # pages that were written one by one
        axes, shape = f"I{first.axes}", (len(series), *first.shape)
    else:
        axes, shape = first.axes, first.shape
    key = first.keyframe
    pages = [page for one in series for page in _pages(one)]
    kept = [(a, n) for a, n in zip(axes, shape, strict=True) if n > 1 or a in "YX"]
    axes, shape = _named("".join(a for a, _ in kept)), tuple(n for _, n in kept)
    page_axes = axes[len(axes) - sum(n > 1 or a in "YX" for a, n in zip(key.axes, key.shape, strict=True)) :]
    lead = math.prod(shape) // math.prod(shape[len(axes) - len(page_axes) :])
    offset = first.dataoffset if len(series) == 1 and first.transform is None else None
    if offset is None and (len(pages) != lead or None in pages):
        raise InputError(
            f"expected a whole TIFF image of {lead} pages, found {sum(page is not None for page in pages)}: it is cut off"
        )
    slices = shape[axes.index("Z")] if "Z" in axes else 1
    stated = stated_size(tif, ome, image=tif.series.index(first), slices=slices)
    return Stack(axes, shape, page_axes, np.dtype(first.dtype), pages, offset, stated)


def _pages(series: tifffile.TiffPageSeries) -> list[Any]:
    """Of a series; of one that is stored as one block behind its only page, that."""
    return list(series) if series.dataoffset is None else list(series._pages)


def _volume(series: Sequence[tifffile.TiffPageSeries]) -> list[tifffile.TiffPageSeries]:
    """The series of pages that is the image, or several that are its slices."""
    if not series:
        raise InputError("expected a TIFF image, found none in it")
    flat = [one for one in series if set(one.axes) <= set("YXS") and "S" not in one.axes]
    if (
        len(series) > 1
        and len(flat) == len(series)
        and len({(one.shape, one.dtype.str) for one in flat}) == 1
        and flat[0].kind != "ome"
    ):
        return flat
    deep = [one for one in series if one not in flat] or list(series)
    if len(deep) == 1 and not all(_is_beside(one, deep[0]) for one in series if one is not deep[0]):
        deep = list(series)
    if len(deep) > 1:
        listed = ", ".join(
            f"{one.name or number} ({'×'.join(map(str, one.shape))} {one.axes})" for number, one in enumerate(deep[:8])
        )
        raise InputError(f"expected one image in the file, found {len(deep)}: {listed}; save the one to use alone")
    if len(series) > 1:
        log.warning("%s: took the stack, not %d smaller page(s) beside it", deep[0].keyframe.parent.filename, len(series) - 1)
    return deep


def _is_beside(page: tifffile.TiffPageSeries, stack: tifffile.TiffPageSeries) -> bool:
    """Whether a page is a small picture before or behind a stack, such as a thumbnail, not a slice of it that was spoiled."""
    numbers, (first, *_, last) = ([one.index for one in pages if one is not None] for pages in (page, stack))
    rows, columns = stack.shape[stack.axes.index("Y")], stack.shape[stack.axes.index("X")]
    is_smaller = page.shape[page.axes.index("Y")] < rows and page.shape[page.axes.index("X")] < columns
    return is_smaller and all(number < first or number > last for number in numbers)


def _named(axes: str) -> str:
    """Axes with the slices called Z; raises ``InputError`` for others than these, channels and time."""
    if "Z" not in axes and (unnamed := [axis for axis in axes if axis in _UNNAMED]):
        axes = axes.replace(unnamed[0], "Z", 1)
    if "S" in axes:
        raise InputError(
            "expected one number per voxel, found a color image: make it gray, or split its channels (ImageJ: Image > Color > "
            "Split Channels)"
        )
    if other := [axis for axis in axes if axis not in "TCZYX"]:
        names = ", ".join(tifffile.TIFF.AXES_NAMES.get(axis, axis) for axis in other)
        raise InputError(f"expected slices, channels and time points, found an image with further axes: {names}")
    return axes


def _other_than_slices(axes: str) -> str:
    lead = " and ".join(_NAMES[axis] for axis in axes if axis in _NAMES)
    return f" of several {lead}: if these are slices, say so in the file (ImageJ: Image > Properties)" if lead else ""


def _values(path: Path, tif: tifffile.TiffFile, stack: Stack, which: tuple[int, int]) -> NDArray[Any]:
    """The values of one channel and time point: ``(slices, rows, columns)``."""
    lead = dict(zip("CT", which, strict=True))
    shape = (stack.size("Z"), stack.size("Y"), stack.size("X"))
    if math.prod(shape) > MAX_VOXELS:
        raise InputError(f"expected an image of at most {MAX_VOXELS} voxels, found a header for the shape {shape[::-1]}")
    if stack.dtype.kind not in "biuf":
        raise InputError(f"expected one number per voxel, found data of type {stack.dtype}")
    size = path.stat().st_size
    if stack.offset is not None:
        _check_held(size - stack.offset, math.prod(stack.shape) * stack.dtype.itemsize)
        whole = np.memmap(path, stack.dtype.newbyteorder(tif.byteorder), "r", stack.offset, stack.shape)
        return _part(whole, stack.axes, lead).reshape(shape)
    outer = stack.axes[: -len(stack.page_axes)]
    numbers = _part(np.arange(len(stack.pages)).reshape(stack.shape[: len(outer)]), outer, lead).reshape(-1)
    pages = [stack.pages[number] for number in numbers]
    _check_pages(pages, size)
    values = np.empty(shape, stack.dtype)
    thick = shape[0] // len(pages)
    decoded = _decoded(path, tif, pages)
    for number, page in enumerate(decoded):
        part = _part(page.reshape(stack.shape[len(outer) :]), stack.page_axes, lead)
        values[number * thick : (number + 1) * thick] = part
    return values


def _part(array: NDArray[Any], axes: str, lead: dict[str, int]) -> NDArray[Any]:
    """One channel and time point of an array, whose other axes are in the order Z, Y, X."""
    part = array[tuple(lead.get(axis, slice(None)) for axis in axes)]
    rest = [axis for axis in axes if axis not in lead]
    return part.transpose([rest.index(axis) for axis in "ZYX" if axis in rest])


def _check_pages(pages: Sequence[Any], size: int) -> None:
    """Raises ``InputError`` if pages claim more than the file can hold."""
    held = claimed = 0
    for page in pages:
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            if count <= 0 or offset <= 0 or offset + count > size:
                raise InputError(
                    "expected a whole TIFF image, found a page whose pixels lie outside of the file: it is cut off"
                )
            held += count
        claimed += page.nbytes
    if pages[0].keyframe.compression == 1 and pages[0].keyframe.bitspersample >= 8:
        _check_held(held, claimed)
    else:
        _check_held(held * MAX_RATIO + _FREE_BYTES, claimed)


def _check_held(held: int, claimed: int) -> None:
    if claimed > held:
        raise InputError(
            f"expected a whole TIFF image, but its header claims {claimed} bytes, more than it can hold: it is cut off"
        )


def _decoded(path: Path, tif: tifffile.TiffFile, pages: Sequence[Any]) -> Iterator[NDArray[Any]]:
    """The pages' values; where the codec is missing, by ITK, which has the usual ones."""
    try:
        first = pages[0].asarray()
    except (ValueError, KeyError, NotImplementedError, ImportError) as error:
        if "imagecodecs" not in str(error) and not isinstance(error, NotImplementedError | ImportError):
            raise
        yield from _decoded_by_itk(path, tif, pages)
        return
    yield first
    for page in pages[1:]:
        yield page.asarray()


def _decoded_by_itk(path: Path, tif: tifffile.TiffFile, pages: Sequence[Any]) -> Iterator[NDArray[Any]]:
    key = pages[0].keyframe
    missing = (
        f"expected a TIFF of another compression than {getattr(key.compression, 'name', key.compression)}: save it without, or "
        "pip install imagecodecs"
    )
    try:
        array = read_tiff_pages(path)
    except (InputError, MemoryBudgetError) as error:
        raise InputError(missing) from error
    is_same = array.shape == (len(tif.pages), *key.shape) and array.dtype == key.dtype
    if not is_same or not all(isinstance(page.index, int) for page in pages):
        raise InputError(missing)
    for page in pages:
        yield array[page.index]
