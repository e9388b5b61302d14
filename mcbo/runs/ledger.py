"""The record of a run: the outcome of each case so far, put into log and report as it becomes known."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mcbo.core.errors import OutputError
from mcbo.core.log import log
from mcbo.dataset.learn2reg import Case, strip_suffix
from mcbo.report import CaseReport, earlier_cases, write_report
from mcbo.runs.case import CaseResult
from mcbo.runs.options import Setup
from mcbo.runs.resume import entry_file, merged, read_earlier


@dataclass(frozen=True)
class Outcome:
    """Outcome of a run.

    Attributes:
        written: displacement files.
        failed: an error message for each pair without a result, by displacement name.
        started: whether the input of any case passed the checks.
        placeholders: zero displacements written for failed pairs.
    """

    written: tuple[Path, ...]
    failed: dict[str, str]
    started: bool
    placeholders: tuple[Path, ...]


class Ledger:
    """The record of a run on ``device`` (for display), in the order of ``cases``. One thread at a time may settle cases.

    The report may lag behind by ``report_every_s``: 0 where nothing else records what was done; where workers leave entry
    files, a report of thousands of cases need not be written after each.
    """

    def __init__(self, cases: Sequence[Case], setup: Setup, device: str, *, report_every_s: float = 0.0) -> None:
        self.results: dict[str, CaseResult] = {}
        self.failed: dict[str, str] = {}
        self.started = False
        self._cases, self._config, self._options, self._device = cases, setup.config, setup.options, device
        self._check_place = setup.check_place
        self._report = self._options.output / self._options.report_name
        self._reported = earlier_cases(self._report, self._config)
        self._earlier = read_earlier(self._reported, setup)
        self._every_s = report_every_s
        self._saved_at = -float("inf")
        self._spent_entry_files: list[Path] = []

    def earlier(self, case: Case) -> list[CaseReport]:
        """What earlier runs report of a case."""
        return self._earlier.get(case.name, [])

    def settle(self, case: Case, result: CaseResult) -> None:
        """Records a result: first in the report, then in the log."""
        self.results[case.name] = result
        self._reported[case.name] = merged(self._reported.get(case.name), result)
        self._earlier.pop(case.name, None)
        self.failed |= result.failed
        self.started |= result.started
        self._spent_entry_files.append(entry_file(case, self._options))
        if time.monotonic() - self._saved_at >= self._every_s:
            self.save_report()
        for level, message in result.messages:
            log.log(level, "%s", message)
        if result.is_fresh:  # after the report: the next run does not repeat what was logged as done, even after a power cut
            state = "done" if not result.failed else "failed" if not result.written else "done in part"
            log.info("case %s: %s, %.1f s", case.name, state, result.report.seconds)

    def save_report(self, stopped: str | None = None) -> None:
        """Writes the report, with the reason if the run ``stopped`` early, and removes the entry files of its cases."""
        in_order = {case.name: self._reported[case.name] for case in self._cases if case.name in self._reported}
        of_others = {name: report for name, report in self._reported.items() if name not in in_order}
        try:
            self._check_place()
            write_report(self._report, of_others | in_order, self._config, self._device, stopped=stopped)
        except OutputError as error:  # logged once; displacements may still be writable
            if self._options.report_name not in self.failed:
                log.error("%s", error)
            self.failed[self._options.report_name] = str(error)
            return
        self.failed.pop(self._options.report_name, None)  # after a temporary error, such as a full disk
        self._saved_at = time.monotonic()
        for path in self._spent_entry_files:
            with contextlib.suppress(OSError):
                path.unlink()
        self._spent_entry_files.clear()

    def stop(self, reason: str) -> str:
        """Reports why the run ends before all cases were tried, and returns it as a sentence without its end."""
        stopped = f"stopped after {len(self.results)} of {len(self._cases)} case(s), {reason}"
        self.save_report(stopped)
        return stopped

    def outcome(self) -> Outcome:
        """The outcome so far. What is no longer where it was written has failed."""
        results = [self.results[case.name] for case in self._cases if case.name in self.results]
        lost: dict[Path, str] = {}
        try:
            self._check_place()
        except OutputError as error:
            log.error("%s", error)
            lost = {path: str(error) for result in results for path in (*result.written, *result.placeholders)}
        else:
            lost = {
                path: f"{path}: it was removed during the run"
                for result in results
                for path in (*result.written, *result.placeholders)
                if not path.is_file()
            }
            for message in lost.values():
                log.error("%s", message)
        return Outcome(
            written=tuple(path for result in results for path in result.written if path not in lost),
            failed=self.failed | {strip_suffix(path.name): message for path, message in lost.items()},
            started=self.started,
            placeholders=tuple(path for result in results for path in result.placeholders if path not in lost),
        )
