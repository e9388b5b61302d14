"""The second step of a case: its images become displacements, and these are checked."""

import logging

from mcbo.core.errors import naming
from mcbo.core.field import format_shape, shape_of, warp
from mcbo.core.timing import StageTimer
from mcbo.geometry.grid import voxel_size_mm
from mcbo.methods.config import Registration
from mcbo.methods.pipeline import register
from mcbo.methods.quality import examine
from mcbo.runs.case import CaseRun
from mcbo.runs.outputs import check_case_room
from mcbo.runtime import budget_bytes


def compute(run: CaseRun, *, timer: StageTimer, reserved_bytes: int = 0) -> None:
    """Registers a loaded case and checks the result, which stays in ``run``.

    ``reserved_bytes`` of the memory budget are for what is read and written meanwhile.
    """
    if run.fixed is None:
        return
    options, device, result = run.setup.options, run.setup.device, run.result
    names = [pair.field_name for pair in run.requested if pair.field_name in run.movings]
    with run.span("compute"), run.failing():
        kernels = run.setup.kernels
        check_case_room(len(names), shape_of(run.fixed.volume), options)
        budget = budget_bytes(device, options.memory_gb) - reserved_bytes
        fixed = run.fixed.volume.to(device)
        movings = {name: image.volume.to(device) for name, image in run.movings.items()}
        with naming(run.case.fixed):
            registration = register(
                fixed,
                list(movings.values()),
                spacing_mm=voxel_size_mm(run.fixed.affine),
                config=run.setup.config,
                kernels=kernels,
                budget_bytes=budget,
                timer=timer,
            )
        result.started = True
        _report(run, registration, names)
        displacements = dict(zip(movings, registration.displacements, strict=True))
        with timer.stage("sanity"):
            sanity = examine(fixed, movings, displacements, config=registration.config, kernels=kernels)
        result.report.sanity = {name: sanity[name] for name in names}
        result.report.warnings = result.report.doubts(run.setup.config)
        for warning in result.report.warnings:
            result.note(warning, logging.WARNING)
        for name in names:
            if options.warped:
                with timer.stage("warp"):
                    run.warped[name] = warp(movings[name], displacements[name].to(device)).cpu()
            run.displacements[name] = displacements[name].cpu()
    run.fixed, run.movings = None, {}


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
