"""The machine: devices, free memory, versions. Only this module and ``kernels/cuda/device.py`` use CUDA directly."""

import gc
import math
import os
import platform
import re
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Self, TypeVar

import torch
from torch import Tensor

from mcbo._version import __version__
from mcbo.core.control_group import OWN, ROOT, groups_of
from mcbo.core.errors import DeviceError, DeviceMemoryError, InputError, KernelError
from mcbo.core.log import log
from mcbo.core.memory import MEMORY_SHARE, available_bytes, c_library, format_gb, give_back_memory
from mcbo.core.timing import PeakMeter
from mcbo.core.types import Kernels
from mcbo.io.files import shown
from mcbo.kernels import REFERENCE

MAX_MEMORY_GB = 1e6
"""Limit of what can be given as a memory limit: a petabyte, which no machine has."""

DECIDING = ("mcbo", "torch", "cuda")
"""Versions on which a result depends; another operating system or Python makes no earlier result stale."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
"""Parameters of ``mallopt``, from glibc's ``malloc.h``."""

TIDY_BYTES = 2 * 10**9
"""Smaller processes do not return freed memory: at 96³ voxels, that took 2.3 s instead of 2.2 and saved 0.1 GB."""

SAMPLE_EVERY_S = 0.1
"""How often resident memory is sampled."""


LEAST_DRIVER = {"12": "525", "13": "580"}
"""By CUDA's first number, of the drivers that run its builds of torch (NVIDIA, "CUDA minor version compatibility")."""

_DRIVER = Path("/proc/driver/nvidia/version")

Result = TypeVar("Result")


def select_device(name: str) -> torch.device:
    """The device called ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ``DeviceError``, with the reason, if there is none."""
    check_device_name(name)
    if name == "cpu":
        return torch.device("cpu")
    count = _gpu_count()
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    if not count:
        raise DeviceError(f"device {shown(name)} is not available: {why_no_gpu()}; or use --device cpu")
    if int(name.partition(":")[2] or 0) >= count:
        raise DeviceError(f"device {shown(name)} is not available: expected a number below {count}, the number of GPUs here")
    return torch.device(name)


def _gpu_count() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of an old driver at length; ``why_no_gpu`` does
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def why_no_gpu() -> str:
    """Why torch finds no GPU, and what would help."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA: install one for your driver (docs/challenge.md)"
    try:
        found = re.search(r"\b\d{3,}\.[\d.]+", _DRIVER.read_text())
        driver = f"the NVIDIA driver{f', {found[0]},' if found else ''}"
    except OSError:
        return "no NVIDIA driver was found: install one; with Docker, pass --gpus all"
    try:
        torch.cuda.current_device()
    except (RuntimeError, AssertionError) as error:
        if "too old" in str(error):
            least = LEAST_DRIVER.get(torch.version.cuda.partition(".")[0])
            expected = f"expected {least} or newer" if least else "expected a newer one"
            return (
                f"{driver} is too old for torch {torch.__version__} with CUDA {torch.version.cuda}, {expected}: update it, "
                "or install torch for an older CUDA (docs/challenge.md)"
            )
    return f"{driver} shows this process no GPU: with Docker, pass --gpus all; see also CUDA_VISIBLE_DEVICES"


def check_device_name(name: str) -> None:
    """Raises ``DeviceError`` unless a name is that of a device, be it here or on a worker."""
    if not re.fullmatch("auto|cpu|cuda(:[0-9]{1,4})?", name):
        raise DeviceError(f"device {shown(name)} is not known: expected auto, cpu, cuda or cuda:N")


def visible_gpus() -> list[str]:
    """The GPUs that torch can use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    if not (count := _gpu_count()):
        return []
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] or [str(index) for index in range(count)]


def describe_device(device: torch.device, threads: Sequence[int] = ()) -> str:
    """One line for logs and reports; ``threads`` as in ``count_threads``."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{device} ({properties.name}, {properties.total_memory / 1e9:.0f} GB)"
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"cpu ({_processor()}, {instructions}, {count_threads(threads)}; no GPU in use)"


def describe_machine(threads: Sequence[int] = ()) -> str:
    """Processor, cores, threads in use (see ``count_threads``), memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{_processor()}, {os.cpu_count()} cores, {count_threads(threads)}, {memory:.0f} GB"


def count_threads(numbers: Sequence[int] = ()) -> str:
    """So many threads, ``1, 2 and 4 threads`` for several numbers; without one, torch's."""
    *others, last = list(numbers) or [torch.get_num_threads()]
    before = f"{', '.join(map(str, others))} and " if others else ""
    return f"{before}{last} thread{'' if last == 1 else 's'}"


def is_gpu_unused(device: torch.device) -> bool:
    """Whether the CPU is used in spite of an NVIDIA driver: it is too old, or torch has no CUDA."""
    return device.type == "cpu" and _DRIVER.exists()


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
_broken: dict[int, DeviceError] = {}
"""By the number of the GPU."""


def _cuda_kernels(index: int) -> Kernels:
    with _checking:  # ``warm_up`` and the first case may ask at a time
        if index in _broken:
            raise _broken[index]
        if index not in _checked:
            device = torch.device("cuda", index)
            try:
                _checked[index] = _compile_and_check(device)
            except KernelError as error:
                _check_alive(device, error)
                log.warning("%s: using plain torch, which is slower than the CUDA kernels: %s", device, error)
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
        _broken[device.index] = DeviceError(
            f"{device}: the self-check left the GPU unusable for this process ({error}): use --device cpu, and report this"
        )
        raise _broken[device.index] from fault


_warming: dict[torch.device, threading.Thread] = {}


def warm_up(device: torch.device) -> None:
    """Makes a GPU's context and kernels in the background, while images are read, once in a process. Nothing on a CPU.

    What goes wrong is left to ``ready_kernels``, where it goes wrong again.
    """
    if device.type != "cpu" and device not in _warming:
        _warming[device] = threading.Thread(target=_warm, args=(device,), name="mcbo-warm-up")
        _warming[device].start()


def _warm(device: torch.device) -> None:
    with suppress(Exception):
        wait_for(device)  # which makes the context
        select_kernels(device)


def ready_kernels(device: torch.device) -> Kernels:
    """``select_kernels``, after ``warm_up`` if it was called."""
    if device in _warming:
        _warming[device].join()
    return select_kernels(device)


def start_copy(tensor: Tensor) -> Callable[[], Tensor]:
    """Starts to copy a tensor to the CPU, while the device goes on; returns what waits for the copy and returns that."""
    if tensor.device.type != "cuda":
        return tensor.cpu
    try:
        copy = torch.empty_like(tensor, device="cpu", pin_memory=True)  # only such memory is written in the background
    except RuntimeError:  # the host has none
        return cache(tensor.cpu)
    copy.copy_(tensor, non_blocking=True)
    copied = torch.cuda.current_stream(tensor.device).record_event()

    def finished() -> Tensor:
        copied.synchronize()
        return copy

    return finished


def within_memory(
    attempt: Callable[[int], Result],
    *,
    who: object,
    device: torch.device,
    budget_bytes: int,
    least_bytes: Callable[[], int],
    warn: Callable[[str], None],
) -> Result:
    """What ``attempt`` returns within a budget or, if a GPU runs out of memory all the same, within half of it.

    Other programs may have taken what was free, or much of it lies in pieces.

    Args:
        attempt: called with a budget, bytes.
        who: in front of messages.
        device: that computes; on a CPU, errors are left as they are.
        budget_bytes: of the first attempt.
        least_bytes: what the case needs according to the memory model; the second budget is at least that.
        warn: is told why there is a second attempt.

    Raises:
        DeviceMemoryError: if the second attempt runs out of memory, too.
    """
    budget = budget_bytes
    for retry in (False, True):
        try:
            return attempt(budget)
        except Exception as error:  # libraries for CUDA have errors of their own
            if not _is_out_of_memory(error, device):
                raise
        # Only here, since the error holds on to the tensors of the attempt.
        free, least = _freed_bytes(device), least_bytes()
        figures = (
            f"{who}: {device} ran out of memory within a budget of {format_gb(budget)}; "
            f"at least {format_gb(least)} are needed, {format_gb(free)} are free now"
        )
        if not retry:
            budget = max(budget // 2, least)
            warn(f"{figures}: trying once more within {format_gb(budget)}")
    raise DeviceMemoryError(f"{figures}: end other programs on it, or use another --device")


def _is_out_of_memory(error: Exception, device: torch.device) -> bool:
    """Whether an error of a GPU's libraries means that its memory is full; their kinds differ, their texts hardly."""
    text = str(error).lower().replace("_", " ")
    return device.type != "cpu" and ("out of memory" in text or "alloc failed" in text)


def _freed_bytes(device: torch.device) -> int:
    """Free bytes after all that nobody uses was given back."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return free_bytes(device)


def budget_bytes(device: torch.device, memory_gb: float | None) -> int:
    """Memory that a case may use: the given limit, or a share of what is free now."""
    return int(MEMORY_SHARE * free_bytes(device) if memory_gb is None else min(memory_gb, MAX_MEMORY_GB) * 1e9)


_USERS: list[int] = []
"""The process that first used threads here; a forked one has a copy."""


def refuse_forked() -> None:
    """Raises ``InputError`` in a process that was forked from one that has used threads, as it would wait for them forever."""
    if not _USERS:
        _USERS.append(os.getpid())
    if _USERS[0] != os.getpid():
        raise InputError(
            "expected a process of its own, found one forked from a process that has used MCBO's threads, which it does not "
            'have: start processes with multiprocessing.get_context("spawn")'
        )


def use_available_cores() -> None:
    """Gives torch, and with it the compiled kernels, as many threads as this process has cores. For programs.

    ``OMP_NUM_THREADS`` decides if it is a number (or several, of nested levels: the first), also where torch would follow MKL,
    which takes no more than there are cores. Else torch counts the cores that the process may run on, but not how much of their
    time its container has.
    """
    found, asked = os.environ.get("OMP_NUM_THREADS", ""), 0
    with suppress(ValueError):
        asked = int(found.split(",")[0])
    if asked < 1:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), available_cores())))
        return
    most = max_threads()
    if asked > most:
        log.warning("OMP_NUM_THREADS: expected at most %d on this machine, found %s; %d are used", most, shown(found), most)
    torch.set_num_threads(min(asked, most))


def max_threads() -> int:
    """As many as can be asked for: more per core gain nothing, and a system that refuses one ends the process."""
    return 4 * (os.cpu_count() or 1)


def available_cores(root: Path = ROOT, own: Path = OWN) -> int:
    """Cores that this process may use: those that it is bound to, or what its control groups leave of them, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([cores, *(max(1, math.ceil(quota)) for quota in _group_cores(root, own))])


def _group_cores(root: Path, own: Path) -> list[float]:
    """The cores whose time the control groups (version 2 or 1) may use, where that is limited."""
    found = []
    for group in groups_of("cpu", root, own):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            try:
                quota, period = (int(part) for name in names for part in (group / name).read_text().split())
            except (OSError, ValueError):  # not this version, or "max": no limit
                continue
            if quota > 0 and period > 0:
                found.append(quota / period)
    return found


def keep_freed_memory() -> None:
    """Makes this process keep freed memory for its next arrays, until ``give_back_memory``. For programs, not for libraries.

    Else glibc returns each large array to the system and gets the next one page by page: at 256³ voxels, 64 s instead of 57
    (two cores, AMD EPYC, 2026-11-24). One pool for all threads, since what one frees the next one needs. Not for workers,
    several of which share a machine. Does nothing without glibc.
    """
    library = c_library()
    if library is not None:
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, -1)  # never
        library.mallopt(_M_ARENA_MAX, 1)


def tidy_memory() -> None:
    """Returns freed memory to the system if this process is large."""
    if resident_bytes() > TIDY_BYTES:
        give_back_memory()


def free_bytes(device: torch.device) -> int:
    """Bytes free on a device; on the CPU, within the limits of both the machine and the container.

    On a GPU, what torch keeps for its next tensors is free, too; what other processes use is not.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    give_back_memory()  # so that it counts as free
    return available_bytes()


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_bytes().split()[1]  # a sixth of the time that ``status`` takes
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


class CpuPeakMeter:
    """Peak resident memory of this process between resets.

    Resetting the kernel's high-water mark would falsify what ``/usr/bin/time`` and batch systems report. So the mark is used
    where it rose, which is exact, and samples elsewhere, which miss peaks of less than a tenth of a second.
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
        self._sampled = resident_bytes()

    def peak_bytes(self) -> int:
        mark = _status_bytes("VmHWM")
        return mark if mark > self._mark else max(self._sampled, resident_bytes())

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY_S):
            self._sampled = max(self._sampled, resident_bytes())


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
        torch.cuda.init()  # type: ignore[no-untyped-call]  # ``warm_up`` may still be at it, and until then a reset is an error
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
