"""A case on its way through ``load``, ``compute``, and ``write``: what it carries, and how its errors stay with it.

``load`` and ``write`` use files and no device; ``compute`` uses the device and, except for the free disk space, no files. So
the steps of different cases can overlap.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcbo.core.errors import DiskSpaceError, InputError, McboError, MemoryBudgetError
from mcbo.core.timing import StageTimer
from mcbo.core.types import Displacement, Masks, Volume
from mcbo.dataset.learn2reg import Case, Pair, wanted
from mcbo.io.nifti import Image
from mcbo.report import CaseReport, stages_of
from mcbo.runs.options import Setup
from mcbo.runs.outputs import output_files


@dataclass
class CaseResult:
    """Outcome of a case.

    Attributes:
        written: displacement files.
        failed: an error message for each pair without a result, by displacement name.
        placeholders: zero displacements written for failed pairs.
        lost: names of the files that should be there and are not.
        started: whether the input passed the checks.
        is_fresh: False if an earlier run finished the case.
        messages: for the log, with their levels. Cases overlap, or run on other machines; logged at the end, the lines of one
            case stay together.
        report: what the report says of it.
    """

    written: list[Path] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    placeholders: list[Path] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    started: bool = False
    is_fresh: bool = True
    messages: list[tuple[int, str]] = field(default_factory=list)
    report: CaseReport = field(default_factory=lambda: CaseReport(warnings=[]))

    def note(self, message: str, level: int = logging.INFO) -> None:
        """Keeps a message for the log."""
        self.messages.append((level, message))


@dataclass
class CaseRun:
    """A case on its way. What a step no longer needs is dropped, since the next case needs the memory.

    Attributes:
        case, setup: what to register, and how.
        result: what is known so far.
        fixed: the fixed image; None if there is nothing to register: it was done before, or its input is broken.
        movings: the readable moving images, by displacement name.
        masks: where these images are known, on the CPU; None if the preset does not use masks.
        displacements: ``(1, 3, H, W, D)`` voxels on the CPU, by name.
        warped: moving images ``(1, 1, H, W, D)`` on the CPU, by name, if requested.
        affine: of the fixed image.
        spans: start and end of each step, by ``time.perf_counter``, s.
        waited_s: how long computing paused before this case because reading or writing was not finished.
    """

    case: Case
    setup: Setup
    result: CaseResult = field(default_factory=CaseResult)
    fixed: Image | None = None
    movings: dict[str, Image] = field(default_factory=dict)
    masks: Masks | None = None
    displacements: dict[str, Displacement] = field(default_factory=dict)
    warped: dict[str, Volume] = field(default_factory=dict)
    affine: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    spans: dict[str, tuple[float, float]] = field(default_factory=dict)
    waited_s: float = 0.0

    @property
    def requested(self) -> list[Pair]:
        """The pairs whose displacements are written."""
        return wanted(self.case, self.setup.options.movings)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Records when the block started and ended."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spans[name] = (start, time.perf_counter())

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Keeps errors in the block with this case: its pairs that are not written have failed, and nothing is left to do."""
        result, fixed = self.result, self.case.fixed
        try:
            yield
        except (McboError, OSError, MemoryError, RuntimeError) as error:  # torch reports a lack of memory as RuntimeError
            result.started = not isinstance(error, InputError | MemoryBudgetError | DiskSpaceError)
            message = str(error) if isinstance(error, McboError) else f"{fixed}: {str(error) or type(error).__name__}"
            for pair in self.requested:
                if output_files(pair, self.setup.options)[0] not in result.written:
                    result.failed[pair.field_name] = message
            self.fixed, self.movings, self.masks, self.displacements, self.warped = None, {}, None, {}, {}

    def report_times(self, *timers: StageTimer, since: float) -> None:
        """Puts into the report what the case took, by the timers of its steps, in order.

        Spans are counted from ``since``, by ``time.perf_counter``, s.
        """
        report = self.result.report
        report.seconds = round(sum(end - start for start, end in self.spans.values()), 3)
        report.waited_s = round(self.waited_s, 3)
        report.spans_s = {name: (round(start - since, 3), round(end - since, 3)) for name, (start, end) in self.spans.items()}
        report.stages = stages_of(*timers)
