"""Scores and leaderboards as HTML pages, Markdown, CSV and JSON."""

import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from evaluation.errors import in_markdown, in_spreadsheet, without_secrets
from evaluation.leaderboard import Board, Result, Row
from evaluation.ranking.schemes import BOOTSTRAPS, FEWEST_CASES, SIGNIFICANCE
from evaluation.summary import Scores, plain, to_official
from evaluation.tasks import METRICS, Published

_pages = Environment(
    loader=PackageLoader("evaluation"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=lambda value: without_secrets(value) if type(value) is str else value,
)

_BEFORE, _AFTER = "#999999", "#0072b2"  # which color-blind readers can distinguish
_MOST_ROWS = 60


def scores_page(scores: Scores) -> str:
    """One self-contained HTML page: the aggregates, the table of pairs, and per pair the landmark errors before and after."""
    aggregates: Any = to_official(scores)["aggregates"]
    points = next((method.name for method in scores.settings.methods if method.metric == "tre"), None)
    cases = [
        {
            "name": pair.pair.field_name,
            "error": pair.error,
            "notes": pair.notes,
            "metrics": {m.name: pair.mean(m.name) for m in scores.settings.methods if m.name in pair.values},
            "initial": float(np.mean(pair.initial[points])) if points in pair.initial else None,
            "plot": Markup(error_plot(pair.initial[points], pair.values[points])) if points in pair.initial else None,  # noqa: S704 (our own SVG)
            "folded": pair.regularity.folded_fraction if pair.regularity else None,
        }
        for pair in scores.pairs
    ]
    return _pages.get_template("scores.html").render(
        name=scores.task.name,
        aggregates=aggregates,
        cases=cases,
        names=[method.name for method in scores.settings.methods if method.name in aggregates],
        points=points,
    )


def error_plot(initial: Sequence[float], errors: Sequence[float]) -> str:
    """SVG of errors before (gray) and after (blue), mm: a row per landmark, the worst on top, at most the 60 worst."""
    # Imported here, because matplotlib is slow to load and writes to the home folder.
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    before, after = np.array(initial), np.array(errors)
    order = np.argsort(after)[-_MOST_ROWS:]
    figure = Figure(figsize=(4.6, 0.8 + 0.17 * len(order)), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    rows = np.arange(len(order))
    axes.hlines(rows, before[order], after[order], color="#cccccc", linewidth=1)
    axes.plot(before[order], rows, "o", color=_BEFORE, markersize=4, label="before")
    axes.plot(after[order], rows, "D", color=_AFTER, markersize=4, label="after")
    axes.set_xlim(left=0)
    axes.set_yticks(rows, [str(index + 1) for index in order], fontsize=7.5)
    axes.set_xlabel("error, mm", fontsize=8)
    axes.set_ylabel("landmark (line of the CSV)", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    out = io.StringIO()
    # With this salt, names inside the SVG are the same in every run and differ from those of the other plots of the page.
    with rc_context({"svg.hashsalt": repr((initial, errors))}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return '<svg role="img" aria-label="Landmark errors before and after"' + text[text.index("<svg") + 4 :]


def board_page(board: Board) -> str:
    """One self-contained HTML page of a leaderboard."""
    return _pages.get_template("board.html").render(
        board=board,
        metrics=_metric_titles(board),
        notice=_notice(board),
        rules=_rules(board),
        meanings=[(METRICS[name], title) for name, title in _metric_titles(board).items()],
        significance=SIGNIFICANCE,
        fewest=FEWEST_CASES,
        methods=[row.method for row in board.rows if row.method != board.baseline],
        counted={row.method: _counted(row, board) for row in board.rows},
        strips={name: _strip(board, name) for name in _metric_titles(board)},
        largest={name: _largest(board, name) for name in _metric_titles(board)},
        published_note=PUBLISHED_NOTE,
    )


def _strip(board: Board, metric: str) -> list[dict[str, Any]]:
    """Per method, where its cases, their mean and its interval lie, in percent of the largest number of all."""
    results = {row.method: row.results[metric] for row in board.rows}
    scale = 100 / (_largest(board, metric) or 1)

    def place(value: float) -> float | None:
        return None if math.isnan(value) else round(value * scale, 2)

    return [
        {
            "method": method,
            "dots": [place(x) for x in r.per_case if not math.isnan(x)],
            "mean": place(r.mean),
            "low": place(r.low),
            "high": place(r.high),
        }
        for method, r in results.items()
    ]


def board_csv(board: Board) -> str:
    """A leaderboard as CSV: measured methods by rank, published ones after them."""
    rows: list[dict[str, object]] = []
    for row in board.rows:
        low, high = row.rank_interval or (None, None)
        line: dict[str, object] = {"rank": row.rank, "rank_low": low, "rank_high": high}
        line |= {"method": row.method, "score": row.score}
        for name, result in row.results.items():
            line |= {name: result.mean, f"{name}_std": result.std, f"{name}_low": result.low, f"{name}_high": result.high}
            line[f"{name}_wins"] = result.wins
        rows.append(line | {"source": _measured(row, board)})
    for p in board.published:
        rows.append({"method": p.method, "tre": p.mean, "tre_std": p.std, "source": _published(p)})
    whole = {column: "Int64" for column in rows[0] if str(column).startswith("rank") or str(column).endswith("_wins")}
    return to_csv(pd.DataFrame(rows).astype(whole), index=False)


def to_csv(table: pd.DataFrame, **options: Any) -> str:
    """A table as CSV whose cells no spreadsheet runs."""
    texts = table.select_dtypes(exclude="number").columns
    table = table.assign(**{name: table[name].map(in_spreadsheet) for name in texts})
    return str(table.rename(index=in_spreadsheet, columns=in_spreadsheet).to_csv(**options))


def board_markdown(board: Board) -> str:
    """A leaderboard as Markdown."""
    titles = _metric_titles(board)
    head = ["rank", "method", *titles.values(), "score", "source"]
    if board.ranked:
        head = [name if name in ("method", "score", "source") else f"{name} (95 % interval)" for name in head]
    lines = [f"# {in_markdown(board.name)}: {_extent(board)}", "", _line(head), _line("---" for _ in head)]
    for row in board.rows:
        results = [_spread(r.mean, r.std) + _interval(r) for r in row.results.values()]
        lines.append(_line([_rank(row), row.method, *results, _number(row.score), _measured(row, board)]))
    lines += ["", *filter(None, (_notice(board),)), *_rules(board)]
    if board.published:
        lines += ["", PUBLISHED_NOTE, "", _line(["method", f"TRE, {board.unit}", "source"]), _line(["---"] * 3)]
        lines += [_line([p.method, _spread(p.mean, p.std), _published(p)]) for p in board.published]
    return "\n".join([*lines, ""])


def board_json(board: Board) -> str:
    """A leaderboard as JSON."""
    content = asdict(board) | {"p_values": _named_p_values(board), "rule": " ".join(_rules(board))}
    if board.published:
        content["published_note"] = PUBLISHED_NOTE
    return json.dumps(plain(content), indent=1) + "\n"


BOARD_WRITERS: dict[str, Callable[[Board], str]] = {
    ".html": board_page,
    ".md": board_markdown,
    ".csv": board_csv,
    ".json": board_json,
}
"""By the suffix of the file."""


def _largest(board: Board, metric: str) -> float:
    """The largest number of any case; 0 if there is none."""
    return max((float(x) for row in board.rows for x in row.results[metric].per_case if not math.isnan(x)), default=0.0)


PUBLISHED_NOTE = (
    "Published results, not measured here: they come from other images than the results above, unless those are of the "
    "organizers' own set. They are not ranked."
)


def _counted(row: Row, board: Board) -> str:
    """How many cases a method has."""
    missing = max(result.missing for result in row.results.values())
    return f"{len(board.cases) - missing} of {len(board.cases)}" if missing else str(len(board.cases))


def _measured(row: Row, board: Board) -> str:
    counted = _counted(row, board)
    missing = f", on {counted} cases" if "of" in counted else ""
    return ("baseline, not ranked; " if row.method == board.baseline else "") + "measured here" + missing


def _rank(row: Row) -> str:
    if row.rank is None or row.rank_interval is None:
        return "–"
    return f"{row.rank} ({row.rank_interval[0]}–{row.rank_interval[1]})"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _spread(mean: float, std: float | None) -> str:
    return _number(mean) + (f" ± {_number(std)}" if std is not None else "")


def _interval(result: Result) -> str:
    return "" if math.isnan(result.low) else f" ({_number(result.low)} to {_number(result.high)})"


def _published(row: Published) -> str:
    return f"published: {row.split}; {row.source}"


def _extent(board: Board) -> str:
    """``2 cases (4 pairs)``."""
    cases, pairs = len(board.cases), len(board.pairs)
    return f"{cases} case{'s'[: cases != 1]}" + (f" ({pairs} pairs)" if pairs != cases else "")


_pages.filters.update(number=_number, published=_published, extent=_extent, spread=lambda row: _spread(row.mean, row.std))


def _metric_titles(board: Board) -> dict[str, str]:
    names = board.rows[0].results if board.rows else {}
    units = {name: board.unit if name == "tre" else METRICS[name].unit for name in names}
    return {name: f"{METRICS[name].name}{units[name] and ', ' + units[name]}" for name in names}


def _named_p_values(board: Board) -> dict[str, dict[str, float]]:
    return {
        name: {f"{better} better than {worse}": p for (better, worse), p in values.items()}
        for name, values in board.p_values.items()
    }


def _notice(board: Board) -> str | None:
    """What to know before reading a rank."""
    if not board.ranked:
        return (
            f"No ranks and no scores: with fewer than {FEWEST_CASES} cases no difference can be significant. The rows are "
            "ordered by fewer missing cases, then by the mean of the first metric."
        )
    if not board.decisive:
        return (
            f"With {len(board.cases)} cases no difference between so many methods can be significant: the ranks follow the "
            "means alone."
        )
    return None


def _rules(board: Board) -> list[str]:
    """How the rows come about: a sentence or two for each step."""
    cases = "A case is a patient: its pairs are averaged, so a displacement that two modalities share counts once."
    if not board.ranked:
        return [f"{cases} Means and standard deviations are over cases."]
    scheme = board.scheme
    adjusted = ", the p of all comparisons adjusted together (Holm)"
    tests = (
        f"Ranked as in Learn2Reg {scheme.years}: per metric, methods are compared by paired one-sided Wilcoxon signed-rank "
        f"tests over cases{adjusted if scheme.holm else ''}; p < {SIGNIFICANCE:g} is a win. "
    )
    if scheme.weights is None:
        tests += (
            "Wins are mapped to scores from 0.1 (none) to 1 (over all others); the score is their geometric mean over metrics."
        )
    else:
        tests += f"A metric scores (wins + 1) / {len(board.rows) - (board.baseline is not None)}. " + _components(board)
    order = "Equal scores are ordered by fewer missing cases, then by the mean of the first metric; a method that lacks a case "
    intervals = f"Intervals: 95 % bootstrap over cases, for ranks {BOOTSTRAPS:,} repetitions of the whole procedure."
    return [tests, f"{cases} {order}gets the lowest score. {intervals}"]


def _components(board: Board) -> str:
    """The part of the rule about components, weights and safeguards."""
    weights = board.scheme.weights or {}
    present = {METRICS[name].component: weights[METRICS[name].component] for name in board.rows[0].results}
    if len(present) == 1:
        return f"The score is {board.scheme.full_score:g} times the mean over metrics."
    listed = " and ".join(f"{name} ({weight:g})" for name, weight in present.items())
    negligible = [m for name in board.rows[0].results if (m := METRICS[name]).negligible]
    text = f"The score is {board.scheme.full_score:g} times the weighted geometric mean of {listed}, each the mean of its "
    text += "metrics. Regularity counts no more than accuracy, since doing nothing is perfectly regular"
    if board.baseline is not None:
        text += f", and only for methods that beat {board.baseline} by at least half of the metrics of accuracy"
    return text + "." + "".join(f" {m.name} below {m.negligible:g} {m.unit} counts as 0." for m in negligible)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(map(in_markdown, cells)) + " |"
