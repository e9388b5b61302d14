"""Cases to register: from a Learn2Reg dataset JSON, as its tasks used it from 2021 to 2026, from file names, or one pair."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, FailFast, TypeAdapter, ValidationError

from mcbo.core.errors import InputError
from mcbo.dataset.folders import Folder, RemoteFolder
from mcbo.io.files import shown
from mcbo.io.json_file import read_description
from mcbo.io.source import File

SPLITS: dict[str, tuple[str, ...]] = {
    "val": ("registration_val", "validation_paired", "validation"),
    "test": ("registration_test", "test_paired_images"),
    "train": ("training_paired_images",),
}
"""Keys of a split's pairs in the JSON; the first list that is not empty counts."""

FIXED_CHANNEL = "0000"
"""The channel of fixed images in folders without a JSON."""

IMAGE_FOLDERS = (".", "imagesTs", "imagesVal", "imagesTr")
"""Where a folder without a JSON may keep its images."""

_IMAGE_NAME = re.compile(r"(?P<task>.+)_(?P<case>[0-9]{4})_(?P<channel>[0-9]{4})\.nii(\.gz)?")

MAX_NAME = 100
"""Characters of a task's name."""


@dataclass(frozen=True)
class Pair:
    """A fixed and a moving image, and the name of the displacement between them (without suffix)."""

    fixed: File
    moving: File
    field_name: str
    moving_channel: str


@dataclass(frozen=True)
class Case:
    """A patient, the unit of work: a name for logs and the report, the fixed image, and a pair per moving image."""

    name: str
    fixed: File
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Dataset:
    """A task's name (None if unknown), its cases in the order they were listed, and the JSON that lists them (None without)."""

    task: str | None
    cases: tuple[Case, ...]
    json: File | None = None

    @property
    def files(self) -> list[File]:
        """The JSON and all images."""
        images = (path for case in self.cases for pair in case.pairs for path in (pair.fixed, pair.moving))
        return list(dict.fromkeys((*([] if self.json is None else [self.json]), *images)))


class _Entry(BaseModel):
    fixed: str
    moving: str


_ENTRIES = TypeAdapter(Annotated[list[_Entry], FailFast()])  # of millions of errors, the first is enough


def open_input(path: Path, *, split: str, trust_paths: bool = False) -> Dataset:
    """Reads the cases of a split, a key of ``SPLITS``, from a ``*_dataset.json`` or from a folder with or without one.

    If paths are trusted, images may lie outside the dataset's folder.

    Raises:
        InputError: if that cannot be done; the message says what was expected and found.
    """
    try:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; expected a dataset JSON or a folder of images")
        folder = Folder(path if path.is_dir() else path.parent, trusted=trust_paths)
        found = find_json(folder) if path.is_dir() else path.name
        return read_json(folder.path / found, split=split, folder=folder) if found else scan_folder(folder)
    except OSError as error:
        raise InputError(f"{path}: expected a readable file or folder, but: {error.strerror or error}") from error


def read_json(path: File, *, split: str, folder: Folder | RemoteFolder | None = None) -> Dataset:
    """Reads the pairs of a split from a dataset JSON, ignoring other keys; its paths start from ``folder``, else from its own.

    Raises:
        InputError: as ``open_input``.
    """
    content = read_description(path)
    name = content.get("name")
    if name is not None and not (isinstance(name, str) and len(name) <= MAX_NAME):
        raise InputError(f"{path}: expected 'name' to be text of at most {MAX_NAME} characters, found {shown(name)}")
    key = next((key for key in SPLITS[split] if content.get(key)), None)
    if key is None:
        filled = [f"--split {other}" for other, keys in SPLITS.items() if any(content.get(k) for k in keys)]
        raise InputError(
            f"{path}: expected pairs under {' or '.join(SPLITS[split])} for --split {split}, found none"
            + (f"; there are pairs for {' and '.join(filled)}" if filled else "")
        )
    try:
        entries = _ENTRIES.validate_python(content[key])
    except ValidationError as error:
        where = "".join(f"[{shown(part)}]" for part in error.errors()[0]["loc"])
        raise InputError(
            f'{path}: expected {key} to be a list of {{"fixed": PATH, "moving": PATH}}, but {key}{where} is missing '
            "or of another kind"
        ) from error
    root = folder or Folder(Path(path).parent)
    pairs = [
        (root.join(entry.fixed, f"{path}: {key}[{i}]['fixed']"), root.join(entry.moving, f"{path}: {key}[{i}]['moving']"))
        for i, entry in enumerate(entries)
    ]
    return Dataset(task=name, cases=group_pairs(pairs), json=path)


def find_json(folder: Folder | RemoteFolder) -> str | None:
    """The name of the dataset JSON in a folder, or None; raises ``InputError`` if there are several."""
    found = [name for name in folder.names() if name.endswith("_dataset.json")]
    if len(found) > 1:
        raise InputError(f"{folder}: expected one *_dataset.json, found {', '.join(found)}; name the one to use")
    return found[0] if found else None


def scan_folder(folder: Folder | RemoteFolder) -> Dataset:
    """Finds cases by file names ``TASK_CASE_CHANNEL.nii.gz``: channel 0000 is fixed, all others are moving.

    Raises:
        InputError: if there is no complete case, more than one task, or a link out of the folder.
    """
    for subfolder in IMAGE_FOLDERS:
        named = _pair_names(folder.names(subfolder))
        tasks = sorted({task for task, _, _ in named})
        if len(tasks) > 1:
            raise InputError(f"{folder}: expected images of one task, found {', '.join(tasks)}")
        if named:
            files = {name: folder.join(f"{subfolder}/{name}", str(folder)) for _, *names in named for name in names}
            return Dataset(task=tasks[0], cases=group_pairs((files[fixed], files[moving]) for _, fixed, moving in named))
    raise InputError(
        f"{folder}: expected a *_dataset.json or images TASK_CASE_CHANNEL.nii.gz "
        f"with channel {FIXED_CHANNEL} (fixed) and at least one other (moving), found neither"
    )


def _pair_names(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """Task, fixed and moving image of each pair among file names; other names are ignored."""
    images = [match for name in names if (match := _IMAGE_NAME.fullmatch(name))]
    fixed = {match.group("task", "case"): match[0] for match in images if match["channel"] == FIXED_CHANNEL}
    moving = [match for match in images if match["channel"] != FIXED_CHANNEL and match.group("task", "case") in fixed]
    return [(match["task"], fixed[match.group("task", "case")], match[0]) for match in moving]


def single_pair(fixed: File, moving: File, output: Path) -> Dataset:
    """The dataset of one pair given by its paths; the task is that of the fixed image's name, if it has one."""
    match = _IMAGE_NAME.fullmatch(fixed.name)
    pair = Pair(fixed=fixed, moving=moving, field_name=strip_suffix(output.name), moving_channel="")
    return Dataset(task=match["task"] if match else None, cases=(Case(strip_suffix(fixed.name), fixed, (pair,)),))


def group_pairs(pairs: Iterable[tuple[File, File]]) -> tuple[Case, ...]:
    """Groups (fixed, moving) paths into cases: a fixed image and the moving images of one patient; repeats count once.

    Raises:
        InputError: if two different pairs would write a displacement of the same name.
    """
    grouped: dict[tuple[File, str], dict[Pair, None]] = {}
    short: dict[tuple[File, str], str] = {}
    named: dict[str, Pair] = {}
    for fixed, moving in pairs:
        _, fixed_case, _ = parse_name(fixed)
        _, moving_case, moving_channel = parse_name(moving)
        name = displacement_name(fixed, moving)
        pair = Pair(fixed, moving, name, moving_channel)
        if named.setdefault(name, pair) != pair:
            raise InputError(
                f"expected one pair for {name}, found {named[name].fixed} with {named[name].moving}, and {fixed} with {moving}"
            )
        grouped.setdefault((fixed, moving_case), {})[pair] = None
        short[fixed, moving_case] = fixed_case if moving_case == fixed_case else f"{fixed_case}-{moving_case}"
    shared = Counter(short.values())
    return tuple(
        # Cases that would share a name take that of their first displacement instead.
        Case(name if shared[name] == 1 else next(iter(members)).field_name.removeprefix("disp_"), fixed, tuple(members))
        for name, ((fixed, _), members) in zip(short.values(), grouped.items(), strict=True)
    )


def select_cases(cases: Sequence[Case], *, names: Sequence[str], movings: Sequence[str]) -> tuple[Case, ...]:
    """Keeps the named cases (all, if none is named) that have one of the moving channels.

    Cases keep all their pairs: modalities that were not requested may still help the others.

    Raises:
        InputError: for a case that is not there, or a channel that none of the chosen cases has.
    """
    _check_known("case", names, [case.name for case in cases])
    chosen = [case for case in cases if not names or case.name in names]
    _check_known("moving channel", movings, [pair.moving_channel for case in chosen for pair in case.pairs])
    return tuple(case for case in chosen if wanted(case, movings))


def wanted(case: Case, movings: Sequence[str]) -> list[Pair]:
    """The pairs of a case with one of the moving channels; all, if none is named."""
    return [pair for pair in case.pairs if not movings or pair.moving_channel in movings]


def _check_known(kind: str, asked: Sequence[str], known: Sequence[str]) -> None:
    missing = [name for name in asked if name not in known]
    if missing:
        listed = ", ".join(dict.fromkeys(known))
        raise InputError(f"{kind} {', '.join(missing)} is not in the dataset: expected one of {listed}")


def parse_name(path: File) -> tuple[str, str, str]:
    """Task, case and channel of ``TASK_CASE_CHANNEL.nii.gz``, four digits each; raises ``InputError`` for other names."""
    match = _IMAGE_NAME.fullmatch(path.name)
    if match is None:
        raise InputError(f"{path}: expected a file name like ReMIND2Reg_0099_0001.nii.gz (TASK_CASE_CHANNEL, four digits each)")
    return match["task"], match["case"], match["channel"]


def displacement_name(fixed: File, moving: File) -> str:
    """The official name of the displacement between two images, without suffix; raises ``InputError`` as ``parse_name``."""
    _, fixed_case, fixed_channel = parse_name(fixed)
    _, moving_case, moving_channel = parse_name(moving)
    return f"disp_{fixed_case}_{fixed_channel}_{moving_case}_{moving_channel}"


def strip_suffix(name: str) -> str:
    """A file name without ``.nii.gz``, ``.nii`` or ``.npz``."""
    return re.sub(r"\.(nii\.gz|nii|npz)$", "", name)
