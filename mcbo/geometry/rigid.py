"""A rigid motion fitted to displacements of which many are wrong: least trimmed squares.

Rousseeuw's estimator with concentration steps: fit, keep the half that fits best, fit again. In docs/method.md it belongs
to the cautious search of ``cascade``, step 7.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcbo.core.field import sample
from mcbo.core.types import Displacement, Shape, Triple


@dataclass(frozen=True)
class Rigid:
    """A rigid motion ``q = R·p + t`` of points in millimeters, array axes times voxel size; or B of them.

    Attributes:
        rotation: R, ``(3, 3)`` or ``(B, 3, 3)`` float64; of the motion into a mirrored image, R times the reflection.
        translation: t, ``(3,)`` or ``(B, 3)`` float64, mm.
    """

    rotation: Tensor
    translation: Tensor

    def apply(self, points: Tensor) -> Tensor:
        """Moves ``(n, 3)`` points, mm, on any device, by one motion."""
        rotation, shift = (one.to(points.device, non_blocking=True) for one in (self.rotation, self.translation))
        return points @ rotation.T + shift

    def after(self, first: "Rigid") -> "Rigid":
        """The motion of ``first`` and then this one."""
        moved = (self.rotation @ first.translation.unsqueeze(-1)).squeeze(-1)
        return Rigid(self.rotation @ first.rotation, moved + self.translation)

    def __getitem__(self, which: int | slice | list[int]) -> "Rigid":
        """One of B motions, or some of them."""
        return Rigid(self.rotation[which], self.translation[which])


def stacked(motions: Sequence[Rigid]) -> Rigid:
    """B motions in one."""
    return Rigid(torch.stack([motion.rotation for motion in motions]), torch.stack([motion.translation for motion in motions]))


def identity() -> Rigid:
    """No motion."""
    return Rigid(torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))


def rotation_of(vector_deg: Triple) -> Tensor:
    """The rotation matrix of a rotation vector, axis times angle in degrees, ``(3, 3)`` float64."""
    return rotations_of([vector_deg])[0]


def rotations_of(vectors_deg: Sequence[Triple]) -> Tensor:
    """The rotation matrices of B rotation vectors, ``(B, 3, 3)`` float64."""
    in_radians = [[math.radians(v) for v in vector] for vector in vectors_deg]
    generators = torch.tensor([[[0, -z, y], [z, 0, -x], [-y, x, 0]] for x, y, z in in_radians], dtype=torch.float64)
    rotations: Tensor = torch.linalg.matrix_exp(generators)
    return rotations


def fit_rigid(points: Tensor, targets: Tensor, weights: Tensor) -> Rigid:
    """The rigid motion of least weighted squared distance (Kabsch).

    Args:
        points: ``(n, 3)`` float64, mm.
        targets: where they should go, ``(n, 3)`` float64, mm.
        weights: ``(n,)``, not all 0.
    """
    share = (weights / weights.sum()).unsqueeze(1)
    center, target_center = (share * points).sum(dim=0), (share * targets).sum(dim=0)
    covariance = (points - center).T @ ((targets - target_center) * share)
    center, target_center, *rows = torch.cat([torch.stack([center, target_center]), covariance]).cpu()  # a GPU is slow at 3×3
    left, _, right = torch.linalg.svd(torch.stack(rows))
    signs = torch.ones(3, dtype=points.dtype)
    signs[2] = torch.sign(torch.linalg.det(right.T @ left.T))
    rotation = right.T @ torch.diag(signs) @ left.T
    return Rigid(rotation, target_center - rotation @ center)


def fit_trimmed(points: Tensor, targets: Tensor, weights: Tensor, *, keep: float, rounds: int) -> Rigid:
    """The rigid motion that fits best the share ``keep`` of the points that it fits best.

    Args:
        points: ``(n, 3)`` float64, mm.
        targets: ``(n, 3)`` float64, mm.
        weights: ``(n,)``, not all 0.
        keep: share of the weight that counts, above 0, up to 1.
        rounds: of fitting and trimming at most.
    """
    kept = torch.ones_like(weights, dtype=torch.bool)
    motion = fit_rigid(points, targets, weights)
    for _ in range(rounds):
        errors = (motion.apply(points) - targets).square().sum(dim=1)
        order = torch.argsort(errors, stable=True)
        last = torch.searchsorted(weights[order].cumsum(dim=0), keep * weights.sum())
        worst = order.index_select(0, last.clamp(max=len(order) - 1).view(1))  # an index in brackets would wait for a GPU
        now = errors <= errors.index_select(0, worst)
        if torch.equal(now, kept):
            break
        kept = now
        if points.device.type == "cpu":
            motion = fit_rigid(points[kept], targets[kept], weights[kept])
        else:  # which need not know how many those are
            motion = fit_rigid(points, targets, weights * kept)
    return motion


def in_voxels(motion: Rigid, spacing_mm: Triple) -> Tensor:
    """How far B motions, or one, move voxels: slopes and shift of each component, ``(B, 3, 4)`` float64 voxels."""
    spacing = torch.tensor(spacing_mm, dtype=torch.float64)
    slopes = motion.rotation.view(-1, 3, 3) * spacing / spacing.view(3, 1) - torch.eye(3, dtype=torch.float64)
    shifts = motion.translation.view(-1, 3, 1) / spacing.view(3, 1)
    return torch.cat([slopes, shifts], dim=2)


def to_displacement(
    motion: Rigid,
    shape: Shape,
    *,
    offset: Shape,
    spacing_mm: Triple,
    like: Tensor,
    linear: Callable[..., Displacement] | None = None,
) -> Displacement:
    """The displacement of a rigid motion, ``(1, 3, *shape)`` voxels; of B motions, ``(B, 3, *shape)``.

    Args:
        motion: of points in mm of the whole volume.
        shape: voxels of the box in which it is wanted.
        offset: where that box begins in the whole volume, voxels.
        spacing_mm: voxel size along axes 0, 1, 2.
        like: a tensor on the device that it is wanted on.
        linear: a twin of ``linear_displacement``.
    """
    linear = linear or linear_displacement
    return linear(in_voxels(motion, spacing_mm).to(like.device, non_blocking=True), shape, offset=offset)


def linear_displacement(coefficients: Tensor, shape: Shape, *, offset: Shape) -> Displacement:
    """B linear displacements of the points of a box that begins at ``offset``: ``(B, 3, *shape)``.

    ``coefficients`` are ``(B, 3, 4)`` float64: how each component grows along axes 0, 1, 2, and what it is at the origin.
    """
    device = coefficients.device
    places = [torch.arange(o, o + n, dtype=torch.float64, device=device) for n, o in zip(shape, offset, strict=True)]
    a, b, c = (coefficients[..., axis : axis + 1] * place for axis, place in enumerate(places))
    plane = (coefficients[..., 3:] + a).unsqueeze(3) + b.unsqueeze(2)
    result = torch.empty((len(coefficients), 3, *shape), dtype=torch.float32, device=device)
    for row in range(3):  # one by one, as sums are float64 before they are rounded
        torch.add(plane[:, row].unsqueeze(3), c[:, row].view(-1, 1, 1, shape[2]), out=result[:, row])
    return result


def compose(displacement: Displacement, linear: Displacement, matrix: Tensor, first: Displacement) -> Displacement:
    """The displacement of ``first``, v, and then ``displacement``, u: v(p) + u(p + v(p)), ``(1, 3, H, W, D)`` voxels.

    ``linear`` is the rigid part of u, and ``matrix`` its rotation, ``(3, 3)`` voxels. Beyond the volume, this part continues as
    what it is, and the rest by its border.
    """
    rest = sample(displacement - linear, first, offset=(0, 0, 0), outside="border")
    turned = torch.einsum("ab,nbhwd->nahwd", matrix.to(first.dtype).to(first.device, non_blocking=True), first)
    return linear + turned + rest
