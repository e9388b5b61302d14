"""Images that nibabel reads besides NIfTI, in the other process: pairs of files, MGH, MINC, PAR/REC, AFNI."""

import importlib.util
import math
from pathlib import Path

import numpy as np
from torch import Tensor

from mcbo.core.errors import InputError
from mcbo.geometry.grid import Grid
from mcbo.io.files import reading
from mcbo.io.formats.format import DEFLATE, Claim, Format, check_memory, data_file, file_size
from mcbo.io.microscopy.selection import Selection
from mcbo.io.nifti import to_tensor
from mcbo.io.nifti_header import MAX_VOXELS
from mcbo.io.sandbox.client import Limits, read_outside
from mcbo.io.sandbox.wire import Frame

_COMPANIONS = {
    ".hdr": (".img", ".mat"),
    ".img": (".hdr", ".mat"),
    ".par": (".rec",),
    ".rec": (".par",),
    ".head": (".brik",),
    ".brik": (".head",),
}
"""Files that nibabel opens beside one of the other name."""

_PACKED = {"": 1, ".gz": DEFLATE, ".bz2": 2**20, ".zst": 2**15}
"""Largest ratio of compression: bzip2 packs 45 MB of zeros into 45 bytes, Zstandard 128 kB into 4."""

_UNPACKED = {".mgz": DEFLATE, ".mnc": DEFLATE}
"""Formats that compress by themselves."""


_HDF5 = b"\x89HDF\r\n\x1a\n"


def _check_minc(path: Path) -> None:
    """Raises ``InputError`` for MINC 2 where h5py is not installed; ``OSError`` if it cannot be read."""
    if path.suffix.lower() != ".mnc" or importlib.util.find_spec("h5py") is not None:
        return
    with path.open("rb") as file:
        if file.read(len(_HDF5)) != _HDF5:
            return
    raise InputError(
        "expected MINC 1 or another format, found MINC 2, which needs h5py: install it (pip install h5py), or convert the "
        "image with mnc2nii"
    )


def _read(path: Path, selection: Selection) -> tuple[Tensor, Grid]:
    del selection
    file_size(path, "an image")
    with reading(path, "a whole image"):
        for companion in companions(path):
            data_file(path, companion.name)
        _check_minc(path)

        def judge(header: Frame) -> Limits:
            shape, value_bytes = header["size"], int(header["value_bytes"])
            if len(shape) != 3 or not 0 < math.prod(shape) <= MAX_VOXELS or min(shape) < 1:
                raise InputError(f"expected a 3D image of at most {MAX_VOXELS} voxels, found data of shape {tuple(shape)}")
            files = [Path(name) for name in header["files"]]
            held = sum(file_size(file, "a data file") for file in files if file.exists())
            ratio = max((_ratio(file) for file in files), default=1)
            count = math.prod(shape)
            Claim(count, count * value_bytes, held, ratio).check()
            check_memory(count, value_bytes)
            return Limits.of_data(held, count * 8, copies=4)

        array, about = read_outside("with_nibabel", {"path": str(path.absolute())}, expected="a whole image", judge=judge)
        height, width, depth = array.shape[::-1]
        return to_tensor(array.T)[None, None], Grid((height, width, depth), np.array(about["affine"]))


def companions(path: Path) -> list[Path]:
    """Existing files, or links or pipes, that nibabel would open with this one."""
    packed = path.suffix if path.suffix.lower() in _PACKED else ""
    plain = path.with_suffix("") if packed else path
    others = _COMPANIONS.get(plain.suffix.lower(), ())
    named = [plain.with_suffix(case(other)) for other in others for case in (str.lower, str.upper)]
    return [other for name in named for other in (name, Path(f"{name}{packed}")) if other.is_symlink() or other.exists()]


def _ratio(path: Path) -> int:
    return max(_PACKED.get(path.suffix.lower(), 1), _UNPACKED.get(path.suffix.lower(), 1))


def _with_packed(*suffixes: str) -> tuple[str, ...]:
    return tuple(f"{suffix}{packed}" for suffix in suffixes for packed in _PACKED)


FORMATS = (
    Format("Analyze or NIfTI pair", _with_packed(".hdr", ".img"), _read),
    Format("NIfTI packed otherwise", (".nii.bz2", ".nii.zst"), _read),
    Format("MGH", (".mgh", ".mgz"), _read),
    Format("MINC", _with_packed(".mnc"), _read),
    Format("PAR/REC", (".par", ".rec"), _read),
    Format("AFNI", _with_packed(".head", ".brik"), _read),
)
