"""The first step of a case: its files become images and masks in memory, unless an earlier run finished it."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch

from mcbo.core.errors import InputError, MemoryBudgetError, naming
from mcbo.core.field import format_shape, shape_of
from mcbo.core.timing import StageTimer
from mcbo.core.types import Masks, Shape
from mcbo.dataset.learn2reg import Case
from mcbo.dataset.remote import fetched
from mcbo.geometry.mask import field_of_view
from mcbo.io.files import format_bytes, saved_anew, state_of
from mcbo.io.nifti import Image, check_image, read_image
from mcbo.io.nifti_header import read_header
from mcbo.io.source import File
from mcbo.methods.memory_model import check_budget, image_bytes
from mcbo.report import CaseReport
from mcbo.runs.case import CaseResult, CaseRun
from mcbo.runs.options import Setup
from mcbo.runs.resume import done_before, image_digest, input_digests, input_key, used_pairs
from mcbo.runtime import budget_bytes

IMAGES_AT_ONCE = 3
"""Images that are read at a time: the fixed one and two modalities, as in ReMIND2Reg."""

Result = TypeVar("Result")


def reading_threads() -> ThreadPoolExecutor:
    """Threads that read the images of a case and find their masks."""
    return ThreadPoolExecutor(IMAGES_AT_ONCE, "mcbo-read-image")


def load(
    case: Case,
    setup: Setup,
    *,
    earlier: Sequence[CaseReport],
    timer: StageTimer,
    ahead: bool = False,
    threads: Executor | None = None,
) -> CaseRun:
    """Reads the images of a case, unless ``earlier`` reports show that it is done, and finds the masks that the preset uses.

    A broken moving image costs only its own displacement. If read ``ahead``, while another case is computed, free memory says
    nothing about what this case will have; then only ``compute`` checks it. ``threads`` are ``reading_threads``; if None, the
    case gets its own.
    """
    run = CaseRun(case, setup)
    with (
        run.span("read"),
        timer.stage("read"),
        fetched(case, used_pairs(case, setup)) as here,
        run.failing(),
        nullcontext(threads) if threads else reading_threads() as shared,
    ):
        # The digests decide whether an earlier run did the same; the report gets those of the bytes that are read.
        inputs = input_digests(here, setup, known=bool(earlier))
        before = done_before(here, inputs, earlier, setup)
        if before is not None:
            run.result = before
            return run
        run.result.report.inputs = inputs
        shape = check_image(read_header(here.fixed))
        if not ahead:
            _check_memory(here, setup, shape)
        _read(run, here, shape, shared, timer)
    return run


def _check_memory(case: Case, setup: Setup, shape: Shape) -> None:
    """Refuses, before any volume is read, a case that does not fit into the memory it may use (``MemoryBudgetError``).

    ``InputError``, if the image is too small for the preset. What a GPU has free is known when its context exists, which takes
    as long as reading; so ``compute`` asks, and here the images have to fit into the memory of the host.
    """
    movings = sum(state_of(pair.moving) is not None for pair in used_pairs(case, setup))
    if setup.device.type != "cpu":
        needed = image_bytes(shape, movings=movings, masks=setup.config.uses_masks)
        free = budget_bytes(torch.device("cpu"), None)
        if needed > free:
            raise MemoryBudgetError(
                f"{case.fixed}: {format_shape(shape)} voxels with {movings} moving image(s) take {format_bytes(needed)} of the "
                f"host's memory to be read, but the run may use {format_bytes(free)}: free some"
            )
        return
    joint = setup.config.joint(movings)
    budget = budget_bytes(setup.device, setup.options.memory_gb)
    with naming(case.fixed):
        least = setup.config.least_bytes(shape, movings=joint, kernels=setup.kernels)
        check_budget(shape, movings=joint, needed=least, budget_bytes=budget)


def _read(run: CaseRun, here: Case, shape: Shape, threads: Executor, timer: StageTimer) -> None:
    """Puts the images into ``run``, and their masks: those of one image are made while another one is read.

    ``here`` is the case as its files lie on this machine; ``shape`` is that of the fixed image.
    """
    result, uses_masks, inputs = run.result, run.setup.config.uses_masks, run.result.report.inputs
    movings: dict[str, Image] = {}
    refused: dict[str, str] = {}
    read: dict[str, str | None] = {}
    with _Beginning(threads) as begin:
        reading = begin(read_image, here.fixed)
        others = {pair.field_name: begin(_read_moving, pair.moving, here.fixed, shape) for pair in used_pairs(here, run.setup)}
        fixed = reading.result()
        if shape_of(fixed.volume) != shape:
            raise saved_anew(here.fixed)
        _note_digest(read, here.fixed, fixed.sha256)
        # Of the intensities as they are: the method scales them by a power of two, which makes no two of them equal.
        masks = [begin(field_of_view, fixed.volume)] if uses_masks else []
        for name, other in others.items():
            found = other.result()
            if isinstance(found, _Refused):
                refused[name] = found.message
                _note_digest(read, found.path, found.sha256)
                continue
            movings[name] = found
            _note_digest(read, found.path, found.sha256)
            _note_affine(found, fixed, result)
            if uses_masks:
                masks.append(begin(field_of_view, movings[name].volume))
        inputs |= read
        for message in refused.values() if movings else ():
            result.note(f"case {run.case.name} continues without this image: {message}", logging.WARNING)
        requested = [pair.field_name for pair in run.requested]
        result.failed = {name: refused[name] for name in requested if name in refused}
        if not any(name in movings for name in requested):
            return
        if uses_masks:
            with timer.stage("masks"):
                known, *others_known = [mask.result() for mask in masks]
            run.masks = Masks(known, tuple(others_known))
    run.fixed, run.movings, run.grid = fixed, movings, fixed.grid


class _Beginning:
    """Begins calls on threads. After the block, which an error may leave early, none of them goes on."""

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._begun: list[Future[Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for future in self._begun:
            future.cancel()
        wait(self._begun)

    def __call__(self, step: Callable[..., Result], *arguments: object) -> Future[Result]:
        future = self._threads.submit(step, *arguments)
        self._begun.append(future)
        return future


@dataclass(frozen=True)
class _Refused:
    """Why a moving image is not used, and its digest; None if it has changed since."""

    path: File
    message: str
    sha256: str | None


def _read_moving(path: File, fixed: File, expected: Shape) -> Image | _Refused:
    """Reads a moving image, unless it cannot be registered to the fixed one, which has the ``expected`` shape."""
    before = state_of(path)
    try:
        shape = check_image(read_header(path))
        if shape != expected:
            raise InputError(
                f"{path}: expected the shape of the fixed image {fixed.name}, {format_shape(expected)}, "
                f"found {format_shape(shape)}"
            )
        image = read_image(path)
        if shape_of(image.volume) != expected:
            raise saved_anew(path)
    except InputError as error:
        sha256 = image_digest(path)
        return _Refused(path, str(error), sha256 if state_of(path) == before else None)
    return image


def _note_digest(read: dict[str, str | None], path: File, sha256: str | None) -> None:
    """Notes what was read; of a file that was read twice and changed in between, nothing that a later run could find again."""
    key = input_key(path)
    read[key] = sha256 if read.get(key, sha256) == sha256 else None


def _note_affine(image: Image, fixed: Image, result: CaseResult) -> None:
    """Warns if an image lies elsewhere than the fixed one."""
    if not image.grid.matches(fixed.grid):
        result.note(
            f"{image.path.name}: its affine differs from that of {fixed.path.name}; the images are registered voxel by "
            "voxel, as in the challenge",
            logging.WARNING,
        )
