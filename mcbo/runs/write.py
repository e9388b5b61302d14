"""The last step of a case: its displacements become files, failures are handled, and its report is completed."""

import torch

from mcbo.core.errors import McboError, OutputError
from mcbo.core.timing import StageTimer
from mcbo.dataset.learn2reg import Case, Pair, wanted
from mcbo.dataset.remote import fetched
from mcbo.io.files import digest
from mcbo.runs.case import CaseResult, CaseRun, failing
from mcbo.runs.options import ON_FAILURE, Options
from mcbo.runs.outputs import output_files, remove, write_pair, write_placeholder
from mcbo.runtime import budget_bytes, describe_device


def write(run: CaseRun, options: Options, device: torch.device, *, timer: StageTimer) -> CaseResult:
    """Writes the results of a case, handles failures, and completes the report."""
    result = run.result
    if not result.is_fresh:
        return result
    asked = wanted(run.case, options.movings)
    with run.span("write"), timer.stage("write"):
        with failing(run, options):
            for pair in asked:
                name = pair.field_name
                if name in run.displacements and name not in result.failed:
                    try:
                        written = write_pair(pair, run.displacements[name], run.warped.get(name), run.affine, options)
                    except OutputError as error:
                        result.failed[name] = str(error)
                    else:
                        result.written.append(written)
        run.displacements, run.warped = {}, {}
        _clear_up(run.case, result, options)
        files = [path for pair in asked if pair.field_name not in result.failed for path in output_files(pair, options)]
        result.report.written = {path.name: digest(path) for path in files}
    result.report.device = describe_device(device)
    result.report.failed = result.failed
    result.report.placeholder = {
        pair.field_name: "zero" for pair in asked if output_files(pair, options)[0] in result.placeholders
    }
    result.report.warnings = result.warnings
    return result


def fail(case: Case, message: str, options: Options, device: torch.device) -> CaseResult:
    """The result of a case that could not be tried; its pairs are handled as failed ones are."""
    run = CaseRun(case)
    run.result.failed = {pair.field_name: message for pair in wanted(case, options.movings)}
    run.result.started = True
    return write(run, options, device, timer=StageTimer())


def _clear_up(case: Case, result: CaseResult, options: Options) -> None:
    """Logs what failed, and leaves nothing but placeholders under the names of its results."""
    for pair in wanted(case, options.movings):
        if pair.field_name in result.failed:
            result.complain(f"{pair.field_name} is not written: {result.failed[pair.field_name]}")
            _stand_in(case, pair, result, options)
            for path in output_files(pair, options):
                result.lost.append(path.name)
                if path not in result.placeholders and remove(path):
                    result.caution(f"{path} is removed: it is not a result of this run")


def _stand_in(case: Case, pair: Pair, result: CaseResult, options: Options) -> None:
    """Writes a zero displacement for a failed pair, if asked for and possible."""
    if options.on_failure == ON_FAILURE[0]:
        return
    try:
        with fetched(case, [pair]) as here:  # once more, for its header
            same = next(other for other in here.pairs if other.field_name == pair.field_name)
            path = write_placeholder(same, options, budget_bytes=budget_bytes(torch.device("cpu"), options.memory_gb))
    except (McboError, MemoryError, RuntimeError) as error:
        result.complain(f"{pair.field_name}: no zero displacement instead: {error}")
        return
    result.caution(f"{pair.field_name}: wrote a zero displacement instead (--on-failure zero); the next run tries again")
    result.placeholders.append(path)
