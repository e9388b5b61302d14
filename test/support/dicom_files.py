"""DICOM files of one image each, written element by element (PS3.5, explicit VR little endian), not by the library under test.

SimpleITK's writer, besides, leaves the C locale of its thread changed.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

UID = "1.2.826.0.1.3680043.2.1125"
PATIENT = "Mustermann^Erika"
MR = "1.2.840.10008.5.1.4.1.1.4"

_TAGS = {
    "image_type": (0x0008, 0x0008, "CS"),
    "sop_class": (0x0008, 0x0016, "UI"),
    "uid": (0x0008, 0x0018, "UI"),
    "modality": (0x0008, 0x0060, "CS"),
    "description": (0x0008, 0x103E, "LO"),
    "patient": (0x0010, 0x0010, "PN"),
    "echo_time": (0x0018, 0x0081, "DS"),
    "study": (0x0020, 0x000D, "UI"),
    "series": (0x0020, 0x000E, "UI"),
    "number": (0x0020, 0x0013, "IS"),
    "position": (0x0020, 0x0032, "DS"),
    "orientation": (0x0020, 0x0037, "DS"),
    "samples": (0x0028, 0x0002, "US"),
    "photometric": (0x0028, 0x0004, "CS"),
    "planar": (0x0028, 0x0006, "US"),
    "frames": (0x0028, 0x0008, "IS"),
    "rows": (0x0028, 0x0010, "US"),
    "columns": (0x0028, 0x0011, "US"),
    "spacing": (0x0028, 0x0030, "DS"),
    "allocated": (0x0028, 0x0100, "US"),
    "stored": (0x0028, 0x0101, "US"),
    "high_bit": (0x0028, 0x0102, "US"),
    "signed": (0x0028, 0x0103, "US"),
    "intercept": (0x0028, 0x1052, "DS"),
    "slope": (0x0028, 0x1053, "DS"),
}


def _element(group: int, number: int, kind: str, value: Any) -> bytes:
    if kind == "US":
        data = int(value).to_bytes(2, "little")
    elif isinstance(value, bytes):
        data = value
    else:
        several = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        data = "\\".join(x if isinstance(x, str) else f"{x:.9g}" for x in several).encode("latin-1")
    data += (b"\0" if kind in ("UI", "OB", "OW") else b" ") * (len(data) % 2)
    size = bytes(2) + len(data).to_bytes(4, "little") if kind in ("OB", "OW") else len(data).to_bytes(2, "little")
    return group.to_bytes(2, "little") + number.to_bytes(2, "little") + kind.encode() + size + data


def dicom(pixels: NDArray[np.generic], preamble: bool = True, **tags: Any) -> bytes:
    """The bytes of a file with an image ``(rows, columns)``, ``(frames, rows, columns)`` or, in color, ``(rows, columns, 3)``.

    Tags by the names above; None leaves one out.
    """
    color = pixels.dtype == np.uint8 and pixels.shape[-1] == 3
    rows, columns = pixels.shape[:2] if color else pixels.shape[-2:]
    bits = pixels.dtype.itemsize * 8
    given = {
        "image_type": ["ORIGINAL", "PRIMARY"], "sop_class": MR, "uid": f"{UID}.2.1", "modality": "MR", "patient": PATIENT,
        "description": "T2 axial", "spacing": (1.2, 1.0),
        "study": f"{UID}.9", "series": f"{UID}.1", "number": 1, "position": (0, 0, 0), "orientation": (1, 0, 0, 0, 1, 0),
        "samples": 3 if color else 1, "photometric": "RGB" if color else "MONOCHROME2", "planar": 0 if color else None,
        "frames": len(pixels) if pixels.ndim == 3 and not color else None, "rows": rows, "columns": columns,
        "allocated": bits, "stored": bits, "high_bit": bits - 1, "signed": int(pixels.dtype.kind == "i"),
    } | tags  # fmt: skip
    elements = {_TAGS[name]: value for name, value in given.items() if value is not None}
    data = b"".join(_element(*tag, value) for tag, value in sorted(elements.items()))
    data += _element(0x7FE0, 0x0010, "OB" if bits == 8 else "OW", np.ascontiguousarray(pixels).tobytes())
    meta = b"".join(
        _element(0x0002, number, kind, value)
        for number, kind, value in (
            (0x0001, "OB", b"\0\1"), (0x0002, "UI", MR), (0x0003, "UI", f"{UID}.2.1"), (0x0010, "UI", "1.2.840.10008.1.2.1"),
            (0x0012, "UI", f"{UID}.3"),
        )
    )  # fmt: skip
    length = b"\2\0\0\0UL\4\0" + len(meta).to_bytes(4, "little")
    return bytes(128) + b"DICM" + length + meta + data if preamble else data


def write_series(
    folder: Path, slices: NDArray[np.generic], positions: Sequence[Sequence[float]], *, prefix: str = "IM", **tags: Any
) -> Path:
    """Slices at positions (LPS mm), in files without a suffix whose names are in another order."""
    folder.mkdir(parents=True, exist_ok=True)
    for n, position in enumerate(positions):
        about: dict[str, Any] = {
            "position": position,
            "number": n + 1,
            "uid": f"{UID}.2.{zlib.crc32(f'{prefix}{n}'.encode())}",
        } | tags
        (folder / f"{prefix}{(n * 7 + 3) % 97:02}").write_bytes(dicom(slices[n], **about))
    return folder
