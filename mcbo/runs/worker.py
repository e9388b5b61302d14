"""A case on a worker: from files to files, as in a process of its own; only an assignment comes in, and a result goes out.

The outcome of the case is also left in a small file beside its displacements, so that it is known even if client, scheduler or
this worker die before the client has heard of it.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mcbo.core.errors import ClusterError, OutputError
from mcbo.core.timing import StageTimer
from mcbo.dataset.learn2reg import Case
from mcbo.methods.config import Preset
from mcbo.report import CaseReport, earlier_cases, write_report
from mcbo.runs.case import CaseResult, tell_times
from mcbo.runs.compute import compute
from mcbo.runs.load import load
from mcbo.runs.options import Options
from mcbo.runs.resume import entry_file
from mcbo.runs.write import fail, write
from mcbo.runtime import (
    DECIDING,
    MEMORY_SHARE,
    budget_bytes,
    describe_device,
    peak_meter,
    resident_bytes,
    select_device,
    versions,
    wait_for,
)

_TIMED_OUT = 75
"""Exit status of a worker that ends itself, since nothing else stops what computes; its nanny starts another one."""

_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Assignment:
    """What a worker has to do.

    Attributes:
        case: with paths that mean the same on every worker.
        config: the preset.
        options: of the run.
        earlier: what earlier runs report of this case.
        run: of which run this is; what a worker finds of the same run was done by a worker that died.
        versions: that the client has.
    """

    case: Case
    config: Preset
    options: Options
    earlier: tuple[CaseReport, ...]
    run: str
    versions: Mapping[str, str]


def do_case(assignment: Assignment, *, memory_limit: int | None = None) -> CaseResult:
    """Does a case, one at a time in this process.

    Args:
        assignment: what to do.
        memory_limit: bytes beyond which the keeper of this process ends it; none, if None.

    Raises:
        ClusterError: if this worker would not compute the same as the client.
        DeviceError: if the device is not there.
        OutputError: if this worker does not see the output folder.
    """
    who = f"the worker in process {os.getpid()} on {socket.gethostname()}"
    check_versions(assignment.versions, versions(), who)
    case, config, options = assignment.case, assignment.config, assignment.options
    if not options.output.is_dir():
        raise OutputError(f"{options.output}: no such folder for {who}; client and workers need the same paths")
    with _one_at_a_time:
        device = select_device(options.device)
        if memory_limit and options.memory_gb is None and device.type == "cpu":
            left_bytes = MEMORY_SHARE * max(memory_limit - resident_bytes(), 0)
            options = replace(options, memory_gb=min(left_bytes, budget_bytes(device, None)) / 1e9)
        path = entry_file(case, options)
        left = left_by_this_run(assignment)
        if left is not None:
            if left.timed_out_s is not None:
                return fail(case, timeout_message(case, left.timed_out_s), options, device)
            options = replace(options, overwrite=False)  # what is there was written by this very run
        earlier = (*([left] if left is not None else []), *assignment.earlier)
        with _limit(assignment, path, device), peak_meter(device) as meter:
            timer = StageTimer(meter=meter, wait=lambda: wait_for(device))
            start = time.perf_counter()
            run = load(case, config, options, device, earlier=earlier, timer=timer)
            compute(run, config, options, device, timer=timer)
            result = write(run, options, device, timer=timer)
            if result.is_fresh:
                tell_times(run, [timer], since=start)
                result.report.worker, result.report.run = who.removeprefix("the worker in "), assignment.run
                write_report(path, {case.name: result.report}, config, describe_device(device))
        return result


def check_versions(expected: Mapping[str, str], found: Mapping[str, str], who: str) -> None:
    """Makes sure that client and worker would compute the same.

    Raises:
        ClusterError: with all that differs.
    """
    differing = [f"{name} {expected[name]}, found {found.get(name)}" for name in DECIDING if expected[name] != found.get(name)]
    if differing:
        raise ClusterError(f"{who}: expected {'; '.join(differing)}: install the same on client and workers")


def left_by_this_run(assignment: Assignment) -> CaseReport | None:
    """What a worker that died in this very run left of a case."""
    left = earlier_cases(entry_file(assignment.case, assignment.options), assignment.config).get(assignment.case.name)
    return left if left is not None and left.run == assignment.run else None


def timeout_message(case: Case, limit_s: float) -> str:
    """Why a case that took too long has no result."""
    return f"{case.fixed}: not finished within {limit_s:g} s (--case-timeout); its worker was restarted"


@contextmanager
def _limit(assignment: Assignment, path: Path, device: torch.device) -> Iterator[None]:
    """Ends this process if the block takes too long, after it left word why: who tries the case again must know.

    Nothing less would do, for a thread that computes cannot be stopped. What is half written then is cleared by the next run.
    """
    limit_s = assignment.options.case_timeout_s
    if limit_s is None:
        yield
        return
    deciding = threading.Lock()  # held by who was first: the block that ended, or the limit

    def end() -> None:
        if deciding.acquire(blocking=False):
            report = CaseReport(run=assignment.run, timed_out_s=limit_s)
            try:
                write_report(path, {assignment.case.name: report}, assignment.config, describe_device(device))
            finally:
                os._exit(_TIMED_OUT)

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
        deciding.acquire()  # waits for the end of this process if the limit was first
    finally:
        timer.cancel()
