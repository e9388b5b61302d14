"""The corpus of malformed inputs: images and displacements, and what each program has to say of them."""

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import nibabel
import numpy as np
from malformed import CLAIM, NO_IMAGE, NO_NIFTI, SHAPE, SHORT, WHOLE, Sample, bytes_of, with_hole
from numpy.typing import NDArray


def ramp(*shape: int) -> NDArray[np.float32]:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def nifti(values: NDArray[Any], version: int = 1, spoil: Callable[[Any], object] = bool) -> bytes:
    """The bytes of an image whose header was spoiled after it was made (not at all, unless told how)."""
    kinds: dict[int, Any] = {1: nibabel.Nifti1Image, 2: nibabel.Nifti2Image}
    made = kinds[version](values, np.diag([1.5, 2.0, 2.5, 1.0]))
    data = made.to_bytes()
    header = made.header_class(data[: made.header_class.template_dtype.itemsize], check=False)
    spoil(header)
    block = bytes(header.binaryblock)
    return block + bytes(data[len(block) :])


def header_spoils() -> Iterator[tuple[str, Callable[[Any], object], str, str]]:
    """What may be wrong in a header: how to spoil it, and both sentences."""

    def put(name: str, value: Any, *at: int) -> Callable[[Any], object]:
        def spoil(header: Any) -> None:
            if at:
                header[name][at[0]] = value
            else:
                header[name] = value

        return spoil

    def scaled(name: str, value: float) -> Callable[[Any], object]:
        def spoil(header: Any) -> None:
            header["scl_slope"] = 2
            header[name] = value

        return spoil

    value: Any
    for value in (0, -1, 8, 127):
        yield f"{value} dimensions", put("dim", value, 0), NO_IMAGE, SHORT
    yield "no voxels", put("dim", 0, 2), "expected an image with voxels", SHORT
    yield "fewer than no voxels", put("dim", -5, 3), "expected an image with voxels", SHORT
    yield "an endless axis", put("dim", 32767, 1), CLAIM, CLAIM
    yield "endless axes", lambda header: header["dim"].__setitem__(slice(1, 4), 32767), "of at most 1073741824 voxels", SHORT
    yield "two dimensions", put("dim", 2, 0), "expected a 3D image, found 2D", "expected a 3D image, found 2D"
    yield "one dimension", put("dim", 1, 0), "expected a 3D image, found 1D", "expected a 3D image, found 1D"
    for value in (0.0, 100.0, -352.0, 1e9, 3e8):
        yield (
            f"offset {value:g}",
            put("vox_offset", value),
            "expected a header with voxels that begin",
            "claims that the values begin",
        )
    yield "an offset behind the end", put("vox_offset", 2**26 - 16), CLAIM, CLAIM
    for code in (9999, -1, 3):
        yield f"type {code}", put("datatype", code), "found data of an unknown type", "claims data of an unknown type"
    yield "a type too large", put("datatype", 64), CLAIM, CLAIM
    for value in (np.nan, np.inf, -np.inf):  # of a slope, they mean that nothing is scaled
        yield f"intercept {value}", scaled("scl_inter", value), "expected a header with a finite intercept", "invalid intercept"
    flat = "expected an affine that can be inverted"
    for value in (np.nan, np.inf):
        yield f"affine {value}", put("srow_x", value, 0), flat, flat
    yield "a flat affine", put("srow_y", 0), flat, flat
    yield "a magic of others", put("magic", b"abc"), WHOLE, "expected a 3D image"
    yield "half a pair of files", put("magic", b"ni1"), "header of a pair of files", "header of a pair of files"
    yield "a length of others", put("sizeof_hdr", 1234), "does not begin with such a header", NO_NIFTI


def image_samples() -> Iterator[Sample]:
    """Images that are none."""
    values = ramp(*SHAPE)
    for version in (1, 2):
        for compress in (False, True):
            for name, spoil, method, judge in header_spoils():
                if name == "a type too large" and compress:
                    continue  # it may be what it claims
                data = nifti(values, version, spoil)
                suffix = ".nii.gz" if compress else ".nii"
                yield Sample(
                    f"nifti{version}{suffix} {name}", "image", bytes_of(gzip.compress(data) if compress else data), method,
                    judge, suffix,
                )  # fmt: skip
    whole = nifti(values)
    for size in (1, 4, 100, 347):
        yield Sample(f"{size} bytes", "image", bytes_of(whole[:size]), WHOLE, NO_IMAGE, ".nii")
    for size in (348, 352, 400, len(whole) - 1):
        yield Sample(f"{size} bytes", "image", bytes_of(whole[:size]), "claims", "claims", ".nii")
    packed = gzip.compress(nifti(np.random.default_rng(0).random(SHAPE, dtype=np.float32)))
    for size in (1, 2, 9, 18, 60):
        yield Sample(f"{size} bytes, packed", "image", bytes_of(packed[:size]), "expected", NO_IMAGE, ".nii.gz")
    for size in (len(packed) // 2, len(packed) - 9, len(packed) - 1):
        yield Sample(f"{size} bytes, packed", "image", bytes_of(packed[:size]), WHOLE, None, ".nii.gz")
    flipped = bytearray(packed)
    flipped[-6] ^= 1
    yield Sample("a wrong checksum", "image", bytes_of(bytes(flipped)), WHOLE, None, ".nii.gz")
    flipped = bytearray(packed)
    flipped[300:340] = bytes(40)
    yield Sample("damaged in the middle", "image", bytes_of(bytes(flipped)), "expected", None, ".nii.gz")
    foreign = {
        "text": b"hello" * 100, "zeros": bytes(5000), "ones": b"\xff" * 5000, "png": b"\x89PNG\r\n\x1a\n" + bytes(500),
        "elf": b"\x7fELF" + bytes(500),
        "html": b"<html></html>" * 60,
        "gifti": b'<?xml version="1.0"?><!DOCTYPE GIFTI [<!ENTITY a "aa">]><GIFTI>&a;</GIFTI>' * 9,
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(600), "dicom": bytes(128) + b"DICM" + bytes(600),
        "mgh": b"\0\0\0\1" + bytes(600), "zip": b"PK\x03\x04" + bytes(600),
        "bzip2": bz2.compress(whole), "xz": lzma.compress(whole), "pickle": b"\x80\x04\x95" + bytes(600),
        "twice packed": gzip.compress(gzip.compress(whole)),
        "nothing packed": gzip.compress(b""), "json": b'{"a": 1}' * 80,
    }  # fmt: skip
    for name, data in foreign.items():
        yield Sample(f"image of {name}", "image", bytes_of(data), "expected a whole NIfTI image", NO_IMAGE, ".nii.gz")
    yield Sample("an image of nothing", "image", bytes_of(b""), "found an empty file", "found an empty file", ".nii.gz")
    bomb = nifti(values, 1, lambda header: header["dim"].__setitem__(slice(1, 4), (1024, 1024, 512)))
    yield Sample("a bomb", "image", bytes_of(gzip.compress(bomb + bytes(10**7))), CLAIM, CLAIM, ".nii.gz")
    more = gzip.compress(nifti(np.ones(SHAPE, np.float32)) + bytes(10**8), 1)
    yield Sample("a bomb behind the image", "image", bytes_of(more), "found only the value 1", None, ".nii.gz")
    for name, value, found in (
        ("NaN", np.nan, "1 voxel(s)"),
        ("infinity", np.inf, "1 voxel(s)"),
        ("beyond float32", 1e300, "1 voxel(s)"),
    ):
        array = values.astype(np.float64)
        array[1, 2, 3] = value
        yield Sample(
            f"image with {name}", "image", bytes_of(nifti(array)), f"expected finite intensities, found {found}", None, ".nii"
        )
    kinds: dict[str, NDArray[Any]] = {
        "complex64": values.astype(np.complex64),
        "complex128": values.astype(np.complex128),
        "[('R', 'u1')": np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]),
    }
    for name, several in kinds.items():
        found = f"found data of type {name}"
        yield Sample(f"image of {name}", "image", bytes_of(nifti(several)), found, found, ".nii")
    yield Sample(
        "an image of one value", "image", bytes_of(nifti(np.full(SHAPE, 3, np.uint8))), "found only the value 3", None, ".nii"
    )
    behind = "although its header claims"
    yield Sample("a TiB behind the image", "image", with_hole(nifti(ramp(*SHAPE))), behind, behind, ".nii")
    packed_image = gzip.compress(nifti(ramp(*SHAPE)))
    yield Sample("a TiB behind, packed", "image", with_hole(packed_image), behind, behind, ".nii.gz")
    found = "expected a 3D image, found 4D"
    yield Sample("two images in one", "image", bytes_of(nifti(ramp(*SHAPE, 2))), found, found, ".nii")
    yield Sample("a tiny image", "image", bytes_of(nifti(ramp(2, 3, 2))), "expected", None, ".nii")


def archive(array: NDArray[Any] | bytes, compression: int = zipfile.ZIP_DEFLATED, name: str = "arr_0.npy") -> bytes:
    """An ``.npz`` with one member."""
    member = io.BytesIO()
    if isinstance(array, bytes):
        member.write(array)
    else:
        np.save(member, array, allow_pickle=True)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as packed:
        packed.writestr(name, member.getvalue())
    return file.getvalue()


def npy(header: str, version: bytes = b"\x01\x00", data: bytes = b"") -> bytes:
    """An array file with any text as its header."""
    text = header.encode("latin-1")
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version[0] == 1 else 4, "little") + text + data


def field_samples() -> Iterator[Sample]:
    """Displacements that are none."""
    values = ramp(*SHAPE, 3) / 1000
    torn = "cannot be read"
    for name, header, version in (
        ("an absurd shape", "{'descr': '<f4', 'fortran_order': False, 'shape': (100000, 100000, 100000, 3)}", b"\x01\x00"),
        ("a shape too large", "{'descr': '<f4', 'fortran_order': False, 'shape': (9, 8, 10, 3)}", b"\x01\x00"),
        ("a shape below 0", "{'descr': '<f4', 'fortran_order': False, 'shape': (-9, -8, 10, 3)}", b"\x01\x00"),
        ("a pickle", "{'descr': '|O', 'fortran_order': False, 'shape': (9, 8, 10, 3)}", b"\x01\x00"),
        ("texts", "{'descr': '<U9', 'fortran_order': False, 'shape': (9, 8, 10, 3)}", b"\x01\x00"),
        ("records", "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (9, 8, 10, 3)}", b"\x01\x00"),
        ("numbers of Python 2", "{'descr': '<f4', 'fortran_order': False, 'shape': (9L, 8L, 10L, 3L)}", b"\x01\x00"),
        ("a call", "__import__('os').system('touch x')", b"\x01\x00"), ("brackets", "(" * 5000, b"\x01\x00"),
        ("an open text", "{'a", b"\x01\x00"),
        ("a long header", " " * 20000 + "{}", b"\x02\x00\x00"[:2]), ("no keys", "{}", b"\x01\x00"),
        ("version 3", "{}", b"\x03\x00"),
        ("version 9", "{}", b"\x09\x00"), ("nothing", "", b"\x01\x00"),
    ):  # fmt: skip
        yield Sample(f"npz with {name}", "field", bytes_of(archive(npy(header, version))), torn, torn, ".npz")
    for name, data in {
        "no archive": b"hello" * 50, "an array alone": npy("{}"), "half an archive": archive(values)[:900],
        "bzip2": archive(values, zipfile.ZIP_BZIP2),
        "lzma": archive(values, zipfile.ZIP_LZMA), "no numpy": archive(b"hello"), "objects": archive(np.array([{}, None])),
    }.items():  # fmt: skip
        yield Sample(f"npz of {name}", "field", bytes_of(data), torn, torn, ".npz")
    secret = bytearray(archive(values, zipfile.ZIP_STORED))
    for at in (6, secret.index(b"PK\x01\x02") + 8):
        secret[at] |= 1
    yield Sample("npz locked", "field", bytes_of(bytes(secret)), torn, torn, ".npz")
    two, none = io.BytesIO(), io.BytesIO()
    np.savez(two, a=values, b=values)
    np.savez(none)
    several = "expected one array, found 2 (a, b)"
    yield Sample("npz of two arrays", "field", bytes_of(two.getvalue()), several, several, ".npz")
    yield Sample("npz of no array", "field", bytes_of(none.getvalue()), torn, "expected one array, found 0", ".npz")
    shaped = "expected a displacement of shape (H, W, D, 3)"
    for name, array, method, judge in (
        ("first components", np.moveaxis(values, -1, 0), shaped, "components"),
        ("no components", values[..., 0], shaped, "expected shape"),
        ("float64", values.astype(np.float64), None, "expected float32, found float64"),
        ("int16", values.astype(np.int16), None, "expected float32, found int16"),
        ("NaN", np.full_like(values, np.nan), None, "that are NaN or infinite"),
        ("infinity", np.full_like(values, np.inf), None, "that are NaN or infinite"),
        ("another shape", values[1:], None, "expected shape (9, 8, 10, 3), found (8, 8, 10, 3)"),
        ("two components", values[..., :2], shaped, "expected shape"),
    ):  # fmt: skip
        with np.errstate(invalid="ignore"):
            yield Sample(f"field of {name}", "field", bytes_of(gzip.compress(nifti(array))), method, judge, ".nii.gz")
            yield Sample(f"npz of {name}", "field", bytes_of(archive(array)), method, judge, ".npz")
    complexes = bytes_of(gzip.compress(nifti(values.astype(np.complex64))))
    yield Sample(
        "field of complex64",
        "field",
        complexes,
        "found data of type complex64",
        "expected float32, found data of type complex64",
        ".nii.gz",
    )
