"""``report.json``: what was registered, with what, how long it took, and what a later run can skip.

One model is written and read. A report carries a digest of its content: one that was edited or cut off is no ground to skip
anything.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, InstanceOf, ValidationError

from mcbo.core.errors import InputError
from mcbo.core.timing import StageTimer
from mcbo.core.types import Judgement, Shape
from mcbo.io.files import digest, write_whole
from mcbo.methods.config import Level, Preset
from mcbo.methods.quality import Sanity
from mcbo.runtime import DECIDING, versions

REPORT = "report.json"
"""File name of the report of a data set, and of a single registration."""

Text = InstanceOf[str]
"""What may hold a file name, and so characters that no encoding can write; pydantic's own ``str`` refuses those."""


class Stage(BaseModel):
    """Wall-clock seconds of a stage and its peak memory, MB."""

    model_config = ConfigDict(extra="forbid")

    seconds: float
    peak_memory_mb: int


class WorkingGrid(BaseModel):
    """A grid on which images were registered: shape in voxels, ``(4, 4)`` voxel to world, RAS mm."""

    model_config = ConfigDict(extra="forbid")

    shape: Shape
    affine: list[list[float]]


class CaseReport(BaseModel):
    """What the report says of a case. A field that was never assigned is left out of the file.

    Attributes:
        inputs: SHA-256 of the images by path, the fixed one first; None for those that cannot be read.
        written: SHA-256 of the files by name.
        failed: a sentence for every pair without a result, by displacement name.
        placeholder: what stands in for them, by displacement name.
        warnings: sentences that make a result doubtful.
        judgement: by displacement name, where the preset judges.
        sanity: by displacement name.
        shape: voxels of the fixed image.
        levels: as fitted to that shape, where the preset has levels.
        device: where it ran.
        seconds: of all steps.
        waited_s: how long computing stood still because reading or writing was not done.
        spans_s: when each step began and ended, from the start of the run.
        stages: by name.
        worker, run: which process of which run did it, on a cluster.
        timed_out_s: the limit that it exceeded on a worker.
        coordinates: whether images were registered voxel by voxel or where they lie in the world. What follows, only the
            latter have.
        working_grid: the grid it was done on.
        initial: rough alignment, ``(4, 4)`` from fixed to moving, RAS mm.
        images: paths, the fixed one first; None for arrays.
        files: file names by moving image and kind.
        settings: the options on which the result depends.
    """

    model_config = ConfigDict(extra="forbid")

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

    def holds(
        self, inputs: Mapping[str, str | None], outputs: Iterable[Path], settings: Mapping[str, object] | None = None
    ) -> bool:
        """Whether a case need not be done again: the same inputs and settings, and every output is there, as it was written.

        Args:
            inputs: SHA-256 by path. Their order counts: it says which image is fixed.
            outputs: the files that are wanted.
            settings: the options on which the result depends.
        """
        if list(self.inputs.items()) != list(inputs.items()) or self.settings != (settings or {}):
            return False
        return all(self.written.get(path.name) == digest(path) is not None for path in outputs)

    def doubts(self, config: Preset) -> list[str]:
        """What makes a result doubtful: sentences, each after its displacement's name."""
        judged = [(name, config.doubt(judgement)) for name, judgement in self.judgement.items()]
        checked = [(name, sentence) for name, found in self.sanity.items() for sentence in found.warnings]
        return [f"{name}: {sentence}" for name, sentence in (*judged, *checked) if sentence is not None]


class RunReport(BaseModel):
    """A report file.

    Attributes:
        versions: see ``runtime.versions``.
        device: where it ran, for people.
        threads: of torch.
        config: the preset.
        stopped: why the run ended before all cases were tried, if it did.
        cases: by name.
        sha256: of all that precedes.
    """

    model_config = ConfigDict(extra="forbid")

    versions: dict[str, str]
    device: str
    threads: int
    config: dict[str, Any]
    stopped: Text | None = None
    cases: dict[Text, CaseReport]
    sha256: str = ""


def stages_of(*timers: StageTimer) -> dict[str, Stage]:
    """What each stage took, in order."""
    return {
        name: Stage(seconds=round(record.seconds, 3), peak_memory_mb=round(record.peak_bytes / 1e6))
        for timer in timers
        for name, record in timer.records.items()
    }


def write_report(
    path: Path, cases: Mapping[str, CaseReport], config: Preset, device: str, *, stopped: str | None = None
) -> None:
    """Writes a report, whole or not at all.

    Args:
        path: of the report.
        cases: by name.
        config: the preset.
        device: where it ran, for people.
        stopped: why the run ended before all cases were tried, if it did.

    Raises:
        OutputError: if that fails.
    """
    report = RunReport(
        versions=versions(),
        device=device,
        threads=torch.get_num_threads(),
        config=asdict(config),
        stopped=stopped,
        cases=dict(cases),
    )
    content = report.model_dump(exclude_unset=True)
    content["sha256"] = _own_digest(content)
    # File names may hold what no encoding can write, so everything outside ASCII is escaped.
    write_whole(path, lambda file: file.write_text(json.dumps(content, indent=1) + "\n", encoding="ascii"))


def read_report(path: Path) -> RunReport:
    """Reads a report, edited or not.

    Raises:
        InputError: if it is not one, or of a version that wrote others.
    """
    return _parse(path, _load(path))


def earlier_cases(path: Path, config: Preset | None) -> dict[str, CaseReport]:
    """The cases of an earlier report that was made by this version with this preset and not edited; else none.

    Args:
        path: of the report, which need not be there.
        config: the preset; any version and preset will do, if None.
    """
    if not path.is_file():
        return {}
    try:
        content = _load(path)
        report = _parse(path, content)
        if report.sha256 != _own_digest(content):
            return {}
    except (InputError, RecursionError):
        return {}
    here = versions()
    same = config is None or (
        report.config == json.loads(json.dumps(asdict(config)))
        and all(report.versions.get(name) == here[name] for name in DECIDING)
    )
    return report.cases if same else {}


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected the report of a run, but it cannot be read: {error}") from error


def _parse(path: Path, content: Any) -> RunReport:
    try:
        return RunReport.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the file"
        found = "is unknown" if problem["type"] == "extra_forbidden" else "is missing or of another type"
        raise InputError(
            f"{path}: expected the report of a run, as mcbo {versions()['mcbo']} writes it, but {where} {found}"
        ) from error


def _own_digest(content: Any) -> str:
    """SHA-256 of a report's content, however it is laid out."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode("ascii")).hexdigest()
