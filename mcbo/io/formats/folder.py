"""Folders that are given as an image and hold none: what to do instead, by what is in them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from mcbo.io.dicom.header import is_series_folder
from mcbo.io.files import shown, suffix_of
from mcbo.io.formats import gipl, metaimage, nibabel_image, nifti_image, nrrd

_FORMATS = (nifti_image.FORMAT, nrrd.FORMAT, metaimage.FORMAT, gipl.FORMAT, *nibabel_image.FORMATS)
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")

_MAX_LISTED, _MAX_DEPTH, _MAX_WIDTH = 5, 4, 50


def remedy(folder: Path, content: Sequence[Path]) -> str:
    """The end of a sentence on a folder without slices, given everything that is directly in it."""
    if not content:
        return "it is empty"
    volumes = [file for file in content if any(suffix_of(file) in known.suffixes for known in _FORMATS)]
    if volumes:
        return f"it has volumes in files of their own: give one of them, {_listed(volumes)}"
    if any(file.suffix.lower() in _PICTURES for file in content):
        return f"it has {_counted(content)}: save the slices as TIFF, for example with Fiji"
    deeper = list(_series_below(folder, _MAX_DEPTH))
    if deeper:
        return f"folders in it have DICOM files: give one of them, {_listed(deeper)}"
    return f"it has {_counted(content)}"


def _series_below(folder: Path, depth: int) -> Iterator[Path]:
    """Folders with DICOM files below a folder; not all, if they are many."""
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    except OSError:  # a closed folder
        return
    for inner in inside[:_MAX_WIDTH]:
        if is_series_folder(inner):
            yield inner
        elif depth:
            yield from _series_below(inner, depth - 1)


def _counted(files: Sequence[Path]) -> str:
    """``3 .txt, 1 folder``."""
    kinds = Counter("folder" if file.is_dir() else file.suffix.lower() or "without suffix" for file in files)
    return ", ".join(f"{count} {shown(kind)[1:-1]}" for kind, count in kinds.most_common(_MAX_LISTED))


def _listed(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - _MAX_LISTED} more" if len(paths) > _MAX_LISTED else ""
    return ", ".join(shown(str(path)) for path in paths[:_MAX_LISTED]) + more
