"""The files of a case: their names, whether there is room for them, how they are written, and placeholders."""

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from mcbo.core.errors import InputError, MemoryBudgetError
from mcbo.core.log import log
from mcbo.core.types import Displacement, Shape, Volume
from mcbo.dataset.learn2reg import Case, Pair, wanted
from mcbo.geometry.grid import Grid
from mcbo.io.files import check_inputs_stay, check_room, check_size, format_bytes, free_disk_bytes, is_file, write_whole
from mcbo.io.nifti import read_grid, write_displacement, write_volume
from mcbo.io.source import File
from mcbo.methods.memory_model import result_bytes
from mcbo.runs.options import Options


def output_files(pair: Pair, options: Options) -> list[Path]:
    """The files of a pair: its displacement and, if requested, the warped moving image."""
    paths = [options.output / f"{pair.field_name}{options.suffix}"]
    if options.warped:
        paths.append(options.output / f"warped_{pair.field_name.removeprefix('disp_')}.nii.gz")
    return paths


def check_outputs(cases: Iterable[Case], options: Options, *, inputs: Iterable[File] = ()) -> None:
    """Refuses a run that would overwrite an input (``InputError``), as where images are named as results are.

    ``inputs`` besides the images of the cases.
    """
    pairs = [pair for case in cases for pair in case.pairs]
    results = [path for pair in pairs for path in output_files(pair, options)]
    check_inputs_stay(
        [*results, options.output / options.report_name, lock_file(options)],
        {*inputs, *(path for pair in pairs for path in (pair.fixed, pair.moving))},
    )


def lock_file(options: Options) -> Path:
    """The file that a run with this report locks."""
    return options.output / f".{options.report_name}.lock"


def check_case_room(pairs: int, shape: Shape, options: Options) -> None:
    """Refuses a case whose files would not fit on the disk (``DiskSpaceError``)."""
    check_room(options.output, result_bytes(shape, pairs=pairs, warped=options.warped), f"{pairs} displacement(s)")


def warn_of_room(cases: Iterable[Case], options: Options) -> None:
    """Warns, before anything is computed, if the results may not all fit on the disk; the run continues as far as they do.

    Counted without compression, which saves between a few percent and nearly all.
    """
    needed = 0
    for case in cases:
        missing = [pair for pair in wanted(case, options.movings) if not is_file(output_files(pair, options)[0])]
        with contextlib.suppress(InputError):  # reported when the case is read
            if missing:
                needed += result_bytes(read_grid(case.fixed).shape, pairs=len(missing), warped=options.warped)
    free = free_disk_bytes(options.output)
    if needed > free:
        log.warning(
            "%s: the displacements of all cases may take %s (before compression), but %s are free there",
            options.output,
            format_bytes(needed),
            format_bytes(free),
        )


def write_pair(
    pair: Pair,
    displacement: Displacement,
    warped: Volume | None,
    grid: Grid,
    options: Options,
    *,
    same: tuple[Path, str | None] | None,
) -> dict[Path, str | None]:
    """Writes the displacement ``(1, 3, H, W, D)`` of a pair, voxels, and the warped image ``(1, 1, H, W, D)``, if requested.

    The displacement comes last, so that the pair is complete where it exists. One that ``same``, a file and its digest, has
    already is copied, which takes a fraction of the time.

    Returns:
        The digests of the files, by path.

    Raises:
        OutputError: if a file cannot be written.
    """
    path, *warped_path = output_files(pair, options)
    digests: dict[Path, str | None] = {}
    if warped is not None:
        digests[warped_path[0]] = write_volume(warped_path[0], warped, grid.affine, grid.unit)
    if same is None:
        digests[path] = write_displacement(path, displacement, grid.affine, grid.unit)
    else:
        source, digests[path] = same
        write_whole(path, lambda file: _copy(source, file))
    return digests


def _copy(source: Path, file: Path) -> None:
    shutil.copyfile(source, file)
    check_size(file, source.stat().st_size)


def write_placeholder(pair: Pair, options: Options, *, budget_bytes: int) -> Path:
    """Writes a zero displacement for a pair without a result; returns its path.

    Its grid is that of the fixed image's header or, if that is unreadable, of the moving image's; ``InputError`` if both are,
    ``MemoryBudgetError`` if what the header claims does not fit into memory, ``OutputError`` if it cannot be written.
    """
    grid = _grid_of(pair)
    check_case_room(1, grid.shape, options)
    needed = result_bytes(grid.shape, pairs=1, warped=False)
    if needed > budget_bytes:
        raise MemoryBudgetError(
            f"{pair.fixed}: a zero displacement would take {format_bytes(needed)} of memory, "
            f"but the run may use {format_bytes(budget_bytes)}"
        )
    path = output_files(pair, options)[0]
    write_displacement(path, torch.zeros((1, 3, *grid.shape)), grid.affine, grid.unit)
    return path


def _grid_of(pair: Pair) -> Grid:
    try:
        return read_grid(pair.fixed)
    except InputError as fixed_error:
        try:
            return read_grid(pair.moving)
        except InputError as error:
            raise InputError(f"neither image has a readable header: {fixed_error}; {error}") from error
