"""The corpus of malformed files that foreign readers know: NRRD, MetaImage, TIFF, GIPL, nibabel's formats."""

import bz2
import gzip
import itertools
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from dicom_files import dicom
from malformed import CLAIM, Sample, bytes_of, sparse, with_hole
from malformed_arrays import nifti, ramp

Build = Callable[[Path], object]

SIZE = (4, 5, 6)
DATA = np.arange(120, dtype="<f4").tobytes()
HELD = "bytes of data can hold"
BESIDE = "expected a data file in the header's folder"
MANY = "expected at most 1073741824 numbers"
FOREIGN = {
    "png": b"\x89PNG\r\n\x1a\n" + bytes(500), "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(600),
    "dicom": bytes(128) + b"DICM" + bytes(600), "zeros": bytes(5000), "ones": b"\xff" * 5000, "gzip": gzip.compress(DATA),
    "nifti": nifti(ramp(*SIZE)), "text": b"hello\n" * 100, "a bracket": b"{",
}  # fmt: skip
"""What a file may hold in spite of its name."""


def nrrd(changes: Mapping[str, object] = {}, data: bytes = DATA, magic: bytes = b"NRRD0004", more: bytes = b"") -> bytes:
    """An NRRD file some of whose fields are others, or missing (None)."""
    fields: dict[str, object] = {
        "type": "float", "dimension": 3, "space": "left-posterior-superior", "sizes": "4 5 6",
        "space directions": "(1,0,0) (0,1,0) (0,0,1)", "space origin": "(0,0,0)", "encoding": "raw", "endian": "little",
    }  # fmt: skip
    lines = [f"{key}: {value}".encode() for key, value in (fields | dict(changes)).items() if value is not None]
    return b"\n".join([magic, *lines]) + b"\n" + more + b"\n" + data


def nrrd_samples() -> Iterator[Sample]:
    value: object
    sizes: object

    def sample(name: str, changes: Mapping[str, object], says: str, data: bytes = DATA, suffix: str = ".nrrd") -> Sample:
        return Sample(f"nrrd {name}", "image", bytes_of(nrrd(changes, data)), says, None, suffix)

    for value in (0, -3, 17, 10**18, "3 3", "x", None):
        yield sample(f"dimension {value}", {"dimension": value}, "a header with dimension from 1 to 16, found")
    for value, sizes in ((2, "4 30"), (16, "1 " * 16), (6, "4 5 6 1 1 1")):
        yield sample(
            f"dimension {value}",
            {"dimension": value, "sizes": sizes, "space": None, "space directions": None, "space origin": None},
            f"expected a 3D image, found {value}D",
        )
    for sizes in ("4 5", "4 5 6 7", None):
        yield sample(f"sizes {sizes}", {"sizes": sizes}, "a header with 3 sizes, found")
    for sizes in ("0 5 6", "-4 5 6", "99999999999 5 6", "4 5 x", "4 5 6e9", "4294967296 4294967296 4"):
        yield sample(f"sizes {sizes}", {"sizes": sizes}, "a header with sizes from 1 to 2147483648, found")
    for sizes in ("65536 65536 65536", "2147483648 2147483648 2147483648", "90000 90000 90000"):
        yield sample(f"sizes {sizes}", {"sizes": sizes}, MANY)
    yield sample("more claimed than held", {"sizes": "1024 1024 1024"}, HELD)
    yield sample("one value short", {"type": "double"}, HELD)
    zeros = gzip.compress(bytes(306_000_000), 9)
    claim = {"sizes": "1024 1024 1024", "type": "double", "encoding": "gzip"}
    yield sample("gigabytes claimed, packed", claim, "of packed data can hold", zeros)
    for kind in ("block", "void", "uint128", None):
        yield sample(f"type {kind}", {"type": kind}, "expected one number per voxel, found data of type")
    for encoding in ("bzip2", "zstd", "rle", None):
        yield sample(f"encoding {encoding}", {"encoding": encoding}, "expected data encoded as raw, gzip, text or hex")
    packed = gzip.compress(DATA)
    yield sample("gzip cut", {"encoding": "gzip"}, "cannot be read", packed[:60])
    yield sample("gzip of less", {"encoding": "gzip", "sizes": "4 5 60"}, "cannot be read", packed)
    yield sample("text of letters", {"encoding": "ascii"}, "", b"a b c " * 200)
    yield sample("text of less", {"encoding": "ascii"}, "cannot be read", b"1 2 3")
    yield sample("hex of letters", {"encoding": "hex"}, "cannot be read", b"xyz" * 400)
    yield sample("skip below", {"byte skip": -2}, "a header with byteskip from -1")
    yield sample("skip beyond", {"byte skip": 10**9}, HELD)
    yield sample("skip from the end, packed", {"byte skip": -1, "encoding": "gzip"}, "found 'gzip' with a byte skip", packed)
    yield sample("lines below", {"line skip": -1}, "a header with lineskip from 0")
    yield sample("lines beyond", {"line skip": 10**9}, "cannot be read")
    yield sample("endian", {"endian": "middle"}, "cannot be read")
    yield sample("no endian", {"endian": None}, "cannot be read")
    yield sample("space", {"space": "the outer one"}, "cannot be read")
    for directions in ("(0,0,0) (0,1,0) (0,0,1)", "(1,0,0) (1,0,0) (0,0,1)", "(nan,0,0) (0,1,0) (0,0,1)", "(1,0) (0,1) (0,0)"):
        yield sample(f"directions {directions}", {"space directions": directions}, "expected")
    yield sample("an endless origin", {"space origin": "(inf,0,0)"}, "expected")
    yield sample("an origin far away", {"space origin": "(1e300,0,0)"}, "within 1e+12 mm of the origin")
    yield sample("vectors", {"dimension": 4, "sizes": "3 2 4 5", "kinds": "vector domain domain domain",
                 "space directions": "none (1,0,0) (0,1,0) (0,0,1)"}, "expected one number per voxel, found 3")  # fmt: skip
    yield sample("vectors", {"kinds": "vector domain domain"}, "expected")
    named = {"datafile": "x.raw"}
    for name in (
        "%999999999d", "s%s.raw 1 10 1", "%n%n%n", "f%03d.raw 1 6 1", "/etc/passwd", "/dev/zero", "../x.raw", "..", ".", "./",
        "folder/x.raw", "C:\\x.raw", "\x1b[31mx",
    ):  # fmt: skip
        yield sample(f"data in {name!r}", {"data file": name}, BESIDE, b"", ".nhdr")
    yield sample("data in a list", {"data file": "LIST"}, "no such file", b"a.raw\nb.raw\n", ".nhdr")
    yield sample("data nowhere", {"data file": "absent.raw"}, "absent.raw: no such file", b"", ".nhdr")
    for what, beside in BESIDES.items():
        says = BESIDE if "link" in what else f"x.raw: expected a data file, found {what}"
        yield Sample(f"nhdr with {what}", "image", with_beside(nrrd(named, b""), "x.raw", beside), says, None, ".nhdr")
    for magic in (b"NRRD0009", b"NRRD", b"nrrd0004", b"NRRD0004 "):
        yield Sample(f"nrrd {magic!r}", "image", bytes_of(nrrd(magic=magic)), "does not begin with NRRD000", None, ".nrrd")
    for line, says in (
        (b"sizes: 1 1 1\n", "each field once, found 'sizes' twice"), (b"SIZES: 1 1 1\n", "each field once"),
        (b"si zes: 1 1 1\n", "each field once"), (b"no colon\n", "a header of lines 'name: value', found"),
        (b"content: " + b"x" * 20_000 + b"\n", "in lines of 16384"),
    ):  # fmt: skip
        yield Sample(f"nrrd with {line[:20]!r}", "image", bytes_of(nrrd(more=line)), says, None, ".nrrd")
    long = nrrd(more=b"# a comment\n" * 100_000)
    yield Sample("nrrd of comments", "image", bytes_of(long), "a header of at most 1048576 bytes", None, ".nrrd")
    yield Sample("nrrd without data", "image", bytes_of(nrrd(data=b"")), HELD, None, ".nrrd")
    yield Sample("nrrd of a TiB", "image", with_hole(b"NRRD0004\n", 2**40), "expected an image of at most", None, ".nrrd")
    for name, data in FOREIGN.items():
        yield Sample(f"nrrd of {name}", "image", bytes_of(data), "expected an NRRD file", None, ".nrrd")


def with_beside(header: bytes, name: str, make: Build) -> Build:
    """A header, and something beside it under a name."""

    def build(path: Path) -> None:
        path.write_bytes(header)
        make(path.parent / name)

    return build


def link_twice(path: Path) -> None:
    path.with_name("y").symlink_to("/etc/passwd")
    path.symlink_to("y")


BESIDES: dict[str, Build] = {
    "a named pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link": lambda path: path.symlink_to("/etc/passwd"),
    "a link to a link": link_twice,
    "an empty file": lambda path: path.write_bytes(b""),
}


def meta(changes: Mapping[str, object] = {}, data: bytes = DATA, more: bytes = b"") -> bytes:
    """A MetaImage some of whose fields are others, or missing (None)."""
    fields: dict[str, object] = {
        "ObjectType": "Image", "NDims": 3, "BinaryData": True, "BinaryDataByteOrderMSB": False, "CompressedData": False,
        "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "0 0 0", "ElementSpacing": "1 1 1", "DimSize": "4 5 6",
        "ElementType": "MET_FLOAT", "ElementDataFile": "LOCAL",
    }  # fmt: skip
    changed = fields | dict(changes)
    changed["ElementDataFile"] = changed.pop("ElementDataFile")  # which is the last
    lines = [f"{key} = {value}".encode() for key, value in changed.items() if value is not None]
    return more + b"\n".join(lines) + b"\n" + data


def meta_samples() -> Iterator[Sample]:
    value: object
    sizes: object

    def sample(name: str, changes: Mapping[str, object], says: str, data: bytes = DATA, suffix: str = ".mha") -> Sample:
        return Sample(f"mha {name}", "image", bytes_of(meta(changes, data)), says, None, suffix)

    for value in (-3, 0, 11, 10**18, "x", "3 3", None):
        yield sample(f"NDims {value}", {"NDims": value}, "a header with NDims from 1 to 10, found")
    yield sample(
        "NDims 2",
        {"NDims": 2, "DimSize": "4 30", "TransformMatrix": "1 0 0 1", "Offset": "0 0", "ElementSpacing": "1 1"},
        "expected a 3D image, found 2D",
    )
    yield sample("NDims 10", {"NDims": 10, "DimSize": "1 " * 10}, "expected a 3D image, found 10D")
    for sizes in ("4 5", "4 5 6 7", None):
        yield sample(f"DimSize {sizes}", {"DimSize": sizes}, "a DimSize of 3 numbers, found")
    for sizes in ("0 5 6", "-4 5 6", "99999999999 5 6", "4 5 x", "4 5 6.5"):
        yield sample(f"DimSize {sizes}", {"DimSize": sizes}, "a header with DimSize from 1 to 2147483647, found")
    yield sample("DimSize of overflow", {"DimSize": "65536 65536 65536"}, MANY)
    yield sample("DimSize of more overflow", {"DimSize": "2147483647 2147483647 2147483647"}, MANY)
    yield sample("more claimed than held", {"DimSize": "1024 1024 1024"}, HELD)
    packed = zlib.compress(bytes(10**8), 9)
    yield sample("gigabytes claimed, packed", {"DimSize": "1024 1024 1024", "ElementType": "MET_DOUBLE",
                 "CompressedData": True, "CompressedDataSize": len(packed)}, "of packed data can hold", packed)  # fmt: skip
    for kind in ("MET_OTHER", "MET_NONE", "MET_STRING", "FLOATS", None):
        yield sample(f"ElementType {kind}", {"ElementType": kind}, "expected one number per voxel, found an ElementType")
    for count in (0, -1, 10**9, "x"):
        yield sample(f"{count} channels", {"ElementNumberOfChannels": count}, "ElementNumberOfChannels from 1 to 1000")
    yield sample("1000 channels", {"ElementNumberOfChannels": 1000}, HELD)
    yield sample("3 channels", {"ElementNumberOfChannels": 3, "DimSize": "4 5 2"}, "expected one number per voxel, found 3")
    small = zlib.compress(DATA)
    for size in (-1, 0, 10**12, "x"):
        changes = {"CompressedData": True, "CompressedDataSize": size}
        yield sample(f"{size} packed bytes", changes, "a header with CompressedDataSize from 1 to", small)
    yield sample("no size", {"CompressedData": True}, "a header with CompressedDataSize, found none", small)
    for size, name, data in ((400, "no zlib", DATA), (50, "zlib cut", small), (50, "zlib cut off", small[:50])):
        yield sample(name, {"CompressedData": True, "CompressedDataSize": size}, "packed data", data)
    yield sample(
        "packed text",
        {"CompressedData": True, "CompressedDataSize": 9, "BinaryData": False},
        "compressed data to be binary",
        small,
    )
    for skip in (-2, 10**9, "x"):
        yield sample(f"HeaderSize {skip}", {"HeaderSize": skip}, "a header with HeaderSize from -1 to")
    yield sample("HeaderSize of all", {"HeaderSize": 400}, HELD)
    yield sample("text of less", {"BinaryData": False}, "cannot be read", b"1 2 3")
    for matrix in ("0 0 0 0 0 0 0 0 0", "nan 0 0 0 1 0 0 0 1", "1 0 0 1 0 0 0 0 1"):
        yield sample(f"matrix {matrix}", {"TransformMatrix": matrix}, "expected")
    for spacing in ("0 0 0", "nan 1 1", "inf 1 1", "1e300 1 1", "1e-300 1 1"):
        yield sample(f"spacing {spacing}", {"ElementSpacing": spacing}, "expected")
    yield sample("an endless offset", {"Offset": "inf 0 0"}, "expected")
    for name in ("s%s.raw 1 10 1", "%2000000000d 1 1 1", "%n%n", "f%03d.raw 1 6 1", "LIST", "list"):
        yield sample(f"data in {name!r}", {"ElementDataFile": name}, "found a list or a pattern", b"", ".mhd")
    for name in ("/etc/passwd", "/dev/zero", "../x.raw", "..", ".", "folder/x.raw", "C:\\x.raw", "LIST 2", "", "\x1b[31mx"):
        yield sample(f"data in {name!r}", {"ElementDataFile": name}, "x", b"", ".mhd")
    yield sample("data nowhere", {"ElementDataFile": "absent.raw"}, "absent.raw: no such file", b"", ".mhd")
    for what, beside in BESIDES.items():
        says = BESIDE if "link" in what else f"x.raw: expected a data file, found {what}"
        build = with_beside(meta({"ElementDataFile": "x.raw"}, b""), "x.raw", beside)
        yield Sample(f"mhd with {what}", "image", build, says, None, ".mhd")
    for line, says in (
        (b"NDims = 3\n", "each field once, spelled NDims"), (b"ndims = 3\n", "each field once, spelled NDims, found 'ndims'"),
        (b"no sign\n", "a header of lines 'name = value'"), (b"Comment = " + b"x" * 9000 + b"\n", "in lines of 4096"),
        (b"A = 1\n" * 200_000, "that ends with ElementDataFile within 1048576 bytes"),
    ):  # fmt: skip
        yield Sample(f"mha with {line[:20]!r}", "image", bytes_of(meta(more=line)), says, None, ".mha")
    yield sample("no data file", {"ElementDataFile": None}, "a header that ends with ElementDataFile", b"")
    for name, data in FOREIGN.items():
        yield Sample(f"mha of {name}", "image", bytes_of(data), "expected a MetaImage", None, ".mha")


def tiff(*pages: Mapping[int, tuple[int, int, int]], loop: bool = False, data: bytes = bytes(4096)) -> bytes:
    """A TIFF with pages of entries, tag: (type, count, value)."""
    parts, at = [struct.pack("<2sHI", b"II", 42, 8)], 8
    for number, page in enumerate(pages):
        end = at + 2 + 12 * len(page) + 4
        after = 8 if loop else (end if number + 1 < len(pages) else 0)
        entries = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(page.items()))
        parts.append(struct.pack("<H", len(page)) + entries + struct.pack("<I", after))
        at = end
    return b"".join(parts) + data


def page(width: int = 8, height: int = 8, bits: int = 8, samples: int = 1, **tags: int) -> dict[int, tuple[int, int, int]]:
    """The entries of a page; further tags as ``t277``, of 32 bits."""
    entries = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, bits), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 400),
               277: (3, 1, samples), 278: (4, 1, height), 279: (4, 1, width * height * bits // 8 % 2**32)}  # fmt: skip
    return entries | {int(key[1:]): (4, 1, value) for key, value in tags.items()}


def tiff_samples() -> Iterator[Sample]:
    def sample(name: str, data: bytes, says: str = "expected") -> Sample:
        return Sample(f"tiff {name}", "tiff", bytes_of(data), says, None, ".tif")

    whole = tiff(page(), page(), page())
    yield sample("flat", tiff(page()), "expected a 3D image, found one slice")
    for size in (1, 8, 20, 150):
        yield sample(f"of {size} bytes", whole[:size])
    yield sample("in a circle", tiff(page(), page(), loop=True))
    yield sample("wide", tiff(*[page(width=2**31 - 1)] * 2))
    yield sample("wide and high", tiff(*[page(width=60_000, height=60_000)] * 3))
    yield sample("of no height", tiff(*[page(height=0)] * 3))
    yield sample("of no width", tiff(*[page(width=0)] * 3))
    yield sample("with strips elsewhere", tiff(*[page(t273=2**31)] * 3))
    yield sample("of 7 bits", tiff(*[page(bits=7)] * 3))
    yield sample("of 65535 bits", tiff(*[page(bits=65535)] * 3))
    yield sample("of 200 samples", tiff(*[page(samples=200)] * 3))
    yield sample("of colors", tiff(*[page(samples=3, t262=2)] * 3), "expected one number per voxel, found a color image")
    for packing in (2, 5, 7, 8, 32773, 34925, 50000, 60000):
        yield sample(f"packed by {packing}", tiff(*[page(t259=packing)] * 3, data=b"\x5a" * 4096), "")
    yield sample("of many entries", struct.pack("<2sHIH", b"II", 42, 8, 65535) + bytes(65535 * 12))
    yield sample("big, to nowhere", struct.pack("<2sHHHQ", b"II", 43, 8, 0, 2**62))
    for name, data in FOREIGN.items():
        yield sample(f"of {name}", data)

    def folder(*files: bytes | None) -> Build:
        def build(path: Path) -> None:
            path.mkdir()
            for number, data in enumerate(files):
                file = path / f"{number}.tif"
                os.mkfifo(file) if data is None else file.write_bytes(data)

        return build

    flat = tiff(page())
    for name, files, says in (
        ("nothing", (), "expected TIFF files in this folder"), ("pipes", (None, None), "expected TIFF files in this folder"),
        ("empty files", (b"", b""), "found an empty file"),
        ("one that is broken", (flat, b"II*", flat), "expected a TIFF image, found none"),
        ("sizes", (flat, tiff(page(height=9))), "expected"),
        ("stacks", (whole, whole), "expected one slice in each file of a folder, found 3"),
        ("large claims", (tiff(page(width=60_000, height=60_000)),) * 2, "expected an image of at most"),
    ):  # fmt: skip
        yield Sample(f"folder of {name}", "tiff", folder(*files), says, None)


def nibabel_samples() -> Iterator[Sample]:
    mgh = nibabel.MGHImage(ramp(*SIZE), np.eye(4)).to_bytes()

    def at(data: bytes, offset: int, layout: str, *values: int) -> bytes:
        return data[:offset] + struct.pack(layout, *values) + data[offset + struct.calcsize(layout) :]

    for name, data in {
        "cut": mgh[:300], "of few bytes": mgh[:10], "of less": mgh[:-40], "of size -4": at(mgh, 4, ">i", -4),
        "of size 0": at(mgh, 4, ">i", 0), "of 2³¹": at(mgh, 4, ">iii", *[2**31 - 1] * 3),
        "of gigabytes": at(mgh, 4, ">iii", 1024, 1024, 1024), "of frames": at(mgh, 16, ">i", 2**30),
        "of type 77": at(mgh, 20, ">i", 77), "of version 9": at(mgh, 0, ">i", 9), "of colors": at(mgh, 20, ">i", 6),
    }.items():  # fmt: skip
        yield Sample(f"mgh {name}", "image", bytes_of(data), "expected", None, ".mgh")
        yield Sample(f"mgz {name}", "image", bytes_of(gzip.compress(data)), "expected", None, ".mgz")
    yield Sample("mgz cut", "image", bytes_of(gzip.compress(mgh)[:80]), "expected", None, ".mgz")
    bomb = gzip.compress(at(mgh, 4, ">iii", 1024, 1024, 512) + bytes(10**7))
    yield Sample("mgz bomb", "image", bytes_of(bomb), "of packed data can hold", None, ".mgz")
    pair = at(nibabel.Nifti1Pair(ramp(*SIZE), np.eye(4)).header.binaryblock, 0, "<i", 348)
    analyze = nibabel.AnalyzeImage(ramp(*SIZE), np.eye(4)).header.binaryblock
    for kind, header in {"pair": pair, "analyze": analyze}.items():
        yield Sample(f"{kind} alone", "image", bytes_of(header), "expected", None, ".hdr")
        yield Sample(
            f"{kind} of junk", "image", with_beside(header[:200], "spoiled.img", bytes_of(DATA)), "expected", None, ".hdr"
        )
        for what, make in BESIDES.items():
            build = with_beside(header, "spoiled.img", make)
            yield Sample(f"{kind} with {what}", "image", build, "expected a data file", None, ".hdr")
        build = with_beside(header, "spoiled.img", bytes_of(DATA[:100]))
        yield Sample(f"{kind} of less", "image", build, HELD, None, ".hdr")
        build = with_beside(at(header, 42, "<hhh", 1024, 1024, 1024), "spoiled.img", bytes_of(DATA))
        yield Sample(f"{kind} of gigabytes", "image", build, HELD, None, ".hdr")
        build = with_beside(at(header, 70, "<h", 999), "spoiled.img", bytes_of(DATA))
        yield Sample(f"{kind} of type 999", "image", build, "expected", None, ".hdr")
    netcdf = b"CDF\x01" + struct.pack(">I", 0) + struct.pack(">II", 10, 2**31 - 1)
    hdf5 = b"\x89HDF\r\n\x1a\n" + bytes(600)
    par = b"# === DATA DESCRIPTION FILE ===\n# Dataset name: x\n# CLINICAL TRYOUT  Research image export tool V4.2\n"
    for name, suffix, data in (
        ("netCDF", ".mnc", netcdf), ("netCDF's beginning", ".mnc", b"CDF\x01"), ("MINC 2", ".mnc", hdf5),
        ("PAR", ".par", par), ("PAR's beginning", ".par", par[:40]), ("AFNI", ".head", b"type = integer-attribute\nname = X\n"),
        ("AFNI of less", ".head", b"\ntype = string-attribute\nname = A\ncount = 999999999\n'x~\n"),
    ):  # fmt: skip
        yield Sample(name, "image", bytes_of(data), "expected", None, suffix)
    for (name, data), suffix in itertools.product(FOREIGN.items(), (".mgz", ".mnc", ".par", ".rec", ".head", ".img", ".hdr")):
        yield Sample(f"{suffix} of {name}", "image", bytes_of(data), "expected", None, suffix)
    yield Sample("nothing packed by bzip2", "image", bytes_of(bz2.compress(b"")), "expected", None, ".nii.bz2")
    yield Sample("bzip2 of junk", "image", bytes_of(b"BZh9" + bytes(99)), "expected", None, ".nii.bz2")
    yield Sample("zstd of junk", "image", bytes_of(b"\x28\xb5\x2f\xfd" + bytes(99)), "expected", None, ".nii.zst")
    spheres = nibabel.Nifti1Image(ramp(*SIZE), np.eye(4)).to_bytes()
    yield Sample("bzip2 cut", "image", bytes_of(bz2.compress(spheres)[:200]), "expected", None, ".nii.bz2")


def other_samples() -> Iterator[Sample]:
    """GIPL, suffixes of no format, and what is no file."""
    gipl = struct.pack(">4HH4f", 4, 5, 6, 1, 64, 1, 1, 1, 1) + bytes(226) + struct.pack(">I", 0xEFFFE9B0)
    for name, data in {
        "cut": gipl[:100], "of less": gipl + DATA[:100], "of zeros": bytes(256), "of no magic": gipl[:-4] + bytes(4) + DATA,
        "of type 9": gipl[:8] + b"\0\x09" + gipl[10:] + DATA, "of gigabytes": b"\x04\0\x04\0\x04\0" + gipl[6:] + DATA,
    }.items():  # fmt: skip
        yield Sample(f"gipl {name}", "image", bytes_of(data), "expected", None, ".gipl")
        yield Sample(f"gipl.gz {name}", "image", bytes_of(gzip.compress(data)), "expected", None, ".gipl.gz")
    for suffix in (".png", ".jpg", ".vtk", ".gii", ".bmp", ".lsm", ".foo", "", ".gz", ".mat"):
        yield Sample(f"an image {suffix}", "image", bytes_of(nrrd()), "expected an image in a file ending in", None, suffix)
    for suffix in (".nrrd", ".mhd", ".mgz", ".gipl", ".hdr"):
        for what, make in (("a named pipe", os.mkfifo), ("an empty file", bytes_of(b"")), ("a device", BESIDES["a device"])):
            yield Sample(f"{suffix} that is {what}", "image", make, f"found {what}", None, suffix)
        yield Sample(f"{suffix} that is a folder", "image", os.mkdir, "expected", None, suffix)
        yield Sample(f"{suffix} in a circle", "image", lambda path: path.symlink_to(path.name), "expected", None, suffix)
        yield Sample(f"{suffix} that is nowhere", "image", lambda _: None, "no such file", None, suffix)
    huge = nifti(ramp(*SIZE), 1, lambda header: header["dim"].__setitem__(slice(1, 4), 1024))
    yield Sample("a TiB of nifti", "image", with_hole(huge, 352 + 2**32), "of memory, but", None, ".nii")
    yield Sample("packed nifti", "image", bytes_of(gzip.compress(huge + bytes(10**6))), CLAIM, None, ".nii.gz")
    yield Sample("a TiB of nothing", "image", sparse(2**40), "expected", None, ".mgh")


def dicom_samples() -> Iterator[Sample]:
    """Files that begin as DICOM, or are called so; a folder of such files takes no other way."""
    slice_ = dicom(np.arange(120, dtype="<i2").reshape(10, 12))
    no_image = "a file that cannot be read as a DICOM image"
    for name, data in {
        "zeros": bytes(5000), "nrrd": nrrd(), "only a preamble": bytes(128) + b"DICM", "no elements": FOREIGN["dicom"],
        "a cut header": slice_[:300], "text": b"hello",
    }.items():  # fmt: skip
        yield Sample(f"dicom of {name}", "image", bytes_of(data), no_image, None, ".dcm")
    for name, data in {"whole": slice_, "cut": slice_[:-100], "of a TiB": slice_}.items():
        build = with_hole(data) if name == "of a TiB" else bytes_of(data)
        yield Sample(f"a slice, {name}", "image", build, "expected", None, ".dcm")
    yield Sample("a slice without suffix", "image", bytes_of(slice_), "one slice of a DICOM series", None, "")
    yield Sample("frames", "image", bytes_of(dicom(np.zeros((3, 10, 12), np.int16))), "enhanced DICOM", None, ".ima")
    for what, make in (("a named pipe", os.mkfifo), ("an empty file", bytes_of(b"")), ("a device", BESIDES["a device"])):
        yield Sample(f".dcm that is {what}", "image", make, f"found {what}", None, ".dcm")

    def folder(*slices: bytes) -> Build:
        def build(path: Path) -> None:
            path.mkdir()
            for number, data in enumerate(slices):
                (path / f"I{number}").write_bytes(data)

        return build

    def at(height: float, **tags: Any) -> bytes:
        return dicom(np.arange(120, dtype="<i2").reshape(10, 12), position=(0, 0, height), uid=f"1.{height}", **tags)

    for name, slices, says in (
        ("cut", [at(0), at(1), at(2)[:-100]], "found 'I2', which cannot be read: it is cut off or damaged"),
        ("of gigabytes", [at(n, rows=65535, columns=65535) for n in range(3)], "expected at most 1073741824 numbers"),
        ("that claim more", [at(n, rows=2000, columns=2000) for n in range(3)], HELD),
        ("of no images", [FOREIGN["dicom"]] * 3, "DICOM files without images"),
        ("at no place", [at(n, orientation="x") for n in range(3)], "slices with their orientation in the header"),
        ("at places beyond", [at(n * 1e300) for n in range(3)], "expected"),
        ("of no size", [at(n, spacing=(0, 0)) for n in range(3)], "expected"),
        ("in one place", [at(0), dicom(np.zeros((10, 12), np.int16), uid="1.9")], "2 slices at 1 place"),
    ):
        yield Sample(f"slices {name}", "image", folder(*slices), says, None, "")


def file_samples() -> Iterator[Sample]:
    for make in (nrrd_samples, meta_samples, tiff_samples, nibabel_samples, dicom_samples, other_samples):
        yield from make()
