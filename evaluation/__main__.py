"""``python -m evaluation score | validate | leaderboard | zero | grand-challenge | codabench``: evaluate displacements."""

import contextlib
import errno
import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, cast, get_args

from evaluation.errors import (
    INTERRUPTED,
    TERMINATED,
    EvaluationError,
    Stream,
    begin,
    finish,
    guarded,
    heard,
    log,
    printable,
    printable_usage,
    shown,
)

if __name__ == "__main__":
    begin()

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from evaluation.files import check_outputs, write_bytes
from evaluation.leaderboard import build_board, default_metrics
from evaluation.pairs import SPLITS, Pair, read_pairs
from evaluation.platforms import codabench, grand_challenge
from evaluation.ranking.schemes import SCHEMES
from evaluation.render import BOARD_WRITERS, board_markdown, scores_page, to_csv
from evaluation.settings import from_config, from_options
from evaluation.submission import Checked, examine, fix, unexpected, write_zero
from evaluation.summary import Scores, score, task_name, to_official, to_table
from evaluation.tasks import METRICS, Program, find_task

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*::?)+(//|/[^/]*@)|//[^/]*:[^/]*@")

ALL_SCORED, BAD_INPUT, SOME_FAILED = 0, 1, 2
"""Exit statuses; ``validate`` uses the first two."""

_BROKEN_PIPE = os.strerror(errno.EPIPE)


class _Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        """Flags and arguments, whose names say what they are, are listed without a type."""
        parameters = super().get_params(ctx)
        for parameter in parameters:
            if isinstance(parameter, TyperArgument):
                parameter.display_type_rich = lambda **_: None  # type: ignore[method-assign]
            elif isinstance(parameter, TyperOption) and parameter.is_flag:
                parameter.metavar = ""
        return parameters

    def make_context(self, *arguments: Any, **more: Any) -> Any:
        with printable_usage():
            return super().make_context(*arguments, **more)


class _Group(TyperGroup):
    def make_context(self, *arguments: Any, **more: Any) -> Any:
        with printable_usage():
            return super().make_context(*arguments, **more)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        with printable_usage():
            return super().resolve_command(ctx, args)


app = typer.Typer(cls=_Group, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


def _listed(parameter: typer.CallbackParam, value: str | None) -> str | None:
    """Refuses a value that is not in the option's metavar."""
    known = str(parameter.metavar).split("|")
    if value is not None and value not in known:
        raise EvaluationError(f"--{parameter.name}: expected one of {', '.join(known)}, found {shown(value)}")
    return value


Dataset = Annotated[Path, typer.Option("--dataset", metavar="JSON", help="The dataset JSON, beside its images and landmarks.")]
Predictions = Annotated[
    Path, typer.Option("--predictions", metavar="DIR", help="Folder of displacements disp_*.nii.gz or .npz.")
]
Split = Annotated[str, typer.Option("--split", metavar="|".join(SPLITS), callback=_listed, help="Which pairs of the JSON.")]
TrustPaths = Annotated[
    bool,
    typer.Option("--trust-paths", envvar="MCBO_TRUST_PATHS", help="Allow files outside the dataset's folder, by path or link."),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help=f"Some of {','.join(METRICS)}. Default: in score, all for which there are data; in leaderboard, the task's.",
    ),
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program.

    Returns:
        0 success; 1 invalid input or usage, a submission with problems, or an output that cannot be written; 2 some pairs have
        no score; 130, 143 stopped by SIGINT or SIGTERM.
    """
    with heard(), guarded() as streams:
        status = _run(sys.argv[1:] if arguments is None else arguments)
        for stream, which in zip(streams, ("standard output", "standard error"), strict=True):
            stream.flush()
            if stream.failed:
                status = status or BAD_INPUT
                if stream.problem != _BROKEN_PIPE:  # after ``| head`` nobody wants to be told
                    _say(f"ERROR: {which}: cannot be written: {stream.problem}", err=True)
        return status


def _run(arguments: Sequence[str]) -> int:
    status: list[int] = []
    _set_up_log()
    given = list(arguments)
    try:
        _refuse_urls(given)
        app(given, prog_name="python -m evaluation", obj=status)
    except SystemExit as stop:
        if stop.code in (INTERRUPTED, TERMINATED):
            _say("ERROR: stopped before it was done; finished results are kept", err=True)
            return int(stop.code)
        if not status:
            return BAD_INPUT if stop.code == 2 else int(stop.code or 0)  # 2 is typer's own status for wrong usage
    except EvaluationError as error:
        _say(f"ERROR: {error}", err=True)
        return BAD_INPUT
    except OSError as error:
        _say(f"ERROR: {error.filename or 'the system'}: {error.strerror or error}", err=True)
        return BAD_INPUT
    return status[0] if status else ALL_SCORED


def _set_up_log() -> None:
    log.handlers.clear()  # of an earlier call
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    log.addHandler(handler)


def _refuse_urls(arguments: Sequence[str]) -> None:
    """As paths, they would be taken apart, and a password in them made part of a name."""
    for value in (part for argument in arguments for part in (argument, argument.partition("=")[2])):
        if _URL.match(value):
            raise EvaluationError(f"{value}: expected a local file or folder, got a URL")


@app.callback()
def describe() -> None:
    """Evaluate displacement fields in challenge format, as the organizers of Learn2Reg do."""


@app.command(name="score", cls=_Command)
def score_command(
    context: typer.Context,
    dataset: Dataset,
    predictions: Predictions,
    split: Split = "val",
    metrics: Metrics = None,
    config: Annotated[
        Path | None, typer.Option(metavar="JSON", help="An official evaluation config: metrics, labels, masks and pairs.")
    ] = None,
    program: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(get_args(Program)),
            callback=_listed,
            help="The official program whose quantile is reported as 30. Default: the task's.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="JSON", help="Scores in the official layout, with more keys.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="One row per pair.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="One page with tables and plots.")] = None,
    trust_paths: TrustPaths = False,
) -> None:
    """Score a submission: TRE, SDlogJ and foldings, Dice, HD95; per pair and over all. Status 2 if a pair has no score."""
    _check_folder(predictions)
    written = {"--output": output, "--csv": csv, "--html": html}
    check_outputs(written, [dataset, *([config] if config else [])])
    settings = from_config(config, dataset, trust_paths=trust_paths) if config else from_options(_names(metrics))
    pairs = read_pairs(dataset, split=split, trust_paths=trust_paths) if settings.pairs is None else settings.pairs
    check_outputs(written, _input_files(pairs, [predictions], {method.points for method in settings.methods}))
    scores = score(dataset, predictions, settings, split=split, program=cast(Program | None, program), trust_paths=trust_paths)
    if output:
        _write(output, json.dumps(to_official(scores), indent=1, allow_nan=False) + "\n")
    if csv:
        _write(csv, to_csv(to_table(scores), index_label="displacement"))
    if html:
        _write(html, scores_page(scores))
    context.obj.append(SOME_FAILED if len(scores.scored) < len(scores.pairs) else ALL_SCORED)
    if not any(written.values()):
        _ask_for_output()
    _print_scores(scores)


def _input_files(pairs: Sequence[Pair], folders: Iterable[Path], points: Iterable[str] = ("landmarks",)) -> Iterator[Path]:
    """What is read to score pairs: images, what lies beside them, and displacements."""
    for pair in pairs:
        yield from (pair.fixed, pair.moving)
        for kind, suffix in (*((name, ".csv") for name in points), ("labels", None), ("masks", None)):
            with contextlib.suppress(EvaluationError):  # told when it is read
                yield from pair.beside(kind, suffix)
        for folder in folders:
            yield from (folder / name for name in pair.field_files)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: expected a folder of displacements, found none")


def _write(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))  # names may have lone surrogates


def _ask_for_output() -> None:
    """Says that what follows is what the command was called for: it fails if that cannot be printed."""
    if isinstance(sys.stdout, Stream):
        sys.stdout.asked_for = True


def _say(text: str, *, err: bool = False) -> None:
    """Prints one line; untrusted names in it can neither control the terminal nor begin a line of their own."""
    typer.echo(printable(text), err=err)


def _say_lines(text: str) -> None:
    for line in text.split("\n"):
        _say(line)


def _print_scores(scores: Scores) -> None:
    for pair in scores.pairs:
        if pair.error is not None:
            _say(f"ERROR: {pair.pair.field_name} has no score: {pair.error}", err=True)
    table = to_table(scores)
    in_voxels = scores.task.unit == "voxels"
    kinds = ("{}_initial", "{}", "{}_voxels") if in_voxels else ("{}_initial", "{}")
    columns = [*(kind.format(method.name) for method in scores.settings.methods for kind in kinds), "folded_voxels"]
    shown = [column for column in columns if column in table]
    if shown and scores.scored:
        table = table.loc[[pair.pair.field_name for pair in scores.scored], shown].astype(float)
        missing = len(scores.pairs) - len(scores.scored)
        table.loc["mean" if not missing else f"mean of {len(scores.scored)} of {len(scores.pairs)}"] = table.mean()
        _say("TRE in mm" + (f"; the unit of {scores.task.name} is voxels" if in_voxels else ""))
        _say_lines(table.round(3).to_string(formatters={"folded_voxels": "{:.12g}".format}))


def _fix(checked: Checked, output: Path, named: Counter[str]) -> None:
    """Writes a displacement corrected, if that is certain; ``named`` counts how often each mistake was suspected.

    A mistake is one of a program, which makes it in all displacements: one that most do not show is none.
    """
    (usual, times), name = named.most_common(1)[0], checked.pair.field_name
    usual = usual if 2 * times > named.total() else ""
    if checked.suspected and not usual:
        what = checked.suspected
        _say(f"NOT FIXED: {name}: only {named[what]} of {named.total()} displacements seem to be {what}")
    elif usual != checked.suspected:
        _say(f"NOT FIXED: {name}: {times} of {named.total()} displacements seem to be {usual}, which this one does not show")
    elif not fix(checked, output):
        _say(f"NOT FIXED: {name}: it cannot be corrected {'without loss' if checked.certain else 'for certain'}")
    elif checked.problems:
        _say(f"fixed: {output / checked.path.name if checked.path else name}")


@app.command(cls=_Command)
def validate(
    context: typer.Context,
    dataset: Dataset,
    predictions: Predictions,
    split: Split = "val",
    output: Annotated[
        Path | None,
        typer.Option("--fix", metavar="DIR", help="Write the submission there, corrected where nothing is lost by it."),
    ] = None,
    trust_paths: TrustPaths = False,
) -> None:
    """List everything for which the organizers would refuse a submission, each with its remedy. Status 1 if there is any."""
    _check_folder(predictions)
    if output is not None and output.exists() and output.samefile(predictions):
        raise EvaluationError(f"--fix: expected another folder than that of the submission, found {output}")
    pairs = read_pairs(dataset, split=split, trust_paths=trust_paths)
    _ask_for_output()
    count, named = 0, Counter[str]()
    for pair in pairs:
        checked = examine(pair, predictions)
        for problem in checked.problems:
            _say(problem)
        count += len(checked.problems)
        named[checked.suspected] += 1
    for pair in pairs if output is not None else ():  # once more, as all corrected displacements may not fit into memory
        _fix(examine(pair, predictions), cast(Path, output), named)
    strangers = unexpected(pairs, predictions)
    for problem in strangers:
        _say(problem)
    count += len(strangers)
    context.obj.append(BAD_INPUT if count else ALL_SCORED)
    _say(f"{len(pairs)} pair(s), {count} problem(s)")


@app.command(cls=_Command)
def leaderboard(
    context: typer.Context,
    methods: Annotated[
        list[str], typer.Argument(metavar="NAME=DIR...", help="Methods and the folders of their displacements.")
    ],
    dataset: Dataset,
    output: Annotated[Path, typer.Option(metavar="FILE", help="Ending in .html, .md, .csv or .json.")],
    split: Split = "val",
    metrics: Metrics = None,
    ranking: Annotated[
        str,
        typer.Option(metavar="|".join(SCHEMES), callback=_listed, help="Whose rules: those of Learn2Reg 2022–25, or of 2026."),
    ] = "2022",
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="The method that others have to beat (2026); it is not ranked itself.")
    ] = None,
    published: Annotated[bool, typer.Option("--published", help="Also show published results, apart and unranked.")] = False,
    trust_paths: TrustPaths = False,
) -> None:
    """Rank several methods on the same cases, as the challenge does. Status 2 if a pair has no score."""
    if output.suffix not in BOARD_WRITERS:
        raise EvaluationError(f"--output: expected a name ending in {', '.join(BOARD_WRITERS)}, found {shown(output.name)}")
    folders: dict[str, Path] = {}
    for entry in methods:
        name, _, folder = entry.partition("=")
        if not (name and folder) or name in folders:
            raise EvaluationError(f"expected methods as NAME=DIR, each name once, found {shown(entry)}")
        folders[name] = Path(folder)
    for path in folders.values():
        _check_folder(path)
    check_outputs({"--output": output}, [dataset])
    pairs = read_pairs(dataset, split=split, trust_paths=trust_paths)
    check_outputs({"--output": output}, _input_files(pairs, folders.values()))
    chosen = _names(metrics)
    task = find_task(task_name(dataset))
    settings = from_options(default_metrics(task, ranking) if chosen is None else chosen)
    scores = {name: score(dataset, folder, settings, split=split, trust_paths=trust_paths) for name, folder in folders.items()}
    board = build_board(scores, metrics=chosen, published=split if published else None, ranking=ranking, baseline=baseline)
    _write(output, BOARD_WRITERS[output.suffix](board))
    failed = [(name, pair) for name, method in scores.items() for pair in method.pairs if pair.error is not None]
    context.obj.append(SOME_FAILED if failed else ALL_SCORED)
    for name, pair in failed:
        _say(f"ERROR: {name}: {pair.pair.field_name} has no score: {pair.error}", err=True)
    if published and not board.published:
        simulated = any(method.simulated for method in scores.values())
        why = "the images are simulated; published results come from others, and are left out"
        _say(why if simulated else f"there are no published results of {task.name} for --split {split}", err=True)
    _say_lines(board_markdown(board))


@app.command(cls=_Command)
def zero(
    dataset: Dataset,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write to.")],
    split: Split = "val",
    trust_paths: TrustPaths = False,
) -> None:
    """Write zero displacements for every pair: the submission that scores the initial error."""
    if output.name.endswith((".nii", ".nii.gz", ".npz", ".json", ".zip")) and not os.path.isdir(output):  # noqa: PTH112
        raise EvaluationError(f"--output: expected a folder, found the name of a file, {output}; leave out the suffix")
    pairs = read_pairs(dataset, split=split, trust_paths=trust_paths)
    write_zero(pairs, output)
    _say(f"{len(pairs)} zero displacement(s) written to {output}")


@app.command(name="grand-challenge", cls=_Command)
def grand_challenge_command(
    source: Annotated[
        Path, typer.Option("--input", metavar="DIR", help="Folder with predictions.json and the outputs of the jobs.")
    ] = grand_challenge.INPUT,
    ground_truth: Annotated[
        Path, typer.Option("--ground-truth", metavar="DIR", help="Folder with a *_dataset.json, its images and landmarks.")
    ] = grand_challenge.GROUND_TRUTH,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder that receives metrics.json.")] = grand_challenge.OUTPUT,
    split: Split = "val",
    metrics: Metrics = None,
    socket: Annotated[
        str | None,
        typer.Option(metavar="SLUG", help="Socket of the displacement. Default: the only output, or that called displacement."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=64, help=f"Processes. Default: one per core, at most {grand_challenge.MOST_WORKERS}."
        ),
    ] = None,
    trust_paths: TrustPaths = False,
) -> None:
    """Score an algorithm's jobs on grand-challenge.org. Whatever a job wrote, the status is 0 and the others are scored."""
    result = output / "metrics.json"
    dataset = grand_challenge.find_dataset(ground_truth)
    check_outputs({"--output": result}, [dataset])
    evaluation = grand_challenge.evaluate(
        *(source, dataset, from_options(_names(metrics))),
        split=split,
        socket=socket,
        workers=workers,
        trust_paths=trust_paths,
    )
    _write(result, json.dumps(grand_challenge.to_metrics(evaluation), indent=1, allow_nan=False) + "\n")
    for problem in evaluation.problems:
        _say(f"WARNING: {problem}", err=True)
    _print_scores(evaluation.scores)


@app.command(name="codabench", cls=_Command)
def codabench_command(
    source: Annotated[
        Path, typer.Option("--input", metavar="DIR", help="Folder with ref (the dataset) and res (the displacements).")
    ] = codabench.INPUT,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder that receives scores.json and detailed_results.html.")
    ] = codabench.OUTPUT,
    split: Split = "val",
    metrics: Metrics = None,
    trust_paths: TrustPaths = False,
) -> None:
    """Score a submission on Codabench. Pairs without a score are named and counted; the status is 0."""
    flat, details = output / codabench.SCORES, output / codabench.DETAILS
    dataset = grand_challenge.find_dataset(source / "ref")
    check_outputs({codabench.SCORES: flat, codabench.DETAILS: details}, [dataset])
    _check_folder(source / "res")
    settings = from_options(_names(metrics))
    scores = codabench.score_submission(source / "res", dataset, settings, split=split, trust_paths=trust_paths)
    _write(flat, json.dumps(codabench.to_flat(scores), indent=1, allow_nan=False) + "\n")
    _write(details, scores_page(scores))
    _print_scores(scores)


def _names(metrics: str | None) -> list[str] | None:
    return None if metrics is None else [name.strip() for name in metrics.split(",") if name.strip()]


if __name__ == "__main__":
    finish(main())
