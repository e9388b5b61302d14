"""Feeds the readers of both packages what coverage-guided mutation finds, and the doors of foreign readers plain mutations.

usage: python test/manual/fuzz.py json|csv|nifti|npz [SECONDS]
       python test/manual/fuzz.py nrrd|metaimage|tiff|gipl|nibabel|transform|markups|table|report [SECONDS [SEED]]

Every input has to give a result or the package's own sentence; anything else stops the run and is kept as ``crash-*``. The
first line needs atheris, which is not among the requirements; the second does not, since coverage cannot guide what happens in
another process. Its files are read twice, and have to be the same. Tests do not run it.
"""

import gzip
import importlib
import io
import json
import random
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
READERS = (
    "mcbo.io.json_file",
    "mcbo.dataset.folders",
    "mcbo.dataset.learn2reg",
    "mcbo.io.nifti_header",
    "mcbo.io.npz",
    "mcbo.io.nifti",
)
JUDGES = ("evaluation.files", "evaluation.pairs", "evaluation.images", "evaluation.landmarks", "evaluation.settings")
LIBRARIES = ("nibabel", "zipfile", "json", "numpy.lib.format")


def seeds(kind: str) -> list[bytes]:
    """Inputs that are right, for mutation to spoil."""
    if kind == "json":
        pair = {"fixed": "imagesTr/T_0001_0000.nii.gz", "moving": "imagesTr/T_0001_0001.nii.gz"}
        methods = [{"metric": "dice", "labels": [1, "2"], "name": "DSC", "dest": "keypoints"}]
        content = {"name": "T", "registration_val": [pair], "eval_pairs": [pair], "evaluation_methods": methods}
        return [json.dumps(content).encode(), b"[" * 99 + b"]" * 99, '\ufeff{"name": "\\ud800"}'.encode()]
    if kind == "csv":
        return [b"1,2,3\n4.5,-6e0,7\n", b"\xef\xbb\xbf1,2,3\r\n"]
    array = np.arange(60, dtype=np.float32).reshape(4, 5, 3)
    if kind == "npz":
        files = []
        for values in (array, np.zeros((4, 5, 6, 3), np.float16)):
            buffer = io.BytesIO()
            np.savez_compressed(buffer, values)
            files.append(buffer.getvalue())
        return files
    kinds: tuple[Any, ...] = (nibabel.Nifti1Image, nibabel.Nifti2Image)
    plain = [made(values, np.eye(4)).to_bytes() for made in kinds for values in (array, array[None])]
    return [bytes([mode]) + data for mode in (0, 1) for data in plain] + [b"\x02" + gzip.compress(data) for data in plain]


def calls(kind: str, folder: Path) -> Callable[[bytes], None]:
    """What one input is given to."""
    from evaluation import files, images, landmarks, pairs, settings
    from evaluation.errors import EvaluationError
    from mcbo.core.errors import InputError
    from mcbo.dataset import learn2reg as dataset
    from mcbo.io import nifti

    def attempt(read: Callable[..., object], *arguments: Any, **options: Any) -> None:
        try:
            read(*arguments, **options)
        except (InputError, EvaluationError) as error:
            if "expected" not in str(error) or len(str(error)) > 2000:
                raise AssertionError(f"no fit sentence: {error!r}") from error

    def write(name: str, data: bytes) -> Path:
        path = folder / name
        path.write_bytes(data)
        return path

    def read_json(data: bytes) -> None:
        path = write("x_dataset.json", data)
        attempt(dataset.open_input, path, split="val")
        attempt(pairs.read_pairs, path)
        attempt(settings.from_config, path, path)
        attempt(files.read_json, path)

    def read_csv(data: bytes) -> None:
        attempt(landmarks.read_landmarks, write("x.csv", data), inside=(9, 9, 9))

    def read_field(path: Path) -> None:
        attempt(nifti.read_displacement, path)
        attempt(lambda: images.load_field(images.open_field(path)))

    def read_nifti(data: bytes) -> None:
        mode, rest = data[0] % 3 if data else 0, data[1:]
        path = write("x.nii" if mode == 0 else "x.nii.gz", gzip.compress(rest, 1) if mode == 1 else rest)
        attempt(nifti.read_image, path)
        attempt(images.read_grid, path)
        attempt(lambda: images.read_volume(path, images.read_grid(path)[0]))
        read_field(path)

    return {
        "json": read_json,
        "csv": read_csv,
        "nifti": read_nifti,
        "npz": lambda data: read_field(write("x.npz", data)),
    }[kind]


PLAIN = ("nrrd", "metaimage", "tiff", "gipl", "nibabel", "transform", "markups", "table", "report")
LIMIT_S = 10
MEMORY_BYTES = 2 * 10**9
"""Of the machine that the readers believe to run on."""


def plain_seeds(kind: str) -> list[tuple[str, bytes]]:
    """Files that are right, with their suffixes."""
    import SimpleITK as sitk

    sys.path.insert(0, str(ROOT / "test/support"))
    from malformed_files import DATA, meta, nrrd, page, tiff
    from malformed_inputs import tfm

    array = np.arange(120, dtype=np.float32).reshape(6, 5, 4)
    if kind == "nrrd":
        fields: list[dict[str, object]] = [
            {},
            {"encoding": "gzip"},
            {"encoding": "ascii"},
            {"byte skip": -1},
            {"type": "short"},
        ]
        data = [DATA, gzip.compress(DATA), b"1 2 3 " * 40, DATA, DATA]
        return [(".nrrd", nrrd(fields_of, held)) for fields_of, held in zip(fields, data, strict=True)]
    if kind == "metaimage":
        packed = zlib.compress(DATA)
        zipped: dict[str, object] = {"CompressedData": True, "CompressedDataSize": len(packed)}
        changes: list[dict[str, object]] = [{}, zipped, {"BinaryData": False}, {"HeaderSize": -1}]
        data = [DATA, packed, b"1 2 3 " * 40, DATA]
        return [(".mha", meta(change, held)) for change, held in zip(changes, data, strict=True)]
    if kind == "tiff":
        return [(".tif", tiff(*[page()] * 3)), (".tif", _written(sitk.GetImageFromArray(array), ".tif"))]
    if kind == "gipl":
        return [(suffix, _written(sitk.GetImageFromArray(array), suffix)) for suffix in (".gipl", ".gipl.gz")]
    if kind == "nibabel":
        made: Any = nibabel.MGHImage(array, np.eye(4)).to_bytes()
        return [(".mgh", made), (".mgz", gzip.compress(made)), (".nii.gz", nibabel.Nifti1Image(array, np.eye(4)).to_bytes())]
    if kind == "transform":
        grid = "4 4 4 0 0 0 1 1 1 1 0 0 0 1 0 0 0 1"
        transforms = [sitk.Euler3DTransform(), sitk.DisplacementFieldTransform(sitk.Image((4, 5, 6), sitk.sitkVectorFloat64))]
        texts = [
            tfm("BSplineTransform_double_3_3", "0 " * 192, grid),
            tfm("AffineTransform_double_3_3", "1 0 0 0 1 0 0 0 1 1 2 3", "0 0 0"),
        ]
        written = [(suffix, _written(t, suffix)) for t in transforms for suffix in (".h5", ".tfm")]
        return [*written, *((".tfm", text) for text in texts), (".mat", _written(transforms[0], ".mat"))]
    if kind == "markups":
        control = {"id": "1", "label": "a", "position": [1.5, 2, 3], "orientation": [1, 0, 0], "positionStatus": "defined"}
        group = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": [control, control]}
        return [(".mrk.json", json.dumps({"@schema": "x", "markups": [group]}).encode())]
    if kind == "table":
        fcsv = b"# CoordinateSystem = LPS\n# columns = id,x,y,z,label\n1,10.5,-20,30,a\n2,1,2,3,b\n"
        return [(".csv", b"x,y,z,label\n1,2,3,a\n4.5,6e0,7,b\n"), (".csv", b"1,2,3\n"), (".fcsv", fcsv)]
    report = {
        "versions": {"mcbo": "0"}, "device": "cpu", "threads": 1, "config": {"name": "cascade"}, "sha256": "",
        "cases": {"a": {"inputs": {"a": None}, "shape": [4, 5, 6], "stages": {"read": {"seconds": 1.0, "peak_memory_mb": 3}},
                        "files": {"m": {"displacement": "d.nii"}}, "images": ["a.nii", "b.nrrd"], "coordinates": "world"}},
    }  # fmt: skip
    return [(".json", json.dumps(report).encode())]


def _written(made: Any, suffix: str) -> bytes:
    import SimpleITK as sitk

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{suffix}"
        (sitk.WriteTransform if isinstance(made, sitk.Transform) else sitk.WriteImage)(made, str(path))
        return path.read_bytes()


NUMBERS = (
    b"0",
    b"-1",
    b"-3",
    b"16",
    b"999999999",
    b"2147483648",
    b"-9223372036854775808",
    b"1e308",
    b"nan",
    b"inf",
    b"%s",
    b"%d",
)


def mutated(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """One to four changes: bits, bytes, numbers in text, and pieces cut out, doubled or taken from another file."""
    result = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(min(len(result), 1 << chance.randint(4, 16)) or 1)
        count = 1 << chance.randint(0, 8)
        way = chance.randrange(8)
        if way == 0 and result:
            result[at % len(result)] ^= 1 << chance.randrange(8)
        elif way == 1:
            result[at : at + chance.choice((1, 2, 4, 8))] = chance.choice((b"\xff", b"\0", b"\x7f", b"\x80")) * chance.choice(
                (1, 2, 4, 8)
            )
        elif way == 2:
            del result[at : at + count]
        elif way == 3:
            result[at:at] = result[at : at + count] * chance.choice((1, 1, 2, 50))
        elif way == 4:
            other = chance.choice(others)
            start = chance.randrange(len(other) or 1)
            result[at : at + count] = other[start : start + count]
        elif way == 5:
            del result[chance.randrange(len(result) or 1) :]
        else:  # a number in the text
            digits = [n for n in range(min(len(result), 2000)) if result[n : n + 1].isdigit()]
            if digits:
                start = end = chance.choice(digits)
                while end < len(result) and (result[end : end + 1].isdigit() or result[end : end + 1] == b"."):
                    end += 1
                result[start:end] = chance.choice(NUMBERS)
    return bytes(result)


def plain_call(kind: str) -> Callable[[Path], object]:
    """What one file is given to; returns something to compare."""
    from mcbo.io.images import read_any
    from mcbo.io.initial_transform import read_initial
    from mcbo.io.itk_files import read_transform
    from mcbo.io.landmarks import read_landmarks
    from mcbo.io.microscopy.selection import Selection, VoxelSize
    from mcbo.qc.findings import look_at
    from mcbo.qc.page import report_page

    def points(path: Path) -> object:
        found = read_landmarks(path)
        return found.points.numpy().tobytes(), found.format_with(found.points + 1).encode()

    def transform(path: Path) -> object:
        try:
            return read_transform(path, None)[0].numpy().tobytes()
        except Exception:
            return read_initial(path).tobytes()

    def image(path: Path) -> object:
        volume, grid = read_any(path, Selection(spacing=VoxelSize((1.0, 1.0, 1.0)) if kind == "tiff" else None))
        return volume.numpy().tobytes(), grid.affine.tobytes()

    return {
        "markups": points,
        "table": points,
        "transform": transform,
        "report": lambda path: len(report_page(look_at(path))) > 0,
    }.get(kind, image)


def run_plain(kind: str, seconds: int, seed: int) -> int:
    """Runs until the time is up or something is found; says how many files were read, and how long the slowest took."""
    sys.path.insert(0, str(ROOT))
    from mcbo.core import memory
    from mcbo.core.errors import InputError, MemoryBudgetError
    from mcbo.core.log import log

    memory._container_free_bytes = lambda *_: [MEMORY_BYTES]
    log.setLevel("ERROR")
    warnings.simplefilter("error")
    files = plain_seeds(kind)
    read = plain_call(kind)
    chance = random.Random(seed)  # noqa: S311 (no secret)
    count = accepted = 0
    slowest, end = 0.0, time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            suffix, data = chance.choice(files)
            data = mutated(data, [other for _, other in files], chance)
            path = Path(folder) / f"x{suffix}"
            path.write_bytes(data)
            start = time.monotonic()
            try:
                result = read(path)
                if read(path) != result:
                    raise AssertionError("read twice, it is not the same")
                accepted += 1
            except (InputError, MemoryBudgetError) as error:
                if "expected" not in str(error) or len(str(error)) > 2000:
                    return _keep(data, suffix, f"no fit sentence: {error!r}")
            except BaseException as error:
                _keep(data, suffix, repr(error))
                raise
            took = time.monotonic() - start
            if took > LIMIT_S:
                return _keep(data, suffix, f"it takes {took:.1f} s")
            count, slowest = count + 1, max(slowest, took)
    print(f"{kind}: {seconds} s, {count} files, {accepted} of them read; the slowest took {slowest:.1f} s")
    return 0


def _keep(data: bytes, suffix: str, why: str) -> int:
    path = Path(f"crash-{zlib.crc32(data):08x}{suffix}")
    path.write_bytes(data)
    print(f"{path}: {why}")
    return 1


def main(arguments: list[str]) -> int:
    """Runs until the time is up or something is found."""
    kinds = ("json", "csv", "nifti", "npz")
    if not arguments or arguments[0] not in (*kinds, *PLAIN):
        print(f"expected one of {', '.join((*kinds, *PLAIN))}, and seconds if not 60")
        return 1
    if arguments[0] in PLAIN:
        seconds = int(arguments[1]) if len(arguments) > 1 else 60
        return run_plain(arguments[0], seconds, int(arguments[2]) if len(arguments) > 2 else 0)
    try:
        atheris = importlib.import_module("atheris")
    except ImportError:
        print("atheris is not installed: pip install atheris, in an environment that has requirements.txt too")
        return 1
    kind, seconds = arguments[0], int(arguments[1]) if len(arguments) > 1 else 60
    sys.path.insert(0, str(ROOT))
    with atheris.instrument_imports(include=[*READERS, *JUDGES, *LIBRARIES]):
        for name in (*READERS, *JUDGES):
            importlib.import_module(name)
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(seeds(kind)):
            (corpus / str(number)).write_bytes(seed)
        one = calls(kind, Path(folder))
        limits = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=2000", "-max_len=4096", "-print_final_stats=1"]
        atheris.Setup(["fuzz", *limits, str(corpus)], one)
        atheris.Fuzz()  # ends the process
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
