"""Reads what is to be judged: pairs, landmarks, displacements, and the images and labels beside them."""

import json
import math
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

SPLITS: dict[str, tuple[str, ...]] = {
    "val": ("registration_val", "validation_paired", "validation"),
    "test": ("registration_test", "test_paired_images"),
    "train": ("training_paired_images",),
}
"""Where the pairs of a split stand in the dataset JSON; the first list that is there and not empty counts."""

SUFFIXES = (".nii.gz", ".npz")
FIELD_DTYPES = (np.dtype(np.float32), np.dtype(np.float16))
"""The challenge asks for float32; float16 was its rule before 2022, in ``.npz`` files."""

_NAME = re.compile(r"(?P<task>.+)_(?P<case>\d{4})_(?P<channel>\d{4})\.nii(\.gz)?")
UNREADABLE = (
    *(ImageFileError, HeaderDataError, OSError, EOFError, ValueError, OverflowError, zlib.error, zipfile.BadZipFile),
    *(MemoryError, RuntimeError),  # absurd sizes in a header; archives that are encrypted or oddly compressed
)
"""What the libraries raise at files that are broken in one way or another."""

Array = NDArray[np.float64]


class EvaluationError(Exception):
    """Something to be judged is missing or malformed; the message says what was expected and found."""


@dataclass(frozen=True)
class Pair:
    """A fixed and a moving image of a dataset.

    Attributes:
        fixed, moving: the image files, in a folder ``images*``.
    """

    fixed: Path
    moving: Path

    @property
    def field_name(self) -> str:
        """Of the displacement, without suffix: ``disp_0099_0000_0099_0001``."""
        return f"disp_{_case_and_channel(self.fixed)}_{_case_and_channel(self.moving)}"

    @property
    def key(self) -> str:
        """As the official programs call it: ``0099_0000<--0099_0001``."""
        return f"{_case_and_channel(self.fixed)}<--{_case_and_channel(self.moving)}"

    @property
    def field_names(self) -> tuple[str, ...]:
        """The names under which the displacement is accepted; the short one where the channels are 0000 and 0001."""
        (_, fixed, fixed_channel), (_, moving, moving_channel) = parse_name(self.fixed), parse_name(self.moving)
        if (fixed_channel, moving_channel) != ("0000", "0001"):
            return (self.field_name,)
        return self.field_name, f"disp_{fixed}_{moving}"


def parse_name(path: Path) -> tuple[str, str, str]:
    """Task, case and channel of an image's file name.

    Raises:
        EvaluationError: if the name is not ``TASK_CASE_CHANNEL.nii.gz``.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise EvaluationError(f"{path}: expected a file name like ReMIND2Reg_0099_0001.nii.gz")
    return match["task"], match["case"], match["channel"]


def _case_and_channel(path: Path) -> str:
    return "_".join(parse_name(path)[1:])


def beside(image: Path, kind: str, suffix: str | None = None) -> Path:
    """What belongs to an image: ``imagesTr/X.nii.gz`` → ``landmarksTr/X.csv``, ``labelsTr/X.nii.gz`` and so on."""
    name = image.name if suffix is None else re.sub(r"\.nii(\.gz)?$", suffix, image.name)
    return image.parent.parent / image.parent.name.replace("images", kind) / name


def read_pairs(dataset: Path, *, split: str = "val") -> list[Pair]:
    """The pairs of a split of a dataset JSON.

    Raises:
        EvaluationError: if there are none, or the file is not such a JSON.
    """
    content = read_json(dataset)
    listed: object = next((content[key] for key in SPLITS[split] if content.get(key)), None)
    if listed is None:
        raise EvaluationError(f"{dataset}: expected pairs under {' or '.join(SPLITS[split])}, found none")
    return pairs_of(listed, dataset)


def pairs_of(listed: object, dataset: Path) -> list[Pair]:
    """Pairs from a list of ``{"fixed": PATH, "moving": PATH}``, relative to the dataset JSON.

    Raises:
        EvaluationError: if it is not such a list.
    """
    pairs = []
    entries: list[Any] = listed if isinstance(listed, list) else [listed]
    for entry in entries:
        try:
            pair = Pair(*(dataset.parent / entry[role] for role in ("fixed", "moving")))
        except (KeyError, TypeError) as error:
            raise EvaluationError(f'{dataset}: expected pairs {{"fixed": PATH, "moving": PATH}}, found {entry!r}') from error
        parse_name(pair.fixed)
        parse_name(pair.moving)
        pairs.append(pair)
    return list(dict.fromkeys(pairs))  # a pair that is listed twice counts once


def read_json(path: Path) -> dict[str, object]:
    """A JSON object.

    Raises:
        EvaluationError: if the file is not that.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(f"{path}: expected a JSON file, but it cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise EvaluationError(f"{path}: expected a JSON object, found a {type(content).__name__}")
    return content


def read_landmarks(path: Path, *, inside: tuple[int, int, int] | None = None) -> Array:
    """``(n, 3)`` voxels from a CSV without header, three numbers a line, separated by commas.

    Args:
        path: the CSV.
        inside: shape of a volume that the points have to lie in (up to the outer faces of its voxels), if any.

    Raises:
        EvaluationError: if it is not that.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: expected landmarks, but the file cannot be read: {error}") from error
    if not text.strip():
        raise EvaluationError(f"{path}: expected landmarks, found an empty file")
    if ";" in text:
        raise EvaluationError(f"{path}: expected numbers separated by commas, found semicolons")
    points = []
    for number, line in enumerate(text.rstrip().splitlines(), start=1):
        point = _three_numbers(line)
        if point is None:
            header = "; no header belongs there" if number == 1 else ""
            raise EvaluationError(f"{path}: expected three numbers a line, found {line!r} in line {number}{header}")
        if inside is not None and any(not -0.5 <= x <= n - 0.5 for x, n in zip(point, inside, strict=True)):
            raise EvaluationError(
                f"{path}: expected points inside the volume of {_times(inside)} voxels, found {line!r} in line {number}"
            )
        points.append(point)
    return np.array(points)


def _three_numbers(line: str) -> list[float] | None:
    try:
        numbers = [float(word) for word in line.split(",")]
    except ValueError:
        return None
    return numbers if len(numbers) == 3 and all(map(math.isfinite, numbers)) else None


def find_field(folder: Path, pair: Pair) -> Path:
    """The file of a pair's displacement, under any name that is accepted.

    Raises:
        EvaluationError: if there is none.
    """
    candidates = [folder / f"{name}{suffix}" for name in pair.field_names for suffix in SUFFIXES]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise EvaluationError(f"{candidates[0]}: expected a displacement, found no such file")
    return found


@dataclass(frozen=True)
class FieldFile:
    """A displacement file, opened but not read.

    Attributes:
        path: of the file.
        shape, dtype: of what it holds, as it is on disk.
        read: gives the array.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], NDArray[Any]]


def open_field(path: Path) -> FieldFile:
    """Opens a displacement file.

    Args:
        path: ``.nii.gz``, or ``.npz`` with one array.

    Raises:
        EvaluationError: if it is neither.
    """
    try:
        if path.suffix == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                if len(archive.files) != 1:
                    listed = f" ({', '.join(archive.files)})" if archive.files else ""
                    raise EvaluationError(f"{path}: expected one array, found {len(archive.files)}{listed}")
                array: NDArray[Any] = archive[archive.files[0]]
            return FieldFile(path, array.shape, array.dtype, lambda: array)
        image: Any = nibabel.load(path)
        return FieldFile(path, image.shape, image.get_data_dtype(), lambda: np.asanyarray(image.dataobj))
    except UNREADABLE as error:
        raise EvaluationError(f"{path}: expected a whole displacement file, but it cannot be read: {error}") from error


def load_field(file: FieldFile) -> NDArray[Any]:
    """What a displacement file holds.

    Raises:
        EvaluationError: if it is cut off or broken.
    """
    try:
        return file.read()
    except UNREADABLE as error:
        raise EvaluationError(f"{file.path}: expected a whole displacement file, but it cannot be read: {error}") from error


def is_field_dtype(dtype: np.dtype[Any]) -> bool:
    """Whether the challenge takes displacements of this type, in either byte order."""
    return dtype.newbyteorder("=") in FIELD_DTYPES


def read_field(path: Path, *, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """A displacement ``(H, W, D, 3)``, voxels, fixed to moving.

    Args:
        path: as for ``open_field``.
        shape: of the fixed image.

    Raises:
        EvaluationError: if it is misshapen, not float32 (or float16), not finite, or cannot be read.
    """
    file = open_field(path)
    if file.shape != (*shape, 3):
        hint = "; the components have to be the last axis" if file.shape == (3, *shape) else ""
        raise EvaluationError(f"{path}: expected shape {(*shape, 3)}, found {file.shape}{hint}")
    if not is_field_dtype(file.dtype):
        raise EvaluationError(f"{path}: expected float32, found {file.dtype}")
    field = np.asarray(load_field(file), dtype=np.float32)
    broken = field.size - int(np.isfinite(field).sum())
    if broken:
        raise EvaluationError(f"{path}: expected finite displacements, found {broken} values that are NaN or infinite")
    return field


def read_grid(path: Path) -> tuple[tuple[int, int, int], Array]:
    """Shape and voxel size (mm) of an image, from its header.

    Raises:
        EvaluationError: if it cannot be read.
    """
    try:
        header = nibabel.load(path).header
        height, width, depth = header.get_data_shape()[:3]  # type: ignore[attr-defined]
        return (height, width, depth), np.asarray(header.get_zooms()[:3], dtype=np.float64)  # type: ignore[attr-defined]
    except UNREADABLE as error:
        raise EvaluationError(f"{path}: expected a 3D image, but it cannot be read: {error}") from error


def read_affine(path: Path) -> Array:
    """Affine of an image or displacement file, ``(4, 4)``, voxel to world in mm.

    Raises:
        EvaluationError: if it cannot be read.
    """
    try:
        return np.asarray(nibabel.load(path).affine, dtype=np.float64)  # type: ignore[attr-defined]
    except UNREADABLE as error:
        raise EvaluationError(f"{path}: expected an image, but it cannot be read: {error}") from error


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
