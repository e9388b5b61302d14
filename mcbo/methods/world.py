"""Images of different grids registered where they lie in the world.

Fixed and moving images are brought onto a working grid, the moving ones by way of an initial motion; there the pipeline finds
a displacement; and that, with the initial motion in it, is brought to the fixed image's own grid.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.errors import NoOverlapError
from mcbo.core.field import box_sum, check_finite, shape_of
from mcbo.core.timing import StageTimer
from mcbo.core.types import Displacement, Judgement, Kernels, Mask, Masks, Volume
from mcbo.geometry.continuation import continued
from mcbo.geometry.grid import Grid, apply_affine
from mcbo.geometry.mask import field_of_view
from mcbo.geometry.resample import resample
from mcbo.methods.config import MIN_VOXELS, Group, Preset, Registration
from mcbo.methods.pipeline import register
from mcbo.methods.quality import Sanity, examine
from mcbo.methods.working_grid import whole_grid

KNOWN_VOXEL_SHARE = 0.5
"""A voxel of the working grid is known if more than this part of what it is interpolated from is."""


@dataclass(frozen=True)
class Placed:
    """An image where it lies.

    Attributes:
        volume: ``(1, 1, H, W, D)`` float32 intensities.
        grid: its grid.
        mask: ``(1, 1, H, W, D)`` where it counts; found by ``mask.field_of_view``, if None.
    """

    volume: Volume
    grid: Grid
    mask: Mask | None = None

    def known(self) -> Mask:
        """The mask, given or found."""
        return field_of_view(self.volume) if self.mask is None else self.mask


def register_in_world(
    fixed: Placed,
    movings: Sequence[Placed],
    *,
    initial: NDArray[np.float64],
    working: Grid,
    config: Preset,
    kernels: Kernels,
    budget_bytes: int,
    timer: StageTimer,
    names: Sequence[str],
    bounds: bool = False,
) -> tuple[Registration, list[Sanity]]:
    """Registers images on a ``working`` grid, from an ``initial`` motion ``(4, 4)``, fixed to moving world positions (RAS, mm).

    ``names`` are what errors call the moving images; ``bounds`` asks for those of the errors, too.

    Returns:
        Displacements ``(1, 3, H, W, D)`` in voxels of the fixed grid, including the initial motion; and quality checks of each
        on the working grid, without it.

    Raises:
        InputError: if an image is constant, or has nothing in common with the fixed one where it lies.
        McboError: as ``pipeline.register``.
    """
    with timer.stage("resample"):
        fixed_volume, fixed_mask = bring(fixed, working, np.eye(4))
        brought = [bring(moving, working, initial) for moving in movings]
    for name, (volume, mask) in zip(names, brought, strict=True):
        _check_seen(volume, mask, fixed_mask, name)
    registration = register(
        fixed_volume,
        [volume for volume, _ in brought],
        spacing_mm=working.spacing_mm,
        config=config,
        kernels=kernels,
        budget_bytes=budget_bytes,
        timer=timer,
        masks=Masks(fixed_mask, tuple(mask for _, mask in brought)) if config.uses_masks else None,
    )
    with timer.stage("sanity"):
        examined = examine(
            fixed_volume,
            {str(number): volume for number, (volume, _) in enumerate(brought)},
            {str(number): displacement for number, displacement in enumerate(registration.displacements)},
            config=registration.config,
            kernels=kernels,
        )
    found = _bounds(registration, fixed_volume, fixed_mask, brought, working, kernels, timer) if bounds else {}
    with timer.stage("bring back"):
        shared = {id(u): u for u in registration.displacements}
        back = {key: bring_back(u, working, fixed.grid, initial) for key, u in shared.items()}
        same = working.matches(fixed.grid, within_voxels=1e-4)
        found = {key: b if same else resample(b, working, fixed.grid, outside=math.nan) for key, b in found.items()}
    result = replace(
        registration,
        displacements=tuple(back[id(u)] for u in registration.displacements),
        bounds=tuple(found[id(u)] for u in registration.displacements) if found else (),
    )
    return result, list(examined.values())


def locate(
    fixed: Placed, movings: Sequence[Placed], *, initial: NDArray[np.float64], config: Preset, kernels: Kernels
) -> NDArray[np.float64] | None:
    """Seeks the fixed image in all that the moving ones show, wherever that lies.

    Returns:
        An initial motion that takes ``initial`` further, ``(4, 4)``; None if none is found (see ``Preset.locate``).
    """
    grid = whole_grid(fixed.grid, [moving.grid for moving in movings], initial=initial)
    if min(grid.shape) < MIN_VOXELS:
        return None
    volume, mask = bring(fixed, grid, np.eye(4))
    volumes, masks = zip(*(bring(moving, grid, initial) for moving in movings), strict=True)
    motion = config.locate(volume, volumes, Masks(mask, masks), spacing_mm=grid.spacing_mm, kernels=kernels)
    if motion is None:
        return None
    to_world, moved = grid.affine.copy(), np.eye(4)
    to_world[:3, :3] /= grid.spacing_mm  # of a column each
    moved[:3, :3], moved[:3, 3] = motion.rotation.numpy(), motion.translation.numpy()
    return np.asarray(initial @ to_world @ moved @ np.linalg.inv(to_world))


def _bounds(
    registration: Registration,
    fixed: Volume,
    fixed_mask: Mask,
    movings: Sequence[tuple[Volume, Mask]],
    working: Grid,
    kernels: Kernels,
    timer: StageTimer,
) -> dict[int, Tensor]:
    """Bounds of the errors on the working grid, by the identity of the displacement; empty if the preset knows none."""
    found = {}
    for key in dict.fromkeys(id(u) for u in registration.displacements):
        members = [n for n, u in enumerate(registration.displacements) if id(u) == key]
        group = Group([movings[n][0] for n in members], Masks(fixed_mask, tuple(movings[n][1] for n in members)))
        with timer.stage("uncertainty"):
            bound = registration.config.bound_errors(
                fixed,
                group,
                registration.displacements[members[0]],
                registration.judgements[members[0]] if registration.judgements else Judgement("full", {}, 1.0),
                spacing_mm=working.spacing_mm,
                kernels=kernels,
                timer=timer,
            )
        if bound is not None:
            found[key] = bound
    return found


def bring(image: Placed, onto: Grid, initial: NDArray[np.float64]) -> tuple[Volume, Mask]:
    """An image and its mask on another grid, whose world positions ``initial`` ``(4, 4)`` takes to those of the image.

    Returns:
        ``(1, 1, h, w, d)`` intensities, the image's lowest outside of it; and where they are known.
    """
    mask = image.known()
    seen_from = Grid(onto.shape, initial @ onto.affine)
    if seen_from.matches(image.grid, within_voxels=1e-4):
        return image.volume, mask
    known = mask.to(image.volume.dtype)
    low = float(image.volume.min())
    volume = _smoothed(image.volume, known, image.grid, seen_from)
    volume = resample(volume, image.grid, seen_from, outside=low)
    return volume, resample(known, image.grid, seen_from) > KNOWN_VOXEL_SHARE


def _smoothed(volume: Volume, known: Tensor, its_grid: Grid, onto: Grid) -> Volume:
    """Means over as many voxels as one of a coarser grid spans, of those that are known; else sampling would pick some."""
    steps = np.abs(np.linalg.inv(its_grid.affine)[:3, :3] @ onto.affine[:3, :3]).max(axis=1)
    sizes = [2 * int(step / 2 + 1e-3) + 1 for step in steps]
    if max(sizes) == 1:
        return volume
    sums, weights = volume * known, known
    for axis, size in zip((-3, -2, -1), sizes, strict=True):
        if size > 1:
            sums, weights = box_sum(sums, axes=[axis], size=size), box_sum(weights, axes=[axis], size=size)
    return torch.where(weights > 0, sums / weights.clamp(min=1), volume)


def bring_back(displacement: Displacement, working: Grid, fixed: Grid, initial: NDArray[np.float64]) -> Displacement:
    """A displacement ``(1, 3, h, w, d)`` of the working grid and then the initial motion, as voxels of the fixed grid."""
    if np.array_equal(initial, np.eye(4)) and working.matches(fixed, within_voxels=1e-4):
        return displacement
    forward = continued(displacement, working)
    result = displacement.new_empty((1, 3, *fixed.shape))
    for first, last in fixed.slabs():
        voxels = fixed.voxels(first, last).to(displacement.device)
        found = working.to_world(forward.moved(working.to_voxels(fixed.to_world(voxels))))
        moved = fixed.to_voxels(apply_affine(initial, found))
        result[0, :, first:last] = (moved - voxels).T.reshape(3, last - first, *fixed.shape[1:])
    check_finite(result, "bring back")
    return result


def centering(images: Sequence[Placed]) -> NDArray[np.float64]:
    """The shift, ``(4, 4)``, by which the center of mass of the first image becomes the mean of those of the others."""
    middle, *others = (_center_of_mass(image) for image in images)
    motion = np.eye(4)
    motion[:3, 3] = np.mean(others, axis=0) - middle
    return motion


def _center_of_mass(image: Placed) -> NDArray[np.float64]:
    """Where the mean of an image's known voxels, weighted by their intensity above the lowest of them, lies: mm, RAS."""
    known = image.known()[0, 0]
    values = image.volume[0, 0].double()
    weights = torch.where(known, values - values[known].min(), 0) if bool(known.any()) else torch.ones_like(values)
    if not bool(weights.any()):
        weights = known.double()
    total = weights.sum()
    index = [
        (weights.sum(dim=[a for a in range(3) if a != axis]) * torch.arange(size, device=values.device)).sum() / total
        for axis, size in enumerate(shape_of(image.volume))
    ]
    return image.grid.to_world(torch.stack(index)).cpu().numpy()


def _check_seen(volume: Volume, mask: Mask, fixed_mask: Mask, name: str) -> None:
    if not bool((mask & fixed_mask).any()) or bool(volume.min() == volume.max()):
        raise NoOverlapError(
            f"{name}: expected it to overlap the fixed image in world coordinates, but where that lies it shows nothing; "
            "`mcbo register` takes a rough alignment with --initial, or --center to let the centers of mass coincide"
        )
