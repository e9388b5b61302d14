"""The commands ``benchmark`` and ``ablate``: measurements for developers and for readers of the paper."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from mcbo.cli import options as cli
from mcbo.cli.outputs import check_outputs
from mcbo.cli.program import SOME_FAILED
from mcbo.cli.streams import show
from mcbo.core.errors import InputError
from mcbo.dataset.learn2reg import SPLITS
from mcbo.io.files import shown, write_bytes
from mcbo.methods.presets import DEFAULT_TASK, find_config
from mcbo.progress import set_up_logging
from mcbo.runs.options import Options
from mcbo.runtime import describe_device, describe_machine, max_threads, select_device, versions
from mcbo.studies.benchmark import compare_with_cpu, differences_to_text, measure, to_content, to_text
from mcbo.studies.thread_scaling import measure_scaling
from mcbo.studies.thread_scaling import to_content as scaling_to_content
from mcbo.studies.thread_scaling import to_text as scaling_to_text


def benchmark(
    size: Annotated[int, typer.Option(metavar="N", help="Voxels along each axis of the phantom.")] = 128,
    scaling: Annotated[
        str | None, typer.Option(metavar="N,N,…", help="Several sizes instead, to see how the cost grows with the volume.")
    ] = None,
    modalities: Annotated[int, typer.Option(metavar="1|2", help="Number of moving images: ceT1 alone, or ceT1 and T2.")] = 1,
    task: cli.Task = DEFAULT_TASK,
    preset: cli.Preset = None,
    device: cli.Device = "auto",
    threads: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…", help="CPU threads. Default: one per core. Several, from 1 on: the speed-up of each stage."
        ),
    ] = None,
    background: Annotated[
        bool, typer.Option("--background/--no-background", help="Whether the fixed image is a wedge in an empty box.")
    ] = True,
    repeat: Annotated[int, typer.Option(metavar="N", help="Runs per size; the table shows their medians.")] = 3,
    reference: Annotated[
        bool,
        typer.Option("--reference", help="Also measure the plain torch code that the compiled kernels are tested against."),
    ] = False,
    json_file: cli.JsonFile = None,
) -> None:
    """Measure the time and peak memory of every stage on a phantom, file I/O included."""
    check_outputs({"--json": json_file}, [])
    counts = [] if threads is None else _parse_numbers("--threads", threads)
    if counts and min(counts) < 1:
        raise InputError(f"--threads: expected at least 1, got {shown(min(counts))}")
    if counts and max(counts) > (most := max_threads()):
        raise InputError(f"--threads: expected at most {most} on this machine, got {shown(max(counts))}")
    if len(counts) > 1 and (scaling or reference or select_device(device).type != "cpu"):
        raise InputError(
            "--threads: expected one number with --scaling, --reference or a GPU: the speed-up is of one size on a CPU"
        )
    if counts:
        torch.set_num_threads(counts[-1])
    config = find_config(task, preset)
    sizes = _parse_numbers("--scaling", scaling) if scaling else [size]
    about = {
        "task": task,
        "preset": config.name,
        "device": describe_device(select_device(device), counts),
        "machine": describe_machine(counts),
        **versions(),
    }
    options = Options(output=Path(), device=device)
    measured = partial(
        measure, sizes, config=config, options=options, movings=modalities, repeat=repeat, has_background=background
    )
    if len(counts) > 1:
        scaled = measure_scaling(counts, lambda: measured()[0])
        about_lines = "\n".join(f"{name}: {value}" for name, value in about.items())
        show(f"{about_lines}\n\n{scaling_to_text(scaled)}")
        whole = {"about": about, "measurements": [to_content(one) for one in scaled.measurements]}
        _write_json(json_file, whole | scaling_to_content(scaled))
        return
    measurements = measured()
    show(to_text(about, measurements))
    content: dict[str, object] = {"about": about, "measurements": [to_content(one) for one in measurements]}
    if any(one.gpu for one in measurements):
        differences = compare_with_cpu(config, options, movings=modalities)
        show(f"\n{differences_to_text(differences)}")
        content["difference_from_cpu_voxels"] = {name: asdict(one) for name, one in differences.items()}
    if reference:
        torch_options = replace(options, reference=True)
        plain = measured(options=torch_options)
        ratios = ", ".join(f"{b.seconds / a.seconds:.1f}" for a, b in zip(measurements, plain, strict=True))
        show(f"\nplain torch:\n\n{to_text({}, plain)}\n\nplain torch takes {ratios} times as long")
        content["plain_torch"] = [to_content(one) for one in plain]
    _write_json(json_file, content)


def _parse_numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option}: expected whole numbers separated by commas, got {shown(text)}") from error


def ablate(
    context: typer.Context,
    dataset: Annotated[list[Path], typer.Option(metavar="JSON", help="Dataset JSON. Repeatable.")],
    preset: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Preset to compare. Repeatable. Default: all of the task.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CHANGE",
            help="Variant to compare: PRESET:FIELD=VALUE, such as mcbo2024:levels.3.search_radius=2. Separate "
            "several fields of one variant by ';'. Repeatable.",
        ),
    ] = None,
    task: cli.DatasetTask = None,
    split: cli.Split = "val",
    case: cli.Cases = None,
    moving: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CHANNELS",
            help="Moving channels to register, alone (0001) or together (0001+0002). Repeatable. Default: all together.",
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder with the true displacements CASE.npz. Default: truth/ beside the JSON, if it exists."
        ),
    ] = None,
    device: cli.Device = "auto",
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the displacements in this folder, and resume from it.")
    ] = None,
    overwrite: cli.Overwrite = False,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Also write the table as Markdown.")
    ] = None,
    json_file: cli.JsonFile = None,
) -> None:
    """Compare presets and variants of them on datasets: one table of errors, regularity, and run time."""
    from mcbo.studies.ablation import (  # here, because it imports pandas
        describe,
        input_files,
        make_studies,
        run_studies,
        to_markdown,
    )

    set_up_logging()
    cli.check_choice("--split", split, list(SPLITS))
    written = {"--markdown": markdown_file, "--json": json_file}
    check_outputs(written, dataset)
    studies = make_studies(
        dataset,
        task=task,
        presets=preset or (),
        changes=change or (),
        split=split,
        cases=cli.split_commas(case),
        movings=[channels.split("+") for channels in moving or ()],
        truth=truth,
    )
    check_outputs(written, input_files(studies, truth))
    rows = run_studies(studies, Options(output=Path(), device=device, overwrite=overwrite), keep=output)
    about = describe(rows)
    table = to_markdown(about, rows)
    show(table)
    if markdown_file:
        write_bytes(markdown_file, (table + "\n").encode("utf-8", errors="backslashreplace"))
    _write_json(json_file, {"about": about, "rows": [asdict(row) for row in rows]})
    if any(row.failed for row in rows):
        context.obj.append(SOME_FAILED)


def _write_json(path: Path | None, content: Mapping[str, object]) -> None:
    if path:
        write_bytes(path, (json.dumps(content, indent=1) + "\n").encode("ascii"))
