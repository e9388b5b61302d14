"""The files of a result: displacement, ITK transform, inverse, warped moving images, report.

With one moving image they are ``displacement.nii.gz``, ``transform.h5``, ``inverse.nii.gz`` and ``warped.nii.gz``; with
several, those of a single moving image have its name appended (``warped_t2.nii.gz``).
"""

import contextlib
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from mcbo.api.transform import Direction, Transform, Unit
from mcbo.core.errors import InputError
from mcbo.core.log import log
from mcbo.core.types import Judgement
from mcbo.geometry.resample import resample
from mcbo.io.files import digest, prepare_folder
from mcbo.io.image_like import ImageLike
from mcbo.io.images import write_any
from mcbo.io.itk_files import suffix_of, write_transform
from mcbo.io.microscopy.images import name_of_image
from mcbo.io.nifti import write_displacement
from mcbo.methods.config import Preset
from mcbo.methods.world import Placed
from mcbo.report import REPORT, CaseReport, earlier_cases, write_report
from mcbo.runtime import describe_device

KINDS = ("transform", "inverse", "warped")
"""What is written besides the displacement."""

CASE = "result"
"""The name of the only case in the report."""

_SUFFIXES = {"displacement": ".nii.gz", "transform": ".h5", "inverse": ".nii.gz", "warped": ".nii.gz"}


def labels_of(paths: Sequence[str]) -> list[str]:
    """Unique short names for moving images: of their files, else ``moving``."""
    labels: list[str] = []
    for text in paths:
        path = Path(name_of_image(Path(text)).partition("/")[0])
        stem = re.sub(r"[^\w.-]", "_", path.name.removesuffix(suffix_of(path))) or "moving"
        label, number = stem, 1
        while label in labels:
            number += 1
            label = f"{stem}-{number}"
        labels.append(label)
    return labels


def file_names(labels: Sequence[str], *, shared: Sequence[str]) -> list[dict[str, str]]:
    """File names by kind for each moving image, with one file for all of the ``shared`` kinds."""
    return [
        {
            kind: f"{kind}{suffix}" if len(labels) == 1 or kind in shared else f"{kind}_{label}{suffix}"
            for kind, suffix in _SUFFIXES.items()
        }
        for label in labels
    ]


def _shared(transforms: Sequence[Transform]) -> list[str]:
    """The kinds with one file for all moving images."""
    if any(transform.tensor is not transforms[0].tensor for transform in transforms):
        return []
    one_grid = all(transform.moving.matches(transforms[0].moving) for transform in transforms)
    return ["displacement", "transform", *(["inverse"] if one_grid else [])]


def _remove_earlier(folder: Path, replaced: Set[str]) -> None:
    """Removes files of an earlier result that this one does not replace, else they would be taken for this one's.

    Only files with names like ours that are still as the earlier report says.
    """
    earlier = earlier_cases(folder / REPORT, None).get(CASE, CaseReport())
    for name, before in earlier.written.items():
        ours = any(re.fullmatch(rf"{kind}(_[\w.-]+)?{re.escape(suffix)}", name) for kind, suffix in _SUFFIXES.items())
        if ours and name not in replaced and digest(folder / name) == before is not None:
            with contextlib.suppress(OSError):
                (folder / name).unlink()
                log.info("%s is removed: it belongs to an earlier result", folder / name)


def is_written(
    folder: Path,
    config: Preset,
    inputs: Mapping[str, str | None],
    settings: Mapping[str, object],
    labels: Sequence[str],
    kinds: Sequence[str],
) -> bool:
    """Whether an earlier run into a folder did the same, and all its files are intact."""
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
        judgements: of each, where the preset judges its result; else empty.
        config: the preset, as used.
        report: the contents of ``report.json``.
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
        """What was chosen and why; None for presets that do not judge their result."""
        return self.judgements[0] if self.judgements else None

    @property
    def confidence(self) -> float | None:
        """From about 0 for unrelated images to 1; None for presets that do not judge their result."""
        return self.judgements[0].confidence if self.judgements else None

    def warp(
        self,
        image: ImageLike,
        *,
        labels: bool = False,
        outside: float = 0.0,
        spacing: Sequence[float] | str | None = None,
        channel: int | None = None,
        time: int | None = None,
    ) -> NDArray[np.generic]:
        """Warps an image in the space of the moving image onto the fixed grid; see ``Transform.warp``."""
        return self.transforms[0].warp(image, labels=labels, outside=outside, spacing=spacing, channel=channel, time=time)

    def warp_points(
        self, points: ArrayLike, *, unit: Unit = "voxel", direction: Direction = "fixed-to-moving"
    ) -> NDArray[np.float64]:
        """Maps points of one image to the other; see ``Transform.warp_points``."""
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
            folder: created if missing; files of an earlier result are replaced.
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
        folder, kinds = Path(folder), ["displacement", *(kind for kind in KINDS if kind not in without)]
        prepare_folder(folder)
        names = file_names(self._labels, shared=_shared(self.transforms))
        _remove_earlier(folder, {name[kind] for name in names for kind in kinds})
        written: dict[str, str | None] = {}
        for transform, moving, name in zip(self.transforms, self._movings, names, strict=True):
            due = [kind for kind in kinds if name[kind] not in written]
            for kind in reversed(due):  # the displacement last, so that the result is complete where it exists
                _write(folder / name[kind], kind, transform, moving)
            for kind in due:
                written[name[kind]] = digest(folder / name[kind])
                log.debug("%s written", folder / name[kind])
        files = {label: {kind: name[kind] for kind in kinds} for label, name in zip(self._labels, names, strict=True)}
        report = self.report.model_copy(update={"files": files, "written": written})
        write_report(folder / REPORT, {CASE: report}, self.config, describe_device(self._device))
        return [*(folder / name for name in written), folder / REPORT]


def _write(path: Path, kind: str, transform: Transform, moving: Placed) -> None:
    if kind == "warped":
        volume = moving.volume.to(transform.tensor.device)
        write_any(path, resample(volume, moving.grid, transform.fixed, displacement=transform.tensor), transform.fixed)
    elif kind == "transform":
        write_transform(path, transform.tensor, transform.fixed)
    else:
        shown = transform.inverse() if kind == "inverse" else transform
        write_displacement(path, shown.tensor, shown.affine)
