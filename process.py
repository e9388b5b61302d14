"""The container's entry: reads its arguments, says what is to be done, and leaves the doing to ``mcbo.runner``."""

import math
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

if __name__ == "__main__":
    # Until main() takes over: the first process of a container does not even notice SIGTERM without a handler, and the imports
    # below take seconds.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import typer

from mcbo import __version__
from mcbo.core.errors import InputError, McboError
from mcbo.core.log import log
from mcbo.dataset.learn2reg import SPLITS, Dataset, open_input, select_cases, single_pair
from mcbo.dataset.remote import locate, open_url
from mcbo.io.nifti import FORMATS
from mcbo.io.source import is_url, shown_url
from mcbo.methods.config import Preset
from mcbo.methods.presets import DEFAULT_TASK, TASKS, find_config
from mcbo.progress import set_up_logging
from mcbo.runs.ledger import Outcome
from mcbo.runs.options import ON_FAILURE, Options
from mcbo.runs.runner import run
from mcbo.runtime import keep_freed_memory

ALL_WRITTEN, BAD_INPUT, SOME_FAILED, TERMINATED = 0, 1, 2, 143
"""Exit statuses; the last is what a shell says of a program that SIGTERM ended (128 + 15)."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program.

    Returns:
        0 all displacements written; 1 bad input or usage, nothing started; 2 some pairs failed, the others are written; 130
        and 143 stopped by SIGINT and SIGTERM.
    """
    status: list[int] = []
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        app(list(sys.argv[1:] if arguments is None else arguments), prog_name="process.py", obj=status)
    except SystemExit as stop:
        if status:
            return status[0]
        return BAD_INPUT if stop.code == 2 else int(stop.code or 0)  # 2 is typer's own status for wrong usage
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return ALL_WRITTEN


def _stop(number: int, _: object) -> None:
    """Ends the run in order; what is asked again meanwhile is not heard, so that clearing up is not cut short."""
    for other in (signal.SIGTERM, signal.SIGINT):
        signal.signal(other, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(TERMINATED)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"mcbo {__version__}")
        raise typer.Exit


@app.command(
    epilog="Exit status: 0 all written; 1 bad input or usage, nothing started; 2 some pairs failed, the others are written."
)
def process(
    context: typer.Context,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATASET_JSON | FIXED MOVING OUTPUT_FILE]",
            help="A Learn2Reg dataset JSON; or two images and the displacement file to write. Without: all of --input. "
            "What is read may be a URL.",
            show_default=False,
        ),
    ] = None,
    input_folder: Annotated[
        str,
        typer.Option(
            "--input", metavar="DIR", envvar="MCBO_INPUT", help="Folder with a *_dataset.json, or images alone; or its URL."
        ),
    ] = "/input",
    output: Annotated[
        Path, typer.Option(metavar="DIR", envvar="MCBO_OUTPUT", help="Folder for displacements and report.json.")
    ] = Path("/output"),
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            envvar="MCBO_TASK",
            help=f"{' or '.join(TASKS)}. Default: the name in the JSON or in the file names.",
            show_default=False,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            envvar="MCBO_PRESET",
            help=f"Which variant of the method: {', '.join(TASKS[DEFAULT_TASK].presets)}. Default: the first.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[str, typer.Option(metavar="|".join(SPLITS), envvar="MCBO_SPLIT", help="Which pairs of the JSON.")] = "val",
    case: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            envvar="MCBO_CASE",
            help="Only these cases: --case 0099 --case 0100, or 0099,0100.",
            show_default=False,
        ),
    ] = None,
    moving: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CHANNEL",
            envvar="MCBO_MOVING",
            help="Write only these moving channels (0001 or 0002); all of a case are still used.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(metavar="NAME", envvar="MCBO_DEVICE", help="auto, cpu, cuda or cuda:N. auto: a GPU if there is one."),
    ] = "auto",
    file_format: Annotated[
        str, typer.Option("--format", metavar="|".join(FORMATS), envvar="MCBO_FORMAT", help="Of the displacements.")
    ] = FORMATS[0],
    memory_gb: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            envvar="MCBO_MEMORY_GB",
            help="Memory for the tensors of a case (the process takes 0.4 to 1.6 GB more). Default: 75 % of what is free. "
            "The result does not depend on it.",
            show_default=False,
        ),
    ] = None,
    warped: Annotated[
        bool, typer.Option("--warped", envvar="MCBO_WARPED", help="Also write the warped moving images.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", envvar="MCBO_OVERWRITE", help="Do again what an earlier run into --output has done.")
    ] = False,
    trust_paths: Annotated[
        bool,
        typer.Option(
            "--trust-paths", envvar="MCBO_TRUST_PATHS", help="Let the images of a data set lie, or link, outside of its folder."
        ),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", envvar="MCBO_STRICT", help="Stop after the first case in which a pair failed.")
    ] = False,
    on_failure: Annotated[
        str,
        typer.Option(
            metavar="|".join(ON_FAILURE),
            envvar="MCBO_ON_FAILURE",
            help="What a failed pair gets: no file, or a displacement of no motion. The exit status is 2 all the same.",
        ),
    ] = ON_FAILURE[0],
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            envvar="MCBO_SHARD",
            help="Only every Nth case from the Ith on, for job arrays; the report is report-I-of-N.json.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            envvar="MCBO_WORKERS",
            help="Spread the cases over N processes: one a GPU, or with an Nth of the threads each. With --scheduler: how many "
            "cases it gets at a time.",
            show_default=False,
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            envvar="MCBO_SCHEDULER",
            help="Spread the cases over the workers of this Dask scheduler (tcp://HOST:PORT).",
            show_default=False,
        ),
    ] = None,
    case_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            envvar="MCBO_CASE_TIMEOUT",
            help="Give a case up after so many seconds on a worker; needs --workers or --scheduler.",
            show_default=False,
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", envvar="MCBO_QUIET", help="Tell warnings and errors alone.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", envvar="MCBO_VERBOSE", help="Tell more.")] = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", envvar="MCBO_LOG_JSON", help="Tell it in JSON, an object a line.")
    ] = False,
    demo: Annotated[
        bool, typer.Option("--demo", envvar="MCBO_DEMO", help="Make a small data set, register and score it. Needs no input.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Register every pair of a Learn2Reg data set and write displacement fields in challenge format.

    Needs no training and no network. Uses a GPU if there is one; without, the CPU gives the same result up to rounding.
    """
    del version
    set_up_logging(quiet=quiet, verbose=verbose and not quiet, json_lines=log_json)
    try:
        if quiet and verbose:
            raise InputError("expected --quiet or --verbose, got both")
        _check_choice("--split", split, list(SPLITS))
        _check_choice("--format", file_format, list(FORMATS))
        _check_choice("--on-failure", on_failure, ON_FAILURE)
        _check_local("--output", str(output))
        if memory_gb is not None and not 0 < memory_gb < math.inf:
            raise InputError(f"--memory-gb: expected a number above 0, got {memory_gb:g}")
        _check_workers(workers, scheduler, case_timeout)
        options = Options(
            output=output,
            suffix=f".{file_format}",
            movings=_split_commas(moving),
            device=device,
            memory_gb=memory_gb,
            warped=warped,
            overwrite=overwrite,
            strict=strict,
            on_failure=on_failure,
            shard=_parse_shard(shard),
            workers=workers,
            scheduler=scheduler,
            case_timeout_s=case_timeout,
        )
        if demo:
            _check_alone(inputs)
            if options.shard:
                raise InputError("--demo: expected no --shard, since it has one case")
            from mcbo.studies.demo import run_demo  # here, because it brings matplotlib, which writes to the home folder

            outcome = run_demo(options, config=find_config(task or DEFAULT_TASK, preset))
        else:
            outcome = _run(inputs or [], input_folder, options, task, preset, split, _split_commas(case), trust_paths)
    except McboError as error:
        log.error("%s", error)
        context.obj.append(BAD_INPUT)
        return
    context.obj.append(_conclude(outcome))


def _run(
    inputs: Sequence[str],
    input_folder: str,
    options: Options,
    task: str | None,
    preset: str | None,
    split: str,
    names: Sequence[str],
    trust_paths: bool,
) -> Outcome:
    if len(inputs) == 3:
        dataset, options = _three_paths(inputs, options)
    elif len(inputs) <= 1:
        where = inputs[0] if inputs else input_folder
        if is_url(where):
            dataset = open_url(where, split=split, trust_paths=trust_paths)
        else:
            dataset = open_input(Path(where), split=split, trust_paths=trust_paths)
    else:
        raise InputError(
            f"expected no path, one (a dataset JSON) or three (fixed, moving, output file), got {len(inputs)}: "
            f"{' '.join(map(shown_url, inputs))}"
        )
    config = _choose_config(dataset, task, preset, optional=len(inputs) == 3)
    return run(select_cases(dataset.cases, names=names, movings=options.movings), config, options)


def _three_paths(inputs: Sequence[str], options: Options) -> tuple[Dataset, Options]:
    """A dataset of one pair; folder and format of its result follow from the output file."""
    _check_local("the output file", inputs[2])
    fixed, moving, output_file = locate(inputs[0]), locate(inputs[1]), Path(inputs[2])
    suffix = next((s for s in (".nii.gz", ".nii", ".npz") if output_file.name.endswith(s)), None)
    if suffix is None or output_file.name == suffix:
        raise InputError(f"{output_file}: expected an output file ending in .nii.gz, .nii or .npz")
    if options.movings:
        raise InputError("--moving or MCBO_MOVING: expected no channel, since the moving image is given by its path")
    if options.shard:
        raise InputError("--shard or MCBO_SHARD: expected none, since three paths are one case")
    stem = output_file.name.removesuffix(suffix)
    written = replace(options, output=output_file.parent, suffix=suffix, report_name=f"{stem}.report.json")
    return single_pair(fixed, moving, output_file), written


def _choose_config(dataset: Dataset, task: str | None, preset: str | None, *, optional: bool) -> Preset:
    """The preset of the task that was asked for, or that the data set names."""
    name = task or dataset.task
    if optional and (name is None or (task is None and name not in TASKS)):
        log.info("no task is named: taking that of %s (choose with --task)", DEFAULT_TASK)
        name = DEFAULT_TASK
    if name is None:
        raise InputError(f"the dataset has no name: expected --task with one of {', '.join(TASKS)}")
    return find_config(name, preset)


def _conclude(outcome: Outcome) -> int:
    """Tells what became of the run, and the exit status."""
    log.info("%d displacement(s) written", len(outcome.written))
    if not outcome.failed:
        return ALL_WRITTEN
    log.error("%d not written: %s", len(outcome.failed), ", ".join(outcome.failed))
    if outcome.placeholders:
        log.error("%d of them stood in for by no motion", len(outcome.placeholders))
    return SOME_FAILED if outcome.started or outcome.placeholders else BAD_INPUT


def _split_commas(values: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(part.strip() for value in values or () for part in value.split(",") if part.strip())


def _parse_shard(text: str | None) -> tuple[int, int] | None:
    """``3/8``: the third of eight."""
    if text is None:
        return None
    index, _, count = text.partition("/")
    if not (index.isascii() and index.isdecimal() and count.isascii() and count.isdecimal() and len(text) <= 20):
        raise InputError(f"--shard: expected I/N, as 3/8, got {text[:40]!r}")
    if not 1 <= int(index) <= int(count):
        raise InputError(f"--shard: expected I from 1 to N, got {text}")
    return int(index), int(count)


def _check_workers(workers: int | None, scheduler: str | None, case_timeout: float | None) -> None:
    if workers is not None and workers < 1:
        raise InputError(f"--workers: expected 1 or more, got {workers}")
    if case_timeout is not None and not 0 < case_timeout < threading.TIMEOUT_MAX:
        raise InputError(f"--case-timeout: expected a number of seconds above 0, got {case_timeout:g}")
    if case_timeout is not None and workers is None and scheduler is None:
        raise InputError(
            "--case-timeout: expected --workers or --scheduler with it, since only a worker can be stopped in mid-case"
        )


def _check_choice(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"{option}: expected one of {', '.join(known)}, got {value!r}")


def _check_local(what: str, path: str) -> None:
    if is_url(path):
        raise InputError(f"{what}: expected a folder of this machine, or one that is mounted, got the URL {shown_url(path)}")


def _check_alone(inputs: Sequence[str] | None) -> None:
    if inputs:
        raise InputError(f"--demo makes its own input: expected no path, got {' '.join(map(shown_url, inputs))}")


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
