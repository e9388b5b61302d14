"""Checks a submission as the organizers would, and writes the submission of zero displacements."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
from scipy.ndimage import map_coordinates

from evaluation.errors import EvaluationError, reason
from evaluation.images import (
    UNREADABLE,
    Array,
    Shape,
    field_problems,
    load_field,
    open_field,
    read_affine,
    read_grid,
    read_volume,
)
from evaluation.metrics import Field, displaced, landmark_errors
from evaluation.pairs import Pair, find_field
from evaluation.scoring import read_point_pairs


def _reorder(order: tuple[int, ...], field: Field, _: Array) -> Field:
    return field[..., list(order)]


MISREADINGS: dict[str, Callable[[Field, Array], Field]] = {
    "in millimeters: the challenge wants voxels, so divide component a by the spacing along axis a (unless it is simply too "
    "small by that factor)": lambda field, spacing: field / spacing.astype(field.dtype),
    "from moving to fixed: the challenge samples moving(p + u(p)), so write the inverse field": lambda field, _: -field,
} | {
    "with its components in another order: component a has to move along array axis a, so take components "
    f"{order} of the last axis": partial(_reorder, order)
    for order in ((2, 1, 0), (1, 0, 2), (0, 2, 1), (1, 2, 0), (2, 0, 1))
}
"""How a displacement may have been written by mistake, and the function of it and the spacing that corrects it."""

LANDMARKS_DECIDE, IMAGES_DECIDE = 0.6, 0.85
"""A mistake is suspected if correcting it gives less than this fraction of the error as written and of the initial error.
Images show less than landmarks: on simulated ultrasound a wrong reading of the truth makes a difference of 0.70 to 0.82."""

_STEP, _BINS = 4, 32
"""For mutual information: every so many voxels along each axis, and bins of the histogram along each."""


def check(pairs: list[Pair], predictions: Path) -> list[str]:
    """Everything for which the organizers would refuse a folder of displacements, or score it badly: a line each."""
    problems: list[str] = []
    for pair in pairs:
        try:
            shape, spacing = read_grid(pair.fixed)
            if read_grid(pair.moving)[0] != shape:
                problems.append(f"{pair.moving}: expected the grid of {pair.fixed.name}; resample it before registration")
        except EvaluationError as error:
            problems.append(f"{error}; complete the data set: {pair.field_name} cannot be checked without it")
            continue
        try:
            path = find_field(predictions, pair)
        except EvaluationError as error:
            problems.append(f"{error}; write it, with zeros if there is nothing better")
            continue
        try:
            problems.extend(_field_problems(pair, path, shape, spacing))  # keeps those before an error
        except EvaluationError as error:
            problems.append(f"{error}; correct it and write it again")
    accepted = {name for pair in pairs for name in pair.field_files}
    problems += [
        f"{path}: expected no displacement of that name; rename it or remove it: no pair of the data set asks for it"
        for path in sorted(predictions.iterdir())
        if path.name.startswith("disp") and path.name not in accepted
    ]
    return problems


def _field_problems(pair: Pair, path: Path, shape: Shape, spacing: Array) -> Iterator[str]:
    """Yields what is wrong with a displacement file; shape and spacing (mm) are the fixed image's."""
    file = open_field(path)
    yield from field_problems(file, shape)
    if path.suffix != ".npz" and not np.allclose(read_affine(path), read_affine(pair.fixed), atol=1e-3):
        yield f"{path}: expected the affine of {pair.fixed.name}, found another; write it with that of the fixed image"
    if math.prod(file.shape) == math.prod(shape) * 3:
        field = load_field(file)
        if field.shape == (*shape, 3) and (mistake := suspect(pair, field, spacing)):
            yield f"{path}: suspected to be {mistake}"


def suspect(pair: Pair, field: Field, spacing: Array) -> str | None:
    """The mistake whose correction makes a displacement fit far better than as it is written, if any: the best one.

    Landmarks decide where there are any; otherwise the mutual information of the fixed and the warped moving image.
    """
    error, threshold = _landmark_error(pair, field.shape[:3], spacing), LANDMARKS_DECIDE
    if error is None:
        error, threshold = _intensity_error(pair, field.shape[:3]), IMAGES_DECIDE
    if error is None or not field.any():
        return None
    limit = threshold * min(error(field), error(np.zeros_like(field)))
    read = ((text, correct(field, spacing)) for text, correct in MISREADINGS.items())
    errors = {text: error(other) for text, other in read if not np.array_equal(other, field)}
    best = min(errors, key=errors.__getitem__, default=None)
    return best if best is not None and errors[best] < limit else None


def _landmark_error(pair: Pair, shape: Shape, spacing: Array) -> Callable[[Field], float] | None:
    try:
        fixed, moving = read_point_pairs(pair, "landmarks", shape)
    except EvaluationError:
        return None
    return lambda field: float(landmark_errors(displaced(fixed, field), moving, spacing).mean())


def _intensity_error(pair: Pair, shape: Shape) -> Callable[[Field], float] | None:
    """1 / (mutual information of fixed and warped intensities), on every ``_STEP``-th voxel along each axis."""
    try:
        fixed, moving = (read_volume(path, shape) for path in (pair.fixed, pair.moving))
    except EvaluationError:
        return None
    sample = (slice(None, None, _STEP),) * 3
    points = np.mgrid[tuple(slice(0, size, _STEP) for size in shape)].astype(np.float64)
    seen = fixed[sample] != 0  # outside the wedge of an ultrasound there is nothing to compare
    a = _binned(fixed[sample][seen])

    def error(field: Field) -> float:
        positions = points + np.moveaxis(field[sample], -1, 0)
        b = _binned(map_coordinates(moving, positions[:, seen], order=1))
        joint = np.histogram2d(a, b, bins=_BINS, range=[[0, _BINS], [0, _BINS]])[0] / a.size
        apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
        known = joint > 0
        return 1 / max(float((joint[known] * np.log(joint[known] / apart[known])).sum()), 1e-9)

    return error


def _binned(values: Array) -> Array:
    low, high = np.percentile(values, [1, 99])
    return np.asarray(np.clip((values - low) / max(high - low, 1e-9) * _BINS, 0, _BINS - 1e-6))


def write_zero(pairs: list[Pair], output: Path) -> None:
    """Writes a zero displacement per pair, on the fixed image's grid.

    Raises:
        EvaluationError: if an image cannot be read or a file cannot be written.
    """
    for pair in pairs:
        shape, _ = read_grid(pair.fixed)
        path = output / f"{pair.field_name}.nii.gz"
        field = nibabel.Nifti1Image(np.zeros((*shape, 3), dtype=np.float32), read_affine(pair.fixed))
        try:
            output.mkdir(parents=True, exist_ok=True)
            nibabel.save(field, path)
        except UNREADABLE as error:
            raise EvaluationError(f"{path}: cannot be written: {reason(error)}") from error
