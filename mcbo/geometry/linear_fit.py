"""Linear maps fitted by least squares: to a displacement field, and to pairs of landmarks, of which some may be wrong."""

import itertools
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.errors import InputError
from mcbo.core.types import Displacement, Mask, Shape
from mcbo.geometry.grid import apply_affine
from mcbo.geometry.rigid import fit_rigid

Model: TypeAlias = Literal["rigid", "affine"]

LEAST_PAIRS = {"rigid": 3, "affine": 4}
"""Pairs of landmarks that determine a map."""
_KEPT = 0.75
"""Share of the pairs that must fit."""
_FAR = 2.5
"""Pairs further off than so many standard deviations of those that fit are left out."""
_STARTS = 500
"""Sets of a few pairs to start from, at most: all, up to 15 pairs for a rigid map."""
_EXACT = 1e-6
"""Distances below this share of the largest coordinate are rounding."""
_FLAT = 1e-3
"""Landmarks whose spread across a line or plane is this share of that along it lie on it."""


@dataclass(frozen=True)
class LandmarkFit:
    """A map of world positions fitted to landmarks.

    Attributes:
        matrix: ``(4, 4)``, fixed to moving.
        fits: ``(n,)`` bool, which pairs it was fitted to.
        distances: ``(n,)`` of the moved fixed landmarks from the moving ones, in their unit.
    """

    matrix: NDArray[np.float64]
    fits: NDArray[np.bool_]
    distances: NDArray[np.float64]


def fit_linear(displacement: Displacement, mask: Mask, *, offset: Shape) -> Tensor:
    """The linear displacement of least squared distance from a displacement within a mask.

    Args:
        displacement: ``(1, 3, h, w, d)`` voxels, of a box that begins at ``offset`` in the volume.
        mask: ``(1, 1, h, w, d)`` bool; if it determines no linear map, the whole box counts.
        offset: voxels.

    Returns:
        ``(1, 3, 4)`` float64 coefficients of ``rigid.linear_displacement``, on the CPU: how each component grows along axes
        0, 1, 2 of the volume, and what it is at its origin.
    """
    shape = displacement.shape[2:]
    axes = [torch.arange(n, dtype=torch.float64, device=displacement.device) - (n - 1) / 2 for n in shape]
    moments, products = (displacement.new_zeros((4, n), dtype=torch.float64) for n in (4, 3))
    for plane, x in enumerate(axes[0]):  # one by one: the positions of all voxels take four times the memory of the field
        inside = mask[0, 0, plane]
        y, z = torch.meshgrid(axes[1], axes[2], indexing="ij")
        places = torch.stack([x.expand_as(y), y, z, torch.ones_like(y)], dim=-1)[inside]
        moments += places.T @ places
        products += places.T @ displacement[0, :, plane].movedim(0, -1)[inside].double()
    moments, products = moments.cpu(), products.cpu()
    if torch.linalg.matrix_rank(moments, hermitian=True) < 4 and not bool(mask.all()):
        return fit_linear(displacement, torch.ones_like(mask), offset=offset)
    solved = torch.linalg.lstsq(moments, products, driver="gelsd").solution.T
    center = torch.tensor([(n - 1) / 2 + o for n, o in zip(shape, offset, strict=True)], dtype=torch.float64)
    return torch.cat([solved[:, :3], solved[:, 3:] - solved[:, :3] @ center.unsqueeze(1)], dim=1).unsqueeze(0)


def fit_landmarks(fixed: NDArray[np.float64], moving: NDArray[np.float64], *, model: Model, close: float = 0.0) -> LandmarkFit:
    """The rigid or affine map from fixed to moving landmarks that most of them agree on: least trimmed squares.

    Small sets of pairs each give a map; the one after which the best three quarters of all pairs are closest is improved with
    these, and then with all that fit about as well. Source: Rousseeuw and Van Driessen, FAST-LTS, 2006.

    Args:
        fixed: ``(n, 3)`` world positions.
        moving: the same points in the moving image, ``(n, 3)``, in the same order.
        model: of the map.
        close: pairs that are this close to where they belong fit, whatever the others do.

    Raises:
        InputError: for too few pairs, other numbers of points, or points on a line (affine: in a plane).
    """
    least = LEAST_PAIRS[model]
    if fixed.shape != moving.shape or fixed.ndim != 2 or fixed.shape[1] != 3:
        raise InputError(f"expected as many fixed as moving landmarks, found {len(fixed)} and {len(moving)}")
    if len(fixed) < least:
        raise InputError(f"expected at least {least} pairs of landmarks for an initial transform ({model}), found {len(fixed)}")
    for who, points in (("fixed", fixed), ("moving", moving)):
        spread = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
        needed, flat = spread[1 if model == "rigid" else 2], "on a line" if model == "rigid" else "in a plane"
        if needed <= _FLAT * spread[0]:
            raise InputError(f"the {who} landmarks lie {flat}, which determines no {model} transform: expected others, too")
    kept = max(round(_KEPT * len(fixed)), min(least + 1, len(fixed)))
    found = [_concentrated(fixed, moving, np.array(start), kept, model) for start in _starts(len(fixed), least)]
    matrix = min(found, key=lambda one: np.sort(_distances(one, fixed, moving))[:kept].sum())
    for _ in range(10):
        distances = _distances(matrix, fixed, moving)
        order = np.argsort(distances, kind="stable")
        scale = np.sqrt(np.square(distances[order[:kept]]).sum() / max(kept - least, 1))
        fits = distances <= max(_FAR * scale, distances[order[kept - 1]], _EXACT * np.abs(moving).max(), close)
        now = _fit(fixed[fits], moving[fits], model)
        if np.allclose(now, matrix, rtol=0, atol=1e-9):
            break
        matrix = now
    return LandmarkFit(matrix, fits, _distances(matrix, fixed, moving))


def _starts(count: int, least: int) -> list[tuple[int, ...]]:
    """All sets of ``least`` of ``count`` numbers; where those are many, some of them, and all numbers at once."""
    several = list(itertools.islice(itertools.combinations(range(count), least), _STARTS + 1))
    if len(several) > _STARTS:
        rng = np.random.default_rng(0)
        several = [tuple(rng.choice(count, least, replace=False)) for _ in range(_STARTS)]
    return [*several, tuple(range(count))]


def _concentrated(
    fixed: NDArray[np.float64], moving: NDArray[np.float64], start: NDArray[np.int64], kept: int, model: Model
) -> NDArray[np.float64]:
    """The map of a few pairs, fitted twice to the pairs that it fits best."""
    matrix = _fit(fixed[start], moving[start], model)
    for _ in range(2):
        best = np.argsort(_distances(matrix, fixed, moving), kind="stable")[:kept]
        matrix = _fit(fixed[best], moving[best], model)
    return matrix


def _fit(fixed: NDArray[np.float64], moving: NDArray[np.float64], model: Model) -> NDArray[np.float64]:
    matrix = np.eye(4)
    if model == "rigid":
        motion = fit_rigid(torch.from_numpy(fixed), torch.from_numpy(moving), torch.ones(len(fixed), dtype=torch.float64))
        matrix[:3, :3], matrix[:3, 3] = motion.rotation.numpy(), motion.translation.numpy()
        return matrix
    center = fixed.mean(axis=0)
    slopes = np.linalg.lstsq(fixed - center, moving - moving.mean(axis=0), rcond=None)[0].T
    matrix[:3, :3], matrix[:3, 3] = slopes, moving.mean(axis=0) - slopes @ center
    return matrix


def _distances(matrix: NDArray[np.float64], fixed: NDArray[np.float64], moving: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(apply_affine(matrix, torch.from_numpy(fixed)).numpy() - moving, axis=1))
