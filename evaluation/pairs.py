"""The pairs of a dataset, and the files that belong to them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.errors import EvaluationError, shown
from evaluation.files import check_inside, entry_path, read_json

SPLITS: dict[str, tuple[str, ...]] = {
    "val": ("registration_val", "validation_paired", "validation"),
    "test": ("registration_test", "test_paired_images"),
    "train": ("training_paired_images",),
}
"""Keys of a split's pairs in the dataset JSON; the first list that is present and not empty counts."""

_NAME = re.compile(r".+_(?P<case>[0-9]{4})_(?P<channel>[0-9]{4})\.nii(\.gz)?")


@dataclass(frozen=True)
class Pair:
    """A fixed and a moving image of a dataset.

    Attributes:
        fixed, moving: the image files, in a folder ``images*``.
        root: the folder that files of the pair may not leave through links; None allows it.
    """

    fixed: Path
    moving: Path
    root: Path | None = None

    @property
    def field_name(self) -> str:
        """File name of the displacement, without suffix: ``disp_0099_0000_0099_0001``."""
        return "_".join(("disp", *parse_name(self.fixed), *parse_name(self.moving)))

    @property
    def key(self) -> str:
        """As the official programs call it: ``0099_0000<--0099_0001``."""
        return "<--".join("_".join(parse_name(path)) for path in (self.fixed, self.moving))

    @property
    def field_files(self) -> list[str]:
        """The file names that are accepted for the displacement; the short ones where the channels are 0000 and 0001."""
        (fixed, fixed_channel), (moving, moving_channel) = parse_name(self.fixed), parse_name(self.moving)
        short = [f"disp_{fixed}_{moving}"] if (fixed_channel, moving_channel) == ("0000", "0001") else []
        return [name + suffix for name in (self.field_name, *short) for suffix in (".nii.gz", ".npz")]

    def beside(self, kind: str, suffix: str | None = None) -> tuple[Path, Path]:
        """The files ``beside`` the fixed and the moving image, such as their landmarks.

        Raises:
            EvaluationError: if a link leads out of the dataset's folder.
        """
        paths = beside(self.fixed, kind, suffix), beside(self.moving, kind, suffix)
        if self.root is not None:
            for path in paths:
                check_inside(path, self.root, str(path))
        return paths


def parse_name(path: Path) -> tuple[str, str]:
    """Case and channel of an image's file name; EvaluationError if that is not ``TASK_CASE_CHANNEL.nii.gz``."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise EvaluationError(f"{path}: expected a file name like ReMIND2Reg_0099_0001.nii.gz")
    return match["case"], match["channel"]


def beside(image: Path, kind: str, suffix: str | None = None) -> Path:
    """The file of a kind for an image: ``imagesTr/X.nii.gz`` → ``landmarksTr/X.csv``, ``labelsTr/X.nii.gz`` and so on."""
    name = image.name if suffix is None else re.sub(r"\.nii(\.gz)?$", suffix, image.name)
    return image.parent.parent / image.parent.name.replace("images", kind) / name


def read_pairs(dataset: Path, *, split: str = "val", trust_paths: bool = False) -> list[Pair]:
    """The pairs of a split (``val``, ``test`` or ``train``) of a dataset JSON.

    Raises:
        EvaluationError: if there are none, a file lies outside the dataset's folder and ``trust_paths`` does not allow it, or
            the JSON is malformed.
    """
    content = read_json(dataset)
    key = next((key for key in SPLITS[split] if content.get(key)), None)
    if key is None:
        raise EvaluationError(f"{dataset}: expected pairs under {' or '.join(SPLITS[split])}, found none")
    return pairs_of(content[key], dataset, f"{dataset}: {key}", trust_paths=trust_paths)


def pairs_of(listed: object, dataset: Path, where: str, *, trust_paths: bool = False) -> list[Pair]:
    """Pairs from a list of ``{"fixed": PATH, "moving": PATH}``, relative to the dataset JSON; each counts once.

    Raises:
        EvaluationError: as ``read_pairs``; ``where`` is the place of the list in its file.
    """
    pairs = []
    for i, entry in enumerate(listed if isinstance(listed, list) else [listed]):
        if not isinstance(entry, dict) or not {"fixed", "moving"} <= set(entry):
            raise EvaluationError(f'{where}: expected pairs {{"fixed": PATH, "moving": PATH}}, found {shown(entry)}')
        fixed, moving = (
            entry_path(dataset.parent, entry[role], f"{where}[{i}]['{role}']", trusted=trust_paths)
            for role in ("fixed", "moving")
        )
        parse_name(fixed)
        parse_name(moving)
        pairs.append(Pair(fixed, moving, None if trust_paths else dataset.parent))
    return list(dict.fromkeys(pairs))


def find_field(folder: Path, pair: Pair, names: Sequence[str] = ()) -> Path:
    """The file of a pair's displacement, under any accepted name, or one of ``names``; EvaluationError if there is none."""
    candidates = [folder / name for name in (*pair.field_files, *names)]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise EvaluationError(f"{candidates[0]}: expected a displacement, found no such file")
    return found
