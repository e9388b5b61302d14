import platform
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mcbo.core.errors import DeviceError
from mcbo.runtime import (
    budget_bytes,
    describe_device,
    free_bytes,
    peak_meter,
    select_device,
    select_kernels,
    versions,
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
