"""Wilcoxon's signed-rank test and Holm's adjustment, for many resamples at once."""

import numpy as np
from scipy.stats import norm, rankdata

from evaluation.images import Array

EXACT_UP_TO, EXACT_IN_RESAMPLES = 50, 25
"""Cases for which the test looks at all signs; above, the normal approximation. 50 is scipy's, and slow a thousand times."""
_ROWS = 64  # resamples at a time, whose distributions then fit into the cache


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
        spread = np.sqrt(np.square(ranks).sum(axis=1) / 4)
        z = (positive[:, 0] / 2 - ranks.sum(axis=1) / 2) / np.where(spread > 0, spread, 1)
        return np.where(spread > 0, norm.cdf(z), 1), np.where(spread > 0, norm.sf(z), 1)
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
        adjusted[..., others] = holm_of(p[..., others])
    return adjusted


def holm_of(p: Array) -> Array:
    """The smallest of m is multiplied by m, the next by m − 1, …; none may fall below one before it. ``(…, m)``."""
    order = np.argsort(p, axis=-1)
    steps = np.take_along_axis(p, order, axis=-1) * np.arange(p.shape[-1], 0, -1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(steps, axis=-1), 1), axis=-1)
    return adjusted
