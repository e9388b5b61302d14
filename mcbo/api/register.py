"""Registration from Python: ``mcbo.register``. The command ``python -m mcbo register`` is a thin layer over it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mcbo.api.preset import DEFAULT_PRESET, base_of, changed_settings, wanted_config
from mcbo.api.result import CASE, Result, labels_of
from mcbo.api.search import Found, Search
from mcbo.api.start import Points, Start, start_of
from mcbo.api.transform import Transform
from mcbo.core.errors import InputError, naming
from mcbo.core.log import log
from mcbo.core.memory import within_host_memory
from mcbo.core.timing import StageTimer
from mcbo.core.types import Choice, Freedom
from mcbo.geometry.grid import Grid
from mcbo.geometry.linear_fit import Model
from mcbo.geometry.resample import resample
from mcbo.io.image_like import Digests, Geometry, ImageLike, name_of, to_intensities, to_volume
from mcbo.io.microscopy.images import finest_that_fits, selections, to_settings
from mcbo.io.microscopy.selection import Selection, VoxelSize
from mcbo.io.nifti_header import Form
from mcbo.methods.config import Preset
from mcbo.methods.presets import DEFAULT_TASK
from mcbo.methods.world import Placed
from mcbo.progress import show_progress
from mcbo.report import CaseReport, WorkingGrid, stages_of
from mcbo.runtime import (
    MAX_MEMORY_GB,
    budget_bytes,
    describe_device,
    peak_meter,
    ready_kernels,
    refuse_forked,
    select_device,
    tidy_memory,
    wait_for,
    warm_up,
)


@within_host_memory("register")
def register(
    fixed: ImageLike,
    movings: ImageLike | list[ImageLike],
    *,
    preset: str = DEFAULT_PRESET,
    task: str = DEFAULT_TASK,
    expect: tuple[float, float] | None = None,
    accept: Choice | None = None,
    transform: Freedom = "deformable",
    settings: Mapping[str, object] | None = None,
    affine: NDArray[np.generic] | None = None,
    spacing: Sequence[Any] | str | None = None,
    channel: int | Sequence[int | str | None] | None = None,
    time: int | Sequence[int | str | None] | None = None,
    series: str | Sequence[str | None] | None = None,
    geometry: Form = "sform",
    fixed_mask: ImageLike | None = None,
    moving_masks: ImageLike | list[ImageLike | None] | None = None,
    initial: NDArray[np.generic] | str | Path | None = None,
    initial_landmarks: tuple[Points, Points] | None = None,
    landmark_transform: Model = "rigid",
    center: bool = False,
    device: str = "auto",
    memory_gb: float | None = None,
    uncertainty: bool = False,
    names: Sequence[str] | None = None,
) -> Result:
    """Registers moving images of any grid to a fixed image of any grid, in world coordinates.

    Args:
        fixed: a path, an array, a tensor, one of these paired with its affine, or a nibabel or SimpleITK image (``ImageLike``).
        movings: one such image, or a list of several of the same object.
        preset: of the task; ``auto``, to run its default on an isotropic grid chosen from the images; or a TOML file, see
            ``read_preset_file``.
        task: ``ReMIND2Reg`` or ``COMULIS3DCLEM``.
        expect: how far apart such images usually are, after ``initial`` or ``center``: the shift, mm, and the rotation,
            degrees; that of the task, if None.
        accept: the result to return whatever the judgement is, ``full``, ``rigid`` or ``identity``;
            ``judgement.overruled`` then says what it was.
        transform: what to seek: ``deformable``, ``affine``, the affine part of the deformation, or ``rigid``.
        settings: of the preset, to replace: ``{"refinement.bending": 0.3}``; named as in ``docs/register.md``.
        affine: of arrays without their own: voxel to world, RAS mm.
        spacing: instead of ``affine``, where only the voxel size along axes 0, 1, 2 is known, mm; also of TIFF and OME-Zarr
            files that do not state it, along columns, rows, slices. With a unit it is text, ``"50,50,100nm"``. A list has
            one for each image, fixed first, None where the file's own counts.
        channel: of TIFF and OME-Zarr files with several, counted from 0; or a list with one for each image, fixed first.
        time: the same of time points.
        series: UID or description of a DICOM series, for folders with several; or a list with one for each image, fixed first.
        geometry: what to take where the sform and qform of a NIfTI file differ.
        fixed_mask: where the fixed image counts (not 0), on any grid; if None, its background is detected.
        moving_masks: the same for the moving image, or a list.
        initial: rough alignment: ``(4, 4)`` from fixed to moving world positions, RAS mm; or a file, see ``read_initial``.
            Without one, images that do not match where they lie are sought elsewhere, too (``search.py``).
        initial_landmarks: instead, landmarks of the fixed and of the first moving image, the same points in the same order:
            files, or ``(n, 3)`` voxels of their image. Wrong pairs, up to a quarter, are left out.
        landmark_transform: what is fitted to them, ``rigid`` or ``affine``.
        center: start by aligning the centers of mass instead.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        memory_gb: limit for the tensors; a share of the free memory, if None.
        uncertainty: whether ``Result.uncertainty`` is wanted, which takes about a tenth of the time.
        names: of the images in log, report and errors, the fixed one first; those of their files, if None.

    Raises:
        InputError: for images, masks, alignments or names that cannot be used.
        MemoryBudgetError: if the images or the registration do not fit into memory.
        McboError: if the registration fails; see ``pipeline.register``.
    """
    refuse_forked()
    start = perf_counter()
    several = list(movings) if isinstance(movings, list) else [movings]
    masks = list(moving_masks) if isinstance(moving_masks, list) else [moving_masks] * len(several)
    if not several or len(masks) != len(several):
        raise InputError(f"expected one or more moving images, and a mask for each, got {len(several)} and {len(masks)}")
    config = wanted_config(preset, task, expect, accept, transform=transform, settings=settings)
    begin = Start(initial, initial_landmarks, landmark_transform, center)
    begin.check()
    if uncertainty and not config.knows_uncertainty:
        raise InputError(f"preset {config.name} does not know its uncertainty: expected preset cascade")
    _check_options(config, masks=(fixed_mask, *masks), memory_gb=memory_gb)
    on = select_device(device)
    warm_up(on)
    budget = budget_bytes(on, memory_gb)
    labels = labels_of(names[1:] if names else [name_of(image, "") for image in several])
    called = names or ["fixed image", *(f"moving image {number}" for number in range(1, len(several) + 1))]
    host = budget_bytes(select_device("cpu"), memory_gb)
    fixed, *several = (finest_that_fits(Path(i), host) if isinstance(i, str | Path) else i for i in (fixed, *several))
    told = selections([fixed, *several], spacing=spacing, channel=channel, time=time, series=series)
    selected = [replace(selection, form=geometry) for selection in told]
    digests: Digests = {}
    with show_progress(1) as view, peak_meter(on) as meter:
        view.begin_case(names[0] if names else CASE)
        timer = StageTimer(meter=meter, listener=view.stage, wait=lambda: wait_for(on), tidy=tidy_memory)
        with timer.stage("read"):
            given = zip((fixed, *several), (fixed_mask, *masks), called, selected, strict=True)
            images = [
                _place(image, mask, name, Geometry(affine, selection), on, digests) for image, mask, name, selection in given
            ]
        motion = start_of(begin, images, digests)
        kernels = ready_kernels(on)
        who = name_of(fixed, called[0])
        search = Search(
            images,
            config,
            budget,
            timer,
            kernels,
            preset=base_of(preset),
            names=[who, *called[1:]],
            bounds=uncertainty,
            seeks=config.seeks and initial is None and initial_landmarks is None,
        )
        with changed_settings(preset, settings), naming(who):
            found = search.run(motion)
        view.end_case()
    registration = found.registration
    shared = {id(u): u.cpu() for u in registration.displacements}
    transforms = [
        Transform(shared[id(u)], images[0].grid, image.grid)
        for u, image in zip(registration.displacements, images[1:], strict=True)
    ]
    report = _describe(found, images[0].grid, labels)
    report.images = [name_of(image, "") or None for image in (fixed, *several)]
    report.inputs = {path: digests[path] for path in report.images if path}
    report.settings = to_settings(selected) | {
        "initial": begin.digests(digests),
        "masks": [digests.get(name_of(mask, "")) for mask in (fixed_mask, *masks)],
    }
    report.device = describe_device(on)
    report.seconds = round(perf_counter() - start, 3)
    report.stages = stages_of(timer)
    first, *others = (replace(image, volume=image.volume.cpu(), mask=None) for image in images)
    config, judgements = registration.config, registration.judgements
    sources = _files_of((fixed, *several, fixed_mask, *masks, *begin.files))
    cpu = {id(bound): bound.cpu() for bound in registration.bounds}
    bounds = tuple(cpu[id(bound)] for bound in registration.bounds)
    return Result(tuple(transforms), judgements, config, report, first, tuple(others), tuple(labels), on, sources, bounds)


def _files_of(images: Sequence[object]) -> tuple[Path, ...]:
    """The files of images that come from files, those of nibabel included."""
    names = (image if isinstance(image, str | Path) else getattr(image, "get_filename", lambda: None)() for image in images)
    return tuple(Path(name) for name in names if name)


def _check_options(config: Preset, *, masks: Sequence[ImageLike | None], memory_gb: float | None) -> None:
    if not config.uses_masks and any(mask is not None for mask in masks):
        raise InputError(f"preset {config.name} does not use masks: expected none, or preset cascade")
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
    same = Selection(default_spacing=VoxelSize(grid.spacing_mm, grid.unit), form=geometry.selection.form)
    given, its_grid = to_volume(mask, mask_name, Geometry(grid.affine, same), digests)
    if isinstance(mask, np.ndarray | torch.Tensor) and its_grid.shape != grid.shape:
        raise InputError(
            f"{mask_name}: expected the shape of its image, {grid.shape}, or an affine beside it, got {its_grid.shape}"
        )
    known = resample((given != 0).int(), its_grid, grid, mode="nearest") > 0
    if not bool(known.any()):
        raise InputError(f"{mask_name}: expected voxels that are not 0 within its image, found none")
    return Placed(volume.to(device), grid, known.to(device))


def _describe(found: Found, fixed: Grid, labels: Sequence[str]) -> CaseReport:
    """The report of a registration: in which space, from which initial alignment, and how it is judged, which is logged."""
    registration = found.registration
    report = CaseReport(
        coordinates="world",
        shape=fixed.shape,
        working_grid=WorkingGrid(shape=found.working.shape, affine=found.working.affine.tolist()),
        initial=found.motion.tolist(),
        failed={},
        sanity=dict(zip(labels, found.checks, strict=True)),
    )
    if registration.levels:
        report.levels = registration.levels
    if registration.judgements:
        report.judgement = dict(zip(labels, registration.judgements, strict=True))
    for label, judgement in report.judgement.items():
        log.info("%s: %s", label, judgement.summary)
    report.warnings = report.doubts(registration.config) + [found.note] * bool(found.note)
    for warning in report.warnings:
        log.warning("%s", warning)
    return report
