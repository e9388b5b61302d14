"""The method as the paper's figure tells it: features, levels, fusion. Tensors in, tensors out.

Features once per image → per level and moving image: pool, correlate and solve both ways, make consistent, upsample, refine
where the level says so → fuse modalities → fuse levels.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch.nn import functional

from mcbo.cascade import register_cascade
from mcbo.config import Cascade, Config, Level, Preset, Refinement, fit_to_shape
from mcbo.convex import solve
from mcbo.errors import ShapeError
from mcbo.field import check_finite, resize, shape_of
from mcbo.fusion import fuse_levels, fuse_modalities
from mcbo.kernels import in_turn
from mcbo.memory import Slabs, check_cascade, slabs_per_level
from mcbo.refinement import refine
from mcbo.timing import StageTimer
from mcbo.types import Displacement, Features, Judgement, Kernels, Masks, Shape, Triple, Volume

# Estimated nanoseconds on two CPU cores; only their ratios matter, and only to the progress shown.
_FEATURES_NS_PER_VOXEL = 700.0
_SOLVE_NS_PER_CANDIDATE = 13.0
_REFINE_NS_PER_CELL = 2000.0


@dataclass(frozen=True)
class Registration:
    """What came out of a case.

    Attributes:
        displacements: one per moving image, ``(1, 3, H, W, D)`` voxels; the very same tensor where modalities are fused.
        config: as it was used.
        dropped: levels of the preset that did not fit the volume.
        judgements: what is to be believed of each displacement, where the preset judges.
    """

    displacements: tuple[Displacement, ...]
    config: Preset
    dropped: tuple[Level, ...] = ()
    judgements: tuple[Judgement, ...] = ()


def register(
    fixed: Volume,
    movings: Sequence[Volume],
    *,
    spacing_mm: Triple,
    config: Preset,
    kernels: Kernels,
    budget_bytes: int,
    timer: StageTimer,
    masks: Masks | None = None,
) -> Registration:
    """Registers the moving images of a case to its fixed image.

    Args:
        fixed: ``(1, 1, H, W, D)`` intensities.
        movings: one or more of the same shape and on the same device.
        spacing_mm: voxel size along axes 0, 1, 2.
        config: the preset.
        kernels: the hot steps.
        budget_bytes: memory that the case may use; the result does not depend on it.
        timer: told of every stage.
        masks: where the images are known, for a ``Cascade``, which else finds that out; the paper's method knows of none.

    Raises:
        ShapeError: if a moving image or a mask has another shape.
        InputError: if the volume is too small for the preset.
        MemoryBudgetError: if the budget is too small for the volume.
        NonFiniteError: if a stage produces NaN or infinity.
    """
    for moving in movings:
        if moving.shape != fixed.shape:
            raise ShapeError(f"register: expected moving images of shape {tuple(fixed.shape)}, got {tuple(moving.shape)}")
    for mask in (masks.fixed, *masks.movings) if masks else ():
        if mask.shape != fixed.shape:
            raise ShapeError(f"register: expected masks of shape {tuple(fixed.shape)}, got {tuple(mask.shape)}")
    numbers = range(len(movings))
    members = [list(numbers)] if config.modality_fusion else [[n] for n in numbers]
    groups = [[movings[n] for n in group] for group in members]
    if isinstance(config, Cascade):
        check_cascade(shape_of(fixed), config, movings=len(groups[0]), budget_bytes=budget_bytes)
        displacements: list[Displacement] = []
        judgements: list[Judgement] = []
        for group, its_numbers in zip(groups, members, strict=True):
            displacement, judgement = register_cascade(
                fixed,
                group,
                spacing_mm=spacing_mm,
                config=config,
                kernels=kernels,
                timer=timer,
                share_of_case=1 / len(groups),
                masks=Masks(masks.fixed, tuple(masks.movings[n] for n in its_numbers)) if masks else None,
            )
            displacements += [displacement] * len(group)
            judgements += [judgement] * len(group)
        return Registration(displacements=tuple(displacements), config=config, judgements=tuple(judgements))
    return _register_levels(fixed, groups, config=config, kernels=kernels, budget_bytes=budget_bytes, timer=timer)


def _register_levels(
    fixed: Volume,
    groups: Sequence[Sequence[Volume]],
    *,
    config: Config,
    kernels: Kernels,
    budget_bytes: int,
    timer: StageTimer,
) -> Registration:
    """The paper's way: every level for itself, then the weighted sum."""
    shape = shape_of(fixed)
    fitted, dropped = fit_to_shape(config, shape)
    slabs = slabs_per_level(shape, fitted, movings=len(groups[0]), budget_bytes=budget_bytes, kernels=kernels)
    share = 1 / _total_work(shape, sum(len(group) for group in groups), fitted)

    def features_of(image: Volume) -> Features:
        with timer.stage("features", work=share * _features_work(shape)):
            return kernels.mind_ssc(image, radius=fitted.mind_radius, dilation=fitted.mind_dilation)

    fixed_features = features_of(fixed)
    results: list[Displacement] = []
    for group in groups:
        moving_features = [features_of(image) for image in group]
        levels = (
            fuse_modalities([_solve_level(fixed_features, m, solver) for m in moving_features])
            for solver in (
                _LevelSolver(fitted, level, its_slabs, kernels, timer, share)
                for level, its_slabs in zip(fitted.levels, slabs, strict=True)
            )
        )
        fused = fuse_levels(levels, [level.weight for level in fitted.levels])
        results += [fused] * len(group)
    return Registration(displacements=tuple(results), config=fitted, dropped=dropped)


@dataclass(frozen=True)
class _LevelSolver:
    """What a level is solved with: its numbers, slabs, hot steps, clock, and the case's share of a unit of work."""

    config: Config
    level: Level
    slabs: Slabs
    kernels: Kernels
    timer: StageTimer
    share: float


def _solve_level(fixed: Features, moving: Features, solver: _LevelSolver) -> Displacement:
    """Displacement of one level and one moving image, ``(1, 3, H, W, D)`` voxels."""
    config, level, timer, share = solver.config, solver.level, solver.timer, solver.share
    name = f"level {level.grid_spacing}"
    field = fixed.new_empty((1, 3, *fixed.shape[2:]))
    for tile in tiles(shape_of(fixed), level.tiles):
        with timer.stage(f"{name} solve", work=share * _solve_work(shape_of(fixed[tile]), level)):
            f, m = _pool(fixed[tile], level.grid_spacing), _pool(moving[tile], level.grid_spacing)
            solve_one = partial(
                solve,
                search_radius=level.search_radius,
                coupling_weights=config.coupling_weights,
                rows=solver.slabs.rows,
                kernels=solver.kernels,
            )
            both = solver.kernels.both if solver.slabs.at_once > 1 else in_turn
            forward, backward = both(partial(solve_one, f, m), partial(solve_one, m, f))
        with timer.stage(f"{name} consistency"):
            forward, _ = solver.kernels.make_consistent(
                forward, backward, rounds=config.consistency_rounds, stretch=config.stretch
            )
        with timer.stage(f"{name} upsample"):
            field[tile] = resize(forward, shape_of(field[tile]), scale=level.grid_spacing)
    check_finite(field, f"{name} solve")
    if level.refinement:
        with timer.stage(f"{name} refine", work=share * _refine_work(shape_of(fixed), level.refinement)):
            field = refine(fixed, moving, field, settings=level.refinement, stretch=config.stretch, kernels=solver.kernels)
        check_finite(field, f"{name} refine")
    return field


def _pool(features: Features, spacing: int) -> Features:
    """Means over cells; no copy where a cell is a voxel."""
    return features if spacing == 1 else functional.avg_pool3d(features, spacing, stride=spacing)


def tiles(shape: Shape, parts: int) -> list[tuple[slice, ...]]:
    """Cuts a volume in ``parts`` along each axis, without overlap; indices into ``(1, C, H, W, D)`` tensors."""
    edges = [[size * part // parts for part in range(parts + 1)] for size in shape]
    spans = [[slice(low, high) for low, high in itertools.pairwise(axis)] for axis in edges]
    return [(slice(None), slice(None), *span) for span in itertools.product(*spans)]


def _voxels(shape: Shape) -> int:
    return shape[0] * shape[1] * shape[2]


def _features_work(shape: Shape) -> float:
    return _FEATURES_NS_PER_VOXEL * _voxels(shape)


def _solve_work(shape: Shape, level: Level) -> float:
    cells = _voxels(shape) / level.grid_spacing**3
    return 2 * _SOLVE_NS_PER_CANDIDATE * cells * (2 * level.search_radius + 1) ** 3


def _refine_work(shape: Shape, settings: Refinement) -> float:
    return _REFINE_NS_PER_CELL * settings.iterations * _voxels(shape) / settings.grid_spacing**3


def _total_work(shape: Shape, movings: int, config: Config) -> float:
    levels = sum(
        _solve_work(shape, level) + (_refine_work(shape, level.refinement) if level.refinement else 0.0)
        for level in config.levels
    )
    return _features_work(shape) * (1 + movings) + levels * movings
