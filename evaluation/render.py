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
from evaluation.leaderboard import SIGNIFICANCE, Board, Row
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
        rule=_ranking_rule(board),
        significance=SIGNIFICANCE,
        p_values=_named_p_values(board),
        measured=[_measured(row, board) for row in board.rows],
    )


def board_csv(board: Board) -> str:
    """A leaderboard as CSV: measured methods by rank, published ones after them."""
    rows: list[dict[str, object]] = []
    for row in board.rows:
        line: dict[str, object] = {"rank": row.rank, "method": row.method, "score": row.score}
        for name, result in row.results.items():
            line |= {name: result.mean, f"{name}_std": result.std, f"{name}_low": result.low, f"{name}_high": result.high}
            line[f"{name}_wins"] = result.wins
        rows.append(line | {"source": _measured(row, board)})
    for p in board.published:
        rows.append({"method": p.method, "tre": p.mean, "tre_std": p.std, "source": _published(p)})
    return to_csv(pd.DataFrame(rows).astype({"rank": "Int64"}), index=False)


def to_csv(table: pd.DataFrame, **options: Any) -> str:
    """A table as CSV whose cells no spreadsheet runs."""
    texts = table.select_dtypes(exclude="number").columns
    table = table.assign(**{name: table[name].map(in_spreadsheet) for name in texts})
    return str(table.rename(index=in_spreadsheet, columns=in_spreadsheet).to_csv(**options))


def board_markdown(board: Board) -> str:
    """A leaderboard as Markdown."""
    titles = _metric_titles(board)
    head = ["rank", "method", *(f"{title} (95 % interval)" for title in titles.values()), "score", "source"]
    lines = [f"# {in_markdown(board.name)}: {len(board.cases)} pairs", "", _line(head), _line("---" for _ in head)]
    for row in board.rows:
        results = [
            f"{_number(r.mean)} ± {_number(r.std)} ({_number(r.low)} to {_number(r.high)})" for r in row.results.values()
        ]
        lines.append(_line([str(row.rank), row.method, *results, _number(row.score), _measured(row, board)]))
    for p in board.published:
        tre = _number(p.mean) + (f" ± {_number(p.std)}" if p.std is not None else "")
        lines.append(_line(["–", p.method, *(tre if name == "tre" else "" for name in titles), "", _published(p)]))
    return "\n".join([*lines, "", _ranking_rule(board), ""])


def board_json(board: Board) -> str:
    """A leaderboard as JSON."""
    content = asdict(board) | {"p_values": _named_p_values(board), "rule": _ranking_rule(board)}
    return json.dumps(plain(content), indent=1) + "\n"


BOARD_WRITERS: dict[str, Callable[[Board], str]] = {
    ".html": board_page,
    ".md": board_markdown,
    ".csv": board_csv,
    ".json": board_json,
}
"""By the suffix of the file."""


def _measured(row: Row, board: Board) -> str:
    missing = max(result.missing for result in row.results.values())
    return "measured here" + (f", on {len(board.cases) - missing} of {len(board.cases)} pairs" if missing else "")


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _published(row: Published) -> str:
    return f"published: {row.split}; {row.source}"


_pages.filters.update(number=_number, published=_published)


def _metric_titles(board: Board) -> dict[str, str]:
    units = {"tre": f", {board.unit}", "hd95": ", voxels"}
    names = board.rows[0].results if board.rows else {}
    return {name: f"{METRICS[name].name}{units.get(name, '')}" for name in names}


def _named_p_values(board: Board) -> dict[str, dict[str, float]]:
    return {
        name: {f"{better} better than {worse}": p for (better, worse), p in values.items()}
        for name, values in board.p_values.items()
    }


def _ranking_rule(board: Board) -> str:
    few = " With fewer than 5 pairs no difference can be significant." if len(board.cases) < 5 else ""
    return (
        "Per metric, methods are compared by paired one-sided Wilcoxon signed-rank tests over pairs (two modalities of one "
        f"patient count as two); p < {SIGNIFICANCE:g} is a win. Wins are mapped to scores from 0.1 to 1; the rank follows from "
        "their geometric mean over metrics; ties are broken by fewer missing pairs, then by the mean. Intervals: 95 % "
        f"bootstrap of the mean over pairs.{few} Published results are not ranked."
    )


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(map(in_markdown, cells)) + " |"
