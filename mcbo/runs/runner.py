"""The run: the only loop over cases, from files to files, in this process or on workers."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from mcbo.core.log import log
from mcbo.dataset.learn2reg import Case
from mcbo.io.files import prepare_folder
from mcbo.io.lock import hold, refuse_if_held
from mcbo.methods.config import Preset
from mcbo.progress import show_progress
from mcbo.report import REPORT
from mcbo.runs.ledger import Ledger, Outcome
from mcbo.runs.options import Options
from mcbo.runs.outputs import check_inputs_stay, warn_of_room
from mcbo.runs.pipelined import AssemblyLine
from mcbo.runtime import CpuPeakMeter, check_device_name, describe_device, is_gpu_unused, peak_meter, select_device


def run(cases: Sequence[Case], config: Preset, options: Options) -> Outcome:
    """Registers every case and writes displacements and a report; a failure does not stop the rest, unless ``strict``.

    The report is written after each case, so that an interrupted run can be resumed: a case whose inputs, preset and version
    are those of an earlier report, and whose files are as they were written, is skipped.

    Raises:
        DeviceError: if the device is not there.
        InputError: if a result would be written over an input.
        OutputError: if nothing can be written to the output folder, or another run works on the same report; nothing was
            started then.
        ClusterError: if workers are asked for and cannot be had.
    """
    if options.shard is not None:
        index, count = options.shard
        cases = cases[index - 1 :: count]
        options = replace(options, report_name=f"report-{index}-of-{count}.json")
    on_cluster = options.workers is not None or options.scheduler is not None
    check_device_name(options.device)
    device = torch.device("cpu") if on_cluster else select_device(options.device)
    check_inputs_stay(cases, options)
    prepare_folder(options.output)
    with hold(options.output / f".{options.report_name}.lock"):
        _refuse_beside(options)
        if not on_cluster:
            log.info("device: %s", describe_device(device))
        log.info("preset %s, %d case(s), output to %s", config.name, len(cases), options.output)
        warn_of_room(cases, options)
        if on_cluster:
            from mcbo.runs.cluster import run_on_cluster  # here, because it is an extra

            return run_on_cluster(cases, config, options)
        if options.device == "auto" and is_gpu_unused(device):
            log.warning(
                "an NVIDIA driver is here, but this build of torch cannot use it: the CPU is used (see docs/challenge.md)"
            )
        return _run_here(cases, config, options, device)


def _run_here(cases: Sequence[Case], config: Preset, options: Options, device: torch.device) -> Outcome:
    ledger = Ledger(cases, config, options, describe_device(device))
    try:
        with (
            show_progress(len(cases)) as view,
            peak_meter(device) as meter,
            CpuPeakMeter() as reading,
            CpuPeakMeter() as writing,
            AssemblyLine(ledger, config, options, device, view, (reading, meter, writing)) as line,
        ):
            for number, case in enumerate(cases):
                view.begin_case(case.name)
                line.do(case, cases[number + 1] if number + 1 < len(cases) else None)
                view.end_case()
                if options.strict:
                    line.finish_writing()
                    if ledger.failed:
                        ledger.stop("since one failed and --strict was given")
                        break
            line.finish_writing()
        if not cases:
            ledger.tell_report()
    except (KeyboardInterrupt, SystemExit):
        done = len(ledger.results)
        log.error("stopped after %d of %d case(s); finished results are kept, the next run resumes", done, len(cases))
        raise
    return ledger.outcome()


def _refuse_beside(options: Options) -> None:
    """Shards of a data set may run side by side, but not beside a run of the whole: that would do all their cases again.

    Raises:
        OutputError: if the other kind is at work.
    """
    whole = options.output / f".{REPORT}.lock"
    if options.shard is not None:
        refuse_if_held(whole)
    elif options.report_name == REPORT:
        for path in sorted(options.output.glob(".report-*-of-*.json.lock")):
            refuse_if_held(path)
