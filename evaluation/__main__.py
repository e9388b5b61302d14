"""``python -m evaluation score | validate | leaderboard | zero``: evaluate displacement fields in challenge format."""

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from evaluation.errors import EvaluationError, printable, printable_usage, shown
from evaluation.leaderboard import build_board
from evaluation.pairs import SPLITS, read_pairs
from evaluation.render import BOARD_WRITERS, board_markdown, scores_page, to_csv
from evaluation.settings import from_config, from_options
from evaluation.submission import check, write_zero
from evaluation.summary import Scores, score, task_name, to_official, to_table
from evaluation.tasks import METRICS, Program, find_task

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*::?)+(//|/[^/]*@)|//[^/]*:[^/]*@")

ALL_SCORED, BAD_INPUT, SOME_FAILED = 0, 1, 2
"""Exit statuses; ``validate`` uses the first two."""


class _Command(TyperCommand):
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
        0 success; 1 invalid input or usage, or a submission with problems; 2 some pairs have no score.
    """
    status: list[int] = []
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _refuse_urls(given)
        app(given, prog_name="python -m evaluation", obj=status)
    except SystemExit as stop:
        if not status:
            return BAD_INPUT if stop.code == 2 else int(stop.code or 0)  # 2 is typer's own status for wrong usage
    except EvaluationError as error:
        _say(f"ERROR: {error}", err=True)
        return BAD_INPUT
    except OSError as error:
        _say(f"ERROR: {error.filename or 'standard output'}: {error.strerror or error}", err=True)
        return BAD_INPUT
    return status[0] if status else ALL_SCORED


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
    _check_writable(output, csv, html)
    _check_folder(predictions)
    settings = from_config(config, dataset, trust_paths=trust_paths) if config else from_options(_names(metrics))
    scores = score(dataset, predictions, settings, split=split, program=cast(Program | None, program), trust_paths=trust_paths)
    if output:
        _write(output, json.dumps(to_official(scores), indent=1, allow_nan=False) + "\n")
    if csv:
        _write(csv, to_csv(to_table(scores), index_label="displacement"))
    if html:
        _write(html, scores_page(scores))
    context.obj.append(SOME_FAILED if len(scores.scored) < len(scores.pairs) else ALL_SCORED)
    _print_scores(scores)


def _check_writable(*paths: Path | None) -> None:
    """Reports before the work starts that an output cannot be written."""
    for path in filter(None, paths):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EvaluationError(f"{path}: cannot be written: {error.strerror}") from error
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise EvaluationError(f"{path}: cannot be written there")


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: expected a folder of displacements, found none")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")  # names may have lone surrogates
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be written: {error.strerror}") from error


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
        table.loc["mean"] = table.mean()
        _say("TRE in mm" + (f"; the unit of {scores.task.name} is voxels" if in_voxels else ""))
        _say_lines(table.round(3).to_string(formatters={"folded_voxels": "{:.12g}".format}))


@app.command(cls=_Command)
def validate(
    context: typer.Context,
    dataset: Dataset,
    predictions: Predictions,
    split: Split = "val",
    trust_paths: TrustPaths = False,
) -> None:
    """List everything for which the organizers would refuse a submission, each with its remedy. Status 1 if there is any."""
    _check_folder(predictions)
    pairs = read_pairs(dataset, split=split, trust_paths=trust_paths)
    problems = check(pairs, predictions)
    context.obj.append(BAD_INPUT if problems else ALL_SCORED)
    for problem in problems:
        _say(problem)
    _say(f"{len(pairs)} pair(s), {len(problems)} problem(s)")


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
    published: Annotated[bool, typer.Option("--published", help="Also show published results; they are not ranked.")] = False,
    trust_paths: TrustPaths = False,
) -> None:
    """Rank several methods on the same pairs, as the challenge does. Status 2 if a pair has no score."""
    if output.suffix not in BOARD_WRITERS:
        raise EvaluationError(f"--output: expected a name ending in {', '.join(BOARD_WRITERS)}, found {shown(output.name)}")
    folders: dict[str, Path] = {}
    for entry in methods:
        name, _, folder = entry.partition("=")
        if not (name and folder) or name in folders:
            raise EvaluationError(f"expected methods as NAME=DIR, each name once, found {shown(entry)}")
        folders[name] = Path(folder)
    _check_writable(output)
    for path in folders.values():
        _check_folder(path)
    chosen = _names(metrics)
    task = find_task(task_name(dataset))
    settings = from_options(task.ranked_by if chosen is None else chosen)
    scores = {name: score(dataset, folder, settings, split=split, trust_paths=trust_paths) for name, folder in folders.items()}
    board = build_board(scores, metrics=chosen, published=split if published else None)
    _write(output, BOARD_WRITERS[output.suffix](board))
    failed = [(name, pair) for name, method in scores.items() for pair in method.pairs if pair.error is not None]
    context.obj.append(SOME_FAILED if failed else ALL_SCORED)
    for name, pair in failed:
        _say(f"ERROR: {name}: {pair.pair.field_name} has no score: {pair.error}", err=True)
    if published and not board.published:
        _say(f"there are no published results of {task.name} for --split {split}", err=True)
    _say_lines(board_markdown(board))


@app.command(cls=_Command)
def zero(
    dataset: Dataset,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write to.")],
    split: Split = "val",
    trust_paths: TrustPaths = False,
) -> None:
    """Write zero displacements for every pair: the submission that scores the initial error."""
    pairs = read_pairs(dataset, split=split, trust_paths=trust_paths)
    write_zero(pairs, output)
    _say(f"{len(pairs)} zero displacement(s) written to {output}")


def _names(metrics: str | None) -> list[str] | None:
    return None if metrics is None else [name.strip() for name in metrics.split(",") if name.strip()]


if __name__ == "__main__":
    sys.exit(main())
