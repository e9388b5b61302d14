"""The findings of a run: what its displacements do to images and landmarks.

``evaluation`` computes the figures that the organizers compute, so that the page agrees with the score.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from evaluation.errors import EvaluationError
from evaluation.images import read_affine
from evaluation.landmarks import read_landmarks
from evaluation.metrics import Regularity, displaced, landmark_errors, regularity
from evaluation.pairs import beside
from mcbo.core.errors import InputError, MemoryBudgetError
from mcbo.core.field import format_shape, shape_of
from mcbo.core.log import log
from mcbo.core.types import Displacement, Shape, Volume
from mcbo.dataset.learn2reg import Pair
from mcbo.geometry.grid import voxel_size_mm
from mcbo.geometry.resample import resample
from mcbo.geometry.units import MM, UNITS, Unit
from mcbo.io.files import digest, is_file
from mcbo.io.formats.parts import image_digest
from mcbo.io.images import read_any, read_intensities
from mcbo.io.microscopy.images import from_settings, name_of_image
from mcbo.io.nifti import Image, read_displacement, read_grid, read_image
from mcbo.io.source import File
from mcbo.qc.lengths import MILLIMETERS, Lengths, lengths_of
from mcbo.qc.picture import Scale
from mcbo.qc.plane import Array, nearest_axes, planes_through
from mcbo.qc.result_folder import dataset_pairs, displacement_files, input_pairs
from mcbo.qc.view import Bound, Landmarks, PairImages, View, largest_mm, make_view, pair_images
from mcbo.qc.volume import MOST_VOXELS, MOST_VOXELS_OF_ALL, SmallVolumes, make_small, warped_whole
from mcbo.report import CaseReport, RunReport, read_report

_OBLIQUE_DEGREES = 5.0
"""From this angle on, the page says that the planes are those of the grid, not of the world."""


@dataclass(frozen=True)
class PairFindings:
    """The findings about a displacement.

    Attributes:
        name: of the displacement.
        error: why there is none, or why it cannot be shown.
        notes: caveats for the reader, such as files that are missing or were changed.
        fixed, moving: names of the images.
        regularity: as ``evaluation`` measures it.
        landmarks: if there are any.
        magnitude_scale: colors of the displacement's length, mm, up to the longest vector.
        bound: the uncertainty, if the run wrote it.
        views: three planes.
        small: images and displacement for all other slices. Without the grid's affine, all three are missing.
        lengths: the unit in which lengths are shown.
    """

    name: str
    error: str | None = None
    notes: tuple[str, ...] = ()
    fixed: str = ""
    moving: str = ""
    regularity: Regularity | None = None
    landmarks: Landmarks | None = None
    magnitude_scale: Scale | None = None
    bound: Bound | None = None
    views: tuple[View, ...] = ()
    small: SmallVolumes | None = None
    lengths: Lengths = MILLIMETERS


@dataclass(frozen=True)
class CaseFindings:
    """A case: what its report says, and its pairs."""

    name: str
    report: CaseReport
    pairs: tuple[PairFindings, ...]

    @property
    def peak_memory_mb(self) -> float:
        """The highest of all stages."""
        return max((stage.peak_memory_mb for stage in self.report.stages.values()), default=0.0)


@dataclass(frozen=True)
class RunFindings:
    """A whole run. ``written_at`` is when its report was last written."""

    path: Path
    report: RunReport
    written_at: datetime
    cases: tuple[CaseFindings, ...]

    @property
    def lengths(self) -> Lengths:
        """The unit of the summary: that of all pairs, if they share one."""
        found = {pair.lengths for case in self.cases for pair in case.pairs if not pair.error}
        return found.pop() if len(found) == 1 else MILLIMETERS


def input_files(path: Path, dataset: Path | None) -> list[Path]:
    """What ``look_at`` reads besides the report and the dataset, and all results of the run; raises ``InputError``."""
    pairs = list(dataset_pairs(dataset).values()) if dataset else []
    found: list[Path] = []
    for case in read_report(path).cases.values():
        found += [*(path.parent / Path(name).name for name in case.written), *map(Path, case.inputs)]
        pairs += input_pairs(case, list(displacement_files(case))).values()
    images = [Path(image) for pair in pairs for image in (pair.fixed, pair.moving)]
    return [*found, *images, *(beside(image, "landmarks", ".csv") for image in images)]


def look_at(path: Path, *, dataset: Path | None = None) -> RunFindings:
    """Reads a report, the displacements beside it, and their images. Whatever is missing or broken becomes a note in its place.

    ``dataset`` is a JSON whose images and landmarks to use instead of those that the report names.

    Raises:
        InputError: if the report or the dataset cannot be read.
    """
    report = read_report(path)
    known = dataset_pairs(dataset) if dataset else {}
    unit = _unit_of_task(report)
    count = sum(len(displacement_files(case)) for case in report.cases.values())
    most_voxels = min(MOST_VOXELS, MOST_VOXELS_OF_ALL // max(count, 1))
    cases = []
    for name, case in report.cases.items():
        log.info("reading case %s", name)
        cases.append(CaseFindings(name, case, _look_at_case(case, path.parent, known, unit, most_voxels)))
    written_at = datetime.fromtimestamp(path.stat().st_mtime, tz=UTC)
    return RunFindings(path, report, written_at, tuple(cases))


def _unit_of_task(report: RunReport) -> Unit:
    return next((unit for unit in UNITS if unit == report.config.get("unit")), "mm")


def _look_at_case(
    case: CaseReport, folder: Path, known: dict[str, Pair], unit: Unit, most_voxels: int
) -> tuple[PairFindings, ...]:
    """Its pairs, those that failed last; ``unit`` is that of the task, ``most_voxels`` that of images in small."""
    files = displacement_files(case)
    pairs = input_pairs(case, list(files)) | known
    found = [_look_at_pair(name, file, case, folder, pairs.get(name), unit, most_voxels) for name, file in files.items()]
    stands_in = " (a {} displacement was written instead)"
    failed = [
        PairFindings(name, error=text + (stands_in.format(case.placeholder[name]) if name in case.placeholder else ""))
        for name, text in case.failed.items()
        if name not in files
    ]
    return tuple(found + failed)


def _look_at_pair(
    name: str, file: str, case: CaseReport, folder: Path, pair: Pair | None, unit: Unit, most_voxels: int
) -> PairFindings:
    path = folder / file
    try:
        displacement = read_displacement(path)
    except (InputError, MemoryBudgetError) as error:
        return PairFindings(name, error=f"The report names it, but {error}")
    if not bool(displacement.isfinite().all()) or min(shape_of(displacement)) < 5:
        shape = tuple(displacement.shape)
        return PairFindings(name, error=f"{path}: expected finite numbers on a grid of 5 voxels a side or more, found {shape}")
    notes = []
    if digest(path) != case.written.get(file):
        notes.append(f"{file} is not what the run wrote: it has changed since.")
    images = landmarks = None
    stated: Unit = "mm"
    try:
        fixed, moving, warped, stated = _read_images(pair, case, displacement, notes)
    except (InputError, MemoryBudgetError) as error:
        hint = " Name their dataset with --dataset." if case.coordinates == "voxels" else ""
        notes.append(f"No pictures of the images: {error}.{hint}")
        affine = _read_affine(path, notes)
    else:
        affine = fixed.affine
        images = pair_images(fixed.volume, moving.volume, warped)
        if case.coordinates == "voxels":  # landmarks are in voxels of a grid that both images share
            landmarks = _find_landmarks(fixed, moving, displacement, notes)
    lengths, scale, small = MILLIMETERS, None, None
    bound = _read_bound(case.files.get(name, {}), folder, shape_of(displacement), notes)
    views: tuple[View, ...] = ()
    if affine is not None:
        lengths = lengths_of(stated, unit, voxel_size_mm(affine))
        scale, views = _make_views(images, landmarks, displacement, affine, bound, notes, lengths.is_microscopy)
        small = make_small(images, displacement, affine, lengths, most_voxels=most_voxels)
    return PairFindings(
        name=name,
        notes=tuple(notes),
        fixed=_name_of(pair.fixed) if pair else "",
        moving=_name_of(pair.moving) if pair else "",
        regularity=regularity(displacement[0].movedim(0, -1).numpy()),
        landmarks=landmarks,
        magnitude_scale=scale,
        bound=bound if affine is not None else None,
        views=views,
        small=small,
        lengths=lengths,
    )


def _read_bound(files: Mapping[str, str], folder: Path, shape: Shape, notes: list[str]) -> Bound | None:
    """The uncertainty that the run wrote, if it did and it is still there."""
    if "uncertainty" not in files:
        return None
    path = folder / Path(files["uncertainty"]).name
    try:
        volume, grid = read_any(path)
    except (InputError, MemoryBudgetError) as error:
        notes.append(f"No uncertainty: {error}.")
        return None
    lengths_mm = (volume[0, 0].float() * MM[grid.unit]).numpy()
    known = np.isfinite(lengths_mm)
    if not known.any():
        notes.append("No uncertainty: the confidence is low, so that nothing is known of the errors.")
        return None
    if grid.shape != shape:
        notes.append(f"No uncertainty: {path}: expected {format_shape(shape)} voxels found {format_shape(grid.shape)}.")
        return None
    return Bound(lengths_mm, Scale("viridis", 0.0, max(float(lengths_mm[known].max()), 1e-9)))


def _name_of(file: File) -> str:
    return name_of_image(file) if isinstance(file, Path) else file.name


def _make_views(
    images: PairImages | None,
    landmarks: Landmarks | None,
    displacement: Displacement,
    affine: Array,
    bound: Bound | None,
    notes: list[str],
    is_microscopy: bool,
) -> tuple[Scale, tuple[View, ...]]:
    """The three planes, and the color scale of the displacement's length, mm, up to the longest vector."""
    angle = nearest_axes(affine)[2]
    if angle >= _OBLIQUE_DEGREES:
        direction = "axis" if is_microscopy else "anatomical direction"
        notes.append(f"The image is rotated {angle:.0f}° from the world axes; letters give the nearest {direction}.")
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    scale = Scale("cividis", 0.0, max(largest_mm(displacement, spacing_mm), 1e-6 * float(spacing_mm.min())))
    center = _center(landmarks, images, displacement)
    planes = planes_through(center, shape=shape_of(displacement), affine=affine, is_microscopy=is_microscopy)
    make = partial(make_view, spacing_mm=spacing_mm, magnitude_scale=scale, bound=bound)
    with ThreadPoolExecutor(len(planes)) as pool:
        views = pool.map(lambda plane: make(plane, displacement, images, landmarks), planes)
    return scale, tuple(views)


def _read_images(
    pair: Pair | None, case: CaseReport, displacement: Displacement, notes: list[str]
) -> tuple[Image, Image, Volume, Unit]:
    """The images of a pair on the displacement's grid, and the moving one warped, in world coordinates from its own grid.

    Returns:
        Fixed, moving, warped, and the unit of the fixed image's file.

    Raises:
        InputError: if one cannot be read or has another grid; without a full stop.
    """
    in_world = case.coordinates == "world"
    if pair is None:
        raise InputError("they were given as arrays" if in_world else "the report does not name them")
    unit: Unit = "mm"
    if in_world:
        numbers = {name: number for number, name in enumerate(case.files, 1)}
        (volume, grid), (other, its_grid) = (
            read_intensities(Path(path), from_settings(case.settings, number))
            for path, number in ((pair.fixed, 0), (pair.moving, numbers.get(pair.field_name, 0)))
        )
        _check_shape(pair.fixed, grid.shape, displacement)
        unit = grid.unit
        fixed = Image(pair.fixed, volume, grid.affine, grid.unit, image_digest(Path(pair.fixed)) or "")
        onto = resample(other, its_grid, grid)
        moving = Image(pair.moving, onto, grid.affine, grid.unit, image_digest(Path(pair.moving)) or "")
        warped = resample(other, its_grid, grid, displacement=displacement)
        if not its_grid.matches(grid):
            notes.append("The moving image has another grid; it is shown on that of the fixed image, in world coordinates.")
    else:
        for path in (pair.fixed, pair.moving):  # before they are read: whatever the report names
            _check_shape(path, read_grid(path).shape, displacement)
        fixed, moving = read_image(pair.fixed), read_image(pair.moving)
        warped = warped_whole(moving.volume, displacement)
        if not moving.grid.matches(fixed.grid):
            notes.append("The affines of the two images differ and were ignored: voxels correspond by index, as in Learn2Reg.")
    for image in (fixed, moving):
        if image.sha256 not in case.inputs.values():
            notes.append(f"{image.path} is not the image that was registered: it has changed since.")
    return fixed, moving, warped, unit


def _check_shape(path: File, shape: Shape, displacement: Displacement) -> None:
    due = shape_of(displacement)
    if shape != due:
        raise InputError(f"{path}: expected {format_shape(due)} voxels, as the displacement has, found {format_shape(shape)}")


def _read_affine(path: Path, notes: list[str]) -> Array | None:
    """Voxel to world (mm) as the displacement's file has it, or None."""
    try:
        affine = read_affine(path)
    except EvaluationError:
        affine = np.zeros((4, 4))
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine) < 4:
        notes.append(f"No pictures at all: without the fixed image, {path.name} does not give its voxel size.")
        return None
    return affine


def _find_landmarks(fixed: Image, moving: Image, displacement: Displacement, notes: list[str]) -> Landmarks | None:
    """The landmarks beside the images, if there are any, with their distances as the organizers compute them."""
    files = [beside(Path(image.path), "landmarks", ".csv") for image in (fixed, moving)]
    if not any(is_file(file) for file in files):
        return None
    try:
        points = read_landmarks(files[0], inside=shape_of(displacement), image=Path(fixed.path))
        theirs = read_landmarks(files[1], image=Path(moving.path))
    except EvaluationError as error:
        notes.append(f"No landmarks: {error}")
        return None
    if len(points) != len(theirs):
        notes.append(f"No landmarks: {files[0].name} has {len(points)}, {files[1].name} {len(theirs)}.")
        return None
    found = displaced(points, displacement[0].movedim(0, -1).numpy())
    spacing_mm = np.array(voxel_size_mm(moving.affine))
    return Landmarks(
        fixed=points,
        moving=theirs,
        found=found,
        before_mm=landmark_errors(points, theirs, spacing_mm),
        after_mm=landmark_errors(found, theirs, spacing_mm),
    )


def _center(landmarks: Landmarks | None, images: PairImages | None, displacement: Displacement) -> list[float]:
    """The voxel in which the planes meet: the middle of the landmarks, of the fixed image's field of view, or of the grid."""
    if landmarks is not None:
        return [float(x) for x in landmarks.fixed.mean(axis=0)]
    if images is not None:
        counts = [images.seen[0, 0].sum(dim=[a for a in range(3) if a != axis]).numpy() for axis in range(3)]
        return [float(np.average(np.arange(len(count)), weights=count)) for count in counts]
    return [(size - 1) / 2 for size in shape_of(displacement)]
