"""Reads a transform of any program but ITK as a displacement; what is not known here may be ITK's."""

from pathlib import Path

from mcbo.core.errors import InputError
from mcbo.core.types import Displacement
from mcbo.geometry.grid import Grid, displacement_of
from mcbo.io.files import reading, regular_size, suffix_of
from mcbo.io.foreign.fields import Vectors, read_vectors
from mcbo.io.foreign.linear import read_linear
from mcbo.io.itk_files import TRANSFORM_SUFFIXES
from mcbo.io.nifti_header import read_header

_NIFTI = (".nii", ".nii.gz")

_WARPS = {".mgz": "--inras", ".mgh": "--inras", ".m3z": "--inm3z"}
"""FreeSurfer's, by suffix, and how its converter is told of them."""


def read_foreign(
    path: Path, fixed: Grid | None, *, moving: Grid | None = None, vectors: Vectors | None = None
) -> tuple[Displacement, Grid] | None:
    """A transform from fixed to moving as a displacement, and its grid; None if the file is not one of those known here.

    Args:
        path: of NIfTI, the field has its own grid; of text, it is sampled on the fixed one.
        fixed: grid of the fixed image, if it is given.
        moving: grid of the moving image, for FSL's.
        vectors: what a field holds, where its header does not say.

    Raises:
        InputError: if it is known but cannot be read, needs a grid, or has another one than the fixed image.
    """
    suffix = suffix_of(path)
    regular_size(path, "a transform")
    if suffix in _WARPS:
        raise InputError(
            f"{path}: expected a transform of ITK or in NIfTI, found one of FreeSurfer: "
            f"`mri_warp_convert -g MOVING {_WARPS[suffix]} FILE --outlps NEW.nii.gz` converts it"
        )
    if suffix in _NIFTI:
        with reading(path, "a field of vectors"):
            displacement, grid = read_vectors(read_header(path), vectors, moving)
        if fixed is not None and not grid.matches(fixed):
            raise InputError(f"{path}: expected the grid of --reference, {fixed.shape}, found {grid.shape} or another position")
        return displacement, grid
    if vectors is not None:
        raise InputError(f"{path}: expected --vectors with a field in NIfTI only, since all other formats say what they hold")
    if suffix in TRANSFORM_SUFFIXES and suffix not in (".txt", ".tfm", ".mat", ".xfm"):
        return None
    with reading(path, "a transform"):
        matrix = read_linear(path, fixed, moving)
        if matrix is None:
            return None
        if fixed is None:
            raise InputError("it is a matrix and has no grid of its own: expected --reference with the fixed image")
        return displacement_of(matrix, fixed), fixed
