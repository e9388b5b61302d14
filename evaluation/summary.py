"""Scores of a whole submission: the official JSON with more in it, and a table."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from evaluation.files import read_json
from evaluation.pairs import Pair, read_pairs
from evaluation.scoring import PairScore, score_pair
from evaluation.settings import MAX_NAME, Method, Settings
from evaluation.tasks import METRICS, REMIND2REG_QUANTILE_30, Program, Task, find_task

PERCENTILES = (25, 50, 75, 95)
EVAL_VERSION = "2.0"
"""Of the official layout that the JSON follows."""


@dataclass(frozen=True)
class Scores:
    """Scores of a submission.

    Attributes:
        task: whose conventions hold.
        settings: what was asked for.
        pairs: one score per pair.
    """

    task: Task
    settings: Settings
    pairs: tuple[PairScore, ...]

    @property
    def scored(self) -> list[PairScore]:
        """The pairs that have a score."""
        return [score for score in self.pairs if score.error is None]

    def case_means(self, method: Method) -> NDArray[np.float64]:
        """The means of the pairs that have this metric."""
        means = np.array([score.mean(method.name) for score in self.scored], dtype=np.float64)
        return means[~np.isnan(means)]


def score(
    dataset: Path,
    predictions: Path,
    settings: Settings,
    *,
    split: str = "val",
    program: Program | None = None,
    trust_paths: bool = False,
) -> Scores:
    """Scores every pair of a dataset's split (or of the settings).

    Args:
        dataset: the dataset JSON.
        predictions: folder of displacements.
        settings: what to score.
        split: ``val``, ``test`` or ``train``.
        program: whose conventions hold; the task's, if None.
        trust_paths: let files lie outside of the dataset's folder.

    Raises:
        EvaluationError: if the dataset JSON cannot be read.
    """
    pairs: Sequence[Pair] = (
        settings.pairs if settings.pairs is not None else read_pairs(dataset, split=split, trust_paths=trust_paths)
    )
    task = find_task(settings.name or task_name(dataset, default=dataset.name))
    if program is not None:
        task = replace(task, program=program)
    return Scores(task, settings, tuple(score_pair(pair, predictions, settings) for pair in pairs))


def task_name(dataset: Path, *, default: str) -> str:
    """The name that a dataset JSON gives itself, cut where it is longer than names are."""
    name = read_json(dataset).get("name")
    return name[:MAX_NAME] if isinstance(name, str) and name else default


def to_table(scores: Scores) -> pd.DataFrame:
    """One row per pair: a column for each number, NaN where there is none, and ``error``."""
    rows: dict[str, dict[str, object]] = {}
    for pair in scores.pairs:
        row: dict[str, object] = {}
        for method in scores.settings.methods:
            row |= _columns(pair, method)
        rows[pair.pair.field_name] = row | {"error": pair.error}
    table = pd.DataFrame.from_dict(rows, orient="index")
    if "folded_voxels" in table:
        table["folded_voxels"] = table["folded_voxels"].astype("Int64")
    return table.drop(columns=[name for name in table if name != "error" and table[name].isna().all()])


def _columns(pair: PairScore, method: Method) -> dict[str, object]:
    name = method.name
    if method.metric == "tre" and name in pair.values:
        initial, errors = np.array(pair.initial[name]), np.array(pair.values[name])
        columns = {f"{name}_initial": initial.mean(), name: errors.mean(), f"{name}_std": errors.std()}
        columns |= {f"{name}_p{p}": np.percentile(errors, p) for p in PERCENTILES}
        columns |= {f"{name}_worst": errors.max(), f"{name}_improved": float((errors < initial).mean())}
        return columns | {f"{name}_voxels": np.mean(pair.voxels[name])}
    if method.metric == "sdlogj" and pair.regularity is not None:
        r = pair.regularity
        return {
            name: r.sd_log_jacobian,
            "num_foldings": r.official_foldings,
            "folded_voxels": r.folded_voxels,
            "folded_fraction": r.folded_fraction,
        }
    return {name: pair.mean(name)}


def to_official(scores: Scores) -> dict[str, object]:
    """The official layout: ``name``, ``aggregates``, ``cases``, ``eval_version``; and more keys beside theirs."""
    aggregates: dict[str, object] = {}
    for method in scores.settings.methods:
        means = scores.case_means(method)
        if not means.size:
            continue
        aggregates[method.name] = _aggregate(scores, method, means)
        if method.metric == "sdlogj":
            regular = [s.regularity for s in scores.scored if s.regularity and not math.isnan(s.mean(method.name))]
            aggregates["num_foldings"] = _mean_std_30([r.official_foldings for r in regular], REMIND2REG_QUANTILE_30)
            aggregates["folded_voxels"] = _mean_std_30([r.folded_voxels for r in regular], REMIND2REG_QUANTILE_30)
            aggregates["folded_fraction"] = _mean_std_30([r.folded_fraction for r in regular], REMIND2REG_QUANTILE_30)
    return {
        "name": scores.task.name,
        "aggregates": aggregates,
        "cases": {score.pair.key: _case(score, scores.settings.methods) for score in scores.pairs},
        "eval_version": EVAL_VERSION,
        "failed": {score.pair.key: score.error for score in scores.pairs if score.error is not None},
    }


def _aggregate(scores: Scores, method: Method, means: NDArray[np.float64]) -> dict[str, object]:
    general = METRICS[method.metric].quantile_30
    result: dict[str, object] = {
        **_mean_std_30(means, REMIND2REG_QUANTILE_30 if scores.task.program == "remind2reg" else general),
        "30_remind2reg": float(np.quantile(means, REMIND2REG_QUANTILE_30)),
        "30_l2r": float(np.quantile(means, general)),
        "cases": int(means.size),
    }
    if method.metric == "tre":
        initial = [np.mean(score.initial[method.name]) for score in scores.scored if method.name in score.initial]
        pooled = [(s.initial[method.name], s.values[method.name]) for s in scores.scored if method.name in s.initial]
        before, after = (np.concatenate([np.array(pair[i]) for pair in pooled]) for i in (0, 1))
        result |= {
            "unit": "mm",
            "initial_mean": float(np.mean(initial)),
            "initial_std": float(np.std(initial)),
            "landmarks": _distribution(before, after),
        }
        known = [s for s in scores.scored if method.name in s.voxels]
        voxels = [(np.mean(s.initial_voxels[method.name]), np.mean(s.voxels[method.name])) for s in known]
        result |= dict(zip(("initial_mean_voxels", "mean_voxels"), map(float, np.mean(voxels, axis=0)), strict=True))
    return result


def _mean_std_30(values: Iterable[float] | NDArray[np.float64], quantile: float) -> dict[str, float]:
    array = np.array(list(values), dtype=np.float64)
    return {"mean": float(array.mean()), "std": float(array.std()), "30": float(np.quantile(array, quantile))}


def _distribution(initial: NDArray[np.float64], errors: NDArray[np.float64]) -> dict[str, object]:
    """What the errors of landmarks look like beyond their mean."""
    return {
        "count": int(errors.size),
        "std": float(errors.std()),
        "median": float(np.median(errors)),
        **{f"p{p}": float(np.percentile(errors, p)) for p in PERCENTILES},
        "worst": float(errors.max()),
        "improved": float((errors < initial).mean()),
    }


def _case(score: PairScore, methods: Sequence[Method]) -> dict[str, object]:
    case: dict[str, object] = {}
    for method in methods:
        name = method.name
        if score.error is not None:
            case[name] = {"mean": None, "detailed": None}
        elif name in score.values:
            values = [_number(value) for value in score.values[name]]
            single = method.metric == "sdlogj"
            entry: dict[str, object] = {"mean": _number(score.mean(name)), "detailed": values[0] if single else values}
            if name in score.initial:
                initial = np.array(score.initial[name])
                entry |= {"initial_mean": float(initial.mean()), "initial_detailed": initial.tolist()}
                entry |= _distribution(initial, np.array(score.values[name]))
            if name in score.labels:
                entry["labels"] = score.labels[name]
            case[name] = entry
        if method.metric == "sdlogj" and score.regularity is not None:
            official = score.regularity.official_foldings
            case["num_foldings"] = {"mean": official, "detailed": official}
            case["folded"] = {k: _number(v) for k, v in asdict(score.regularity).items() if k.startswith("folded")}
    if score.notes:
        case["notes"] = score.notes
    if score.error is not None:
        case["error"] = score.error
    return case


def _number(value: float) -> float | None:
    """JSON knows neither NaN nor infinity."""
    return value if math.isfinite(value) else None
