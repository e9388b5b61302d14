"""Gauss–Newton for a rigid motion: all cells vote at once, however little each of them knows.

Minimizes over a rigid motion d of the fixed points

    Σ over modalities of 1/s · Σ over cells of k·w·|M(d(p)) − F(p)|²,

s being the mean feature distance and w a robust weight, as in ``gauss_newton.py``, whose terms it uses. Where images share so
little that the best candidate of most cells is a wrong one, and a fit to these candidates (``rigid.fit_trimmed``) with it, the
sum over all cells still has its minimum at the right motion. It is found from about as far away as the features are wide.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcbo.core.field import shape_of
from mcbo.core.types import Features, Kernels
from mcbo.geometry import rigid
from mcbo.geometry.cells import KNOWN_CELL_SHARE, center_of
from mcbo.steps.gauss_newton import RESIDUAL_FLOOR, Modality, robust_weight, stays_inside

MAX_STEP = 1.0
"""Cells: the most that one iteration moves the known cells, as a root mean square."""
_RIDGE = 1e-6
_SYMMETRIC = slice(0, 3), slice(1, 2), slice(3, 5), slice(2, 3), slice(4, 6)
"""Where the rows of a symmetric 3×3 matrix are among 00, 01, 02, 11, 12, 22."""


@dataclass(frozen=True)
class RigidTerms:
    """What a modality says of B motions, cell by cell.

    Attributes:
        hessian: ``(B, 6, h, w, d)``, as ``gauss_newton.data_terms`` has it.
        gradient: ``(B, 3, h, w, d)``.
        weight: ``(B, 1, h, w, d)``, of both.
        share: ``(B, 1, h, w, d)`` of a cell in all that are compared; sums to 1.
    """

    hessian: Tensor
    gradient: Tensor
    weight: Tensor
    share: Tensor


def refine_rigid(
    fixed: Features,
    fixed_known: Tensor,
    modalities: Sequence[Modality],
    *,
    first_mm: Tensor,
    cell_mm: Tensor,
    iterations: int,
    kernels: Kernels,
) -> rigid.Rigid:
    """The rigid motions of the fixed points, starting from none, after which moving features are most like the fixed ones.

    Args:
        fixed: ``(1, C, h, w, d)`` features.
        fixed_known: ``(1, 1, h, w, d)`` from 0 to 1.
        modalities: moving images, already warped by the motion so far; or each by B of them.
        first_mm: ``(3,)`` float64 center of the first cell.
        cell_mm: ``(3,)`` float64 sizes of a cell.
        iterations: of Gauss–Newton.
        kernels: compute kernels.

    Returns:
        B motions, on the CPU.
    """
    shape, batch = shape_of(fixed), len(modalities[0].features)
    center = first_mm + cell_mm * center_of(fixed_known)
    whole = torch.eye(3, dtype=center.dtype, device=center.device)
    start = torch.cat([torch.diag(cell_mm), (first_mm - center).unsqueeze(1)], dim=1)  # of cells, mm from the center
    turned, shift = whole.expand(batch, 3, 3), center.new_zeros((batch, 3, 1))
    v = fixed.new_zeros((batch, 3, *shape))
    for iteration in range(iterations):
        ends = turned @ start
        ends = torch.cat([ends[..., :3], ends[..., 3:] + shift], dim=2)
        if iteration:
            v = kernels.linear_displacement((ends - start) / cell_mm.view(3, 1), shape, offset=(0, 0, 0))
        compared = fixed_known * stays_inside(v)
        terms = []
        for modality in modalities:
            moved, seen = modality.features, modality.known > KNOWN_CELL_SHARE
            if iteration:
                moved, seen = kernels.sample_known(moved, modality.known, v, offset=(0, 0, 0), share=KNOWN_CELL_SHARE)
            known = compared * seen
            gradients, hessians, residual = kernels.data_terms(fixed, moved)
            count = known.sum(dim=(1, 2, 3, 4), keepdim=True).clamp(min=1e-6)
            mean = (residual * known).sum(dim=(1, 2, 3, 4), keepdim=True) / count + RESIDUAL_FLOOR
            weight = known * robust_weight(residual, known, mean) / mean
            terms.append(RigidTerms(hessians, gradients, weight, known / count))
        hessian, gradient, moments = kernels.rigid_equations(ends, cell_mm, terms)
        lifted = hessian + torch.diag_embed(_RIDGE * hessian.diagonal(dim1=1, dim2=2) + 1e-12)
        step = -torch.linalg.solve_ex(lifted, gradient).result  # does not wait for a GPU to say that it could be solved
        length = (step.mT @ (moments @ step)).clamp(min=1e-30).sqrt()
        step = step * (MAX_STEP / length).clamp(max=1)
        rotation = _rotations(step[:, :3, 0])
        turned, shift = rotation @ turned, rotation @ shift + step[:, 3:]
    translation = shift + (center - turned @ center).unsqueeze(2)
    fetched = torch.cat([turned, translation], dim=2).cpu()  # at once, as a GPU is waited for
    return rigid.Rigid(fetched[..., :3], fetched[..., 3])


def rigid_equations(ends: Tensor, cell_mm: Tensor, terms: Sequence[RigidTerms]) -> tuple[Tensor, Tensor, Tensor]:
    """The normal equations of B rigid motions, from the terms of each modality.

    ``ends``, ``(B, 3, 4)``, take the indices of a cell, and 1, to its place in mm from the center of rotation; ``cell_mm`` is
    ``(3,)``. Returns ``(B, 6, 6)`` and ``(B, 6, 1)``, for turns in radians and shifts in mm; and ``(B, 6, 6)``, which gives the
    mean square motion of the known cells, in cells, for a step. All float64.
    """
    axes = [torch.arange(n, dtype=ends.dtype, device=ends.device) for n in shape_of(terms[0].weight)]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    slopes = _slopes((ends[..., :3] @ index + ends[..., 3:]).mT, cell_mm)
    flat, batch = slopes.flatten(1, 2), len(ends)
    hessian, gradient, moments = ends.new_zeros((batch, 6, 6)), ends.new_zeros((batch, 6, 1)), ends.new_zeros(())
    for one in terms:
        weighted = (torch.cat([one.hessian, one.gradient], dim=1) * one.weight).flatten(2).double().mT
        tensor = torch.cat([weighted[..., rows] for rows in _SYMMETRIC], dim=2).view(batch, -1, 3, 3)
        hessian += flat.mT @ (tensor @ slopes).flatten(1, 2)
        gradient += flat.mT @ weighted[..., 6:].flatten(1).unsqueeze(2)
        share = one.share.double().view(batch, -1, 1).repeat_interleave(3, dim=1)
        moments = moments + flat.mT @ (flat * share) / len(terms)
    return hessian, gradient, moments


def _crossing(vectors: Tensor) -> Tensor:
    """The matrices of the cross product with ``(…, 3)`` vectors from the left, ``(…, 3, 3)``."""
    x, y, z = vectors.unbind(-1)
    none = torch.zeros_like(x)
    return torch.stack([none, -z, y, z, none, -x, -y, x, none], dim=-1).view(*x.shape, 3, 3)


def _rotations(vectors: Tensor) -> Tensor:
    """The rotations by ``(B, 3)`` vectors, axis times radians, ``(B, 3, 3)`` (Rodrigues)."""
    generator = _crossing(vectors)
    angle = vectors.norm(dim=1).view(-1, 1, 1)
    once, twice = torch.sinc(angle / math.pi), torch.sinc(angle / (2 * math.pi)).square() / 2
    return torch.eye(3, dtype=vectors.dtype, device=vectors.device) + once * generator + twice * (generator @ generator)


def _slopes(arms: Tensor, cell_mm: Tensor) -> Tensor:
    """How cells move, in cells, with a turn (radians) and a shift (mm): ``(B, n, 3, 6)``, at the ends of ``(B, n, 3)`` arms."""
    shifts = torch.eye(3, dtype=arms.dtype, device=arms.device).expand(*arms.shape[:2], 3, 3)
    return torch.cat([-_crossing(arms), shifts], dim=3) / cell_mm.view(3, 1)
