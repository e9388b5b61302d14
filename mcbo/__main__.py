"""``python -m mcbo``: what one does with the method beside running it on a data set (that is ``process.py``)."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from mcbo.benchmark import describe_run, measure, to_text, write_json
from mcbo.errors import InputError, McboError
from mcbo.runner import Options
from mcbo.tasks import DEFAULT_TASK, TASKS, find_config

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def _about() -> None:
    """MCBO: multimodal 3D image registration."""


@app.command()
def benchmark(
    size: Annotated[int, typer.Option(metavar="N", help="Voxels along each axis of the phantom.")] = 128,
    scaling: Annotated[
        str | None,
        typer.Option(metavar="N,N,…", help="Several sizes instead: how the cost grows with the volume.", show_default=False),
    ] = None,
    modalities: Annotated[int, typer.Option(metavar="1|2", help="Moving images: ceT1, or ceT1 and T2.")] = 1,
    task: Annotated[str, typer.Option(metavar="NAME", help=" or ".join(TASKS))] = DEFAULT_TASK,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Variant of the method. Default: the task's first.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Processor threads. Default: as many as cores.", show_default=False)
    ] = None,
    repeat: Annotated[int, typer.Option(metavar="N", help="Runs of each size; medians are printed.")] = 3,
    reference: Annotated[
        bool, typer.Option("--reference", help="Also the plain torch code that the compiled kernels are checked against.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures there.", show_default=False)
    ] = None,
) -> None:
    """Seconds and peak memory of every stage, from files to file, on a phantom."""
    if threads is not None:
        if threads < 1:
            raise InputError(f"--threads: expected at least 1, got {threads}")
        torch.set_num_threads(threads)
    config = find_config(task, preset)
    sizes = _parse_sizes(scaling) if scaling else [size]
    about = describe_run(config, device)
    options = Options(output=Path(), device=device)
    measurements = measure(sizes, config=config, options=options, movings=modalities, repeat=repeat)
    typer.echo(to_text(about, measurements))
    if reference:
        plain = measure(sizes, config=config, options=replace(options, reference=True), movings=modalities, repeat=repeat)
        ratios = ", ".join(f"{b.seconds / a.seconds:.1f}" for a, b in zip(measurements, plain, strict=True))
        typer.echo(f"\nplain torch:\n\n{to_text({}, plain)}\n\nplain torch takes {ratios} times as long")
    if json_file:
        write_json(json_file, about, measurements)


def _parse_sizes(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--scaling: expected whole numbers separated by commas, got {text!r}") from error


def main() -> int:
    """Runs the command line; returns 0, or 1 for bad input or usage."""
    try:
        app(prog_name="python -m mcbo", standalone_mode=True)
    except McboError as error:
        typer.echo(f"ERROR: {error}", err=True)
        return 1
    except SystemExit as stop:
        return 1 if stop.code == 2 else int(stop.code or 0)  # 2 is typer's own status for wrong usage
    return 0


if __name__ == "__main__":
    sys.exit(main())
