"""The second step of a case: its images become displacements, and these are checked."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from mcbo.core.errors import naming
from mcbo.core.field import format_shape, shape_of, warp
from mcbo.core.timing import StageTimer
from mcbo.core.types import Displacement, Masks, Volume
from mcbo.geometry.grid import voxel_size_mm
from mcbo.io.nifti import Image, in_file_order
from mcbo.methods.config import Registration
from mcbo.methods.pipeline import register
from mcbo.methods.quality import Sanity, examine
from mcbo.runs.case import CaseRun
from mcbo.runs.outputs import check_case_room
from mcbo.runtime import budget_bytes, start_copy, within_memory


@dataclass(frozen=True)
class _Computed:
    """What comes out of the device: the registration, its checks, and, on the CPU, displacements and warped images by name."""

    registration: Registration
    sanity: dict[str, Sanity]
    displacements: dict[str, Displacement]
    warped: dict[str, Volume]


def compute(run: CaseRun, *, timer: StageTimer, reserved_bytes: int = 0) -> None:
    """Registers a loaded case and checks the result, which stays in ``run``.

    ``reserved_bytes`` of the memory budget are for what is read and written meanwhile. If a GPU runs out of memory, the case is
    tried once more within half of the budget.
    """
    if run.fixed is None:
        return
    options, device, result, config = run.setup.options, run.setup.device, run.result, run.setup.config
    names = [pair.field_name for pair in run.requested if pair.field_name in run.movings]
    with run.span("compute"), run.failing():
        shape = shape_of(run.fixed.volume)
        run.setup.check_place()
        check_case_room(len(names), shape, options)
        joint = config.joint(len(run.movings))
        computed = within_memory(
            partial(_compute, run, run.fixed, names, timer),
            who=run.case.fixed,
            device=device,
            budget_bytes=budget_bytes(device, options.memory_gb) - reserved_bytes,
            least_bytes=lambda: config.least_bytes(shape, movings=joint, kernels=run.setup.kernels),
            warn=lambda message: result.note(message, logging.WARNING),
        )
        result.started = True
        _report(run, computed.registration, names)
        result.report.sanity = computed.sanity
        result.report.warnings = result.report.doubts(config)
        for warning in result.report.warnings:
            result.note(warning, logging.WARNING)
        run.displacements, run.warped = computed.displacements, computed.warped
    run.fixed, run.movings, run.masks = None, {}, None


def _compute(run: CaseRun, fixed_image: Image, names: Sequence[str], timer: StageTimer, budget: int) -> _Computed:
    """Registers within a budget, bytes; checks and returns the results called ``names``."""
    device, masks = run.setup.device, run.masks
    with nullcontext() if device.type == "cpu" else timer.stage("warm up"):
        kernels = run.setup.kernels
    fixed = fixed_image.volume.to(device)
    movings = {name: image.volume.to(device) for name, image in run.movings.items()}
    with naming(run.case.fixed):
        registration = register(
            fixed,
            list(movings.values()),
            spacing_mm=voxel_size_mm(fixed_image.affine),
            config=run.setup.config,
            kernels=kernels,
            budget_bytes=budget,
            timer=timer,
            masks=masks and Masks(masks.fixed.to(device), tuple(mask.to(device) for mask in masks.movings)),
        )
    displacements = dict(zip(movings, registration.displacements, strict=True))
    # Where modalities are fused, one copy serves several names; on a CPU, it is the tensor itself.
    copies = {
        id(u): start_copy(u if device.type == "cpu" else in_file_order(u)) for u in (displacements[name] for name in names)
    }
    with timer.stage("sanity"):
        sanity = examine(fixed, movings, displacements, config=registration.config, kernels=kernels)
    warped = {}
    for name in names if run.setup.options.warped else ():
        with timer.stage("warp"):
            warped[name] = warp(movings[name], displacements[name].to(device)).cpu()
    return _Computed(
        registration,
        {name: sanity[name] for name in names},
        {name: copies[id(displacements[name])]() for name in names},
        warped,
    )


def _report(run: CaseRun, registration: Registration, names: list[str]) -> None:
    """Puts into log and report how the case was registered, and how the results called ``names`` are judged."""
    report, shape = run.result.report, shape_of(registration.displacements[0])
    for level in registration.dropped:
        run.result.note(
            f"case {run.case.name}: level {level.grid_spacing} left out: {format_shape(shape)} voxels make too few "
            f"cells of {level.grid_spacing}; the other weights are scaled to sum to 1"
        )
    report.shape = shape
    if registration.levels:
        report.levels = registration.levels
    if registration.judgements:
        judgements = dict(zip(run.movings, registration.judgements, strict=True))
        report.judgement = {name: judgements[name] for name in names}
        for name, judgement in report.judgement.items():
            run.result.note(f"{name}: {judgement.summary}")
