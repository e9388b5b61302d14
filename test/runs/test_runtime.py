import os
import platform
import runpy
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import paper_config

from mcbo import runtime
from mcbo.core.errors import DeviceError
from mcbo.core.types import Kernels
from mcbo.kernels import REFERENCE
from mcbo.runs import runner
from mcbo.runs.options import Options
from mcbo.runtime import (
    available_cores,
    budget_bytes,
    count_threads,
    describe_device,
    free_bytes,
    peak_meter,
    ready_kernels,
    select_device,
    select_kernels,
    start_copy,
    versions,
    visible_gpus,
    wait_for,
    warm_up,
    why_no_gpu,
)

CPU = torch.device("cpu")


def test_devices() -> None:
    assert select_device("cpu") == CPU
    assert select_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("tpu", "cuda:x", "cuda0", ""):
        with pytest.raises(DeviceError, match="expected auto, cpu, cuda or cuda:N"):
            select_device(name)
    with pytest.raises(DeviceError, match="'cuda:64' is not available"):
        select_device("cuda:64")


PROPRIETARY = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82.01  Wed Oct 27 21:21:55 UTC 2021\nGCC version:  9.4.0"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (builder)\nGCC version:  12.3.0"
TOO_OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver"


@pytest.mark.parametrize(
    ("cuda", "driver", "says", "message"),
    [
        (None, OPEN, "", "torch 2.99 is a build without CUDA: install one for your driver (docs/challenge.md)"),
        ("13.0", None, "", "no NVIDIA driver was found: install one; with Docker, pass --gpus all"),
        (
            "13.0",
            PROPRIETARY,
            TOO_OLD,
            "the NVIDIA driver, 470.82.01, is too old for torch 2.99 with CUDA 13.0, expected 580 or newer: update it, or "
            "install torch for an older CUDA (docs/challenge.md)",
        ),
        (
            "99.1",
            "of another form",
            TOO_OLD,
            "the NVIDIA driver is too old for torch 2.99 with CUDA 99.1, expected a newer one: update it, or install torch "
            "for an older CUDA (docs/challenge.md)",
        ),
        (
            "12.8",
            OPEN,
            "No CUDA GPUs are available",
            "the NVIDIA driver, 580.65.06, shows this process no GPU: with Docker, pass --gpus all; see also "
            "CUDA_VISIBLE_DEVICES",
        ),
    ],
)
def test_why_there_is_no_gpu_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: str | None, driver: str | None, says: str, message: str
) -> None:
    def broken() -> int:
        raise RuntimeError(says)

    def warning() -> bool:
        warnings.warn(f"CUDA initialization: {says}", UserWarning, stacklevel=1)
        return False

    file = tmp_path / "version"
    if driver is not None:
        file.write_text(driver)
    monkeypatch.setattr(runtime, "_DRIVER", file)
    monkeypatch.setattr(torch, "__version__", "2.99")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "current_device", broken)
    monkeypatch.setattr(torch.cuda, "is_available", warning)  # which tests would take for an error
    assert why_no_gpu() == message
    with pytest.raises(DeviceError) as raised:
        select_device("cuda")
    assert str(raised.value) == f"device 'cuda' is not available: {message}; or use --device cpu"
    assert select_device("auto") == CPU
    assert visible_gpus() == []


def test_a_gpu_beyond_those_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [select_device(name) for name in ("auto", "cuda", "cuda:1")] == [torch.device(n) for n in ("cuda", "cuda", "cuda:1")]
    with pytest.raises(DeviceError, match="'cuda:2' is not available: expected a number below 2, the number of GPUs here"):
        select_device("cuda:2")


def test_a_run_on_the_cpu_in_spite_of_a_driver_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runner, "is_gpu_unused", lambda _: True)
    monkeypatch.setattr(runner, "select_device", lambda _: CPU)
    with caplog.at_level("WARNING", logger="mcbo"):
        runner.run([], paper_config(), Options(tmp_path))
    assert f"running on the CPU: {why_no_gpu()}" in caplog.messages


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device that passes for a GPU as far as its kernels go."""
    monkeypatch.setattr(runtime, "_warming", {})
    monkeypatch.setattr(runtime, "wait_for", lambda _: None)
    return torch.device("cuda")


def test_kernels_are_made_in_the_background_once_and_waited_for(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, calls = threading.Event(), []

    def selecting(device: torch.device) -> Kernels:
        calls.append(threading.current_thread())
        assert go_on.wait(60)
        assert device == gpu
        return REFERENCE

    monkeypatch.setattr(runtime, "select_kernels", selecting)
    warm_up(gpu)
    warm_up(gpu)
    waiter = threading.Thread(target=ready_kernels, args=(gpu,))
    waiter.start()
    waiter.join(0.1)
    assert len(calls) == 1  # nobody selects kernels that are in the making
    go_on.set()
    waiter.join()
    assert len(calls) == 2
    assert ready_kernels(gpu) is REFERENCE


def test_what_fails_in_the_background_fails_where_it_is_needed(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: torch.device) -> Kernels:
        raise RuntimeError("no compiler library")

    monkeypatch.setattr(runtime, "select_kernels", broken)
    warm_up(gpu)
    with pytest.raises(RuntimeError, match="no compiler library"):
        ready_kernels(gpu)


def test_a_cpu_needs_no_warming(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_warming", {})
    before = threading.active_count()
    warm_up(CPU)
    assert threading.active_count() == before
    assert ready_kernels(CPU) is select_kernels(CPU)


def test_a_copy_is_what_was_there_when_it_was_started(device: torch.device) -> None:
    tensor = torch.arange(60.0, device=device).view(1, 3, 4, 5, 1).transpose(2, 3)
    copied = start_copy(tensor)
    if device.type == "cuda":
        tensor += 1  # after the copy, in the order of the stream
    assert copied().device == CPU
    assert copied() is copied()
    assert copied().stride() == tensor.stride()
    assert torch.equal(copied(), torch.arange(60.0).view(1, 3, 4, 5, 1).transpose(2, 3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_what_torch_keeps_for_its_next_tensors_counts_as_free() -> None:
    device = torch.device("cuda")
    wait_for(device)
    before = free_bytes(device)
    block = torch.empty(10**9, dtype=torch.uint8, device=device)
    assert before - free_bytes(device) > 0.9e9
    del block
    assert abs(before - free_bytes(device)) < 0.1e9


def test_a_cpu_says_that_it_is_one() -> None:
    assert "no GPU in use" in describe_device(CPU)


def test_the_budget_is_what_was_asked_for_or_a_share_of_what_is_free(device: torch.device) -> None:
    assert budget_bytes(device, 1.5) == 1_500_000_000
    assert 0 < budget_bytes(device, None) < free_bytes(device)


def test_peaks_are_seen_even_below_an_earlier_one() -> None:
    with peak_meter(CPU) as meter:
        for size in (4 * 10**8, 10**8):
            meter.reset()
            before = meter.peak_bytes()
            block = np.ones(size, dtype=np.uint8)
            assert meter.peak_bytes() - before > 0.9 * size
            del block


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone can be told so")
def test_a_program_keeps_what_it_frees_until_it_gives_it_back() -> None:
    script = """
import threading, numpy as np
from mcbo.runtime import give_back_memory, keep_freed_memory, resident_bytes
def use():
    np.ones(10**8, dtype=np.uint8)
before = resident_bytes()
use()
print(resident_bytes() - before)
keep_freed_memory()
use()
threads = [threading.Thread(target=use) for _ in range(3)]
for thread in threads:
    thread.start()
    thread.join()
print(resident_bytes() - before)
give_back_memory()
print(resident_bytes() - before)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    imported, kept, left = map(int, told)
    assert imported < 0.2e8  # to import mcbo changes nothing
    assert 0.9e8 < kept < 1.5e8  # once, not once for each thread
    assert left < 0.2e8


@pytest.mark.parametrize(("program", "module"), [("process.py", "mcbo.runtime"), ("mcbo/__main__.py", "mcbo.cli.main")])
def test_the_programs_keep_what_they_free(program: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(f"{module}.keep_freed_memory", lambda: told.append(program))
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.raises(SystemExit):
            runpy.run_path(str(Path(__file__).parents[2] / program), run_name="__main__")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert told == [program]


def test_kernels_and_versions(device: torch.device) -> None:
    assert select_kernels(device).name
    assert {"mcbo", "torch", "python"} <= set(versions())


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "25000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_container_limits_the_cores(tmp_path: Path, files: dict[str, str], cores: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    bound = len(os.sched_getaffinity(0))
    assert available_cores(tmp_path, tmp_path / "none") == (bound if cores is None else min(cores, bound))


@pytest.mark.parametrize("limited", ["", "jobs", "jobs/7", "jobs/7/step"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_quota_around_the_own_group_counts(tmp_path: Path, limited: str, version: int) -> None:
    root, own = tmp_path / "fs", tmp_path / "own"
    own.write_text("0::/jobs/7/step\n" if version == 2 else "5:memory:/other\n4:cpu,cpuacct:/jobs/7/step\n1:name=systemd:/x\n")
    base = root if version == 2 else root / "cpu"
    (base / "jobs/7/step").mkdir(parents=True)
    (base / "beside").mkdir()
    files = (
        {"cpu.max": "100000 100000\n"} if version == 2 else {"cpu.cfs_quota_us": "100000\n", "cpu.cfs_period_us": "100000\n"}
    )
    assert available_cores(root, own) == len(os.sched_getaffinity(0))
    for name, text in files.items():
        (base / "beside" / name).write_text(text)
    assert available_cores(root, own) == len(os.sched_getaffinity(0))
    for name, text in files.items():
        (base / limited / name).write_text(text)
    assert available_cores(root, own) == 1


def test_threads_are_counted_in_english() -> None:
    assert [count_threads(numbers) for numbers in ([1], [3], [1, 2], [1, 2, 4])] == [
        "1 thread",
        "3 threads",
        "1 and 2 threads",
        "1, 2 and 4 threads",
    ]


def test_the_threads_of_a_program_are_those_it_is_given_or_has() -> None:
    """Bound to one core, one; unless the environment says how many, also if that is more than there are cores."""
    more = 2 * (os.cpu_count() or 1)
    cases = {"2": 2, "": 1, "2,1": 2, "many": 1, str(more): more, "0": 1, f"{more},2": more, "-2": 1}
    program = f"""
import os
os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})
os.environ.pop("OMP_NUM_THREADS", None)
import torch
from mcbo.runtime import use_available_cores
found = []
for given in ({None!r}, *{list(cases)}):
    if given is not None:
        os.environ["OMP_NUM_THREADS"] = given
    use_available_cores()
    found.append(torch.get_num_threads())
print(found)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([1, *cases.values()])
