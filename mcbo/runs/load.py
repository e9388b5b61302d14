"""The first step of a case: its files become images in memory, unless an earlier run finished it."""

from collections.abc import Sequence

import numpy as np
import torch

from mcbo.core.errors import InputError, McboError
from mcbo.core.field import format_shape, shape_of
from mcbo.core.timing import StageTimer
from mcbo.dataset.learn2reg import Case, Pair, wanted
from mcbo.dataset.remote import fetched
from mcbo.io.nifti import Image, check_image, read_image
from mcbo.io.nifti_header import read_header
from mcbo.methods.config import Preset
from mcbo.methods.memory_model import check_budget
from mcbo.report import CaseReport
from mcbo.runs.case import CaseResult, CaseRun, failing
from mcbo.runs.options import Options
from mcbo.runs.resume import done_before, input_digests, used_pairs
from mcbo.runtime import budget_bytes, select_kernels


def load(
    case: Case,
    config: Preset,
    options: Options,
    device: torch.device,
    *,
    earlier: Sequence[CaseReport],
    timer: StageTimer,
    ahead: bool = False,
) -> CaseRun:
    """Reads the images of a case, unless it was done before. A broken moving image costs its own displacement only.

    Args:
        case: the case.
        config: the preset.
        options: of the run.
        device: that the case will be computed on.
        earlier: what earlier runs report of this case.
        timer: gets the stage ``read``.
        ahead: whether another case is in work, so that free memory says nothing of what this case will have; ``compute``
            judges that then.
    """
    run = CaseRun(case)
    result = run.result
    with run.span("read"), timer.stage("read"), fetched(case, used_pairs(case, config, options)) as here:
        before = done_before(here, earlier, config, options)
        if before is not None:
            run.result = before
            return run
        with failing(run, options):
            result.report.inputs = input_digests(here, config, options)
            if not ahead:
                _check_memory(here, config, options, device)
            fixed = read_image(here.fixed)
            movings, refused = _read_movings(used_pairs(here, config, options), fixed, result)
            for message in refused.values() if movings else ():
                result.caution(f"case {case.name} continues without this image: {message}")
            asked = wanted(here, options.movings)
            result.failed = {pair.field_name: refused[pair.field_name] for pair in asked if pair.field_name in refused}
            if any(pair.field_name in movings for pair in asked):
                run.fixed, run.movings, run.affine = fixed, movings, fixed.affine
    return run


def _check_memory(case: Case, config: Preset, options: Options, device: torch.device) -> None:
    """Refuses, before any volume is read, a case that cannot be registered within the memory that it may use.

    Raises:
        InputError: if the fixed image's header is broken, or the image too small for the preset.
        MemoryBudgetError: if a case of this shape needs more than there is.
    """
    shape = check_image(read_header(case.fixed))
    there = sum(pair.moving.is_file() for pair in used_pairs(case, config, options))
    joint = config.joint(there)
    budget = budget_bytes(device, options.memory_gb)
    try:
        least = config.least_bytes(shape, movings=joint, lanes=select_kernels(device).lanes)
        check_budget(shape, movings=joint, needed=least, budget_bytes=budget)
    except McboError as error:
        raise type(error)(f"{case.fixed}: {error}") from error


def _read_movings(pairs: Sequence[Pair], fixed: Image, result: CaseResult) -> tuple[dict[str, Image], dict[str, str]]:
    """Reads moving images, by displacement name; and a sentence for each that cannot be registered to the fixed one."""
    images: dict[str, Image] = {}
    refused: dict[str, str] = {}
    for pair in pairs:
        try:
            shape, expected = check_image(read_header(pair.moving)), shape_of(fixed.volume)
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
            result.caution(
                f"{image.path.name}: its affine differs from that of {fixed.path.name}; the images are registered voxel by "
                "voxel, as in the challenge"
            )
    return images, refused
