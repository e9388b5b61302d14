"""Formats of images: what a foreign program writes is read, with its numbers and its place; what it claims is checked."""

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from malformed_files import DATA, SIZE, meta, nrrd

from mcbo.core import memory
from mcbo.core.errors import InputError, MemoryBudgetError
from mcbo.io.formats.registry import FORMATS, check_header, format_of
from mcbo.io.images import read_any
from mcbo.io.itk_files import read_transform

VALUES = np.frombuffer(DATA, "<f4").reshape(SIZE[::-1])
PACKED = {"CompressedData": True, "CompressedDataSize": len(zlib.compress(DATA))}
DTYPES = (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.int64, np.float32, np.float64)


def check_values(path: Path, expected: Any) -> None:
    """Arrays of ITK have their axes in reverse."""
    volume, _ = read_any(path)
    assert np.array_equal(volume[0, 0].numpy(), np.asarray(expected).transpose(2, 1, 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".gipl.gz"])
def test_what_itk_writes_is_read(tmp_path: Path, suffix: str, compress: bool, dtype: type[np.generic]) -> None:
    if "gipl" in suffix and dtype in (np.int64, np.uint32, np.int32):
        pytest.skip("GIPL has no such type")
    image = sitk.GetImageFromArray(VALUES.astype(dtype))
    image.SetSpacing((0.5, 1.5, 2.5))
    image.SetMetaData("0008|0060", "MR")  # as an image has that was DICOM
    path = tmp_path / f"a b{suffix}"
    sitk.WriteImage(image, str(path), useCompression=compress)
    check_header(path)
    check_values(path, VALUES.astype(dtype))
    assert read_any(path)[1].spacing_mm == pytest.approx((0.5, 1.5, 2.5))


def both(header: dict[str, object], data: bytes) -> Callable[[Path], object]:
    return lambda path: (path.write_bytes(nrrd(header, b"")), (path.parent / "x.raw").write_bytes(data))


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("raw.nrrd", lambda path: path.write_bytes(nrrd())),
        ("gzip.nrrd", lambda path: path.write_bytes(nrrd({"encoding": "gzip"}, gzip.compress(DATA)))),
        ("text.nrrd", lambda path: path.write_bytes(nrrd({"encoding": "ascii"}, b" ".join(b"%d" % n for n in range(120))))),
        ("hex.nrrd", lambda path: path.write_bytes(nrrd({"encoding": "hex"}, DATA.hex().encode()))),
        ("end.nrrd", lambda path: path.write_bytes(nrrd({"byte skip": -1}, b"head" + DATA))),
        ("comments.nrrd", lambda path: path.write_bytes(nrrd(more=b"# a: b\nkey:=value: 1\n"))),
        ("lines.nrrd", lambda path: path.write_bytes(nrrd().replace(b"\n", b"\r\n", 9))),
        ("detached.nhdr", both({"data file": "./x.raw"}, DATA)),
        ("skip.nhdr", both({"data file": "x.raw", "byte skip": 10, "line skip": 2}, b"a\nb\n" + bytes(10) + DATA)),
        ("raw.mha", lambda path: path.write_bytes(meta())),
        ("zlib.mha", lambda path: path.write_bytes(meta(PACKED, zlib.compress(DATA)))),
        ("head.mha", lambda path: path.write_bytes(meta({"HeaderSize": -1}, DATA))),
        (
            "text.mha",
            lambda path: path.write_bytes(meta({"BinaryData": False}, b" ".join(b"%d" % n for n in range(120)) + b"\n")),
        ),
    ],
)
def test_every_encoding_is_read(tmp_path: Path, name: str, build: Callable[[Path], object]) -> None:
    build(tmp_path / name)
    check_values(tmp_path / name, VALUES)


@pytest.mark.parametrize("name", ["a.mgh", "a.mgz", "a.img", "a.hdr", "a.nii.bz2"])
def test_what_nibabel_writes_is_read(tmp_path: Path, name: str) -> None:
    affine = np.array([[-1.5, 0, 0, 3], [0, 2, 0, -4], [0, 0, 2.5, 5], [0, 0, 0, 1]])
    kinds: dict[str, Any] = {".mgh": nibabel.MGHImage, ".mgz": nibabel.MGHImage, ".bz2": nibabel.Nifti1Image}
    kind = kinds.get((tmp_path / name).suffix, nibabel.Nifti1Pair)
    nibabel.save(kind(VALUES.T, affine), tmp_path / name)
    check_values(tmp_path / name, VALUES)
    assert read_any(tmp_path / name)[1].affine == pytest.approx(affine)


def test_relative_paths_follow_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.nrrd").write_bytes(nrrd({} if name == "one" else {"sizes": "6 5 4"}))
    for name, shape in (("one", (4, 5, 6)), ("two", (6, 5, 4))):
        monkeypatch.chdir(tmp_path / name)
        assert read_any(Path("a.nrrd"))[0].shape[2:] == shape


def test_a_link_to_a_file_in_the_same_folder_is_fine(tmp_path: Path) -> None:
    (tmp_path / "y.raw").write_bytes(DATA)
    (tmp_path / "x.raw").symlink_to("y.raw")
    (tmp_path / "a.nhdr").write_bytes(nrrd({"data file": "x.raw"}, b""))
    check_values(tmp_path / "a.nhdr", VALUES)


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha", ".mgh"])
def test_volumes_beyond_the_budget_are_refused_before_they_are_read(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix in (".nii", ".mgh"):
        kind: Any = nibabel.Nifti1Image if suffix == ".nii" else nibabel.MGHImage
        nibabel.save(kind(VALUES, np.eye(4)), path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(VALUES), str(path))
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    with pytest.raises(MemoryBudgetError, match=rf"a\{suffix}: .*takes 0\.\d\d MB of memory, but 0\.00 MB may be used"):
        read_any(path)


def test_a_vector_field_that_claims_too_much_is_no_transform(tmp_path: Path) -> None:
    fields = {"dimension": 4, "sizes": "3 500 500 500", "kinds": "vector domain domain domain"}
    (tmp_path / "a.nrrd").write_bytes(nrrd(fields | {"space directions": "none (1,0,0) (0,1,0) (0,0,1)"}))
    with pytest.raises(InputError, match=r"a\.nrrd: .*its header claims 1500000000 bytes"):
        read_transform(tmp_path / "a.nrrd", None)


def test_packed_data_that_are_damaged_are_not_taken_for_zeros(tmp_path: Path) -> None:
    packed = bytearray(zlib.compress(DATA))
    packed[-1] ^= 1
    (tmp_path / "a.mha").write_bytes(meta(PACKED, bytes(packed)))
    with pytest.raises(InputError, match=r"a\.mha: expected whole packed data, but they are damaged"):
        read_any(tmp_path / "a.mha")


def test_no_suffix_has_two_formats() -> None:
    suffixes = [suffix for found in FORMATS for suffix in found.suffixes]
    assert len(suffixes) == len(set(suffixes))
    assert format_of(Path("A.NII.GZ")).name == "NIfTI"
