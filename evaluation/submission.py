"""A submission as such: what would make the organisers refuse it, and the submission of no motion at all."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from evaluation.metrics import Field, landmark_errors
from evaluation.pairs import (
    FIELD_DTYPES,
    SUFFIXES,
    UNREADABLE,
    EvaluationError,
    Pair,
    beside,
    find_field,
    load_field,
    read_affine,
    read_grid,
)
from evaluation.scoring import read_point_pairs, read_volume

Array = NDArray[np.float64]
MISREADINGS: tuple[tuple[str, Callable[[Field, Array], Field]], ...] = (
    (
        "in millimeters; the challenge wants voxels: divide component a by the spacing along axis a",
        lambda field, spacing: field / spacing.astype(field.dtype),
    ),
    (
        "with its components in the order z, y, x; component a has to move along array axis a: reverse the last axis",
        lambda field, _: field[..., ::-1],
    ),
    (
        "from moving to fixed; the challenge samples moving(p + u(p)): write the inverse field",
        lambda field, _: -field,
    ),
)
"""What a displacement may be by mistake, and the reading under which it would be right."""

AGREEMENT = 0.6
"""A misreading is suspected if the error under it is below this part of both the error as written and the initial one."""


def check(pairs: list[Pair], predictions: Path) -> list[str]:
    """All that would make the organisers refuse a submission, or score it badly by mistake: one line each, with the remedy."""
    problems: list[str] = []
    if not predictions.is_dir():
        return [f"{predictions}: expected a folder with {len(pairs)} displacement(s); write them there"]
    accepted = set()
    for pair in pairs:
        accepted |= {f"{name}{suffix}" for name in pair.field_names for suffix in SUFFIXES}
        try:
            problems += check_field(pair, find_field(predictions, pair))
        except EvaluationError as error:
            problems.append(
                f"{error}; write one for {pair.fixed.name} and {pair.moving.name}, zero if nothing better is at hand"
            )
    for path in sorted(predictions.iterdir()):
        if path.name.startswith("disp") and path.name not in accepted:
            problems.append(
                f"{path}: expected no displacement of that name; rename it or take it away: no pair of the data set asks for it"
            )
    return problems


def check_field(pair: Pair, path: Path) -> list[str]:
    """What is wrong with one displacement file, a line each.

    Raises:
        EvaluationError: if the fixed image cannot be read.
    """
    shape, spacing = read_grid(pair.fixed)
    try:
        field = load_field(path)
    except EvaluationError as error:
        return [f"{error}; write it again"]
    if field.shape != (*shape, 3):
        return [f"{path}: expected shape {(*shape, 3)}, found {field.shape}; {_shape_remedy(field.shape, shape)}"]
    problems = []
    if field.dtype not in FIELD_DTYPES:
        problems.append(f"{path}: expected float32, found {field.dtype}; convert it with astype('float32')")
    if field.dtype.kind != "f":
        return problems
    broken = field.size - int(np.isfinite(field).sum())
    if broken:
        return [
            *problems,
            f"{path}: expected finite values, found {broken} that are NaN or infinite; replace them before writing",
        ]
    if path.suffix != ".npz" and not np.allclose(read_affine(path), read_affine(pair.fixed), atol=1e-3):
        problems.append(
            f"{path}: expected the affine of {pair.fixed.name}, found another; write it with that of the fixed image"
        )
    suspected = suspect(pair, field.astype(np.float32), spacing)
    if suspected:
        problems.append(f"{path}: suspected to be {suspected}")
    return problems


def _shape_remedy(found: tuple[int, ...], shape: tuple[int, int, int]) -> str:
    if found == (3, *shape):
        return "move the components to the last axis: numpy.moveaxis(field, 0, -1)"
    if found == (*shape, 1, 3):
        return "this is how ITK writes fields, in millimeters and LPS: convert it to (H, W, D, 3) voxels"
    if sorted(found) == sorted((*shape, 3)):
        return "its axes are in another order: transpose it to that of the fixed image"
    return "resample it to the grid of the fixed image, and scale its values with it"


def suspect(pair: Pair, field: Field, spacing: Array) -> str | None:
    """Under which misreading a displacement fits far better than as it is written, if any.

    Landmarks decide where there are any; otherwise how well the moving image, warped, tells the fixed image's intensities.
    """
    error = _landmark_error(pair, spacing) or _intensity_error(pair)
    if error is None or not field.any():
        return None
    written, initial = error(field), error(np.zeros_like(field))
    for text, reading in MISREADINGS:
        read = reading(field, spacing)
        if not np.array_equal(read, field) and error(read) < AGREEMENT * min(written, initial):
            return text
    return None


def _landmark_error(pair: Pair, spacing: Array) -> Callable[[Field], float] | None:
    paths = [beside(path, "landmarks", ".csv") for path in (pair.fixed, pair.moving)]
    try:
        fixed, moving = read_point_pairs(paths[0], paths[1], read_grid(pair.fixed)[0])
    except EvaluationError:
        return None
    return lambda field: float(landmark_errors(field, fixed, moving, spacing).mean())


def _intensity_error(pair: Pair, *, step: int = 4, bins: int = 32) -> Callable[[Field], float] | None:
    """1 / (mutual information of fixed and warped intensities), on every ``step``-th voxel."""
    try:
        fixed, moving = (read_volume(path, read_grid(pair.fixed)[0]) for path in (pair.fixed, pair.moving))
    except EvaluationError:
        return None
    sample = (slice(None, None, step),) * 3
    points = np.indices(fixed.shape)[(slice(None), *sample)].astype(np.float64)
    seen = fixed[sample] != 0  # outside an ultrasound's wedge there is nothing to tell
    a = _binned(fixed[sample][seen], bins)

    def error(field: Field) -> float:
        positions = points + np.moveaxis(field[sample], -1, 0)
        b = _binned(map_coordinates(moving, positions[:, seen], order=1), bins)
        joint = np.histogram2d(a, b, bins=bins, range=[[0, bins], [0, bins]])[0] / a.size
        apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
        known = joint > 0
        return 1 / max(float((joint[known] * np.log(joint[known] / apart[known])).sum()), 1e-9)

    return error


def _binned(values: Array, bins: int) -> Array:
    low, high = np.percentile(values, [1, 99])
    return np.asarray(np.clip((values - low) / max(high - low, 1e-9) * bins, 0, bins - 1e-6))


def write_zero(pairs: list[Pair], output: Path) -> list[Path]:
    """Writes the submission of no motion: a zero field per pair, on the fixed image's grid.

    Returns:
        The files.

    Raises:
        EvaluationError: if an image cannot be read or a file not be written.
    """
    paths = []
    for pair in pairs:
        shape, _ = read_grid(pair.fixed)
        path = output / f"{pair.field_name}.nii.gz"
        field = nibabel.Nifti1Image(np.zeros((*shape, 3), dtype=np.float32), read_affine(pair.fixed))
        try:
            output.mkdir(parents=True, exist_ok=True)
            nibabel.save(field, path)
        except UNREADABLE as error:
            raise EvaluationError(f"{path}: cannot be written: {error}") from error
        paths.append(path)
    return paths
