"""Gauss–Newton for a rigid motion: all cells vote at once, however little each of them knows.

Minimizes over a rigid motion d of the fixed points

    Σ over modalities of 1/s · Σ over cells of k·w·|M(d(p)) − F(p)|²,

s being the mean feature distance and w a robust weight, as in ``gauss_newton.py``, whose terms it uses. Where images share so
little that the best candidate of most cells is a wrong one, and a fit to these candidates (``rigid.fit_trimmed``) with it, the
sum over all cells still has its minimum at the right motion. It is found from about as far away as the features are wide.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mcbo.core.field import sample, shape_of, warp
from mcbo.core.types import Features, Kernels
from mcbo.geometry import rigid
from mcbo.geometry.cells import KNOWN_CELL_SHARE
from mcbo.steps.gauss_newton import RESIDUAL_FLOOR, Modality, robust_weight, stays_inside

MAX_STEP = 1.0
"""Cells: the most that one iteration moves the known cells, as a root mean square."""
_RIDGE = 1e-6
_SYMMETRIC = [0, 1, 2, 1, 3, 4, 2, 4, 5]
"""Where the entries of a symmetric 3×3 matrix are among 00, 01, 02, 11, 12, 22."""


def refine_rigid(
    fixed: Features,
    fixed_known: Tensor,
    modalities: Sequence[Modality],
    *,
    places_mm: Tensor,
    cell_mm: Tensor,
    iterations: int,
    kernels: Kernels,
) -> rigid.Rigid:
    """The rigid motion of the fixed points, starting from none, after which the moving features are most like the fixed ones.

    Args:
        fixed: ``(1, C, h, w, d)`` features.
        fixed_known: ``(1, 1, h, w, d)`` from 0 to 1.
        modalities: moving images, already warped by the motion so far.
        places_mm: ``(h, w, d, 3)`` float64 centers of the cells.
        cell_mm: ``(3,)`` float64 sizes of a cell.
        iterations: of Gauss–Newton.
        kernels: compute kernels.
    """
    points = places_mm.reshape(-1, 3)
    weights = fixed_known.reshape(-1, 1).double()
    center = (points * weights).sum(dim=0) / weights.sum().clamp(min=1e-6)
    arms = points - center
    turned, shift = torch.eye(3, dtype=points.dtype, device=points.device), torch.zeros_like(center)
    v = fixed.new_zeros((1, 3, *shape_of(fixed)))
    for iteration in range(iterations):
        if iteration:
            found = (arms @ turned.T + shift - arms) / cell_mm
            v = found.T.reshape(1, 3, *shape_of(fixed)).to(fixed.dtype)
        hessian, gradient, moments = points.new_zeros((6, 6)), points.new_zeros(6), points.new_zeros((6, 6))
        slopes = _slopes(arms @ turned.T + shift, cell_mm)
        for modality in modalities:
            moved = sample(modality.features, v, offset=(0, 0, 0), outside="border") if iteration else modality.features
            known = fixed_known * (warp(modality.known, v) > KNOWN_CELL_SHARE) * stays_inside(v)
            g, h, distance = kernels.data_terms(fixed, moved)
            count = known.sum().clamp(min=1e-6)
            mean = (distance * known).sum() / count + RESIDUAL_FLOOR
            weight = (known * robust_weight(distance, known, mean) / mean).reshape(-1)
            weighted = torch.cat([h.reshape(6, -1), g.reshape(3, -1)]) * weight
            tensor = weighted[_SYMMETRIC].double().T.reshape(-1, 3, 3)
            flat = slopes.reshape(-1, 6)
            hessian += flat.T @ (tensor @ slopes).reshape(-1, 6)
            gradient += flat.T @ weighted[6:].double().T.reshape(-1)
            moments += flat.T @ (flat * (known.reshape(-1, 1) / count).double().repeat_interleave(3, dim=0)) / len(modalities)
        lifted = hessian + torch.diag(_RIDGE * hessian.diagonal() + 1e-12)
        step = -torch.linalg.solve_ex(lifted, gradient).result  # does not wait for a GPU to say that it could be solved
        length = (step @ (moments @ step)).clamp(min=1e-30).sqrt()
        step = step * (MAX_STEP / length).clamp(max=1)
        rotation = _rotation(step[:3])
        turned, shift = rotation @ turned, rotation @ shift + step[3:]
    fetched = torch.cat([turned, (center + shift - turned @ center).view(1, 3)]).cpu()  # at once, as a GPU is waited for
    return rigid.Rigid(fetched[:3], fetched[3])


def _rotation(vector: Tensor) -> Tensor:
    """The rotation by a vector, axis times radians, ``(3, 3)`` (Rodrigues)."""
    x, y, z = vector
    none = torch.zeros_like(x)
    generator = torch.stack([torch.stack([none, -z, y]), torch.stack([z, none, -x]), torch.stack([-y, x, none])])
    angle = vector.norm()
    once, twice = torch.sinc(angle / math.pi), torch.sinc(angle / (2 * math.pi)).square() / 2
    return torch.eye(3, dtype=vector.dtype, device=vector.device) + once * generator + twice * (generator @ generator)


def _slopes(arms: Tensor, cell_mm: Tensor) -> Tensor:
    """How cells move, in cells, with a turn (radians) and a shift (mm): ``(n, 3, 6)``, at the ends of ``(n, 3)`` arms."""
    x, y, z = arms.T
    none = torch.zeros_like(x)
    turns = torch.stack([torch.stack([none, z, -y]), torch.stack([-z, none, x]), torch.stack([y, -x, none])]).movedim(-1, 0)
    shifts = torch.eye(3, dtype=arms.dtype, device=arms.device).expand(len(arms), 3, 3)
    return torch.cat([turns, shifts], dim=2) / cell_mm.view(1, 3, 1)
