"""How much faster a registration is with more threads, stage by stage, and what more cores would give."""

import hashlib
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from mcbo.core.errors import InputError
from mcbo.core.field import format_shape
from mcbo.runtime import available_cores, count_threads
from mcbo.studies.benchmark import Measurement

_LEAST_S = 0.01
"""No speed-up is shown for shorter stages."""
_LEAST_LOOP = 0.8
"""Of each core, what a loop has to get on average; else, cores are busy, or siblings of one, and tell no serial share."""
_ANY_GAIN = 1.05
CORES = 16
"""For which the run time is predicted."""
_HASHES, _HASHED = 2**14, 2**14
_COPIED = 2**26
"""Floats: 256 MiB, more than most caches hold."""


@dataclass(frozen=True)
class ThreadScaling:
    """Measurements of one size with several numbers of threads.

    Attributes:
        threads: numbers of threads, ascending; the first is 1.
        measurements: with each.
        loop_speedup: of a loop that stays in the cache of a core, with the most threads: what this machine gives at most.
        copy_speedup: of a copy of a large array: what it gives where cores wait for the memory that they share.
        available: cores.
    """

    threads: tuple[int, ...]
    measurements: tuple[Measurement, ...]
    loop_speedup: float
    copy_speedup: float
    available: int

    @property
    def cores(self) -> int:
        """On which the most threads ran."""
        return min(self.threads[-1], self.available)

    @property
    def speedup(self) -> float:
        """With the most threads."""
        return self.measurements[0].seconds / self.measurements[-1].seconds

    @property
    def serial_share(self) -> float | None:
        """Of the run time with one thread, what more cores do not shorten, by Amdahl's law: 1/S = s + (1 − s)/n.

        None with a single core, or where even a loop gained too little from n cores.
        """
        if self.cores < 2 or self.loop_speedup < _LEAST_LOOP * self.cores:
            return None
        return min(max((self.cores / self.speedup - 1) / (self.cores - 1), 0.0), 1.0)

    def predicted_speedup(self, cores: int) -> float | None:
        """With so many cores, by the same law."""
        share = self.serial_share
        return None if share is None else 1 / (share + (1 - share) / cores)


def measure_scaling(threads: Sequence[int], measure: Callable[[], Measurement]) -> ThreadScaling:
    """Measures with each number of threads, which torch has from then on.

    Raises:
        InputError: unless the numbers ascend from 1.
    """
    if len(threads) < 2 or threads[0] != 1 or sorted(set(threads)) != list(threads):
        raise InputError(
            f"--threads: expected numbers that ascend from 1, such as 1,2,4, got {','.join(map(str, threads))}: the speed-up "
            "is that over one thread"
        )
    measurements = []
    for count in threads:
        torch.set_num_threads(count)
        measurements.append(measure())
    most = threads[-1]
    return ThreadScaling(tuple(threads), tuple(measurements), _loop_speedup(most), _copy_speedup(most), available_cores())


def to_text(scaling: ThreadScaling) -> str:
    """Seconds of each stage with each number of threads, and what they say of more cores."""
    first = scaling.measurements[0]
    heads = [count_threads([count]) for count in scaling.threads]
    lines = [
        f"phantom of {format_shape(first.shape)} voxels, {first.movings} moving image(s): seconds from files to file",
        "",
        f"{'stage':24}" + "".join(f"{head:>12}" for head in heads) + f"{'speed-up':>10}{'share':>8}",
    ]
    rows = [(name, [one.stages[name].seconds for one in scaling.measurements]) for name in first.stages]
    for name, seconds in [*rows, ("all", [one.seconds for one in scaling.measurements])]:
        figures = "".join(f"{value:12.2f}" for value in seconds)
        speedup = f"{seconds[0] / seconds[-1]:.2f}" if min(seconds) >= _LEAST_S else ""
        lines.append(f"{name:24}{figures}{speedup:>10}{seconds[0] / first.seconds:8.1%}")
    most = scaling.threads[-1]
    lines += [
        "",
        f"speed-up: of {most} threads over one; share: of the run time with one thread",
        f"a loop that stays in the cache of a core: {scaling.loop_speedup:.2f} times as fast with {most} threads here",
        f"a copy of a large array, which waits for the memory that the cores share: {scaling.copy_speedup:.2f} times",
    ]
    share, predicted = scaling.serial_share, scaling.predicted_speedup(CORES)
    if share is None or predicted is None:
        lines.append(
            f"serial share: cannot be told, as {most} threads had too few cores to themselves "
            "(they are busy, or siblings of one, or there are fewer)"
        )
    else:
        gain = f"{predicted:.1f} times as fast as" if predicted >= _ANY_GAIN else "no faster than"
        lines.append(f"serial share by Amdahl's law: {share:.1%}; {CORES} cores would be {gain} one")
    return "\n".join(lines)


def to_content(scaling: ThreadScaling) -> dict[str, object]:
    """What the JSON file has besides the measurements."""
    return {
        "threads": list(scaling.threads),
        "loop_speedup": scaling.loop_speedup,
        "copy_speedup": scaling.copy_speedup,
        "serial_share": scaling.serial_share,
        f"predicted_speedup_{CORES}": scaling.predicted_speedup(CORES),
    }


def _loop_speedup(threads: int) -> float:
    """Of hashes of a buffer that stays in a core's cache, without Python's lock."""
    data = bytes(_HASHED)

    def work() -> None:
        for _ in range(_HASHES):
            hashlib.sha256(data)

    def seconds(count: int) -> float:
        with ThreadPoolExecutor(count) as pool:
            start = time.perf_counter()
            for future in [pool.submit(work) for _ in range(count)]:
                future.result()
            return time.perf_counter() - start

    return statistics.median(threads * seconds(1) / seconds(threads) for _ in range(3))


def _copy_speedup(threads: int) -> float:
    """Of a copy from memory to memory; torch has ``threads`` threads from then on."""
    source = torch.ones(_COPIED)  # of zeros, the system would keep a single page
    target = source.clone()

    def seconds(count: int) -> float:
        torch.set_num_threads(count)
        start = time.perf_counter()
        target.copy_(source)
        return time.perf_counter() - start

    return statistics.median(seconds(1) / seconds(threads) for _ in range(5))
