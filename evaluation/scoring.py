"""Scores one pair, with every metric that its data allow."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from evaluation.errors import EvaluationError
from evaluation.images import Array, Shape, read_field, read_grid, read_labels, read_volume
from evaluation.landmarks import read_landmarks
from evaluation.metrics import (
    Field,
    Regularity,
    dices,
    displaced,
    hd95s,
    landmark_errors,
    non_diffeomorphic_volume,
    regularity,
    warp_labels,
)
from evaluation.pairs import Pair, find_field
from evaluation.settings import Method, Settings
from evaluation.tasks import METRICS

_OVERLAPS = {"dice": dices, "hd95": hd95s}

MAX_LABELS = 2**14
"""Of a label map. Atlases have hundreds; an image that is taken for labels has more."""


@dataclass
class PairScore:
    """Score of a pair; the dicts have a key per method name.

    Attributes:
        pair: the pair.
        error: why it has no score, or None.
        values: the numbers behind the score: one per landmark, per label, or a single one; NaN where a label is missing from
            an image.
        labels: the labels to which the numbers belong.
        initial: the landmark errors without any displacement, mm.
        initial_voxels, voxels: landmark errors in voxels instead of mm.
        regularity: of the displacement, if requested.
        notes: what a reader of the score should know.
    """

    pair: Pair
    error: str | None = None
    values: dict[str, list[float]] = field(default_factory=dict)
    labels: dict[str, list[int]] = field(default_factory=dict)
    initial: dict[str, list[float]] = field(default_factory=dict)
    initial_voxels: dict[str, list[float]] = field(default_factory=dict)
    voxels: dict[str, list[float]] = field(default_factory=dict)
    regularity: Regularity | None = None
    notes: list[str] = field(default_factory=list)

    def mean(self, name: str) -> float:
        """Mean of a method's numbers, without missing labels; NaN if there are none, or if it is infinite."""
        values = np.array(self.values.get(name, ()), dtype=np.float64)
        values = values[~np.isnan(values)]
        return float(values.mean()) if values.size and np.isfinite(values).all() else math.nan


def score_pair(pair: Pair, predictions: Path, settings: Settings) -> PairScore:
    """Scores a pair. It raises no EvaluationError: the message becomes the ``error`` of the score."""
    return score_field(pair, lambda shape: read_field(find_field(predictions, pair), shape=shape), settings)


def score_field(pair: Pair, read: Callable[[Shape], Field], settings: Settings) -> PairScore:
    """As ``score_pair``; ``read`` returns the displacement ``(H, W, D, 3)`` for a fixed image of a shape."""
    score = PairScore(pair)
    try:
        shape, _ = read_grid(pair.fixed)
        displacement = read(shape)
        for method in settings.methods:
            if method.metric == "tre":
                _score_points(score, method, displacement, shape, settings)
        if any(METRICS[method.metric].component == "regularity" for method in settings.methods):
            _score_regularity(score, displacement, settings)
        if any(method.metric in _OVERLAPS for method in settings.methods):
            _score_overlaps(score, displacement, shape, settings)
    except EvaluationError as error:
        score = PairScore(pair, error=str(error))
    except OSError as error:  # of a folder that must not be looked into
        score = PairScore(pair, error=str(EvaluationError(f"{error.filename}: cannot be read: {error.strerror}")))
    return score


def _score_points(score: PairScore, method: Method, displacement: Field, shape: Shape, settings: Settings) -> None:
    fixed_path, moving_path = score.pair.beside(method.points, ".csv")
    if not settings.required and not fixed_path.exists() and not moving_path.exists():
        return
    fixed, moving = read_point_pairs(score.pair, method.points, shape)
    _, spacing_mm = read_grid(score.pair.moving)
    found = displaced(fixed, displacement)
    score.initial[method.name] = landmark_errors(fixed, moving, spacing_mm).tolist()
    score.values[method.name] = landmark_errors(found, moving, spacing_mm).tolist()
    score.initial_voxels[method.name] = landmark_errors(fixed, moving, np.ones(3)).tolist()
    score.voxels[method.name] = landmark_errors(found, moving, np.ones(3)).tolist()


def read_point_pairs(pair: Pair, kind: str, shape: Shape) -> tuple[Array, Array]:
    """Corresponding points of both images, each ``(n, 3)`` voxels, in the folder of their kind.

    Raises:
        EvaluationError: if they cannot be read, or their numbers differ.
    """
    fixed_path, moving_path = pair.beside(kind, ".csv")
    fixed = read_landmarks(fixed_path, inside=shape, image=pair.fixed)
    moving = read_landmarks(moving_path, image=pair.moving)  # these may lie outside the moving image
    if len(fixed) != len(moving):
        found = f"{len(fixed)}, found {len(moving)}"
        raise EvaluationError(f"{moving_path}: expected as many points as {fixed_path.name} has, {found}")
    return fixed, moving


def _score_regularity(score: PairScore, displacement: Field, settings: Settings) -> None:
    mask_path, _ = score.pair.beside("masks")
    mask = None
    if settings.masked and mask_path.exists():
        mask = read_volume(mask_path, displacement.shape[:3]) != 0
    elif settings.masked:
        score.notes.append(f"SDlogJ and NDV of the whole volume: there is no mask {mask_path.name}")
    for method in settings.methods:
        if method.metric == "sdlogj":
            score.regularity = regularity(displacement, mask)
            score.values[method.name] = [score.regularity.sd_log_jacobian]
        elif method.metric == "ndv":
            score.values[method.name] = [non_diffeomorphic_volume(displacement, mask)]
    if score.regularity and math.isnan(score.regularity.sd_log_jacobian):
        score.notes.append("no SDlogJ: no voxel (inside the mask, if there is one) lies at least two voxels from every face")


def _score_overlaps(score: PairScore, displacement: Field, shape: Shape, settings: Settings) -> None:
    paths = score.pair.beside("labels")
    if not settings.required and not any(path.exists() for path in paths):
        return
    numbers, (fixed, moving) = _numbered(paths, shape)
    warped = warp_labels(moving, displacement, outside=numbers.get(0, 0))
    for method in settings.methods:
        if method.metric not in _OVERLAPS:
            continue
        name = method.name
        labels = list(method.labels) if method.labels is not None else sorted(n for n in numbers if n != 0)
        known = [n for n in labels if n in numbers]
        measured = dict(zip(known, _OVERLAPS[method.metric](fixed, warped, [numbers[n] for n in known]), strict=True))
        # A label that is missing from one of the two says nothing about the registration: NaN, as in the official programs.
        score.values[name] = [measured.get(n, math.nan) for n in labels]
        score.labels[name] = labels
        missing = [n for n in labels if n not in measured]
        if missing or not labels:
            score.notes.append(f"{name}: labels {missing or 'of any kind'} are not in both images, and do not count")
        if any(map(math.isinf, score.values[name])):
            score.notes.append(f"{name}: no number, because a label was moved out of the volume (infinite distance)")


def _numbered(paths: tuple[Path, Path], shape: Shape) -> tuple[dict[int, int], tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Two label maps with labels numbered from 1 on, and the numbers of those that both have; 0 stands for all others.

    However large labels are, numbers stay small, and can be counted.

    Raises:
        EvaluationError: if a map cannot be read, or has too many labels.
    """
    found = []
    for path in paths:
        codes, values = pd.factorize(read_labels(path, shape).ravel())
        if len(values) > MAX_LABELS:
            raise EvaluationError(f"{path}: expected at most {MAX_LABELS} labels, found {len(values)}; is it an image?")
        found.append((codes, values))
    both = np.intersect1d(found[0][1], found[1][1])
    fixed, moving = (
        np.where(np.isin(values, both), 1 + np.searchsorted(both, values), 0).astype(np.int32)[codes].reshape(shape)
        for codes, values in found
    )
    return {int(label): number for number, label in enumerate(both, start=1)}, (fixed, moving)
