"""The second step of a case: its images become displacements, and these are checked."""

import torch

from mcbo.core.errors import McboError
from mcbo.core.field import format_shape, shape_of, warp
from mcbo.core.timing import StageTimer
from mcbo.core.types import Displacement
from mcbo.dataset.learn2reg import wanted
from mcbo.io.nifti import Image
from mcbo.kernels import REFERENCE
from mcbo.methods.config import Preset, Registration
from mcbo.methods.pipeline import register
from mcbo.methods.quality import Sanity, examine
from mcbo.runs.case import CaseRun, failing
from mcbo.runs.options import Options
from mcbo.runs.outputs import check_case_room
from mcbo.runtime import budget_bytes, select_kernels


def compute(
    run: CaseRun, config: Preset, options: Options, device: torch.device, *, timer: StageTimer, reserved_bytes: int = 0
) -> None:
    """Registers a case and checks the result; it stays in ``run``.

    Args:
        run: as ``load`` left it.
        config: the preset.
        options: of the run.
        device: to compute on.
        timer: gets the stages.
        reserved_bytes: of the memory budget, for what is read and written meanwhile.
    """
    fixed, result = run.fixed, run.result
    if fixed is None:
        return
    names = [pair.field_name for pair in wanted(run.case, options.movings) if pair.field_name in run.movings]
    with run.span("compute"), failing(run, options):
        check_case_room(len(names), shape_of(fixed.volume), options)
        budget = budget_bytes(device, options.memory_gb) - reserved_bytes
        registration = _register(run, fixed, config, options, device, timer, budget)
        result.started = True
        result.report.shape = shape_of(fixed.volume)
        if registration.levels:
            result.report.levels = registration.levels
        if registration.judgements:
            judgements = dict(zip(run.movings, registration.judgements, strict=True))
            result.report.judgement = {name: judgements[name] for name in names}
            for name, judgement in result.report.judgement.items():
                result.say(f"{name}: {judgement.summary}")
        displacements = dict(zip(run.movings, registration.displacements, strict=True))
        with timer.stage("sanity"):
            sanity = _examine(registration.config, fixed, run.movings, displacements, options)
        result.report.sanity = {name: sanity[name] for name in names}
        for doubt in result.report.doubts(config):
            result.warn(doubt)
        for name in names:
            if options.warped:
                with timer.stage("warp"):
                    run.warped[name] = warp(run.movings[name].volume.to(device), displacements[name].to(device)).cpu()
            run.displacements[name] = displacements[name].cpu()
    run.fixed, run.movings = None, {}


def _register(
    run: CaseRun, fixed: Image, config: Preset, options: Options, device: torch.device, timer: StageTimer, budget: int
) -> Registration:
    """Registers a case on the device; errors then name its fixed image."""
    try:
        registration = register(
            fixed.volume.to(device),
            [image.volume.to(device) for image in run.movings.values()],
            spacing_mm=fixed.spacing_mm,
            config=config,
            kernels=REFERENCE if options.reference else select_kernels(device),
            budget_bytes=budget,
            timer=timer,
        )
    except McboError as error:
        raise type(error)(f"{run.case.fixed}: {error}") from error
    voxels = format_shape(shape_of(fixed.volume))
    for level in registration.dropped:
        run.result.say(
            f"case {run.case.name}: level {level.grid_spacing} left out: {voxels} voxels make too few "
            f"cells of {level.grid_spacing}; the other weights are scaled to sum to 1"
        )
    return registration


def _examine(
    fitted: Preset, fixed: Image, movings: dict[str, Image], displacements: dict[str, Displacement], options: Options
) -> dict[str, Sanity]:
    """What is known of each result."""
    device = next(iter(displacements.values())).device
    return examine(
        fixed.volume.to(device),
        {name: image.volume.to(device) for name, image in movings.items()},
        displacements,
        config=fitted,
        kernels=REFERENCE if options.reference else select_kernels(device),
    )
