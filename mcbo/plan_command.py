"""``python -m mcbo plan``: its arguments, the files it reads and writes, and what it prints."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, Field, ValidationError

from mcbo.config import format_shape
from mcbo.description import read_description
from mcbo.errors import InputError
from mcbo.figures import PUBLISHED, Figure, FigureSet
from mcbo.files import write_whole
from mcbo.plan import Estimate, Request, plan
from mcbo.tasks import DEFAULT_TASK, TASKS, find_config
from mcbo.types import Shape

MAX_VOXELS_OF_AN_AXIS = 2**15
"""What a header of NIfTI-1 can hold."""


class _About(BaseModel):
    preset: str
    device: str
    machine: str
    torch: str
    task: str | None = None


class _Measured(BaseModel):
    shape: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
    movings: Annotated[int, Field(gt=0)]
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    peak_memory_gb: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Benchmark(BaseModel):
    about: _About
    measurements: Annotated[list[_Measured], Field(min_length=1)]


def plan_run(
    cases: Annotated[int, typer.Option(metavar="N", help="How many cases.")],
    size: Annotated[str, typer.Option(metavar="S|SxSxS", help="Voxels along each axis: 256, or 256x256x192.")],
    movings: Annotated[int, typer.Option(metavar="M", help="Moving images of each case.")] = 1,
    task: Annotated[str, typer.Option(metavar="NAME", help=" or ".join(TASKS))] = DEFAULT_TASK,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Variant of the method. Default: the task's first.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu, or the name of a GPU.")] = "cpu",
    workers: Annotated[int, typer.Option(metavar="N", help="Cases at a time, each with the cores that were measured.")] = 1,
    price_per_hour: Annotated[
        float | None, typer.Option(metavar="X", help="Of one worker, in any currency.", show_default=False)
    ] = None,
    benchmark_file: Annotated[
        Path | None,
        typer.Option(
            "--benchmark",
            metavar="FILE",
            help="What python -m mcbo benchmark --json wrote on your machine, instead of the published figures.",
            show_default=False,
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures there.", show_default=False)
    ] = None,
) -> None:
    """Seconds, memory, disk and cost of a run, from benchmark figures and the memory model, with what they rest on."""
    device = device.strip()
    if device.lower() in ("", "auto"):
        raise InputError(f"--device: expected cpu, or the name of a GPU, got {device!r}")
    config = find_config(task, preset)
    request = Request(
        cases=cases,
        shape=parse_size(size),
        movings=movings,
        task=task,
        config=config,
        is_gpu=device.lower() != "cpu",
        workers=workers,
        price_per_hour=price_per_hour,
    )
    estimate = plan(request, read_figures(benchmark_file) if benchmark_file else PUBLISHED)
    typer.echo(to_text(request, estimate, device))
    if json_file:
        asked = {"cases": cases, "shape": request.shape, "movings": movings, "task": task, "preset": config.name}
        asked |= {"device": device, "workers": workers, "price_per_hour": price_per_hour}
        content = {"request": asked, "estimate": asdict(estimate)}
        write_whole(json_file, lambda file: file.write_text(json.dumps(content, indent=1) + "\n", encoding="ascii"))


def parse_size(text: str) -> Shape:
    """``256`` or ``256x256x192``.

    Raises:
        InputError: if it is neither.
    """
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) not in (1, 3) or not all(part.isdecimal() and part.isascii() and len(part) <= 5 for part in parts):
        raise InputError(f"--size: expected a number of voxels such as 256, or three such as 256x256x192, got {text!r}")
    sizes = [int(part) for part in parts]
    if max(sizes) > MAX_VOXELS_OF_AN_AXIS:
        raise InputError(f"--size: expected at most {MAX_VOXELS_OF_AN_AXIS} voxels along an axis, got {text!r}")
    return (sizes[0], sizes[0], sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1], sizes[2])


def read_figures(path: Path) -> FigureSet:
    """The figures of a benchmark file.

    Raises:
        InputError: if it is none.
    """
    content = read_description(path, kind="what python -m mcbo benchmark --json writes")
    try:
        benchmark = _Benchmark.model_validate(content)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(
            f"{path}: expected what python -m mcbo benchmark --json writes, but {where} is missing or of another kind"
        ) from error
    about = benchmark.about
    return FigureSet(
        task=about.task,
        is_gpu=not about.device.startswith("cpu"),
        origin=f"{path}: {about.machine}; {about.device}; torch {about.torch}",
        figures=tuple(
            Figure(about.preset, one.movings, one.shape[0] * one.shape[1] * one.shape[2], one.seconds, one.peak_memory_gb)
            for one in benchmark.measurements
        ),
    )


def to_text(request: Request, estimate: Estimate, device: str) -> str:
    """The estimate for people."""
    unknown = "not known"
    least, most = estimate.memory_gb
    rows = [
        ("a case", unknown if estimate.seconds_per_case is None else format_duration(estimate.seconds_per_case)),
        ("the run", unknown if estimate.seconds is None else format_duration(estimate.seconds)),
        ("memory, a worker", f"{most:.1f} GB" if least == most else f"{least:.1f} to {most:.1f} GB"),
        ("disk, inputs", f"up to {estimate.input_gb:.1f} GB"),
        ("disk, outputs", f"up to {estimate.output_gb:.1f} GB"),
    ]
    if request.price_per_hour is not None:
        rows.append(("cost", unknown if estimate.cost is None else f"{estimate.cost:.2f}"))
    title = (
        f"{request.cases} case(s) of {format_shape(request.shape)} voxels with {request.movings} moving image(s), "
        f"{request.task}, preset {request.config.name}, {request.workers} worker(s), device {device}"
    )
    lines = [f"{name:20}{value}" for name, value in rows]
    return "\n".join([title, "", *lines, "", "This rests on:", *(f"- {sentence}" for sentence in estimate.assumptions)])


def format_duration(seconds: float) -> str:
    """``56 s``, ``12 min``, ``3.4 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
