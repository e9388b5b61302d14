"""Folders that are given as an image and hold none: what to do instead, by what is in them."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from mcbo.io.dicom.header import is_series_folder
from mcbo.io.files import shown, suffix_of
from mcbo.io.formats import gipl, metaimage, nibabel_image, nifti_image, nrrd

_FORMATS = (nifti_image.FORMAT, nrrd.FORMAT, metaimage.FORMAT, gipl.FORMAT, *nibabel_image.FORMATS)
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")

_MAX_LISTED, _MAX_FOLDERS, _MAX_FILES = 5, 200, 100


def remedy(folder: Path, content: Sequence[Path]) -> str:
    """The end of a sentence on a folder without slices, given everything that is directly in it."""
    if not content:
        return "it is empty"
    volumes = [file for file in content if any(suffix_of(file) in known.suffixes for known in _FORMATS)]
    if volumes:
        return f"it has volumes in files of their own: give one of them, {_listed(volumes)}"
    if any(file.suffix.lower() in _PICTURES for file in content):
        return f"it has {_counted(content)}: save the slices as TIFF, for example with Fiji"
    deeper = list(_series_below(folder))
    if deeper:
        return f"folders in it have DICOM files: give one of them, {_listed(deeper)}"
    return f"it has {_counted(content)}"


def _series_below(folder: Path) -> Iterator[Path]:
    """Folders with DICOM files below a folder, as far as a short look finds them."""
    waiting, looked_at = deque([folder]), 0
    while waiting and looked_at < _MAX_FOLDERS:
        try:
            inside = sorted(path for path in islice(waiting.popleft().iterdir(), _MAX_FILES) if path.is_dir())
        except OSError:  # a closed folder
            continue
        for inner in inside:
            looked_at += 1
            if is_series_folder(inner, most=_MAX_FILES):
                yield inner
            elif not inner.is_symlink():
                waiting.append(inner)


def _counted(files: Sequence[Path]) -> str:
    """``3 .txt, 1 folder``."""
    kinds = Counter("folder" if file.is_dir() else file.suffix.lower() or "without suffix" for file in files)
    return ", ".join(f"{count} {shown(kind)[1:-1]}" for kind, count in kinds.most_common(_MAX_LISTED))


def _listed(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - _MAX_LISTED} more" if len(paths) > _MAX_LISTED else ""
    return ", ".join(shown(str(path)) for path in paths[:_MAX_LISTED]) + more
