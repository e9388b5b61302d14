"""The files of an image: most have one, some have a header beside their voxels, or slices, or chunks in a folder."""

import hashlib
import os
import re
from pathlib import Path

from mcbo.io.files import digest, is_file, is_folder, suffix_of
from mcbo.io.formats.nibabel_image import companions

_DETACHED = {
    ".mhd": re.compile(r"^ElementDataFile *= *([^\r\n]+)\r?$", re.IGNORECASE | re.MULTILINE),
    ".nhdr": re.compile(r"^data ?file: *([^\r\n]+)\r?$", re.IGNORECASE | re.MULTILINE),
}
"""Where headers name the files that hold their voxels."""

_HEAD_BYTES = 2**20
"""Of such a header."""


def image_digest(path: Path) -> str | None:
    """SHA-256 of an image; None if it, or one of the files that belong to it, cannot be read or is not known."""
    parts = _parts(path)
    if parts == [path]:
        return digest(path)
    digests = [digest(part) for part in parts]
    if not parts or None in digests:
        return None
    whole = hashlib.sha256()
    for part, one in zip(parts, digests, strict=True):
        whole.update(f"{part.name}\0{one}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def _parts(path: Path) -> list[Path]:
    """A folder as it is, or a header and the files that it names or that belong to it; none if they are not known."""
    key = _DETACHED.get(suffix_of(path))
    if key is None or is_folder(path) or not is_file(path):
        return [path, *companions(path)]
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).decode("latin-1")
    found = key.search(head)
    name = found[1].strip() if found else "LOCAL"
    if name.upper() == "LOCAL":
        return [path]
    listed = head[found.end() :].split("\n") if found and name.split()[0].upper() == "LIST" else [name]
    names = [line.strip().encode("latin-1") for line in listed if line.strip()]
    return [] if "%" in name else [path, *(path.parent / os.fsdecode(one) for one in names)]
