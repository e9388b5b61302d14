"""All formats of images. A further one is a module beside this, and a line here."""

from pathlib import Path

from mcbo.core.errors import InputError
from mcbo.io.files import suffix_of
from mcbo.io.formats import metaimage, nibabel_image, nifti_image, nrrd
from mcbo.io.formats.format import Format
from mcbo.io.formats.itk_image import GIPL
from mcbo.io.microscopy import ome_zarr, slices, tiff

FORMATS = (
    nifti_image.FORMAT,
    nrrd.FORMAT,
    metaimage.FORMAT,
    Format("TIFF", tiff.SUFFIXES, tiff.read_tiff),
    Format("OME-Zarr", (), ome_zarr.read_ome_zarr, takes=ome_zarr.is_ome_zarr),
    Format("slices", (), slices.read_slices, takes=Path.is_dir),
    GIPL,
    *nibabel_image.FORMATS,
)


def format_of(path: Path) -> Format:
    """The format of a file, by its suffix, or of a folder; raises ``InputError`` if there is none."""
    suffix = suffix_of(path)
    if path.is_dir():
        return next(known for known in FORMATS if known.takes and known.takes(path))
    found = next((known for known in FORMATS if suffix in known.suffixes), None)
    if found is None:
        names = ", ".join(dict.fromkeys(suffix for f in FORMATS for suffix in f.suffixes if suffix.count(".") == 1))
        raise InputError(f"{path}: expected an image in a file ending in .nii.gz, {names}: convert it to one of these")
    return found
