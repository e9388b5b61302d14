"""What became of a case."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from mcbo.report import Entry


@dataclass
class CaseResult:
    """What became of a case, what the report says of it, and what is to be told of it when its turn comes.

    Attributes:
        written: displacement files.
        failed: a sentence for every pair that has none, by the displacement's name.
        placeholders: displacements of no motion, written for pairs that failed.
        warnings: sentences that make a result doubtful.
        lost: names of files that were due and are not there.
        started: whether its input passed the checks.
        is_fresh: whether it was done now; not if an earlier run had done it.
        said: lines for the log with their levels. Cases overlap, and may run elsewhere; told at the end, lines of one case stay
            together.
        entry: of the report.
    """

    written: list[Path] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    placeholders: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    started: bool = False
    is_fresh: bool = True
    said: list[tuple[int, str]] = field(default_factory=list)
    entry: Entry = field(default_factory=dict)

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
