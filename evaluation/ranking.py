"""How the challenge ranks: significant wins between methods, scores from wins, and one score over all metrics.

Everything is done for many resamples of the cases at once, for the intervals of the ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from evaluation.images import Array
from evaluation.tasks import METRICS, Component, Metric

SIGNIFICANCE = 0.05
FEWEST_CASES = 5
"""With fewer, no difference can be significant: the smallest p of four cases is 1/16."""
EXACT_UP_TO, EXACT_IN_RESAMPLES = 50, 25
"""Cases for which the test looks at all signs; above, the normal approximation. 50 is scipy's, and slow a thousand times."""
BOOTSTRAPS, CONFIDENCE = 1000, 0.95
_SEED = 0
_ROWS = 64  # resamples at a time, whose distributions then fit into the cache

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
            beaten.append((_holm(p) if scheme.holm else p) < SIGNIFICANCE)
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


def signed_rank(differences: Array, *, exact_up_to: int = EXACT_UP_TO) -> tuple[Array, Array]:
    """Wilcoxon's signed-rank test, one-sided: the p that differences lie below 0, and the p that they lie above.

    Zeros and NaN are left out; equal magnitudes share the mean of their ranks.

    Args:
        differences: ``(…, n)``.
        exact_up_to: for how many differences the p is that over all signs.

    Returns:
        Two arrays ``(…,)``; 1 where no difference is left.
    """
    flat = np.nan_to_num(differences.reshape(-1, differences.shape[-1]))
    below, above = np.empty(len(flat)), np.empty(len(flat))
    for start in range(0, len(flat), _ROWS):
        part = slice(start, start + _ROWS)
        below[part], above[part] = _signed_rank(flat[part], exact_up_to)
    return below.reshape(differences.shape[:-1]), above.reshape(differences.shape[:-1])


def _signed_rank(flat: Array, exact_up_to: int) -> tuple[Array, Array]:
    """As ``signed_rank``, for ``(rows, n)`` without NaN."""
    zeros = (flat == 0).sum(axis=1, keepdims=True)
    ranks = np.where(flat == 0, 0, rankdata(np.abs(flat), axis=1) - zeros)
    doubled = np.rint(2 * ranks).astype(np.int64)  # whole, since ranks are means of two whole numbers
    positive = (doubled * (flat > 0)).sum(axis=1, keepdims=True)
    if flat.shape[1] > exact_up_to:
        spread = np.maximum(np.sqrt(np.square(ranks).sum(axis=1) / 4), 1e-300)
        z = (positive[:, 0] / 2 - ranks.sum(axis=1) / 2) / spread
        return np.asarray(norm.cdf(z)), np.asarray(norm.sf(z))
    sums = np.arange(flat.shape[1] * (flat.shape[1] + 1) + 1)
    chance = np.zeros((len(flat), len(sums)))
    chance[:, 0] = 1
    ordered = np.sort(doubled, axis=1)  # so that the sums stay small for long
    for rank, most in zip(ordered.T[:, :, None], ordered.cumsum(axis=1).max(axis=0), strict=True):
        reached, part = sums[: most + 1], chance[:, : most + 1]
        added = np.take_along_axis(part, np.maximum(reached - rank, 0), axis=1) * (reached >= rank)
        part[:] = (part + added) / 2  # each sign with probability 1/2: its rank is added, or it is not
    return (chance * (sums <= positive)).sum(axis=1), (chance * (sums >= positive)).sum(axis=1)


def holm(p: Array) -> Array:
    """Holm's adjustment of all comparisons of one ``(…, K, K)`` together, the diagonal left out."""
    others = ~np.eye(p.shape[-1], dtype=bool)
    adjusted = np.ones_like(p)
    if others.any():
        adjusted[..., others] = _holm(p[..., others])
    return adjusted


def _holm(p: Array) -> Array:
    """The smallest of m is multiplied by m, the next by m − 1, …; none may fall below one before it. ``(…, m)``."""
    order = np.argsort(p, axis=-1)
    steps = np.take_along_axis(p, order, axis=-1) * np.arange(p.shape[-1], 0, -1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(steps, axis=-1), 1), axis=-1)
    return adjusted


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
