"""``report.json``: what was registered, with what, how long it took, and what a later run can skip.

A report contains a digest of itself, so that an edited or truncated one makes no run skip anything.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, InstanceOf, ValidationError

from mcbo.core.errors import InputError, MemoryBudgetError
from mcbo.core.log import without_secrets
from mcbo.core.timing import StageRecord, StageTimer
from mcbo.core.types import Judgement, Shape
from mcbo.io.files import digest, is_file, write_bytes
from mcbo.io.json_file import read_json
from mcbo.methods.config import Level, Preset
from mcbo.methods.quality import Sanity
from mcbo.runtime import DECIDING, versions

REPORT = "report.json"
"""File name of the report of a data set, and of a single registration."""

_NO_SHIFT_MM = 1e-5
"""Of the rigid motion: what is shorter is rounding."""

MAX_BYTES = 2**27
"""Of a report: 30,000 cases."""

Text = InstanceOf[str]
"""May contain a file name, and so characters that no encoding can write; pydantic's own ``str`` refuses those."""


class Stage(BaseModel, extra="forbid"):
    """Wall-clock seconds of a stage and its peak memory, MB."""

    seconds: float
    peak_memory_mb: int


class WorkingGrid(BaseModel, extra="forbid"):
    """A grid on which images were registered: shape in voxels; ``(4, 4)`` from voxels to world, RAS mm."""

    shape: Shape
    affine: list[list[float]]


class ShiftReport(BaseModel, extra="forbid"):
    """How far a result moves beyond a rigid motion in the fixed image's field of view: mm; see ``geometry/shift.py``.

    ``uncertainty_mm`` is the median of the bound of its errors there, where that is known.
    """

    rotation_deg: float
    rigid_mm: float
    median_mm: float
    largest_mm: float
    largest_at: tuple[float, float, float]
    uncertainty_mm: float | None = None

    def summary(self, symbol: str, per_mm: float) -> str:
        """One line, in a unit with this symbol, of which so many make a millimeter."""
        rigid, median, largest = (f"{x * per_mm:.2g} {symbol}" for x in (self.rigid_mm, self.median_mm, self.largest_mm))
        if self.largest_mm < _NO_SHIFT_MM * max(self.rigid_mm, 1.0):
            return f"the displacement is a rigid motion of {rigid} and {self.rotation_deg:.1f}°: no shift beyond it"
        caveat = ""
        if self.uncertainty_mm is not None:
            caveat = f"; the uncertainty is {self.uncertainty_mm * per_mm:.2g} {symbol} at the median"
            if self.median_mm < self.uncertainty_mm:
                caveat += ", so that most of the shift cannot be told from errors"
        place = ", ".join(f"{value * per_mm:.3g}" for value in self.largest_at)
        return (
            f"shift beyond a rigid motion of {rigid} and {self.rotation_deg:.1f}°: median {median}, largest {largest} at "
            f"({place}) {symbol} in the world (RAS){caveat}"
        )


class CaseReport(BaseModel, extra="forbid"):
    """What the report says of a case. A field that was never assigned is left out of the file.

    Attributes:
        inputs: SHA-256 of the images by path, the fixed one first, as they were read; None for those that could not be.
        shape: voxels of the fixed image.
        levels: fitted to that shape, where the preset has levels.
        judgement: by displacement name, where the preset judges its result; ``sanity`` for all presets.
        device: where it ran.
        written: SHA-256 of the files by name.
        failed: an error message for each pair without a result, by displacement name.
        placeholder: what was written instead, by displacement name.
        warnings: why a result is doubtful.
        seconds: of all steps; of which ``stages`` has each.
        waited_s: how long computing paused because reading or writing was not finished.
        spans_s: start and end of each step, from the start of the run.
        worker, run: which process of which run computed it, on a cluster.
        timed_out_s: the limit that it exceeded on a worker.
        coordinates: whether images were registered voxel by voxel or in world coordinates; only the latter have the fields
            that follow.
        initial: rough alignment, ``(4, 4)`` from fixed to moving, RAS mm.
        images: paths, the fixed one first; None for arrays.
        files: file names by moving image and kind.
        settings: the options on which the result depends.
        shift: by moving image, where it was asked for.
    """

    inputs: dict[Text, str | None] = {}
    shape: Shape | None = None
    levels: tuple[Level, ...] = ()
    judgement: dict[Text, Judgement] = {}
    sanity: dict[Text, Sanity] = {}
    device: str = ""
    written: dict[Text, str | None] = {}
    failed: dict[Text, Text] = {}
    placeholder: dict[Text, str] = {}
    warnings: list[Text] = []
    seconds: float = 0.0
    waited_s: float = 0.0
    spans_s: dict[str, tuple[float, float]] = {}
    stages: dict[str, Stage] = {}
    worker: str | None = None
    run: str | None = None
    timed_out_s: float | None = None
    coordinates: Literal["voxels", "world"] = "voxels"
    working_grid: WorkingGrid | None = None
    initial: list[list[float]] | None = None
    images: list[Text | None] = []
    files: dict[Text, dict[str, Text]] = {}
    settings: dict[str, Any] = {}
    shift: dict[Text, ShiftReport] = {}

    def holds(
        self, inputs: Mapping[str, str | None], outputs: Iterable[Path], settings: Mapping[str, object] | None = None
    ) -> bool:
        """Whether the case is done: inputs (SHA-256 by path, fixed image first) and settings are the same, outputs intact."""
        if list(self.inputs.items()) != list(inputs.items()) or self.settings != (settings or {}):
            return False
        return all(self.written.get(path.name) == digest(path) is not None for path in outputs)

    def doubts(self, config: Preset) -> list[str]:
        """Why results are doubtful, each sentence after the displacement's name."""
        judged = [(name, config.doubt(judgement)) for name, judgement in self.judgement.items()]
        checked = [(name, sentence) for name, found in self.sanity.items() for sentence in found.warnings]
        return [f"{name}: {sentence}" for name, sentence in (*judged, *checked) if sentence is not None]


class RunReport(BaseModel, extra="forbid"):
    """A report file.

    Attributes:
        versions: see ``runtime.versions``.
        device: where it ran, for display.
        threads: of torch.
        config: the preset.
        stopped: why the run ended before all cases were tried, if it did.
        cases: by name.
        sha256: of all of the above.
    """

    versions: dict[str, str]
    device: str
    threads: int
    config: dict[str, Any]
    stopped: Text | None = None
    cases: dict[Text, CaseReport]
    sha256: str = ""


def stages_of(*timers: StageTimer) -> dict[str, Stage]:
    """What each stage took, in order; one that several timers measured, the parts of which follow each other, took the sum."""
    joined: dict[str, StageRecord] = {}
    for name, record in (item for timer in timers for item in timer.records.items()):
        total = joined.setdefault(name, StageRecord())
        total.seconds += record.seconds
        total.peak_bytes = max(total.peak_bytes, record.peak_bytes)
    return {
        name: Stage(seconds=round(record.seconds, 3), peak_memory_mb=round(record.peak_bytes / 1e6))
        for name, record in joined.items()
    }


def write_report(
    path: Path, cases: Mapping[str, CaseReport], config: Preset, device: str, *, stopped: str | None = None
) -> None:
    """Writes a report, whole or not at all (``OutputError``); ``stopped`` says why a run did not try all cases."""
    report = RunReport(
        versions=versions(),
        device=device,
        threads=torch.get_num_threads(),
        config=asdict(config),
        stopped=stopped,
        cases=dict(cases),
    )
    content = _cleaned(report.model_dump(exclude_unset=True))
    content["sha256"] = _own_digest(content)
    # File names may hold what no encoding can write, so everything outside ASCII is escaped.
    write_bytes(path, (json.dumps(content, indent=1) + "\n").encode("ascii"))


def _cleaned(content: Any) -> Any:
    """The same without the secrets of URLs, in keys as well as values."""
    if isinstance(content, dict):
        return {_cleaned(key): _cleaned(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_cleaned(value) for value in content]
    return without_secrets(content) if isinstance(content, str) else content


def read_report(path: Path) -> RunReport:
    """Reads a report, edited or not; ``InputError``, if it is none, or of a version with other fields."""
    return _read(path)[1]


def earlier_cases(path: Path, config: Preset | None) -> dict[str, CaseReport]:
    """The cases of a report, if there is one that this version wrote with this preset (if None, any) and nobody edited."""
    if not is_file(path):
        return {}
    try:
        content, report = _read(path)
        if report.sha256 != _own_digest(content):
            return {}
    except (InputError, MemoryBudgetError):
        return {}
    here = versions()
    same = config is None or (
        report.config == json.loads(json.dumps(asdict(config)))
        and all(report.versions.get(name) == here[name] for name in DECIDING)
    )
    return report.cases if same else {}


def _read(path: Path) -> tuple[Any, RunReport]:
    """A report, as JSON and as a model."""
    content = read_json(path, "the report of a run", max_bytes=MAX_BYTES)
    try:
        return content, RunReport.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))[:200] or "the file"
        is_unknown = problem["type"] in ("extra_forbidden", "unexpected_keyword_argument")
        found = "is unknown" if is_unknown else "is missing or of another type"
        raise InputError(
            f"{path}: expected the report of a run by this version of mcbo, but {where} {found}; run the registration again"
        ) from error


def _own_digest(content: Any) -> str:
    """SHA-256 of a report's content, regardless of layout."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode("ascii")).hexdigest()
