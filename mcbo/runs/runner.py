"""Registers the cases of a run, from files to files, in this process or on workers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from mcbo.core.log import log
from mcbo.dataset.learn2reg import Case
from mcbo.io.files import no_empty_folder, prepare_folder
from mcbo.io.lock import Place, hold, refuse_if_held
from mcbo.io.source import File
from mcbo.methods.config import Preset
from mcbo.progress import show_progress
from mcbo.report import REPORT
from mcbo.runs.ledger import Ledger, Outcome
from mcbo.runs.options import Options, Setup
from mcbo.runs.outputs import check_outputs, lock_file, warn_of_room
from mcbo.runs.pipelined import PipelinedRunner
from mcbo.runtime import (
    CpuPeakMeter,
    check_device_name,
    describe_device,
    is_gpu_unused,
    peak_meter,
    select_device,
    warm_up,
    why_no_gpu,
)


def run(cases: Sequence[Case], config: Preset, options: Options, *, inputs: Sequence[File] = ()) -> Outcome:
    """Registers every case and writes displacements and a report; a failure does not stop the rest, unless ``strict``.

    The report is written after each case, so that an interrupted run can be resumed: a case is skipped if its inputs, preset
    and version are those of an earlier report, and its files are as they were written. ``inputs`` are further files that must
    not be overwritten.

    Raises:
        DeviceError: if the device is not available.
        InputError: if a result would overwrite an input.
        OutputError: if nothing can be written to the output folder, or another run writes the same report; then nothing was
            started.
        ClusterError: if workers are requested and not available.
    """
    if options.shard is not None:
        index, count = options.shard
        cases = cases[index - 1 :: count]
        options = replace(options, report_name=f"report-{index}-of-{count}.json")
    on_cluster = options.workers is not None or options.scheduler is not None
    check_device_name(options.device)
    device = torch.device("cpu") if on_cluster else select_device(options.device)
    check_outputs(cases, options, inputs=inputs)
    with no_empty_folder(options.output), _held(options) as place:
        _refuse_beside(options)
        if not on_cluster:
            if not options.reference:
                warm_up(device)
            log.info("device: %s", describe_device(device))
        log.info("preset %s, %d case(s), output to %s", config.name, len(cases), options.output)
        warn_of_room(cases, options)
        if on_cluster:
            from mcbo.runs.cluster import run_on_cluster  # here, because it is an extra

            return run_on_cluster(cases, config, options, place)
        if options.device == "auto" and is_gpu_unused(device):
            log.warning("running on the CPU: %s", why_no_gpu())
        return _run_here(cases, Setup(config, options, device, place))


@contextmanager
def _held(options: Options) -> Iterator[Place]:
    prepare_folder(options.output)
    with hold(lock_file(options)) as place:
        yield place


def _run_here(cases: Sequence[Case], setup: Setup) -> Outcome:
    options, device = setup.options, setup.device
    ledger = Ledger(cases, setup, describe_device(device))
    try:
        with (
            show_progress(len(cases)) as view,
            peak_meter(device) as meter,
            CpuPeakMeter() as reading,
            CpuPeakMeter() as writing,
            PipelinedRunner(ledger, setup, view, (reading, meter, writing)) as pipeline,
        ):
            for number, case in enumerate(cases):
                view.begin_case(case.name)
                pipeline.do(case, cases[number + 1] if number + 1 < len(cases) else None)
                view.end_case()
                if options.strict:
                    pipeline.finish_writing()
                    if ledger.failed:
                        log.error("%s; finished results are kept", ledger.stop("since one failed and --strict was given"))
                        break
            pipeline.finish_writing()
        if not cases:
            ledger.save_report()
    except (KeyboardInterrupt, SystemExit) as stop:
        stop.add_note(stopped_after(len(ledger.results), len(cases)))
        raise
    return ledger.outcome()


def stopped_after(done: int, cases: int) -> str:
    """What is said of a run that a signal ended."""
    kept = "finished results are kept, the next run resumes" if done else "nothing was finished"
    return f"stopped after {done} of {cases} case(s); {kept}"


def _refuse_beside(options: Options) -> None:
    """Refuses shards beside a run of the whole dataset (``OutputError``): both would register the same cases."""
    whole = options.output / f".{REPORT}.lock"
    if options.shard is not None:
        refuse_if_held(whole)
    elif options.report_name == REPORT:
        for path in sorted(options.output.glob(".report-*-of-*.json.lock")):
            refuse_if_held(path)
