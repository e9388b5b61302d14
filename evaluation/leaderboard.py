"""Ranks several methods on the same cases as the challenge does, with tests and intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from scipy.stats import bootstrap, wilcoxon

from evaluation.images import Array
from evaluation.summary import Scores
from evaluation.tasks import METRICS, Metric, Published

SIGNIFICANCE = 0.05
WORST_SCORE = 0.1
"""Of a method that beats no other, and of a metric that a method lacks."""
RESAMPLES = 9999
CONFIDENCE = 0.95
_SEED = 0


@dataclass(frozen=True)
class Result:
    """A method's result by one metric.

    Attributes:
        per_case: one number per case; NaN where there is none.
        missing: how many cases have none.
        mean, std: over cases.
        low, high: bootstrap interval of the mean at ``CONFIDENCE``.
        wins: methods that it beats significantly; 0 if a case is missing.
        score: from ``WORST_SCORE`` to 1.
    """

    per_case: Array
    missing: int
    mean: float
    std: float
    low: float
    high: float
    wins: int
    score: float


@dataclass(frozen=True)
class Row:
    """A method on the board: its rank, the geometric mean of its scores, and its results by metric."""

    rank: int
    method: str
    score: float
    results: dict[str, Result]


@dataclass(frozen=True)
class Board:
    """A leaderboard.

    Attributes:
        name: of the task.
        unit: of the TRE.
        cases: their names, in the order of ``per_case``.
        rows: best first.
        p_values: per metric, for each (better, worse) the one-sided p that the first is better.
        published: results shown beside them, unranked.
    """

    name: str
    unit: str
    cases: tuple[str, ...]
    rows: tuple[Row, ...]
    p_values: dict[str, dict[tuple[str, str], float]]
    published: tuple[Published, ...]


def build_board(scores: dict[str, Scores], *, metrics: Sequence[str] | None = None, published: str | None = None) -> Board:
    """Ranks methods.

    Per metric, each pair of methods is compared by a paired one-sided Wilcoxon signed-rank test over cases; p < 0.05 is a win.
    Wins are mapped linearly to scores from 0.1 (none) to 1 (against all others); a method that lacks a metric in a case gets
    0.1. The rank follows from the geometric mean over metrics; ties are broken by fewer missing cases, then by the mean of the
    first metric.

    Args:
        scores: of each method, on the same pairs.
        metrics: to rank by; those of the task, if None.
        published: the split whose published results are added, if any.
    """
    first = next(iter(scores.values()))
    chosen = [METRICS[name] for name in metrics or first.task.ranked_by]
    results: dict[str, dict[str, Result]] = {method: {} for method in scores}
    p_values = {}
    for metric in chosen:
        per_case = {method: _per_case(s, metric) for method, s in scores.items()}
        tests = p_values[metric.option] = _compare(per_case, metric)
        for method in scores:
            wins = sum(p < SIGNIFICANCE for (better, _), p in tests.items() if better == method)
            results[method][metric.option] = _result(per_case[method], wins, max(len(scores) - 1, 1))
    score = {m: math.prod(r.score for r in rs.values()) ** (1 / len(rs)) for m, rs in results.items()}

    def order(method: str) -> tuple[float, int, float]:
        lead = results[method][chosen[0].option]
        mean = math.inf if math.isnan(lead.mean) else -lead.mean if chosen[0].higher_is_better else lead.mean
        return -score[method], lead.missing, mean

    ordered = sorted(scores, key=order)
    rank = {method: 1 + sum(order(other) < order(method) for other in scores) for method in scores}
    return Board(
        name=first.task.name,
        unit=first.task.unit,
        cases=tuple(pair.pair.key for pair in first.pairs),
        rows=tuple(Row(rank[m], m, score[m], results[m]) for m in ordered),
        p_values=p_values,
        published=tuple(row for row in first.task.published if row.split == published),
    )


def _per_case(scores: Scores, metric: Metric) -> Array:
    """One number per case; the TRE in the unit of the task."""
    names = [method.name for method in scores.settings.methods if method.metric == metric.option]
    if metric.option == "tre" and scores.task.unit == "voxels":
        return np.array([np.mean(pair.voxels[names[0]]) if pair.voxels else math.nan for pair in scores.pairs])
    return np.array([pair.mean(names[0]) if names else math.nan for pair in scores.pairs])


def _compare(per_case: dict[str, Array], metric: Metric) -> dict[tuple[str, str], float]:
    """The one-sided Wilcoxon signed-rank p of each ordered pair of methods that the first is better, over common cases.

    1 if they are equal, or have no case in common.
    """
    p_values = {}
    for better, worse in permutations(per_case, 2):
        difference = per_case[better] - per_case[worse]
        difference = difference[~np.isnan(difference)] * (-1 if metric.higher_is_better else 1)
        p_values[better, worse] = float(wilcoxon(difference, alternative="less").pvalue) if difference.any() else 1.0
    return p_values


def _result(values: Array, wins: int, others: int) -> Result:
    """Result of a method that beats ``wins`` of ``others``."""
    known = values[~np.isnan(values)]
    complete = known.size == values.size and values.size > 0
    low, high = _interval(known)
    return Result(
        per_case=values,
        missing=values.size - known.size,
        mean=float(known.mean()) if known.size else math.nan,
        std=float(known.std()) if known.size else math.nan,
        low=low,
        high=high,
        wins=wins if complete else 0,
        score=WORST_SCORE + (1 - WORST_SCORE) * wins / others if complete else WORST_SCORE,
    )


def _interval(values: Array) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; NaN for fewer than two values."""
    if values.size < 2:
        return math.nan, math.nan
    interval = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile", rng=_SEED
    ).confidence_interval
    return float(interval.low), float(interval.high)
