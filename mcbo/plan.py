"""What a run will take: seconds, memory, disk and money, from figures that were measured and from the memory model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mcbo.config import Cascade, Preset, check_size, fit_to_shape, format_shape
from mcbo.errors import InputError
from mcbo.figures import Figure, FigureSet
from mcbo.memory import PROCESS_GB, needed_bytes
from mcbo.types import Shape

IMAGE_BYTES = 4
"""A voxel of an image, before compression, in the widest usual type."""

DISPLACEMENT_BYTES = 12
"""A voxel of a displacement, float32, before compression."""


@dataclass(frozen=True)
class Request:
    """A run that is thought of.

    Attributes:
        cases: how many.
        shape: voxels of each.
        movings: moving images of each case.
        task: whose preset it is.
        config: the preset.
        is_gpu: whether on a GPU.
        workers: cases at a time, each on a machine, or a part of one, like the one that was measured.
        price_per_hour: of one worker, in whatever currency; None if nobody asks.
    """

    cases: int
    shape: Shape
    movings: int
    task: str
    config: Preset
    is_gpu: bool
    workers: int = 1
    price_per_hour: float | None = None


@dataclass(frozen=True)
class Estimate:
    """What it will take; None for what no figure tells.

    Attributes:
        seconds_per_case: of one worker.
        seconds: of the whole run.
        tensors_gb: of one case, by the memory model.
        memory_gb: of one worker, least and most; on a GPU of its own memory, the tensors.
        input_gb: of all images, before compression.
        output_gb: of all displacements, before compression.
        cost: of the run.
        assumptions: what all this rests on, a sentence each.
    """

    seconds_per_case: float | None
    seconds: float | None
    tensors_gb: float
    memory_gb: tuple[float, float]
    input_gb: float
    output_gb: float
    cost: float | None
    assumptions: tuple[str, ...]


def plan(request: Request, figures: FigureSet) -> Estimate:
    """Estimates a run.

    Raises:
        InputError: if a number makes no sense, or the shape is too small for the method.
    """
    _check(request)
    voxels = math.prod(request.shape)
    tensors = _tensors_gb(request)
    beside = (0.0, 0.0) if request.is_gpu else PROCESS_GB
    images = request.cases * (1 + request.movings) * voxels
    per_case, grounds = _seconds_per_case(request, figures)
    rounds = math.ceil(request.cases / request.workers)
    seconds = None if per_case is None else rounds * per_case
    cost = None
    if seconds is not None and request.price_per_hour is not None:
        cost = seconds / 3600 * request.workers * request.price_per_hour
    return Estimate(
        seconds_per_case=per_case,
        seconds=seconds,
        tensors_gb=tensors,
        memory_gb=(tensors + beside[0], tensors + beside[1]),
        input_gb=images * IMAGE_BYTES / 1e9,
        output_gb=request.cases * request.movings * voxels * DISPLACEMENT_BYTES / 1e9,
        cost=cost,
        assumptions=(*grounds, *_other_grounds(request, seconds, cost)),
    )


def _check(request: Request) -> None:
    counts = (("--cases", request.cases), ("--movings", request.movings), ("--workers", request.workers))
    for option, count in counts:
        if count < 1:
            raise InputError(f"{option}: expected at least 1, got {count}")
    price = request.price_per_hour
    if price is not None and not 0 <= price < math.inf:
        raise InputError(f"--price-per-hour: expected a number from 0, got {price:g}")
    check_size(request.shape)


def _tensors_gb(request: Request) -> float:
    config = request.config
    fitted = config if isinstance(config, Cascade) else fit_to_shape(config, request.shape)[0]
    return needed_bytes(request.shape, fitted, movings=request.movings if config.modality_fusion else 1) / 1e9


def _seconds_per_case(request: Request, known: FigureSet) -> tuple[float | None, list[str]]:
    """Seconds, and what they rest on; or None, and why nothing is known."""
    name, voxels = request.config.name, math.prod(request.shape)
    if request.is_gpu != known.is_gpu:
        device = "a GPU" if request.is_gpu else "a CPU"
        return None, [f"not measured on {device}: no time and no cost; --benchmark takes figures of your machine"]
    of_preset = [figure for figure in known.figures if figure.preset == name]
    if not of_preset or known.task not in (None, request.task):
        return None, [
            f"no figure for {request.task} with preset {name}: no time and no cost; measure with python -m mcbo benchmark "
            f"--task {request.task} --preset {name} --json FILE, and give --benchmark FILE"
        ]
    grounds = [f"time: {known.origin}"]
    movings = _nearest_movings(request.movings, of_preset)
    figures = sorted((figure for figure in of_preset if figure.movings == movings), key=lambda figure: figure.voxels)
    grounds += [
        f"memory: {figure.peak_memory_gb:.1f} GB were measured at {_cube(figure.voxels)} with {movings} moving image(s)"
        for figure in figures[-1:]
        if figure.peak_memory_gb is not None
    ]
    per_voxel = _interpolated(voxels, figures)
    smallest, largest = figures[0].voxels, figures[-1].voxels
    if not smallest <= voxels <= largest:
        grounds.append(
            f"{format_shape(request.shape)} voxels lie outside of what was measured ({_cube(smallest)}"
            + (f" to {_cube(largest)}" if largest > smallest else "")
            + "): the seconds a voxel of the nearest size are taken"
        )
    if request.movings > movings:
        grounds.append(f"measured with {movings} moving image(s): {request.movings} are taken to need as much more time")
    elif request.movings < movings:
        grounds.append(f"measured with {movings} moving images: fewer are taken to need as long, which is too much")
    if known.task is None:
        grounds.append(f"the figures do not say which task they are of: taken for {request.task}")
    return per_voxel * voxels * max(1.0, request.movings / movings), grounds


def _nearest_movings(asked: int, figures: Sequence[Figure]) -> int:
    """The number of moving images that was measured and is as asked; else the largest below, else the smallest above."""
    measured = {figure.movings for figure in figures}
    below = [count for count in measured if count <= asked]
    return max(below) if below else min(measured)


def _interpolated(voxels: int, figures: Sequence[Figure]) -> float:
    """Seconds a voxel, between measured sizes in proportion to their voxels; beyond them, as at the nearest."""
    rates = [figure.seconds / figure.voxels for figure in figures]
    for (low, low_rate), (high, high_rate) in zip(
        zip(figures, rates, strict=True), list(zip(figures, rates, strict=True))[1:], strict=False
    ):
        if low.voxels <= voxels <= high.voxels and low.voxels < high.voxels:
            share = (voxels - low.voxels) / (high.voxels - low.voxels)
            return low_rate + share * (high_rate - low_rate)
    return rates[0] if voxels < figures[0].voxels else rates[-1]


def _cube(voxels: int) -> str:
    return f"{round(voxels ** (1 / 3))}³"


def _other_grounds(request: Request, seconds: float | None, cost: float | None) -> list[str]:
    grounds = []
    if seconds is not None:
        grounds.append("time: from files to file, without the start of programs, queues and downloads")
    if seconds is not None and request.workers > 1:
        grounds.append(
            f"{request.workers} workers, each with as many cores as were measured, none waiting for another or a disk"
        )
    if request.is_gpu:
        grounds.append(
            "memory: tensors on the device by the memory model, not measured on a GPU; the GPU's libraries take more"
        )
    else:
        grounds.append(
            f"memory: tensors by the memory model, and {PROCESS_GB[0]:g} to {PROCESS_GB[1]:g} GB for the process; "
            "mcbo2024 works with less where it has to"
        )
    grounds.append("disk: 4 bytes a voxel of each image and 12 of each displacement, before compression")
    if cost is not None:
        grounds.append(f"cost: {request.workers} worker(s), each {request.price_per_hour:g} an hour, computing alone")
    return grounds
