"""Seconds and peak memory per stage, and a progress callback as stages begin and end."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from torch.profiler import record_function

RANGE = "mcbo stage: "
"""What torch's profiler calls a stage begins with this. Unless it runs, naming a stage takes 16 µs."""


class PeakMeter(Protocol):
    """Measures the highest memory use since it was last reset (``runtime.py`` has one per kind of device)."""

    def reset(self) -> None: ...

    def peak_bytes(self) -> int: ...


@dataclass
class StageRecord:
    """Wall-clock seconds of all calls of a stage so far, and the highest peak among them, bytes."""

    seconds: float = 0.0
    peak_bytes: int = 0


@dataclass(kw_only=True, eq=False)
class StageTimer:
    """Collects a ``StageRecord`` per stage name.

    Attributes:
        meter: of memory; without one, peaks stay 0.
        listener: called with ``(stage, 0)`` when a stage begins and ``(stage, work)`` when it ends, where ``work`` is the
            share of the case that is then done.
        wait: called before the clock is read; a device that computes in the background needs it.
        tidy: called when a stage begins for the first time, as it may need memory of another shape.
    """

    meter: PeakMeter | None = None
    listener: Callable[[str, float], None] | None = None
    wait: Callable[[], None] | None = None
    tidy: Callable[[], None] | None = None
    records: dict[str, StageRecord] = field(default_factory=dict, init=False)
    _running: list[StageRecord] = field(default_factory=list, init=False)
    _start: float = field(default=0.0, init=False)

    @contextmanager
    def stage(self, name: str, *, work: float = 0.0) -> Iterator[None]:
        """Times the block as (a part of) stage ``name``, which pauses while a stage inside it runs."""
        if self.tidy and name not in self.records:
            self.tidy()
        record = self.records.setdefault(name, StageRecord())
        self._report(name, 0.0)
        if self._running:
            self._pause(self._running[-1])
        self._running.append(record)
        with record_function(RANGE + name):
            self._resume()
            has_failed = True
            try:
                yield
                has_failed = False
            finally:
                # A device that an error has broken would raise another one, instead of that.
                self._pause(self._running.pop(), waits=not has_failed)
                if self._running:
                    self._resume()
        self._report(name, work)

    def _resume(self) -> None:
        if self.meter:
            self.meter.reset()
        self._start = time.perf_counter()

    def _pause(self, record: StageRecord, *, waits: bool = True) -> None:
        if self.wait and waits:
            self.wait()
        record.seconds += time.perf_counter() - self._start
        if self.meter:
            record.peak_bytes = max(record.peak_bytes, self.meter.peak_bytes())

    def _report(self, name: str, work: float) -> None:
        if self.listener:
            self.listener(name, work)
