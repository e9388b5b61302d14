"""The plot of landmark errors before and after registration."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

_BEFORE, _AFTER = "#999999", "#0072b2"  # told apart by the color-blind
_MOST_ROWS = 60


def error_plot(initial: Sequence[float], errors: Sequence[float]) -> str:
    """Errors before (gray) and after (blue), mm, a row for each landmark (at most the 60 worst), the worst on top; SVG."""
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
    # The salt makes the names inside the SVG the same in every run, and different from those of other plots on the page.
    with rc_context({"svg.hashsalt": repr((initial, errors))}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return '<svg role="img" aria-label="Landmark errors before and after"' + text[text.index("<svg") + 4 :]
