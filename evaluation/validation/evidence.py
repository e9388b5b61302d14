"""Evidence that a displacement was written by mistake: landmarks, or the images themselves."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.stats import binom

from evaluation.errors import EvaluationError
from evaluation.images import Array, Shape, read_grid, read_volume
from evaluation.metrics import Field, landmark_errors
from evaluation.pairs import Pair
from evaluation.scoring import read_point_pairs
from evaluation.validation.readings import AS_WRITTEN, Reading

LANDMARKS_DECIDE, IMAGES_DECIDE = 0.6, 0.85
"""A mistake is suspected if correcting it gives less than this fraction of the error as written and of the initial error.
Images show less than landmarks: on simulated ultrasound a wrong reading of the truth makes a difference of 0.70 to 0.82."""
SHRINKING = 0.55
"""A correction that makes displacements smaller has to give less than this fraction of the error as written: half of a noisy
displacement is always closer than the whole."""
GOOD_ENOUGH = 0.05
"""A displacement that leaves less than this fraction of the initial error is not suspected."""
CHANCE = 1e-4
"""How probable it may be, by the parts of the volume in which it fits better, that a correction fits better by chance."""

_POINTS, _PARTS = 64**3, 4


CURED = 0.4
"""A correction that leaves less than this fraction of the initial error is the right one; else something else is wrong, too."""
WORSE = 1.2
"""Landmarks that a displacement takes this much further apart than they were are worth a word."""


@dataclass(frozen=True)
class Suspicion:
    """A mistake that is probable.

    Attributes:
        reading: how to read the displacement instead.
        told: the errors that speak for it.
        cured: whether these are so small then that nothing else can be wrong.
    """

    reading: Reading
    told: str
    cured: bool


class Evidence(Protocol):
    """How well a reading fits: an error, and whether it is better than others beyond doubt.

    ``threshold`` is the share of the other errors below which it is; ``tie`` the factor between errors that are as good as
    equal, so that the more usual mistake is named.
    """

    threshold: float
    tie: float
    unit: str

    def error(self, reading: Reading | None) -> float:
        """The error of a reading; of no displacement, for None."""

    def sure(self, reading: Reading) -> bool:
        """Whether it fits better than the displacement as written and than none, not by chance alone."""


def suspect(pair: Pair, field: Field, readings: Sequence[Reading]) -> Suspicion | None:
    """The mistake whose reading makes a displacement fit far better than as it is written, if any: the best one.

    Landmarks decide where there are any; otherwise the mutual information of the fixed and the warped moving image.
    """
    evidence = _evidence(pair, field)
    if evidence is None or not field.any():
        return None
    written, initial = evidence.error(AS_WRITTEN), evidence.error(None)
    if written <= GOOD_ENOUGH * initial:
        return None
    errors = [evidence.error(reading) for reading in readings]
    least = min(errors)
    if not least < evidence.threshold * min(written, initial):
        return None
    tied = (reading for reading, error in zip(readings, errors, strict=True) if error <= evidence.tie * least + 1e-12)
    best = next(tied)
    if (best.shrinks and not least < SHRINKING * written) or not evidence.sure(best):
        return None
    if best.opposite:
        # Of the opposite direction, exactly: the images and their points change places.
        swapped = _evidence(Pair(pair.moving, pair.fixed, pair.root), field)
        if swapped is not None and swapped.error(AS_WRITTEN) < 0.9 * least:
            best = replace(best, lossless=False)
    if not evidence.unit:
        return Suspicion(best, "by the images, which fit better so", cured=True)
    told = (
        f"its landmarks are then {least:.2f} {evidence.unit} apart, {written:.2f} as it is written, {initial:.2f} without any"
    )
    return Suspicion(best, told, cured=least < CURED * initial)


def worse_than_none(pair: Pair, field: Field) -> str:
    """That landmarks say that a displacement does harm, as a sentence without its end; empty if they do not."""
    evidence = _evidence(pair, field)
    if evidence is None or not evidence.unit or not field.any():
        return ""
    written, initial = evidence.error(AS_WRITTEN), evidence.error(None)
    if written <= WORSE * initial:
        return ""
    return f"its landmarks are {written:.2f} {evidence.unit} apart, and {initial:.2f} without any displacement"


def fits_better(pair: Pair, one: Field, other: Field) -> bool:
    """Whether the first of two displacements fits a pair better, by landmarks or images; False if there are none."""
    of_one, of_other = (_evidence(pair, field) for field in (one, other))
    return of_one is not None and of_other is not None and of_one.error(AS_WRITTEN) < of_other.error(AS_WRITTEN)


def leaves_volume(field: Field) -> float:
    """The fraction of voxels that a displacement takes out of the volume."""
    points = _grid(field.shape[:3])
    positions = points + field[tuple(points.T)]
    return float(1 - ((positions >= 0) & (positions <= np.array(field.shape[:3]) - 1)).all(axis=1).mean())


def _grid(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """About ``_POINTS`` regularly spaced voxels, ``(n, 3)``."""
    step = max(1, round((np.prod(shape) / _POINTS) ** (1 / 3)))
    return np.stack(np.meshgrid(*(np.arange(0, size, step) for size in shape), indexing="ij"), axis=-1).reshape(-1, 3)


def _evidence(pair: Pair, field: Field) -> Evidence | None:
    shape = field.shape[0], field.shape[1], field.shape[2]
    for kind in (_Landmarks, _Images):
        try:
            return kind(pair, field, shape)
        except EvaluationError:
            continue
    return None


class _Landmarks:
    """The mean distance of landmarks, in mm; the field is sampled linearly, which takes no time."""

    threshold, tie, unit = LANDMARKS_DECIDE, 1.001, "mm"

    def __init__(self, pair: Pair, field: Field, shape: Shape) -> None:
        self._fixed, self._moving = read_point_pairs(pair, "landmarks", shape)
        self._field = field
        _, self._spacing_mm = read_grid(pair.moving)

    def error(self, reading: Reading | None) -> float:
        found = self._fixed
        if reading is not None:
            found = found + reading.vectors(_sample(reading.view(self._field), found))
        return float(landmark_errors(found, self._moving, self._spacing_mm).mean())

    def sure(self, reading: Reading) -> bool:
        return reading is not None


class _Images:
    """1 / (mutual information of fixed and warped intensities), at regularly spaced voxels."""

    threshold, tie, unit = IMAGES_DECIDE, 1.05, ""

    def __init__(self, pair: Pair, field: Field, shape: Shape) -> None:
        fixed, self._moving = (read_volume(path, shape) for path in (pair.fixed, pair.moving))
        grid = _grid(shape)
        seen = fixed[tuple(grid.T)] != 0  # outside the wedge of an ultrasound there is nothing to compare
        self._points, self._field = grid[seen], field
        self._bins = int(np.clip(np.sqrt(len(self._points) / 250), 4, 32))
        if len(self._points) < 10 * self._bins**2:
            raise EvaluationError("too few voxels to compare")
        self._a = _binned(fixed[tuple(self._points.T)], self._bins)
        parts = self._points * _PARTS // np.array(shape)
        self._part = np.ravel_multi_index(tuple(parts.T), (_PARTS,) * 3)
        self._enough = np.bincount(self._part, minlength=_PARTS**3) >= 100

    def error(self, reading: Reading | None) -> float:
        joint = np.bincount(self._a * self._bins + self._warped(reading, self._bins), minlength=self._bins**2)
        bias = (self._bins - 1) ** 2 / (2 * len(self._points))
        return 1 / max(float(_information(joint.reshape(1, self._bins, self._bins))[0]) - bias, 1e-9)

    def sure(self, reading: Reading) -> bool:
        """In so many parts of the volume that it cannot be chance: each of three is the best in a third of them by chance."""
        best, *others = (self._by_part(r) for r in (reading, AS_WRITTEN, None))
        won = int((best > np.maximum(*others))[self._enough].sum())
        return bool(binom.sf(won - 1, int(self._enough.sum()), 1 / 3) < CHANCE)

    def _by_part(self, reading: Reading | None) -> Array:
        bins = 6  # few: a part has few voxels
        a = self._a * bins // self._bins
        b = self._warped(reading, bins)
        joint = np.bincount((self._part * bins + a) * bins + b, minlength=_PARTS**3 * bins**2)
        return _information(joint.reshape(-1, bins, bins))

    def _warped(self, reading: Reading | None, bins: int) -> NDArray[np.int64]:
        positions = self._points.astype(np.float64)
        if reading is not None:
            # On the grid of points a field needs no interpolation, however its axes run.
            positions = positions + reading.vectors(reading.view(self._field)[tuple(self._points.T)])
        return _binned(map_coordinates(self._moving, positions.T, order=1), bins)


def _sample(field: Field, points: Array) -> Array:
    return np.stack([map_coordinates(field[..., a], points.T, order=1, mode="nearest") for a in range(3)], axis=1)


def _binned(values: Array, bins: int) -> NDArray[np.int64]:
    low, high = np.percentile(values, [1, 99])
    return np.asarray(np.clip((values - low) / max(high - low, 1e-9) * bins, 0, bins - 1), np.int64)


def _information(joint: NDArray[np.integer]) -> Array:
    """Mutual information of each of ``(n, bins, bins)`` joint histograms; 0 for an empty one."""
    p = joint / np.maximum(joint.sum(axis=(1, 2), keepdims=True), 1)
    apart = p.sum(axis=2, keepdims=True) * p.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log(p / apart), 0)
    return np.asarray(terms.sum(axis=(1, 2)))
