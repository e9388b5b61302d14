"""Feeds the readers of both packages what coverage-guided mutation finds.

usage: python test/manual/fuzz.py json|csv|nifti|npz [SECONDS]

Every input has to give a result or the package's own sentence; anything else stops the run and is kept as ``crash-*``. It needs
atheris, which is not among the requirements; tests do not run it.
"""

import gzip
import importlib
import io
import json
import sys
import tempfile
import warnings
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


def main(arguments: list[str]) -> int:
    """Runs until the time is up or something is found."""
    kinds = ("json", "csv", "nifti", "npz")
    if not arguments or arguments[0] not in kinds:
        print(f"expected one of {', '.join(kinds)}, and seconds if not 60")
        return 1
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
