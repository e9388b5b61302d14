"""The cascade: a masked search for a rigid motion, coarse to fine, then Gauss–Newton refinement, then a judgement.

Each stage warps the moving images from the original by all that is known so far and looks for the remainder only.
docs/method.md tells it step by step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from mcbo import cells, rigid
from mcbo.config import MIN_CELLS, Cascade, SearchStage
from mcbo.deform import search_deformation
from mcbo.field import check_finite, sample, shape_of
from mcbo.gauss_newton import Information, Modality, information_of, refine_by_gauss_newton
from mcbo.global_start import find_start
from mcbo.mask import bounding_box, field_of_view, fill_outside
from mcbo.mind import scale_to_one
from mcbo.search import search
from mcbo.similarity import similarity
from mcbo.timing import StageTimer
from mcbo.types import Displacement, Features, Judgement, Kernels, Mask, Masks, Shape, Triple, Volume

WEIGHT_FLOOR = 1e-3
"""Weight of unknown voxels in the means of cells: nothing beside known ones, but a cell without any has a mean all the same."""


@dataclass
class CascadeCase:
    """A case within the box that is worked on, and what is known of its motion.

    Attributes:
        fixed: ``(1, 1, h, w, d)``, filled beyond its mask.
        mask: of the fixed image, of the same shape.
        movings: whole moving images, filled beyond their masks.
        masks: of the moving images.
        offset: where the box begins in the whole volume, voxels.
        spacing_mm: voxel size along axes 0, 1, 2.
        whole_mask: of the whole fixed image.
        kernels: the hot steps.
        timer: told of every stage.
        share: of the case that a stage is, for the progress shown.
        motion: the rigid motion so far.
    """

    fixed: Volume
    mask: Mask
    movings: Sequence[Volume]
    masks: Sequence[Mask]
    offset: Shape
    spacing_mm: Triple
    whole_mask: Mask
    kernels: Kernels
    timer: StageTimer
    share: float
    motion: rigid.Rigid = field(default_factory=rigid.identity)
    _features: dict[tuple[int, int], Features] = field(default_factory=dict)

    @property
    def shape(self) -> Shape:
        return shape_of(self.fixed)

    def rigid_displacement(self) -> Displacement:
        """The motion so far, ``(1, 3, h, w, d)`` voxels."""
        return rigid.to_displacement(self.motion, self.shape, offset=self.offset, spacing_mm=self.spacing_mm, like=self.fixed)

    def fixed_features(self, radius: int, dilation: int) -> Features:
        """Features of the fixed image; those of the last radius and dilation are kept."""
        if (radius, dilation) not in self._features:
            self._features.clear()
            with self.timer.stage("features"):
                self._features[radius, dilation] = self.kernels.mind_ssc(self.fixed, radius=radius, dilation=dilation)
        return self._features[radius, dilation]

    def on_grid(self, displacement: Displacement, *, spacing: int, radius: int, dilation: int) -> "OnGrid":
        """Features of the fixed and of the warped moving images on a grid of cells."""
        fixed = self.fixed_features(radius, dilation)
        with self.timer.stage("features"):
            pooled, known = _pool(fixed, self.mask, spacing)
        modalities = [
            self._modality(moving, mask, displacement, spacing=spacing, radius=radius, dilation=dilation)
            for moving, mask in zip(self.movings, self.masks, strict=True)
        ]
        return OnGrid(pooled, known, modalities)

    def _modality(
        self, moving: Volume, mask: Mask, displacement: Displacement, *, spacing: int, radius: int, dilation: int
    ) -> Modality:
        with self.timer.stage("features"):
            warped = sample(moving, displacement, offset=self.offset, outside="border")
            seen = sample(mask.to(moving.dtype), displacement, offset=self.offset, outside="zeros") > 0.5
            return Modality(*_pool(self.kernels.mind_ssc(warped, radius=radius, dilation=dilation), seen, spacing))


@dataclass(frozen=True)
class OnGrid:
    """What a stage works on: features of cells, and how much of each cell is known."""

    fixed: Features
    known: Tensor
    modalities: list[Modality]

    def joint(self) -> tuple[Features, Features, Tensor, Tensor]:
        """All modalities as channels of one: fixed and moving features, and what is known of either."""
        fixed = self.fixed.repeat(1, len(self.modalities), 1, 1, 1)
        moving = torch.cat([m.features for m in self.modalities], dim=1)
        return fixed, moving, self.known, torch.stack([m.known for m in self.modalities]).amin(dim=0)


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


def prepare(
    fixed: Volume,
    movings: Sequence[Volume],
    known: Masks,
    *,
    spacing_mm: Triple,
    config: Cascade,
    kernels: Kernels,
    timer: StageTimer,
    share: float,
) -> CascadeCase:
    """Fills the images beyond their masks, and cuts out the box that is worked on."""
    reach = config.feature_reach
    mask, masks = known.fixed, known.movings
    box = bounding_box(mask, margin=config.margin)
    index = (slice(None), slice(None), *box)
    return CascadeCase(
        fixed=fill_outside(fixed[index], mask[index], reach=reach),
        mask=mask[index].contiguous(),
        movings=[fill_outside(moving, m, reach=reach) for moving, m in zip(movings, masks, strict=True)],
        masks=masks,
        offset=(box[0].start, box[1].start, box[2].start),
        spacing_mm=spacing_mm,
        whole_mask=mask,
        kernels=kernels,
        timer=timer,
        share=share,
    )


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


def judge(case: CascadeCase, candidates: dict[str, Displacement], config: Cascade) -> Judgement:
    """Compares identity, rigid and full result by features that no stage was fitted to (docs/method.md, step 6)."""
    scores = {name: _similarity(case, displacement, config) for name, displacement in candidates.items()}
    chosen = "full" if scores["full"] > scores["rigid"] + config.full_gain else "rigid"
    gain = scores[chosen] - scores["identity"]
    room = 1 - scores["identity"]
    is_small = _mean_length(case, candidates[chosen]) < config.small_motion and gain < config.small_gain * room
    before, after = (_evidence(case, candidates[name], config) for name in ("identity", "rigid"))
    rises = any(
        b.correlation > a.correlation + config.least_rise * b.standard_error for a, b in zip(before, after, strict=True)
    )
    is_clear = gain > config.clear_gain * room
    if gain > 0 and (rises or is_clear) and not is_small:
        return Judgement(chosen=chosen, similarity=scores, confidence=scores[chosen])
    is_related = any(one.correlation > config.least_correlation * one.standard_error for one in before)
    return Judgement(chosen="identity" if is_related else "cautious", similarity=scores, confidence=scores["identity"])


def judge_cautious(case: CascadeCase, displacement: Displacement, judgement: Judgement, config: Cascade) -> Judgement:
    """Keeps what the cautious stage found if similarity says anything for it; else no motion."""
    score = _similarity(case, displacement, config)
    scores = judgement.similarity | {"cautious": score}
    if score <= scores["identity"]:
        return Judgement(chosen="identity", similarity=scores, confidence=scores["identity"])
    return Judgement(chosen="cautious", similarity=scores, confidence=score)


def _mean_length(case: CascadeCase, displacement: Displacement) -> float:
    """Voxels that the field of view moves in the mean."""
    return float(displacement.norm(dim=1, keepdim=True)[case.mask].mean())


def _similarity(case: CascadeCase, displacement: Displacement, config: Cascade) -> float:
    """The highest similarity of a modality, times the root of how much of the fixed image has a counterpart."""
    grid = case.on_grid(displacement, spacing=config.judge_spacing, radius=config.judge_radius, dilation=config.judge_dilation)
    shared = [grid.known * (m.known > cells.MOSTLY) for m in grid.modalities]
    overlap = min(float(weight.sum() / grid.known.sum().clamp(min=1e-6)) for weight in shared)
    best = max(similarity(grid.fixed, m.features, weight) for m, weight in zip(grid.modalities, shared, strict=True))
    return best * math.sqrt(min(overlap, 1.0))


def _evidence(case: CascadeCase, displacement: Displacement, config: Cascade) -> list[Information]:
    """How the gradients of each modality correlate with those of the fixed image."""
    grid = case.on_grid(
        displacement, spacing=config.judge_spacing, radius=config.evidence_radius, dilation=config.evidence_dilation
    )
    return [
        information_of(grid.fixed, m.features, (grid.known > cells.MOSTLY) & (m.known > cells.MOSTLY)) for m in grid.modalities
    ]


def _pool(features: Features, mask: Mask, spacing: int) -> tuple[Features, Tensor]:
    """Means over the known part of each cell, and how much of it is known."""
    known = mask.to(features.dtype)
    means, _ = cells.pool(features, known + WEIGHT_FLOOR, spacing)
    return means, (cells.pool_sums(known, spacing) / spacing**3).clamp(max=1)
