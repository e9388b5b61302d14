"""TIFF stacks: one file, or a folder with a file for each slice. They do not say how large their voxels are."""

from pathlib import Path

from torch import Tensor

from mcbo.core.errors import InputError
from mcbo.core.types import Triple
from mcbo.geometry.grid import Grid
from mcbo.io.files import is_folder, suffix_of
from mcbo.io.formats.format import Format
from mcbo.io.formats.itk_image import judge_size, read_itk, read_itk_slices

RATIO = 1400
"""Largest ratio of compression: LZW, with strings as long as its 4096 codes allow."""

_SUFFIXES = (".tif", ".tiff")


def _read(path: Path, spacing_mm: Triple | None) -> tuple[Tensor, Grid]:
    folder = is_folder(path)
    files = sorted(file for file in path.iterdir() if suffix_of(file) in _SUFFIXES and file.is_file()) if folder else [path]
    if not files:
        raise InputError(f"{path}: expected TIFF files in this folder, one per slice, found none")
    if spacing_mm is None:
        raise InputError(f"{path}: expected --spacing with the voxel size in mm (columns,rows,slices): TIFF does not store it")
    if not folder:
        return read_itk(path, "TIFFImageIO", lambda file: judge_size(file, RATIO), spacing_mm=spacing_mm)
    return read_itk_slices(path, files, "TIFFImageIO", RATIO, spacing_mm)


FORMAT = Format("TIFF", _SUFFIXES, _read, stores_spacing=False, takes_folders=True)
