"""The files of a result: displacement, ITK transform, inverse, warped moving images, report.

With one moving image they are ``displacement.nii.gz``, ``transform.h5``, ``inverse.nii.gz`` and ``warped.nii.gz``; with
several, what belongs to one of them alone has its name behind it (``warped_t2.nii.gz``).
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from mcbo.config import Preset
from mcbo.files import prepare_folder
from mcbo.grid import Grid
from mcbo.images import write_any
from mcbo.itk_files import suffix_of, write_transform
from mcbo.nifti import write_displacement
from mcbo.progress import log
from mcbo.report import Entry, digest, read_entries, write_report
from mcbo.resample import resample
from mcbo.runtime import describe_device
from mcbo.transform import Transform
from mcbo.types import Volume

KINDS = ("transform", "inverse", "warped")
"""What is written beside the displacement."""

REPORT = "report.json"
CASE = "result"
"""The name of the only case in the report."""

_SUFFIXES = {"displacement": ".nii.gz", "transform": ".h5", "inverse": ".nii.gz", "warped": ".nii.gz"}


def labels_of(paths: Sequence[str]) -> list[str]:
    """Short names for moving images, no two alike: of their files, else ``moving``."""
    labels: list[str] = []
    for text in paths:
        path = Path(text)
        stem = re.sub(r"[^\w.-]", "_", path.name.removesuffix(suffix_of(path)) if suffix_of(path) else path.name) or "moving"
        label, number = stem, 1
        while label in labels:
            number += 1
            label = f"{stem}-{number}"
        labels.append(label)
    return labels


def file_names(labels: Sequence[str], *, shared: Sequence[str]) -> list[dict[str, str]]:
    """For each moving image the file names by kind.

    Args:
        labels: of the moving images.
        shared: kinds of which one file serves all.
    """
    return [
        {
            kind: f"{kind}{suffix}" if len(labels) == 1 or kind in shared else f"{kind}_{label}{suffix}"
            for kind, suffix in _SUFFIXES.items()
        }
        for label in labels
    ]


def _shared(transforms: Sequence[Transform]) -> list[str]:
    """The kinds of which one file serves all moving images."""
    if any(transform.tensor is not transforms[0].tensor for transform in transforms):
        return []
    one_grid = all(transform.moving.matches(transforms[0].moving) for transform in transforms)
    return ["displacement", "transform", *(["inverse"] if one_grid else [])]


def write_result(
    folder: Path,
    transforms: Sequence[Transform],
    movings: Sequence[tuple[Volume, Grid]],
    labels: Sequence[str],
    kinds: Sequence[str],
    entry: Entry,
    config: Preset,
    device: torch.device,
) -> list[Path]:
    """Writes a result, the report last.

    Args:
        folder: made if need be.
        transforms: for each moving image.
        movings: the moving images, to be warped.
        labels: their short names.
        kinds: of ``KINDS``, what to write beside the displacement.
        entry: what the report is to say.
        config: the preset.
        device: where it ran.

    Returns:
        The files.

    Raises:
        OutputError: if they cannot be written.
    """
    prepare_folder(folder)
    names = file_names(labels, shared=_shared(transforms))
    written: dict[str, str | None] = {}
    for transform, (volume, grid), name in zip(transforms, movings, names, strict=True):
        if "warped" in kinds:
            volume = volume.to(transform.tensor.device)
            warped = resample(volume, grid, transform.fixed, displacement=transform.tensor)
            write_any(folder / name["warped"], warped, transform.fixed)
        if "inverse" in kinds and name["inverse"] not in written:
            back = transform.inverse()
            write_displacement(folder / name["inverse"], back.tensor, back.affine)
        if "transform" in kinds and name["transform"] not in written:
            write_transform(folder / name["transform"], transform.tensor, transform.fixed)
        if name["displacement"] not in written:  # last, so that where it is, all is
            write_displacement(folder / name["displacement"], transform.tensor, transform.affine)
        for kind in ("displacement", *kinds):
            written.setdefault(name[kind], digest(folder / name[kind]))
            log.debug("%s written", folder / name[kind])
    pairs = {label: {kind: name[kind] for kind in ("displacement", *kinds)} for label, name in zip(labels, names, strict=True)}
    write_report(folder / REPORT, {CASE: entry | {"files": pairs, "written": written}}, config, describe_device(device))
    return [*(folder / name for name in written), folder / REPORT]


def is_written(
    folder: Path,
    config: Preset,
    inputs: Mapping[str, str | None],
    settings: Mapping[str, object],
    labels: Sequence[str],
    kinds: Sequence[str],
) -> bool:
    """Whether an earlier run into a folder has done the same, and all it wrote is there as it was."""
    entry = read_entries(folder / REPORT, config).get(CASE, {})
    if None in inputs.values() or entry.get("inputs") != inputs or entry.get("settings") != settings:
        return False
    files, written = entry.get("files"), entry.get("written")
    if not isinstance(files, dict) or not isinstance(written, dict) or list(files) != list(labels):
        return False
    due = [name for by_kind in files.values() for kind, name in by_kind.items() if kind in ("displacement", *kinds)]
    is_all = all(kind in by_kind for by_kind in files.values() for kind in ("displacement", *kinds))
    return is_all and all(written.get(name) == digest(folder / name) is not None for name in due)
