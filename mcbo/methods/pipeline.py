"""The method as the paper's figure tells it: features, levels, fusion. Tensors in, tensors out.

Features once per image → per level and moving image: pool, correlate and solve both ways, make consistent, upsample, refine
where the level says so → fuse modalities → fuse levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mcbo.core.errors import ShapeError
from mcbo.core.field import shape_of
from mcbo.core.timing import StageTimer
from mcbo.core.types import Displacement, Judgement, Kernels, Masks, Triple, Volume
from mcbo.methods.cascade import register_cascade
from mcbo.methods.config import Cascade, Level, Preset
from mcbo.methods.memory_model import check_cascade
from mcbo.methods.multilevel import register_levels


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
    results, fitted, dropped = register_levels(
        fixed, groups, config=config, kernels=kernels, budget_bytes=budget_bytes, timer=timer
    )
    return Registration(displacements=results, config=fitted, dropped=dropped)
