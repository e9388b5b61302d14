"""What is counted in which stage, on events made by hand; and that torch's profiler tells of stages."""

import time

import pytest
import torch

from mcbo.core.timing import RANGE, StageTimer
from mcbo.studies.device_use import BETWEEN, DeviceUse, Event, events_of, profiled, use_per_stage

STAGES = [
    Event("stage", "solve", 1.0, 5.0),
    Event("stage", "features", 2.0, 3.0),
    Event("stage", "judge", 5.0, 6.0),
    Event("stage", "solve", 7.0, 8.0),
    Event("stage", "idle", 9.0, 9.5),
]


def kernel(start_s: float, end_s: float) -> Event:
    return Event("kernel", "k", start_s, end_s)


def test_the_innermost_stage_counts() -> None:
    kernels = [kernel(1.5, 1.625), kernel(2.5, 2.75), kernel(3.0, 3.5), kernel(5.0, 5.5), kernel(7.0, 7.5), kernel(6.5, 6.75)]
    found = use_per_stage([*kernels, *reversed(STAGES)])
    assert list(found) == ["solve", "features", "judge", "idle", BETWEEN]
    assert found["solve"] == DeviceUse(launches=3, busy_s=0.125 + 0.5 + 0.5)
    assert found["features"] == DeviceUse(launches=1, busy_s=0.25)
    assert found["judge"] == DeviceUse(launches=1, busy_s=0.5)
    assert found["idle"] == DeviceUse()
    assert found[BETWEEN] == DeviceUse(launches=1, busy_s=0.25)


def test_what_runs_at_a_time_is_busy_once() -> None:
    side_by_side = [kernel(1.0, 1.5), Event("copy", "c", 1.25, 1.75), kernel(1.3, 1.4), kernel(2.0, 3.5), kernel(3.25, 4.0)]
    found = use_per_stage([*STAGES, *side_by_side])
    assert found["solve"] == DeviceUse(launches=3, copies=1, busy_s=0.75 + 0.5)  # the last one counts from 3.5 on
    assert found["features"] == DeviceUse(launches=1, busy_s=1.5)


def test_waits_are_counted_and_not_busy() -> None:
    found = use_per_stage([*STAGES, Event("wait", "w", 2.1, 2.9), Event("wait", "w", 0.5, 0.9), kernel(2.25, 2.5)])
    assert found["features"] == DeviceUse(launches=1, waits=1, busy_s=0.25)
    assert found[BETWEEN] == DeviceUse(waits=1)


def test_nothing_is_nothing() -> None:
    assert use_per_stage([]) == {BETWEEN: DeviceUse()}
    assert sum([DeviceUse(1, 2, 3, 0.5), DeviceUse(1, 0, 1, 0.25)], DeviceUse()) == DeviceUse(2, 2, 4, 0.75)


def test_a_trace_is_read() -> None:
    def entry(category: str, name: str) -> dict[str, object]:
        return {"ph": "X", "cat": category, "name": name, "ts": 2e6, "dur": 5e5}

    entries = [
        entry("user_annotation", f"{RANGE}level 4 solve"),
        entry("user_annotation", "another's"),
        entry("gpu_user_annotation", f"{RANGE}level 4 solve"),  # the same once more, as the device's span
        entry("kernel", "advance"),
        entry("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)"),
        entry("gpu_memset", "Memset (Device)"),
        entry("cuda_driver", "cuLaunchKernelEx"),
        entry("cuda_runtime", "cudaLaunchKernel"),
        entry("cuda_runtime", "cudaMemcpyAsync"),
        entry("cuda_runtime", "cudaStreamSynchronize"),
        entry("cuda_runtime", "cudaMemcpy"),
        entry("cuda_runtime", "cudaDeviceSynchronize"),
        entry("cpu_op", "aten::add"),
        {"ph": "M", "name": "process_name", "pid": 1},
        {"ph": "i", "cat": "kernel", "name": "no span", "ts": 1.0},
    ]
    events = events_of({"traceEvents": entries})
    assert [(event.kind, event.name) for event in events] == [
        ("stage", "level 4 solve"),
        ("kernel", "advance"),
        ("copy", "Memcpy DtoH (Device -> Pageable)"),
        ("copy", "Memset (Device)"),
        ("wait", "cudaStreamSynchronize"),
        ("wait", "cudaMemcpy"),
    ]
    assert {(event.start_s, event.end_s) for event in events} == {(2.0, 2.5)}


def test_the_profiler_sees_stages() -> None:
    timer = StageTimer()

    def work() -> int:
        with timer.stage("outer"):
            time.sleep(0.01)
            with timer.stage("inner"):
                torch.ones(3).add_(1)
        return 7

    result, events = profiled(torch.device("cpu"), work)
    assert result == 7
    assert [(event.kind, event.name) for event in events] == [("stage", "outer"), ("stage", "inner")]
    outer, inner = events
    assert outer.start_s + 0.01 <= inner.start_s <= inner.end_s <= outer.end_s


@pytest.mark.gpu
def test_the_profiler_sees_kernels_copies_and_waits() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    gpu = torch.device("cuda", 0)
    timer = StageTimer(wait=lambda: torch.cuda.synchronize(gpu))
    torch.ones(3, device=gpu).add_(1)

    def work() -> float:
        with timer.stage("one"):
            ones = torch.ones(1000, device=gpu)
        with timer.stage("two"):
            return (ones + 1).mul_(2)[0].item()

    result, events = profiled(gpu, work)
    found = use_per_stage(events)
    assert result == 4
    assert found["one"].launches == 1
    assert found["two"].launches == 2
    assert found["two"].copies == found["two"].waits == 1
    assert found["two"].busy_s > 0
    assert found[BETWEEN].launches == 0
