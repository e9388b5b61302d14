"""All numbers of the method, as frozen data. Presets fill them in ``presets.py``; no step has a default of its own."""

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from mcbo.core.errors import InputError
from mcbo.core.field import format_shape
from mcbo.core.types import Shape
from mcbo.steps.adam import AdamSettings
from mcbo.steps.initialization import InitializationSettings

MIN_CELLS = 5
"""A level whose grid has fewer cells along an axis is left out: its box means and its search see little but border. The grid
is that of the whole volume; a tile of it may have fewer."""
MIN_VOXELS = 8
"""The smallest axis that is registered."""


@dataclass(frozen=True)
class Level:
    """One scale.

    Attributes:
        grid_spacing: g, voxels per cell: the features are average-pooled by it.
        weight: of the level in the fusion.
        search_radius: R, cells: (2R+1)³ candidates.
        tiles: the volume is cut in this many parts along each axis, each solved alone.
        refinement: what follows the coarse solution, if anything.
    """

    grid_spacing: int
    weight: float
    search_radius: int
    tiles: int = 1
    refinement: AdamSettings | None = None


@dataclass(frozen=True)
class Config:
    """A complete method: everything that decides a result, and nothing else.

    Attributes:
        name: of the preset.
        mind_radius, mind_dilation: of MIND-SSC, voxels.
        levels: coarse to fine.
        coupling_weights: of the passes of the convex optimization.
        consistency_rounds: of the inverse consistency.
        modality_fusion: how the displacements of several moving modalities become one, or None to keep them apart.
        stretch: sample as the published program does (``field.half_pixel_stretch``).
    """

    name: str
    mind_radius: int
    mind_dilation: int
    levels: tuple[Level, ...]
    coupling_weights: tuple[float, ...]
    consistency_rounds: int
    modality_fusion: Literal["maximum"] | None
    stretch: bool


@dataclass(frozen=True)
class DeformStage:
    """A stage of the search for a deformation (``deformable_search.py``).

    Attributes:
        grid_spacing: g, voxels per cell.
        search_radius: R, cells.
        mind_radius, mind_dilation: of MIND-SSC, voxels.
        stretching: λ, weight of the squared differences of neighbors.
    """

    grid_spacing: int
    search_radius: int
    mind_radius: int
    mind_dilation: int
    stretching: float


@dataclass(frozen=True)
class SearchStage:
    """A stage of the masked search for a rigid motion.

    Attributes:
        grid_spacing: g, voxels per cell.
        search_radius: R, cells.
    """

    grid_spacing: int
    search_radius: int


@dataclass(frozen=True)
class RefineStage:
    """A stage of the Gauss–Newton refinement.

    Attributes:
        grid_spacing: g, voxels per cell.
        mind_radius, mind_dilation: of MIND-SSC, voxels.
        rounds: how often the moving images are warped and their features made anew.
        iterations: Gauss–Newton steps in each round, at most.
    """

    grid_spacing: int
    mind_radius: int
    mind_dilation: int
    rounds: int
    iterations: int


@dataclass(frozen=True)
class Cascade:
    """A complete method of the second kind (``cascade.py``).

    Attributes:
        name: of the preset.
        mind_radius, mind_dilation: of MIND-SSC in the search, voxels.
        start: the search for a start from far away, or None to start from no motion.
        search: stages of the search for a rigid motion, coarse to fine.
        cautious: the one stage that is done from no motion if nothing else can be believed.
        deform: stages of the search for a deformation, coarse to fine; may be empty.
        coupling_weights: of the passes of the convex optimization, for one modality.
        deform_weights: the same for the deformation.
        consistency_rounds: of the inverse consistency.
        trim_keep: share of the cells that the rigid motion is fitted to.
        trim_rounds: of that fit at most.
        refine: stages of the refinement, coarse to fine; may be empty.
        bending: weight of ∫ |Δ(u − u₀)|² dV, in voxels, u₀ being what the refinement starts from.
        cg_iterations: of conjugate gradients at most.
        margin: voxels around the field of view that are worked on.
        judge_spacing, judge_radius, judge_dilation: grid and features of the judgement.
        full_gain: by how much the similarity of the full result must exceed that of the rigid one.
        evidence_radius, evidence_dilation: of the features whose gradients are correlated.
        least_rise: standard errors by which the rigid motion must raise that correlation.
        least_correlation: standard errors of it that images must have to be taken for related.
        doubtful_similarity: below it, the user is warned.
        clear_gain: share of what identity lacks in similarity that a result must gain to be believed without that rise.
        cautious_reach: voxels that the cautious stage moves in the mean at most; what it found is shortened to that.
        small_motion: voxels; a result that moves less in the mean is below what the method resolves, ...
        small_gain: ... unless it gains this share of what identity lacks in similarity.
        modality_fusion: the displacements of all moving modalities are one from the start.
    """

    name: str
    mind_radius: int
    mind_dilation: int
    start: InitializationSettings | None
    search: tuple[SearchStage, ...]
    cautious: SearchStage
    deform: tuple[DeformStage, ...]
    coupling_weights: tuple[float, ...]
    deform_weights: tuple[float, ...]
    consistency_rounds: int
    trim_keep: float
    trim_rounds: int
    refine: tuple[RefineStage, ...]
    bending: float
    cg_iterations: int
    margin: int
    judge_spacing: int
    judge_radius: int
    judge_dilation: int
    full_gain: float
    evidence_radius: int
    evidence_dilation: int
    least_rise: float
    least_correlation: float
    doubtful_similarity: float
    clear_gain: float
    cautious_reach: float
    small_motion: float
    small_gain: float
    modality_fusion: Literal["joint"] | None

    @property
    def feature_reach(self) -> int:
        """How far the features of any stage see, voxels."""
        stages: list[RefineStage | DeformStage] = [*self.refine, *self.deform]
        return max([self.mind_radius + self.mind_dilation, *(stage.mind_radius + stage.mind_dilation for stage in stages)])


Preset: TypeAlias = Config | Cascade
"""Either kind of method."""


def fit_to_shape(config: Config, shape: Shape) -> tuple[Config, tuple[Level, ...]]:
    """Leaves out the levels whose grid has fewer than ``MIN_CELLS`` cells along an axis; the other weights then sum to 1.

    Args:
        config: the preset.
        shape: voxels of the images.

    Returns:
        The config to use, and the levels that were dropped.

    Raises:
        InputError: if an axis has fewer than ``MIN_VOXELS`` voxels, or no level fits.
    """
    check_size(shape)
    kept = tuple(level for level in config.levels if min(shape) // level.grid_spacing >= MIN_CELLS)
    if not kept:
        finest = min(level.grid_spacing for level in config.levels)
        raise InputError(
            f"expected at least {MIN_CELLS * finest} voxels along every axis for preset {config.name}, "
            f"got {format_shape(shape)}"
        )
    dropped = tuple(level for level in config.levels if level not in kept)
    if not dropped:
        return config, ()
    total = math.fsum(level.weight for level in kept)
    return replace(config, levels=tuple(replace(level, weight=level.weight / total) for level in kept)), dropped


def check_size(shape: Shape) -> None:
    """Raises InputError if an axis has fewer than ``MIN_VOXELS`` voxels."""
    if min(shape) < MIN_VOXELS:
        raise InputError(f"expected at least {MIN_VOXELS} voxels along every axis, got {format_shape(shape)}")
