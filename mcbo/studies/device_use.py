"""What a GPU is asked to do in each stage of a run, as torch's profiler sees it."""

import json
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from mcbo.core.timing import RANGE

Result = TypeVar("Result")

BETWEEN = "between stages"
"""Where what lies in no stage is counted: copies of images to the GPU, and of displacements back."""

_DEVICE_KINDS: dict[str, Literal["kernel", "copy"]] = {"kernel": "kernel", "gpu_memcpy": "copy", "gpu_memset": "copy"}
"""Categories of the profiler's trace for what the GPU does, whoever launched it: torch by the CUDA runtime, or cuda-core by the
driver's ``cuLaunchKernel``."""


@dataclass(frozen=True)
class Event:
    """A span of time in a run, ``start_s`` to ``end_s`` on one clock for host and device.

    Attributes:
        kind: ``stage``, of the host; ``kernel``, or ``copy`` of memory, of the device; ``wait`` of the host for the device.
        name: of a stage, that of ``StageTimer``.
    """

    kind: Literal["stage", "kernel", "copy", "wait"]
    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class DeviceUse:
    """What a GPU was asked to do.

    Attributes:
        launches: of kernels.
        copies: of memory, fills included.
        waits: how often the host waited for the GPU; the clock's own waits at the ends of stages are left out.
        busy_s: seconds in which at least one kernel or copy ran.
    """

    launches: int = 0
    copies: int = 0
    waits: int = 0
    busy_s: float = 0.0

    def __add__(self, other: "DeviceUse") -> "DeviceUse":
        return DeviceUse(
            self.launches + other.launches, self.copies + other.copies, self.waits + other.waits, self.busy_s + other.busy_s
        )


def use_per_stage(events: Iterable[Event]) -> dict[str, DeviceUse]:
    """What was done in each stage, by the time when it began; stages nest, and the innermost counts.

    That is the right one, since a stage ends when the device has done its work. Every stage is in the result, in the order of
    their beginnings, and ``BETWEEN`` last.
    """
    ordered = sorted(events, key=lambda event: (event.start_s, -event.end_s))
    names = list(dict.fromkeys(event.name for event in ordered if event.kind == "stage"))
    result = dict.fromkeys([*names, BETWEEN], DeviceUse())
    times, running = _changes([event for event in ordered if event.kind == "stage"])
    counted_until = 0.0
    for event in ordered:
        if event.kind == "stage":
            continue
        name = running[bisect_right(times, event.start_s)]
        if event.kind == "wait":
            result[name] += DeviceUse(waits=1)
            continue
        busy_s = max(event.end_s - max(event.start_s, counted_until), 0.0)
        counted_until = max(counted_until, event.end_s)
        result[name] += DeviceUse(launches=int(event.kind == "kernel"), copies=int(event.kind == "copy"), busy_s=busy_s)
    return result


def _changes(stages: list[Event]) -> tuple[list[float], list[str]]:
    """When the innermost stage changes, and which one runs before the first change and after each."""
    times: list[float] = []
    running = [BETWEEN]
    stack: list[Event] = []

    def change(time: float) -> None:
        times.append(time)
        running.append(stack[-1].name if stack else BETWEEN)

    for stage in stages:
        while stack and stack[-1].end_s <= stage.start_s:
            end_s = stack.pop().end_s
            change(end_s)
        stack.append(stage)
        change(stage.start_s)
    while stack:
        end_s = stack.pop().end_s
        change(end_s)
    return times, running


def profiled(device: torch.device, work: Callable[[], Result]) -> tuple[Result, list[Event]]:
    """Does some work under torch's profiler; returns its result, and what was seen."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with tempfile.TemporaryDirectory(prefix="mcbo-profile-") as folder:
        with profile(activities=activities) as profiler:
            result = work()
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return result, events_of(json.loads(path.read_bytes()))


def events_of(trace: Mapping[str, Any]) -> list[Event]:
    """The events of a profiler's trace, as its Chrome format has them: times in microseconds."""
    events = []
    for entry in trace["traceEvents"]:
        kind = _kind_of(entry.get("cat", ""), entry["name"])
        if kind is not None and "dur" in entry:
            start_s = entry["ts"] / 1e6
            events.append(Event(kind, entry["name"].removeprefix(RANGE), start_s, start_s + entry["dur"] / 1e6))
    return events


def _kind_of(category: str, name: str) -> Literal["stage", "kernel", "copy", "wait"] | None:
    if category == "user_annotation" and name.startswith(RANGE):
        return "stage"
    if category in ("cuda_runtime", "cuda_driver"):
        waits = ("Synchronize" in name and name != "cudaDeviceSynchronize") or ("Memcpy" in name and "Async" not in name)
        return "wait" if waits else None
    return _DEVICE_KINDS.get(category)
