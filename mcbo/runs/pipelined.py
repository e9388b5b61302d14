"""Cases of one process in a pipeline: while one is computed, the next is read and the previous one written.

At most three cases are in memory. If they do not fit, they take turns.
"""

import contextlib
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import torch

from mcbo.core.errors import InputError
from mcbo.core.field import shape_of
from mcbo.core.timing import PeakMeter, StageTimer
from mcbo.core.types import Shape
from mcbo.dataset.learn2reg import Case
from mcbo.io.files import free_disk_bytes
from mcbo.io.nifti import check_image
from mcbo.io.nifti_header import read_header
from mcbo.io.source import Source
from mcbo.methods.memory_model import image_bytes, result_bytes
from mcbo.progress import ProgressView
from mcbo.runs.case import CaseRun
from mcbo.runs.compute import compute
from mcbo.runs.ledger import Ledger
from mcbo.runs.load import IMAGES_AT_ONCE, load, reading_threads
from mcbo.runs.options import Setup
from mcbo.runs.resume import used_pairs
from mcbo.runs.write import write
from mcbo.runtime import budget_bytes, tidy_memory, wait_for


class PipelinedRunner:
    """Computes in this thread; one thread reads at most one case ahead, with some more for its images, and another one writes.

    Only the writing thread uses ``ledger``. There is a memory meter for each thread (reading, computing, writing), since each
    is reset when a stage of its own starts.
    """

    def __init__(
        self, ledger: Ledger, setup: Setup, view: ProgressView, meters: tuple[PeakMeter, PeakMeter, PeakMeter]
    ) -> None:
        self._ledger, self._setup, self._view, self._meters = ledger, setup, view, meters
        self._reader = ThreadPoolExecutor(1, "mcbo-read")
        self._writer = ThreadPoolExecutor(1, "mcbo-write")
        self._images = reading_threads()
        for thread in (self._reader, self._writer):
            thread.submit(lambda: None)  # so that it exists before a case leaves no memory for its stack
        all_there = threading.Barrier(IMAGES_AT_ONCE)
        for _ in range(IMAGES_AT_ONCE):
            self._images.submit(all_there.wait)
        self._ahead: Future[tuple[CaseRun, StageTimer]] | None = None
        self._writing: Future[None] | None = None
        self._writing_bytes = 0
        self._start = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Lets the case that is being written be finished and reported; what was read ahead is dropped."""
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._images.shutdown(wait=True)
        self._writer.shutdown(wait=True)

    def do(self, case: Case, following: Case | None) -> None:
        """Computes a case while ``following`` is read, and hands it on to be written."""
        start = time.perf_counter()
        self._view.stage("read", 0.0)
        if self._ahead is None:
            self._ahead = self._reader.submit(self._load, case, False)
        run, read_timer = self._ahead.result()
        self._ahead = None
        device = self._setup.device
        timer = StageTimer(meter=self._meters[1], listener=self._view.stage, wait=lambda: wait_for(device), tidy=tidy_memory)
        reserved = self._room_for_neighbors(run, following)
        if reserved is None:
            self.finish_writing()
        elif following is not None:
            self._ahead = self._reader.submit(self._load, following, True)
        if self._is_disk_tight(run):
            self.finish_writing()  # only then is the free disk space known
        run.waited_s = time.perf_counter() - start
        compute(run, timer=timer, reserved_bytes=reserved or 0)
        start = time.perf_counter()
        self.finish_writing()
        run.waited_s += time.perf_counter() - start
        self._view.stage("write", 0.0)
        self._writing_bytes = sum(field.nbytes for field in (*run.displacements.values(), *run.warped.values()))
        self._writing = self._writer.submit(self._write, run, read_timer, timer)

    def finish_writing(self) -> None:
        """Waits until the previous case is on the disk and in the report."""
        if self._writing is not None:
            self._writing.result()
        self._writing, self._writing_bytes = None, 0

    def _load(self, case: Case, ahead: bool) -> tuple[CaseRun, StageTimer]:
        timer = StageTimer(meter=self._meters[0])
        earlier = self._ledger.earlier(case)
        return load(case, self._setup, earlier=earlier, timer=timer, ahead=ahead, threads=self._images), timer

    def _write(self, run: CaseRun, *timers: StageTimer) -> None:
        timer = StageTimer(meter=self._meters[2])
        result = write(run, timer=timer)
        if result.is_fresh:
            run.report_times(*timers, timer, since=self._start)
        self._ledger.settle(run.case, result)

    def _room_for_neighbors(self, run: CaseRun, following: Case | None) -> int | None:
        """Bytes to keep free for what is read and written while a case is computed; None if they do not fit."""
        options, config, device = self._setup.options, self._setup.config, self._setup.device
        on_cpu = device.type == "cpu"
        shape = None if run.fixed is None else shape_of(run.fixed.volume)
        neighbors = self._writing_bytes + (_images_of(following, self._setup, like=shape) if following else 0)
        needed, there = 0, len(run.movings)
        if shape is not None:
            needed = result_bytes(shape, pairs=there, warped=options.warped)
            if on_cpu:
                with contextlib.suppress(InputError):  # reported when it is computed
                    needed += config.least_bytes(shape, movings=config.joint(there), kernels=self._setup.kernels)
        if needed + neighbors > budget_bytes(torch.device("cpu"), options.memory_gb if on_cpu else None):
            return None
        return neighbors if on_cpu else 0

    def _is_disk_tight(self, run: CaseRun) -> bool:
        if run.fixed is None or self._writing is None:
            return False
        options = self._setup.options
        needed = result_bytes(shape_of(run.fixed.volume), pairs=len(run.requested), warped=options.warped)
        return needed + self._writing_bytes > free_disk_bytes(options.output)


def _images_of(case: Case, setup: Setup, *, like: Shape | None) -> int:
    """Bytes that reading a case takes, by its fixed image's header; 0 if that is broken, since then nothing is read.

    A header that is not on this machine yet is assumed to be ``like`` that of the previous case.
    """
    try:
        shape = check_image(read_header(case.fixed))
    except InputError:
        if like is None or not isinstance(case.fixed, Source):
            return 0
        shape = like
    return image_bytes(shape, movings=len(used_pairs(case, setup)), masks=setup.config.uses_masks)
