"""The record of a run: the outcome of each case so far, told to the log and to the report as it becomes known."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mcbo.core.errors import OutputError
from mcbo.core.log import log
from mcbo.dataset.learn2reg import Case
from mcbo.methods.config import Preset
from mcbo.report import CaseReport, earlier_cases, write_report
from mcbo.runs.case import CaseResult
from mcbo.runs.options import Options
from mcbo.runs.resume import entry_file, merged, read_earlier


@dataclass(frozen=True)
class Outcome:
    """Outcome of a run.

    Attributes:
        written: displacement files.
        failed: a sentence for every pair that has none, by the displacement's name.
        started: whether any case got past the check of its input.
        placeholders: zero displacements, written for pairs that failed.
    """

    written: tuple[Path, ...]
    failed: dict[str, str]
    started: bool
    placeholders: tuple[Path, ...] = ()


class Ledger:
    """The record of a run. One thread at a time may settle cases.

    Args:
        cases: of the run, in the order in which its report and outcome tell them.
        config: the preset.
        options: of the run.
        device: where it runs, for people.
        report_every_s: how long the report may lag behind. 0 where nothing else records what was done; where workers leave
            entry files, a report of thousands of cases need not be written after each.
    """

    def __init__(
        self, cases: Sequence[Case], config: Preset, options: Options, device: str, *, report_every_s: float = 0.0
    ) -> None:
        self.results: dict[str, CaseResult] = {}
        self.failed: dict[str, str] = {}
        self.started = False
        self._cases = cases
        self._config = config
        self._options = options
        self._device = device
        self._report = options.output / options.report_name
        self._reported = earlier_cases(self._report, config)
        self._earlier = read_earlier(self._reported, config, options)
        self._every_s = report_every_s
        self._told_at = -float("inf")
        self._spent_entry_files: list[Path] = []

    def earlier(self, case: Case) -> list[CaseReport]:
        """What earlier runs report of a case."""
        return self._earlier.get(case.name, [])

    def settle(self, case: Case, result: CaseResult) -> None:
        """Takes a result in: first into the report, then into the log."""
        self.results[case.name] = result
        self._reported[case.name] = merged(self._reported.get(case.name), result)
        self._earlier.pop(case.name, None)
        self.failed |= result.failed
        self.started |= result.started
        self._spent_entry_files.append(entry_file(case, self._options))
        if time.monotonic() - self._told_at >= self._every_s:
            self.tell_report()
        for level, sentence in result.said:
            log.log(level, "%s", sentence)
        if result.is_fresh:  # said last: what is told to be done is not done again by the next run, even after a power cut
            state = "done" if not result.failed else "failed" if not result.written else "done in part"
            log.info("case %s: %s, %.1f s", case.name, state, result.report.seconds)

    def tell_report(self, stopped: str | None = None) -> None:
        """Writes the report, and removes the entry files of the cases that it has.

        Args:
            stopped: why the run ended before all cases were tried, if it did.
        """
        in_order = {case.name: self._reported[case.name] for case in self._cases if case.name in self._reported}
        of_others = {name: report for name, report in self._reported.items() if name not in in_order}
        try:
            write_report(self._report, of_others | in_order, self._config, self._device, stopped=stopped)
        except OutputError as error:  # told once; displacements may still be writable
            if self._options.report_name not in self.failed:
                log.error("%s", error)
            self.failed[self._options.report_name] = str(error)
            return
        self.failed.pop(self._options.report_name, None)  # after an error that passed, such as a disk that was full
        self._told_at = time.monotonic()
        for path in self._spent_entry_files:
            with contextlib.suppress(OSError):
                path.unlink()
        self._spent_entry_files.clear()

    def stop(self, reason: str) -> None:
        """Logs and reports why the run ends before all cases were tried."""
        stopped = f"stopped after {len(self.results)} of {len(self._cases)} case(s), {reason}"
        log.error("%s; finished results are kept", stopped)
        self.tell_report(stopped)

    def outcome(self) -> Outcome:
        """The outcome so far."""
        results = [self.results[case.name] for case in self._cases if case.name in self.results]
        return Outcome(
            written=tuple(path for result in results for path in result.written),
            failed=self.failed,
            started=self.started,
            placeholders=tuple(path for result in results for path in result.placeholders),
        )
