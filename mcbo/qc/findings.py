"""What there is to tell of a run: what its displacements do to images and landmarks.

Figures that the organizers compute are computed by ``evaluation``, so that the page and the score are the same.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from evaluation.errors import EvaluationError
from evaluation.images import read_affine
from evaluation.landmarks import read_landmarks
from evaluation.metrics import Regularity, displaced, landmark_errors, regularity
from evaluation.pairs import beside
from mcbo.core.errors import InputError
from mcbo.core.field import shape_of
from mcbo.core.log import log
from mcbo.core.types import Displacement, Volume
from mcbo.dataset.learn2reg import Pair
from mcbo.geometry.resample import resample
from mcbo.io.files import digest
from mcbo.io.images import read_intensities, spacing_of
from mcbo.io.nifti import Image, read_displacement, read_image
from mcbo.qc.picture import Scale
from mcbo.qc.plane import Array, nearest_axes, planes_through
from mcbo.qc.result_folder import dataset_pairs, displacement_files, input_pairs
from mcbo.qc.view import Landmarks, PairImages, View, largest_mm, make_view, pair_images
from mcbo.report import CaseReport, RunReport, read_report

_OBLIQUE_DEGREES = 5.0
"""From here on it is said that the planes are those of the grid, not of the world."""


@dataclass(frozen=True)
class PairFindings:
    """What there is to tell of a displacement.

    Attributes:
        name: of the displacement.
        error: why there is none, or why it cannot be shown.
        notes: what a reader has to know: files that are gone or changed, and so on.
        fixed, moving: names of the images.
        regularity: as ``evaluation`` measures it.
        landmarks: where they were found.
        magnitude_scale: of the maps of the displacement's length, mm, up to the longest vector.
        views: three planes; these two are missing where the grid in the world is unknown.
    """

    name: str
    error: str | None = None
    notes: tuple[str, ...] = ()
    fixed: str = ""
    moving: str = ""
    regularity: Regularity | None = None
    landmarks: Landmarks | None = None
    magnitude_scale: Scale | None = None
    views: tuple[View, ...] = ()


@dataclass(frozen=True)
class CaseFindings:
    """A case: what its report says, and its pairs."""

    name: str
    report: CaseReport
    pairs: tuple[PairFindings, ...]

    @property
    def peak_memory_mb(self) -> float:
        """The highest of its stages."""
        return max((stage.peak_memory_mb for stage in self.report.stages.values()), default=0.0)


@dataclass(frozen=True)
class RunFindings:
    """A whole run. ``written_at`` is when its report was last written."""

    path: Path
    report: RunReport
    written_at: datetime
    cases: tuple[CaseFindings, ...]


@dataclass
class _Collected:
    """What is gathered of a pair on the way."""

    notes: list[str] = field(default_factory=list)
    fixed: Image | None = None
    moving: Image | None = None
    warped: Volume | None = None


def look_at(path: Path, *, dataset: Path | None = None) -> RunFindings:
    """Reads a report and all that it speaks of. What is gone or broken is noted where it would have been shown.

    Args:
        path: of the report; displacements lie beside it.
        dataset: dataset JSON whose images and landmarks to take, instead of those that the report names.

    Raises:
        InputError: if the report or the dataset cannot be read.
    """
    report = read_report(path)
    known = dataset_pairs(dataset) if dataset else {}
    cases = []
    for name, case in report.cases.items():
        log.info("looking at case %s", name)
        cases.append(CaseFindings(name, case, look_at_case(case, path.parent, known)))
    written_at = datetime.fromtimestamp(path.stat().st_mtime, tz=UTC)
    return RunFindings(path, report, written_at, tuple(cases))


def look_at_case(case: CaseReport, folder: Path, known: dict[str, Pair]) -> tuple[PairFindings, ...]:
    """Its pairs, those that failed last."""
    files = displacement_files(case)
    pairs = input_pairs(case, list(files)) | known
    found = [_look_at_pair(name, file, case, folder, pairs.get(name)) for name, file in files.items()]
    stands_in = " (a {} displacement was written instead)"
    failed = [
        PairFindings(name, error=text + (stands_in.format(case.placeholder[name]) if name in case.placeholder else ""))
        for name, text in case.failed.items()
        if name not in files
    ]
    return tuple(found + failed)


def _look_at_pair(name: str, file: str, case: CaseReport, folder: Path, pair: Pair | None) -> PairFindings:
    """All there is to tell of one displacement."""
    path = folder / file
    try:
        displacement = read_displacement(path)
    except InputError as error:
        return PairFindings(name, error=f"The report names it, but {error}")
    if not bool(displacement.isfinite().all()) or min(shape_of(displacement)) < 5:
        shape = tuple(displacement.shape)
        return PairFindings(name, error=f"{path}: expected finite numbers on a grid of 5 voxels a side or more, found {shape}")
    collected = _Collected()
    if digest(path) != case.written.get(file):
        collected.notes.append(f"{file} is not what the run wrote: it was changed since.")
    (_read_placed if case.coordinates == "world" else _read_images)(collected, pair, case, displacement)
    # Landmarks are in voxels of a grid that both images share.
    landmarks = _find_landmarks(collected, pair, displacement) if pair and case.coordinates == "voxels" else None
    affine = _grid_affine(collected, path)
    scale, views = (None, ()) if affine is None else _show(collected, landmarks, displacement, affine)
    return PairFindings(
        name=name,
        notes=tuple(collected.notes),
        fixed=pair.fixed.name if pair else "",
        moving=pair.moving.name if pair else "",
        regularity=regularity(displacement[0].movedim(0, -1).numpy()),
        landmarks=landmarks,
        magnitude_scale=scale,
        views=views,
    )


def _show(
    collected: _Collected, landmarks: Landmarks | None, displacement: Displacement, affine: Array
) -> tuple[Scale, tuple[View, ...]]:
    """The planes, and the colors of the displacement's length, whose high end is the longest."""
    angle = nearest_axes(affine)[2]
    if angle >= _OBLIQUE_DEGREES:
        collected.notes.append(
            f"The grid is turned by {angle:.0f}° against the world's axes: letters name the nearest direction."
        )
    images = None
    if collected.fixed and collected.moving:
        images = pair_images(collected.fixed.volume, collected.moving.volume, warped=collected.warped)
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    scale = Scale("cividis", 0.0, max(largest_mm(displacement, spacing_mm), 1e-6))
    planes = planes_through(_center(landmarks, images, displacement), shape=shape_of(displacement), affine=affine)
    views = [
        make_view(plane, displacement, images, landmarks, spacing_mm=spacing_mm, magnitude_scale=scale) for plane in planes
    ]
    return scale, tuple(views)


def _read_images(collected: _Collected, pair: Pair | None, case: CaseReport, displacement: Displacement) -> None:
    """Reads the images of a pair, if they are there and on the displacement's grid."""
    if pair is None:
        collected.notes.append("No pictures of the images: the report does not tell which they were. --dataset can.")
        return
    shape = shape_of(displacement)
    images = []
    for path in (pair.fixed, pair.moving):
        try:
            image = read_image(path)
        except InputError as error:
            collected.notes.append(f"No pictures of the images: {error}. --dataset can tell where they are now.")
            return
        if shape_of(image.volume) != shape:
            collected.notes.append(
                f"No pictures of the images: {path} has {shape_of(image.volume)} voxels, the displacement {shape}."
            )
            return
        images.append(image)
        if digest(path) not in case.inputs.values():
            collected.notes.append(f"{path} is not the image that was registered: it was changed since.")
    collected.fixed, collected.moving = images
    if not np.allclose(images[0].affine, images[1].affine, atol=1e-3):
        collected.notes.append("The affines of the two images differ: they were taken voxel by voxel, as the challenge does.")


def _read_placed(collected: _Collected, pair: Pair | None, case: CaseReport, displacement: Displacement) -> None:
    """The same for images that were registered where they lie in the world: the moving one is brought onto the fixed grid."""
    if pair is None:
        collected.notes.append("No pictures of the images: they were given as arrays, not as files.")
        return
    spacing = case.settings.get("spacing")
    spacing_mm = spacing_of(spacing) if isinstance(spacing, str) else None
    try:
        (fixed, grid), (moving, its_grid) = (
            read_intensities(Path(path), spacing_mm=spacing_mm) for path in (pair.fixed, pair.moving)
        )
    except InputError as error:
        collected.notes.append(f"No pictures of the images: {error}.")
        return
    if grid.shape != shape_of(displacement):
        collected.notes.append(f"No pictures of the images: {pair.fixed} has {grid.shape} voxels, the displacement others.")
        return
    for path in (pair.fixed, pair.moving):
        if digest(path) not in case.inputs.values():
            collected.notes.append(f"{path} is not the image that was registered: it was changed since.")
    collected.fixed = Image(pair.fixed, fixed, grid.affine)
    collected.moving = Image(pair.moving, resample(moving, its_grid, grid), grid.affine)
    collected.warped = resample(moving, its_grid, grid, displacement=displacement)
    if not its_grid.matches(grid):
        collected.notes.append(
            "The moving image has a grid of its own; it is shown on the fixed image's, as both lie in the world."
        )


def _grid_affine(collected: _Collected, path: Path) -> Array | None:
    """Voxel to world of the displacement's grid: the fixed image's, else as the file says."""
    if collected.fixed is not None:
        return collected.fixed.affine
    try:
        affine = read_affine(path)
    except EvaluationError:
        affine = np.zeros((4, 4))
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine) < 4:
        collected.notes.append(f"No pictures at all: without the fixed image, {path.name} does not tell its voxel size.")
        return None
    return affine


def _find_landmarks(collected: _Collected, pair: Pair, displacement: Displacement) -> Landmarks | None:
    """The landmarks beside the images, if there are any, with their distances as the organizers compute them."""
    files = [beside(Path(path), "landmarks", ".csv") for path in (pair.fixed, pair.moving)]
    if collected.moving is None or not any(file.exists() for file in files):
        return None
    try:
        fixed = read_landmarks(files[0], inside=shape_of(displacement))
        moving = read_landmarks(files[1])
    except EvaluationError as error:
        collected.notes.append(f"No landmarks: {error}")
        return None
    if len(fixed) != len(moving):
        collected.notes.append(f"No landmarks: {files[0].name} has {len(fixed)}, {files[1].name} {len(moving)}.")
        return None
    found = displaced(fixed, displacement[0].movedim(0, -1).numpy())
    spacing_mm = np.array(collected.moving.spacing_mm)
    return Landmarks(
        fixed=fixed,
        moving=moving,
        found=found,
        before_mm=landmark_errors(fixed, moving, spacing_mm),
        after_mm=landmark_errors(found, moving, spacing_mm),
    )


def _center(landmarks: Landmarks | None, images: PairImages | None, displacement: Displacement) -> list[float]:
    """The voxel that the planes meet in: the middle of the landmarks, of what the fixed image shows, or of the grid."""
    if landmarks is not None:
        return [float(x) for x in landmarks.fixed.mean(axis=0)]
    if images is not None:
        counts = [images.seen[0, 0].sum(dim=[a for a in range(3) if a != axis]).numpy() for axis in range(3)]
        return [float(np.average(np.arange(len(count)), weights=count)) for count in counts]
    return [(size - 1) / 2 for size in shape_of(displacement)]
