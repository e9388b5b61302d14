"""Images that both packages read although they are unusual: how each is made of the same values, and what they are then."""

import bz2
import gzip
import lzma
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
from malformed_arrays import nifti
from numpy.typing import NDArray

SHAPE = (9, 8, 10)
VALUES = np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.float32)


@dataclass(frozen=True)
class Unusual:
    """Bytes of a file with that suffix; the values that it holds, or None if nobody may read it; whether a warning is due."""

    data: bytes
    values: NDArray[np.generic] | None
    suffix: str
    warned: bool


def file(data: bytes, values: NDArray[np.generic] | None = VALUES, suffix: str = ".nii.gz", *, warned: bool = False) -> Unusual:
    return Unusual(data, values, suffix, warned)


def spoiled(values: NDArray[Any] = VALUES, **fields: Any) -> bytes:
    """An uncompressed image whose header was changed; ``pixdim_0`` is the first number of pixdim."""

    def spoil(header: Any) -> None:
        for name, value in fields.items():
            field, _, index = name.partition("_at_")
            if index:
                header[field][int(index)] = value
            else:
                header[field] = value

    return nifti(values, 1, spoil)


def extended(esize: int) -> bytes:
    """An image with an extension that claims a size of its own."""
    whole = spoiled(vox_offset=352 + 32)
    return (
        whole[:348]
        + b"\1\0\0\0"
        + esize.to_bytes(4, "little", signed=True)
        + (4).to_bytes(4, "little")
        + bytes(24)
        + whole[352:]
    )


def big_endian() -> bytes:
    image = nibabel.Nifti1Image(VALUES.astype(">f4"), np.diag([1.5, 2.0, 2.5, 1.0]), nibabel.Nifti1Header(endianness=">"))
    return bytes(image.to_bytes())


def members(data: bytes, *ends: int) -> bytes:
    """Several gzip streams, one behind the other."""
    return b"".join(gzip.compress(data[a:b]) for a, b in zip((0, *ends), (*ends, len(data)), strict=True))


def unusual() -> dict[str, Unusual]:
    """All of them, by name."""
    plain = spoiled()
    packed = gzip.compress(plain)
    wrong = bytearray(packed)
    one = np.equal(VALUES, VALUES[3, 3, 3])
    wrong[-6] ^= 1
    size = len(plain)
    return {
        "plain": file(plain, suffix=".nii"),
        "packed": file(packed),
        "not packed, but called so": file(plain),
        "packed, but not called so": file(packed, suffix=".nii"),
        "garbage behind": file(packed + b"hello, this is no gzip", warned=True),
        "a line end behind": file(packed + b"\n", warned=True),
        "a byte of gzip's magic behind": file(packed + b"\x1f", warned=True),
        "much garbage behind": file(packed + bytes(range(1, 256)) * 9000, warned=True),
        "zeros and garbage behind": file(packed + bytes(99) + b"x", warned=True),
        "zeros behind, as of a tape": file(packed + bytes(5000)),
        "an empty stream behind, as of bgzip": file(packed + gzip.compress(b"")),
        "half a stream behind": file(packed + packed[:40]),
        "two streams": file(members(plain, 1000)),
        "two streams and garbage": file(members(plain, 1000) + b"x", warned=True),
        "streams that end with the header": file(members(plain, 348, 352)),
        "many streams": file(members(plain, *range(100, size, 500))),
        "zeros between streams": file(gzip.compress(plain[:500]) + bytes(64) + gzip.compress(plain[500:])),
        "values and more in the stream": file(gzip.compress(plain + b"more")),
        "more behind the values": file(plain + b"more", suffix=".nii"),
        "big endian": file(big_endian(), suffix=".nii"),
        "NIfTI-2": file(gzip.compress(nifti(VALUES, 2))),
        "float64": file(gzip.compress(spoiled(VALUES.astype(np.float64)))),
        "uint16": file(gzip.compress(spoiled(VALUES.astype(np.uint16)))),
        "int8": file(gzip.compress(spoiled((VALUES - 100).astype(np.int8))), VALUES - 100),
        "scaled": file(spoiled(VALUES.astype(np.int16), scl_slope=0.5, scl_inter=-3), VALUES * 0.5 - 3),
        "a slope of 0": file(spoiled(VALUES.astype(np.int16), scl_slope=0, scl_inter=7)),
        "a slope of NaN": file(spoiled(scl_slope=np.nan, scl_inter=np.nan)),
        "an infinite slope": file(spoiled(scl_slope=np.inf, scl_inter=3)),
        "an intercept of NaN": file(spoiled(scl_slope=2, scl_inter=np.nan), None),
        "a fourth axis of 1": file(spoiled(VALUES[..., None])),
        "a fourth and a fifth axis of 1": file(spoiled(VALUES[..., None, None])),
        "a fourth axis of 2": file(spoiled(np.stack([VALUES, VALUES], axis=-1)), None),
        "a fifth axis of 3": file(spoiled(np.stack([VALUES] * 3, axis=-1)[..., None, :]), None),
        "two axes": file(spoiled(VALUES[..., 0]), None),
        "a qform with a first number of 0": file(spoiled(sform_code=0, qform_code=1, pixdim_at_0=0)),
        "a qform with voxel sizes below 0": file(spoiled(sform_code=0, qform_code=1, pixdim_at_2=-2)),
        "voxel sizes of 0": file(spoiled(pixdim_at_1=0)),
        "voxel sizes of NaN": file(spoiled(pixdim_at_3=np.nan)),
        "neither form": file(spoiled(sform_code=0, qform_code=0)),
        "an extension": file(extended(32), suffix=".nii"),
        "an extension of no size": file(extended(0), suffix=".nii"),
        "an extension below 0": file(extended(-5), suffix=".nii"),
        "an extension beyond the file": file(extended(10**9), suffix=".nii"),
        "cut": file(plain[:-1], None, ".nii"),
        "packed and cut": file(packed[:-1], None),
        "packed and cut by half": file(packed[: len(packed) // 2], None),
        "cut between streams": file(members(plain, 1000)[: len(gzip.compress(plain[:1000]))], None),
        "a wrong checksum": file(bytes(wrong), None),
        "a wrong checksum, and garbage": file(bytes(wrong) + b"hello", None),
        "damaged": file(packed[:300] + bytes(40) + packed[340:], None),
        "packed twice": file(gzip.compress(packed), None),
        "bzip2": file(bz2.compress(plain), None),
        "xz": file(lzma.compress(plain), None),
        "half a pair": file(spoiled(magic=b"ni1"), None),
        "another length of the header": file(spoiled(sizeof_hdr=1234), None),
        "NaN": file(spoiled(np.where(one, np.nan, VALUES)), None),
        "infinity": file(spoiled(np.where(one, -np.inf, VALUES)), None),
        "beyond float32": file(spoiled(np.where(one, 1e300, VALUES.astype(np.float64))), None),
        "complex": file(spoiled(VALUES.astype(np.complex64)), None),
    }
