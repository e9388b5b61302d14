"""All formats of images. A further one is a module beside this, and a line here."""

from pathlib import Path

from mcbo.core.errors import InputError
from mcbo.io.dicom import header, series
from mcbo.io.files import is_folder, reading, suffix_of
from mcbo.io.formats import gipl, metaimage, nibabel_image, nifti_image, nrrd
from mcbo.io.formats.format import Format, check_memory, file_size
from mcbo.io.microscopy import ome_zarr, slices, tiff

FORMATS = (
    nifti_image.FORMAT,
    nrrd.FORMAT,
    metaimage.FORMAT,
    Format("TIFF", tiff.SUFFIXES, tiff.read_tiff),
    Format("OME-Zarr", (), ome_zarr.read_ome_zarr, takes=ome_zarr.is_ome_zarr),
    series.FORMAT,
    Format("slices", (), slices.read_slices, takes=is_folder),
    gipl.FORMAT,
    *nibabel_image.FORMATS,
)


def format_of(path: Path) -> Format:
    """The format of a file, by its suffix, or of a folder; raises ``InputError`` if there is none."""
    suffix = suffix_of(path)
    if is_folder(path):
        return next(known for known in FORMATS if known.takes and known.takes(path))
    found = next((known for known in FORMATS if suffix in known.suffixes), None)
    if found is None and header.begins_as_dicom(path):
        return series.FORMAT
    if found is None:
        names = ", ".join(
            dict.fromkeys(suffix for f in FORMATS if f is not series.FORMAT for suffix in f.suffixes if suffix.count(".") == 1)
        )
        raise InputError(f"{path}: expected an image in a file ending in .nii.gz, {names}: convert it to one of these")
    return found


def check_header(path: Path) -> None:
    """Raises ``InputError`` for a file that cannot be an image, as far as its name and its header tell.

    ``MemoryBudgetError``, if it does not fit into memory.
    """
    image_format = format_of(path)
    if not is_folder(path):
        file_size(path, "an image")
        with reading(path, "an image"):
            claim = image_format.judge(path)
            claim.check()
            if claim.numbers:
                check_memory(claim.numbers, claim.stored_bytes // claim.numbers)
