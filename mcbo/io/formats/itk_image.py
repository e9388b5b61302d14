"""Images that ITK reads, in the other process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.errors import InputError
from mcbo.geometry.grid import Grid
from mcbo.io.files import reading
from mcbo.io.formats.format import Claim, check_count, check_memory, file_size
from mcbo.io.itk import grid_from
from mcbo.io.nifti import to_tensor
from mcbo.io.sandbox.client import Limits, read_outside
from mcbo.io.sandbox.wire import Frame

_TIFF_RATIO = 1400
"""Largest ratio of compression: LZW, with strings as long as its 4096 codes allow."""

Judge: TypeAlias = Callable[[Path], Claim]
"""What a header claims, by a parser of our own; raises ``InputError`` for one that cannot be trusted."""


def read_itk(path: Path, io: str, judge: Judge, *, numbers: int = 1, expected: str = "an image") -> tuple[Tensor, Grid]:
    """Reads an image by one of ITK's formats.

    Args:
        path: the file.
        io: ITK's class for the format, ``NrrdImageIO``.
        judge: the format's.
        numbers: per voxel.
        expected: for messages.

    Returns:
        ``(1, numbers, H, W, D)``, and its grid in RAS.

    Raises:
        InputError: if it is not such an image.
        MemoryBudgetError: if it does not fit.
    """
    check_name(path)
    file_size(path, expected)
    with reading(path, expected):
        claim = judge(path)
        claim.check()
        request = {"what": "image", "path": str(path.absolute()), "io": io}
        return to_volume(*_read(request, claim, numbers, expected), numbers)


def check_name(path: Path) -> None:
    """Raises ``InputError`` for a name that is not UTF-8, which would end ITK."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: expected a name in UTF-8, as this format needs; rename it") from error


def read_tiff_pages(path: Path) -> NDArray[Any]:
    """All pages of a TIFF of ITK's kinds and compressions: ``(pages, rows, columns)``; raises as ``read_itk``."""
    check_name(path)
    with reading(path, "a TIFF"):
        request = {"what": "image", "path": str(path.absolute()), "io": "TIFFImageIO"}
        return _read(request, judge_size(path, _TIFF_RATIO), 1, "a TIFF")[0]


def _read(request: Frame, claim: Claim, numbers: int, expected: str) -> tuple[NDArray[Any], Frame]:
    def judge(header: Frame) -> Limits:
        found, value_bytes = int(header["numbers"]), int(header["value_bytes"])
        if found != numbers:
            raise InputError(f"expected {'one number' if numbers == 1 else f'{numbers} numbers'} per voxel, found {found}")
        count = check_count([*header["size"], found])
        Claim(count, count * value_bytes, claim.held_bytes, claim.ratio).check()
        check_memory(count, value_bytes)
        return Limits.of_data(claim.held_bytes, count * value_bytes)

    limits = Limits.of_data(claim.held_bytes, 0)  # the header of a TIFF is all over it
    return read_outside("with_itk", request, expected=expected, judge=judge, limits=limits)


def to_volume(array: NDArray[Any], about: Frame, numbers: int) -> tuple[Tensor, Grid]:
    """An array of ITK's, ``(D, W, H)`` or ``(D, W, H, n)``, as ``(1, n, H, W, D)``, and its grid."""
    size = array.shape[2::-1]
    grid = grid_from(size, about["spacing"], about["origin"], about["direction"])
    ordered = array.reshape(*array.shape[:3], numbers).transpose(3, 2, 1, 0)
    return to_tensor(ordered)[None], grid


def judge_size(path: Path, ratio: int = 1) -> Claim:
    """For a format whose header ITK alone judges: nothing is claimed yet, but the file has a size."""
    return Claim(0, 0, file_size(path, "an image"), ratio)
