"""Rigid motions worth following up, and what the same search finds where there is nothing to find.

The poses of a coarse search (``initialization.py``) and no motion are improved by Gauss–Newton (``rigid_refinement.py``) on a
coarse grid. The same is done with the moving images mirrored: they have the same texture, contrast and field of view, but
nothing in them belongs where it lies. So their best scores say what a search finds by chance in this very pair, and the score
of a right motion is far above them.
"""

import math
import statistics
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mcbo.core.field import shape_of
from mcbo.core.types import Features, Kernels, Mask, Triple, Volume
from mcbo.geometry import cells, rigid
from mcbo.methods.memory_model import pose_bytes
from mcbo.steps.gauss_newton import Modality
from mcbo.steps.initialization import BATCH_BYTES, Coarse, InitializationSettings, Pose, motions_of
from mcbo.steps.mind import MindSettings
from mcbo.steps.rigid_refinement import refine_rigid

GAIN = 0.001
"""Similarity: a round that gains less is the last."""
SAME = 0.005
"""Similarity: searches that end in the same place differ by less, and the first of them is taken, whatever rounding does."""
SPREAD = 0.01, 0.03
"""Bounds of the spread of scores found by chance: of so few, it is not known well."""
_TAIL = 4.0
"""Degrees of freedom of the prior: as in a t distribution, so that strong evidence overrules it."""


@dataclass(frozen=True)
class Expected:
    """How far apart images are before registration, for most pairs: the scale of a prior with heavy tails.

    Attributes:
        voxels: of the center of the fixed field of view, in the shortest side of a voxel; ...
        mm: ... or in millimeters, if not None.
        degrees: of the rotation.
    """

    voxels: float
    mm: float | None
    degrees: float

    def shift_mm(self, spacing_mm: Triple) -> float:
        """The expected shift, mm."""
        return self.voxels * min(spacing_mm) if self.mm is None else self.mm

    def log_prior(self, motion: rigid.Rigid, center_mm: Tensor, spacing_mm: Triple) -> float:
        """Log probability density of a motion, relative to none: at most 0."""
        shift = float((motion.apply(center_mm[None])[0] - center_mm).norm())
        cosine = (float(torch.trace(motion.rotation)) - 1) / 2
        degrees = math.degrees(math.acos(min(max(cosine, -1.0), 1.0)))
        away, turned = shift / self.shift_mm(spacing_mm), degrees / self.degrees
        squared = away * away + turned * turned  # which may be infinite, where ** raises an error
        return -(_TAIL + 6) / 2 * math.log1p(squared / _TAIL)


@dataclass(frozen=True)
class OverviewSettings:
    """On what, and how, motions are refined and compared.

    Attributes:
        cells: along the longest side of the overview.
        mind: its features, cells of it.
        pooled: of these, along each axis, make a cell of the grid that is refined on.
        rounds: how often images are warped again.
        iterations: of Gauss–Newton in each round.
    """

    cells: int
    mind: MindSettings
    pooled: int
    rounds: int
    iterations: int


@dataclass(frozen=True)
class HypothesisSettings:
    """Settings of this step.

    Attributes:
        overview: for all motions.
        closer: for the best one of each search, where it is not clear whether something was found: ...
        unsure: ... between these numbers of standard deviations above chance.
        mirrors: axes along which moving images are mirrored, for each of the searches by chance.
    """

    overview: OverviewSettings
    closer: OverviewSettings
    unsure: tuple[float, float]
    mirrors: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Chance:
    """Scores of searches where there is nothing to find.

    Attributes:
        scores: at least three.
        compared: by how many cells. Of few, the score of any motion is uncertain by about one over twice their root.
    """

    scores: tuple[float, ...]
    compared: int

    @property
    def _least(self) -> float:
        return max(SPREAD[0], 0.5 / math.sqrt(self.compared))

    def deviations(self, score: float) -> float:
        """How many standard deviations a score is above the best found by chance.

        The best may stand out, as a mirrored brain is a little like a brain; the deviation is that of the others.
        """
        *others, best = sorted(self.scores)
        return (score - best) / max(min(statistics.stdev(others), SPREAD[1]), self._least)

    def deviations_from_mean(self, score: float) -> float:
        """The same, above their mean."""
        return (score - statistics.fmean(self.scores)) / max(statistics.stdev(self.scores), self._least)


@dataclass(frozen=True)
class Hypotheses:
    """What a search found.

    Attributes:
        motions: of the fixed points, mm; the first was found from no motion.
        scores: of each.
        best: number of the most probable motion, given scores and prior.
        deviations: by how many standard deviations it is above the best found by chance.
        deviations_nearby: the same of the motion found from no motion, above what chance finds there on average.
    """

    motions: tuple[rigid.Rigid, ...]
    scores: tuple[float, ...]
    best: int
    deviations: float
    deviations_nearby: float


def find_hypotheses(
    fixed: Volume,
    mask: Mask,
    movings: Sequence[Volume],
    masks: Sequence[Mask],
    *,
    spacing_mm: Triple,
    start: InitializationSettings | None,
    settings: HypothesisSettings,
    expected: Expected,
    kernels: Kernels,
) -> Hypotheses:
    """Searches for the rigid motion of the fixed points, and by chance.

    ``mask`` belongs to the fixed image, ``masks`` to the moving ones; images and masks are ``(1, 1, H, W, D)``, of one shape.
    Without ``start``, only from no motion.
    """
    look = partial(Overview, fixed, mask, movings, masks, spacing_mm=spacing_mm, kernels=kernels)
    overview = look(settings=settings.overview)
    about = overview.moving_center_mm()
    mirrors = [(), *settings.mirrors]
    starts = [[Pose((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), mirror)] for mirror in mirrors]
    if start:
        coarse = Coarse(fixed, mask, movings, masks, spacing_mm=spacing_mm, size=start.cells, kernels=kernels, mirror_mm=about)
        starts = [none + far for none, far in zip(starts, coarse.best_poses(start, mirrors), strict=True)]
    poses = [pose for some in starts for pose in some]
    refined = iter(overview.refine(motions_of(poses, shape_of(fixed), spacing_mm, mirror_mm=about)))
    found, *by_chance = ([next(refined) for _ in some] for some in starts)
    scores, moved = map(list, zip(*found, strict=True))
    best_by_chance = [max(some, key=lambda item: item[0]) for some in by_chance]
    chance = Chance(tuple(score for score, _ in best_by_chance), overview.compared)
    nearby = Chance(tuple(some[0][0] for some in by_chance), overview.compared)
    center = overview.center_mm()

    def log_posterior(number: int, less: float = 0.0) -> float:
        above = chance.deviations_from_mean(scores[number] - less)
        return above * abs(above) / 2 + expected.log_prior(moved[number], center, spacing_mm)

    best = 0
    for number in range(1, len(moved)):
        if log_posterior(number, SAME) > log_posterior(best):
            best = number
    deviations = chance.deviations(scores[best])
    least, most = settings.unsure
    if least < deviations < most:
        motions = rigid.stacked([moved[best], *(motion for _, motion in best_by_chance)])
        closer = look(settings=settings.closer)
        (score, moved[best]), *others = closer.refine(motions)
        deviations = Chance(tuple(other for other, _ in others), closer.compared).deviations(score)
    return Hypotheses(tuple(moved), tuple(scores), best, deviations, nearby.deviations_from_mean(scores[0]))


class Overview:
    """Images pooled to a grid that is nearly isotropic in millimeters, and their features, pooled once more."""

    def __init__(
        self,
        fixed: Volume,
        mask: Mask,
        movings: Sequence[Volume],
        masks: Sequence[Mask],
        *,
        spacing_mm: Triple,
        settings: OverviewSettings,
        kernels: Kernels,
    ) -> None:
        self._settings, self._kernels = settings, kernels
        sides = list(zip(shape_of(fixed), spacing_mm, strict=True))
        self._spacing = steps = cells.isotropic_spacing(shape_of(fixed), spacing_mm, settings.cells)
        self.voxel_mm = steps[0] * spacing_mm[0], steps[1] * spacing_mm[1], steps[2] * spacing_mm[2]
        groups = [
            min(max(1, round(settings.pooled * min(self.voxel_mm) / mm)), math.ceil(n / step))
            for mm, (n, _), step in zip(self.voxel_mm, sides, steps, strict=True)
        ]
        self._grouping = groups[0], groups[1], groups[2]
        self.fixed, self.known = self._pool(fixed, mask)
        self.movings = [self._pool(moving, m) for moving, m in zip(movings, masks, strict=True)]
        mind = settings.mind
        self._variances = [
            kernels.variance_of(moving, radius=mind.radius, dilation=mind.dilation) for moving, _ in self.movings
        ]
        self.shape = shape_of(self.fixed)
        self.look_at(self.fixed)
        axes = cells.cell_centers(self.shape, self._grouping, device=fixed.device)
        voxel_mm = torch.tensor(self.voxel_mm, dtype=torch.float64, device=fixed.device)
        origin = torch.tensor(  # cells are centered on the volume, and reach over it where they do not fit
            [
                ((n - 1) - (cell_count - 1) * step) / 2 * s
                for (n, s), cell_count, step in zip(sides, self.shape, steps, strict=True)
            ],
            dtype=torch.float64,
        )
        self._origin_mm = origin
        self._first_mm = torch.stack([places[0] for places in axes]) * voxel_mm
        self._cell_mm = torch.tensor(self._grouping, dtype=torch.float64, device=fixed.device) * voxel_mm

    def look_at(self, fixed: Volume) -> None:
        """Takes another image, ``(1, 1, h, w, d)`` on the grid of the overview, for the fixed one."""
        self._features, self._share = self._features_of(fixed, self.known)

    def center_mm(self) -> Tensor:
        """The center of the fixed field of view, ``(3,)`` float64, mm of the whole volume."""
        center = self._first_mm + self._cell_mm * cells.center_of(self._share)
        return center.cpu() + self._origin_mm

    @property
    def compared(self) -> int:
        """Cells that are compared."""
        return math.prod(shape_of(self._features))

    def moving_center_mm(self) -> Triple:
        """The center of what is known of the moving images, mm from that of the whole volume."""
        weights = sum((known for _, known in self.movings), start=torch.zeros_like(self.known))
        center = cells.center_of(weights).tolist()
        x, y, z = ((place - (n - 1) / 2) * mm for place, n, mm in zip(center, shape_of(weights), self.voxel_mm, strict=True))
        return x, y, z

    def refine(self, motions: rigid.Rigid) -> list[tuple[float, rigid.Rigid]]:
        """Improves B motions of the fixed points, mm of the whole volume: each one's best score, and its motion."""
        most = min(self._kernels.batch, max(int(BATCH_BYTES / pose_bytes(self.shape)), 1))
        numbers = list(range(len(motions.rotation)))
        batches = self._kernels.in_turns(lambda some: self._refine(motions[some]), numbers, most)
        return [found for batch in batches for found in batch]

    def _refine(self, motions: rigid.Rigid) -> Generator[None, None, list[tuple[float, rigid.Rigid]]]:
        """Yields between rounds, when it holds nothing but motions."""
        motions = self._shifted(motions, -1)
        best = [(-math.inf, motions[number]) for number in range(len(motions.rotation))]
        climbing = list(range(len(best)))
        for rounds_left in reversed(range(self._settings.rounds + 1)):
            climbing, motions = self._round(climbing, motions, best, last=rounds_left == 0)
            if not climbing:
                break
            yield
        return [(score, self._shifted(motion, 1)) for score, motion in best]

    def _round(
        self, climbing: list[int], motions: rigid.Rigid, best: list[tuple[float, rigid.Rigid]], *, last: bool
    ) -> tuple[list[int], rigid.Rigid]:
        """Scores motions, whose numbers are ``climbing``, and notes the best of each; improves those that still climb.

        Returns which these are, and what they became; after the last round, none.
        """
        modalities = self._warped(motions)
        still = []
        for place, (number, score) in enumerate(zip(climbing, self._scores(modalities), strict=True)):
            if score >= best[number][0] + GAIN and not last:
                still.append(place)
            if score > best[number][0]:
                best[number] = score, motions[place]
        if not still:
            return [], motions
        if len(still) < len(climbing):
            motions, climbing = motions[still], [climbing[place] for place in still]
            modalities = [Modality(one.features[still], one.known[still]) for one in modalities]
        first = refine_rigid(
            self._features,
            self._share,
            modalities,
            first_mm=self._first_mm,
            cell_mm=self._cell_mm,
            iterations=self._settings.iterations,
            kernels=self._kernels,
        )
        return climbing, motions.after(first)

    def _shifted(self, motion: rigid.Rigid, sign: int) -> rigid.Rigid:
        """A motion of points counted from the first voxel of the whole volume, as one from that of the overview; or back."""
        origin = sign * self._origin_mm
        return rigid.Rigid(motion.rotation, motion.translation + origin - motion.rotation @ origin)

    def displacement(self, motion: rigid.Rigid) -> Tensor:
        """A motion as ``(1, 3, h, w, d)`` voxels of the overview; or B of them."""
        return self._displacement(self._shifted(motion, -1))

    def _displacement(self, moved: rigid.Rigid) -> Tensor:
        linear = self._kernels.linear_displacement
        return rigid.to_displacement(
            moved, self.shape, offset=(0, 0, 0), spacing_mm=self.voxel_mm, like=self.fixed, linear=linear
        )

    def _pool(self, volume: Volume, mask: Mask) -> tuple[Volume, Tensor]:
        means, covered = self._kernels.pool(volume, mask.to(volume.dtype), self._spacing)
        known = covered > cells.KNOWN_CELL_SHARE
        return self._kernels.fill_outside(means, known, reach=self._settings.mind.reach), known.to(volume.dtype)

    def _features_of(self, volume: Volume, known: Tensor, *, mean_variance: Tensor | None = None) -> tuple[Features, Tensor]:
        mind = self._settings.mind
        options = {"radius": mind.radius, "dilation": mind.dilation, "spacing": self._grouping}
        return self._kernels.pooled_mind(volume, known, **options, mean_variance=mean_variance)

    def _warped(self, motions: rigid.Rigid) -> list[Modality]:
        u = self._displacement(motions)
        modalities = []
        for (moving, known), variance in zip(self.movings, self._variances, strict=True):
            warped, seen = self._kernels.sample_known(moving, known, u, offset=(0, 0, 0))
            modalities.append(Modality(*self._features_of(warped, seen.to(warped.dtype), mean_variance=variance)))
        return modalities

    def _scores(self, modalities: Sequence[Modality]) -> list[float]:
        """The highest similarity of a modality, times the root of the overlap, for each of B motions."""
        mine = self._share * (self._share > cells.KNOWN_CELL_SHARE)
        total = mine.sum(dtype=torch.float64).clamp(min=1e-6)
        scores = []
        for modality in modalities:
            shared = mine * (modality.known > cells.KNOWN_CELL_SHARE)
            overlap = (shared.sum(dim=(1, 2, 3, 4), dtype=torch.float64) / total).clamp(max=1)
            scores.append(self._kernels.similarities(self._features, modality.features, shared) * overlap.sqrt())
        highest: list[float] = torch.stack(scores).amax(dim=0).tolist()
        return highest
