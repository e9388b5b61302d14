"""The machine: devices, free memory, versions. Only this module and ``kernels/cuda/device.py`` use CUDA directly."""

import ctypes
import os
import platform
import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Self

import torch

from mcbo._version import __version__
from mcbo.core.errors import DeviceError, KernelError
from mcbo.core.log import log
from mcbo.core.timing import PeakMeter
from mcbo.core.types import Kernels
from mcbo.kernels import REFERENCE

MEMORY_SHARE = 0.75
"""Default share of the free memory for the tensors of a case.

The rest is for the process itself (``memory_model.PROCESS_GB``), files and other programs."""

DECIDING = ("mcbo", "torch", "cuda")
"""Versions on which a result depends; another operating system or Python makes no earlier result stale."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
"""Parameters of ``mallopt``, from glibc's ``malloc.h``."""

TIDY_BYTES = 2 * 10**9
"""Smaller processes do not return freed memory: at 96³ voxels, that took 2.3 s instead of 2.2 and saved 0.1 GB."""

SAMPLE_EVERY_S = 0.02
"""How often resident memory is sampled."""


def select_device(name: str) -> torch.device:
    """The device called ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ``DeviceError`` if there is none."""
    check_device_name(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    index = name.partition(":")[2]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        found = f"{count} CUDA device(s)" if count else "no CUDA device"
        raise DeviceError(f"device {name!r} is not available: found {found}; with Docker, pass --gpus all, or use --device cpu")
    return torch.device(name)


def check_device_name(name: str) -> None:
    """Raises ``DeviceError`` unless a name is that of a device, be it here or on a worker."""
    kind, _, index = name.partition(":")
    if name not in ("auto", "cpu", "cuda") and not (kind == "cuda" and index.isdecimal()):
        raise DeviceError(f"device {name!r} is not known: expected auto, cpu, cuda or cuda:N")


def visible_gpus() -> list[str]:
    """The GPUs that torch can use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    if not torch.cuda.is_available():
        return []
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[: torch.cuda.device_count()] or [str(index) for index in range(torch.cuda.device_count())]


def describe_device(device: torch.device) -> str:
    """One line for logs and reports."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{device} ({properties.name}, {properties.total_memory / 1e9:.0f} GB)"
    return f"cpu ({_processor()}, {torch.get_num_threads()} threads; no GPU in use)"


def describe_machine() -> str:
    """Processor, cores, threads in use, memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {memory:.0f} GB"


def is_gpu_unused(device: torch.device) -> bool:
    """Whether the CPU is used in spite of an NVIDIA driver: it is too old, or torch has no CUDA."""
    return device.type == "cpu" and Path("/proc/driver/nvidia/version").exists()


def select_kernels(device: torch.device) -> Kernels:
    """The fastest kernels that run on a device; on a GPU, they are compiled and checked at the first call, once per process.

    Where that fails, a warning says why, and the torch reference is used.

    Raises:
        DeviceError: if the check left a GPU unable to compute anything.
        torch.OutOfMemoryError: if the check finds no memory on a GPU; the next call tries again.
    """
    if device.type == "cpu":
        from mcbo.kernels.cpu import COMPILED  # here, because a run on a GPU has no use for numba

        return COMPILED
    if device.type == "cuda":
        return _cuda_kernels(torch.cuda.current_device() if device.index is None else device.index)
    return REFERENCE


_checking = threading.Lock()
_checked: dict[int, Kernels] = {}
"""By the number of the GPU."""


def _cuda_kernels(index: int) -> Kernels:
    with _checking:  # the next case is read while one is computed, and both ask
        if index not in _checked:
            device = torch.device("cuda", index)
            try:
                _checked[index] = _compile_and_check(device)
            except KernelError as error:
                _check_alive(device, error)
                log.warning("%s: using plain torch, which is several times slower than the CUDA kernels: %s", device, error)
                _checked[index] = REFERENCE
        return _checked[index]


def _compile_and_check(device: torch.device) -> Kernels:
    """The CUDA kernels on a device, or ``KernelError``."""
    from mcbo.kernels.cuda import MODULES, make_kernels  # here, because a run on a CPU has no use for them
    from mcbo.kernels.cuda.check import agree
    from mcbo.kernels.cuda.device import DeviceLaunch

    launch = DeviceLaunch(device)
    launch.prepare(MODULES)
    kernels = make_kernels(launch)
    agree(kernels, device)
    return kernels


def _check_alive(device: torch.device, error: KernelError) -> None:
    """Raises ``DeviceError`` if nothing runs on a device any more, as after a kernel that wrote where it must not."""
    try:
        torch.zeros(1, device=device).item()
    except RuntimeError as fault:
        raise DeviceError(
            f"{device}: the self-check left the GPU unusable for this process ({error}): use --device cpu, and report this"
        ) from fault


def budget_bytes(device: torch.device, memory_gb: float | None) -> int:
    """Memory that a case may use: the given limit, or a share of what is free now."""
    return int(MEMORY_SHARE * free_bytes(device) if memory_gb is None else memory_gb * 1e9)


def keep_freed_memory() -> None:
    """Makes this process keep freed memory for its next arrays, until ``give_back_memory``. For programs, not for libraries.

    Else glibc returns each large array to the system and gets the next one page by page: at 256³ voxels, 64 s instead of 57
    (two cores, AMD EPYC, 2026-11-24). One pool for all threads, since what one frees the next one needs. Not for workers,
    several of which share a machine. Does nothing without glibc.
    """
    library = _c_library()
    if library is not None:
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, -1)  # never
        library.mallopt(_M_ARENA_MAX, 1)


def give_back_memory() -> None:
    """Returns unused pages of this process to the system. Does nothing without glibc."""
    library = _c_library()
    if library is not None:
        library.malloc_trim(0)


def tidy_memory() -> None:
    """Returns freed memory to the system if this process is large."""
    if resident_bytes() > TIDY_BYTES:
        give_back_memory()


@cache
def _c_library() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def free_bytes(device: torch.device) -> int:
    """Bytes free on a device; on the CPU, within the limits of both the machine and the container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    give_back_memory()  # so that it counts as free
    meminfo = Path("/proc/meminfo").read_text()
    available = next(int(line.split()[1]) * 1024 for line in meminfo.splitlines() if line.startswith("MemAvailable"))
    return min([available, *_container_free_bytes()])


def _container_free_bytes() -> list[int]:
    """What the limit of the control group (version 2 or 1) leaves, if there is one."""
    root = Path("/sys/fs/cgroup")
    for limit, used in (
        (root / "memory.max", root / "memory.current"),
        (root / "memory/memory.limit_in_bytes", root / "memory/memory.usage_in_bytes"),
    ):
        try:
            return [max(int(limit.read_text()) - int(used.read_text()), 0)]
        except (OSError, ValueError):  # not this version, or "max": no limit
            continue
    return []


def resident_bytes() -> int:
    """Resident memory of this process."""
    return _status_bytes("VmRSS")


class CpuPeakMeter:
    """Peak resident memory of this process between resets.

    Resetting the kernel's high-water mark would falsify what ``/usr/bin/time`` and batch systems report. So the mark is used
    where it rose, which is exact, and samples elsewhere, which miss very short peaks.
    """

    def __init__(self) -> None:
        self._mark = self._sampled = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def reset(self) -> None:
        self._mark = _status_bytes("VmHWM")
        self._sampled = _status_bytes("VmRSS")

    def peak_bytes(self) -> int:
        mark = _status_bytes("VmHWM")
        return mark if mark > self._mark else max(self._sampled, _status_bytes("VmRSS"))

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY_S):
            self._sampled = max(self._sampled, _status_bytes("VmRSS"))


def _status_bytes(key: str) -> int:
    """An entry of this process's memory statistics, bytes; 0 where the system has none."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(key + ":")), 0)


class CudaPeakMeter:
    """Peak memory that torch allocated on a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self._device)


def peak_meter(device: torch.device) -> AbstractContextManager[PeakMeter]:
    """The meter for a device; it measures within a ``with`` block."""
    return nullcontext(CudaPeakMeter(device)) if device.type == "cuda" else CpuPeakMeter()


def held_bytes(device: torch.device) -> int:
    """Memory of a CUDA device that torch holds for this process: tensors, and what it keeps for the next ones."""
    return torch.cuda.memory_reserved(device)


def wait_for(device: torch.device) -> None:
    """Returns when all work submitted to a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def versions() -> dict[str, str]:
    """Versions of the software and the system."""
    return {
        "mcbo": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "platform": platform.platform(),
    }


def _processor() -> str:
    """The processor's name, where the system provides it."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
