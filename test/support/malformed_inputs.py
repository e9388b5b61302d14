"""The corpus of malformed transforms, displacements, landmarks, reports and objects of the Python API."""

import copy
import gzip
import json
import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
import torch
from malformed import ESCAPES, SHAPE, Sample, bytes_of, sparse, text_of, with_hole
from malformed_arrays import archive, nifti, npy, ramp
from malformed_files import DATA, FOREIGN, HELD, meta, nrrd

VECTORS = {"dimension": 4, "sizes": "3 4 5 2", "kinds": "vector domain domain domain",
           "space directions": "none (1,0,0) (0,1,0) (0,0,1)"}  # fmt: skip
TORN = "cannot be read"


def tfm(kind: str, parameters: str, fixed: str) -> bytes:
    """A transform as text."""
    lines = ["#Insight Transform File V1.0", "#Transform 0", f"Transform: {kind}", f"Parameters: {parameters}"]
    return "\n".join([*lines, f"FixedParameters: {fixed}", ""]).encode()


def spoiled_h5(*spoils: tuple[bytes, bytes]) -> Callable[[Path], object]:
    """A transform of HDF5 with some of its bytes replaced."""

    def build(path: Path) -> None:
        sitk.WriteTransform(sitk.Euler3DTransform((1.0, 2.0, 3.0), 0.1, 0.2, 0.3), str(path))
        data = path.read_bytes()
        for old, new in spoils:
            data = data.replace(old, new)
        path.write_bytes(data)

    return build


def of_900(header: Any) -> None:
    """A header of vectors for 900³ voxels."""
    header["dim"][1:4] = 900
    header.set_intent(1007)


def transform_samples() -> Iterator[Sample]:
    """What is no transform, for ``import`` and ``register --initial``."""
    grid = "3 3 3 0 0 0 1 1 1 1 0 0 0 1 0 0 0 1"
    texts = {
        "a BSpline of few numbers": tfm("BSplineTransform_double_3_3", "0 0 0", grid),
        "a BSpline of many": tfm("BSplineTransform_double_3_3", "0 " * 999, grid),
        "a BSpline of a huge grid": tfm("BSplineTransform_double_3_3", "0 0 0", "9e9 9e9 9e9" + grid[5:]),
        "a BSpline below": tfm("BSplineTransform_double_3_3", "0 0 0", "-3 -3 -3" + grid[5:]),
        "a BSpline without grid": tfm("BSplineTransform_double_3_3", "0 " * 648, ""),
        "a field of few numbers": tfm("DisplacementFieldTransform_double_3_3", "0 0 0", grid),
        "a field of a huge grid": tfm("DisplacementFieldTransform_double_3_3", "0", "65536 65536 65536" + grid[5:]),
        "a field without grid": tfm("DisplacementFieldTransform_double_3_3", "0 0 0", ""),
        "an affine of few numbers": tfm("AffineTransform_double_3_3", "1 0 0", "0 0 0"),
        "an affine of none": tfm("AffineTransform_double_3_3", "", ""),
        "an affine without center": tfm("AffineTransform_double_3_3", "1 0 0 0 1 0 0 0 1 0 0 0", ""),
        "letters": tfm("AffineTransform_double_3_3", "a b c", "0 0 0"),
        "an unknown kind": tfm("SecretTransform_double_3_3", "1 2 3", "0 0 0"),
        "a kind of escapes": tfm(ESCAPES, "1", "0"),
        "a plane": tfm("AffineTransform_double_2_2", "1 0 0 1 0 0", "0 0"),
        "four dimensions": tfm("AffineTransform_double_4_4", "1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1 0 0 0 0", "0 0 0 0"),
        "the beginning": b"#Insight Transform File V1.0\n", "half a line": b"#Insight Transform File V1.0\nTransform",
        "no kind": b"#Insight Transform File V1.0\nParameters: 1 2 3\nFixedParameters: 0 0 0\n",
    }  # fmt: skip
    for name, data in texts.items():
        yield Sample(name, "transform", bytes_of(data), "expected", None, ".tfm")
    for name, data in FOREIGN.items():
        for suffix in (".tfm", ".h5", ".mat", ".xfm"):
            yield Sample(f"{suffix} of {name}", "transform", bytes_of(data), "expected", None, suffix)
    yield Sample("an h5 cut", "transform", with_cut(1000), "expected", None, ".h5")
    for name, spoil in {
        "without groups": (b"TransformGroup", b"transformgroup"),
        "without parameters": (b"TransformParameters", b"TransformParameterz"),
        "of another kind": (b"Euler3DTransform", b"Euler9DTransform"), "of a plane": (b"double_3_3", b"double_2_2"),
        "of a BSpline": (b"Euler3DTransform_double_3_3", b"BSplineTransform_double_3_3"[:27]),
    }.items():  # fmt: skip
        yield Sample(f"an h5 {name}", "transform", spoiled_h5(spoil), "expected", None, ".h5")
    matlab = np.array([0, 2**31 - 1, 2**31 - 1, 0, 9], "<i4").tobytes() + b"AffineTra\0"
    yield Sample("a mat of gigabytes", "transform", bytes_of(matlab), "expected", None, ".mat")
    yield Sample("a mat below", "transform", bytes_of(b"\xff" * 40), "expected", None, ".mat")
    minc = b"MNI Transform File\nTransform_Type = Linear;\nLinear_Transform =\n 1 0 0 0\n 0 1 0 0;\n"
    yield Sample("half an xfm", "transform", bytes_of(minc), "expected", None, ".xfm")
    for name, changes, data, says in (
        ("of gigabytes", {"sizes": "3 900 600 600"}, DATA, HELD),
        ("of scalars", {"kinds": "time domain domain domain"}, DATA, "expected"),
        ("of pairs", {"sizes": "2 4 5 3"}, DATA, "expected 3 numbers per voxel, found 2"),
        ("of NaN", {}, np.full(120, np.nan, "<f4").tobytes(), "expected finite vectors"),
    ):  # fmt: skip
        yield Sample(f"vectors {name}", "vectors", bytes_of(nrrd(VECTORS | dict(changes), data)), says, None, ".nrrd")
    yield Sample("vectors alone", "vectors", bytes_of(nrrd()), "expected 3 numbers per voxel, found 1", None, ".nrrd")
    yield Sample("vectors of mha", "vectors", bytes_of(meta()), "expected 3 numbers per voxel, found 1", None, ".mha")
    yield Sample("vectors of nifti", "vectors", bytes_of(nifti(ramp(*SHAPE))), "expected vectors of shape", None, ".nii")
    huge = nifti(ramp(4, 5, 6, 1, 3), 1, of_900)
    yield Sample("vectors of gigabytes of nifti", "vectors", bytes_of(huge), "than a file of", None, ".nii")
    yield Sample("vectors of many gigabytes", "vectors", with_hole(huge, 352 + 12 * 900**3), "expected at most", None, ".nii")
    for suffix in (".png", ".csv", ".lta", ""):
        yield Sample(f"vectors of {suffix}", "vectors", bytes_of(DATA), "expected a transform in a file ending", None, suffix)
    for suffix in (".tfm", ".h5", ".txt", ".nrrd", ".npz"):
        for what, make in {"a named pipe": os.mkfifo, "a folder": os.mkdir, "an empty file": bytes_of(b"")}.items():
            yield Sample(f"{suffix} that is {what}", "vectors", make, f"found {what}", None, suffix)
    for name, text in {
        "three lines": "1 0 0 0\n0 1 0 0\n0 0 1 0\n", "NaN": "nan 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n",
        "a mirror": "-1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "a last row": "1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 2\n",
        "huge": "1e308 0 0 0\n0 1e308 0 0\n0 0 1e308 0\n0 0 0 1\n", "far": "1 0 0 1e300\n0 1 0 0\n0 0 1 0\n0 0 0 1\n",
        "words": "one zero\n", "ten thousand": "1 " * 10_000, "digits": "9" * 60_000,
    }.items():  # fmt: skip
        yield Sample(f"a matrix of {name}", "matrix", text_of(text), "expected", None, ".txt")


def with_cut(size: int) -> Callable[[Path], object]:
    def build(path: Path) -> None:
        spoiled_h5()(path)
        path.write_bytes(path.read_bytes()[:size])

    return build


def displacement_samples() -> Iterator[Sample]:
    """Displacements for ``warp``, ``export``, ``invert``, ``compose``; those of ``malformed_arrays`` come on top."""

    def far(value: float) -> bytes:
        field = np.zeros((*SHAPE, 3), np.float32)
        field[2, 3, 4] = value
        return nifti(field)

    def lying(affine: Any) -> bytes:
        header = nibabel.Nifti1Image(np.zeros((*SHAPE, 3), np.float32), np.eye(4)).header
        header["sform_code"] = 1
        header.set_slope_inter(1, 0)
        header["magic"], header["vox_offset"] = b"n+1", 352
        header["srow_x"], header["srow_y"], header["srow_z"] = affine
        return bytes(header.binaryblock) + bytes(4 + 12 * int(np.prod(SHAPE)))

    for value in (1e7, 1e38, -1e38):
        yield Sample(f"a displacement by {value:g}", "field", bytes_of(far(value)), "of at most 1e+06 voxels", None, ".nii")
    for value in (np.nan, np.inf):
        yield Sample(f"a displacement by {value}", "field", bytes_of(far(value)), "expected finite displacements", None, ".nii")
    for size in (1e-30, 1e30):
        affine = np.diag([size, size, size, 1])[:3]
        yield Sample(f"voxels of {size}", "field", bytes_of(lying(affine)), "expected", None, ".nii")
    flat = [[1, 1, 0, 0], [0, 1e-7, 0, 0], [0, 0, 1, 0]]
    yield Sample("flat voxels", "field", bytes_of(lying(flat)), "expected an affine that can be inverted", None, ".nii")
    spread = [[1, 0, 0, 1e30], [0, 1, 0, 0], [0, 0, 1, 0]]
    yield Sample("voxels far away", "field", bytes_of(lying(spread)), "expected", None, ".nii")
    head = nifti(np.zeros((4, 5, 6, 3), np.float32), 1, lambda header: header["dim"].__setitem__(slice(1, 4), 512))
    yield Sample("a gigabyte of nothing", "field", with_hole(head, 352 + 12 * 512**3), "GB of memory, but", None, ".nii")
    shape = "'shape': (512, 512, 512, 3)"
    held = npy(f"{{'descr': '<f4', 'fortran_order': False, {shape}}}")
    yield Sample("an npz of gigabytes", "npz", bytes_of(archive(held)), TORN, None, ".npz")
    for name, values in {"pairs": ramp(4, 5, 6, 2), "an image": ramp(4, 5, 6), "two of them": ramp(4, 5, 6, 3, 2)}.items():
        says = "found vectors of another program" if name == "two of them" else "shape (H, W, D, 3)"
        yield Sample(f"a displacement of {name}", "field", bytes_of(nifti(values)), says, None, ".nii")
    colors = np.zeros((4, 5, 6, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    yield Sample("a displacement of colors", "field", bytes_of(nifti(colors)), "of numbers, found data of type", None, ".nii")
    for name, data in FOREIGN.items():
        if name != "nifti":
            yield Sample(f"a displacement of {name}", "field", bytes_of(data), "expected a whole NIfTI image", None, ".nii.gz")
    for what, make in {"a named pipe": os.mkfifo, "a folder": os.mkdir, "an empty file": bytes_of(b"")}.items():
        yield Sample(f"a displacement that is {what}", "field", make, f"found {what}", None, ".nii")
    yield Sample("a displacement that is nowhere", "field", lambda _: None, "no such file", None, ".nii")


def point_samples() -> Iterator[Sample]:
    """Landmarks for ``warp --points``."""
    finite = "expected three finite numbers, found"
    says: str | None
    for text, says in (
        ("1,2\n", "expected three numbers or three names"), ("1,2,3\n4,5\n", finite), ("1,2,3\n4,5,x\n", finite),
        ("1,2,3\n1,2,nan\n", finite),
        ("1,2,3\n1e300,2,3\n", "expected coordinates of at most"),
        ("1,2,3\n1e10,2,3\n", "expected coordinates of at most"),
        ("1,2,3\n" + "9" * 4000 + ",2,3\n", finite), ("1,2,3\n1,2,3\0\n", "expected"), ("1;2;3\n", "expected three numbers or"),
        ("x\n", "expected three numbers or three names"), ("x,y,z\na,b,c\n", finite),
        ("x" * 200_000 + ",y,z\n", "it cannot be read"),
        ("1,2,3\n\"1,2,3\n" * 3, "expected"),
        (",,\n", "expected three numbers or three names"),
        ("1,2,3\n,,1\n", finite),
        ("١,٢,٣\n", "expected three numbers or three names"),
        ("=1+1,2,3\n", "expected three"),
        ("1,2,3\n" + ESCAPES + ",2,3\n", finite), ("1,2,3\n" * 1_400_000 + ",\n", "expected at most 4194304 cells"),
    ):  # fmt: skip
        yield Sample(f"csv {text[:20]!r}", "points", text_of(text), says, None, ".csv")
    for text, says in (
        ("# CoordinateSystem = IJK\n1,2,3,4\n", "expected the coordinate system RAS (0) or LPS (1)"),
        ("# columns = id,x,y\n1,2,3\n", "expected columns named x, y and z"), ("# columns = x,y,z\n1,2\n", finite),
        ("1,a,b,c\n", finite), ("1,1e300,2,3\n", finite), ("# columns = " + "x," * 99_999 + "\n1\n", "expected columns"),
        ("# CoordinateSystem = " + ESCAPES + "\n", "expected the coordinate system"), ("1,\"2,3,4\n", finite),
    ):  # fmt: skip
        yield Sample(f"fcsv {text[:30]!r}", "points", text_of(text), says, None, ".fcsv")

    def markups(**changes: object) -> dict[str, object]:
        group = {"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": [{"label": "a", "position": [1, 2, 3]}]}
        return {"markups": [group | changes]}

    controls, system = "expected 'controlPoints' as lists of objects", "expected one coordinate system"
    content: object
    for name, content, says in (
        ("a list", [], "expected a list 'markups'"), ("null", None, "expected a list 'markups'"),
        ("a number", 3, "expected a list"),
        ("no groups", {"markups": {}}, "expected a list"), ("numbers", {"markups": [1]}, "expected a list"),
        ("a system", markups(coordinateSystem="IJK"), system), ("a system 3", markups(coordinateSystem=3), system),
        ("a system of lists", markups(coordinateSystem=[["RAS"] * 99]), system),
        ("micrometers", markups(coordinateUnits="um"), "expected coordinates in mm"),
        ("a unit of lists", markups(coordinateUnits=[{}] * 99), "expected coordinates in mm"),
        ("points 3", markups(controlPoints=3), controls), ("points of points", markups(controlPoints={"a": 1}), controls),
        ("points of numbers", markups(controlPoints=[1, 2]), controls),
        ("two numbers", markups(controlPoints=[{"position": [1, 2]}]), finite),
        ("an object", markups(controlPoints=[{"position": {"x": 1}}]), finite),
        ("text", markups(controlPoints=[{"position": "1,2,3"}]), finite),
        ("truth", markups(controlPoints=[{"position": [True, False, 1]}]), finite),
        ("NaN", markups(controlPoints=[{"position": [float("nan"), 1, 2]}]), finite),
        ("far", markups(controlPoints=[{"position": [1e300, 1, 2]}]), finite),
        ("a long number", markups(controlPoints=[{"position": [10**400, 1, 2]}]), finite),
        ("a status of lists", markups(controlPoints=[{"position": [1, 2, 3], "positionStatus": []}]), None),
        ("half a character", markups(controlPoints=[{"position": [1, 2, 3], "label": "\ud800"}]), "of whole characters"),
        ("half a key", {"markups": [], "\udfff": 1}, "of whole characters"),
    ):  # fmt: skip
        yield Sample(f"markups of {name}", "points", text_of(json.dumps(content)), says, None, ".mrk.json")
    for name, data, says in (
        ("depth", b'{"markups":' + b"[" * 51 + b"]" * 51 + b"}", "levels of brackets"),
        ("great depth", b'{"markups":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "levels of brackets"),
        ("two keys", b'{"markups": [], "markups": []}', "stands twice"), ("digits", b'{"markups": ' + b"9" * 5000 + b"}", TORN),
        ("half a file", b'{"markups": [', TORN), ("utf-16", '{"markups": []}'.encode("utf-16"), "expected"),
        ("millions of lists", b'{"markups": [' + b"[]," * 2_200_000 + b"[]]}", "of at most 4194304 values"),
        ("NUL", b"\0" * 100, TORN), ("nothing", b"", "found an empty file"),
    ):  # fmt: skip
        yield Sample(f"markups of {name}", "points", bytes_of(data), says, None, ".mrk.json")
    for suffix in (".csv", ".fcsv", ".mrk.json"):
        for what, make in {"a named pipe": os.mkfifo, "a folder": os.mkdir, "a device": link_to("/dev/zero")}.items():
            yield Sample(f"{suffix} that is {what}", "points", make, f"found {what}", None, suffix)
        yield Sample(f"{suffix} that is a socket", "points", make_socket, "found a socket", None, suffix)
        yield Sample(f"{suffix} of a TiB", "points", sparse(2**40), "expected at most 67108864 bytes", None, suffix)
        yield Sample(f"{suffix} of bytes", "points", bytes_of(b"\xff\xfe\xfd"), "expected landmarks as text", None, suffix)
    yield Sample("points of another suffix", "points", text_of("1,2,3\n"), "expected a name ending in", None, ".txt")


def link_to(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


def report_samples() -> Iterator[Sample]:
    """Reports that are none; ``leaves`` makes more of them."""
    for name, data, says in (
        ("nothing", b"", "found an empty file"), ("a brace", b"{", TORN),
        ("no object", b"[]", "the file is missing or of another type"),
        ("an object", b"{}", "versions is missing"), ("utf-16", '{"a": 1}'.encode("utf-16"), "expected the report of a run"),
        ("depth", b'{"cases":' + b"[" * 60 + b"]" * 60 + b"}", "levels of brackets"),
        ("great depth", b'{"cases":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, "levels of brackets"),
        ("two keys", b'{"cases": {}, "cases": {}}', "stands twice"), ("digits", b'{"threads": ' + b"9" * 5000 + b"}", TORN),
        ("millions of lists", b'{"cases": [' + b"[]," * 4_300_000 + b"[]]}", "of at most 8388608 values"),
        ("a dataset", b'{"name": "T", "registration_val": []}', "expected the report of a run by this version"),
    ):  # fmt: skip
        yield Sample(f"report of {name}", "report", bytes_of(data), says, None, ".json")
    yield Sample("a report of a TiB", "report", sparse(2**40), "of at most 134217728 bytes", None, ".json")
    for what, make in {"a named pipe": os.mkfifo, "a device": link_to("/dev/zero"), "a socket": make_socket}.items():
        yield Sample(f"a report that is {what}", "report", make, "expected", None, ".json")


LEAVES: tuple[object, ...] = (
    None, -1, 0, 10**400, float("inf"), float("nan"), "", "x" * 5000, f"../{ESCAPES}\0", "\ud800", "<script>", [],
    {}, [[]], True,
)  # fmt: skip


def leaves(report: Any) -> Iterator[tuple[str, Any]]:
    """Every report that has another value in one place, and what was done to it."""
    places: list[tuple[Any, ...]] = [()]
    for place in places:
        content = report
        for key in place:
            content = content[key]
        keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
        places.extend((*place, key) for key in keys)
    for place in places[1:]:
        for value in LEAVES:
            changed = copy.deepcopy(report)
            content = changed
            for key in place[:-1]:
                content = content[key]
            content[place[-1]] = value
            yield f"{'.'.join(map(str, place))} is {value!r:.30}", changed


def object_samples() -> Iterator[tuple[str, Callable[[], Any], str]]:
    """What the Python API gets as an image: a name, what makes it, and the sentence."""
    one = "expected one number per voxel"
    for kind in (sitk.sitkLabelUInt8, sitk.sitkLabelUInt16, sitk.sitkLabelUInt32, sitk.sitkLabelUInt64):
        yield f"a label map, {kind}", partial(sitk.Image, [4, 5, 6], kind), "convert it with SimpleITK.LabelMapToLabel"
    yield (
        "a label map of labels",
        lambda: sitk.Cast(sitk.Image([4, 5, 6], sitk.sitkUInt8), sitk.sitkLabelUInt8),
        "LabelMapToLabel",
    )
    for kind in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
        yield f"a complex image, {kind}", partial(sitk.Image, [4, 5, 6], kind), one
    yield "an image of vectors", lambda: sitk.Image([4, 5, 6], sitk.sitkVectorFloat32, 3), "found 3"
    for size in ([4, 5], [4, 5, 6, 2]):
        yield f"an image of {size}", partial(sitk.Image, size, sitk.sitkFloat32), "expected a 3D image"
    yield "no image", sitk.Image, "expected a 3D image"
    yield "a nibabel image whose file is gone", lambda: gone(nifti(ramp(*SHAPE)), None), "cannot be read"
    yield "a nibabel image whose file is cut", lambda: gone(nifti(ramp(*SHAPE)), 400), "cannot be read"
    torn = gzip.compress(nifti(np.random.default_rng(0).random(SHAPE)))
    yield "a nibabel image whose stream is cut", lambda: gone(torn, 900, ".nii.gz"), "cannot be read"
    yield (
        "a nibabel image of gigabytes",
        lambda: nibabel.Nifti1Image(np.broadcast_to(np.float32(0), (1024,) * 3), np.eye(4)),
        "GB of",
    )
    yield "a surface", lambda: nibabel.GiftiImage(), "expected a path, an array"
    for name, array, says in (
        ("objects", np.full((4, 5, 6), None), one), ("texts", np.full((4, 5, 6), "a"), one),
        ("a plane", np.zeros((4, 5)), "a 3D image"),
        ("nothing", np.zeros((0, 5, 6)), "a 3D image"), ("complex", np.zeros((4, 5, 6), complex), one),
        ("records", np.zeros((4, 5, 6), [("a", "f4")]), one), ("times", np.zeros((4, 5, 6), "M8[s]"), one),
        ("a tensor nowhere", torch.empty((4, 5, 6), device="meta"), "expected"),
        ("a sparse tensor", torch.zeros((4, 5, 6)).to_sparse(), "expected"),
        ("a complex tensor", torch.zeros((4, 5, 6), dtype=torch.complex64), one),
        ("a list", [[[1]]], "expected a path"), ("None", None, "expected a path"), ("bytes", b"a", "expected a path"),
    ):  # fmt: skip
        yield name, partial(same, array), says
    grid = ramp(*SHAPE)
    for name, affine in {
        "zeros": np.zeros((4, 4)), "NaN": np.full((4, 4), np.nan), "three": np.eye(3), "text": "RAS",
        "huge": np.diag([1e300] * 3 + [1]),
        "tiny": np.diag([1e-300] * 3 + [1]), "none": None,
    }.items():  # fmt: skip
        yield f"an affine of {name}", partial(same, (grid, affine)), "expected"
    for path in (
        "",
        "\0",
        "a\0b",
        "x" * 5000,
        "x/" * 3000,
        "/dev/zero",
        "/",
        ".",
        "\udcff",
        "a.nrrd\0",
        "\udcff.nrrd",
        f"{ESCAPES}.mha",
    ):
        yield f"a path {path[:20]!r}", partial(same, path), "" if len(path) > 100 else "expected"


def same(value: Any) -> Any:
    return value


def gone(data: bytes, size: int | None, suffix: str = ".nii") -> Any:
    """An image of nibabel whose file was removed, or cut, after it was opened."""
    path = Path(f"gone{suffix}").absolute()
    path.write_bytes(data)
    image = nibabel.load(path)
    if size is None:
        path.unlink()
    else:
        os.truncate(path, size)
    return image
