"""The files of a case: their names, whether there is room for them, how they are written, and placeholders."""

import contextlib
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mcbo.core.errors import InputError, MemoryBudgetError
from mcbo.core.log import log
from mcbo.core.types import Displacement, Shape, Volume
from mcbo.dataset.learn2reg import Case, Pair, wanted
from mcbo.io.files import check_room, format_bytes, free_disk_bytes
from mcbo.io.nifti import read_grid, write_displacement, write_volume
from mcbo.io.source import File
from mcbo.runs.options import Options

_DISPLACEMENT_BYTES = 12
"""A voxel, float32. Compressed files are smaller, by how much nobody knows before: from a few percent to nearly all."""
_WARPED_BYTES = 4


def output_files(pair: Pair, options: Options) -> list[Path]:
    """The files of a pair: its displacement and, if asked for, the warped moving image."""
    paths = [options.output / f"{pair.field_name}{options.suffix}"]
    if options.warped:
        paths.append(options.output / f"warped_{pair.field_name.removeprefix('disp_')}.nii.gz")
    return paths


def check_inputs_stay(cases: Iterable[Case], options: Options) -> None:
    """Refuses a run that would write over an image that it reads, as where images are named as results are.

    Raises:
        InputError: with the first such file.
    """
    pairs = [pair for case in cases for pair in case.pairs]
    inputs = {_identity(path) for path in dict.fromkeys(path for pair in pairs for path in (pair.fixed, pair.moving))} - {None}
    for target in (path for pair in pairs for path in output_files(pair, options)):
        if _identity(target) in inputs:
            raise InputError(f"{target}: expected another output than an input, which would be lost")


def _identity(path: File) -> tuple[int, int] | None:
    """What tells a file from all others, by whatever path; None if it is not there."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def check_case_room(pairs: int, shape: Shape, options: Options) -> None:
    """Refuses a case for whose files there is no room.

    Raises:
        DiskSpaceError: with the figures.
    """
    check_room(options.output, pairs * _pair_bytes(shape, options), f"{pairs} displacement(s)")


def warn_of_room(cases: Iterable[Case], options: Options) -> None:
    """Warns, before anything is computed, if there may be no room for all results; the run goes on as far as they fit."""
    needed = 0
    for case in cases:
        missing = [pair for pair in wanted(case, options.movings) if not output_files(pair, options)[0].exists()]
        with contextlib.suppress(InputError):  # told when its turn comes
            needed += len(missing) * _pair_bytes(read_grid(case.fixed)[0], options) if missing else 0
    free = free_disk_bytes(options.output)
    if needed > free:
        log.warning(
            "%s: the displacements of all cases may take %s (before compression), but %s are free there",
            options.output,
            format_bytes(needed),
            format_bytes(free),
        )


def _pair_bytes(shape: Shape, options: Options) -> int:
    return math.prod(shape) * (_DISPLACEMENT_BYTES + (_WARPED_BYTES if options.warped else 0))


def write_pair(
    pair: Pair, displacement: Displacement, warped: Volume | None, affine: NDArray[np.float64], options: Options
) -> Path:
    """Writes what belongs to a pair, the displacement last, so that where it is, all is; returns its path.

    Args:
        pair: whose files these are.
        displacement: ``(1, 3, H, W, D)`` voxels.
        warped: the warped moving image ``(1, 1, H, W, D)``, if asked for.
        affine: of the fixed image.
        options: of the run.

    Raises:
        OutputError: if that fails.
    """
    path, *warped_path = output_files(pair, options)
    if warped is not None:
        write_volume(warped_path[0], warped, affine)
    write_displacement(path, displacement, affine)
    return path


def write_placeholder(pair: Pair, options: Options, *, budget_bytes: int) -> Path:
    """Writes a zero displacement for a pair that has no result; returns its path.

    Its grid is that of the fixed image's header or, where that cannot be read, of the moving image's.

    Raises:
        InputError: if neither header can be read.
        MemoryBudgetError: if what the header claims does not fit into memory.
        OutputError: if it cannot be written.
    """
    shape, affine = _grid_of(pair)
    check_case_room(1, shape, options)
    needed = _DISPLACEMENT_BYTES * math.prod(shape)
    if needed > budget_bytes:
        raise MemoryBudgetError(
            f"{pair.fixed}: a zero displacement would take {format_bytes(needed)} of memory, "
            f"but the run may use {format_bytes(budget_bytes)}"
        )
    path = output_files(pair, options)[0]
    write_displacement(path, torch.zeros((1, 3, *shape)), affine)
    return path


def _grid_of(pair: Pair) -> tuple[Shape, NDArray[np.float64]]:
    try:
        return read_grid(pair.fixed)
    except InputError as fixed_error:
        try:
            return read_grid(pair.moving)
        except InputError as error:
            raise InputError(f"neither image has a readable header: {fixed_error}; {error}") from error


def remove(path: Path) -> bool:
    """Removes a file that has the name of a result which this run could not produce: it would be taken for that.

    Returns:
        Whether there was something, and it is gone.
    """
    if not path.is_file():
        return False
    try:
        path.unlink()
    except OSError:
        return False
    return True
