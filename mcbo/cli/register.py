"""The command ``register``: two images or more, on any grids; a thin layer over ``mcbo.register``."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mcbo.api.register import AUTO, DEFAULT_PRESET, register, wanted_config
from mcbo.api.result import KINDS, is_written, labels_of, possible_files
from mcbo.cli import options as cli
from mcbo.core.errors import InputError
from mcbo.core.log import log
from mcbo.io.files import check_inputs_stay, digest, is_file, no_empty_folder, prepare_folder
from mcbo.io.formats.format import file_size
from mcbo.io.formats.parts import image_digest
from mcbo.io.formats.registry import check_header
from mcbo.io.lock import Place, hold
from mcbo.io.microscopy.images import finest_that_fits, selections, to_settings
from mcbo.methods.presets import DEFAULT_TASK
from mcbo.report import REPORT
from mcbo.runs.runner import stopped_after
from mcbo.runtime import budget_bytes, select_device


def register_files(
    fixed: Annotated[Path, typer.Argument(metavar="FIXED", help="The fixed image.")],
    movings: Annotated[
        list[Path],
        typer.Argument(metavar="MOVING", help="The moving image, or several of the same object that are registered together."),
    ],
    output: cli.OutputFolder,
    preset: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"Preset of the method: {AUTO}, which is cascade on isotropic voxels, with a margin around the fixed image; "
            "or cascade or mcbo2024 on the voxels of the fixed image.",
        ),
    ] = DEFAULT_PRESET,
    task: cli.Task = DEFAULT_TASK,
    expect: cli.Expect = None,
    accept: cli.Accept = None,
    initial: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Initial alignment, from fixed to moving world positions: a text file with a 4×4 matrix (RAS, mm), or an "
            "affine ITK transform (.tfm, .txt, .h5, .mat; LPS, mm).",
        ),
    ] = None,
    center: Annotated[bool, typer.Option("--center", help="Start by aligning the centers of mass.")] = False,
    fixed_mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Mask of the fixed image: voxels that are not 0 count. Default: all but the background, which is detected.",
        ),
    ] = None,
    moving_mask: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="The same for the moving images: once for each, in their order.")
    ] = None,
    spacing: cli.Spacing = None,
    channel: cli.Channel = None,
    time: cli.TimePoint = None,
    series: cli.Series = None,
    geometry: cli.Geometry = "sform",
    without: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help=f"Do not write this result: {', '.join(KINDS)}. Repeatable.")
    ] = None,
    device: cli.Device = "auto",
    memory_gb: cli.MemoryGb = None,
    overwrite: cli.Overwrite = False,
    quiet: cli.Quiet = False,
    verbose: cli.Verbose = False,
    log_json: cli.LogJson = False,
) -> None:
    """Register 3D images that may differ in grid, orientation, and format.

    Reads NIfTI, NRRD, MetaImage, DICOM, TIFF, and OME-Zarr. Writes to --output:
    the displacement, from fixed to moving, in voxels of the fixed grid;
    the same as an ITK transform for 3D Slicer and ANTs; its inverse;
    the moving images warped onto the fixed grid; and report.json.
    """
    cli.start_log(quiet=quiet, verbose=verbose, log_json=log_json)
    cli.check_positive("--memory-gb", memory_gb)
    cli.check_folder("--output", output)
    budget = budget_bytes(select_device("cpu"), memory_gb)
    images = [finest_that_fits(path, budget) for path in (fixed, *movings)]
    masks = [fixed_mask, *(moving_mask or ())]
    masks += [None] * (len(images) - len(masks))
    cli.check_memory(memory_gb)
    for kind in without or ():
        cli.check_choice("--without", kind, KINDS)
    expected = cli.parse_expect(expect)
    if moving_mask and len(moving_mask) != len(movings):
        raise InputError(f"--moving-mask: expected one for each of {len(movings)} moving image(s), got {len(moving_mask)}")
    labels = labels_of([str(path) for path in movings])
    _check_apart(output, labels, [path for path in (*images, *masks, initial) if path is not None])
    for path in (*images, *masks):
        if path is not None and is_file(path):  # else the reader says what is wrong with it
            check_header(path)  # before it is digested, since it may be of any size
    if initial is not None and is_file(initial):
        file_size(initial, "an initial transform")
    # None for a file that cannot be read, or whose parts are not known: it may be another one than in an earlier run.
    digests = {path: image_digest(path) for path in (*images, *masks) if path}
    digests |= {initial: digest(initial)} if initial else {}
    settings = {
        "preset": preset,
        "task": task,
        "expect": expect,
        "accept": accept,
        "center": center,
        **to_settings(selections(images, spacing=spacing, channel=channel, time=time, series=series)),
        "geometry": geometry,
        "memory_gb": memory_gb if preset == AUTO else None,
        "initial": initial and digests[initial],
        "masks": [mask and digests[mask] for mask in masks],
    }
    inputs = {str(path): digests[path] for path in images}
    kinds = [kind for kind in KINDS if kind not in (without or ())]
    config = wanted_config(preset, task, expected, accept)
    with no_empty_folder(output), _held(output) as place:
        if not overwrite and None not in digests.values() and is_written(output, config, inputs, settings, labels, kinds):
            log.info("%s: already finished with the same input and settings, skipped (--overwrite recomputes)", output)
            return
        result = register(
            images[0],
            images[1:],
            preset=preset,
            task=task,
            expect=expected,
            accept=accept,
            spacing=spacing,
            channel=channel,
            time=time,
            series=series,
            geometry=geometry,
            fixed_mask=fixed_mask,
            moving_masks=list(moving_mask) if moving_mask else None,
            initial=initial,
            center=center,
            device=device,
            memory_gb=memory_gb,
        )
        result.report.settings = settings | result.report.settings  # with digests of what was read
        place.check()
        written = result.save(output, without=without or ())
        place.check()
        for path in written:
            log.info("%s", path)
    log.info("visual report: mcbo report %s", shlex.quote(str(output)))


@contextmanager
def _held(output: Path) -> Iterator[Place]:
    """The output folder, locked; a signal in the block is told as ``process.py`` tells it."""
    prepare_folder(output)
    try:
        with hold(output / f".{REPORT}.lock") as place:
            yield place
    except (KeyboardInterrupt, SystemExit) as stop:
        stop.add_note(stopped_after(0, 1))
        raise


def _check_apart(output: Path, labels: Sequence[str], files: Sequence[Path]) -> None:
    for path in files:
        try:
            inside = output.resolve() in (path.resolve(), path.resolve().parent)
        except (OSError, RuntimeError):  # links in a circle, which the reader refuses
            continue
        if inside:
            raise InputError(
                f"--output: expected a folder without inputs, found that of {path}, which could be overwritten; choose another"
            )
    check_inputs_stay([*possible_files(output, labels), output / f".{REPORT}.lock"], files)
