"""Reads what is to be judged: pairs, landmarks, displacements."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
from numpy.typing import NDArray

SPLITS: dict[str, tuple[str, ...]] = {
    "val": ("registration_val", "validation_paired", "validation"),
    "test": ("registration_test", "test_paired_images"),
    "train": ("training_paired_images",),
}
"""Where the pairs of a split stand in the dataset JSON; the first list that is there and not empty counts."""

_NAME = re.compile(r"(?P<task>.+)_(?P<case>\d{4})_(?P<channel>\d{4})\.nii(\.gz)?")


class EvaluationError(Exception):
    """Something to be judged is missing or malformed; the message says what was expected and found."""


@dataclass(frozen=True)
class Pair:
    """A fixed and a moving image and what belongs to them.

    Attributes:
        name: of the displacement, without suffix: ``disp_0099_0000_0099_0001``.
        fixed, moving: image files.
        fixed_landmarks, moving_landmarks: CSV files, which may be missing.
    """

    name: str
    fixed: Path
    moving: Path
    fixed_landmarks: Path
    moving_landmarks: Path


def read_pairs(dataset: Path, *, split: str = "val") -> list[Pair]:
    """The pairs of a split of a dataset JSON.

    Raises:
        EvaluationError: if there are none, or the file is not such a JSON.
    """
    try:
        content = json.loads(dataset.read_text(encoding="utf-8-sig"))
        entries = next(content[key] for key in SPLITS[split] if content.get(key))
        return [_pair(dataset.parent / entry["fixed"], dataset.parent / entry["moving"]) for entry in entries]
    except StopIteration:
        raise EvaluationError(f"{dataset}: expected pairs under {' or '.join(SPLITS[split])}, found none") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(f"{dataset}: expected a Learn2Reg dataset JSON, but it cannot be read: {error!r}") from error


def _pair(fixed: Path, moving: Path) -> Pair:
    matches = [_NAME.fullmatch(path.name) for path in (fixed, moving)]
    if not all(matches):
        raise EvaluationError(f"{fixed.name}, {moving.name}: expected names like ReMIND2Reg_0099_0000.nii.gz")
    name = "_".join(["disp", *(f"{match['case']}_{match['channel']}" for match in matches if match)])
    landmarks = [path.parent.parent / path.parent.name.replace("images", "landmarks") / path.name for path in (fixed, moving)]
    csv = [path.with_name(re.sub(r"\.nii(\.gz)?$", ".csv", path.name)) for path in landmarks]
    return Pair(name=name, fixed=fixed, moving=moving, fixed_landmarks=csv[0], moving_landmarks=csv[1])


def read_landmarks(path: Path) -> NDArray[np.float64]:
    """``(n, 3)`` voxels from a CSV without header, one point a line.

    Raises:
        EvaluationError: if it is not that.
    """
    try:
        points = pd.read_csv(path, header=None).to_numpy(dtype=np.float64)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: expected three numbers a line and no header, but it cannot be read: {error}") from error
    if points.shape[1] != 3:
        raise EvaluationError(f"{path}: expected three numbers a line, found {points.shape[1]}")
    return points


def read_displacement(folder: Path, name: str) -> NDArray[np.float32]:
    """``(H, W, D, 3)`` float32 voxels from ``name`` with suffix ``.nii.gz`` or ``.npz`` in a folder.

    Raises:
        EvaluationError: if there is none.
    """
    try:
        if (path := folder / f"{name}.nii.gz").exists():
            return np.asarray(nibabel.load(path).dataobj, dtype=np.float32)  # type: ignore[attr-defined]
        with np.load(folder / f"{name}.npz", allow_pickle=False) as archive:
            return np.asarray(archive[archive.files[0]], dtype=np.float32)
    except (OSError, ValueError, EOFError) as error:
        raise EvaluationError(f"{folder / name}.nii.gz: expected a displacement, but it cannot be read: {error}") from error


def read_spacing_mm(path: Path) -> NDArray[np.float64]:
    """Voxel size of an image, ``(3,)`` mm."""
    try:
        return np.asarray(nibabel.load(path).header.get_zooms()[:3], dtype=np.float64)  # type: ignore[attr-defined]
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: expected an image, but it cannot be read: {error}") from error
