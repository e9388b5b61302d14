"""Cases of one process on an assembly line: while one is computed, the next is read and the last one written.

Nothing else runs side by side, and at most three cases are in memory. Where there is no room for that, they take turns.
"""

import contextlib
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import torch

from mcbo.core.errors import InputError
from mcbo.core.field import shape_of
from mcbo.core.timing import PeakMeter, StageTimer
from mcbo.core.types import Shape
from mcbo.dataset.learn2reg import Case, wanted
from mcbo.io.files import free_disk_bytes
from mcbo.io.nifti import check_image
from mcbo.io.nifti_header import read_header
from mcbo.io.source import Source
from mcbo.methods.config import Preset
from mcbo.methods.memory_model import image_bytes, result_bytes
from mcbo.progress import ProgressView
from mcbo.runs.case import CaseRun, tell_times
from mcbo.runs.compute import compute
from mcbo.runs.ledger import Ledger
from mcbo.runs.load import load
from mcbo.runs.options import Options
from mcbo.runs.resume import used_pairs
from mcbo.runs.write import write
from mcbo.runtime import budget_bytes, select_kernels, tidy_memory, wait_for


class AssemblyLine:
    """The assembly line: a thread that reads at most one case ahead, this thread that computes, and one that writes.

    Args:
        ledger: settles the cases, in their order; only the writing thread uses it while the line runs.
        config: the preset.
        options: of the run.
        device: to compute on.
        view: is told of the stages of what is computed.
        meters: of memory, one for each thread, since each is reset at its own stages: reading, computing, writing.
    """

    def __init__(
        self,
        ledger: Ledger,
        config: Preset,
        options: Options,
        device: torch.device,
        view: ProgressView,
        meters: tuple[PeakMeter, PeakMeter, PeakMeter],
    ) -> None:
        self._ledger, self._config, self._options, self._device, self._view = ledger, config, options, device, view
        self._meters = meters
        self._reader = ThreadPoolExecutor(1, "mcbo-read")
        self._writer = ThreadPoolExecutor(1, "mcbo-write")
        for thread in (self._reader, self._writer):
            thread.submit(lambda: None)  # so that it is there before a case leaves no memory for its stack
        self._ahead: Future[tuple[CaseRun, StageTimer]] | None = None
        self._writing: Future[None] | None = None
        self._writing_bytes = 0
        self._start = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Lets the file that is being written become whole and known; what was read ahead is dropped."""
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._writer.shutdown(wait=True)

    def do(self, case: Case, following: Case | None) -> None:
        """Computes a case while ``following`` is read, and hands it on to be written."""
        start = time.perf_counter()
        self._view.stage("read", 0.0)
        if self._ahead is None:
            self._ahead = self._reader.submit(self._load, case, False)
        case_run, read_timer = self._ahead.result()
        self._ahead = None
        timer = StageTimer(
            meter=self._meters[1],
            listener=self._view.stage,
            wait=lambda: wait_for(self._device),
            tidy=tidy_memory,
        )
        reserved = self._room_for_neighbors(case_run, following)
        if reserved is None:
            self.finish_writing()
        elif following is not None:
            self._ahead = self._reader.submit(self._load, following, True)
        if self._is_disk_tight(case_run):
            self.finish_writing()  # how much is left can be told after that
        case_run.waited_s = time.perf_counter() - start
        compute(case_run, self._config, self._options, self._device, timer=timer, reserved_bytes=reserved or 0)
        start = time.perf_counter()
        self.finish_writing()
        case_run.waited_s += time.perf_counter() - start
        self._view.stage("write", 0.0)
        self._writing_bytes = sum(field.nbytes for field in (*case_run.displacements.values(), *case_run.warped.values()))
        self._writing = self._writer.submit(self._write, case_run, [read_timer, timer])

    def finish_writing(self) -> None:
        """Waits until what was handed on is on the disk and in the report."""
        if self._writing is not None:
            self._writing.result()
        self._writing, self._writing_bytes = None, 0

    def _load(self, case: Case, ahead: bool) -> tuple[CaseRun, StageTimer]:
        timer = StageTimer(meter=self._meters[0])
        earlier = self._ledger.earlier(case)
        return load(case, self._config, self._options, self._device, earlier=earlier, timer=timer, ahead=ahead), timer

    def _write(self, case_run: CaseRun, timers: list[StageTimer]) -> None:
        timer = StageTimer(meter=self._meters[2])
        result = write(case_run, self._options, self._device, timer=timer)
        if result.is_fresh:
            tell_times(case_run, [*timers, timer], since=self._start)
        self._ledger.settle(case_run.case, result)

    def _room_for_neighbors(self, case_run: CaseRun, following: Case | None) -> int | None:
        """Bytes to keep free for what is read and written while a case is computed; None if there is no room for that."""
        host = torch.device("cpu")
        budget = budget_bytes(host, self._options.memory_gb if self._device.type == "cpu" else None)
        here = None if case_run.fixed is None else shape_of(case_run.fixed.volume)
        neighbors = self._writing_bytes + (_images_of(following, self._config, self._options, like=here) if following else 0)
        needed = 0
        if case_run.fixed is not None:
            shape, there = shape_of(case_run.fixed.volume), len(case_run.movings)
            needed = result_bytes(shape, pairs=there, warped=self._options.warped)
            if self._device.type == "cpu":
                with contextlib.suppress(InputError):  # told when it is computed
                    lanes = select_kernels(self._device).lanes
                    needed += self._config.least_bytes(shape, movings=self._config.joint(there), lanes=lanes)
        if needed + neighbors > budget:
            return None
        return neighbors if self._device.type == "cpu" else 0

    def _is_disk_tight(self, case_run: CaseRun) -> bool:
        if case_run.fixed is None or self._writing is None:
            return False
        pairs = len(wanted(case_run.case, self._options.movings))
        needed = result_bytes(shape_of(case_run.fixed.volume), pairs=pairs, warped=self._options.warped)
        return needed + self._writing_bytes > free_disk_bytes(self._options.output)


def _images_of(case: Case, config: Preset, options: Options, *, like: Shape | None) -> int:
    """Bytes that reading a case takes, by its fixed image's header; 0 if that is broken, since nothing is read then.

    A header that is not on this machine yet is taken to be ``like`` that of the case before.
    """
    try:
        shape = check_image(read_header(case.fixed))
    except InputError:
        if like is None or not isinstance(case.fixed, Source):
            return 0
        shape = like
    return image_bytes(shape, movings=len(used_pairs(case, config, options)))
