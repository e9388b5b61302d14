"""Presets and variants of them, registered and scored on the same datasets: the table that a default is chosen by."""

import hashlib
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from evaluation.errors import in_markdown
from evaluation.images import read_grid
from evaluation.pairs import Pair as JudgedPair
from evaluation.pairs import beside
from evaluation.settings import from_options
from evaluation.summary import score, to_official
from evaluation.tasks import METRICS
from mcbo.core.errors import InputError
from mcbo.core.log import log, printable
from mcbo.dataset.learn2reg import Case, read_json, select_cases, wanted
from mcbo.io.nifti import read_displacement
from mcbo.methods.presets import TASKS
from mcbo.report import earlier_cases
from mcbo.runs.options import Options
from mcbo.runs.runner import run
from mcbo.runtime import describe_machine, versions
from mcbo.studies.truth import Truth, read_truths
from mcbo.studies.variants import Variant, make_variants

_ROOT = Path(__file__).resolve().parents[2]
_FOLDER_LENGTH = 80


@dataclass(frozen=True)
class Study:
    """A dataset, a set of its moving channels, and the variants to try on them.

    Attributes:
        dataset: its name in the table: the JSON's folder and name.
        path: the JSON.
        moving: the channels, joined by ``+``, or ``all``.
        cases: with the pairs of these channels only.
        variants: what to try.
        truths: by case, where known.
    """

    dataset: str
    path: Path
    moving: str
    cases: tuple[Case, ...]
    variants: tuple[Variant, ...]
    truths: Mapping[str, Truth]


@dataclass(frozen=True)
class Row:
    """The result of one variant in one study. A number is None where its data are missing.

    Attributes:
        dataset, moving, variant: names.
        asked: number of pairs.
        pairs: those of them with a score.
        initial_tre_mm: TRE without any displacement.
        tre_mm, tre_std_mm, tre_p30_mm, tre_p70_mm: mean, standard deviation, 30th and 70th percentile of the pairs' means.
        dense_mm: mean distance from the known displacement, in the fixed image's field of view.
        dice: mean over pairs of the mean over labels.
        sd_log_jacobian: official SDlogJ.
        folded_percent: voxels with det J ≤ 0.
        seconds: mean per case, from files to files, of the run that registered it.
        device: where that was.
        failed: a sentence for every pair without a score, by displacement name.
    """

    dataset: str
    moving: str
    variant: str
    asked: int
    pairs: int = 0
    initial_tre_mm: float | None = None
    tre_mm: float | None = None
    tre_std_mm: float | None = None
    tre_p30_mm: float | None = None
    tre_p70_mm: float | None = None
    dense_mm: float | None = None
    dice: float | None = None
    sd_log_jacobian: float | None = None
    folded_percent: float | None = None
    seconds: float | None = None
    device: str = ""
    failed: Mapping[str, str] = field(default_factory=dict)


def make_studies(
    datasets: Sequence[Path],
    *,
    task: str | None = None,
    presets: Sequence[str] = (),
    changes: Sequence[str] = (),
    split: str = "val",
    cases: Sequence[str] = (),
    movings: Sequence[Sequence[str]] = (),
    truth: Path | None = None,
) -> list[Study]:
    """Reads everything that is to be compared, so that errors show before anything is registered.

    Args:
        datasets: dataset JSONs.
        task: for datasets whose name is not that of a task.
        presets: their names; all of the task, if empty.
        changes: see ``variants.parse_change``.
        split: ``val``, ``test`` or ``train``.
        cases: their names; all, if empty.
        movings: sets of moving channels, each registered on its own; one set of all, if empty.
        truth: folder of known displacements; ``truth`` beside the JSON, if None and there.

    Raises:
        InputError: for an invalid dataset, task, preset, change, case, channel or truth.
    """
    paths = list(dict.fromkeys(path.resolve() for path in datasets))
    names = [_dataset_name(path) for path in paths]
    if len(set(names)) < len(names):
        raise InputError(f"--dataset: expected JSONs that differ in folder or name, got {', '.join(map(str, paths))}")
    if truth and len(paths) > 1:
        raise InputError(f"--truth: expected one --dataset with it, got {len(paths)}")
    channel_sets = movings or ((),)
    studies = []
    for path, name in zip(paths, names, strict=True):
        dataset = read_json(path, split=split)
        try:
            variants = make_variants(_task(dataset.task, task), presets=presets, changes=changes)
            chosen = [select_cases(dataset.cases, names=cases, movings=channels) for channels in channel_sets]
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        every = list({case.name: case for selected in chosen for case in selected}.values())
        truths = read_truths(truth or path.parent / "truth", every, required=truth is not None)
        for channels, selected in zip(channel_sets, chosen, strict=True):
            # Channels of a case are fused, so those outside the set must not be there.
            reduced = tuple(replace(case, pairs=tuple(wanted(case, channels))) for case in selected)
            studies.append(Study(name, path, "+".join(channels) or "all", reduced, variants, truths))
    return studies


def input_files(studies: Sequence[Study], truth: Path | None) -> list[Path]:
    """What is read: the JSONs, the images and what may lie beside them, known displacements."""
    found: list[Path] = []
    for study in studies:
        pairs = [JudgedPair(Path(pair.fixed), Path(pair.moving)) for case in study.cases for pair in case.pairs]
        images = [image for pair in pairs for image in (pair.fixed, pair.moving)]
        labels = [beside(image, "labels") for image in images]
        points = [beside(image, "landmarks", ".csv") for image in images]
        truths = [(truth or study.path.parent / "truth") / f"{case.name}.npz" for case in study.cases]
        found += [study.path, *images, *labels, *points, *truths]
    return found


def _dataset_name(path: Path) -> str:
    """``FOLDER/NAME`` of ``…/FOLDER/NAME_dataset.json``, or ``NAME`` if the folder has the same name."""
    name = path.stem.removesuffix("_dataset")
    return name if path.parent.name in ("", name) else f"{path.parent.name}/{name}"


def _task(named: str | None, asked: str | None) -> str:
    chosen = named if named in TASKS else asked or named
    if chosen is None:
        raise InputError(f"the dataset has no name: expected --task with one of {', '.join(TASKS)}")
    return chosen


def run_studies(studies: Sequence[Study], options: Options, *, keep: Path | None) -> list[Row]:
    """Registers and scores every variant in every study, one after the other; raises what ``runner.run`` raises.

    Displacements stay in the folder ``keep``, from which a later run resumes; if None, not at all. ``options.output`` is not
    used.
    """
    rows = []
    for study in studies:
        for variant in study.variants:
            log.info("%s, moving %s: %s", study.dataset, study.moving, variant.name)
            with _folder(keep, study, variant) as folder:
                rows.append(_try(study, variant, replace(options, output=folder)))
    return rows


@contextmanager
def _folder(keep: Path | None, study: Study, variant: Variant) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="mcbo-ablate-") as folder:
            yield Path(folder)
        return
    name = re.sub(r"[^A-Za-z0-9.=_-]+", "_", variant.name)[:_FOLDER_LENGTH]
    if name != variant.name:
        name += f"-{hashlib.sha256(variant.name.encode()).hexdigest()[:8]}"
    yield keep / study.dataset / study.moving / name


def _try(study: Study, variant: Variant, options: Options) -> Row:
    try:
        outcome = run(study.cases, variant.config, options)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Nothing checks the range of a changed number; a variant that fails on it must not cost the others their rows.
        message = f"the method cannot compute this variant: {type(error).__name__}: {error}"
        log.error("%s: %s", variant.name, message)
        names = [pair.field_name for case in study.cases for pair in case.pairs]
        return Row(study.dataset, study.moving, variant.name, asked=len(names), failed=dict.fromkeys(names, message))
    row = judge_fields(study, variant.name, options)
    reported = earlier_cases(options.output / options.report_name, variant.config)
    done = [reported[case.name] for case in study.cases if case.name in reported and not reported[case.name].failed]
    seconds = statistics.mean(case.seconds for case in done) if done else None
    device = "; ".join(sorted({case.device for case in done}))
    return replace(row, seconds=seconds, device=device, failed={**row.failed, **outcome.failed})


def judge_fields(study: Study, variant: str, options: Options) -> Row:
    """Scores the displacements in ``options.output`` with ``evaluation`` and against the truth."""
    pairs = tuple(JudgedPair(Path(pair.fixed), Path(pair.moving)) for case in study.cases for pair in case.pairs)
    # Not required: metrics without data are left out.
    settings = replace(from_options(["tre", "sdlogj", "dice"]), required=False, pairs=pairs)
    scores = score(study.path, options.output, settings)
    aggregates: Any = to_official(scores)["aggregates"]
    tre = aggregates.get(METRICS["tre"].name, {})
    folded = aggregates.get("folded_fraction", {}).get("mean")
    return Row(
        dataset=study.dataset,
        moving=study.moving,
        variant=variant,
        asked=len(pairs),
        pairs=len(scores.scored),
        initial_tre_mm=tre.get("initial_mean"),
        tre_mm=tre.get("mean"),
        tre_std_mm=tre.get("std"),
        tre_p30_mm=tre.get("30_remind2reg"),  # the two official programs report different quantiles as "30"
        tre_p70_mm=tre.get("30_l2r"),
        dense_mm=_dense_error(study, options),
        dice=aggregates.get(METRICS["dice"].name, {}).get("mean"),
        sd_log_jacobian=aggregates.get(METRICS["sdlogj"].name, {}).get("mean"),
        folded_percent=None if folded is None else 100 * folded,
        failed={pair.pair.field_name: pair.error for pair in scores.pairs if pair.error is not None},
    )


def _dense_error(study: Study, options: Options) -> float | None:
    """Mean over the pairs that have both a known truth and a displacement, mm."""
    errors = []
    for case in study.cases:
        for pair in case.pairs if case.name in study.truths else ():
            path = options.output / f"{pair.field_name}{options.suffix}"
            if path.is_file():
                _, spacing_mm = read_grid(Path(pair.moving))
                errors.append(study.truths[case.name].mean_error(read_displacement(path), spacing_mm))
    return statistics.mean(errors) if errors else None


def describe(rows: Sequence[Row]) -> dict[str, str]:
    """What the table depends on: date, commit, machine, devices, versions."""
    return {
        "date": date.today().isoformat(),
        "commit": _commit(),
        "machine": describe_machine(),
        "device": "; ".join(dict.fromkeys(row.device for row in rows if row.device)) or "none",
        **versions(),
    }


def _commit() -> str:
    """The commit of this checkout, or ``unknown`` where there is no checkout or no git."""
    if not (_ROOT / ".git").exists():  # git would look for a checkout in the folders around this one
        return "unknown"
    command = [shutil.which("git") or "git", "-C", str(_ROOT), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


_NUMBERS: tuple[tuple[str, str, int], ...] = (
    ("initial TRE mm", "initial_tre_mm", 2),
    ("TRE mm", "tre_mm", 2),
    ("std", "tre_std_mm", 2),
    ("30 %", "tre_p30_mm", 2),
    ("70 %", "tre_p70_mm", 2),
    ("dense mm", "dense_mm", 2),
    ("Dice", "dice", 3),
    ("SDlogJ", "sd_log_jacobian", 4),
    ("folds %", "folded_percent", 3),
    ("seconds", "seconds", 1),
)
"""Columns: title, attribute of a row, digits."""


def to_markdown(about: Mapping[str, str], rows: Sequence[Row]) -> str:
    """The table, the failures, and the circumstances."""
    table = [["data set", "moving", "variant", "pairs", *(title for title, _, _ in _NUMBERS)]]
    table += map(_cells, rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    texts = 3  # columns of text, aligned left; numbers are aligned right
    table.insert(1, ["-" * w if i < texts else "-" * (w - 1) + ":" for i, w in enumerate(widths)])
    lines = [
        f"| {' | '.join(c.ljust(w) if i < texts else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))} |"
        for cells in table
    ]
    failed = [
        f"- {in_markdown(row.dataset)}, {in_markdown(row.moving)}, {_code(row.variant)}: {in_markdown(f'{name}: {why}')}"
        for row in rows
        for name, why in row.failed.items()
    ]
    circumstances = ", ".join(f"{name}: {value}" for name, value in about.items())
    return "\n".join([*lines, "", *(["Failed:", "", *failed, ""] if failed else []), circumstances])


def _cells(row: Row) -> list[str]:
    pairs = f"{row.pairs} of {row.asked}" if row.pairs < row.asked else str(row.pairs)
    values = [(getattr(row, attribute), digits) for _, attribute, digits in _NUMBERS]
    numbers = ["–" if value is None else f"{value:.{digits}f}" for value, digits in values]
    return [in_markdown(row.dataset), in_markdown(row.moving), _code(row.variant), pairs, *numbers]


def _code(text: str) -> str:
    """Text as it is, if a table can hold it."""
    return in_markdown(text) if set(text) & set("`|\\") else f"`{printable(text)}`"
