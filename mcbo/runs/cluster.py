"""Cases on workers of a local or a running Dask cluster. The only module that uses ``distributed``, an extra.

The client hands out as many cases as there are workers, so that its memory and the scheduler's do not grow with their number.
"""

import logging
import queue
import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch

from mcbo.core.errors import ClusterError, McboError, OutputError
from mcbo.core.log import log
from mcbo.dataset.learn2reg import Case, wanted
from mcbo.io.lock import Place
from mcbo.methods.config import Preset
from mcbo.progress import ProgressView, show_progress
from mcbo.runs.case import CaseResult
from mcbo.runs.ledger import Ledger, Outcome
from mcbo.runs.options import Options, Setup
from mcbo.runs.worker import Assignment, check_versions, do_case, left_by_this_run, timeout_message
from mcbo.runs.write import fail
from mcbo.runtime import budget_bytes, select_device, versions, visible_gpus

RETRIES = 2
"""How often a case is tried again if its worker was lost. A running scheduler has its own setting, ``allowed-failures``."""

REPORT_EVERY_S = 5.0
"""Entry files record each case before that; a report of thousands may take longer to write than a case."""

_WAIT_S = 60.0
"""Timeout for the first worker."""

_CONNECT_S = 20.0
"""Timeout for the scheduler's answer."""

_LOOPBACK = "127.0.0.1"

_LOOK_EVERY_S = 1.0
"""How often to check whether the scheduler is there, and how many workers it has."""

_ALONE_S = 30.0
"""A warning follows if there is no worker for so long. One that its nanny restarts is back in seconds."""

_DEAF_TO_INTERRUPTS = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
"""Run by each local worker: Ctrl-C reaches all processes of a terminal, and the client shuts the others down."""

_SILENT = logging.CRITICAL + 1

_GPU = "GPU"
"""The resource announced by workers that each hold a GPU."""


def run_on_cluster(cases: Sequence[Case], config: Preset, options: Options, place: Place) -> Outcome:
    """Registers cases on workers, which read and write the shared folders themselves; results and report as in one process.

    ``place`` is the output folder.

    Raises:
        ClusterError: if Dask is not installed, or workers are not available or of another version than this process.
    """
    cases = [_with_absolute_paths(case) for case in cases]
    with _connect(options, len(cases)) as (client, per_worker):
        names = f"{_check_workers(client)} worker(s) of {client.scheduler.address}"
        log.info("device: %s", names)
        if client.dashboard_link and find_spec("bokeh"):
            log.info("dashboard: %s", client.dashboard_link)
        setup = Setup(config, per_worker, torch.device("cpu"), place)
        ledger = Ledger(cases, setup, names, report_every_s=REPORT_EVERY_S)
        try:
            with show_progress(len(cases)) as view:
                _Dealer(client, ledger, cases, setup, view).run()
        except (KeyboardInterrupt, SystemExit) as stop:
            stop.add_note(f"{ledger.stop('since it was interrupted; the next run resumes')}; finished results are kept")
            raise
        return ledger.outcome()


class _Dealer:
    """Hands out cases, in order, and collects their results."""

    def __init__(self, client: Any, ledger: Ledger, cases: Sequence[Case], setup: Setup, view: ProgressView) -> None:
        self._client, self._ledger, self._setup, self._view = client, ledger, setup, view
        self._left = list(reversed(cases))
        self._out: dict[str, tuple[Any, Assignment]] = {}
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._run = secrets.token_hex(8)
        self._alone_since: float | None = None
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        self._resources = {_GPU: 1} if any(_GPU in worker["resources"] for worker in workers) else {}

    def run(self) -> None:
        """Returns when all cases are settled, or when ``strict`` or a lost scheduler ends the run."""
        try:
            self._deal()
        except (OSError, CancelledError, RuntimeError):  # from whatever call of Dask met the dead scheduler
            if not self._is_lost_soon():
                raise
            self._lose()
        finally:
            for future, _ in self._out.values():
                future.cancel()

    def _deal(self) -> None:
        self._hand_out()
        while self._out:
            try:
                future = self._done.get(timeout=_LOOK_EVERY_S)
            except queue.Empty:
                future = None
            if self._is_lost() or (future is not None and future.status == "cancelled"):
                self._lose()
                return
            if future is not None:
                self._collect(future)
            try:
                self._setup.check_place()
            except OutputError as error:
                for running, _ in self._out.values():
                    running.cancel()
                self._give_up(str(error), "since its output folder is gone")
                return
            if self._setup.options.strict and self._ledger.failed:
                _say(self._ledger.stop("since one failed and --strict was given"))
                return
            self._hand_out()  # more workers may have come
        self._ledger.save_report()

    def _is_lost(self) -> bool:
        return bool(self._client.status != "running")

    def _is_lost_soon(self) -> bool:
        """Whether the scheduler is lost; a broken connection may show a moment before the client's status does."""
        for _ in range(20):
            if self._is_lost():
                return True
            time.sleep(_LOOK_EVERY_S / 4)
        return False

    def _hand_out(self) -> None:
        """One case per worker, or as many as requested, so that a lost worker costs no other case."""
        workers = len(self._client.nthreads())
        self._warn_if_alone(workers)
        config, options = self._setup.config, self._setup.options
        room = options.workers or max(1, workers)
        while self._left and len(self._out) < room:
            case = self._left.pop()
            earlier = tuple(self._ledger.earlier(case))
            assignment = Assignment(case, config, options, earlier, run=self._run, versions=versions())
            key = f"mcbo-{self._run}-{case.name}"
            future = self._client.submit(_on_worker, assignment, key=key, resources=self._resources, pure=False)
            self._out[key] = (future, assignment)
            self._view.begin_case(case.name)
            self._view.stage(f"{len(self._out)} at work", 0.0)
            future.add_done_callback(self._done.put)

    def _warn_if_alone(self, workers: int) -> None:
        """The run waits for workers, since a cluster may grow again, but says so once."""
        if workers:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = time.monotonic()
        elif time.monotonic() - self._alone_since >= _ALONE_S:
            log.warning("no worker is left: waiting for new ones")
            self._alone_since = float("inf")

    def _collect(self, future: Any) -> None:
        _, assignment = self._out[future.key]
        error = future.exception()
        if error is None:
            result: CaseResult = future.result()
        else:
            result = fail(assignment.case, _reason(error, assignment), self._setup)
        future.release()  # else Dask computes the case again if its worker is lost later
        del self._out[future.key]
        self._ledger.settle(assignment.case, result)
        self._view.end_case()

    def _lose(self) -> None:
        """The scheduler is gone; workers may still finish their current cases."""
        self._give_up("the scheduler was lost before it was done; the next run resumes", "since the scheduler was lost")

    def _give_up(self, message: str, reason: str) -> None:
        """Ends the run: what is not settled has failed."""
        cases = [*(assignment.case for _, assignment in self._out.values()), *reversed(self._left)]
        self._out.clear()
        self._ledger.started = True
        self._ledger.failed |= {
            pair.field_name: message for case in cases for pair in wanted(case, self._setup.options.movings)
        }
        _say(self._ledger.stop(reason))


def _say(stopped: str) -> None:
    log.error("%s; finished results are kept", stopped)


def _on_worker(assignment: Assignment) -> CaseResult:
    import distributed

    return do_case(assignment, memory_limit=distributed.get_worker().memory_manager.memory_limit)


def _reason(error: BaseException, assignment: Assignment) -> str:
    """Why a case has no result."""
    left = left_by_this_run(assignment)
    if left is not None and left.timed_out_s is not None:
        return timeout_message(assignment.case, left.timed_out_s)
    if isinstance(error, McboError):
        return str(error)
    if type(error).__name__ == "KilledWorker":
        return f"{assignment.case.fixed}: given up, since every worker that tried it was lost (was there enough memory?)"
    return f"{assignment.case.fixed}: {type(error).__name__}: {error}"


@contextmanager
def _connect(options: Options, cases: int) -> Iterator[tuple[Any, Options]]:
    """A Dask client, and the options for its workers.

    It is not the default client: that would change how the caller's own Dask collections are computed.
    """
    if find_spec("distributed") is None:
        raise ClusterError(
            "--workers and --scheduler need Dask, which is not installed: pip install '.[cluster]' in the checkout of mcbo"
        )
    import distributed

    for name in list(logging.root.manager.loggerDict):  # each has a level of its own; errors are reported by this module
        if name.partition(".")[0] in ("distributed", "tornado"):
            logging.getLogger(name).setLevel(_SILENT)
    for_workers = replace(options, output=options.output.absolute())
    if options.scheduler is None:
        with (
            _local_cluster(options, cases) as (cluster, memory_gb),
            distributed.Client(cluster, timeout=_WAIT_S, set_as_default=False) as client,
        ):
            yield client, replace(for_workers, memory_gb=memory_gb)
        return
    try:
        client = distributed.Client(options.scheduler, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        reason = type(error).__name__ if "@" in options.scheduler else error  # which may hold a part of a password
        raise ClusterError(f"{options.scheduler}: expected the address of a Dask scheduler, but: {reason}") from error
    with client:
        yield client, for_workers


@contextmanager
def _local_cluster(options: Options, cases: int) -> Iterator[tuple[Any, float | None]]:
    """Workers on this machine, no more than cases, and the memory for a case on each, GB (``Options.memory_gb``).

    The scheduler listens on the loopback interface only.
    """
    import dask
    import distributed

    count = options.workers or 1
    gpus = visible_gpus() if options.device != "cpu" else []
    if options.device.startswith("cuda:"):
        raise ClusterError(f"--device {options.device}: expected auto, cpu or cuda with --workers, which take a GPU each")
    select_device(options.device)  # fails here, not in each case
    if gpus and count > len(gpus):
        raise ClusterError(f"--workers: expected at most one for each of {len(gpus)} GPU(s), got {count}; or --device cpu")
    threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count))}
    count = min(count, max(1, cases))
    memory_gb = options.memory_gb
    if memory_gb is None and not gpus:
        memory_gb = budget_bytes(torch.device("cpu"), None) / count / 1e9
    common = {
        "nthreads": 1,
        "silence_logs": _SILENT,
        "memory_limit": 0,  # the memory budget of each case takes care of that
        "host": _LOOPBACK,
        "resources": {_GPU: 1} if gpus else {},
        "preload": [_DEAF_TO_INTERRUPTS],
    }
    environments = [threads | {"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[:count]] or [threads] * count
    workers = {
        number: {"cls": distributed.Nanny, "options": common | {"env": environment}}
        for number, environment in enumerate(environments)
    }
    scheduler = {
        "cls": distributed.Scheduler,
        "options": {"host": _LOOPBACK, "dashboard_address": f"{_LOOPBACK}:0", "dashboard": find_spec("bokeh") is not None},
    }
    with dask.config.set({"distributed.scheduler.allowed-failures": RETRIES}):
        try:
            cluster = distributed.SpecCluster(workers=workers, scheduler=scheduler, silence_logs=_SILENT)
        except (RuntimeError, OSError) as error:
            raise ClusterError(
                f"--workers: expected {count} process(es) on this machine, but they do not start: {error}"
            ) from error
        with cluster:
            yield cluster, memory_gb


def _check_workers(client: Any) -> int:
    """Waits for a worker, and checks that all would compute the same as this process; returns how many there are.

    Workers that join later are checked when they get a case.
    """
    import distributed

    try:
        client.wait_for_workers(1, timeout=_WAIT_S)
    except (TimeoutError, distributed.TimeoutError) as error:
        raise ClusterError(f"{client.scheduler.address}: expected workers there, but none joined in {_WAIT_S:g} s") from error
    answers = client.run(versions, on_error="return")
    for address, answer in answers.items():
        if isinstance(answer, BaseException):
            raise ClusterError(
                f"the worker {address} cannot run mcbo {versions()['mcbo']}: {answer}; install it there"
            ) from answer
        check_versions(versions(), answer, f"the worker {address}")
    return len(answers)


def _with_absolute_paths(case: Case) -> Case:
    """A case whose paths are valid in any working directory."""
    pairs = tuple(replace(pair, fixed=pair.fixed.absolute(), moving=pair.moving.absolute()) for pair in case.pairs)
    return replace(case, fixed=case.fixed.absolute(), pairs=pairs)
