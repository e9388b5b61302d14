"""The files of a result: displacement, ITK transform, inverse, warped moving images, report.

With one moving image they are ``displacement.nii.gz``, ``transform.h5``, ``inverse.nii.gz`` and ``warped.nii.gz``; with
several, what belongs to one of them alone has its name behind it (``warped_t2.nii.gz``).
"""

import contextlib
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from mcbo.api.transform import Transform
from mcbo.core.errors import InputError
from mcbo.core.log import log
from mcbo.core.types import Judgement, Volume
from mcbo.geometry.grid import Grid
from mcbo.geometry.resample import resample
from mcbo.io.files import digest, prepare_folder
from mcbo.io.image_like import ImageLike
from mcbo.io.images import write_any
from mcbo.io.itk_files import suffix_of, write_transform
from mcbo.io.nifti import write_displacement
from mcbo.methods.config import Preset
from mcbo.methods.world import Placed
from mcbo.report import REPORT, CaseReport, earlier_cases, write_report
from mcbo.runtime import describe_device

KINDS = ("transform", "inverse", "warped")
"""What is written beside the displacement."""

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
    report: CaseReport,
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
        report: what the report says; the files are added.
        config: the preset.
        device: where it ran.

    Returns:
        The files.

    Raises:
        OutputError: if they cannot be written.
    """
    prepare_folder(folder)
    names = file_names(labels, shared=_shared(transforms))
    _remove_earlier(folder, {name[kind] for name in names for kind in ("displacement", *kinds)})
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
    files = {label: {kind: name[kind] for kind in ("displacement", *kinds)} for label, name in zip(labels, names, strict=True)}
    report = report.model_copy(update={"files": files, "written": written})
    write_report(folder / REPORT, {CASE: report}, config, describe_device(device))
    return [*(folder / name for name in written), folder / REPORT]


def _remove_earlier(folder: Path, replaced: Set[str]) -> None:
    """Takes away what an earlier result left there and this one has not: it would be taken for this one's.

    Only files of our names that are still as the earlier report says.
    """
    earlier = earlier_cases(folder / REPORT, None).get(CASE, CaseReport())
    for name, before in earlier.written.items():
        ours = any(re.fullmatch(rf"{kind}(_[\w.-]+)?{re.escape(suffix)}", name) for kind, suffix in _SUFFIXES.items())
        if ours and name not in replaced and digest(folder / name) == before is not None:
            with contextlib.suppress(OSError):
                (folder / name).unlink()
                log.info("%s is removed: it is of an earlier result", folder / name)


def is_written(
    folder: Path,
    config: Preset,
    inputs: Mapping[str, str | None],
    settings: Mapping[str, object],
    labels: Sequence[str],
    kinds: Sequence[str],
) -> bool:
    """Whether an earlier run into a folder has done the same, and all it wrote is there as it was."""
    earlier = earlier_cases(folder / REPORT, config).get(CASE)
    due = {"displacement", *kinds}
    if earlier is None or list(earlier.files) != list(labels) or any(due - files.keys() for files in earlier.files.values()):
        return False
    return earlier.holds(inputs, {folder / files[kind] for files in earlier.files.values() for kind in due}, settings)


@dataclass(frozen=True, eq=False)
class Result:
    """The result of a registration.

    Attributes:
        transforms: one for each moving image; the methods below are those of the first. Where modalities are fused, all have
            the same displacement.
        judgements: what is to be believed of each, where the preset judges; else empty.
        config: the preset, as used.
        report: what ``report.json`` says of it.
    """

    transforms: tuple[Transform, ...]
    judgements: tuple[Judgement, ...]
    config: Preset
    report: CaseReport
    _movings: tuple[Placed, ...]
    _labels: tuple[str, ...]
    _device: torch.device

    @property
    def displacement(self) -> NDArray[np.float32]:
        """``(H, W, D, 3)`` float32 voxels of the fixed grid, fixed to moving."""
        return self.transforms[0].displacement

    @property
    def affine(self) -> NDArray[np.float64]:
        """Of the fixed image: voxel to world, RAS mm, ``(4, 4)``."""
        return self.transforms[0].affine

    @property
    def judgement(self) -> Judgement | None:
        """What was chosen and why; None for presets that do not judge."""
        return self.judgements[0] if self.judgements else None

    @property
    def confidence(self) -> float | None:
        """From about 0 for unrelated images to 1; None for presets that do not judge."""
        return self.judgements[0].confidence if self.judgements else None

    def warp(self, image: ImageLike, *, labels: bool = False, outside: float = 0.0) -> NDArray[np.generic]:
        """An image that lies as the moving image does, on the fixed grid; see ``Transform.warp``."""
        return self.transforms[0].warp(image, labels=labels, outside=outside)

    def warp_points(
        self,
        points: ArrayLike,
        *,
        unit: Literal["voxel", "mm"] = "voxel",
        direction: Literal["fixed-to-moving", "moving-to-fixed"] = "fixed-to-moving",
    ) -> NDArray[np.float64]:
        """Where points of one image lie in the other; see ``Transform.warp_points``."""
        return self.transforms[0].warp_points(points, unit=unit, direction=direction)

    def inverse(self) -> Transform:
        """From moving to fixed, on the moving image's grid."""
        return self.transforms[0].inverse()

    def to_itk(self) -> Any:
        """A ``SimpleITK.DisplacementFieldTransform``, fixed to moving, LPS mm."""
        return self.transforms[0].to_itk()

    def save(self, folder: str | Path, *, without: Sequence[str] = ()) -> list[Path]:
        """Writes displacement, ITK transform, inverse, warped moving images and ``report.json``; see ``result.py``.

        Args:
            folder: made if need be; files of an earlier result are replaced.
            without: what to leave out, of ``transform``, ``inverse``, ``warped``.

        Returns:
            The files.

        Raises:
            InputError: for another word in ``without``.
            OutputError: if they cannot be written.
        """
        without = [without] if isinstance(without, str) else without
        if unknown := [kind for kind in without if kind not in KINDS]:
            raise InputError(f"without: expected some of {', '.join(KINDS)}, got {', '.join(unknown)}")
        movings = [(moving.volume, moving.grid) for moving in self._movings]
        kinds = [kind for kind in KINDS if kind not in without]
        return write_result(Path(folder), self.transforms, movings, self._labels, kinds, self.report, self.config, self._device)
