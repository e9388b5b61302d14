"""The visual report of a run: one self-contained HTML page that needs no network."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mcbo.core.log import without_secrets
from mcbo.io.files import write_bytes
from mcbo.methods.quality import Sanity
from mcbo.qc.findings import PairFindings, RunFindings
from mcbo.qc.lengths import MILLIMETERS, Lengths
from mcbo.qc.picture import color_steps
from mcbo.qc.view import DETERMINANT_SCALE, Landmarks, View

MAX_TEXT = 100_000
"""Characters of a text; a longer one is a picture."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_BAR_SHARE = 0.3
"""Longest scale bar, relative to the picture's width."""
_MOST_TICKS = 5
"""Steps along a color scale."""
_TICK_SHARE = 0.18
"""Least distance of a number from the last one, relative to the scale."""
_LARGEST = 1e300
"""JSON has no infinity."""
_COLORS = 33
"""Of the displacement's scale, between which the script interpolates."""


def write_page(path: Path, run: RunFindings) -> int:
    """Writes the page, whole or not at all (``OutputError``), and returns its size in bytes."""
    # File names may hold characters that no encoding can write, and terminal control sequences.
    content = _CONTROL.sub("\ufffd", report_page(run)).encode("utf-8", errors="backslashreplace")
    write_bytes(path, content)
    return len(content)


def report_page(run: RunFindings) -> str:
    """The page; text from files is escaped."""
    pages = _environment()
    script = _raw(pages, "report.js") + "\n" + _raw(pages, "explore.js")
    count = len(run.cases)
    failures = [(pair.name, pair.error) for case in run.cases for pair in case.pairs if pair.error]
    settings = run.report.config.get("judgement")
    doubtful = settings.get("doubtful") if isinstance(settings, dict) else None
    return pages.get_template("report.html").render(
        title=f"Registration of {count} {'case' if count == 1 else 'cases'}: {run.path.parent.resolve().name}",
        about=_about(run, failed=len(failures)),
        report=run.report,
        config=json.dumps(run.report.config, indent=1, ensure_ascii=False),
        cases=run.cases,
        means=_means(run),
        lengths=run.lengths,
        doubtful=doubtful if isinstance(doubtful, float) else None,
        failures=failures,
        determinant_scale=DETERMINANT_SCALE,
        style=_raw(pages, "report.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _environment() -> Environment:
    pages = Environment(
        loader=PackageLoader("mcbo.qc"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: without_secrets(value) if type(value) is str and len(value) < MAX_TEXT else value,
    )
    pages.filters |= {
        "number": _number,
        "in_unit": _in_unit,
        "share": _share,
        "small": _small,
        "compressed": lambda content: Markup(base64.urlsafe_b64encode(content).decode("ascii")),  # noqa: S704 (no markup in it)
        "ticks": _ticks,
        "data_uri": lambda png: "data:image/png;base64," + base64.b64encode(png).decode("ascii"),
        "scale_bar": _scale_bar,
        "most_pixels": _most_pixels,
        "colors": lambda scale: ", ".join(color_steps(scale)),
        "rows": _rows,
        "checks": _checks,
    }
    return pages


def _raw(pages: Environment, name: str) -> Markup:
    """A style sheet or script of this package, which is not to be escaped."""
    return Markup(pages.get_template(name).render())  # noqa: S704 (our own file)


def _about(run: RunFindings, *, failed: int) -> dict[str, str]:
    report = run.report
    pairs = sum(len(case.pairs) for case in run.cases)
    return {
        "preset": str(report.config.get("name", "unknown")),
        "displacements": f"{pairs - failed} of {pairs}" + (f", {failed} without a result" if failed else ""),
        "mcbo": report.versions.get("mcbo", "unknown"),
        "torch": report.versions.get("torch", "unknown"),
        "device": report.device,
        "threads": str(report.threads),
        "report written": f"{run.written_at:%Y-%m-%d %H:%M} UTC",
    }


def _means(run: RunFindings) -> dict[str, float] | None:
    """Means over the pairs with landmarks, mm, as the challenge computes them; None if there are none."""
    known = [pair.landmarks for case in run.cases for pair in case.pairs if pair.landmarks]
    if not known:
        return None
    return {
        "count": len(known),
        "before": float(np.mean([landmarks.before_mm.mean() for landmarks in known])),
        "after": float(np.mean([landmarks.after_mm.mean() for landmarks in known])),
    }


def _number(value: float | None, digits: int = 2) -> str:
    try:
        return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"
    except OverflowError:  # a whole number beyond floating point, in an edited report
        return "–"


def _in_unit(length_mm: float | None, lengths: Lengths, digits: int = 1) -> str:
    """A length in a unit; where that is not the millimeter, with two digits at least."""
    digits = digits if lengths == MILLIMETERS else max(digits, 2)
    return _number(None if length_mm is None else length_mm * lengths.per_mm, digits)


def _share(view: View, views: Sequence[View]) -> str:
    """The width of a plane as a percentage of that of several side by side."""
    return f"{100 * view.plane.size_mm[0] / sum(one.plane.size_mm[0] for one in views):.3f}"


def _scale_bar(view: View, lengths: Lengths) -> dict[str, str]:
    """The longest of 1, 2, 5, 10, 20, … of a unit within its share of the width."""
    width = view.plane.size_mm[0] * lengths.per_mm
    power = 10 ** math.floor(math.log10(width * _BAR_SHARE))
    length = max(step * power for step in (1, 2, 5) if step * power <= width * _BAR_SHARE * (1 + 1e-9))
    return {"percent": f"{100 * length / width:.2f}", "text": f"{length:g} {lengths.symbol}"}


def _ticks(high_mm: float, lengths: Lengths) -> list[tuple[float, str]]:
    """Numbers along a scale from 0: where, in percent, and as text. The largest is last, and none is near it."""
    high = high_mm * lengths.per_mm
    end = _in_unit(high_mm, lengths)
    if float(end) == 0 or not math.isfinite(high):  # no displacement, or one beyond all bounds
        return [(0.0, "0")] if float(end) == 0 else [(0.0, "0"), (100.0, end)]
    power = 10 ** math.floor(math.log10(high))
    step = next(part * power for part in (0.1, 0.2, 0.5, 1, 2) if high / (part * power) <= _MOST_TICKS)
    inner = [n * step for n in range(math.floor(high / step) + 1) if n * step <= (1 - _TICK_SHARE) * high]
    return [*((100 * value / high, f"{value:g}") for value in inner), (100.0, end)]


def _small(pair: PairFindings) -> str:
    """What the script has to know of a pair's small volumes and planes, as JSON."""
    small, scale = pair.small, pair.magnitude_scale
    if small is None or scale is None:
        return "{}"
    return json.dumps(
        {
            "shape": small.shape,
            "images": small.image_shape,
            "nodes": small.node_shape,
            "step": small.voxels_per_count,
            "place": np.round(small.place, 9).tolist(),
            "along": np.round(small.along, 9).tolist(),
            "microscopy": pair.lengths.is_microscopy,
            "high": min(scale.high * pair.lengths.per_mm, _LARGEST),
            "colors": color_steps(scale, count=_COLORS),
            "planes": [
                {
                    "name": view.plane.name,
                    "axis": view.plane.axis,
                    "index": view.plane.index,
                    "down": view.plane.down,
                    "across": view.plane.across,
                    "downFlipped": view.plane.down_flipped,
                    "acrossFlipped": view.plane.across_flipped,
                }
                for view in pair.views
            ],
        }
    )


def _most_pixels(views: Sequence[View], tallest: int) -> int:
    """The width in pixels of planes side by side at one scale whose tallest is ``tallest`` pixels high."""
    height_mm = max(view.plane.size_mm[1] for view in views)
    return round(tallest * sum(view.plane.size_mm[0] for view in views) / height_mm)


def _rows(landmarks: Landmarks) -> Iterator[tuple[str, str, float, float]]:
    columns = (landmarks.fixed, landmarks.moving, landmarks.before_mm, landmarks.after_mm)
    for fixed, moving, before, after in zip(*columns, strict=True):
        yield ", ".join(f"{x:.1f}" for x in fixed), ", ".join(f"{x:.1f}" for x in moving), float(before), float(after)


def _checks(sanity: Sanity) -> Iterator[tuple[str, str]]:
    """Names and values of the checks of a displacement."""
    for name, value in asdict(sanity).items():
        yield name.replace("_", " "), ", ".join(f"{figure:.4g}" for figure in (value if isinstance(value, tuple) else [value]))
