"""The schemes of the challenge: significant wins between methods, scores from wins, and one score over all metrics.

Everything is done for many resamples of the cases at once, for the intervals of the ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from evaluation.images import Array
from evaluation.ranking.signed_rank import EXACT_IN_RESAMPLES, EXACT_UP_TO, holm, holm_of, signed_rank
from evaluation.tasks import METRICS, Component, Metric

SIGNIFICANCE = 0.05
FEWEST_CASES = 5
"""With fewer, no difference can be significant: the smallest p of four cases is 1/16."""
BOOTSTRAPS, CONFIDENCE = 1000, 0.95
_SEED = 0

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Scheme:
    """A way to rank.

    Attributes:
        option: its name on the command line.
        years: of the challenge.
        lowest: score of a method that beats no other, or that lacks a case; None for 1 / (number of methods). Wins over all
            others score 1, and scores are linear in between.
        holm: whether the p of all comparisons by a metric are adjusted together.
        weights: of the components in the geometric mean, each the mean over its metrics; None for the metrics themselves,
            with equal weights.
        safeguards: whether other components count no more than accuracy, and only for methods that beat the baseline by half
            of the metrics of accuracy: doing nothing is perfectly regular.
        full_score: what a score of 1 is called.
        also: metrics that it ranks by beside those of the task, unless metrics are named.
    """

    option: str
    years: str
    lowest: float | None
    holm: bool
    weights: Mapping[Component, float] | None
    safeguards: bool
    full_score: float
    also: tuple[str, ...] = ()


SCHEMES: dict[str, Scheme] = {
    scheme.option: scheme
    for scheme in (
        Scheme("2022", "2022–25", lowest=0.1, holm=False, weights=None, safeguards=False, full_score=1.0),
        # As its organizers describe it in PSMAReg_TestPhase_Results of JHU-MedImage-Reg/Learn2Reg26_PSMA; a third component,
        # biomarkers of PET (0.4), belongs to that task alone.
        Scheme(
            *("2026", "2026"),
            lowest=None,
            holm=True,
            weights={"accuracy": 0.4, "regularity": 0.2},
            safeguards=True,
            full_score=100.0,
            also=("ndv",),
        ),
    )
}


@dataclass(frozen=True)
class Standing:
    """The outcome for K methods, for one or for many resamples of the cases (leading axes ``…``).

    Attributes:
        p: per metric, ``(…, K, K)``: that the row is better than the column; adjusted where the scheme adjusts.
        wins: per metric, ``(…, K)``: how many others each method beats.
        scores: per metric, ``(…, K)``, from the lowest score to 1.
        components: the same per component, after the safeguards; empty where the scheme has none.
        final: ``(…, K)``, from the lowest score to 1.
    """

    p: dict[str, Array]
    wins: dict[str, Ints]
    scores: dict[str, Array]
    components: dict[Component, Array]
    final: Array


def stand(
    values: Mapping[str, Array],
    complete: Mapping[str, Bools],
    scheme: Scheme,
    *,
    gate: Bools | None = None,
    exact_up_to: int = EXACT_UP_TO,
) -> Standing:
    """Ranks methods by one scheme.

    Args:
        values: per metric, ``(…, K, n)``: numbers of K methods in n cases; NaN where a method has none.
        complete: per metric, ``(K,)``: whether a method has all its cases; one that has not gets the lowest score.
        scheme: how.
        gate: ``(…, K)``: whether a method passes that of the safeguards; None if there is no baseline.
        exact_up_to: as in ``signed_rank``.
    """
    tests = {name: compare(values[name], METRICS[name], exact_up_to=exact_up_to) for name in values}
    if scheme.holm:
        tests = {name: holm(p) for name, p in tests.items()}
    wins = {name: np.where(complete[name], (p < SIGNIFICANCE).sum(axis=-1), 0) for name, p in tests.items()}
    methods = len(next(iter(complete.values())))
    lowest = 1 / methods if scheme.lowest is None else scheme.lowest
    scores = {
        name: np.where(complete[name], lowest + (1 - lowest) * won / max(methods - 1, 1), lowest) for name, won in wins.items()
    }
    if scheme.weights is None:
        return Standing(tests, wins, scores, {}, _geometric_mean(list(scores.values()), [1.0] * len(scores)))
    components = {
        component: np.mean([scores[name] for name in scores if METRICS[name].component == component], axis=0)
        for component in scheme.weights
        if any(METRICS[name].component == component for name in scores)
    }
    if scheme.safeguards and "accuracy" in components:
        for component in components.keys() - {"accuracy"}:
            components[component] = np.minimum(components[component], components["accuracy"])
            if gate is not None:
                components[component] = np.where(gate, components[component], lowest)
    weights = [scheme.weights[component] for component in components]
    return Standing(tests, wins, scores, components, _geometric_mean(list(components.values()), weights))


def _geometric_mean(scores: Sequence[Array], weights: Sequence[float]) -> Array:
    total = sum(weights)
    return np.asarray(np.prod([score ** (weight / total) for score, weight in zip(scores, weights, strict=True)], axis=0))


def can_win(methods: int, cases: int, scheme: Scheme) -> bool:
    """Whether a method that is better in every case would beat another."""
    comparisons = methods * (methods - 1) if scheme.holm else 1
    return comparisons * 0.5**cases < SIGNIFICANCE


def passes_gate(
    values: Mapping[str, Array], baseline: Mapping[str, Array], scheme: Scheme, *, exact_up_to: int = EXACT_UP_TO
) -> Bools:
    """``(…, K)``: whether each method beats a baseline, ``(…, n)``, by at least half of the metrics of accuracy."""
    beaten = []
    for name in values:
        if METRICS[name].component == "accuracy":
            difference = _signed(values[name] - baseline[name][..., None, :], METRICS[name])
            p, _ = signed_rank(difference, exact_up_to=exact_up_to)
            beaten.append((holm_of(p) if scheme.holm else p) < SIGNIFICANCE)
    return np.asarray(2 * np.sum(beaten, axis=0) >= len(beaten))


def compare(values: Array, metric: Metric, *, exact_up_to: int = EXACT_UP_TO) -> Array:
    """``(…, K, K)``: the p that the method of the row is better than that of the column, over their common cases."""
    if metric.negligible:
        values = np.where(values < metric.negligible, 0, values)
    methods = values.shape[-2]
    p = np.ones((*values.shape[:-2], methods, methods))
    for i, j in combinations(range(methods), 2):
        p[..., i, j], p[..., j, i] = signed_rank(
            _signed(values[..., i, :] - values[..., j, :], metric), exact_up_to=exact_up_to
        )
    return p


def _signed(difference: Array, metric: Metric) -> Array:
    """A difference that is negative where the first is better; what differs by rounding alone is equal."""
    return np.asarray(np.round(-difference if metric.higher_is_better else difference, 9))


def rank(final: Array, missing: Ints, lead: Array) -> Ints:
    """Ranks ``(…, K)``, 1 the best: by score, then by fewer missing cases, then by a number of which less is better."""
    keys = (-np.round(final, 12), np.broadcast_to(missing, final.shape), np.round(np.nan_to_num(lead, nan=np.inf), 9))
    before = np.zeros((*final.shape, final.shape[-1]), dtype=bool)  # [i, j]: j stands before i
    tied = np.ones_like(before)
    for key in keys:
        before |= tied & (key[..., None, :] < key[..., :, None])
        tied &= key[..., None, :] == key[..., :, None]
    return np.asarray(1 + before.sum(axis=-1))


def rank_intervals(
    values: Mapping[str, Array],
    complete: Mapping[str, Bools],
    scheme: Scheme,
    missing: Ints,
    baseline: Mapping[str, Array] | None,
) -> Sequence[tuple[int, int]]:
    """Bootstrap intervals of the ranks at ``CONFIDENCE``: everything is repeated on resamples of the cases, the same for all.

    Args:
        values: per metric, ``(K, n)``; the first breaks ties.
        complete: as in ``stand``.
        scheme: how to rank.
        missing: ``(K,)``: how many cases each method lacks.
        baseline: per metric, ``(n,)``, if there is one.
    """
    lead, first = next(iter(values)), next(iter(values.values()))
    drawn = np.random.default_rng(_SEED).integers(first.shape[-1], size=(BOOTSTRAPS, first.shape[-1]))
    resampled = {name: np.moveaxis(v[:, drawn], 0, 1) for name, v in values.items()}
    gate = None
    if baseline is not None:
        drawn_baseline = {name: v[drawn] for name, v in baseline.items()}
        gate = passes_gate(resampled, drawn_baseline, scheme, exact_up_to=EXACT_IN_RESAMPLES)
    final = stand(resampled, complete, scheme, gate=gate, exact_up_to=EXACT_IN_RESAMPLES).final
    ranks = rank(final, missing, lead_means(resampled[lead], METRICS[lead]))
    tail = round((1 - CONFIDENCE) / 2, 9)
    low, high = np.quantile(ranks, [tail, 1 - tail], axis=0, method="inverted_cdf")
    return [(int(a), int(b)) for a, b in zip(low, high, strict=True)]


def lead_means(values: Array, metric: Metric) -> Array:
    """Means over the cases that there are, ``(…, n)`` → ``(…,)``, of which less is better; NaN of none."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(axis=-1)
    mean = total / np.where(known.any(axis=-1), known.sum(axis=-1), np.nan)
    return np.asarray(-mean if metric.higher_is_better else mean)
