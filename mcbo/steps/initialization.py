"""Rigid initialization: the motion under which the features of two coarse images correlate most.

For each of a ball of rotations, the masked, normalized correlation of the rotated moving image's features with the fixed ones
is computed for all translations at once by Fourier transforms (after Padfield, IEEE TIP 2012). The best few are improved by a
pattern search of the same score and compared with no motion on a finer grid with other features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mcbo.core.field import along_axis, sample, shape_of, warp
from mcbo.core.types import Features, Kernels, Mask, Shape, Triple, Volume
from mcbo.geometry import cells, rigid
from mcbo.geometry.mask import fill_outside
from mcbo.steps.similarity import similarity

APART_CELLS = 3.0
APART_DEGREES = 15.0
"""Two starts are different if they are further apart than one of these."""
PATTERN = ((5.0, 1.0), (2.5, 0.5))
"""Steps of the pattern search: degrees, and cells."""
MOVES = 8
"""Of the pattern search with each step, at most."""
MIND_RADIUS = 1
"""Cells, on both grids."""
_TIE_PER_MM2 = 1e-9


@dataclass(frozen=True)
class InitializationSettings:
    """The search for an initial rigid motion.

    Attributes:
        cells: along the longest side of the grid that is searched.
        check_cells: of the grid on which candidates are checked.
        max_degrees, step_degrees: of the rotations.
        min_overlap: share of the smaller field of view that has to be compared.
        kept: how many of the best are followed up.
        least_gain: similarity that a start must gain over no motion.
    """

    cells: int
    check_cells: int
    max_degrees: float
    step_degrees: float
    min_overlap: float
    kept: int
    least_gain: float


@dataclass(frozen=True)
class Pose:
    """A rotation (vector, axis times angle) about the center of a volume, then a shift along axes 0, 1, 2."""

    rotation_deg: Triple
    shift_mm: Triple

    def motion(self, shape: Shape, spacing_mm: Triple) -> rigid.Rigid:
        """The pose as a motion of points in a volume."""
        center = torch.tensor([(n - 1) / 2 * s for n, s in zip(shape, spacing_mm, strict=True)], dtype=torch.float64)
        turned = rigid.rotation_of(self.rotation_deg)
        return rigid.Rigid(turned, center + torch.tensor(self.shift_mm, dtype=torch.float64) - turned @ center)


NO_MOTION = Pose((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))


def find_start(
    fixed: Volume,
    mask: Mask,
    movings: Sequence[Volume],
    masks: Sequence[Mask],
    *,
    spacing_mm: Triple,
    settings: InitializationSettings,
    kernels: Kernels,
) -> rigid.Rigid:
    """The rigid motion to start from; no motion, unless another is clearly better.

    ``mask`` belongs to the fixed image, ``masks`` to the moving ones; images and masks are ``(1, 1, H, W, D)``, of one shape.
    """
    coarse = partial(_Coarse, fixed, mask, movings, masks, spacing_mm=spacing_mm, kernels=kernels)
    search = coarse(size=settings.cells, dilation=1)
    kept: list[Pose] = []
    for score, pose in search.correlate(ball(settings.max_degrees, settings.step_degrees), min_overlap=settings.min_overlap):
        if score > 0 and all(_are_apart(pose, other, max(search.cell_mm)) for other in kept):
            kept.append(pose)
        if len(kept) == settings.kept:
            break
    check = coarse(size=settings.check_cells, dilation=2)
    best, best_score = NO_MOTION, check.score(NO_MOTION, min_overlap=0.0) + settings.least_gain
    for start in kept:
        pose = search.climb(start, min_overlap=settings.min_overlap)
        score = check.score(pose, min_overlap=settings.min_overlap)
        if score > best_score:
            best, best_score = pose, score
    return best.motion(shape_of(fixed), spacing_mm)


def ball(max_degrees: float, step_degrees: float) -> list[Triple]:
    """Rotation vectors on a cubic lattice within a ball, degrees, the smallest first."""
    count = int(max_degrees / step_degrees + 1e-9)
    steps = [step_degrees * k for k in range(-count, count + 1)]
    inside = [(a, b, c) for a in steps for b in steps for c in steps if a * a + b * b + c * c <= max_degrees**2 + 1e-6]
    return sorted(inside, key=lambda v: sum(x * x for x in v))


class _Coarse:
    """Images on a coarse grid that is nearly isotropic in millimeters, and their similarity under a pose.

    ``size`` is the number of cells along the longest side, ``dilation`` that of the features, cells; the rest as in
    ``find_start``.
    """

    def __init__(
        self,
        fixed: Volume,
        mask: Mask,
        movings: Sequence[Volume],
        masks: Sequence[Mask],
        *,
        spacing_mm: Triple,
        size: int,
        dilation: int,
        kernels: Kernels,
    ) -> None:
        sides = list(zip(shape_of(fixed), spacing_mm, strict=True))
        longest = max(n * s for n, s in sides)
        steps = [min(max(1, round(longest / size / s)), n) for n, s in sides]  # up to the whole axis, where it is thin
        self._spacing = steps[0], steps[1], steps[2]
        self.cell_mm = steps[0] * spacing_mm[0], steps[1] * spacing_mm[1], steps[2] * spacing_mm[2]
        self._dilation, self._kernels = dilation, kernels
        image, self._known = self._pool(fixed, mask)
        self._movings = [self._pool(moving, m) for moving, m in zip(movings, masks, strict=True)]
        self._fixed = self._features(image).repeat(1, len(movings), 1, 1, 1)
        self._shape = shape_of(image)
        self._full = max(min(float(known.sum()) for known in (self._known, *(k for _, k in self._movings))), 1.0)

    def _pool(self, volume: Volume, mask: Mask) -> tuple[Volume, Tensor]:
        means, covered = cells.pool(volume, mask.to(volume.dtype), self._spacing)
        known = covered > cells.KNOWN_CELL_SHARE
        return fill_outside(means, known, reach=MIND_RADIUS + self._dilation), known.to(volume.dtype)

    def _features(self, volume: Volume) -> Features:
        return self._kernels.mind_ssc(volume, radius=MIND_RADIUS, dilation=self._dilation)

    def _moved(self, pose: Pose) -> tuple[Features, Tensor]:
        """Features of the moving images under a pose, concatenated along the channels, and where all are known."""
        motion = pose.motion(self._shape, self.cell_mm)
        u = rigid.to_displacement(motion, self._shape, offset=(0, 0, 0), spacing_mm=self.cell_mm, like=self._fixed)
        features, known = [], torch.ones_like(self._known)
        for volume, seen in self._movings:
            features.append(self._features(sample(volume, u, offset=(0, 0, 0), outside="border")))
            known = known * (warp(seen, u) > 0.5)
        return torch.cat(features, dim=1), known

    def score(self, pose: Pose, *, min_overlap: float) -> float:
        """Similarity times the root of the overlap; −1 where they hardly overlap."""
        features, known = self._moved(pose)
        both = self._known * known
        overlap = float(both.sum()) / self._full
        return similarity(self._fixed, features, both) * min(overlap, 1.0) ** 0.5 if overlap >= min_overlap else -1.0

    def climb(self, pose: Pose, *, min_overlap: float) -> Pose:
        """Pattern search: to the best of the twelve neighbors, while there is a better one, in ever smaller steps.

        (The best, not the first better one: the order of axes and directions must not decide.)
        """
        best = self.score(pose, min_overlap=min_overlap)
        for degrees, share in PATTERN:
            steps = [degrees] * 3 + [share * max(self.cell_mm)] * 3
            for _ in range(MOVES):
                neighbors = []
                for parameter, step in enumerate(steps):
                    for signed in (step, -step):
                        values = [*pose.rotation_deg, *pose.shift_mm]
                        values[parameter] += signed
                        other = Pose((values[0], values[1], values[2]), (values[3], values[4], values[5]))
                        neighbors.append((self.score(other, min_overlap=min_overlap), other))
                score, other = max(neighbors, key=lambda item: item[0])
                if score <= best + 1e-6:
                    break
                best, pose = score, other
        return pose

    def correlate(self, rotations: Sequence[Triple], *, min_overlap: float) -> list[tuple[float, Pose]]:
        """The best shift for each rotation, with its score, the best first; shifts reach over half the longest side."""
        longest = max(n * mm for n, mm in zip(self._shape, self.cell_mm, strict=True))
        reach = [min(round(longest / 2 / mm), n - 1) for n, mm in zip(self._shape, self.cell_mm, strict=True)]
        sizes = [n + r for n, r in zip(self._shape, reach, strict=True)]
        shifts = [torch.cat([torch.arange(r + 1), torch.arange(-r, 0)]).to(self._fixed.device) for r in reach]
        cell_mm = torch.tensor(self.cell_mm, dtype=torch.float64)
        far = torch.zeros([len(shift) for shift in shifts], dtype=self._fixed.dtype, device=self._fixed.device)
        for axis, (shift, mm) in enumerate(zip(shifts, self.cell_mm, strict=True)):
            far += along_axis((shift * mm).square(), axis)

        def correlation(product: Tensor) -> Tensor:
            whole: Tensor = torch.fft.irfftn(product, s=sizes)
            for axis, shift in enumerate(shifts):
                whole = whole.index_select(axis, shift % sizes[axis])
            return whole

        template = _spectra(self._fixed, self._known, sizes).conj()
        found = []
        for rotation in rotations:
            spectra = _spectra(*self._moved(Pose(rotation, (0.0, 0.0, 0.0))), sizes)
            shared = correlation((template[:-2] * spectra[:-2]).sum(dim=0))
            energy = correlation(template[-1] * spectra[-2] + template[-2] * spectra[-1])
            overlap = (correlation(template[-2] * spectra[-2]) / self._full).clamp(0, 1)
            score = 2 * shared / energy.clamp(min=1e-3) * overlap.sqrt() - _TIE_PER_MM2 * far
            score = torch.where(overlap >= min_overlap, score, torch.full_like(score, -1))
            best = int(score.argmax())
            place = torch.unravel_index(torch.tensor(best), score.shape)
            moved = torch.stack([shift[at].cpu() for shift, at in zip(shifts, place, strict=True)]).double() * cell_mm
            # The shift is that of the rotated image; a pose rotates first, so the shift is rotated as well.
            x, y, z = (rigid.rotation_of(rotation) @ moved).tolist()
            found.append((float(score.flatten()[best]), Pose(rotation, (x, y, z))))
        return sorted(found, key=lambda item: -item[0])


def _are_apart(a: Pose, b: Pose, cell_mm: float) -> bool:
    def length(first: Triple, second: Triple) -> float:
        return float(sum((x - y) ** 2 for x, y in zip(first, second, strict=True)) ** 0.5)

    return length(a.shift_mm, b.shift_mm) > APART_CELLS * cell_mm or length(a.rotation_deg, b.rotation_deg) > APART_DEGREES


def _spectra(features: Features, known: Tensor, sizes: Sequence[int]) -> Tensor:
    """Fourier transforms of the centered, masked features; of the mask; and of the features' squared length."""
    weights = known / known.sum().clamp(min=1)
    centered = (features - (features * weights).sum(dim=(2, 3, 4), keepdim=True)) * known
    stack = torch.cat([centered, known, centered.square().sum(dim=1, keepdim=True)], dim=1)[0]
    spectra: Tensor = torch.fft.rfftn(stack, s=list(sizes), dim=(1, 2, 3))
    return spectra
