"""The cascade: a masked search for a rigid motion, coarse to fine, then Gauss–Newton refinement, then a judgement.

Each stage warps the moving images from the original by all that is known so far and looks for the remainder only.
docs/method.md tells it step by step.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mcbo.core.field import check_finite, sample, shape_of
from mcbo.core.timing import StageTimer
from mcbo.core.types import Displacement, Judgement, Kernels, Masks, Triple, Volume
from mcbo.geometry import cells, rigid
from mcbo.geometry.mask import field_of_view
from mcbo.methods.cascade_case import CascadeCase, prepare
from mcbo.methods.config import MIN_CELLS, Cascade, SearchStage
from mcbo.methods.judgement import _mean_length, judge, judge_cautious
from mcbo.steps.deformable_search import search_deformation
from mcbo.steps.gauss_newton import refine_by_gauss_newton
from mcbo.steps.initialization import find_start
from mcbo.steps.masked_search import search
from mcbo.steps.mind import scale_to_one


def register_cascade(
    fixed: Volume,
    movings: Sequence[Volume],
    *,
    spacing_mm: Triple,
    config: Cascade,
    kernels: Kernels,
    timer: StageTimer,
    share_of_case: float = 1.0,
    masks: Masks | None = None,
) -> tuple[Displacement, Judgement]:
    """Registers moving images that share a grid to a fixed image, with one displacement for all of them.

    Args:
        fixed: ``(1, 1, H, W, D)`` intensities.
        movings: one or more of the same shape.
        spacing_mm: voxel size along axes 0, 1, 2.
        config: the preset, fitted to the shape.
        kernels: the hot steps.
        timer: told of every stage.
        share_of_case: what this is of all that is done for a case, for the progress shown.
        masks: where the images are known, if somebody knows better than ``mask.field_of_view``.

    Returns:
        ``(1, 3, H, W, D)`` voxels, and the judgement.
    """
    fixed, movings = scale_to_one(fixed), [scale_to_one(moving) for moving in movings]
    share = share_of_case / (len(config.search) + len(config.deform) + sum(stage.rounds for stage in config.refine) + 4)
    with timer.stage("masks", work=share):
        known = masks or Masks(field_of_view(fixed), tuple(field_of_view(moving) for moving in movings))
        case = prepare(fixed, movings, known, config=config, spacing_mm=spacing_mm, kernels=kernels, timer=timer, share=share)
    if config.start:
        with timer.stage("start", work=share):
            case.motion = find_start(
                fixed, case.whole_mask, movings, case.masks, spacing_mm=spacing_mm, settings=config.start, kernels=kernels
            )
    for stage in config.search:
        search_rigid(case, stage, config)
    linear = case.rigid_displacement()
    check_finite(linear, "search")
    full = refine(case, search_deformed(case, linear, config), config)
    check_finite(full, "refine")
    with timer.stage("judge", work=2 * share):
        judgement = judge(case, {"identity": torch.zeros_like(linear), "rigid": linear, "full": full}, config)
    extent = 1.0
    if judgement.chosen == "cautious":
        case.motion = rigid.identity()
        search_rigid(case, config.cautious, config)
        linear = case.rigid_displacement()
        extent = min(1.0, config.cautious_reach / max(_mean_length(case, linear), 1e-6))
        judgement = judge_cautious(case, linear * extent, judgement, config)
    if judgement.chosen == "identity":
        return fixed.new_zeros((1, 3, *shape_of(fixed))), judgement
    whole = rigid.to_displacement(case.motion, shape_of(fixed), offset=(0, 0, 0), spacing_mm=spacing_mm, like=fixed)
    whole *= extent
    if judgement.chosen == "full":
        padding = []
        for begin, inner, size in zip(reversed(case.offset), reversed(case.shape), reversed(shape_of(fixed)), strict=True):
            padding += [begin, size - begin - inner]
        whole += functional.pad(full - linear, padding, mode="replicate")
    return whole, judgement


def search_rigid(case: CascadeCase, stage: SearchStage, config: Cascade) -> None:
    """One stage of the search: displacements of cells, and the rigid motion that most of them agree on."""
    if min(cells.cell_shape(case.shape, stage.grid_spacing)) < MIN_CELLS:
        return
    grid = case.on_grid(
        case.rigid_displacement(), spacing=stage.grid_spacing, radius=config.mind_radius, dilation=config.mind_dilation
    )
    with case.timer.stage(f"search {stage.grid_spacing}", work=case.share):
        found = search(
            *grid.joint(),
            search_radius=stage.search_radius,
            coupling_weights=[weight * len(grid.modalities) for weight in config.coupling_weights],
            consistency_rounds=config.consistency_rounds,
            kernels=case.kernels,
        )
        case.motion = _fit(case, grid.known, found, stage.grid_spacing, config)


def _fit(case: CascadeCase, known: Tensor, found: Displacement, spacing: int, config: Cascade) -> rigid.Rigid:
    """The motion so far, after what was found on top of it."""
    spacing_mm = torch.tensor(case.spacing_mm, dtype=torch.float64)
    axes = [
        axis + begin
        for axis, begin in zip(cells.cell_centers(case.shape, spacing, device=torch.device("cpu")), case.offset, strict=True)
    ]
    centers = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    inside = known[0, 0].cpu() > cells.MOSTLY
    if int(inside.sum()) < 12:
        return case.motion
    points = centers[inside]
    targets = points + spacing * found[0].cpu().double().movedim(0, -1)[inside]
    return rigid.fit_trimmed(
        points * spacing_mm,
        case.motion.apply(targets * spacing_mm),
        known[0, 0].cpu().double()[inside],
        keep=config.trim_keep,
        rounds=config.trim_rounds,
    )


def search_deformed(case: CascadeCase, displacement: Displacement, config: Cascade) -> Displacement:
    """The stages of the search for a deformation, each composed with what was there."""
    for stage in config.deform:
        if min(cells.cell_shape(case.shape, stage.grid_spacing)) < MIN_CELLS:
            continue
        grid = case.on_grid(displacement, spacing=stage.grid_spacing, radius=stage.mind_radius, dilation=stage.mind_dilation)
        with case.timer.stage(f"deform {stage.grid_spacing}", work=case.share):
            found = search_deformation(
                *grid.joint(),
                search_radius=stage.search_radius,
                coupling_weights=[weight * len(grid.modalities) for weight in config.deform_weights],
                stretching=stage.stretching * len(grid.modalities),
                consistency_rounds=config.consistency_rounds,
                kernels=case.kernels,
            )
            displacement = compose(case, displacement, cells.to_voxels(found, case.shape, stage.grid_spacing))
    return displacement


def refine(case: CascadeCase, displacement: Displacement, config: Cascade) -> Displacement:
    """The refinement stages; a finer grid that is told less than a coarser one (its noise outweighs its detail) is left out."""
    start = displacement
    most = 0.0
    for stage in config.refine:
        for turn in range(stage.rounds):
            grid = case.on_grid(
                displacement, spacing=stage.grid_spacing, radius=stage.mind_radius, dilation=stage.mind_dilation
            )
            with case.timer.stage(f"refine {stage.grid_spacing}", work=case.share):
                found, density = refine_by_gauss_newton(
                    grid.fixed,
                    grid.known,
                    grid.modalities,
                    cells.to_cells(displacement - start, stage.grid_spacing),
                    bending=config.bending * stage.grid_spacing,
                    iterations=stage.iterations,
                    cg_iterations=config.cg_iterations,
                )
                density /= stage.grid_spacing**5
                if turn == 0 and density < most:
                    break
                most = max(most, density)
                displacement = compose(case, displacement, cells.to_voxels(found, case.shape, stage.grid_spacing))
    return displacement


def compose(case: CascadeCase, displacement: Displacement, first: Displacement) -> Displacement:
    """The displacement of ``first`` and then ``displacement``: v(p) + u(p + v(p)).

    The rigid part of u is continued beyond the box as what it is; the rest is continued by its border.
    """
    linear = case.rigid_displacement()
    rest = sample(displacement - linear, first, offset=(0, 0, 0), outside="border")
    spacing = torch.tensor(case.spacing_mm, dtype=torch.float64)
    matrix = case.motion.rotation * spacing.view(1, 3) / spacing.view(3, 1)
    turned = torch.einsum("ab,nbhwd->nahwd", matrix.to(first.device, first.dtype), first)
    return linear + turned + rest
