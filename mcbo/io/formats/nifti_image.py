"""NIfTI images, which lie in one place by most headers; by some in several, and then the user is told."""

import math
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from torch import Tensor

from mcbo.core.log import log
from mcbo.geometry.grid import Grid, is_sheared, largest_gap_mm
from mcbo.io import nifti
from mcbo.io.files import reading, regular_size
from mcbo.io.formats.format import DEFLATE, Claim, Format, check_memory
from mcbo.io.itk import read_grid
from mcbo.io.microscopy.selection import Selection
from mcbo.io.nifti_header import Header, read_header

_ITKS = "ITK, 3D Slicer and ANTs"


def place(header: Header) -> Grid:
    """The grid of a 3D image, with ITK's reading of the same header where that is another one, which is logged.

    Raises:
        ShapeError: if the image is not 3D.
    """
    grid = Grid(cast(tuple[int, int, int], header.shape), header.affine, header.unit)
    reasons = _reasons(header, grid)
    if not reasons:
        return grid
    theirs = read_grid(header.path)
    where = f"{header.path}: {' and '.join(reasons)}"
    if theirs is None:
        log.warning("%s; %s cannot read it", where, _ITKS)
        return grid
    if theirs.matches(grid):
        log.warning("%s, as %s have it", where, _ITKS)
        return grid
    other = next((name for name, form in _named(header).items() if form.matches(theirs)), None)
    hint = f"; --geometry {other} takes what they take" if other else ""
    log.warning("%s; %s place it up to %.3g mm elsewhere%s", where, _ITKS, largest_gap_mm(grid, theirs), hint)
    return replace(grid, in_itk=theirs.affine)


def _named(header: Header) -> dict[str, Grid]:
    shape = cast(tuple[int, int, int], header.shape)
    pairs = zip(("sform", "qform"), header.forms, strict=True)
    return {name: Grid(shape, affine) for name, affine in pairs if affine is not None}


def _reasons(header: Header, grid: Grid) -> list[str]:
    """Why readers may place the image differently, and what was taken."""
    forms = _named(header)
    if not forms:
        return ["neither its sform nor its qform is set, so its position is a guess: its center at 0"]
    found = []
    if len(forms) == 2 and not forms["sform"].matches(forms["qform"]):
        taken = next(name for name, form in forms.items() if form.matches(grid))
        gap = largest_gap_mm(forms["sform"], forms["qform"])
        found.append(f"its sform and qform differ by up to {gap:.3g} mm; the {taken} was taken")
    if is_sheared(header.affine):
        found.append("its axes are not at right angles")
    if "sform" in forms and not np.allclose(header.sizes_mm, forms["sform"].spacing_mm, rtol=1e-3):
        sizes = (f"{'×'.join(f'{size:.4g}' for size in triple)} mm" for triple in (header.sizes_mm, forms["sform"].spacing_mm))
        found.append("its voxels are {} by pixdim and {} by the sform, which was taken".format(*sizes))
    return found


def judge(path: Path) -> Claim:
    """What a header claims; raises ``InputError`` if the file cannot hold it."""
    header = read_header(path)
    count = math.prod(header.shape)
    return Claim(count, count * header.dtype.itemsize, regular_size(path, "an image"), DEFLATE)


def read_hashed(path: Path, selection: Selection) -> tuple[Tensor, Grid, str]:
    """As a format's ``read``, and the SHA-256 of the bytes that were read."""

    def check(header: Header) -> None:
        with reading(path, "an image"):
            check_memory(math.prod(nifti.check_image(header)), 0)

    header, volume, sha256 = nifti.read_voxels(path, form=selection.form, check=check)
    return volume, place(header), sha256


def _read(path: Path, selection: Selection) -> tuple[Tensor, Grid]:
    return read_hashed(path, selection)[:2]


FORMAT = Format("NIfTI", (".nii", ".nii.gz"), _read, judge)
