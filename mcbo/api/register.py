"""Registration from Python: ``mcbo.register``. The command ``python -m mcbo register`` is a thin layer over it."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mcbo.api.result import Result, labels_of
from mcbo.api.transform import Transform
from mcbo.core.errors import InputError, naming
from mcbo.core.field import format_shape
from mcbo.core.log import log
from mcbo.core.timing import StageTimer
from mcbo.core.types import Kernels
from mcbo.geometry.grid import Grid
from mcbo.geometry.resample import resample
from mcbo.io.files import unchanged
from mcbo.io.image_like import Digests, Geometry, ImageLike, name_of, to_intensities, to_volume
from mcbo.io.initial_transform import check_matrix, read_initial
from mcbo.methods.config import Preset, Registration, check_size
from mcbo.methods.presets import DEFAULT_TASK, TASKS, find_config
from mcbo.methods.quality import Sanity
from mcbo.methods.working_grid import MAX_RATIO, working_grid
from mcbo.methods.world import Placed, center_of_mass, register_in_world
from mcbo.progress import show_progress
from mcbo.report import CaseReport, WorkingGrid, stages_of
from mcbo.runtime import (
    MAX_MEMORY_GB,
    budget_bytes,
    describe_device,
    peak_meter,
    ready_kernels,
    select_device,
    tidy_memory,
    wait_for,
    warm_up,
    within_memory,
)

AUTO = "auto"
"""The task's default preset on a working grid of its own (``working_grid.py``) instead of the fixed grid."""

DEFAULT_PRESET = AUTO
"""Where the fixed image's voxels are anisotropic it halves the error (docs/ablation.md); elsewhere it is much the same."""


def register(
    fixed: ImageLike,
    movings: ImageLike | list[ImageLike],
    *,
    preset: str = DEFAULT_PRESET,
    task: str = DEFAULT_TASK,
    expect: tuple[float, float] | None = None,
    affine: NDArray[np.generic] | None = None,
    spacing: Sequence[float] | None = None,
    fixed_mask: ImageLike | None = None,
    moving_masks: ImageLike | list[ImageLike | None] | None = None,
    initial: NDArray[np.generic] | str | Path | None = None,
    center: bool = False,
    device: str = "auto",
    memory_gb: float | None = None,
) -> Result:
    """Registers moving images of any grid to a fixed image of any grid, in world coordinates.

    Args:
        fixed: a path, an array, a tensor, one of these paired with its affine, or a nibabel or SimpleITK image (``ImageLike``).
        movings: one such image, or a list of several of the same object.
        preset: of the task; or ``auto``, to run its default on an isotropic grid chosen from the images.
        task: ``ReMIND2Reg`` or ``COMULIS3DCLEM``.
        expect: how far apart such images usually are, after ``initial`` or ``center``: the shift, mm, and the rotation,
            degrees; that of the task, if None.
        affine: of arrays without their own: voxel to world, RAS mm.
        spacing: instead of ``affine``, where only the voxel size along axes 0, 1, 2 is known, mm.
        fixed_mask: where the fixed image counts (not 0), on any grid; if None, its background is detected.
        moving_masks: the same for the moving image, or a list.
        initial: rough alignment: ``(4, 4)`` from fixed to moving world positions, RAS mm; or a file, see ``read_initial``.
        center: start by aligning the centers of mass instead.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        memory_gb: limit for the tensors; a share of the free memory, if None.

    Raises:
        InputError: for images, masks, alignments or names that cannot be used.
        McboError: if the registration fails; see ``pipeline.register``.
    """
    start = time.perf_counter()
    several = list(movings) if isinstance(movings, list) else [movings]
    masks = list(moving_masks) if isinstance(moving_masks, list) else [moving_masks] * len(several)
    if not several or len(masks) != len(several):
        raise InputError(f"expected one or more moving images, and a mask for each, got {len(several)} and {len(masks)}")
    config = wanted_config(preset, task, expect)
    _check_options(config, masks=(fixed_mask, *masks), both_starts=initial is not None and center, memory_gb=memory_gb)
    on = select_device(device)
    warm_up(on)
    budget = budget_bytes(on, memory_gb)
    labels = labels_of([name_of(image, "") for image in several])
    digests: Digests = {}
    with show_progress(1) as view, peak_meter(on) as meter:
        view.begin_case(Path(name_of(fixed, "fixed")).name)
        timer = StageTimer(meter=meter, listener=view.stage, wait=lambda: wait_for(on), tidy=tidy_memory)
        with timer.stage("read"):
            names = ["fixed image", *(f"moving image {number}" for number in range(1, len(several) + 1))]
            given = zip((fixed, *several), (fixed_mask, *masks), names, strict=True)
            images = [_place(image, mask, name, Geometry(affine, spacing), on, digests) for image, mask, name in given]
        motion = _initial(initial, center, images, digests)
        kernels = ready_kernels(on)
        with naming(name_of(fixed, "fixed image")):
            working = _working_grid(images, motion, preset, config, budget, kernels)

        def attempt(budget: int) -> tuple[Registration, list[Sanity]]:
            with naming(name_of(fixed, "fixed image")):
                return register_in_world(
                    images[0],
                    images[1:],
                    initial=motion,
                    working=working,
                    config=config,
                    kernels=kernels,
                    budget_bytes=budget,
                    timer=timer,
                )

        registration, checks = within_memory(
            attempt,
            who=name_of(fixed, "fixed image"),
            device=on,
            budget_bytes=budget,
            least_bytes=lambda: config.least_bytes(working.shape, movings=config.joint(len(several)), kernels=kernels),
            warn=log.warning,
        )
        view.end_case()
    shared = {id(u): u.cpu() for u in registration.displacements}
    transforms = [
        Transform(shared[id(u)], images[0].grid, image.grid)
        for u, image in zip(registration.displacements, images[1:], strict=True)
    ]
    report = _describe(registration, checks, images[0].grid, working, motion, labels)
    report.images = [name_of(image, "") or None for image in (fixed, *several)]
    report.inputs = {path: digests[path] for path in report.images if path}
    report.settings = {
        "initial": digests.get(name_of(initial, "")),
        "masks": [digests.get(name_of(mask, "")) for mask in (fixed_mask, *masks)],
    }
    report.device = describe_device(on)
    report.seconds = round(time.perf_counter() - start, 3)
    report.stages = stages_of(timer)
    movings = tuple(replace(image, volume=image.volume.cpu(), mask=None) for image in images[1:])
    return Result(tuple(transforms), registration.judgements, registration.config, report, movings, tuple(labels), on)


def wanted_config(preset: str, task: str, expect: tuple[float, float] | None) -> Preset:
    """The config of a preset's name, ``auto`` included; ``expect`` as in ``register``. ``InputError`` for an unknown name."""
    try:
        config = find_config(task, None if preset == AUTO else preset)
    except InputError as error:
        raise InputError(f"{error}{'' if task not in TASKS else f', {AUTO}'}") from error
    if expect is None:
        return config
    try:
        mm, degrees = (float(number) for number in expect)
    except (TypeError, ValueError) as error:
        raise InputError(f"expect: expected two numbers, mm and degrees, such as (5, 3), got {expect!r:.80}") from error
    return config.expecting(mm, degrees)


def _check_options(config: Preset, *, masks: Sequence[ImageLike | None], both_starts: bool, memory_gb: float | None) -> None:
    if not config.uses_masks and any(mask is not None for mask in masks):
        raise InputError(f"preset {config.name} does not use masks: expected none, or preset cascade")
    if both_starts:
        raise InputError("expected either an initial alignment or center, got both")
    if memory_gb is not None and not 0 < memory_gb < MAX_MEMORY_GB:
        most = f" and below {MAX_MEMORY_GB:g}" if memory_gb >= MAX_MEMORY_GB else ""
        raise InputError(f"memory_gb: expected a number above 0{most}, got {memory_gb:g}")


def _place(
    image: ImageLike, mask: ImageLike | None, name: str, geometry: Geometry, device: torch.device, digests: Digests
) -> Placed:
    """An image and its mask on its grid, on the device; what is read goes into ``digests``."""
    volume, grid = to_intensities(image, name_of(image, name), geometry, digests)
    if mask is None:
        return Placed(volume.to(device), grid)
    mask_name = name_of(mask, f"mask of the {name}")
    given, its_grid = to_volume(mask, mask_name, Geometry(affine=grid.affine), digests)
    if isinstance(mask, np.ndarray | torch.Tensor) and its_grid.shape != grid.shape:
        raise InputError(
            f"{mask_name}: expected the shape of its image, {grid.shape}, or an affine beside it, got {its_grid.shape}"
        )
    known = resample((given != 0).int(), its_grid, grid, mode="nearest") > 0
    if not bool(known.any()):
        raise InputError(f"{mask_name}: expected voxels that are not 0 within its image, found none")
    return Placed(volume.to(device), grid, known.to(device))


def _initial(
    initial: NDArray[np.generic] | str | Path | None, center: bool, images: Sequence[Placed], digests: Digests
) -> NDArray[np.float64]:
    """The initial alignment, ``(4, 4)`` from fixed to moving, RAS mm; what is read goes into ``digests``."""
    if isinstance(initial, str | Path):
        with unchanged(Path(initial)) as digests[str(initial)]:
            return read_initial(Path(initial))
    if initial is not None:
        return check_matrix(initial)
    motion = np.eye(4)
    if center:
        fixed, *movings = (center_of_mass(image) for image in images)
        motion[:3, 3] = np.mean(movings, axis=0) - fixed
        log.info("centers of mass aligned: moved by %s mm", np.round(motion[:3, 3], 1).tolist())
    return motion


def _working_grid(
    images: Sequence[Placed], motion: NDArray[np.float64], preset: str, config: Preset, budget: int, kernels: Kernels
) -> Grid:
    """The fixed grid, or for ``auto`` an isotropic one."""
    fixed, *movings = (image.grid for image in images)
    size = fixed.spacing_mm
    if preset != AUTO:
        if max(size) / min(size) > MAX_RATIO and config.uses_masks:
            log.info("the fixed image's voxels are anisotropic, %s mm: preset %s does better", _sizes(fixed), AUTO)
        return fixed
    joint = config.joint(len(movings))

    def fits(shape: tuple[int, int, int]) -> bool:
        return config.least_bytes(shape, movings=joint, kernels=kernels) <= budget

    working, is_coarser = working_grid(fixed, movings, initial=motion, fits=fits)
    check_size(working.shape)
    log.info("working grid: %s voxels of %s mm", format_shape(working.shape), _sizes(working))
    if is_coarser:
        log.warning("its voxels are larger than the fixed image's finest side (%s mm), so that it fits", _sizes(fixed))
    return working


def _sizes(grid: Grid) -> str:
    return "×".join(f"{size:.3g}" for size in grid.spacing_mm)


def _describe(
    registration: Registration,
    checks: Sequence[Sanity],
    fixed: Grid,
    working: Grid,
    motion: NDArray[np.float64],
    labels: Sequence[str],
) -> CaseReport:
    """The report of a registration: in which space, from which initial alignment, and how it is judged, which is logged."""
    report = CaseReport(
        coordinates="world",
        shape=fixed.shape,
        working_grid=WorkingGrid(shape=working.shape, affine=working.affine.tolist()),
        initial=motion.tolist(),
        failed={},
        sanity=dict(zip(labels, checks, strict=True)),
    )
    if registration.levels:
        report.levels = registration.levels
    if registration.judgements:
        report.judgement = dict(zip(labels, registration.judgements, strict=True))
    for label, judgement in report.judgement.items():
        log.info("%s: %s", label, judgement.summary)
    report.warnings = report.doubts(registration.config)
    for warning in report.warnings:
        log.warning("%s", warning)
    return report
