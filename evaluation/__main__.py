"""``python -m evaluation score | validate | leaderboard | zero``: judge displacement fields in challenge format."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from evaluation.errors import EvaluationError, printable
from evaluation.leaderboard import build_board
from evaluation.pairs import SPLITS, read_pairs
from evaluation.render import BOARD_SUFFIXES, board_markdown, board_text, scores_page
from evaluation.settings import from_config, from_options
from evaluation.submission import check, write_zero
from evaluation.summary import Scores, score, task_name, to_official, to_table
from evaluation.tasks import METRICS, PROGRAMS, find_task

ALL_SCORED, BAD_INPUT, SOME_FAILED = 0, 1, 2
"""Exit statuses; ``validate`` uses the first two."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

Dataset = Annotated[Path, typer.Option("--dataset", metavar="JSON", help="The dataset JSON, beside its images and landmarks.")]
Predictions = Annotated[
    Path, typer.Option("--predictions", metavar="DIR", help="Folder of displacements disp_*.nii.gz or .npz.")
]
Split = Annotated[str, typer.Option("--split", metavar="|".join(SPLITS), help="Which pairs of the JSON.")]
TrustPaths = Annotated[
    bool,
    typer.Option(
        "--trust-paths", envvar="MCBO_TRUST_PATHS", help="Let the files of a data set lie, or link, outside of its folder."
    ),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        metavar="LIST",
        help=f"Some of {','.join(METRICS)}. Default: all for which there are data.",
        show_default=False,
    ),
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program.

    Returns:
        0 all is well; 1 bad input or usage, or a submission with problems; 2 some pairs have no score.
    """
    status: list[int] = []
    try:
        app(list(sys.argv[1:] if arguments is None else arguments), prog_name="python -m evaluation", obj=status)
    except SystemExit as stop:
        if status:
            return status[0]
        return BAD_INPUT if stop.code == 2 else int(stop.code or 0)  # 2 is typer's own status for wrong usage
    except EvaluationError as error:
        _say(f"ERROR: {error}", err=True)
        return BAD_INPUT
    except BrokenPipeError:  # nobody reads on; what was asked for is written by then
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 (for the interpreter's last flush)
        return status[0] if status else ALL_SCORED
    except OSError as error:
        _say(f"ERROR: {error.filename or 'standard output'}: {error.strerror or error}", err=True)
        return BAD_INPUT
    return status[0] if status else ALL_SCORED


@app.callback()
def describe() -> None:
    """Judge displacement fields in challenge format, as the organizers of Learn2Reg do."""


@app.command(name="score")
def score_command(
    context: typer.Context,
    dataset: Dataset,
    predictions: Predictions,
    split: Split = "val",
    metrics: Metrics = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON", help="An official evaluation config: metrics, labels, masks and pairs.", show_default=False
        ),
    ] = None,
    program: Annotated[
        str | None,
        typer.Option(metavar="|".join(PROGRAMS), help="Whose quantile is called 30. Default: the task's.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="JSON", help="Scores in the official layout and more.", show_default=False)
    ] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="One row per pair.", show_default=False)] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="One page with tables and plots.", show_default=False)
    ] = None,
    trust_paths: TrustPaths = False,
) -> None:
    """Score a submission: TRE, SDlogJ and foldings, Dice, HD95; per pair and over all. Status 2 if a pair has no score."""
    _check_writable(output, csv, html)
    _check_folder(predictions)
    settings = from_config(config, dataset, trust_paths=trust_paths) if config else from_options(_split(metrics))
    chosen = next((known for known in PROGRAMS if known == program), None)
    if program is not None and chosen is None:
        raise EvaluationError(f"--program: expected one of {', '.join(PROGRAMS)}, found {program!r}")
    scores = score(dataset, predictions, settings, split=_known(split), program=chosen, trust_paths=trust_paths)
    if output:
        _write(output, json.dumps(to_official(scores), indent=1, allow_nan=False) + "\n")
    if csv:
        _write(csv, to_table(scores).to_csv(index_label="displacement"))
    if html:
        _write(html, scores_page(scores))
    context.obj.append(SOME_FAILED if len(scores.scored) < len(scores.pairs) else ALL_SCORED)
    _print_scores(scores)


def _check_writable(*paths: Path | None) -> None:
    """Says before the work that a result cannot be written."""
    for path in paths:
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EvaluationError(f"{path}: cannot be written: {error.strerror}") from error
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise EvaluationError(f"{path}: cannot be written there")


def _check_folder(*folders: Path) -> None:
    for folder in folders:
        if not folder.is_dir():
            raise EvaluationError(f"{folder}: expected a folder of displacements, found none")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")  # names may hold what no encoding can write
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be written: {error.strerror}") from error


def _say(text: str, *, err: bool = False) -> None:
    """Prints a line; what file names and JSONs of strangers hold does nothing to the terminal."""
    typer.echo(printable(text), err=err)


def _say_lines(text: str) -> None:
    for line in text.split("\n"):
        _say(line)


def _print_scores(scores: Scores) -> None:
    for pair in scores.pairs:
        if pair.error is not None:
            _say(f"ERROR: {pair.pair.field_name} has no score: {pair.error}", err=True)
    table = to_table(scores).drop(columns="error", errors="ignore")
    names = [m.name for m in scores.settings.methods]
    kinds = ("{}_initial", "{}", "{}_voxels") if scores.task.unit == "voxels" else ("{}_initial", "{}")
    columns = [*(kind.format(name) for name in names for kind in kinds), "folded_voxels"]
    shown = [column for column in columns if column in table]
    if shown and len(scores.scored):
        table = table.loc[[pair.pair.field_name for pair in scores.scored], shown]
        table.loc["mean"] = table.mean()
        _say("TRE in mm" + (f"; {scores.task.name} counts it in voxels" if scores.task.unit == "voxels" else ""))
        _say_lines(table.round(3).to_string())


@app.command()
def validate(
    context: typer.Context,
    dataset: Dataset,
    predictions: Predictions,
    split: Split = "val",
    trust_paths: TrustPaths = False,
) -> None:
    """Say what would make the organizers refuse a submission: every problem, one line each. Status 1 if there is one."""
    pairs = read_pairs(dataset, split=_known(split), trust_paths=trust_paths)
    problems = check(pairs, predictions)
    context.obj.append(BAD_INPUT if problems else ALL_SCORED)
    for problem in problems:
        _say(problem)
    _say(f"{len(pairs)} pair(s), {len(problems)} problem(s)")


@app.command()
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
    """Rank several methods on the same pairs, as the challenge does."""
    if output.suffix not in BOARD_SUFFIXES:
        raise EvaluationError(f"--output: expected a name ending in {', '.join(BOARD_SUFFIXES)}, found {output.name!r}")
    folders: dict[str, Path] = {}
    for entry in methods:
        name, equals, folder = entry.partition("=")
        if not (name and equals and folder) or name in folders:
            raise EvaluationError(f"expected methods as NAME=DIR, each name once, found {entry!r}")
        folders[name] = Path(folder)
    _check_writable(output)
    _check_folder(*folders.values())
    task = find_task(task_name(dataset, default=""))
    chosen = _split(metrics)
    settings = from_options(task.ranked_by if chosen is None else chosen)
    scores = {
        name: score(dataset, folder, settings, split=_known(split), trust_paths=trust_paths) for name, folder in folders.items()
    }
    board = build_board(scores, metrics=chosen, published=split if published else None)
    _write(output, board_text(board, output.suffix))
    failed = [(name, pair) for name, method in scores.items() for pair in method.pairs if pair.error is not None]
    context.obj.append(SOME_FAILED if failed else ALL_SCORED)
    for name, pair in failed:
        _say(f"ERROR: {name}: {pair.pair.field_name} has no score: {pair.error}", err=True)
    if published and not board.published:
        _say(f"nothing published is known of {task.name}, --split {split}", err=True)
    _say_lines(board_markdown(board))


@app.command()
def zero(
    dataset: Dataset,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where to write.")],
    split: Split = "val",
    trust_paths: TrustPaths = False,
) -> None:
    """Write zero displacements for every pair: the submission whose score is the initial one."""
    paths = write_zero(read_pairs(dataset, split=_known(split), trust_paths=trust_paths), output)
    _say(f"{len(paths)} zero displacement(s) written to {output}")


def _split(metrics: str | None) -> list[str] | None:
    return None if metrics is None else [name.strip() for name in metrics.split(",") if name.strip()]


def _known(split: str) -> str:
    if split not in SPLITS:
        raise EvaluationError(f"--split: expected one of {', '.join(SPLITS)}, found {split!r}")
    return split


if __name__ == "__main__":
    sys.exit(main())
