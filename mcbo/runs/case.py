"""A case on its way: what it carries from step to step, and how its errors stay with it.

The steps are ``load``, ``compute`` and ``write``. The first and the last touch files and no device, the second touches the
device and no file but to ask how full the disk is; so those of different cases can overlap.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcbo.core.errors import DiskSpaceError, InputError, McboError, MemoryBudgetError
from mcbo.core.timing import StageTimer
from mcbo.core.types import Displacement, Volume
from mcbo.dataset.learn2reg import Case, wanted
from mcbo.io.nifti import Image
from mcbo.report import CaseReport, stages_of
from mcbo.runs.options import Options
from mcbo.runs.outputs import output_files


@dataclass
class CaseResult:
    """Outcome of a case, what the report says of it, and what is to be logged when its turn comes.

    Attributes:
        written: displacement files.
        failed: a sentence for every pair that has none, by the displacement's name.
        placeholders: zero displacements, written for pairs that failed.
        warnings: sentences that make a result doubtful.
        lost: names of files that were due and are not there.
        started: whether its input passed the checks.
        is_fresh: whether it was done now; not if an earlier run had done it.
        said: lines for the log with their levels. Cases overlap, and may run elsewhere; logged at the end, lines of one case
            stay together.
        report: what the report says.
    """

    written: list[Path] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    placeholders: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    started: bool = False
    is_fresh: bool = True
    said: list[tuple[int, str]] = field(default_factory=list)
    report: CaseReport = field(default_factory=CaseReport)

    def say(self, sentence: str) -> None:
        """Keeps a line for the log."""
        self.said.append((logging.INFO, sentence))

    def caution(self, sentence: str) -> None:
        """Keeps a warning for the log."""
        self.said.append((logging.WARNING, sentence))

    def warn(self, sentence: str) -> None:
        """Keeps a warning for the log and the report."""
        self.caution(sentence)
        self.warnings.append(sentence)

    def complain(self, sentence: str) -> None:
        """Keeps an error for the log."""
        self.said.append((logging.ERROR, sentence))


@dataclass
class CaseRun:
    """A case on its way from step to step. What a step is done with is dropped, since the next case wants the memory.

    Attributes:
        case: the case.
        result: what is known by now.
        fixed: the fixed image; None if there is nothing to register, since it was done before or its input is broken.
        movings: moving images by the displacement's name, those that could be read.
        displacements: ``(1, 3, H, W, D)`` voxels on the CPU, by name.
        warped: moving images ``(1, 1, H, W, D)`` on the CPU, by name, if asked for.
        affine: of the fixed image.
        spans: when each step began and ended, by ``time.perf_counter``, s.
        waited_s: how long the computing stood still before this case because reading or writing was not done.
    """

    case: Case
    result: CaseResult = field(default_factory=CaseResult)
    fixed: Image | None = None
    movings: dict[str, Image] = field(default_factory=dict)
    displacements: dict[str, Displacement] = field(default_factory=dict)
    warped: dict[str, Volume] = field(default_factory=dict)
    affine: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    spans: dict[str, tuple[float, float]] = field(default_factory=dict)
    waited_s: float = 0.0

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Notes when the block began and ended."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spans[name] = (start, time.perf_counter())


@contextmanager
def failing(run: CaseRun, options: Options) -> Iterator[None]:
    """Errors in the block stay with their case: its pairs that are not written have failed, and there is nothing left to do."""
    result = run.result
    try:
        yield
    except (McboError, MemoryError, RuntimeError) as error:  # torch tells a lack of memory by RuntimeError
        result.started = not isinstance(error, InputError | MemoryBudgetError | DiskSpaceError)
        message = str(error) if isinstance(error, McboError) else f"{run.case.fixed}: {str(error) or type(error).__name__}"
        asked = wanted(run.case, options.movings)
        result.failed |= {pair.field_name: message for pair in asked if output_files(pair, options)[0] not in result.written}
        run.fixed, run.movings, run.displacements, run.warped = None, {}, {}, {}


def tell_times(run: CaseRun, timers: Sequence[StageTimer], *, since: float) -> None:
    """Puts into the report what the case took.

    Args:
        run: after ``write``.
        timers: of its steps, in their order.
        since: what the spans are told from, by ``time.perf_counter``, s.
    """
    report = run.result.report
    report.seconds = round(sum(end - start for start, end in run.spans.values()), 3)
    report.waited_s = round(run.waited_s, 3)
    report.spans_s = {name: (round(start - since, 3), round(end - since, 3)) for name, (start, end) in run.spans.items()}
    report.stages = stages_of(*timers)
