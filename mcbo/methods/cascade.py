"""The cascade: a search for rigid motions, refined coarse to fine; a deformation; a judgement by what chance finds.

Each stage warps the original moving images by the motion found so far and searches for the remainder (docs/method.md).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from mcbo.core.errors import InputError
from mcbo.core.field import check_finite, shape_of
from mcbo.core.timing import StageTimer
from mcbo.core.types import Choice, Displacement, Freedom, Judgement, Kernels, Masks, Shape, Triple, Volume
from mcbo.geometry import cells, rigid
from mcbo.geometry.linear_fit import fit_linear
from mcbo.geometry.mask import field_of_view
from mcbo.geometry.rigid import Rigid
from mcbo.methods.cascade_case import CascadeCase, prepare
from mcbo.methods.config import MIN_CELLS, Group, Preset, Registration, check_size
from mcbo.methods.hypotheses import Expected, HypothesisSettings, Overview, find_hypotheses
from mcbo.methods.judgement import JudgementSettings, judge, judge_cautious, mean_length_mm, overruled, shortened
from mcbo.methods.memory_model import cascade_bytes, check_budget
from mcbo.methods.uncertainty import UncertaintySettings, bound_errors
from mcbo.steps.appearance import predict
from mcbo.steps.deformable_search import COST_BOX_ROUNDS, DeformStage, solve_stretched
from mcbo.steps.gauss_newton import RefineStage, refine_by_gauss_newton
from mcbo.steps.initialization import InitializationSettings
from mcbo.steps.masked_search import SearchStage, search
from mcbo.steps.mind import MindSettings, scale_to_one
from mcbo.steps.rigid_refinement import refine_rigid

LEAST_EXPECTED, MAX_EXPECTED = (1e-9, 1e-3), (1e6, 180.0)
"""Limits of how far apart images can be expected to be: mm or degrees, and mm and degrees."""

WORSE = 0.003
"""Similarity: a round of the rigid refinement that loses more than this is the last."""
_START_WORK, _JUDGE_WORK = 47.0, 0.7
"""Seconds of these stages, that of the start for each voxel of its overview, where masks take one for each voxel: BrainSim, two
cores, Intel Xeon, 2026-11-28. For the progress shown."""

LEAST_SIMILARITY = 0.01
"""Used for a smaller one: it divides."""


@dataclass(frozen=True)
class RigidStages:
    """Settings of the stages that improve a rigid motion (``rigid_refinement.py``), and of the cautious one.

    Attributes:
        mind: their features.
        grid_spacings: g, voxels per cell, coarse to fine.
        rounds: how often the moving images are warped and their features computed again, at each g.
        iterations: of Gauss–Newton in each round.
        cautious: the search from no motion, where it is improbable that anything was found (``masked_search.py``).
        coupling_weights: of the passes of its convex optimization, for one modality.
        trim_keep: share of its cells that the rigid motion is fitted to (``rigid.py``).
        trim_rounds: of that fit at most.
    """

    mind: MindSettings
    grid_spacings: tuple[int, ...]
    rounds: int
    iterations: int
    cautious: SearchStage
    coupling_weights: tuple[float, ...]
    trim_keep: float
    trim_rounds: int


@dataclass(frozen=True)
class DeformableSearch:
    """Settings of the search for a deformation (``deformable_search.py``).

    Attributes:
        stages: coarse to fine; may be empty.
        coupling_weights: of the passes of the convex optimization, for one modality.
    """

    stages: tuple[DeformStage, ...]
    coupling_weights: tuple[float, ...]


@dataclass(frozen=True)
class GaussNewton:
    """Settings of the refinement (``gauss_newton.py``).

    Attributes:
        stages: coarse to fine; may be empty.
        bending: weight of ∫ |Δ(u − u₀)|² dV, in voxels, u₀ being what the refinement starts from.
        cg_iterations: of conjugate gradients at most.
    """

    stages: tuple[RefineStage, ...]
    bending: float
    cg_iterations: int


@dataclass(frozen=True)
class CascadeConfig(Preset):
    """Settings of the cascade.

    Attributes:
        name: of the preset.
        start: the search for motions from far away, or None to start from no motion only.
        hypotheses: the search for rigid motions, and what chance finds.
        expected: how far apart the images are before registration.
        appearance: rounds in which the moving image's appearance is predicted from the fixed one's, and the motion improved.
        rigid: stages that improve the rigid motion.
        deformation: searched, on top of it.
        refinement: of what was found.
        judgement: of the result.
        uncertainty: of the bound of its errors; decides no displacement.
        consistency_rounds: of the inverse consistency.
        margin: voxels around the field of view that are worked on.
        modality_fusion: the displacements of all moving modalities are one from the start.
        accept: the result that the user demands, whatever the judgement is.
        freedom: what the full result is: the deformation, its affine part, or nothing beyond the rigid motion.
        oversampling: how much finer than the moving images a grid that is chosen for them may be (``working_grid.py``).
    """

    name: str
    start: InitializationSettings | None
    hypotheses: HypothesisSettings
    expected: Expected
    appearance: int
    rigid: RigidStages
    deformation: DeformableSearch
    refinement: GaussNewton
    judgement: JudgementSettings
    uncertainty: UncertaintySettings
    consistency_rounds: int
    margin: int
    modality_fusion: Literal["joint"] | None
    accept: Choice | None = None
    freedom: Freedom = "deformable"
    oversampling: float = 2.0
    uses_masks: ClassVar[bool] = True
    knows_uncertainty: ClassVar[bool] = True

    @property
    def times_finer(self) -> float:
        return self.oversampling

    @property
    def seeks(self) -> bool:
        return self.start is not None and self.expected.mm is None and self.accept != "identity"

    @property
    def feature_reach(self) -> int:
        """How far the features of any stage see, voxels."""
        stages: list[RefineStage | DeformStage] = [*self.refinement.stages, *self.deformation.stages]
        return max([self.rigid.mind.reach, *(stage.mind.reach for stage in stages)])

    @property
    def _searches(self) -> list[SearchStage | DeformStage]:
        return [self.rigid.cautious, *self.deformation.stages]

    def register(
        self,
        fixed: Volume,
        groups: Sequence[Group],
        *,
        spacing_mm: Triple,
        kernels: Kernels,
        budget_bytes: int,
        timer: StageTimer,
    ) -> Registration:
        shape, joint = shape_of(fixed), len(groups[0].movings)
        needed = self.peak_bytes(shape, movings=joint, kernels=kernels)
        check_budget(shape, movings=joint, needed=needed, budget_bytes=budget_bytes)
        share = 1 / len(groups)
        results = [
            register_cascade(
                fixed, group, spacing_mm=spacing_mm, config=self, kernels=kernels, timer=timer, share_of_case=share
            )
            for group in groups
        ]
        displacements, judgements = zip(*(result for result in results for _ in range(joint)), strict=True)
        return Registration(displacements, config=self, judgements=judgements)

    def least_bytes(self, shape: Shape, *, movings: int, kernels: Kernels) -> int:
        return self.peak_bytes(shape, movings=movings, kernels=kernels)

    def peak_bytes(self, shape: Shape, *, movings: int, kernels: Kernels) -> int:
        check_size(shape)
        isotropic = 1.0, 1.0, 1.0
        start = self.start
        coarse = cells.cell_shape(shape, cells.isotropic_spacing(shape, isotropic, start.cells)) if start else None
        return cascade_bytes(
            shape,
            movings=movings,
            searches=self._searches,
            refinements=self.refinement.stages,
            overview=cells.cell_shape(shape, cells.isotropic_spacing(shape, isotropic, self.hypotheses.closer.cells)),
            poses=1 + 2 * len(self.hypotheses.mirrors) + self.start.kept if self.start else 1 + len(self.hypotheses.mirrors),
            coarse=coarse,
            kernels=kernels,
        )

    def search_range(self, shape: Shape) -> Triple:
        """What ``min_overlap`` leaves of an axis, plus R cells of each later stage, up to the whole axis.

        Rotation may move the corners of a volume further.
        """
        reach = math.fsum(stage.grid_spacing * stage.search_radius for stage in self._searches)
        share = 1 - self.start.min_overlap if self.start else 0.0
        height, width, depth = (min(share * size + reach, float(size)) for size in shape)
        return height, width, depth

    def bound_errors(
        self,
        fixed: Volume,
        group: Group,
        displacement: Displacement,
        judgement: Judgement,
        *,
        spacing_mm: Triple,
        kernels: Kernels,
        timer: StageTimer,
    ) -> Tensor:
        fixed, group = scale_to_one(fixed), replace(group, movings=[scale_to_one(moving) for moving in group.movings])
        case = _case_of(fixed, group, self, spacing_mm=spacing_mm, kernels=kernels, timer=timer, share=0.0)
        box = tuple(slice(begin, begin + size) for begin, size in zip(case.offset, case.shape, strict=True))
        inside = displacement[(slice(None), slice(None), *box)].contiguous()
        case.look_under(inside)
        found = bound_errors(
            case,
            inside,
            judgement,
            settings=self.uncertainty,
            bending=self.refinement.bending,
            cg_iterations=self.refinement.cg_iterations,
            expected_mm=self.expected.shift_mm(spacing_mm),
            doubtful=self.judgement.doubtful,
        )
        whole = torch.full_like(fixed, math.nan)
        whole[(slice(None), slice(None), *box)] = found
        return whole

    def locate(
        self, fixed: Volume, movings: Sequence[Volume], masks: Masks, *, spacing_mm: Triple, kernels: Kernels
    ) -> Rigid | None:
        hypotheses = find_hypotheses(
            scale_to_one(fixed),
            masks.fixed,
            [scale_to_one(moving) for moving in movings],
            masks.movings,
            spacing_mm=spacing_mm,
            start=self.start,
            settings=self.hypotheses,
            expected=Expected(voxels=0.0, mm=MAX_EXPECTED[0], degrees=MAX_EXPECTED[1]),
            kernels=kernels,
        )
        return hypotheses.motions[hypotheses.best] if self.judgement.is_found(hypotheses) else None

    def once_located(self) -> "CascadeConfig":
        return replace(self, judgement=replace(self.judgement, small_motion=0.0))

    def expecting(self, mm: float, degrees: float) -> "CascadeConfig":
        if not (LEAST_EXPECTED[0] <= mm <= MAX_EXPECTED[0] and LEAST_EXPECTED[1] <= degrees <= MAX_EXPECTED[1]):
            raise InputError(
                f"expect: expected a shift of {LEAST_EXPECTED[0]:g} to {MAX_EXPECTED[0]:g} mm and a rotation of "
                f"{LEAST_EXPECTED[1]:g} to {MAX_EXPECTED[1]:g} degrees, got {mm:g} and {degrees:g}"
            )
        return replace(self, expected=replace(self.expected, mm=float(mm), degrees=float(degrees)))

    def accepting(self, choice: Choice) -> "CascadeConfig":
        if choice not in get_args(Choice):
            raise InputError(f"accept: expected one of {', '.join(get_args(Choice))}, got {choice!r:.40}")
        if choice == "full" and self.freedom == "rigid":
            raise InputError("accept: expected rigid or identity where only a rigid transform is sought, got 'full'")
        return replace(self, accept=choice)

    def restricted_to(self, freedom: Freedom) -> "CascadeConfig":
        if freedom not in get_args(Freedom):
            raise InputError(f"transform: expected one of {', '.join(get_args(Freedom))}, got {freedom!r:.40}")
        return replace(self, freedom=freedom)

    def doubt(self, judgement: Judgement) -> str | None:
        if judgement.confidence >= self.judgement.doubtful:
            return None
        return (
            f"low confidence: the probability that the images were aligned is {judgement.confidence:.2f}, as the search finds "
            f"hardly less in mirrored moving images ({judgement.chosen} result)"
        )


def register_cascade(
    fixed: Volume,
    group: Group,
    *,
    spacing_mm: Triple,
    config: CascadeConfig,
    kernels: Kernels,
    timer: StageTimer,
    share_of_case: float = 1.0,
) -> tuple[Displacement, Judgement]:
    """Registers the moving images of one group; see ``pipeline.register``. ``share_of_case`` scales the progress shown.

    Returns:
        One displacement for all of them, ``(1, 3, H, W, D)`` voxels, and the judgement.
    """
    fixed, group = scale_to_one(fixed), replace(group, movings=[scale_to_one(moving) for moving in group.movings])
    start_work = _START_WORK / math.prod(cells.isotropic_spacing(shape_of(fixed), spacing_mm, config.hypotheses.overview.cells))
    share = share_of_case / (start_work + _work_after_start(config))
    with timer.stage("masks", work=share):
        case = _case_of(fixed, group, config, spacing_mm=spacing_mm, kernels=kernels, timer=timer, share=share)
    with timer.stage("start", work=start_work * share):
        hypotheses = find_hypotheses(
            fixed,
            case.whole_mask,
            group.movings,
            case.masks,
            spacing_mm=spacing_mm,
            start=config.start,
            settings=config.hypotheses,
            expected=config.expected,
            kernels=kernels,
        )
        case.motion = hypotheses.motions[hypotheses.best]
        if config.appearance:
            improve_by_appearance(case, fixed, config)
    for spacing in config.rigid.grid_spacings:
        improve_rigid(case, spacing, config)
    linear = case.rigid_displacement()
    check_finite(linear, "search")
    candidates = {"identity": torch.zeros_like(linear), "rigid": linear}
    affine = None
    if config.freedom != "rigid" and (config.judgement.is_found(hypotheses) or config.accept == "full"):
        full = refine(case, search_deformed(case, linear, config), config)
        check_finite(full, "refine")
        if config.freedom == "affine":
            affine = fit_linear(full, case.mask, offset=case.offset)
            full = kernels.linear_displacement(affine.to(full.device), case.shape, offset=case.offset)
        candidates["full"] = full
    with timer.stage("judge", work=_JUDGE_WORK * share):
        judgement = judge(case, candidates, hypotheses, config.judgement)
        if config.accept:
            judgement = overruled(judgement, config.accept)
    extent = 1.0
    if judgement.chosen == "cautious":
        case.motion = rigid.identity()
        search_rigid(case, config.rigid.cautious, config)
        linear = case.rigid_displacement()
        length = mean_length_mm(case, linear)
        _, nearby = config.judgement.probability(hypotheses)
        extent = shortened(length, probability=nearby, expected=config.expected.shift_mm(spacing_mm))
        extent = min(extent, config.judgement.cautious_reach * min(spacing_mm) / max(length, 1e-300))
        judgement = judge_cautious(case, linear * extent, judgement, config.judgement)
    if judgement.chosen == "identity":
        return fixed.new_zeros((1, 3, *shape_of(fixed))), judgement
    whole = rigid.to_displacement(
        case.motion,
        shape_of(fixed),
        offset=(0, 0, 0),
        spacing_mm=spacing_mm,
        like=fixed,
        linear=kernels.linear_displacement,
    )
    whole *= extent
    if judgement.chosen == "full" and affine is not None:
        whole = kernels.linear_displacement(affine.to(whole.device), shape_of(fixed), offset=(0, 0, 0))
    elif judgement.chosen == "full":
        padding = []
        for begin, inner, size in zip(reversed(case.offset), reversed(case.shape), reversed(shape_of(fixed)), strict=True):
            padding += [begin, size - begin - inner]
        whole += functional.pad(candidates["full"] - linear, padding, mode="replicate")
    return whole, judgement


def _work_on(grid_spacing: int) -> float:
    """The same of a round on a grid of cells, its features included."""
    return 1 + 2 * (2 / grid_spacing) ** 3


def _work_after_start(config: CascadeConfig) -> float:
    """The same of all other stages of a full result."""
    rounds = [(spacing, 1) for spacing in config.rigid.grid_spacings]
    rounds += [(stage.grid_spacing, 1) for stage in config.deformation.stages]
    rounds += [(stage.grid_spacing, stage.rounds) for stage in config.refinement.stages]
    return 1 + _JUDGE_WORK + math.fsum(count * _work_on(spacing) for spacing, count in rounds)


def _case_of(
    fixed: Volume,
    group: Group,
    config: CascadeConfig,
    *,
    spacing_mm: Triple,
    kernels: Kernels,
    timer: StageTimer,
    share: float,
) -> CascadeCase:
    """The case of a group whose images are scaled to one; what is known of them is found where it is not given."""
    return prepare(
        fixed,
        group.movings,
        group.masks or Masks(field_of_view(fixed), tuple(field_of_view(moving) for moving in group.movings)),
        margin=config.margin,
        reach=config.feature_reach,
        spacing_mm=spacing_mm,
        kernels=kernels,
        timer=timer,
        share=share,
    )


def improve_by_appearance(case: CascadeCase, fixed: Volume, config: CascadeConfig) -> None:
    """Improves the motion on an overview, in which the fixed image looks as the moving one would there."""
    overview = Overview(
        fixed,
        case.whole_mask,
        case.movings,
        case.masks,
        spacing_mm=case.spacing_mm,
        settings=config.hypotheses.overview,
        kernels=case.kernels,
    )
    moving, seen = overview.movings[0]
    for _ in range(config.appearance):
        moved, known = case.kernels.sample_known(moving, seen, overview.displacement(case.motion), offset=(0, 0, 0))
        overview.look_at(predict(overview.fixed, overview.known, moved, known.to(moved.dtype)))
        ((_, case.motion),) = overview.refine(rigid.stacked([case.motion]))


def improve_rigid(case: CascadeCase, spacing: int, config: CascadeConfig) -> None:
    """Improves the motion with the features of all cells; the most similar one is kept."""
    if min(cells.cell_shape(case.shape, spacing)) < MIN_CELLS:
        return
    device = case.fixed.device
    voxel_mm = torch.tensor(case.spacing_mm, dtype=torch.float64).to(device, non_blocking=True)
    centers = zip(cells.cell_centers(case.shape, spacing, device=device), case.offset, strict=True)
    first_mm = torch.stack([place[0] + begin for place, begin in centers]) * voxel_mm
    best = -math.inf, case.motion
    for turn in range(config.rigid.rounds + 1):
        grid = case.on_grid(case.rigid_displacement(), spacing=spacing, mind=config.rigid.mind)
        with case.timer.stage(f"rigid {spacing}", work=case.share * _work_on(spacing) / (config.rigid.rounds + 1)):
            score = float(grid.similarity())
            if score > best[0]:
                best = score, case.motion
            elif score < best[0] - WORSE:
                break
            if turn == config.rigid.rounds:
                break
            first = refine_rigid(
                grid.fixed,
                grid.known,
                grid.modalities,
                first_mm=first_mm,
                cell_mm=voxel_mm * spacing,
                iterations=config.rigid.iterations,
                kernels=case.kernels,
            )
            case.motion = case.motion.after(first[0])
    case.motion = best[1]


def search_rigid(case: CascadeCase, stage: SearchStage, config: CascadeConfig) -> None:
    """One stage of the search: displacements of cells, and the rigid motion that most of them agree on."""
    if min(cells.cell_shape(case.shape, stage.grid_spacing)) < MIN_CELLS:
        return
    grid = case.on_grid(case.rigid_displacement(), spacing=stage.grid_spacing, mind=config.rigid.mind)
    with case.timer.stage(f"search {stage.grid_spacing}", work=case.share):
        found = search(
            *grid.joint(),
            search_radius=stage.search_radius,
            coupling_weights=[weight * len(grid.modalities) for weight in config.rigid.coupling_weights],
            consistency_rounds=config.consistency_rounds,
            kernels=case.kernels,
        )
        case.motion = _fit(case, grid.known, found, stage.grid_spacing, config)


def _fit(case: CascadeCase, known: Tensor, found: Displacement, spacing: int, config: CascadeConfig) -> rigid.Rigid:
    """The motion so far, after what was found on top of it."""
    spacing_mm = torch.tensor(case.spacing_mm, dtype=torch.float64).to(found.device, non_blocking=True)
    places = cells.cell_centers(case.shape, spacing, device=found.device)
    axes = [place + begin for place, begin in zip(places, case.offset, strict=True)]
    centers = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    share = known[0, 0]
    inside = share > cells.KNOWN_CELL_SHARE
    points = centers[inside]
    if len(points) < 12:
        return case.motion
    targets = points + spacing * found[0].double().movedim(0, -1)[inside]
    return rigid.fit_trimmed(
        points * spacing_mm,
        case.motion.apply(targets * spacing_mm),
        share.double()[inside],
        keep=config.rigid.trim_keep,
        rounds=config.rigid.trim_rounds,
    )


def search_deformed(case: CascadeCase, displacement: Displacement, config: CascadeConfig) -> Displacement:
    """The stages of the search for a deformation, each composed with what was there."""
    for stage in config.deformation.stages:
        if min(cells.cell_shape(case.shape, stage.grid_spacing)) < MIN_CELLS:
            continue
        grid = case.on_grid(displacement, spacing=stage.grid_spacing, mind=stage.mind)
        stiffness = max(stage.clear / max(float(grid.similarity()), LEAST_SIMILARITY), 1.0) ** 2
        with case.timer.stage(f"deform {stage.grid_spacing}", work=case.share * _work_on(stage.grid_spacing)):
            found = search(
                *grid.joint(),
                search_radius=stage.search_radius,
                coupling_weights=[weight * len(grid.modalities) for weight in config.deformation.coupling_weights],
                consistency_rounds=config.consistency_rounds,
                kernels=case.kernels,
                solve=partial(solve_stretched, stretching=stage.stretching * len(grid.modalities) * stiffness),
                box_rounds=COST_BOX_ROUNDS,
            )
            displacement = compose(case, displacement, case.kernels.to_voxels(found, case.shape, stage.grid_spacing))
    return displacement


def refine(case: CascadeCase, displacement: Displacement, config: CascadeConfig) -> Displacement:
    """Refines; a finer grid that has less information than a coarser one (its noise outweighs its detail) is left out."""
    start = displacement
    most = 0.0
    for stage in config.refinement.stages:
        for turn in range(stage.rounds):
            grid = case.on_grid(displacement, spacing=stage.grid_spacing, mind=stage.mind)
            with case.timer.stage(f"refine {stage.grid_spacing}", work=case.share * _work_on(stage.grid_spacing)):
                found, density = refine_by_gauss_newton(
                    grid.fixed,
                    grid.known,
                    grid.modalities,
                    cells.to_cells(displacement - start, stage.grid_spacing, pool=case.kernels.pool),
                    bending=config.refinement.bending * stage.grid_spacing,
                    iterations=stage.iterations,
                    cg_iterations=config.refinement.cg_iterations,
                    kernels=case.kernels,
                )
                density /= stage.grid_spacing**5
                if turn == 0 and density < most:
                    break
                most = max(most, density)
                displacement = compose(case, displacement, case.kernels.to_voxels(found, case.shape, stage.grid_spacing))
    return displacement


def compose(case: CascadeCase, displacement: Displacement, first: Displacement) -> Displacement:
    """The displacement of ``first`` and then ``displacement``; see ``rigid.compose``."""
    spacing = torch.tensor(case.spacing_mm, dtype=torch.float64)
    matrix = case.motion.rotation * spacing.view(1, 3) / spacing.view(3, 1)
    return case.kernels.compose(displacement, case.rigid_displacement(), matrix, first)
