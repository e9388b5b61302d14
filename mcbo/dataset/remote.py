"""Input by URL: datasets are listed at once, and their images fetched case by case into a temporary folder."""

import contextlib
import posixpath
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from mcbo.core.errors import InputError
from mcbo.dataset.fetch import check_scheme, fetch
from mcbo.dataset.folders import RemoteFolder
from mcbo.dataset.learn2reg import Case, Dataset, Pair, find_json, read_json, scan_folder
from mcbo.io.json_file import MAX_BYTES as MAX_JSON_BYTES
from mcbo.io.nifti_header import MAX_OFFSET, MAX_VOXELS
from mcbo.io.source import File, Source, is_url, shown_url

MAX_IMAGE_BYTES = 8 * MAX_VOXELS + MAX_OFFSET
"""Of the largest image that would be read, in the widest usual type, without compression."""


def locate(text: str) -> File:
    """A path or URL of one file.

    Raises:
        InputError: if it is a URL of a kind that cannot be read here.
    """
    if not is_url(text):
        return Path(text)
    check_scheme(text)
    return Source(text)


def open_url(url: str, *, split: str, trust_paths: bool = False) -> Dataset:
    """Reads a dataset from a URL, as ``learn2reg.open_input`` does from a path; its images are not fetched yet.

    Args:
        url: of a JSON, or of a folder with or without one (not by HTTP, which has no folders).
        split: ``val``, ``test`` or ``train``.
        trust_paths: let images lie elsewhere in the same bucket.

    Raises:
        InputError: if that cannot be done.
    """
    scheme = check_scheme(url)
    if urlsplit(url).path.endswith(".json"):
        return _read_json(url, split, trust_paths)
    if scheme in ("http", "https"):
        raise InputError(f"{shown_url(url)}: expected the URL of a dataset JSON, since a web server does not list folders")
    folder = RemoteFolder(url, trusted=trust_paths)
    found = find_json(folder)
    return _read_json(folder.join(found, str(folder)).url, split, trust_paths) if found else scan_folder(folder)


def _read_json(url: str, split: str, trust_paths: bool) -> Dataset:
    source, parts = Source(url), urlsplit(url)
    folder = RemoteFolder(parts._replace(path=posixpath.dirname(parts.path)).geturl(), trusted=trust_paths)
    with _copies([source], MAX_JSON_BYTES) as here:
        return read_json(here[source], split=split, folder=folder)


@contextlib.contextmanager
def fetched(case: Case, pairs: Sequence[Pair]) -> Iterator[Case]:
    """The case with copies of its remote images, which are gone after the block; as it is, if it has none.

    What cannot be fetched does not stop the rest: whoever reads that image is told why.

    Args:
        case: whose images are wanted.
        pairs: of the case, those whose moving images are.
    """
    files = dict.fromkeys((case.fixed, *(pair.moving for pair in pairs)))
    wanted = [file for file in files if isinstance(file, Source)]
    if not wanted:
        yield case
        return
    with _copies(wanted, MAX_IMAGE_BYTES) as here:
        copied = [
            replace(pair, fixed=here.get(pair.fixed, pair.fixed), moving=here.get(pair.moving, pair.moving))
            for pair in case.pairs
        ]
        yield replace(case, fixed=here.get(case.fixed, case.fixed), pairs=tuple(copied))


@contextlib.contextmanager
def _copies(sources: Sequence[Source], limit: int) -> Iterator[dict[File, Source]]:
    """The sources with copies in a temporary folder that is gone after the block, or with the reason why they have none."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mcbo-fetch-", ignore_cleanup_errors=True))
        except OSError:
            problem = "no temporary folder can be created for it (TMPDIR)"
            here: dict[File, Source] = {source: replace(source, problem=problem) for source in sources}
        else:
            here = {source: fetch(source, Path(folder, str(i)), limit=limit) for i, source in enumerate(sources)}
        yield here
