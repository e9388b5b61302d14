"""Input by URL: a dataset is listed first, and its images are fetched case by case into a temporary folder."""

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
"""Of the largest image that would be read, in the widest common type, uncompressed."""


def locate(text: str) -> File:
    """A path or URL of one file; raises ``InputError`` for a URL that cannot be read here."""
    if not is_url(text):
        return Path(text)
    check_scheme(text)
    return Source(text)


def open_url(url: str, *, split: str, trust_paths: bool = False) -> Dataset:
    """``learn2reg.open_input`` for a URL: of a JSON, or of a folder (not by HTTP, which has none). Images are not fetched yet.

    If paths are trusted, images may lie anywhere in the same bucket.

    Raises:
        InputError: as ``open_input``, and for what cannot be fetched.
    """
    scheme, parts = check_scheme(url), urlsplit(url)
    folder = RemoteFolder(url, trusted=trust_paths)
    if parts.path.endswith(".json"):
        source = Source(url)
        folder = replace(folder, url=parts._replace(path=posixpath.dirname(parts.path)).geturl())
    elif scheme in ("http", "https"):
        raise InputError(f"{shown_url(url)}: expected the URL of a dataset JSON, since a web server does not list folders")
    elif found := find_json(folder):
        source = folder.join(found, str(folder))
    else:
        return scan_folder(folder)
    with _copies([source], MAX_JSON_BYTES) as here:
        return read_json(here[source], split=split, folder=folder)


@contextlib.contextmanager
def fetched(case: Case, pairs: Sequence[Pair]) -> Iterator[Case]:
    """The case with copies, removed after the block, of its remote fixed image and the remote moving images of ``pairs``.

    An image that cannot be fetched does not stop the rest: whatever reads it raises the reason.
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
    """The sources with copies in a temporary folder, removed after the block, or with the reason why they have none."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mcbo-fetch-", ignore_cleanup_errors=True))
        except OSError:
            problem = "no temporary folder can be created for it (TMPDIR)"
            here: dict[File, Source] = {source: replace(source, problem=problem) for source in sources}
        else:
            here = {source: fetch(source, Path(folder, str(i)), limit=limit) for i, source in enumerate(sources)}
        yield here
