"""GIPL, with a header of 256 bytes. Format: as ITK's ``GiplImageIO`` writes it."""

import struct
from pathlib import Path

from isal import igzip
from torch import Tensor

from mcbo.core.errors import InputError
from mcbo.geometry.grid import Grid
from mcbo.io.formats.format import DEFLATE, Claim, Format, check_count, check_unpacked
from mcbo.io.formats.itk_image import read_itk
from mcbo.io.microscopy.selection import Selection
from mcbo.io.nifti_header import GZIP_ERROR

_HEADER_BYTES = 256
_MAGIC = (0xEFFFE9B0, 0x2AE389B8)
_TYPES = {1: 1, 7: 1, 8: 1, 15: 2, 16: 2, 31: 4, 32: 4, 64: 4, 65: 8}
"""Bytes by number of the type."""


def judge(path: Path) -> Claim:
    """What a header claims; raises ``InputError`` for one that is not that of an image."""
    packed = path.name.lower().endswith(".gz")
    try:
        with igzip.open(path) if packed else path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
    except (OSError, EOFError, GZIP_ERROR) as error:
        raise InputError(f"expected a GIPL image, but it cannot be read: {error}") from error
    magic = struct.unpack(">I", head[252:])[0] if len(head) == _HEADER_BYTES else None
    if magic not in _MAGIC:
        raise InputError("expected a GIPL image, but it cannot be read: it does not begin with such a header")
    *sizes, kind = struct.unpack(">5H", head[:10])
    while len(sizes) > 3 and sizes[-1] <= 1:  # an axis that is not there has 0 or 1
        sizes.pop()
    count = check_count(sizes)
    if kind not in _TYPES:
        raise InputError(f"expected one number per voxel, found data of type {kind}")
    held = path.stat().st_size - (0 if packed else _HEADER_BYTES)
    claim = Claim(count, count * _TYPES[kind], held, DEFLATE if packed else 1)
    if packed:
        claim.check()
        check_unpacked(path, 0, held, claim.stored_bytes + _HEADER_BYTES)
    return claim


def _read(path: Path, selection: Selection) -> tuple[Tensor, Grid]:
    del selection
    return read_itk(path, "GiplImageIO", judge)


FORMAT = Format("GIPL", (".gipl", ".gipl.gz"), _read, judge)
