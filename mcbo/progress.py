"""What a user sees during a run: a bar on a terminal, plain lines in a log."""

import json
import logging
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from html import escape
from typing import TextIO

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mcbo.core.log import log, printable, without_secrets

_LINE_EVERY_S = 5.0


class ProgressView(ABC):
    """Receives the progress of a run of so many ``cases``."""

    def __init__(self, cases: int) -> None:
        self._cases = cases
        self._ended = 0
        self._case = ""

    def begin_case(self, name: str) -> None:
        self._case = name

    @abstractmethod
    def stage(self, name: str, share: float) -> None:
        """A stage begins (``share`` 0), or ends, having been that share of the case."""

    def end_case(self) -> None:
        self._ended += 1


class _BarView(ProgressView):
    """A bar with case, stage and remaining time."""

    def __init__(self, cases: int, progress: Progress) -> None:
        super().__init__(cases)
        self._progress = progress
        self._task = progress.add_task("", total=cases)

    def stage(self, name: str, share: float) -> None:
        self._progress.update(self._task, description=printable(f"case {self._case}: {name}"), advance=share)

    def end_case(self) -> None:
        super().end_case()
        self._progress.update(self._task, completed=self._ended)


class _LineView(ProgressView):
    """A line when a stage ends, at most every few seconds, with the share done and the remaining time."""

    def __init__(self, cases: int) -> None:
        super().__init__(cases)
        self._share = 0.0
        self._start = self._last = time.monotonic()

    def stage(self, name: str, share: float) -> None:
        self._share += share
        now = time.monotonic()
        if share:
            log.debug("case %s: %s ended", self._case, name)
        done = min((self._ended + self._share) / self._cases, 1.0)  # shares are estimates
        if not share or now - self._last < _LINE_EVERY_S:
            return
        self._last = now
        left = (now - self._start) * (1 - done) / done
        log.info("case %s: %s, %.0f %% done, about %.0f s left", self._case, name, 100 * done, left)

    def end_case(self) -> None:
        super().end_case()
        self._share = 0.0


class _NotebookView(ProgressView):
    """A bar in a cell's output, which goes away at the end."""

    def __init__(self, cases: int, show: Callable[[str], None]) -> None:
        super().__init__(cases)
        self._show = show
        self._share = 0.0
        self._start = time.monotonic()

    def stage(self, name: str, share: float) -> None:
        self._share += share
        done = min((self._ended + self._share) / self._cases, 1.0)
        left = f", about {(time.monotonic() - self._start) * (1 - done) / done:.0f} s left" if done else ""
        self._show(f'<progress value="{done:.3f}"></progress> {escape(printable(f"{self._case}: {name}"))}{left}')

    def end_case(self) -> None:
        super().end_case()
        self._share = 0.0


@contextmanager
def _in_notebook(cases: int) -> Iterator[ProgressView | None]:
    """The view of a notebook; None elsewhere."""
    python = sys.modules.get("IPython")
    if python is None or not hasattr(python.get_ipython(), "kernel"):
        yield None
        return
    from IPython.display import HTML, display

    handle = display(HTML(""), display_id=True)
    try:
        yield _NotebookView(cases, lambda text: handle.update(HTML(text)))
    finally:
        handle.update(HTML(""))


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _StreamHandler(logging.StreamHandler[TextIO]):
    """Becomes silent for good once its stream fails (``process.py … | head``): the run matters more than its log."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's own name)
        if isinstance(sys.exc_info()[1], OSError | ValueError):
            log.removeHandler(self)
            with suppress(OSError, ValueError):  # what is still in its buffer would fail again when Python ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        else:
            super().handleError(record)


@contextmanager
def show_progress(cases: int) -> Iterator[ProgressView]:
    """The view that fits the output: a bar if it is a terminal or a notebook, else lines in the log."""
    handler = next((h for h in log.handlers if isinstance(h, RichHandler)), None)
    if handler is None:
        with _in_notebook(cases) as view:
            yield view or _LineView(cases)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    errors = [h for h in log.handlers if isinstance(h, _StreamHandler)]
    with Progress(*columns, console=handler.console) as progress:
        # While the bar is shown, rich replaces stderr, so that errors appear above the bar and not inside it.
        before = [h.setStream(sys.stderr) for h in errors]
        try:
            yield _BarView(cases, progress)
        finally:
            for h, stream in zip(errors, before, strict=True):
                h.setStream(stream or sys.__stderr__ or sys.stderr)


class _JsonFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        now = datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": now, "level": record.levelname, "message": without_secrets(record.getMessage())})


def set_up_logging(*, quiet: bool = False, verbose: bool = False, json_lines: bool = False) -> None:
    """Shows the log of this package: warnings and errors on stderr, the rest on stdout, unless ``quiet``.

    ``json_lines`` makes each line a JSON object with time (UTC), level and message. grand-challenge.org shows stderr as
    warnings, so nothing else goes there. A closed stream gets nothing.
    """
    log.handlers.clear()
    log.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    log.propagate = False
    if sys.stdout is not None and not quiet:
        out: logging.Handler
        if sys.stdout.isatty() and not json_lines:
            out = RichHandler(
                console=Console(), show_path=False, show_level=False, log_time_format="%X", highlighter=NullHighlighter()
            )
            out.setFormatter(_PrintableFormatter("%(message)s"))
        else:
            out = _StreamHandler(sys.stdout)
            out.setFormatter(_PrintableFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        out.addFilter(lambda record: record.levelno < logging.WARNING)
        log.addHandler(out)
    if sys.stderr is not None:
        err = _StreamHandler(sys.stderr)
        err.setLevel(logging.WARNING)
        err.setFormatter(_PrintableFormatter("%(levelname)s: %(message)s"))
        log.addHandler(err)
    if json_lines:
        for handler in log.handlers:
            handler.setFormatter(_JsonFormatter())
