"""The bones of a TIFF, walked before anything else reads it: directories and tags that lie in the file, and end.

Format: Adobe, "TIFF Revision 6.0", section 2; BigTIFF: https://www.awaresystems.be/imaging/tiff/bigtiff.html.
"""

import struct
from pathlib import Path
from typing import IO

import numpy as np

from mcbo.core.errors import InputError

MAX_DIRECTORIES = 1 << 16
"""Pages of a file, pyramids included: 7 s to read. ImageJ and OME-Zarr store longer series without them."""

_MAX_TAGS = 4096

_BYTES = np.zeros(1 << 16, dtype=np.uint64)
"""Of one value of a type; unknown types are nobody's to read."""
_BYTES[:19] = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)

_SUB_DIRECTORIES = 330


def check_layout(path: Path) -> None:
    """Walks all directories of a file, and those below them.

    Raises:
        InputError: without the file's name, if it is no TIFF, its directories run in a circle or do not end, or a tag claims
            more bytes than the file has.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        order, is_big, first = _head(file.read(16))
        offset, below, seen, claimed = first, list[int](), set[int](), 0
        while offset or below:
            is_page = bool(offset)
            here = offset or below.pop()
            if here in seen and is_page:
                raise InputError("expected a whole TIFF image, found directories that run in a circle")
            if here in seen:  # they may be linked to each other, too
                continue
            seen.add(here)
            if len(seen) > MAX_DIRECTORIES:
                raise InputError(f"expected a TIFF image of at most {MAX_DIRECTORIES} pages, found more")
            following, children, outside = _directory(file, here, size, order=order, is_big=is_big)
            claimed += outside
            if claimed > 2 * size:
                raise InputError(f"expected a whole TIFF image, found tags of {claimed} bytes in a file of {size}")
            offset = following if is_page else 0
            below += children


def _head(head: bytes) -> tuple[str, bool, int]:
    """Byte order, whether it is a BigTIFF, and where the first directory lies."""
    order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
    version = struct.unpack(f"{order}H", head[2:4])[0] if order and len(head) >= 8 else 0
    if version == 42:
        return order, False, int(struct.unpack(f"{order}I", head[4:8])[0])
    if version == 43 and len(head) == 16:
        return order, True, int(struct.unpack(f"{order}Q", head[8:16])[0])
    raise InputError("expected a TIFF image, found none (it does not begin with such a header)")


def _directory(file: IO[bytes], offset: int, size: int, *, order: str, is_big: bool) -> tuple[int, list[int], int]:
    """Where the next directory lies, where those below this one do, and how many bytes its tags have outside of it."""
    word, inline = (8, 8) if is_big else (4, 4)
    kind = np.dtype(
        [("tag", f"{order}u2"), ("type", f"{order}u2"), ("count", f"{order}u{word}"), ("value", f"{order}u{inline}")]
    )
    width = 8 if is_big else 2
    file.seek(offset)
    block = file.read(width)
    count = int.from_bytes(block, "little" if order == "<" else "big")
    if len(block) < width or not 0 < count <= _MAX_TAGS:
        raise InputError(f"expected a whole TIFF image, found no directory of tags at byte {offset}")
    block = file.read(count * kind.itemsize + word)
    if len(block) < count * kind.itemsize:
        raise InputError("expected a whole TIFF image, found a directory that is cut off")
    tags = np.frombuffer(block, kind, count)
    numbers = tags["count"].astype(np.uint64)
    claims = _BYTES[tags["type"]] * numbers
    outside = (claims > inline) | (numbers > size)
    ends = tags["value"].astype(np.uint64) + np.minimum(claims, np.uint64(1 << 62))
    if (outside & ((ends > size) | (numbers > size))).any():
        tag = int(np.argmax(outside & ((ends > size) | (numbers > size))))
        raise InputError(
            f"expected a whole TIFF image, but its tag {tags['tag'][tag]} claims {numbers[tag]} values, more than a file "
            f"of {size} bytes can hold there: it is cut off or damaged"
        )
    children = []
    for entry in tags[tags["tag"] == _SUB_DIRECTORIES]:
        children += _offsets(file, entry, order=order, inline=inline)
    end = block[count * kind.itemsize :]
    following = int.from_bytes(end, "little" if order == "<" else "big") if len(end) == word else 0
    if following >= size or any(child >= size for child in children):
        raise InputError("expected a whole TIFF image, found a directory beyond the end of the file: it is cut off or damaged")
    return following, children, int(claims[outside].sum())


def _offsets(file: IO[bytes], entry: np.void, *, order: str, inline: int) -> list[int]:
    """The values of a tag that are offsets of directories."""
    width = int(_BYTES[entry["type"]])
    if width not in (4, 8):
        return []
    count = int(entry["count"])
    if width * count <= inline:
        data = int(entry["value"]).to_bytes(inline, "little" if order == "<" else "big")
    else:
        file.seek(int(entry["value"]))
        data = file.read(width * count)
    return [int(offset) for offset in np.frombuffer(data[: width * count], f"{order}u{width}") if offset]
