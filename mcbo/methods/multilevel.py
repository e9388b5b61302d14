"""The multilevel method of the paper: every level solved by itself, then their weighted sum."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch.nn import functional

from mcbo.core.field import check_finite, resize, shape_of
from mcbo.core.timing import StageTimer
from mcbo.core.types import Displacement, Features, Kernels, Shape, Volume
from mcbo.kernels import in_turn
from mcbo.methods.config import Config, Level, fit_to_shape
from mcbo.methods.memory_model import Slabs, slabs_per_level
from mcbo.steps.adam import AdamSettings, refine
from mcbo.steps.convex import solve
from mcbo.steps.fusion import fuse_levels, fuse_modalities

# Estimated nanoseconds on two CPU cores; only their ratios matter, and only to the progress shown.
_FEATURES_NS_PER_VOXEL = 700.0


_SOLVE_NS_PER_CANDIDATE = 13.0


_REFINE_NS_PER_CELL = 2000.0


def register_levels(
    fixed: Volume,
    groups: Sequence[Sequence[Volume]],
    *,
    config: Config,
    kernels: Kernels,
    budget_bytes: int,
    timer: StageTimer,
) -> tuple[tuple[Displacement, ...], Config, tuple[Level, ...]]:
    """Registers groups of moving images, each group with one displacement.

    Args:
        fixed: ``(1, 1, H, W, D)`` intensities.
        groups: moving images of the same shape.
        config: the preset.
        kernels: compute kernels.
        budget_bytes: memory that the case may use; the result does not depend on it.
        timer: told of every stage.

    Returns:
        A displacement ``(1, 3, H, W, D)`` in voxels per moving image, the preset as fitted to the shape, and the levels that
        did not fit.
    """
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
    return tuple(results), fitted, dropped


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


def _refine_work(shape: Shape, settings: AdamSettings) -> float:
    return _REFINE_NS_PER_CELL * settings.iterations * _voxels(shape) / settings.grid_spacing**3


def _total_work(shape: Shape, movings: int, config: Config) -> float:
    levels = sum(
        _solve_work(shape, level) + (_refine_work(shape, level.refinement) if level.refinement else 0.0)
        for level in config.levels
    )
    return _features_work(shape) * (1 + movings) + levels * movings
