"""A case on a worker, from files to files, as in a process of its own: an assignment comes in, a result goes out.

The result is also left in a small file beside the displacements, in case client, scheduler or worker die before it arrives.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from mcbo.core.errors import ClusterError, OutputError
from mcbo.core.memory import MEMORY_SHARE
from mcbo.core.timing import StageTimer
from mcbo.dataset.learn2reg import Case
from mcbo.io.files import is_folder
from mcbo.methods.config import Preset
from mcbo.report import CaseReport, earlier_cases, write_report
from mcbo.runs.case import CaseResult
from mcbo.runs.compute import compute
from mcbo.runs.load import load
from mcbo.runs.options import Options, Setup
from mcbo.runs.resume import entry_file
from mcbo.runs.write import fail, write
from mcbo.runtime import (
    DECIDING,
    budget_bytes,
    describe_device,
    peak_meter,
    resident_bytes,
    select_device,
    versions,
    wait_for,
    warm_up,
)

_TIMED_OUT = 75
"""Exit status of a worker that ends itself, since nothing else stops a computation; its nanny starts another one."""

_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Assignment:
    """A case for a worker.

    Attributes:
        case: with paths that are valid on every worker.
        config, options: of the run.
        earlier: what earlier runs report of this case.
        run: identifies the run; what a worker finds of the same run was left by a worker that died.
        versions: those of the client.
    """

    case: Case
    config: Preset
    options: Options
    earlier: tuple[CaseReport, ...]
    run: str
    versions: Mapping[str, str]


def do_case(assignment: Assignment, *, memory_limit: int | None = None) -> CaseResult:
    """Registers a case, one at a time in this process; its nanny ends it beyond ``memory_limit`` bytes, if given.

    Raises:
        ClusterError: if this worker would not compute the same as the client.
        DeviceError: if the device is not available.
        OutputError: if this worker does not see the output folder.
    """
    who = f"process {os.getpid()} on {socket.gethostname()}"
    check_versions(assignment.versions, versions(), f"the worker in {who}")
    case, config, options = assignment.case, assignment.config, assignment.options
    if not is_folder(options.output):
        raise OutputError(f"{options.output}: no such folder for the worker in {who}; client and workers need the same paths")
    with _one_at_a_time:
        device = select_device(options.device)
        if not options.reference:
            warm_up(device)
        if memory_limit and options.memory_gb is None and device.type == "cpu":
            left_bytes = MEMORY_SHARE * max(memory_limit - resident_bytes(), 0)
            options = replace(options, memory_gb=min(left_bytes, budget_bytes(device, None)) / 1e9)
        earlier, left = assignment.earlier, left_by_this_run(assignment)
        if left is not None:
            if left.timed_out_s is not None:
                return fail(case, timeout_message(case, left.timed_out_s), Setup(config, options, device))
            options = replace(options, overwrite=False)  # the files there were written by this very run
            earlier = (left, *earlier)
        with _limit(assignment, device), peak_meter(device) as meter:
            timer = StageTimer(meter=meter, wait=lambda: wait_for(device))
            start = time.perf_counter()
            run = load(case, Setup(config, options, device), earlier=earlier, timer=timer)
            compute(run, timer=timer)
            result = write(run, timer=timer)
            if result.is_fresh:
                run.report_times(timer, since=start)
                result.report.worker, result.report.run = who, assignment.run
                _leave(result.report, assignment, device)
        return result


def check_versions(expected: Mapping[str, str], found: Mapping[str, str], who: str) -> None:
    """Makes sure that client and worker would compute the same; else ``ClusterError``, with all that differs."""
    differing = [f"{name} {expected[name]}, found {found.get(name)}" for name in DECIDING if expected[name] != found.get(name)]
    if differing:
        raise ClusterError(f"{who}: expected {'; '.join(differing)}: install the same on client and workers")


def left_by_this_run(assignment: Assignment) -> CaseReport | None:
    """The report that a worker which died in this very run left of the case."""
    left = earlier_cases(entry_file(assignment.case, assignment.options), assignment.config).get(assignment.case.name)
    return left if left is not None and left.run == assignment.run else None


def _leave(report: CaseReport, assignment: Assignment, device: torch.device) -> None:
    path = entry_file(assignment.case, assignment.options)
    write_report(path, {assignment.case.name: report}, assignment.config, describe_device(device))


def timeout_message(case: Case, limit_s: float) -> str:
    """Why a case that took too long has no result."""
    return f"{case.fixed}: not finished within {limit_s:g} s (--case-timeout); its worker was restarted"


@contextmanager
def _limit(assignment: Assignment, device: torch.device) -> Iterator[None]:
    """Ends this process if the block takes too long, after leaving the reason for the worker that gets the case next.

    A computing thread cannot be stopped otherwise. Partial files are cleared by the next run.
    """
    limit_s = assignment.options.case_timeout_s
    if limit_s is None:
        yield
        return
    first = threading.Lock()  # held by whichever came first: the end of the block, or the limit

    def end() -> None:
        if first.acquire(blocking=False):
            try:
                _leave(CaseReport(run=assignment.run, timed_out_s=limit_s), assignment, device)
            finally:
                os._exit(_TIMED_OUT)

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
        first.acquire()  # waits for the end of this process if the limit was first
    finally:
        timer.cancel()
