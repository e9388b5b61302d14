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

from mcbo.api.transform import Direction, Transform, Unit, sentence_of
from mcbo.core.errors import InputError, ShapeError
from mcbo.core.log import log
from mcbo.core.memory import within_host_memory
from mcbo.core.types import Judgement
from mcbo.geometry.grid import Grid
from mcbo.geometry.resample import resample
from mcbo.geometry.shift import Shift, shift_of
from mcbo.geometry.units import MM, symbol_of
from mcbo.io.files import check_inputs_stay, digest, identity, no_empty_folder, prepare_folder, suffix_of
from mcbo.io.image_like import ImageLike
from mcbo.io.images import write_any
from mcbo.io.itk_files import write_transform
from mcbo.io.microscopy.images import name_of_image
from mcbo.io.nifti import write_displacement
from mcbo.io.nifti_header import read_header
from mcbo.methods.config import Preset
from mcbo.methods.world import Placed
from mcbo.report import REPORT, CaseReport, ShiftReport, earlier_cases, write_report
from mcbo.runtime import describe_device

KINDS = ("transform", "inverse", "warped")
"""What is written besides the displacement."""

EXTRAS = ("uncertainty", "motion", "shift")
"""What is written where it is asked for: a bound of the errors, the length of the displacement, and that beyond rigid."""

CASE = "result"
"""The name of the only case in the report."""

_SUFFIXES = dict.fromkeys(("displacement", *KINDS, *EXTRAS), ".nii.gz") | {"transform": ".h5"}


_STEPS = 128
"""Of lengths along the shortest side of a voxel; finer ones would only make files larger."""


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


def possible_files(folder: Path, labels: Sequence[str]) -> list[Path]:
    """What ``Result.save`` may write into a folder, whatever the moving images share."""
    names = {
        name for shared in ((), tuple(_SUFFIXES)) for files in file_names(labels, shared=shared) for name in files.values()
    }
    return [*(folder / name for name in sorted(names)), folder / REPORT]


def _shared(transforms: Sequence[Transform]) -> list[str]:
    """The kinds with one file for all moving images."""
    if any(transform.tensor is not transforms[0].tensor for transform in transforms):
        return []
    one_grid = all(transform.moving.matches(transforms[0].moving) for transform in transforms)
    return ["displacement", "transform", *EXTRAS, *(["inverse"] if one_grid else [])]


def _remove_earlier(folder: Path, replaced: Set[str], inputs: Sequence[Path]) -> None:
    """Removes files of an earlier result that this one does not replace, else they would be taken for this one's.

    Only files with names like ours that are still as the earlier report says, and no inputs.
    """
    used = {identity(path) for path in inputs}
    earlier = earlier_cases(folder / REPORT, None).get(CASE, CaseReport())
    for name, before in earlier.written.items():
        ours = any(re.fullmatch(rf"{kind}(_[\w.-]+)?{re.escape(suffix)}", name) for kind, suffix in _SUFFIXES.items())
        if (
            ours
            and name not in replaced
            and identity(folder / name) not in used
            and digest(folder / name) == before is not None
        ):
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


def moving_grids(displacement: Path, fixed: Grid) -> list[Grid]:
    """The grids of the moving images of a displacement, as far as the report beside it tells; ``fixed`` is that of its file.

    A report of a dataset says that voxels correspond by index, so that both grids are one; one of a single registration names
    inverses, which lie on those grids.
    """
    grids = []
    for case in earlier_cases(displacement.parent / REPORT, None).values():
        if case.coordinates == "voxels" and displacement.name in case.written:
            return [fixed]
        for files in case.files.values():
            if files.get("displacement") == displacement.name and "inverse" in files:
                with contextlib.suppress(InputError, ShapeError, ValueError):  # it is gone, or was replaced
                    header = read_header(displacement.with_name(files["inverse"]))
                    height, width, depth = header.shape[:3]
                    grids.append(Grid((height, width, depth), header.affine))
    return grids


def uncertainty_beside(displacement: Path) -> Path | None:
    """The bound of the errors of a displacement, as far as the report beside it tells."""
    for case in earlier_cases(displacement.parent / REPORT, None).values():
        for files in case.files.values():
            if files.get("displacement") == displacement.name and "uncertainty" in files:
                return displacement.with_name(files["uncertainty"])
    return None


@dataclass(frozen=True, eq=False)
class Result:
    """The result of a registration.

    Attributes:
        transforms: one for each moving image; the methods below are those of the first. Where modalities are fused, all have
            the same displacement.
        judgements: of each, where the preset judges its result; else empty.
        config: the preset, as used.
        report: the contents of ``report.json``.
        fixed_image, moving_images: as they were read, on their grids.
        bounds: of the errors of each transform, ``(1, 1, H, W, D)`` mm; empty unless ``register`` was asked for them.
    """

    transforms: tuple[Transform, ...]
    judgements: tuple[Judgement, ...]
    config: Preset
    report: CaseReport
    fixed_image: Placed
    moving_images: tuple[Placed, ...]
    _labels: tuple[str, ...]
    _device: torch.device
    _sources: tuple[Path, ...] = ()
    bounds: tuple[torch.Tensor, ...] = ()

    def __repr__(self) -> str:
        return f"<mcbo.Result: {self.summary}>"

    def _repr_html_(self) -> str:
        from mcbo.api.notebook import html_of  # here, as it imports matplotlib

        return html_of(self.transforms[0], self.fixed_image, self.moving_images[0], text=self.summary)

    @property
    def summary(self) -> str:
        """What was chosen, how sure it is, why it is not the full result, and how far it moves: one line for each transform."""
        lines = []
        for number, transform in enumerate(self.transforms):
            judged = [self.judgements[number].summary] if self.judgements else []
            lines.append("; ".join([*judged, sentence_of(transform.tensor, transform.fixed)]))
        return "\n".join(dict.fromkeys(lines))

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

    @property
    def uncertainty(self) -> NDArray[np.float32] | None:
        """A length for each voxel of the fixed grid that four of five errors stay below: ``(H, W, D)`` mm, NaN where unknown.

        None unless ``register`` was asked for it.
        """
        return self.bounds[0][0, 0].numpy() if self.bounds else None

    def shift(self, number: int = 0) -> Shift:
        """The displacement of a transform, split into a rigid motion and the rest; see ``geometry/shift.py``."""
        transform = self.transforms[number]
        return shift_of(transform.tensor, transform.fixed, self.fixed_image.known())

    def warp(
        self,
        image: ImageLike,
        *,
        labels: bool = False,
        outside: float = 0.0,
        spacing: Sequence[float] | str | None = None,
        channel: int | None = None,
        time: int | None = None,
    ) -> Any:
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

    @within_host_memory("save")
    def save(self, folder: str | Path, *, without: Sequence[str] = (), also: Sequence[str] = ()) -> list[Path]:
        """Writes displacement, ITK transform, inverse, warped moving images and ``report.json``; see ``result.py``.

        Args:
            folder: created if missing; files of an earlier result are replaced.
            without: what to leave out, of ``transform``, ``inverse``, ``warped``.
            also: what to add, of ``uncertainty``, if ``register`` was asked for it, ``motion``, the length of the displacement,
                and ``shift``, that of its part beyond a rigid motion; in the unit of the fixed image.

        Returns:
            The files.

        Raises:
            InputError: for another word in ``without`` or ``also``, or if a file would replace one that was read.
            OutputError: if they cannot be written.
        """
        without = [without] if isinstance(without, str) else without
        if unknown := [kind for kind in without if kind not in KINDS]:
            raise InputError(f"without: expected some of {', '.join(KINDS)}, got {', '.join(unknown)}")
        also = [also] if isinstance(also, str) else also
        if unknown := [kind for kind in also if kind not in EXTRAS]:
            raise InputError(f"also: expected some of {', '.join(EXTRAS)}, got {', '.join(unknown)}")
        if "uncertainty" in also and not self.bounds:
            raise InputError("also: expected a result whose uncertainty was asked for: register(..., uncertainty=True)")
        kinds = ["displacement", *(kind for kind in KINDS if kind not in without), *(kind for kind in EXTRAS if kind in also)]
        folder = Path(folder)
        names = file_names(self._labels, shared=_shared(self.transforms))
        check_inputs_stay([*(folder / name[kind] for name in names for kind in kinds), folder / REPORT], self._sources)
        with no_empty_folder(folder):
            prepare_folder(folder)
            written = self._write(folder, names, kinds)
        return [*(folder / name for name in written), folder / REPORT]

    def _told(self, shift: Shift, number: int) -> ShiftReport:
        """What the report says of a shift, beside the uncertainty if that is known."""
        told = ShiftReport.model_validate(shift, from_attributes=True)
        known = self.bounds[number][self.bounds[number].isfinite()] if self.bounds else torch.empty(0)
        return told.model_copy(update={"uncertainty_mm": float(known.median())}) if len(known) else told

    def _write(self, folder: Path, names: Sequence[Mapping[str, str]], kinds: Sequence[str]) -> list[str]:
        """Writes the files of ``kinds`` and the report; returns the names of the former."""
        written: dict[str, str | None] = {}
        shifts: dict[str, ShiftReport] = {}
        for number, (transform, moving, name) in enumerate(zip(self.transforms, self.moving_images, names, strict=True)):
            due = [kind for kind in kinds if name[kind] not in written]
            shift = self.shift(number) if {"motion", "shift"} & set(due) else None
            if shift is not None:
                shifts[self._labels[number]] = self._told(shift, number)
            volumes = {
                "uncertainty": self.bounds[number] if self.bounds else None,
                "motion": None if shift is None else shift.length_mm,
                "shift": None if shift is None else shift.beyond_mm,
            }
            for kind in reversed(due):  # the displacement last, so that the result is complete where it exists
                _write(folder / name[kind], kind, transform, moving, volumes.get(kind))
            for kind in due:
                written[name[kind]] = digest(folder / name[kind])
                log.debug("%s written", folder / name[kind])
        files = {label: {kind: name[kind] for kind in kinds} for label, name in zip(self._labels, names, strict=True)}
        report = self.report.model_copy(update={"files": files, "written": written} | ({"shift": shifts} if shifts else {}))
        unit, judged = self.fixed_image.grid.unit, zip(self._labels, self.judgements, strict=False)  # or none is judged
        doubtful = [label for label, judgement in judged if self.config.doubt(judgement)]
        for label, one in shifts.items():
            if label in doubtful:
                log.warning("%s: its motion and shift mean nothing, as its confidence is low", label)
            else:
                log.info("%s: %s", label, one.summary(symbol_of(unit), 1 / MM[unit]))
        _remove_earlier(folder, written.keys(), self._sources)
        write_report(folder / REPORT, {CASE: report}, self.config, describe_device(self._device))
        return list(written)


def _write(path: Path, kind: str, transform: Transform, moving: Placed, volume_mm: torch.Tensor | None) -> None:
    """Writes a file of a result; ``volume_mm``, ``(1, 1, H, W, D)``, is that of ``EXTRAS``, written in the image's unit."""
    if volume_mm is not None:
        step = min(transform.fixed.spacing_mm) / _STEPS
        write_any(path, (volume_mm / step).round() * (step / MM[transform.fixed.unit]), transform.fixed)
    elif kind == "warped":
        volume = moving.volume.to(transform.tensor.device)
        write_any(path, resample(volume, moving.grid, transform.fixed, displacement=transform.tensor), transform.fixed)
    elif kind == "transform":
        write_transform(path, transform.tensor, transform.fixed, transform.moving)
    else:
        shown = transform.inverse() if kind == "inverse" else transform
        write_displacement(path, shown.tensor, shown.affine, shown.fixed.unit)
