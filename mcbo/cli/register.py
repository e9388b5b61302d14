"""The command ``register``: any two images or more, of any grid. All of it is done by ``register.py``."""

import math
import shlex
from pathlib import Path
from typing import Annotated

import typer

from mcbo.api.register import AUTO, DEFAULT_PRESET, register, wanted_config
from mcbo.api.result import KINDS, is_written, labels_of
from mcbo.core.errors import InputError
from mcbo.core.log import log
from mcbo.io.files import digest, prepare_folder
from mcbo.io.image_like import is_tiff
from mcbo.io.images import spacing_of
from mcbo.io.lock import hold
from mcbo.methods.presets import DEFAULT_TASK, TASKS
from mcbo.progress import set_up_logging
from mcbo.report import REPORT


def register_files(
    fixed: Annotated[Path, typer.Argument(metavar="FIXED", help="The image that stays.")],
    movings: Annotated[
        list[Path],
        typer.Argument(metavar="MOVING…", help="One image or more that are brought onto it; several show one object."),
    ],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Where the results go.")],
    preset: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"cascade or mcbo2024, on the fixed image's voxels; or {AUTO}: cascade on isotropic voxels and a margin.",
        ),
    ] = DEFAULT_PRESET,
    task: Annotated[str, typer.Option(metavar="NAME", help=f"Whose presets: {' or '.join(TASKS)}.")] = DEFAULT_TASK,
    initial: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Rough alignment, from fixed to moving world positions: text with a 4×4 matrix (RAS, mm), or an affine ITK "
            "transform (.tfm, .txt, .h5, .mat: LPS, mm, as ITK resamples with it).",
            show_default=False,
        ),
    ] = None,
    center: Annotated[bool, typer.Option("--center", help="Start with the centers of mass upon each other.")] = False,
    fixed_mask: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the fixed image counts: not 0. Default: found.", show_default=False),
    ] = None,
    moving_mask: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="The same for each moving image, in their order.", show_default=False),
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(metavar="X,Y,Z", help="Voxel size of TIFF files, mm: columns, rows, slices.", show_default=False),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="|".join(KINDS), help="What not to write; repeat it.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N.")] = "auto",
    memory_gb: Annotated[
        float | None,
        typer.Option(metavar="X", help="Memory for the tensors. Default: 75 % of what is free.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do again what an earlier run has done.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Tell warnings and errors alone.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Tell more.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Tell it in JSON, an object a line.")] = False,
) -> None:
    """Register images of any grid, orientation and format where they lie in the world.

    NIfTI, NRRD, MetaImage, TIFF stacks. DIR gets the displacement, fixed to moving, in voxels of the fixed grid; the same as an
    ITK transform for 3D Slicer and ANTs; the inverse; the moving images on the fixed grid; and report.json.
    """
    if quiet and verbose:
        raise InputError("expected --quiet or --verbose, got both")
    set_up_logging(quiet=quiet, verbose=verbose, json_lines=log_json)
    images, masks = [fixed, *movings], [fixed_mask, *(moving_mask or ())]
    if memory_gb is not None and not 0 < memory_gb < math.inf:
        raise InputError(f"--memory-gb: expected a number above 0, got {memory_gb:g}")
    if unknown := [kind for kind in without or () if kind not in KINDS]:
        raise InputError(f"--without: expected some of {', '.join(KINDS)}, got {', '.join(unknown)}")
    if spacing is not None and not any(map(is_tiff, images)):
        raise InputError("--spacing: expected with TIFF files, which do not tell theirs; the others do")
    if moving_mask and len(moving_mask) != len(movings):
        raise InputError(f"--moving-mask: expected one for each of {len(movings)} moving image(s), got {len(moving_mask)}")
    for path in [*images, *masks, initial]:
        if path is not None and path.resolve().parent == output.resolve():
            raise InputError(f"--output: expected another folder than that of {path}, which might be replaced")
    settings = {
        "preset": preset,
        "task": task,
        "initial": None if initial is None else digest(initial),
        "center": center,
        "masks": [None if mask is None else digest(mask) for mask in masks],
        "spacing": spacing,
        "memory_gb": memory_gb if preset == AUTO else None,
    }
    inputs = {str(path): digest(path) for path in images}
    kinds = [kind for kind in KINDS if kind not in (without or ())]
    labels = labels_of([str(path) for path in movings])
    config = wanted_config(preset, task)
    prepare_folder(output)
    with hold(output / f".{REPORT}.lock"):
        if not overwrite and is_written(output, config, inputs, settings, labels, kinds):
            log.info("%s: done before with the same input and settings, skipped (--overwrite does it again)", output)
            return
        result = register(
            fixed,
            list(movings),
            preset=preset,
            task=task,
            spacing=None if spacing is None else spacing_of(spacing),
            fixed_mask=fixed_mask,
            moving_masks=list(moving_mask) if moving_mask else None,
            initial=initial,
            center=center,
            device=device,
            memory_gb=memory_gb,
        )
        result.report.settings = settings
        for path in result.save(output, without=without or ()):
            log.info("%s", path)
    log.info("python -m mcbo report %s makes a page to look at", shlex.quote(str(output)))
