"""The container's entry point: parses the arguments, finds the cases, and hands them to ``mcbo.runs.runner``."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mcbo.core.entry import TERMINATED, begin, finish, loaded

if __name__ == "__main__":
    begin()

import typer

from mcbo.cli import options as cli
from mcbo.cli.jobs import are_served, do_jobs, find_inputs
from mcbo.cli.outputs import check_outputs
from mcbo.cli.program import ALL_WRITTEN, BAD_INPUT, SOME_FAILED, Command, run_app
from mcbo.cli.server import PORT
from mcbo.core.errors import InputError
from mcbo.core.log import log
from mcbo.core.types import Choice
from mcbo.dataset.learn2reg import SPLITS, Dataset, open_input, select_cases, single_pair
from mcbo.dataset.remote import locate, open_url
from mcbo.dataset.sockets import INPUTS
from mcbo.io.nifti import FORMATS
from mcbo.io.source import is_url, shown_url
from mcbo.methods.config import Preset
from mcbo.methods.presets import DEFAULT_TASK, TASKS, find_config
from mcbo.runs.ledger import Outcome
from mcbo.runs.options import ON_FAILURE, Options
from mcbo.runs.runner import run
from mcbo.runtime import keep_freed_memory, use_available_cores

__all__ = ["ALL_WRITTEN", "BAD_INPUT", "SOME_FAILED", "TERMINATED", "main"]

_PSMAREG = (
    "; PSMAReg's five (fixed CT, fixed PET, moving CT, moving PET, output) are not supported: register the two CTs with three "
    "paths, and bring the result, (H, W, D, 3), into the order that PSMAReg wants, (3, X, Y, Z)"
)
"""What to do with what PSMAReg passes."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status, as ``--help`` lists them."""
    return run_app(app, sys.argv[1:] if arguments is None else arguments, name="process.py")


@app.command(
    cls=Command,
    context_settings={"auto_envvar_prefix": "MCBO"},
    epilog="Exit status: 0 all displacements written; 1 invalid input or usage, nothing started, or the log cannot be written; "
    "2 some pairs failed, the others are written; 130 interrupted; 143 terminated.",
)
def process(
    context: typer.Context,
    inputs: cli.Inputs = None,
    input_folder: cli.InputFolder = "/input",
    output: cli.OutputFolder = Path("/output"),
    task: cli.DatasetTask = None,
    preset: cli.Preset = None,
    expect: cli.Expect = None,
    accept: cli.Accept = None,
    split: cli.Split = "val",
    case: cli.Cases = None,
    moving: cli.Movings = None,
    device: cli.Device = "auto",
    file_format: cli.FileFormat = FORMATS[0],
    memory_gb: cli.MemoryGb = None,
    warped: cli.Warped = False,
    overwrite: cli.Overwrite = False,
    trust_paths: cli.TrustPaths = False,
    strict: cli.Strict = False,
    on_failure: cli.OnFailure = ON_FAILURE[0],
    shard: cli.Shard = None,
    workers: cli.Workers = None,
    scheduler: cli.Scheduler = None,
    case_timeout: cli.CaseTimeout = None,
    quiet: cli.Quiet = False,
    verbose: cli.Verbose = False,
    log_json: cli.LogJson = False,
    sockets: cli.Sockets = None,
    spacing: cli.Spacing = None,
    challenge_format: cli.ChallengeFormat = False,
    api_method: cli.ApiMethod = None,
    port: cli.Port = PORT,
    demo: cli.Demo = False,
    version: cli.Version = False,
) -> None:
    """Register every pair of a Learn2Reg dataset and write displacement fields in challenge format.

    A folder with an inputs.json is a job of grand-challenge.org. Needs no training and
    no network. Runs on a GPU if there is one; the CPU gives the same result up to rounding.
    """
    del version
    cli.start_log(quiet=quiet, verbose=verbose, log_json=log_json)
    cli.check_choice("--split", split, list(SPLITS))
    cli.check_choice("--format", file_format, FORMATS)
    cli.check_choice("--on-failure", on_failure, ON_FAILURE)
    _check_local("--output", str(output))
    cli.check_folder("--output", output)
    cli.check_memory(memory_gb)
    expected = cli.parse_expect(expect)
    cli.check_workers(workers, scheduler, case_timeout)
    options = Options(
        output=output,
        suffix=f".{file_format}",
        movings=cli.split_commas(moving),
        device=device,
        memory_gb=memory_gb,
        warped=warped,
        overwrite=overwrite,
        strict=strict,
        on_failure=on_failure,
        shard=cli.parse_shard(shard),
        workers=workers,
        scheduler=scheduler,
        case_timeout_s=case_timeout,
    )
    is_served = are_served(api_method)
    job = None if demo else find_inputs(inputs or [input_folder], is_served=is_served)
    if job is not None:
        status = do_jobs(
            job,
            options,
            cases=cli.split_commas(case),
            sockets=sockets,
            task=task,
            preset=preset,
            expect=expected,
            accept=accept,
            spacing=spacing,
            challenge_format=challenge_format,
            trust_paths=trust_paths,
            port=port if is_served else None,
        )
        context.obj.append(status)
        return
    if sockets or spacing or challenge_format:
        raise InputError(f"--sockets, --spacing, --challenge-format: expected with the {INPUTS} of a job only")
    if demo:
        outcome = _demo(inputs or [], options, _adapted(find_config(task or DEFAULT_TASK, preset), expected, accept))
    else:
        dataset, options = _open(inputs or [input_folder], options, split=split, trust_paths=trust_paths)
        config = _adapted(_choose_config(dataset, task, preset, optional=len(inputs or []) == 3), expected, accept)
        cases = select_cases(dataset.cases, names=cli.split_commas(case), movings=options.movings)
        outcome = run(cases, config, options, inputs=dataset.files)
    context.obj.append(_conclude(outcome))


def _adapted(config: Preset, expected: tuple[float, float] | None, accept: Choice | None) -> Preset:
    config = config if accept is None else config.accepting(accept)
    return config if expected is None else config.expecting(*expected)


def _demo(inputs: Sequence[str], options: Options, config: Preset) -> Outcome:
    if inputs:
        raise InputError(f"--demo generates its own input: expected no path, got {' '.join(map(shown_url, inputs))}")
    if options.shard:
        raise InputError("--demo: expected no --shard, since the demo has a single case")
    from mcbo.studies.demo import run_demo  # here, because it imports matplotlib, which writes to the home folder

    return run_demo(options, config=config)


def _open(inputs: Sequence[str], options: Options, *, split: str, trust_paths: bool) -> tuple[Dataset, Options]:
    """The cases behind one path or three; of three, the last also sets the output folder, file name, and format."""
    if len(inputs) == 3:
        return _three_paths(inputs, options)
    if len(inputs) != 1:
        raise InputError(
            f"expected no path, one (a dataset JSON) or three (fixed, moving, output file), got {len(inputs)}: "
            f"{' '.join(map(shown_url, inputs))}{_PSMAREG if len(inputs) == 5 else ''}"
        )
    path = inputs[0]
    if is_url(path):
        return open_url(path, split=split, trust_paths=trust_paths), options
    return open_input(Path(path), split=split, trust_paths=trust_paths), options


def _three_paths(inputs: Sequence[str], options: Options) -> tuple[Dataset, Options]:
    _check_local("the output file", inputs[2])
    fixed, moving, output_file = locate(inputs[0]), locate(inputs[1]), Path(inputs[2])
    suffix = next((s for s in (".nii.gz", ".nii", ".npz") if output_file.name.endswith(s)), None)
    if suffix is None or output_file.name == suffix:
        raise InputError(f"{output_file}: expected an output file ending in .nii.gz, .nii or .npz")
    if options.movings:
        raise InputError("--moving or MCBO_MOVING: expected no channel, since the moving image is given by its path")
    if options.shard:
        raise InputError("--shard or MCBO_SHARD: expected none, since three paths are one case")
    check_outputs({"OUTPUT_FILE": output_file}, [path for path in (fixed, moving) if isinstance(path, Path)])
    stem = output_file.name.removesuffix(suffix)
    written = replace(options, output=output_file.parent, suffix=suffix, report_name=f"{stem}.report.json")
    return single_pair(fixed, moving, output_file), written


def _choose_config(dataset: Dataset, task: str | None, preset: str | None, *, optional: bool) -> Preset:
    """The preset of the requested task, else of the one that the dataset names; with ``optional``, else of the default."""
    name = task or dataset.task
    if optional and not task and name not in TASKS:
        log.info("no task given: using the presets of %s (--task selects another)", DEFAULT_TASK)
        name = DEFAULT_TASK
    if name is None:
        raise InputError(f"the dataset has no name: expected --task with one of {', '.join(TASKS)}")
    return find_config(name, preset)


def _conclude(outcome: Outcome) -> int:
    """Logs the outcome of the run and returns its exit status."""
    log.info("%d displacement(s) written", len(outcome.written))
    if not outcome.failed:
        return ALL_WRITTEN
    log.error("%d not written: %s", len(outcome.failed), ", ".join(outcome.failed))
    if outcome.placeholders:
        log.error("wrote a zero displacement instead for %d of them", len(outcome.placeholders))
    return SOME_FAILED if outcome.started or outcome.placeholders else BAD_INPUT


def _check_local(what: str, path: str) -> None:
    if is_url(path):
        raise InputError(f"{what}: expected a local or mounted folder, got the URL {shown_url(path)}")


if __name__ == "__main__":
    loaded()
    keep_freed_memory()
    use_available_cores()
    finish(main())
