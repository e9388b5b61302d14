"""The command ``register``: two images or more, on any grids; a thin layer over ``mcbo.register``."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mcbo.api.register import AUTO, DEFAULT_PRESET, register, wanted_config
from mcbo.api.result import KINDS, is_written, labels_of
from mcbo.cli import options as cli
from mcbo.core.errors import InputError
from mcbo.core.log import log
from mcbo.io.files import digest, prepare_folder
from mcbo.io.images import image_digest
from mcbo.io.lock import hold
from mcbo.methods.presets import DEFAULT_TASK
from mcbo.report import REPORT


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

    Reads NIfTI, NRRD, MetaImage, and TIFF stacks. Writes to --output:
    the displacement, from fixed to moving, in voxels of the fixed grid;
    the same as an ITK transform for 3D Slicer and ANTs; its inverse;
    the moving images warped onto the fixed grid; and report.json.
    """
    cli.start_log(quiet=quiet, verbose=verbose, log_json=log_json)
    images = [fixed, *movings]
    masks = [fixed_mask, *(moving_mask or ())]
    masks += [None] * (len(images) - len(masks))
    cli.check_memory(memory_gb)
    for kind in without or ():
        cli.check_choice("--without", kind, KINDS)
    spacing_mm = cli.parse_spacing(spacing, *images)
    expected = cli.parse_expect(expect)
    if moving_mask and len(moving_mask) != len(movings):
        raise InputError(f"--moving-mask: expected one for each of {len(movings)} moving image(s), got {len(moving_mask)}")
    _check_apart(output, [*images, *masks, initial])
    # None for a file that cannot be read, or whose parts are not known: it may be another one than in an earlier run.
    digests = {path: image_digest(path) for path in (*images, *masks) if path}
    digests |= {initial: digest(initial)} if initial else {}
    settings = {
        "preset": preset,
        "task": task,
        "expect": expect,
        "center": center,
        "spacing": spacing,
        "memory_gb": memory_gb if preset == AUTO else None,
        "initial": initial and digests[initial],
        "masks": [mask and digests[mask] for mask in masks],
    }
    inputs = {str(path): digests[path] for path in images}
    kinds = [kind for kind in KINDS if kind not in (without or ())]
    labels = labels_of([str(path) for path in movings])
    config = wanted_config(preset, task, expected)
    prepare_folder(output)
    with hold(output / f".{REPORT}.lock"):
        if not overwrite and None not in digests.values() and is_written(output, config, inputs, settings, labels, kinds):
            log.info("%s: already finished with the same input and settings, skipped (--overwrite recomputes)", output)
            return
        result = register(
            fixed,
            list(movings),
            preset=preset,
            task=task,
            expect=expected,
            spacing=spacing_mm,
            fixed_mask=fixed_mask,
            moving_masks=list(moving_mask) if moving_mask else None,
            initial=initial,
            center=center,
            device=device,
            memory_gb=memory_gb,
        )
        result.report.settings = settings | result.report.settings  # with digests of what was read
        for path in result.save(output, without=without or ()):
            log.info("%s", path)
    log.info("visual report: mcbo report %s", shlex.quote(str(output)))


def _check_apart(output: Path, files: Sequence[Path | None]) -> None:
    for path in files:
        if path is not None and path.resolve().parent == output.resolve():
            raise InputError(
                f"--output: expected a folder without inputs, found that of {path}, which could be overwritten; choose another"
            )
