"""Seconds and peak memory per stage, and a listener who is told as stages begin and end."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol


class PeakMeter(Protocol):
    """Measures the highest memory use since it was last reset (``runtime.py`` has one per kind of device)."""

    def reset(self) -> None: ...

    def peak_bytes(self) -> int: ...


@dataclass
class StageRecord:
    """What a stage took so far: wall-clock seconds over all its calls, and the highest peak among them, bytes."""

    seconds: float = 0.0
    peak_bytes: int = 0


class StageTimer:
    """Collects a ``StageRecord`` per stage name.

    Args:
        meter: of memory; without one, peaks stay 0.
        listener: called with ``(stage, 0)`` when a stage begins and ``(stage, work)`` when it ends, where ``work`` is the
            share of the case that is then done.
        wait: called before the clock is read; a device that computes in the background needs it.
        tidy: called when a stage begins that was not there before, and so may need memory of another shape.
    """

    def __init__(
        self,
        *,
        meter: PeakMeter | None = None,
        listener: Callable[[str, float], None] | None = None,
        wait: Callable[[], None] | None = None,
        tidy: Callable[[], None] | None = None,
    ) -> None:
        self.records: dict[str, StageRecord] = {}
        self._meter = meter
        self._listener = listener
        self._wait = wait
        self._tidy = tidy
        self._running: list[StageRecord] = []
        self._start = 0.0

    @contextmanager
    def stage(self, name: str, *, work: float = 0.0) -> Iterator[None]:
        """Times the block as (a part of) stage ``name``. A stage inside it is not counted twice: meanwhile this one rests."""
        if self._tidy and name not in self.records:
            self._tidy()
        record = self.records.setdefault(name, StageRecord())
        self._tell(name, 0.0)
        if self._running:
            self._pause(self._running[-1])
        self._running.append(record)
        self._resume()
        try:
            yield
        finally:
            self._pause(self._running.pop())
            if self._running:
                self._resume()
        self._tell(name, work)

    def _resume(self) -> None:
        if self._meter:
            self._meter.reset()
        self._start = time.perf_counter()

    def _pause(self, record: StageRecord) -> None:
        if self._wait:
            self._wait()
        record.seconds += time.perf_counter() - self._start
        if self._meter:
            record.peak_bytes = max(record.peak_bytes, self._meter.peak_bytes())

    def _tell(self, name: str, work: float) -> None:
        if self._listener:
            self._listener(name, work)
