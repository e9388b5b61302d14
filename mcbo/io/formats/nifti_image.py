"""NIfTI in one file, compressed or not, by a reader of our own."""

import math
from pathlib import Path

from torch import Tensor

from mcbo.core.types import Triple
from mcbo.geometry.grid import Grid
from mcbo.io.files import reading, regular_size
from mcbo.io.formats.format import DEFLATE, Claim, Format, check_memory
from mcbo.io.nifti import read_grid, read_voxels
from mcbo.io.nifti_header import read_header


def judge(path: Path) -> Claim:
    """What a header claims; raises ``InputError`` if the file cannot hold it."""
    header = read_header(path)
    count = math.prod(header.shape)
    return Claim(count, count * header.dtype.itemsize, regular_size(path, "an image"), DEFLATE)


def _read(path: Path, spacing_mm: Triple | None) -> tuple[Tensor, Grid]:
    del spacing_mm
    shape, affine = read_grid(path)
    with reading(path, "an image"):
        check_memory(math.prod(shape), 0)
        return read_voxels(path)[0], Grid(shape, affine)


FORMAT = Format("NIfTI", (".nii", ".nii.gz"), _read, judge)
