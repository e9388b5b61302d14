"""The first step of a case: its files become images in memory, unless an earlier run finished it."""

import logging
from collections.abc import Sequence

import numpy as np

from mcbo.core.errors import InputError, naming
from mcbo.core.field import format_shape, shape_of
from mcbo.core.timing import StageTimer
from mcbo.dataset.learn2reg import Case, Pair
from mcbo.dataset.remote import fetched
from mcbo.io.nifti import Image, check_image, read_image
from mcbo.io.nifti_header import read_header
from mcbo.methods.memory_model import check_budget
from mcbo.report import CaseReport
from mcbo.runs.case import CaseResult, CaseRun
from mcbo.runs.options import Setup
from mcbo.runs.resume import done_before, input_digests, used_pairs
from mcbo.runtime import budget_bytes


def load(case: Case, setup: Setup, *, earlier: Sequence[CaseReport], timer: StageTimer, ahead: bool = False) -> CaseRun:
    """Reads the images of a case, unless ``earlier`` reports show that it is done.

    A broken moving image costs only its own displacement. If read ``ahead``, while another case is computed, free memory says
    nothing about what this case will have; then only ``compute`` checks it.
    """
    run = CaseRun(case, setup)
    result = run.result
    with run.span("read"), timer.stage("read"), fetched(case, used_pairs(case, setup)) as here, run.failing():
        inputs = input_digests(here, setup)
        before = done_before(here, inputs, earlier, setup)
        if before is not None:
            run.result = before
            return run
        result.report.inputs = inputs
        if not ahead:
            _check_memory(here, setup)
        fixed = read_image(here.fixed)
        movings, refused = _read_movings(used_pairs(here, setup), fixed, result)
        for message in refused.values() if movings else ():
            result.note(f"case {case.name} continues without this image: {message}", logging.WARNING)
        requested = [pair.field_name for pair in run.requested]
        result.failed = {name: refused[name] for name in requested if name in refused}
        if any(name in movings for name in requested):
            run.fixed, run.movings, run.affine = fixed, movings, fixed.affine
    return run


def _check_memory(case: Case, setup: Setup) -> None:
    """Refuses, before any volume is read, a case that does not fit into the memory it may use (``MemoryBudgetError``).

    ``InputError``, if the fixed image's header is broken or the image is too small for the preset.
    """
    shape = check_image(read_header(case.fixed))
    joint = setup.config.joint(sum(pair.moving.is_file() for pair in used_pairs(case, setup)))
    budget = budget_bytes(setup.device, setup.options.memory_gb)
    with naming(case.fixed):
        least = setup.config.least_bytes(shape, movings=joint, kernels=setup.kernels)
        check_budget(shape, movings=joint, needed=least, budget_bytes=budget)


def _read_movings(pairs: Sequence[Pair], fixed: Image, result: CaseResult) -> tuple[dict[str, Image], dict[str, str]]:
    """Moving images, and error messages for those that cannot be registered to the fixed one, both by displacement name."""
    images: dict[str, Image] = {}
    refused: dict[str, str] = {}
    expected = shape_of(fixed.volume)
    for pair in pairs:
        try:
            shape = check_image(read_header(pair.moving))
            if shape != expected:
                raise InputError(
                    f"{pair.moving}: expected the shape of the fixed image {fixed.path.name}, {format_shape(expected)}, "
                    f"found {format_shape(shape)}"
                )
            image = read_image(pair.moving)
        except InputError as error:
            refused[pair.field_name] = str(error)
            continue
        images[pair.field_name] = image
        if not np.allclose(image.affine, fixed.affine, atol=1e-3):
            result.note(
                f"{image.path.name}: its affine differs from that of {fixed.path.name}; the images are registered voxel by "
                "voxel, as in the challenge",
                logging.WARNING,
            )
    return images, refused
