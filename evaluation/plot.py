"""The plot of landmark errors before and after registration."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

_BEFORE, _AFTER = "#999999", "#0072b2"  # told apart by the color-blind


def error_plot(initial: Sequence[float], errors: Sequence[float]) -> str:
    """Errors before (gray) and after (blue), mm, a row for each landmark, the worst on top; SVG."""
    before, after = np.array(initial), np.array(errors)
    order = np.argsort(after)
    figure = Figure(figsize=(5.2, 0.7 + 0.16 * len(after)), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    rows = np.arange(len(after))
    axes.hlines(rows, before[order], after[order], color="#cccccc", linewidth=1)
    axes.plot(before[order], rows, "o", color=_BEFORE, markersize=4, label="before")
    axes.plot(after[order], rows, "D", color=_AFTER, markersize=4, label="after")
    axes.set_xlim(left=0)
    axes.set_yticks(rows, [str(index + 1) for index in order], fontsize=6)
    axes.set_xlabel("error, mm", fontsize=8)
    axes.set_ylabel("landmark (line of the CSV)", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
