"""Memory of the host: what is free, what would not fit, and the libraries' errors when it runs out."""

import ctypes
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from mcbo.core.control_group import OWN, ROOT, groups_of
from mcbo.core.errors import MemoryBudgetError

MEMORY_SHARE = 0.75
"""Default share of the free memory for the tensors of a case.

The rest is for the process itself (``memory_model.PROCESS_GB``), files and other programs."""

_EXHAUSTED = re.compile(r"can't allocate memory|failed to allocate|not enough memory|bad_alloc|cannot allocate", re.IGNORECASE)
"""What torch, ITK and the system say, since they raise ``RuntimeError`` and ``OSError``."""


def give_back_memory() -> None:
    """Returns unused pages of this process to the system. Does nothing without glibc."""
    library = c_library()
    if library is not None:
        library.malloc_trim(0)


@cache
def c_library() -> ctypes.CDLL | None:
    """glibc, whose memory can be tuned; None elsewhere."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def available_bytes() -> int:
    """Bytes free on the host, within the limits of both the machine and the container."""
    meminfo = Path("/proc/meminfo").read_text()
    available = next(int(line.split()[1]) * 1024 for line in meminfo.splitlines() if line.startswith("MemAvailable"))
    return min([available, *_container_free_bytes()])


def _container_free_bytes(root: Path = ROOT, own: Path = OWN) -> list[int]:
    """What the limits of the control groups (version 2 or 1) leave, where there are any.

    Files that were read lately count as used, but the system drops them where memory is needed.
    """
    found = []
    for group in groups_of("memory", root, own):
        for limit, used, key in (
            ("memory.max", "memory.current", "inactive_file "),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
        ):
            try:
                free = int((group / limit).read_text()) - int((group / used).read_text())
                lines = (group / "memory.stat").read_text().splitlines()
            except (OSError, ValueError):  # not this version, or "max": no limit
                continue
            found.append(max(free + next((int(line.split()[1]) for line in lines if line.startswith(key)), 0), 0))
    return found


def format_gb(count: float) -> str:
    """Bytes in the unit of ``--memory-gb``, ``12.34 GB``; below 0.1 GB, ``4.81 MB``."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def check_fits(needed_bytes: int, what: str) -> None:
    """Raises ``MemoryBudgetError``, with both figures, for more than ``MEMORY_SHARE`` of what is free."""
    if needed_bytes <= MEMORY_SHARE * available_bytes():
        return
    give_back_memory()  # so that it counts as free
    free = available_bytes()
    if needed_bytes > MEMORY_SHARE * free:
        raise MemoryBudgetError(
            f"{what} takes {format_gb(needed_bytes)} of memory, but {format_gb(MEMORY_SHARE * free)} may be used "
            f"({100 * MEMORY_SHARE:.0f} % of what is free): free some, or crop or downsample the image"
        )


def is_exhausted(error: BaseException) -> bool:
    """Whether an error of any library means that the host has no more memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError) and _EXHAUSTED.search(str(error)) is not None
    )


@contextmanager
def within_host_memory(who: object) -> Iterator[None]:
    """Turns an allocation that fails in the block into ``MemoryBudgetError``."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_exhausted(error):
            raise
        raise exhausted(who) from error


def exhausted(who: object) -> MemoryBudgetError:
    """The error to raise where an allocation has failed."""
    return MemoryBudgetError(
        f"{who}: expected enough memory, but an allocation failed with {format_gb(available_bytes())} free: end other "
        "programs, or crop or downsample the images"
    )
