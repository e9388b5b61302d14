"""Checks a submission as the organizers would, corrects what can be corrected, and writes zero displacements."""

import errno
import os
import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import nibabel
import numpy as np

from evaluation.errors import EvaluationError, reason
from evaluation.files import check_not_input, clear_left, identity, write_whole
from evaluation.images import (
    UNREADABLE,
    Array,
    Shape,
    field_problems,
    find_layout,
    load_field,
    open_field,
    read_affine,
    read_grid,
)
from evaluation.metrics import Field
from evaluation.pairs import Pair, find_field
from evaluation.validation.evidence import fits_better, leaves_volume, suspect, worse_than_none
from evaluation.validation.readings import in_itk_convention, likely_readings

_HEADER_BYTES = 352
"""Of a NIfTI file, before its values."""

MOSTLY_OUTSIDE = 0.5
"""A displacement that takes more of the voxels out of the volume is none in voxels."""


@dataclass
class Checked:
    """What was found about the displacement of a pair.

    Attributes:
        pair: the pair.
        path: its file, if there is one.
        problems: a line each, with remedies.
        corrected: the displacement without these problems; None if there are none, or if it cannot be had without loss.
        suspected: the mistake that landmarks or images speak for, if there is one.
        certain: whether nothing else can be wrong then.
    """

    pair: Pair
    path: Path | None = None
    problems: list[str] = field(default_factory=list)
    corrected: Field | None = None
    suspected: str = ""
    certain: bool = True


def unexpected(pairs: list[Pair], predictions: Path) -> list[str]:
    """Displacements of a folder that no pair asks for: a line each."""
    accepted = {name for pair in pairs for name in pair.field_files}
    return [
        f"{path}: expected no displacement of that name; rename it or remove it: no pair of the data set asks for it"
        for path in sorted(predictions.iterdir())
        if path.name.startswith("disp") and path.name not in accepted
    ]


def examine(pair: Pair, predictions: Path) -> Checked:
    """Looks for everything for which the organizers would refuse the displacement of a pair, or score it badly."""
    found = Checked(pair)
    try:
        shape, spacing = read_grid(pair.fixed)
        affine = read_affine(pair.fixed)
        moving_shape, _ = read_grid(pair.moving)
    except EvaluationError as error:
        found.problems.append(f"{error}; complete the data set: {pair.field_name} cannot be checked without it")
        return found
    try:
        found.path = find_field(predictions, pair)
    except EvaluationError as error:
        found.problems.append(f"{error}; write it, with zeros if there is nothing better")
        return found
    try:
        _examine_field(found, found.path, shape, spacing, affine)
    except EvaluationError as error:  # what was found before it remains
        found.problems.append(f"{error}; correct it and write it again")
        found.corrected = None
    if moving_shape != shape:
        found.problems.append(f"{pair.moving}: expected the grid of {pair.fixed.name}; resample it before registration")
        found.corrected = None
    return found


def _examine_field(found: Checked, path: Path, shape: Shape, spacing: Array, affine: Array) -> None:
    """Checks a displacement file; shape, spacing (mm) and affine are the fixed image's."""
    file = open_field(path)
    found.problems += field_problems(file, shape)
    if path.suffix != ".npz" and not np.allclose(read_affine(path), affine, atol=1e-3):
        expected = f"expected the affine of {found.pair.fixed.name}, found another; write it with that of the fixed image"
        found.problems.append(f"{path}: {expected}")
    layout = find_layout(file.shape, shape)
    if layout is not None and layout.axes is None:
        return
    displacement: Field = load_field(file)
    if layout is not None:
        displacement = np.ascontiguousarray(layout.arrange(displacement))
        if layout.itk:
            itk = in_itk_convention(affine).correct(displacement)
            displacement = displacement if fits_better(found.pair, displacement, itk) else itk
    if found.problems:
        found.corrected = displacement
    outside = leaves_volume(displacement)
    if outside > MOSTLY_OUTSIDE:
        without = (displacement - np.moveaxis(np.indices(shape), 0, -1)).astype(np.float32)
        if leaves_volume(without) < outside / 2:
            told = f"it takes {outside:.0%} of the voxels out of the volume; subtract the position p of each voxel"
            found.problems.append(f"{path}: suspected to hold positions, not displacements: {told}")
            found.corrected = displacement = without
    if mistake := suspect(found.pair, displacement, likely_readings(shape, spacing, affine)):
        found.suspected, found.certain = mistake.reading.name, mistake.cured
        more = "" if found.certain else "; something else may be wrong, too"
        found.problems.append(f"{path}: suspected to be {found.suspected}: {mistake.reading.remedy} ({mistake.told}{more})")
        found.corrected = mistake.reading.correct(displacement) if mistake.reading.lossless and mistake.cured else None
    elif leaves_volume(displacement) > MOSTLY_OUTSIDE:
        told = f"found some that take {outside:.0%} of the voxels out of the volume; write them in voxels of the fixed image"
        found.problems.append(f"{path}: expected displacements in voxels, {told}")
        found.corrected = None
    elif harm := worse_than_none(found.pair, displacement):
        found.problems.append(f"{path}: expected a displacement that helps, but {harm}; look at it before you send it")
        found.corrected = None


def fix(checked: Checked, output: Path) -> bool:
    """Writes the displacement of a pair without its problems: corrected, or as it is if there are none.

    Returns:
        Whether there is such a displacement.

    Raises:
        EvaluationError: if it cannot be written.
    """
    if checked.path is None or (checked.problems and checked.corrected is None):
        return False
    path = output / checked.path.name
    try:
        write_whole(path, partial(_write_fixed, checked))
    except UNREADABLE as error:
        raise EvaluationError(f"{path}: cannot be written: {reason(error)}") from error
    return True


def _write_fixed(checked: Checked, path: Path) -> None:
    if checked.corrected is None:
        shutil.copyfile(checked.path or "", path)
    elif path.suffix == ".npz":
        np.savez_compressed(path, checked.corrected)
    else:
        _save(nibabel.Nifti1Image(checked.corrected, read_affine(checked.pair.fixed)), path)


def write_zero(pairs: list[Pair], output: Path) -> None:
    """Writes a zero displacement per pair, on the fixed image's grid, each whole or not at all.

    Raises:
        EvaluationError: if an image cannot be read, a file cannot be written, or one would replace an image.
    """
    inputs = {identity(image): image for pair in pairs for image in (pair.fixed, pair.moving)}
    inputs.pop(None, None)
    for pair in pairs:
        check_not_input(output / f"{pair.field_name}.nii.gz", inputs)
    clear_left(output)
    for pair in pairs:
        shape, _ = read_grid(pair.fixed)
        path = output / f"{pair.field_name}.nii.gz"
        field = nibabel.Nifti1Image(np.zeros((*shape, 3), dtype=np.float32), read_affine(pair.fixed))
        try:
            write_whole(path, partial(_save, field))
        except UNREADABLE as error:
            raise EvaluationError(f"{path}: cannot be written: {reason(error)}") from error


def _save(field: nibabel.Nifti1Image, path: Path) -> None:
    """Writes a compressed image, and checks that its end arrived, which holds the size of what was compressed."""
    nibabel.save(field, path)
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        size = int.from_bytes(file.read(), "little")
    if size != (_HEADER_BYTES + np.asanyarray(field.dataobj).nbytes) % 2**32:
        raise OSError(errno.EIO, "its end did not arrive")
