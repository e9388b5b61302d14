"""Compares several methods on the same cases, and ranks them as the challenge does."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from evaluation.errors import EvaluationError
from evaluation.images import Array
from evaluation.pairs import parse_name
from evaluation.ranking.schemes import (
    CONFIDENCE,
    FEWEST_CASES,
    SCHEMES,
    Scheme,
    can_win,
    lead_means,
    passes_gate,
    rank,
    rank_intervals,
    stand,
)
from evaluation.scoring import PairScore
from evaluation.summary import Scores
from evaluation.tasks import METRICS, Metric, Published, Task

RESAMPLES = 9999
_SEED = 0


@dataclass(frozen=True)
class Result:
    """A method's result by one metric.

    Attributes:
        per_pair: one number per pair; NaN where there is none.
        per_case: one number per case, the mean over its pairs; NaN where one of them has no score.
        missing: how many cases have none.
        mean, std: over cases.
        low, high: bootstrap interval of the mean at ``CONFIDENCE``.
        wins: methods that it beats significantly; 0 if a case is missing. None where methods are not ranked.
        score: from the scheme's lowest score to 1, likewise.
    """

    per_pair: Array
    per_case: Array
    missing: int
    mean: float
    std: float
    low: float
    high: float
    wins: int | None = None
    score: float | None = None


@dataclass(frozen=True)
class Row:
    """A method on the board.

    Attributes:
        method: its name.
        results: by metric.
        rank: 1 the best; None where methods are not ranked, and for the baseline.
        rank_interval: bootstrap interval of the rank at ``CONFIDENCE``.
        score: over all metrics, up to the scheme's full score.
        components: the score of each component, after the safeguards; from the lowest score to 1.
    """

    method: str
    results: dict[str, Result]
    rank: int | None = None
    rank_interval: tuple[int, int] | None = None
    score: float | None = None
    components: dict[str, float] | None = None


@dataclass(frozen=True)
class Board:
    """A leaderboard.

    Attributes:
        name: of the task.
        unit: of the TRE.
        scheme: how it is ranked.
        cases: their names, in the order of ``per_case``. A case is a patient: pairs of one case are not independent, and a
            displacement that two modalities share counts once.
        pairs: their names, in the order of ``per_pair``.
        case_of: for each pair, the index of its case.
        rows: best first, the baseline last.
        p_values: per metric, for each (better, worse) the one-sided p that the first is better, adjusted where the scheme
            adjusts. Empty where methods are not ranked.
        baseline: the name of the method that others have to beat, if any.
        published: results shown apart, unranked.
    """

    name: str
    unit: str
    scheme: Scheme
    cases: tuple[str, ...]
    pairs: tuple[str, ...]
    case_of: tuple[int, ...]
    rows: tuple[Row, ...]
    p_values: dict[str, dict[tuple[str, str], float]]
    baseline: str | None
    published: tuple[Published, ...]

    @property
    def ranked(self) -> bool:
        """Whether there are enough cases for ranks and scores."""
        return len(self.cases) >= FEWEST_CASES

    @property
    def decisive(self) -> bool:
        """Whether there are enough cases for any difference between its methods to be significant."""
        return can_win(len(self.rows) - (self.baseline is not None), len(self.cases), self.scheme)


def default_metrics(task: Task, ranking: str) -> list[str]:
    """The metrics to rank by unless others are named: the task's, and those that the scheme adds."""
    return list(dict.fromkeys((*task.ranked_by, *SCHEMES[ranking].also)))


def build_board(
    scores: dict[str, Scores],
    *,
    metrics: Sequence[str] | None = None,
    published: str | None = None,
    ranking: str = "2022",
    baseline: str | None = None,
) -> Board:
    """Ranks methods.

    Per metric, each pair of methods is compared by a paired one-sided Wilcoxon signed-rank test over cases; p < 0.05 is a win.
    What follows from wins is up to the scheme (``ranking.schemes.SCHEMES``). Equal scores are ordered by fewer missing cases,
    then by the mean of the first metric. With fewer than ``FEWEST_CASES`` cases there are neither ranks nor scores.

    Args:
        scores: of each method, on the same pairs.
        metrics: to rank by; ``default_metrics``, if None.
        published: the split whose published results are added, if any; never to simulated images.
        ranking: name of the scheme.
        baseline: the name of a method that the others have to beat, and which is not ranked.

    Raises:
        EvaluationError: if the baseline is not one of the methods, or the only one.
    """
    if baseline is not None and (baseline not in scores or len(scores) < 2):
        raise EvaluationError(f"--baseline: expected one of several methods ({', '.join(scores)}), found {baseline!r}")
    first = next(iter(scores.values()))
    chosen = [METRICS[name] for name in metrics or default_metrics(first.task, ranking)]
    names, case_of = _cases(first.pairs)
    results = {method: {metric.option: _result(s, metric, case_of) for metric in chosen} for method, s in scores.items()}
    rows, p_values = _rank(results, chosen, SCHEMES[ranking], baseline, ranked=len(names) >= FEWEST_CASES)
    return Board(
        name=first.task.name,
        unit=first.task.unit,
        scheme=SCHEMES[ranking],
        cases=names,
        pairs=tuple(pair.pair.key for pair in first.pairs),
        case_of=case_of,
        rows=tuple(rows),
        p_values=p_values,
        baseline=baseline,
        published=tuple(row for row in first.task.published if row.split == published and not first.simulated),
    )


def _cases(pairs: Sequence[PairScore]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The names of the cases, and for each pair the index of its case."""
    of_pair = [tuple(parse_name(path)[0] for path in (score.pair.fixed, score.pair.moving)) for score in pairs]
    known = list(dict.fromkeys(of_pair))
    names = (fixed if fixed == moving else f"{fixed}<--{moving}" for fixed, moving in known)
    return tuple(names), tuple(known.index(case) for case in of_pair)


def _result(scores: Scores, metric: Metric, case_of: Sequence[int]) -> Result:
    """The numbers of one method by one metric; the TRE in the unit of the task."""
    per_pair = _per_pair(scores, metric)
    failed = np.array([score.error is not None for score in scores.pairs])
    cases = np.array(case_of)
    per_case = np.full(max(case_of, default=-1) + 1, math.nan)
    for case in range(per_case.size):
        numbers = per_pair[cases == case]
        if not failed[cases == case].any() and not np.isnan(numbers).all():
            per_case[case] = np.nanmean(numbers)
    known = per_case[~np.isnan(per_case)]
    low, high = _interval(known)
    return Result(
        per_pair=per_pair,
        per_case=per_case,
        missing=per_case.size - known.size,
        mean=float(known.mean()) if known.size else math.nan,
        std=float(known.std()) if known.size else math.nan,
        low=low,
        high=high,
    )


def _per_pair(scores: Scores, metric: Metric) -> Array:
    names = [method.name for method in scores.settings.methods if method.metric == metric.option]
    if metric.option == "tre" and scores.task.unit == "voxels":
        return np.array([np.mean(pair.voxels[names[0]]) if pair.voxels else math.nan for pair in scores.pairs])
    return np.array([pair.mean(names[0]) if names else math.nan for pair in scores.pairs])


def _rank(
    results: dict[str, dict[str, Result]], chosen: Sequence[Metric], scheme: Scheme, baseline: str | None, *, ranked: bool
) -> tuple[list[Row], dict[str, dict[tuple[str, str], float]]]:
    """The rows, best first, and the p-values by metric."""
    methods = [method for method in results if method != baseline]
    values = {m.option: np.array([results[method][m.option].per_case for method in methods]) for m in chosen}
    lead = lead_means(values[chosen[0].option], chosen[0])
    missing = np.array([results[method][chosen[0].option].missing for method in methods])
    last = [] if baseline is None else [Row(baseline, results[baseline])]
    if not ranked:
        order = rank(np.zeros(len(methods)), missing, lead)
        return [Row(methods[i], results[methods[i]]) for i in np.argsort(order, kind="stable")] + last, {}
    complete = {option: ~np.isnan(numbers).any(axis=1) for option, numbers in values.items()}
    of_baseline = None if baseline is None else {m.option: results[baseline][m.option].per_case for m in chosen}
    gate = None if of_baseline is None else passes_gate(values, of_baseline, scheme)
    standing = stand(values, complete, scheme, gate=gate)
    ranks = rank(standing.final, missing, lead)
    intervals = rank_intervals(values, complete, scheme, missing, of_baseline)
    rows = [
        Row(
            method=methods[i],
            results={
                m.option: _with_wins(results[methods[i]][m.option], standing.wins[m.option][i], standing.scores[m.option][i])
                for m in chosen
            },
            rank=int(ranks[i]),
            rank_interval=_with_ties(intervals[i], ranks[standing.final == standing.final[i]]),
            score=scheme.full_score * float(standing.final[i]),
            components={name: float(score[i]) for name, score in standing.components.items()} or None,
        )
        for i in np.argsort(ranks, kind="stable")
    ]
    p_values = {
        option: {
            (better, worse): float(p[i, j])
            for i, better in enumerate(methods)
            for j, worse in enumerate(methods)
            if better != worse
        }
        for option, p in standing.p.items()
    }
    return rows + last, p_values


def _with_ties(interval: tuple[int, int], shared: NDArray[np.integer]) -> tuple[int, int]:
    """The interval of a rank, and all ranks of methods with the same score, whom only their means put in order."""
    return min(interval[0], int(shared.min())), max(interval[1], int(shared.max()))


def _with_wins(result: Result, wins: int, score: float) -> Result:
    return replace(result, wins=int(wins), score=float(score))


def _interval(values: Array) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; NaN for fewer than ``FEWEST_CASES``, of which it would say nothing."""
    if values.size < FEWEST_CASES:
        return math.nan, math.nan
    interval = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile", rng=_SEED
    ).confidence_interval
    return float(interval.low), float(interval.high)
