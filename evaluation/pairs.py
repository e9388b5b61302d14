"""What is to be judged: the pairs of a dataset, and which files belong to them."""

import re
from dataclasses import dataclass
from pathlib import Path

from evaluation.errors import EvaluationError, shown
from evaluation.files import check_inside, entry_path, read_json

SPLITS: dict[str, tuple[str, ...]] = {
    "val": ("registration_val", "validation_paired", "validation"),
    "test": ("registration_test", "test_paired_images"),
    "train": ("training_paired_images",),
}
"""Where the pairs of a split stand in the dataset JSON; the first list that is there and not empty counts."""

SUFFIXES = (".nii.gz", ".npz")
_NAME = re.compile(r"(?P<task>.+)_(?P<case>[0-9]{4})_(?P<channel>[0-9]{4})\.nii(\.gz)?")


@dataclass(frozen=True)
class Pair:
    """A fixed and a moving image of a dataset.

    Attributes:
        fixed, moving: the image files, in a folder ``images*``.
        root: the folder that the files which belong to them may not leave; anything goes, if None.
    """

    fixed: Path
    moving: Path
    root: Path | None = None

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

    def beside(self, kind: str, suffix: str | None = None) -> tuple[Path, Path]:
        """What belongs to the fixed and to the moving image, such as their landmarks; see ``beside``.

        Raises:
            EvaluationError: if a link leads out of the dataset's folder.
        """
        paths = beside(self.fixed, kind, suffix), beside(self.moving, kind, suffix)
        for path in paths if self.root is not None else ():
            check_inside(path, self.root or path, str(path))
        return paths


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


def read_pairs(dataset: Path, *, split: str = "val", trust_paths: bool = False) -> list[Pair]:
    """The pairs of a split of a dataset JSON.

    Args:
        dataset: the JSON.
        split: ``val``, ``test`` or ``train``.
        trust_paths: let files lie outside of the dataset's folder.

    Raises:
        EvaluationError: if there are none, or the file is not such a JSON.
    """
    content = read_json(dataset)
    key = next((key for key in SPLITS[split] if content.get(key)), None)
    if key is None:
        raise EvaluationError(f"{dataset}: expected pairs under {' or '.join(SPLITS[split])}, found none")
    return pairs_of(content[key], dataset, f"{dataset}: {key}", trust_paths=trust_paths)


def pairs_of(listed: object, dataset: Path, where: str, *, trust_paths: bool = False) -> list[Pair]:
    """Pairs from a list of ``{"fixed": PATH, "moving": PATH}``, relative to the dataset JSON.

    Args:
        listed: the list.
        dataset: the JSON beside which the images lie.
        where: the list stands, for the sentences.
        trust_paths: let files lie outside of the dataset's folder.

    Raises:
        EvaluationError: if it is not such a list.
    """
    pairs = []
    for i, entry in enumerate(listed if isinstance(listed, list) else [listed]):
        if not isinstance(entry, dict) or not {"fixed", "moving"} <= set(entry):
            raise EvaluationError(f'{where}: expected pairs {{"fixed": PATH, "moving": PATH}}, found {shown(entry)}')
        fixed, moving = (
            entry_path(dataset.parent, entry[role], f"{where}[{i}]['{role}']", trusted=trust_paths)
            for role in ("fixed", "moving")
        )
        pair = Pair(fixed, moving, None if trust_paths else dataset.parent)
        parse_name(pair.fixed)
        parse_name(pair.moving)
        pairs.append(pair)
    return list(dict.fromkeys(pairs))  # a pair that is listed twice counts once


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
