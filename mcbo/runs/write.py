"""The last step of a case: its displacements become files, failures are handled, and its report is completed."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from mcbo.core.errors import McboError, OutputError
from mcbo.core.timing import StageTimer
from mcbo.dataset.learn2reg import Case, Pair
from mcbo.dataset.remote import fetched
from mcbo.io.files import is_file
from mcbo.runs.case import CaseResult, CaseRun
from mcbo.runs.options import ON_FAILURE, Setup
from mcbo.runs.outputs import output_files, write_pair, write_placeholder
from mcbo.runtime import budget_bytes, describe_device


def write(run: CaseRun, *, timer: StageTimer) -> CaseResult:
    """Writes the results of a case, handles failures, and completes the report."""
    result, options = run.result, run.setup.options
    if not result.is_fresh:
        return result
    digests: dict[Path, str | None] = {}
    with run.span("write"), timer.stage("write"):
        with run.failing(), _in_place(run):
            there: dict[int, tuple[Path, str | None]] = {}  # by displacement, which several pairs may share
            for pair in run.requested:
                name = pair.field_name
                if name in run.displacements:
                    displacement, path = run.displacements[name], output_files(pair, options)[0]
                    try:
                        digests |= write_pair(
                            pair, displacement, run.warped.get(name), run.grid, options, same=there.get(id(displacement))
                        )
                    except OutputError as error:
                        result.failed[name] = str(error)
                        continue
                    result.written.append(path)
                    there[id(displacement)] = path, digests[path]
        run.displacements, run.warped = {}, {}
        for pair in run.requested:
            if pair.field_name in result.failed:
                _clear_up(pair, run)
        done = [pair for pair in run.requested if pair.field_name not in result.failed]
        result.report.written = {path.name: digests.get(path) for pair in done for path in output_files(pair, options)}
    result.report.device = describe_device(run.setup.device)
    result.report.failed = result.failed
    result.report.placeholder = {
        pair.field_name: "zero" for pair in run.requested if output_files(pair, options)[0] in result.placeholders
    }
    return result


def fail(case: Case, message: str, setup: Setup) -> CaseResult:
    """The result of a case that could not be tried; its pairs are handled as failed ones are."""
    run = CaseRun(case, setup)
    run.result.failed = {pair.field_name: message for pair in run.requested}
    run.result.started = True
    return write(run, timer=StageTimer())


@contextlib.contextmanager
def _in_place(run: CaseRun) -> Iterator[None]:
    """Fails with ``OutputError`` if the output folder is not in its place before the block, or no longer after it."""
    run.setup.check_place()
    yield
    try:
        run.setup.check_place()
    except OutputError:
        run.result.written.clear()
        raise


def _clear_up(pair: Pair, run: CaseRun) -> None:
    """Logs why a pair failed, and leaves nothing but a placeholder under the names of its results."""
    result = run.result
    result.note(f"{pair.field_name} is not written: {result.failed[pair.field_name]}", logging.ERROR)
    try:
        run.setup.check_place()
    except OutputError:  # as has been said; another folder's files are not ours
        return
    if run.setup.options.on_failure != ON_FAILURE[0]:
        _stand_in(pair, run)
    for path in output_files(pair, run.setup.options):
        result.lost.append(path.name)
        if path not in result.placeholders and is_file(path):
            with contextlib.suppress(OSError):
                path.unlink()  # else it would be taken for a result of this run
                result.note(f"{path} is removed: it is not a result of this run", logging.WARNING)


def _stand_in(pair: Pair, run: CaseRun) -> None:
    """Writes a zero displacement for a failed pair, if that is possible."""
    name, result, options = pair.field_name, run.result, run.setup.options
    try:
        with fetched(run.case, [pair]) as here:  # once more, for its header
            same = next(other for other in here.pairs if other.field_name == name)
            path = write_placeholder(same, options, budget_bytes=budget_bytes(torch.device("cpu"), options.memory_gb))
    except (McboError, MemoryError, RuntimeError) as error:
        result.note(f"{name}: no zero displacement instead: {error}", logging.ERROR)
        return
    result.note(f"{name}: wrote a zero displacement instead (--on-failure zero); the next run tries again", logging.WARNING)
    result.placeholders.append(path)
