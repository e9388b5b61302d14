"""``python -m mcbo``: what one does with the method beside running it on a data set (that is ``process.py``)."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from mcbo.cli import register as register_command
from mcbo.cli import transforms as transform_commands
from mcbo.core.errors import InputError, McboError
from mcbo.core.log import log, printable
from mcbo.dataset.learn2reg import SPLITS
from mcbo.io.files import write_whole
from mcbo.methods.presets import DEFAULT_TASK, TASKS, find_config
from mcbo.progress import set_up_logging
from mcbo.qc.result_folder import find_report
from mcbo.runs.options import Options
from mcbo.runtime import keep_freed_memory
from mcbo.studies import ablation
from mcbo.studies.benchmark import describe_run, measure, to_text, write_json

SOME_FAILED = 2
"""Exit status where some pairs have no result; 0 is none, 1 bad input or usage."""

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
    about = {"task": task, **describe_run(config, device)}
    options = Options(output=Path(), device=device)
    measurements = measure(sizes, config=config, options=options, movings=modalities, repeat=repeat)
    typer.echo(to_text(about, measurements))
    plain = None
    if reference:
        plain = measure(sizes, config=config, options=replace(options, reference=True), movings=modalities, repeat=repeat)
        ratios = ", ".join(f"{b.seconds / a.seconds:.1f}" for a, b in zip(measurements, plain, strict=True))
        typer.echo(f"\nplain torch:\n\n{to_text({}, plain)}\n\nplain torch takes {ratios} times as long")
    if json_file:
        write_json(json_file, about, measurements, plain)


def _parse_sizes(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--scaling: expected whole numbers separated by commas, got {text!r}") from error


@app.command()
def ablate(
    context: typer.Context,
    dataset: Annotated[list[Path], typer.Option(metavar="JSON", help="Dataset JSON; repeat it for several.")],
    preset: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Preset; repeat it. Default: all of the task.", show_default=False)
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PRESET:FIELD=VALUE",
            help="A preset with a field replaced, or several separated by ';', such as "
            "'mcbo2024:levels.3.refinement.iterations=30'. Repeat it for several variants.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"{' or '.join(TASKS)}: for data sets whose JSON names neither.", show_default=False),
    ] = None,
    split: Annotated[str, typer.Option(metavar="|".join(SPLITS), help="Which pairs of the JSON.")] = "val",
    case: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Only these cases; repeat it.", show_default=False)
    ] = None,
    moving: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CHANNEL+…",
            help="Moving channels to register, alone (0001) or together (0001+0002); repeat it. Default: all together.",
            show_default=False,
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Known displacements CASE.npz. Default: truth/ beside the JSON, if there.", show_default=False
        ),
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N.")] = "auto",
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep displacements there; the same command then goes on.", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Do again what is kept in --output: the code changed, its version did not.")
    ] = False,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Also write the table there.", show_default=False)
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures there.", show_default=False)
    ] = None,
) -> None:
    """Presets and single changes of them on data sets: one table of errors, regularity and seconds."""
    if split not in SPLITS:
        raise InputError(f"--split: expected one of {', '.join(SPLITS)}, got {split!r}")
    plan = ablation.Plan(
        datasets=tuple(dataset),
        task=task,
        presets=tuple(preset or ()),
        changes=tuple(change or ()),
        split=split,
        cases=tuple(case or ()),
        movings=tuple(tuple(channels.split("+")) for channels in moving or ()),
        truth=truth,
    )
    set_up_logging()
    options = Options(output=Path(), device=device, overwrite=overwrite)
    rows = ablation.run_studies(ablation.make_studies(plan), options, keep=output)
    about = ablation.describe(rows)
    table = ablation.to_markdown(about, rows)
    typer.echo(table)
    if markdown_file:
        write_whole(markdown_file, lambda file: file.write_text(table + "\n", encoding="utf-8"))
    if json_file:
        ablation.write_json(json_file, about, rows)
    if any(row.failed for row in rows):
        context.obj.append(SOME_FAILED)


@app.command()
def report(
    results: Annotated[Path, typer.Argument(metavar="RESULT_DIR", help="Folder of a run, with report.json; or the report.")],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The page. Default: report.html beside the report.", show_default=False),
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON",
            help="Dataset whose images and landmarks to show, where those that the report names are elsewhere now.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """One HTML page for a whole run: figures, and images, displacements and landmarks in three planes."""
    from mcbo.qc.findings import look_at  # here, because they bring matplotlib, which writes to the home folder
    from mcbo.qc.page import write_page

    set_up_logging()
    path = find_report(results)
    page = output or path.with_suffix(".html")
    size = write_page(page, look_at(path, dataset=dataset))
    typer.echo(f"{page}: {size / 1e6:.1f} MB")


transform_commands.add_to(app)
app.command("register")(register_command.register_files)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, 1 for bad input or usage, or 2 if some pairs have no result."""
    status: list[int] = []
    log.handlers.clear()  # of an earlier call
    try:
        app(sys.argv[1:] if arguments is None else arguments, prog_name="python -m mcbo", obj=status)
    except McboError as error:
        if log.handlers:  # the command set them up: --log-json counts for errors, too
            log.error("%s", error)
        else:
            typer.echo(printable(f"ERROR: {error}"), err=True)
        return 1
    except SystemExit as stop:
        if status:
            return status[0]
        return 1 if stop.code == 2 else int(stop.code or 0)  # 2 is typer's own status for wrong usage
    return 0


def run() -> None:
    """The program ``mcbo``: runs the command line as a process of its own, and exits with its status."""
    keep_freed_memory()
    sys.exit(main())
