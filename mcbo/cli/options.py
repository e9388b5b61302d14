"""The options that ``process.py`` and the commands share, and the checks of their values.

Only ``process.py`` reads environment variables: ``MCBO_`` and the parameter's name, or the one given here.
"""

import math
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, get_args

import typer

from mcbo._version import __version__
from mcbo.cli.streams import show
from mcbo.core.errors import InputError
from mcbo.core.memory import MEMORY_SHARE
from mcbo.core.types import Choice
from mcbo.dataset.learn2reg import SPLITS
from mcbo.dataset.sockets import DISPLACEMENT, ROLES
from mcbo.geometry.units import MM, unit_of
from mcbo.io.files import shown
from mcbo.io.formats.registry import FORMATS as IMAGE_FORMATS
from mcbo.io.itk_files import SUFFIXES_WRITTEN, TRANSFORM_SUFFIXES
from mcbo.io.nifti import FORMATS
from mcbo.io.nifti_header import Form
from mcbo.methods.cascade import MAX_EXPECTED
from mcbo.methods.memory_model import PROCESS_GB
from mcbo.methods.presets import DEFAULT_TASK, TASKS
from mcbo.progress import set_up_logging
from mcbo.runs.options import ON_FAILURE
from mcbo.runtime import MAX_MEMORY_GB

API_METHODS = ("exec", "invoke")
"""A job of grand-challenge.org at the start, or jobs when asked over HTTP: the values of ``org.grand-challenge.api-method``."""

MAX_WORKERS = 1000
"""Processes that one scheduler of Dask was made for."""

_PRESETS = list(TASKS[DEFAULT_TASK].presets)

_FILE_SUFFIXES = (
    *SUFFIXES_WRITTEN,
    *TRANSFORM_SUFFIXES,
    *(suffix for known in IMAGE_FORMATS for suffix in known.suffixes),
    *(".npz", ".json", ".html", ".csv", ".zip"),
)
"""Of files that people expect to be written."""

# What to register, and how.
Inputs: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="DATASET_JSON | FIXED MOVING OUTPUT_FILE",
        help="A Learn2Reg dataset JSON; or a fixed image, a moving image, and the displacement file to write. Default: "
        "everything in --input. Inputs may be URLs.",
    ),
]
InputFolder: TypeAlias = Annotated[
    str,
    typer.Option(
        "--input", metavar="DIR", envvar="MCBO_INPUT", help="Folder, or its URL, with a *_dataset.json or with images only."
    ),
]
Demo: TypeAlias = Annotated[
    bool, typer.Option("--demo", help="Generate a small dataset, register it, and score the result. Needs no input.")
]
Task: TypeAlias = Annotated[str, typer.Option(metavar="NAME", help=f"Task of the preset: {' or '.join(TASKS)}.")]
DatasetTask: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="NAME", help=f"{' or '.join(TASKS)}. Default: the name of the dataset."),
]
Preset: TypeAlias = Annotated[
    str | None, typer.Option(metavar="NAME", help=f"Preset of the method: {' or '.join(_PRESETS)}. Default: {_PRESETS[0]}.")
]
Expect: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="MM,DEG",
        help="How far apart the images usually are before registration: the shift in mm, or with a unit (0.5um), and the "
        "rotation in degrees. Default: that of the task.",
    ),
]
Accept: TypeAlias = Annotated[
    Choice | None,
    typer.Option(
        metavar="RESULT",
        help=f"Result to write, {', '.join(get_args(Choice))}, whatever the judgement is. The report says what was overruled.",
    ),
]
Split: TypeAlias = Annotated[str, typer.Option(metavar="|".join(SPLITS), help="Split of the dataset.")]
Cases: TypeAlias = Annotated[
    list[str] | None, typer.Option(metavar="ID", help="Only these cases: --case 0099 --case 0100, or --case 0099,0100.")
]
Movings: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CHANNEL",
        help="Write displacements only for these moving channels, such as 0001. The others of a case are still used.",
    ),
]
TrustPaths: TypeAlias = Annotated[
    bool, typer.Option("--trust-paths", help="Allow image paths and links that lead out of the dataset's folder.")
]
Spacing: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="X,Y,Z",
        help="Voxel size where a TIFF or OME-Zarr does not state it: columns, rows, slices, in mm, or with a unit: "
        "50,50,100nm. Once for all images, or once for each, in their order; - for none.",
    ),
]
Channel: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="N",
        help="Channel of a TIFF or OME-Zarr with several, counted from 0. Once for all images with several, or once for "
        "each, in their order; - for none.",
    ),
]
TimePoint: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--time", metavar="N", help="Time point of a TIFF or OME-Zarr with several, counted from 0; given as --channel is."
    ),
]

Series: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="DICOM series of a folder with several, by its UID or description; without it, they are listed. Once for all "
        "such folders, or once for each image, in their order; - for none.",
    ),
]

Geometry: TypeAlias = Annotated[
    Literal["sform", "qform"],
    typer.Option(
        metavar="|".join(get_args(Form)),
        help="What to take where the sform and qform of a NIfTI header differ. ITK, 3D Slicer and ANTs often take the qform.",
    ),
]

# Jobs of grand-challenge.org.
Sockets: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="JSON",
        help="Roles of the job's sockets by slug, where the slugs do not tell them: "
        f'{{"my-slug": ROLE}}, with {", ".join(role.name for role in ROLES)}, none; or "{DISPLACEMENT}" for the output.',
    ),
]
ChallengeFormat: TypeAlias = Annotated[
    bool, typer.Option("--challenge-format", help="Also write the displacement of a job as the challenge has it, see --format.")
]
ApiMethod: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(API_METHODS),
        help="Do one job, or serve an HTTP API that does jobs: GET /health and POST /invoke. Default: what "
        "grand-challenge.org tells its containers, or exec.",
    ),
]
Port: TypeAlias = Annotated[int, typer.Option(metavar="N", help="Port of the HTTP API.")]

# Where to run, and with which resources.
Device: TypeAlias = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:N, or auto: a GPU if there is one.")]
MemoryGb: TypeAlias = Annotated[
    float | None,
    typer.Option(
        metavar="GB",
        help="Memory limit for the tensors of a case; the process itself takes "
        f"{PROCESS_GB[0]:g} to {PROCESS_GB[1]:g} GB more. Default: {100 * MEMORY_SHARE:.0f} % of the free memory.",
    ),
]
Shard: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Register only every Nth case, starting with the Ith, for job arrays. The report is report-I-of-N.json.",
    ),
]
Workers: TypeAlias = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Distribute the cases over N processes, one per GPU, or each with its share of the CPU threads. With "
        "--scheduler: submit at most N cases at a time.",
    ),
]
Scheduler: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Distribute the cases over the workers of this Dask scheduler (tcp://HOST:PORT)."),
]
CaseTimeout: TypeAlias = Annotated[
    float | None, typer.Option(metavar="S", help="Abort a case after S seconds on a worker. Requires --workers or --scheduler.")
]

# What to write.
OutputFolder: TypeAlias = Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results.")]
OutputFile: TypeAlias = Annotated[Path, typer.Option(metavar="FILE", help="File to write.")]
FileFormat: TypeAlias = Annotated[
    str, typer.Option("--format", metavar="|".join(FORMATS), envvar="MCBO_FORMAT", help="File format of the displacements.")
]
JsonFile: TypeAlias = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the measurements as JSON.")
]
Warped: TypeAlias = Annotated[bool, typer.Option("--warped", help="Also write the warped moving images.")]
Overwrite: TypeAlias = Annotated[bool, typer.Option("--overwrite", help="Recompute results already finished in --output.")]
Strict: TypeAlias = Annotated[bool, typer.Option("--strict", help="Stop after the first case with a failed pair.")]
OnFailure: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="|".join(ON_FAILURE),
        help="What to write for a failed pair: nothing, or a zero displacement. The exit status is 2 in both cases.",
    ),
]

# What to log.
Quiet: TypeAlias = Annotated[bool, typer.Option("--quiet", help="Log only warnings and errors.")]
Verbose: TypeAlias = Annotated[bool, typer.Option("--verbose", help="Log every stage.")]
LogJson: TypeAlias = Annotated[bool, typer.Option("--log-json", help="Log JSON, one object per line.")]


def _print_version(asked: bool) -> None:
    if asked:
        show(f"mcbo {__version__}")
        raise typer.Exit


Version: TypeAlias = Annotated[
    bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
]


def start_log(*, quiet: bool, verbose: bool, log_json: bool) -> None:
    """Sets up the log. Comes before the other checks, since ``--log-json`` applies to their errors, too."""
    set_up_logging(quiet=quiet, verbose=verbose and not quiet, json_lines=log_json)
    if quiet and verbose:
        raise InputError("expected --quiet or --verbose, got both")


def check_choice(option: str, value: str, known: Sequence[str]) -> None:
    """Raises ``InputError`` for a value that is not one of the known ones."""
    if value not in known:
        raise InputError(f"{option}: expected one of {', '.join(known)}, got {shown(value)}")


def check_positive(option: str, value: float | None, *, what: str = "a number", limit: float = math.inf) -> None:
    """Raises ``InputError`` for a value, if one is given, that is not above 0 and below the limit."""
    if value is not None and not 0 < value < limit:
        most = f" and below {limit:g}" if limit <= value else ""
        raise InputError(f"{option}: expected {what} above 0{'' if limit == math.inf else most}, got {value:g}")


def check_memory(memory_gb: float | None) -> None:
    """Raises ``InputError`` for a memory limit that none can be."""
    check_positive("--memory-gb", memory_gb, limit=MAX_MEMORY_GB)


def check_folder(option: str, path: Path) -> None:
    """Raises ``InputError`` for the name of a file where a folder is meant; a folder that is there may have any name."""
    if path.name.lower().endswith(_FILE_SUFFIXES) and not os.path.isdir(path):  # noqa: PTH112 (which raises no error)
        raise InputError(f"{option}: expected a folder for several files, got the name of a file, {path}: leave out the suffix")


def check_workers(workers: int | None, scheduler: str | None, case_timeout: float | None) -> None:
    """Raises ``InputError`` for fewer than one worker, or for a time limit that nothing could enforce."""
    if workers is not None and workers < 1:
        raise InputError(f"--workers: expected 1 or more, got {shown(workers)}")
    if workers is not None and workers > MAX_WORKERS:
        raise InputError(f"--workers: expected at most {MAX_WORKERS}, got {shown(workers)}")
    check_positive("--case-timeout", case_timeout, what="a number of seconds", limit=threading.TIMEOUT_MAX)
    if case_timeout is not None and workers is None and scheduler is None:
        raise InputError(
            "--case-timeout: expected --workers or --scheduler with it, since only a worker can be stopped mid-case"
        )


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """The third of eight shards from ``3/8``; raises ``InputError`` for anything else."""
    if text is None:
        return None
    match = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)
    index, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= index <= count:
        raise InputError(f"--shard: expected I/N with I from 1 to N, such as 3/8, got {shown(text)}")
    return index, count


def parse_expect(text: str | None) -> tuple[float, float] | None:
    """Millimeters and degrees from ``5,3`` or ``0.5um,3``; raises ``InputError`` for anything else."""
    if text is None:
        return None
    shift, _, turn = text.partition(",")
    match = re.fullmatch(r"(.*\d\.?)\s*([A-Za-zµμ]+)\s*", shift)
    number, name = match.groups() if match else (shift, "mm")
    try:
        mm, degrees = float(number) * MM[unit_of(name) or "mm"], float(turn)
    except ValueError as error:
        raise InputError(f"--expect: expected MM,DEG, such as 5,3, got {shown(text)}") from error
    if unit_of(name) is None:
        raise InputError(f"--expect: expected a shift in mm, or with a unit such as 0.5um, got {shown(text)}")
    check_positive("--expect", mm, what="a finite shift in mm", limit=MAX_EXPECTED[0])
    check_positive("--expect", degrees, what="a finite rotation in degrees", limit=MAX_EXPECTED[1])
    return mm, degrees


def split_commas(values: Sequence[str] | None) -> tuple[str, ...]:
    """Three values from ``0099,0100`` and ``0101``; raises ``InputError`` for texts with none, which do not mean all."""
    found = tuple(part.strip() for value in values or () for part in value.split(",") if part.strip())
    if values and not found:
        raise InputError("--case or --moving: expected names, separated by commas, got an empty text; for all, leave it out")
    return found
