"""A submission as such: what would make the organizers refuse it, and the submission of no motion at all."""

import math
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from evaluation.errors import EvaluationError, reason
from evaluation.images import UNREADABLE, is_field_dtype, load_field, open_field, read_affine, read_grid, read_volume
from evaluation.metrics import Field, displaced, landmark_errors
from evaluation.pairs import SUFFIXES, Pair, find_field
from evaluation.scoring import read_point_pairs

Array = NDArray[np.float64]
Reading = Callable[[Field, Array], Field]


def _reordered(order: tuple[int, ...]) -> Reading:
    return lambda field, _: field[..., list(order)]


MISREADINGS: tuple[tuple[str, Reading], ...] = (
    (
        "in millimeters: the challenge wants voxels, so divide component a by the spacing along axis a (or else it falls short "
        "by that factor)",
        lambda field, spacing: field / spacing.astype(field.dtype),
    ),
    (
        "from moving to fixed: the challenge samples moving(p + u(p)), so write the inverse field",
        lambda field, _: -field,
    ),
    *(
        (
            f"with its components in another order: component a has to move along array axis a, so take components {order} "
            "of the last axis",
            _reordered(order),
        )
        for order in ((2, 1, 0), (1, 0, 2), (0, 2, 1), (1, 2, 0), (2, 0, 1))
    ),
)
"""What a displacement may be by mistake, and the reading under which it would be right."""

LANDMARKS_DECIDE, IMAGES_DECIDE = 0.6, 0.85
"""A misreading is suspected if the error under it is below this part of the error as written and of that without motion.
Images tell less than landmarks: on simulated ultrasound a wrong reading of the truth makes a difference of 0.70 to 0.82."""


def check(pairs: list[Pair], predictions: Path) -> list[str]:
    """All that would make the organizers refuse a submission, or score it badly by mistake: one line each, with the remedy.

    Raises:
        EvaluationError: if there is no such folder.
    """
    if not predictions.is_dir():
        raise EvaluationError(f"{predictions}: expected a folder with {len(pairs)} displacement(s), found none")
    problems: list[str] = []
    accepted = set()
    for pair in pairs:
        accepted |= {f"{name}{suffix}" for name in pair.field_names for suffix in SUFFIXES}
        try:
            shape, spacing = read_grid(pair.fixed)
            if read_grid(pair.moving)[0] != shape:
                problems.append(f"{pair.moving}: expected the grid of {pair.fixed.name}; resample it before registration")
        except EvaluationError as error:
            problems.append(f"{error}; complete the data set, without it nothing can be said of {pair.field_name}")
            continue
        try:
            problems += check_field(pair, find_field(predictions, pair), shape, spacing)
        except EvaluationError as error:
            problems.append(f"{error}; write it, with zeros if nothing better is at hand")
    for path in sorted(predictions.iterdir()):
        if path.name.startswith("disp") and path.name not in accepted:
            problems.append(
                f"{path}: expected no displacement of that name; rename it or take it away: no pair of the data set asks for it"
            )
    return problems


def check_field(pair: Pair, path: Path, shape: tuple[int, int, int], spacing: Array) -> list[str]:
    """What is wrong with one displacement file, a line each.

    Args:
        pair: whose displacement it is.
        path: of the file.
        shape: of the fixed image, voxels.
        spacing: of the fixed image, mm.
    """
    problems = []
    try:
        file = open_field(path)
        if file.shape != (*shape, 3):
            problems.append(f"{path}: expected shape {(*shape, 3)}, found {file.shape}; {_shape_remedy(file.shape, shape)}")
        if not is_field_dtype(file.dtype):
            problems.append(f"{path}: expected float32, found {file.dtype}; convert it with astype('float32')")
        if path.suffix != ".npz" and not np.allclose(read_affine(path), read_affine(pair.fixed), atol=1e-3):
            problems.append(
                f"{path}: expected the affine of {pair.fixed.name}, found another; write it with that of the fixed image"
            )
        if math.prod(file.shape) != math.prod(shape) * 3:
            return problems
        field = load_field(file)
        broken = field.size - int(np.isfinite(field).sum())
        if broken:
            problems.append(
                f"{path}: expected finite values, found {broken} that are NaN or infinite; replace them before writing"
            )
        elif field.shape == (*shape, 3) and (suspected := suspect(pair, field.astype(np.float32), spacing)):
            problems.append(f"{path}: suspected to be {suspected}")
    except EvaluationError as error:
        problems.append(f"{error}; write it again")
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
    """Under which misreading a displacement fits far better than as it is written, if any: the best one.

    Landmarks decide where there are any; otherwise how well the moving image, warped, tells the fixed image's intensities.
    """
    error, threshold = _landmark_error(pair, spacing), LANDMARKS_DECIDE
    if error is None:
        error, threshold = _intensity_error(pair), IMAGES_DECIDE
    if error is None or not field.any():
        return None
    limit = threshold * min(error(field), error(np.zeros_like(field)))
    read = ((text, reading(field, spacing)) for text, reading in MISREADINGS)
    errors = {text: error(other) for text, other in read if not np.array_equal(other, field)}
    best = min(errors, key=errors.__getitem__, default=None)
    return best if best is not None and errors[best] < limit else None


def _landmark_error(pair: Pair, spacing: Array) -> Callable[[Field], float] | None:
    try:
        paths = pair.beside("landmarks", ".csv")
        fixed, moving = read_point_pairs(paths[0], paths[1], read_grid(pair.fixed)[0])
    except EvaluationError:
        return None
    return lambda field: float(landmark_errors(displaced(fixed, field), moving, spacing).mean())


def _intensity_error(pair: Pair, *, step: int = 4, bins: int = 32) -> Callable[[Field], float] | None:
    """1 / (mutual information of fixed and warped intensities), on every ``step``-th voxel."""
    try:
        fixed, moving = (read_volume(path, read_grid(pair.fixed)[0]) for path in (pair.fixed, pair.moving))
    except EvaluationError:
        return None
    sample = (slice(None, None, step),) * 3
    points = np.mgrid[tuple(slice(0, size, step) for size in fixed.shape)].astype(np.float64)
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
            raise EvaluationError(f"{path}: cannot be written: {reason(error)}") from error
        paths.append(path)
    return paths
