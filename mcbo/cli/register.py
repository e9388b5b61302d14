"""The command ``register``: two images or more, on any grids; a thin layer over ``mcbo.register``."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, get_args

import typer

from mcbo.api.preset import AUTO, DEFAULT_PRESET, base_of, wanted_config
from mcbo.api.register import register
from mcbo.api.result import EXTRAS, KINDS, is_written, labels_of, possible_files
from mcbo.api.start import Start
from mcbo.cli import options as cli
from mcbo.core.errors import InputError
from mcbo.core.log import log
from mcbo.core.types import Freedom
from mcbo.geometry.linear_fit import Model
from mcbo.io.files import check_inputs_stay, digest, is_file, no_empty_folder, prepare_folder, shown
from mcbo.io.formats.format import file_size
from mcbo.io.formats.parts import image_digest
from mcbo.io.formats.registry import check_header
from mcbo.io.lock import Place, hold
from mcbo.io.microscopy.images import finest_that_fits, selections, to_settings
from mcbo.methods.presets import DEFAULT_TASK
from mcbo.methods.settings import parse_assignment
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
            "cascade or mcbo2024 on the voxels of the fixed image; or a TOML file with settings of your own.",
        ),
    ] = DEFAULT_PRESET,
    task: cli.Task = DEFAULT_TASK,
    expect: cli.Expect = None,
    accept: cli.Accept = None,
    transform: Annotated[
        Freedom,
        typer.Option(
            metavar="|".join(get_args(Freedom)),
            help="What to seek: a deformation, its affine part only, or a rigid transform only.",
        ),
    ] = "deformable",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="A setting of the preset, such as refinement.bending=0.3. Repeatable."
        ),
    ] = None,
    initial: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Initial alignment, from fixed to moving world positions: a text file with a 4×4 matrix (RAS, mm), or an "
            "affine ITK transform (.tfm, .txt, .h5, .mat; LPS, mm).",
        ),
    ] = None,
    initial_landmarks: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="FIXED MOVING",
            help="Initial alignment by landmarks of the fixed and of the first moving image, in the same order: "
            ".csv (voxels, or as its columns are named), .fcsv, .mrk.json; or twice one file of BigWarp.",
        ),
    ] = None,
    landmark_transform: Annotated[
        Model, typer.Option(metavar="|".join(get_args(Model)), help="What is fitted to the initial landmarks.")
    ] = "rigid",
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
    also: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="Write this, too: uncertainty, a length that four of five errors stay below; motion, the length of the "
            "displacement; shift, its part beyond a rigid motion. Repeatable.",
        ),
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
    for kind in also or ():
        cli.check_choice("--also", kind, EXTRAS)
    expected = cli.parse_expect(expect)
    changes = dict(parse_assignment(text, f"--set {shown(text)}") for text in setting or ())
    if moving_mask and len(moving_mask) != len(movings):
        raise InputError(f"--moving-mask: expected one for each of {len(movings)} moving image(s), got {len(moving_mask)}")
    labels = labels_of([str(path) for path in movings])
    start = Start(initial, initial_landmarks, landmark_transform, center)
    start.check()
    _check_apart(output, labels, [path for path in (*images, *masks, *start.files) if path is not None])
    for path in (*images, *masks):
        if path is not None and is_file(path):  # else the reader says what is wrong with it
            check_header(path)  # before it is digested, since it may be of any size
    for path in start.files:
        if is_file(path):
            file_size(path, "an initial alignment")
    # None for a file that cannot be read, or whose parts are not known: it may be another one than in an earlier run.
    digests = {path: image_digest(path) for path in (*images, *masks) if path}
    digests |= {path: digest(path) for path in start.files}
    settings = {
        "preset": preset,
        "task": task,
        "expect": expect,
        "accept": accept,
        "transform": transform,
        "set": changes,
        "center": center,
        **to_settings(selections(images, spacing=spacing, channel=channel, time=time, series=series)),
        "geometry": geometry,
        "memory_gb": memory_gb if base_of(preset) == AUTO else None,
        "initial": start.digests({str(path): found for path, found in digests.items()}),
        "landmark_transform": landmark_transform if initial_landmarks else None,
        "masks": [mask and digests[mask] for mask in masks],
    }
    inputs = {str(path): digests[path] for path in images}
    kinds = [*(kind for kind in KINDS if kind not in (without or ())), *(also or ())]
    config = wanted_config(preset, task, expected, accept, transform=transform, settings=changes)
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
            transform=transform,
            settings=changes,
            spacing=spacing,
            channel=channel,
            time=time,
            series=series,
            geometry=geometry,
            fixed_mask=fixed_mask,
            moving_masks=list(moving_mask) if moving_mask else None,
            initial=initial,
            initial_landmarks=initial_landmarks,
            landmark_transform=landmark_transform,
            center=center,
            device=device,
            memory_gb=memory_gb,
            uncertainty="uncertainty" in kinds or ("shift" in kinds and config.knows_uncertainty),  # told beside the shift
        )
        result.report.settings = settings | result.report.settings  # with digests of what was read
        place.check()
        written = result.save(output, without=without or (), also=also or ())
        place.check()
        if (output / "report.html").exists():
            log.warning("%s shows an earlier result: run mcbo report again", output / "report.html")
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
