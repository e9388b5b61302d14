"""Scores of a whole submission: the official JSON, with more keys, and a table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from evaluation.errors import without_secrets
from evaluation.files import read_json
from evaluation.images import Array, Shape
from evaluation.metrics import Regularity
from evaluation.pairs import read_pairs
from evaluation.scoring import PairScore, score_field, score_pair
from evaluation.settings import MAX_NAME, Method, Settings
from evaluation.tasks import METRICS, REMIND2REG_QUANTILE_30, Program, Task, find_task

PERCENTILES = (25, 50, 75, 95)
EVAL_VERSION = "2.0"
"""Of the official layout that the JSON follows."""
OFFICIAL_FOLDINGS = 0.0
"""``num_foldings``: the official programs count determinants ≤ 0 after the + 3 and the clip, which leave none."""


@dataclass(frozen=True)
class Scores:
    """Scores of a submission, one per pair, with the task whose conventions apply.

    ``simulated`` says whether the dataset JSON calls the images simulated, as that of the demo does.
    """

    task: Task
    settings: Settings
    pairs: tuple[PairScore, ...]
    simulated: bool = False

    @property
    def scored(self) -> list[PairScore]:
        """The pairs that have a score."""
        return [score for score in self.pairs if score.error is None]


def score(
    dataset: Path,
    predictions: Path,
    settings: Settings,
    *,
    split: str = "val",
    program: Program | None = None,
    trust_paths: bool = False,
) -> Scores:
    """Scores every pair of a dataset's split, or of the settings.

    Args:
        dataset: the dataset JSON.
        predictions: folder of displacements.
        settings: what to score.
        split: ``val``, ``test`` or ``train``.
        program: whose quantile is reported as ``30``; the task's, if None.
        trust_paths: allow files outside the dataset's folder.

    Raises:
        EvaluationError: if the dataset JSON cannot be read.
    """
    pairs = read_pairs(dataset, split=split, trust_paths=trust_paths) if settings.pairs is None else settings.pairs
    return gather(dataset, [score_pair(pair, predictions, settings) for pair in pairs], settings, program=program)


def gather(dataset: Path, pairs: Sequence[PairScore], settings: Settings, *, program: Program | None = None) -> Scores:
    """Scores of single pairs as those of a submission; the arguments are those of ``score``."""
    task = find_task(without_secrets(settings.name or task_name(dataset)))
    task = replace(task, program=program or task.program)
    return Scores(task, settings, tuple(pairs), simulated=read_json(dataset).get("simulated") is True)


def task_name(dataset: Path) -> str:
    """The name in a dataset JSON, shortened to ``MAX_NAME`` characters; the file's name if there is none."""
    name = read_json(dataset).get("name")
    return name[:MAX_NAME] if isinstance(name, str) and name else dataset.name


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
        spread = _distribution(initial, errors)
        columns = {f"{name}_initial": initial.mean(), name: errors.mean()}
        columns |= {f"{name}_{key}": value for key, value in spread.items() if key not in ("count", "median")}
        return columns | {f"{name}_voxels": np.mean(pair.voxels[name])}
    if method.metric == "sdlogj" and pair.regularity is not None:
        return {name: pair.regularity.sd_log_jacobian, **_foldings(pair.regularity)}
    return {name: pair.mean(name)}


def _foldings(regularity: Regularity) -> dict[str, float]:
    return {
        "num_foldings": OFFICIAL_FOLDINGS,
        "folded_voxels": regularity.folded_voxels,
        "folded_fraction": regularity.folded_fraction,
    }


def to_official(scores: Scores) -> dict[str, object]:
    """The official layout: ``name``, ``aggregates``, ``cases``, ``eval_version``; with more keys. NaN and infinity are None."""
    aggregates: dict[str, object] = {}
    for method in scores.settings.methods:
        known = [score for score in scores.scored if not math.isnan(score.mean(method.name))]
        if not known:
            continue
        aggregates[method.name] = _aggregate(known, method, scores.task.program)
        if method.metric == "sdlogj":
            rows = [_foldings(score.regularity) for score in known if score.regularity]
            for key in rows[0]:
                aggregates[key] = _mean_std_30(np.array([row[key] for row in rows], np.float64), REMIND2REG_QUANTILE_30)
    return {
        "name": scores.task.name,
        "aggregates": aggregates,
        "cases": {score.pair.key: plain(_case(score, scores.settings.methods)) for score in scores.pairs},
        "eval_version": EVAL_VERSION,
        "failed": {score.pair.key: score.error for score in scores.pairs if score.error is not None},
    }


def means_with_failures_as_identity(scores: Scores) -> dict[str, float]:
    """Per metric of accuracy the mean over all pairs, those without a score as if they had not been moved.

    So that a method does not gain by leaving out a difficult pair. Regularity has none: not moving is perfectly regular.
    """
    filled = [score if score.error is None else score_field(score.pair, _zero, scores.settings) for score in scores.pairs]
    means: dict[str, float] = {}
    for method in scores.settings.methods:
        known = [mean for score in filled if not math.isnan(mean := score.mean(method.name))]
        if known and METRICS[method.metric].component == "accuracy":
            means[method.name] = float(np.mean(known))
    return means


def _zero(shape: Shape) -> NDArray[np.float32]:
    return np.zeros((*shape, 3), dtype=np.float32)


def _aggregate(known: Sequence[PairScore], method: Method, program: Program) -> dict[str, object]:
    """Over the pairs for which a method has a number."""
    name, general = method.name, METRICS[method.metric].quantile_30
    means = np.array([score.mean(name) for score in known])
    result: dict[str, object] = {
        **_mean_std_30(means, REMIND2REG_QUANTILE_30 if program == "remind2reg" else general),
        "30_remind2reg": float(np.quantile(means, REMIND2REG_QUANTILE_30)),
        "30_l2r": float(np.quantile(means, general)),
        "cases": int(means.size),
    }
    if method.metric == "tre":
        initial = [np.mean(score.initial[name]) for score in known]
        before = np.concatenate([score.initial[name] for score in known])
        after = np.concatenate([score.values[name] for score in known])
        voxels = np.mean([(np.mean(score.initial_voxels[name]), np.mean(score.voxels[name])) for score in known], axis=0)
        result |= {
            "unit": "mm",
            "initial_mean": float(np.mean(initial)),
            "initial_std": float(np.std(initial)),
            "landmarks": _distribution(before, after),
            "initial_mean_voxels": float(voxels[0]),
            "mean_voxels": float(voxels[1]),
        }
    return result


def _mean_std_30(values: Array, quantile: float) -> dict[str, float]:
    return {"mean": float(values.mean()), "std": float(values.std()), "30": float(np.quantile(values, quantile))}


def _distribution(initial: Array, errors: Array) -> dict[str, float]:
    """The distribution of landmark errors beyond their mean."""
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
            values = score.values[name]
            entry: dict[str, object] = {
                "mean": score.mean(name),
                "detailed": values[0] if METRICS[method.metric].component == "regularity" else values,
            }
            if name in score.initial:
                initial = np.array(score.initial[name])
                entry |= {"initial_mean": float(initial.mean()), "initial_detailed": initial.tolist()}
                entry |= _distribution(initial, np.array(values))
            if name in score.labels:
                entry["labels"] = score.labels[name]
            case[name] = entry
        if method.metric == "sdlogj" and score.regularity is not None:
            case["num_foldings"] = {"mean": OFFICIAL_FOLDINGS, "detailed": OFFICIAL_FOLDINGS}
            case["folded"] = {key: value for key, value in _foldings(score.regularity).items() if key != "num_foldings"}
    if score.notes:
        case["notes"] = score.notes
    if score.error is not None:
        case["error"] = score.error
    return case


def plain(value: object) -> object:
    """A value as JSON can hold it: arrays as lists, and None for NaN and infinity."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
