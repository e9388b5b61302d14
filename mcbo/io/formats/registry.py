"""All formats of images. A further one is a module beside this, and a line here."""

import math
from pathlib import Path

from torch import Tensor

from mcbo.core.errors import InputError
from mcbo.core.types import Triple
from mcbo.geometry.grid import Grid
from mcbo.io import nifti
from mcbo.io.files import reading, suffix_of
from mcbo.io.formats import metaimage, nibabel_image, nrrd, tiff
from mcbo.io.formats.format import Format, check_memory
from mcbo.io.formats.itk_image import GIPL
from mcbo.io.nifti_header import Form, read_header
from mcbo.io.nifti_place import place


def _read_nifti(path: Path, spacing_mm: Triple | None, form: Form) -> tuple[Tensor, Grid]:
    del spacing_mm
    header = read_header(path, form=form)
    with reading(path, "an image"):
        check_memory(math.prod(nifti.check_image(header)), 0)
        return nifti.read_voxels(header), place(header)


NIFTI = Format("NIfTI", (".nii", ".nii.gz"), _read_nifti)

FORMATS = (NIFTI, nrrd.FORMAT, metaimage.FORMAT, tiff.FORMAT, GIPL, *nibabel_image.FORMATS)


def format_of(path: Path) -> Format:
    """The format of a file, by its suffix, or of a folder; raises ``InputError`` if there is none."""
    suffix = suffix_of(path)
    is_folder = path.is_dir()
    found = next((f for f in FORMATS if (f.takes_folders if is_folder else suffix in f.suffixes)), None)
    if found is None:
        names = ", ".join(dict.fromkeys(suffix for f in FORMATS for suffix in f.suffixes if suffix.count(".") == 1))
        raise InputError(f"{path}: expected an image in a file ending in .nii.gz, {names}: convert it to one of these")
    return found


def needs_spacing(path: Path) -> bool:
    """Whether the voxel size has to be told: by the suffix, for a file that may be missing."""
    is_folder, suffix = path.is_dir(), suffix_of(path)
    return any(not f.stores_spacing and (f.takes_folders if is_folder else suffix in f.suffixes) for f in FORMATS)
