"""Coarse search: the poses under which the features of two coarse images correlate most.

For each of a ball of rotations, the masked, normalized correlation of the rotated moving image's features with the fixed ones
is computed for all translations at once by Fourier transforms (after Padfield, IEEE TIP 2012). The best few are improved by a
pattern search of the same score. ``hypotheses.py`` follows them up.

The grids are so coarse that a GPU takes longer to be told what to do than to do it, so poses are done in batches, and the host
waits once for the scores of a batch. Where ``Kernels.batch`` is 1, each pose is done by itself.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mcbo.core.field import along_axis, shape_of
from mcbo.core.types import Features, Kernels, Mask, Shape, Triple, Volume
from mcbo.geometry import cells, rigid
from mcbo.steps.mind import PAIRS

APART_CELLS = 3.0
APART_DEGREES = 15.0
"""Two starts are different if they are further apart than one of these."""
PATTERN = 5.0, 1.0
"""Steps of the pattern search: degrees, and cells."""
MOVES = 8
"""Of the pattern search, at most."""
MIND_RADIUS = 1
MIND_DILATION = 1
"""Cells."""
BATCH_BYTES = 1e9
"""What a batch of several poses may take."""
_COPIES = 6
"""Tensors as large as the features of a batch, or as their spectra, that exist at a time while they are compared."""
_TIE_PER_MM2 = 1e-9


@dataclass(frozen=True)
class InitializationSettings:
    """The coarse search.

    Attributes:
        cells: along the longest side of the grid that is searched.
        max_degrees, step_degrees: of the rotations.
        min_overlap: share of the smaller field of view that has to be compared.
        kept: how many of the best are followed up; of those into a mirrored image, one.
    """

    cells: int
    max_degrees: float
    step_degrees: float
    min_overlap: float
    kept: int


@dataclass(frozen=True)
class Pose:
    """A rotation (vector, axis times angle) about the center of a volume, then a shift along axes 0, 1, 2.

    ``mirror`` has the axes along which the moving image is then mirrored, about a point of its own.
    """

    rotation_deg: Triple
    shift_mm: Triple
    mirror: tuple[int, ...] = ()


def motions_of(poses: Sequence[Pose], shape: Shape, spacing_mm: Triple, *, mirror_mm: Triple = (0.0, 0.0, 0.0)) -> rigid.Rigid:
    """B poses as motions of points in a volume; into a mirrored image, as those into the image itself.

    ``mirror_mm`` is the point about which it is mirrored, counted from the center of the volume.
    """
    center = torch.tensor([(n - 1) / 2 * s for n, s in zip(shape, spacing_mm, strict=True)], dtype=torch.float64)
    turned = rigid.rotations_of([pose.rotation_deg for pose in poses])
    shifts = torch.tensor([pose.shift_mm for pose in poses], dtype=torch.float64)
    signs = torch.tensor([[-1.0 if axis in pose.mirror else 1.0 for axis in range(3)] for pose in poses], dtype=torch.float64)
    about = center + torch.tensor(mirror_mm, dtype=torch.float64)
    return rigid.Rigid(signs.unsqueeze(2) * turned, about + signs * (center + shifts - turned @ center - about))


def ball(max_degrees: float, step_degrees: float) -> list[Triple]:
    """Rotation vectors on a cubic lattice within a ball, degrees, the smallest first."""
    count = int(max_degrees / step_degrees + 1e-9)
    steps = [step_degrees * k for k in range(-count, count + 1)]
    inside = [(a, b, c) for a in steps for b in steps for c in steps if a * a + b * b + c * c <= max_degrees**2 + 1e-6]
    return sorted(inside, key=lambda v: sum(x * x for x in v))


def fast_length(least: int) -> int:
    """The smallest number from ``least`` on without prime factors above 5: Fourier transforms of other lengths take longer."""
    return next(n for n in itertools.count(least) if pow(30, n.bit_length(), n) == 0)


class Coarse:
    """Images on a coarse grid that is nearly isotropic in millimeters, and their similarity under a pose.

    ``size`` is the number of cells along the longest side. ``mask`` belongs to the fixed image, ``masks`` to the moving ones;
    images and masks are ``(1, 1, H, W, D)``, of one shape. Poses are mirrored about ``mirror_mm`` (see ``motions_of``).
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
        kernels: Kernels,
        mirror_mm: Triple = (0.0, 0.0, 0.0),
    ) -> None:
        self._spacing = steps = cells.isotropic_spacing(shape_of(fixed), spacing_mm, size)
        self.cell_mm = steps[0] * spacing_mm[0], steps[1] * spacing_mm[1], steps[2] * spacing_mm[2]
        self._kernels, self._mirror_mm = kernels, mirror_mm
        self._image, self._known = self._pool(fixed, mask)
        pooled = [self._pool(moving, m) for moving, m in zip(movings, masks, strict=True)]
        self._movings, self._seen = (torch.cat(volumes, dim=1) for volumes in zip(*pooled, strict=True))
        variances = [kernels.variance_of(moving, radius=MIND_RADIUS, dilation=MIND_DILATION) for moving, _ in pooled]
        self._variances = torch.cat(variances)
        self._fixed = self._features(self._image).repeat(1, len(movings), 1, 1, 1)
        self._shape = shape_of(self._image)
        self._full = max(float(torch.cat([self._known, self._seen], dim=1).sum(dim=(2, 3, 4)).amin()), 1.0)

    def best_poses(self, settings: InitializationSettings, mirrors: Sequence[tuple[int, ...]] = ((),)) -> list[list[Pose]]:
        """For each of the mirrors (see ``Pose``), the best few that are apart from each other, improved; if mirrored, one."""
        rotations = ball(settings.max_degrees, settings.step_degrees)
        kept = []
        for mirror, found in zip(mirrors, self.correlate(rotations, mirrors, min_overlap=settings.min_overlap), strict=True):
            some: list[Pose] = []
            for score, pose in sorted(found, key=lambda item: -item[0]):
                if score > 0 and all(_are_apart(pose, other, max(self.cell_mm)) for other in some):
                    some.append(pose)
                if len(some) == (1 if mirror else settings.kept):
                    break
            kept.append(some)
        climbed = iter(self.climb([pose for some in kept for pose in some], min_overlap=settings.min_overlap))
        return [[next(climbed) for _ in some] for some in kept]

    def _pool(self, volume: Volume, mask: Mask) -> tuple[Volume, Tensor]:
        means, covered = self._kernels.pool(volume, mask.to(volume.dtype), self._spacing)
        known = covered > cells.KNOWN_CELL_SHARE
        return self._kernels.fill_outside(means, known, reach=MIND_RADIUS + MIND_DILATION), known.to(volume.dtype)

    def _features(self, volume: Volume) -> Features:
        return self._kernels.mind_ssc(volume, radius=MIND_RADIUS, dilation=MIND_DILATION)

    def _in_batches(self, function: Callable[[Sequence[Pose]], Tensor], poses: Sequence[Pose], *, bytes_each: float) -> Tensor:
        """Results of as many poses at once as the kernels want and ``BATCH_BYTES`` allows, joined along the last dimension."""
        most = min(self._kernels.batch, max(int(BATCH_BYTES / bytes_each), 1))
        return torch.cat(self._kernels.in_batches(function, poses, most), dim=-1)

    def _moved(self, poses: Sequence[Pose]) -> tuple[Features, Tensor]:
        """Features of the moving images under B poses, and where all are known.

        Returns:
            ``(B, C, h, w, d)``, those of all moving images concatenated along the channels, and ``(B, 1, h, w, d)``, 0 or 1.
        """
        motions = motions_of(poses, self._shape, self.cell_mm, mirror_mm=self._mirror_mm)
        linear = self._kernels.linear_displacement
        u = rigid.to_displacement(
            motions, self._shape, offset=(0, 0, 0), spacing_mm=self.cell_mm, like=self._fixed, linear=linear
        )
        images, seen = self._kernels.sample_known(self._movings, self._seen, u, offset=(0, 0, 0))
        images, variances = images.flatten(0, 1).unsqueeze(1), self._variances.repeat(len(poses))
        features = self._kernels.mind_ssc(images, radius=MIND_RADIUS, dilation=MIND_DILATION, mean_variance=variances)
        features = features.view(len(poses), -1, *self._shape)
        return features, seen.all(dim=1, keepdim=True).to(images.dtype)

    def scores(self, poses: Sequence[Pose], *, min_overlap: float) -> list[float]:
        """Similarity times the root of the overlap, of each pose; −1 where they hardly overlap."""
        if not poses:
            return []

        def compare(some: Sequence[Pose]) -> Tensor:
            features, known = self._moved(some)
            both = self._known * known
            return torch.stack([self._kernels.similarities(self._fixed, features, both), both.sum(dim=(1, 2, 3, 4)).double()])

        scores = []
        for score, count in self._in_batches(compare, poses, bytes_each=_COPIES * self._fixed.nbytes).T.tolist():
            overlap = count / self._full
            scores.append(score * min(overlap, 1.0) ** 0.5 if overlap >= min_overlap else -1.0)
        return scores

    def climb(self, poses: Sequence[Pose], *, min_overlap: float) -> list[Pose]:
        """Pattern search from each pose: to the best of its twelve neighbors, while it is a better one.

        (The best, not the first better one: the order of axes and directions must not decide.)
        """
        found, best = list(poses), self.scores(poses, min_overlap=min_overlap)
        degrees, share = PATTERN
        steps = [degrees] * 3 + [share * max(self.cell_mm)] * 3
        climbing = list(range(len(found)))
        for _ in range(MOVES):
            neighbors = [_neighbors(found[n], steps) for n in climbing]
            scores = iter(self.scores([pose for around in neighbors for pose in around], min_overlap=min_overlap))
            still = []
            for n, around in zip(climbing, neighbors, strict=True):
                score, other = max(((next(scores), pose) for pose in around), key=lambda item: item[0])
                if score > best[n] + 1e-6:
                    best[n], found[n] = score, other
                    still.append(n)
            climbing = still
        return found

    def correlate(
        self, rotations: Sequence[Triple], mirrors: Sequence[tuple[int, ...]] = ((),), *, min_overlap: float
    ) -> list[list[tuple[float, Pose]]]:
        """For each of the mirrors and each rotation, the best shift, after its score; over half the longest side at most.

        A mirrored moving image fits the fixed one as the moving one fits the mirrored fixed one. So the fixed one is mirrored,
        and each rotated moving image is transformed once for all mirrors.
        """
        longest = max(n * mm for n, mm in zip(self._shape, self.cell_mm, strict=True))
        reach = [min(round(longest / 2 / mm), n - 1) for n, mm in zip(self._shape, self.cell_mm, strict=True)]
        sizes = [fast_length(n + r) for n, r in zip(self._shape, reach, strict=True)]
        device = self._fixed.device
        shifts = [(torch.arange(2 * r + 1, device=device) + r) % (2 * r + 1) - r for r in reach]  # 0 … r, −r … −1
        places = [shift % size for shift, size in zip(shifts, sizes, strict=True)]
        far = torch.zeros([len(shift) for shift in shifts], dtype=self._fixed.dtype, device=device)
        for axis, (shift, mm) in enumerate(zip(shifts, self.cell_mm, strict=True)):
            far += along_axis((shift * mm).square(), axis)

        def correlation(product: Tensor) -> Tensor:
            whole: Tensor = torch.fft.irfftn(product, s=sizes, dim=(1, 2, 3))
            for axis, place in enumerate(places, start=1):
                whole = whole.index_select(axis, place)
            return whole

        def best_shifts(template: Tensor, spectra: Tensor) -> Tensor:
            """The best score of each rotation, and its place, ``(2, B)`` float64."""
            products = torch.zeros_like(spectra[:, 0])
            for channel in range(len(PAIRS)):  # one by one: their products, as large as all spectra, would leave the caches
                products.addcmul_(template[:, channel], spectra[:, channel])
            shared = correlation(products)
            energy = correlation(template[:, -1] * spectra[:, -2] + template[:, -2] * spectra[:, -1])
            overlap = (correlation(template[:, -2] * spectra[:, -2]) / self._full).clamp(0, 1)
            score = 2 * shared / energy.clamp(min=1e-3) * overlap.sqrt() - _TIE_PER_MM2 * far
            score = torch.where(overlap >= min_overlap, score, torch.full_like(score, -1))
            return torch.stack([values.double() for values in score.flatten(1).max(dim=1)])

        templates = []
        for mirror in mirrors:
            dims = [axis + 2 for axis in mirror]
            spectra = _spectra(self._features(self._image.flip(dims)), self._known.flip(dims), sizes)
            spectra[:, -1] *= self._movings.shape[1]  # as it is compared with each moving image
            templates.append(spectra.conj().resolve_conj())

        def compare(some: Sequence[Pose]) -> Tensor:
            spectra = _spectra(*self._moved(some), sizes)
            return torch.stack([best_shifts(template, spectra) for template in templates])

        turned = [Pose(vector, (0.0, 0.0, 0.0)) for vector in rotations]
        best = self._in_batches(compare, turned, bytes_each=_COPIES * templates[0].nbytes)
        found = []
        for mirror, values in zip(mirrors, best.tolist(), strict=True):
            poses = []
            for rotation, score, place in zip(rotations, *values, strict=True):
                index = np.unravel_index(int(place), far.shape)
                shift_mm = [(i if i <= r else i - 2 * r - 1) * mm for i, r, mm in zip(index, reach, self.cell_mm, strict=True)]
                poses.append((score, self._pose(rotation, shift_mm, mirror)))
            found.append(poses)
        return found

    def _pose(self, rotation_deg: Triple, shift_mm: Sequence[float], mirror: tuple[int, ...]) -> Pose:
        """The pose of the fixed image, if its mirror image fits the rotated moving image under a shift.

        At a point x from the center, the mirrored fixed image is F(S·x), and the rotated, shifted moving image M(R·(x + d)).
        So F(x) fits M(R·S·x + R·d) = M(S·(S·R·S)·x + R·d), and S·R·S is again a rotation.
        """
        sign = torch.tensor([-1.0 if axis in mirror else 1.0 for axis in range(3)], dtype=torch.float64)
        about = torch.tensor(self._mirror_mm, dtype=torch.float64)
        moved = rigid.rotation_of(rotation_deg) @ torch.tensor(shift_mm, dtype=torch.float64)
        x, y, z = (sign * (moved - about) + about).tolist()
        a, b, c = (sign.prod() * sign * torch.tensor(rotation_deg, dtype=torch.float64)).tolist()
        return Pose((a, b, c), (x, y, z), mirror)


def _neighbors(pose: Pose, steps: Sequence[float]) -> list[Pose]:
    """The poses that are one step away, up or down, in one of the six parameters."""
    found = []
    for parameter, step in enumerate(steps):
        for signed in (step, -step):
            values = [*pose.rotation_deg, *pose.shift_mm]
            values[parameter] += signed
            found.append(Pose((values[0], values[1], values[2]), (values[3], values[4], values[5]), pose.mirror))
    return found


def _are_apart(a: Pose, b: Pose, cell_mm: float) -> bool:
    def length(first: Triple, second: Triple) -> float:
        return float(sum((x - y) ** 2 for x, y in zip(first, second, strict=True)) ** 0.5)

    return length(a.shift_mm, b.shift_mm) > APART_CELLS * cell_mm or length(a.rotation_deg, b.rotation_deg) > APART_DEGREES


def _spectra(features: Features, known: Tensor, sizes: Sequence[int]) -> Tensor:
    """Fourier transforms of the centered, masked features, summed over moving images; of the mask; and of the squared length.

    Of ``(B, M·C, h, w, d)`` features and ``(B, 1, h, w, d)`` masks, ``(B, C + 2, …)``. What is compared with each of several
    moving images may be compared with their sum.
    """
    weights = known / known.sum(dim=(1, 2, 3, 4), keepdim=True).clamp(min=1)
    centered = (features - (features * weights).sum(dim=(2, 3, 4), keepdim=True)) * known
    together = centered.view(len(centered), -1, len(PAIRS), *shape_of(centered)).sum(dim=1)
    stack = torch.cat([together, known, centered.square().sum(dim=1, keepdim=True)], dim=1)
    spectra: Tensor = torch.fft.rfftn(stack, s=list(sizes), dim=(2, 3, 4))
    return spectra
