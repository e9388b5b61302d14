"""Registration of a case on one grid, whatever the method. Tensors in, tensors out."""

from collections.abc import Sequence

from mcbo.core.errors import ShapeError
from mcbo.core.timing import StageTimer
from mcbo.core.types import Kernels, Masks, Triple, Volume
from mcbo.methods.config import Group, Preset, Registration


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
        kernels: compute kernels.
        budget_bytes: memory that the case may use; the result does not depend on it.
        timer: measures the stages.
        masks: where the images are known, for presets that use masks; without, these find that out.

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
    groups = [
        Group([movings[n] for n in members], Masks(masks.fixed, tuple(masks.movings[n] for n in members)) if masks else None)
        for members in ([numbers] if config.modality_fusion else [[n] for n in numbers])
    ]
    return config.register(fixed, groups, spacing_mm=spacing_mm, kernels=kernels, budget_bytes=budget_bytes, timer=timer)
