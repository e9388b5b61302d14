"""The multilevel method of the paper: every level solved by itself, then their weighted sum."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch

from mcbo.core.errors import InputError
from mcbo.core.field import check_finite, format_shape, resize, shape_of
from mcbo.core.timing import StageTimer
from mcbo.core.types import Displacement, Features, Kernels, Shape, Triple, Volume
from mcbo.kernels import features_source
from mcbo.methods import memory_model
from mcbo.methods.config import MIN_CELLS, Group, Level, Preset, Registration, check_size
from mcbo.methods.memory_model import Slabs, plan, solved_bytes
from mcbo.steps.adam import AdamSettings, refine
from mcbo.steps.fusion import fuse_levels, fuse_modalities
from mcbo.steps.mind import Box, FeatureSource, MindSettings

# Estimated nanoseconds on two CPU cores; only their ratios matter, and only to the progress shown.
_FEATURES_NS_PER_VOXEL = 700.0
_SOLVE_NS_PER_CANDIDATE = 13.0
_REFINE_NS_PER_CELL = 2000.0


@dataclass(frozen=True)
class MultilevelConfig(Preset):
    """Settings of the multilevel method.

    Attributes:
        name: of the preset.
        mind: the features.
        levels: coarse to fine.
        coupling_weights: of the passes of the convex optimization.
        consistency_rounds: of the inverse consistency.
        modality_fusion: how the displacements of several moving modalities become one, or None to keep them apart.
        stretch: sample as the published program does (``field.half_pixel_stretch``).
    """

    name: str
    mind: MindSettings
    levels: tuple[Level, ...]
    coupling_weights: tuple[float, ...]
    consistency_rounds: int
    modality_fusion: Literal["maximum"] | None
    stretch: bool

    @property
    def passes(self) -> int:
        """Of the convex optimization over a cost volume: the first pick, and one per weight."""
        return len(self.coupling_weights) + 1

    def fit(self, shape: Shape) -> tuple[Self, tuple[Level, ...]]:
        """Leaves out levels whose grid has fewer than ``MIN_CELLS`` cells along an axis; the other weights then sum to 1.

        Returns:
            The settings to use, and the levels that were dropped.

        Raises:
            InputError: if an axis has fewer than ``MIN_VOXELS`` voxels, or no level fits.
        """
        check_size(shape)
        kept = tuple(level for level in self.levels if min(shape) // level.grid_spacing >= MIN_CELLS)
        if not kept:
            finest = min(level.grid_spacing for level in self.levels)
            raise InputError(
                f"expected at least {MIN_CELLS * finest} voxels along every axis for preset {self.name}, "
                f"got {format_shape(shape)}"
            )
        dropped = tuple(level for level in self.levels if level not in kept)
        if not dropped:
            return self, ()
        total = math.fsum(level.weight for level in kept)
        return replace(self, levels=tuple(replace(level, weight=level.weight / total) for level in kept)), dropped

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
        del spacing_mm  # everything is in voxels
        shape, joint = shape_of(fixed), len(groups[0].movings)
        fitted, dropped = self.fit(shape)
        streamed, slabs = plan(
            shape, fitted.levels, passes=self.passes, movings=joint, budget_bytes=budget_bytes, kernels=kernels
        )
        share = 1 / _total_work(shape, joint * len(groups), fitted.levels)

        def features_of(image: Volume) -> FeatureSource:
            with timer.stage("features", work=share * _features_work(shape)):
                return features_source(image, self.mind, kernels, streamed=streamed)

        fixed_features = features_of(fixed)
        results: list[Displacement] = []
        for group in groups:
            moving_features = [features_of(image) for image in group.movings]
            solvers = [
                _LevelSolver(fitted, shape, fixed.device, *pair, kernels, timer, share)
                for pair in zip(fitted.levels, slabs, strict=True)
            ]
            fused = fuse_levels(
                (fuse_modalities([_solve_level(fixed_features, m, solver) for m in moving_features]) for solver in solvers),
                [level.weight for level in fitted.levels],
            )
            results += [fused] * joint
        return Registration(tuple(results), config=fitted, levels=fitted.levels, dropped=dropped)

    def least_bytes(self, shape: Shape, *, movings: int, kernels: Kernels) -> int:
        levels = self.fit(shape)[0].levels
        streamed = memory_model.may_stream(kernels)
        slabs = [memory_model.in_turn(1, kernels)] * len(levels)
        return solved_bytes(shape, levels, passes=self.passes, movings=movings, kernels=kernels, slabs=slabs, streamed=streamed)

    def peak_bytes(self, shape: Shape, *, movings: int, kernels: Kernels) -> int:
        return solved_bytes(shape, self.fit(shape)[0].levels, passes=self.passes, movings=movings, kernels=kernels)

    def search_range(self, shape: Shape) -> Triple:
        """The weighted mean of what the levels look: Σ w·g·R. Adam may add a little at the finest one."""
        del shape
        reach = math.fsum(level.weight * level.grid_spacing * level.search_radius for level in self.levels)
        return reach, reach, reach


@dataclass(frozen=True)
class _LevelSolver:
    """What a level is solved with: numbers, shape and device of the volume, slabs, kernels, clock, the case's share of work."""

    config: MultilevelConfig
    shape: Shape
    device: torch.device
    level: Level
    slabs: Slabs
    kernels: Kernels
    timer: StageTimer
    share: float


def _solve_level(fixed: FeatureSource, moving: FeatureSource, solver: _LevelSolver) -> Displacement:
    """Displacement of one level and one moving image, ``(1, 3, H, W, D)`` voxels."""
    config, level, timer, share = solver.config, solver.level, solver.timer, solver.share
    name, shape = f"level {level.grid_spacing}", solver.shape

    def solve(pairs: Sequence[tuple[Features, Features]]) -> list[Displacement]:
        settings = {"search_radius": level.search_radius, "coupling_weights": config.coupling_weights}
        return [solver.kernels.solve(*pair, rows=solver.slabs.rows, **settings) for pair in pairs]

    field = torch.empty((1, 3, *shape), device=solver.device)
    for tile in tiles(shape, level.tiles):
        with timer.stage(f"{name} solve", work=share * _solve_work(shape_of(field[tile]), level)):
            f, m = (source.pooled(_box(tile), level.grid_spacing) for source in (fixed, moving))
            solved = solver.kernels.in_batches(solve, [(f, m), (m, f)], solver.slabs.at_once)
            forward, backward = itertools.chain.from_iterable(solved)
        with timer.stage(f"{name} consistency"):
            forward, _ = solver.kernels.make_consistent(
                forward, backward, rounds=config.consistency_rounds, stretch=config.stretch
            )
        with timer.stage(f"{name} upsample"):
            field[tile] = resize(forward, shape_of(field[tile]), scale=level.grid_spacing)
    check_finite(field, f"{name} solve")
    if level.refinement:
        with timer.stage(f"{name} refine", work=share * _refine_work(shape, level.refinement)):
            f, m = (source.pooled(_box(tiles(shape, 1)[0]), level.refinement.grid_spacing) for source in (fixed, moving))
            field = refine(f, m, field, settings=level.refinement, stretch=config.stretch, kernels=solver.kernels)
        check_finite(field, f"{name} refine")
    return field


def _box(tile: tuple[slice, ...]) -> Box:
    """A tile as the first voxel and the one after the last along axes 0, 1, 2."""
    i, j, k = ((span.start, span.stop) for span in tile[-3:])
    return i, j, k


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


def _total_work(shape: Shape, movings: int, levels: Sequence[Level]) -> float:
    per_moving = sum(
        _solve_work(shape, level) + (_refine_work(shape, level.refinement) if level.refinement else 0.0) for level in levels
    )
    return _features_work(shape) * (1 + movings) + per_moving * movings
