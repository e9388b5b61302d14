"""Puts the corpus of malformed inputs through both programs, in one process: ``python test/support/front_doors.py FOLDER``.

Prints a line of JSON for each call, and a last one with the peak memory. ``test_corpus.py`` runs it and judges what it prints.
"""

import contextlib
import gzip
import io
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from malformed import (
    FIELD,
    FIXED,
    MOVING,
    PAIR,
    SHAPE,
    Sample,
    config_samples,
    csv_samples,
    dataset_of,
    json_samples,
    path_samples,
)
from malformed_arrays import field_samples, image_samples, nifti, ramp

LIMIT_S = 10
IMAGE = gzip.compress(nifti(ramp(*SHAPE)))
ZERO = gzip.compress(nifti(np.zeros((*SHAPE, 3), np.float32)))

Program = Callable[[list[str]], int]
Door = tuple[str, Path, list[str]]
"""Which program, where the sample lies, and the arguments."""


def samples() -> list[Sample]:
    """The whole corpus."""
    makers = (json_samples, path_samples, image_samples, field_samples, csv_samples, config_samples)
    return [sample for make in makers for sample in make()]


def make_around(folder: Path) -> None:
    """A dataset that is as it should be, with a prediction."""
    for name in ("data/imagesTr", "data/landmarksTr", "predictions"):
        (folder / name).mkdir(parents=True)
    for name in (FIXED, MOVING):
        (folder / f"data/imagesTr/{name}.nii.gz").write_bytes(IMAGE)
        (folder / f"data/landmarksTr/{name}.csv").write_text("1,2,3\n2,3,4\n")
    dataset_of(PAIR["fixed"])(folder / "data/ReMIND2Reg_dataset.json")


def doors(sample: Sample, folder: Path) -> Iterator[Door]:
    """The calls that meet a sample; each gets a folder of its own."""
    dataset, out, good = folder / "data/ReMIND2Reg_dataset.json", folder / "out", folder / f"data/imagesTr/{MOVING}.nii.gz"
    judged = ["--dataset", str(dataset), "--predictions", str(folder / "predictions")]
    if sample.kind == "json":
        yield "method", dataset, [str(dataset), "--output", str(out)]
        yield "judge", dataset, ["zero", "--dataset", str(dataset), "--output", str(out)]
    elif sample.kind == "image":
        spoiled = folder / f"data/spoiled{sample.suffix}"
        yield "method", spoiled, [str(spoiled), str(good), str(out / "f.nii.gz")]
        yield "method", spoiled, [str(good), str(spoiled), str(out / "f.nii.gz")]
        named, other = f"imagesTr/S_0001_0000{sample.suffix}", folder / "data/other.json"
        dataset_of(named)(other)
        yield "judge", folder / "data" / named, ["zero", "--dataset", str(other), "--output", str(out)]
    elif sample.kind == "field":
        spoiled = folder / f"predictions/{FIELD}{sample.suffix}"
        yield "judge", spoiled, ["score", *judged, "--output", str(out / "m.json")]
        yield "judge", spoiled, ["validate", *judged]
        yield "reader", spoiled, [str(spoiled)]
    elif sample.kind == "csv":
        (folder / f"predictions/{FIELD}.nii.gz").write_bytes(ZERO)
        name = MOVING if "far away" in sample.name else FIXED
        yield (
            "judge",
            folder / f"data/landmarksTr/{name}.csv",
            ["score", *judged, "--metrics", "tre", "--html", str(out / "m.html")],
        )
    else:
        yield "judge", folder / "config.json", ["score", *judged, "--config", str(folder / "config.json")]


def attempt(program: Program, arguments: list[str]) -> dict[str, Any]:
    """What came of a call: exit status, what was said, seconds; a traceback if something was not caught."""
    said = io.StringIO()
    start = time.perf_counter()
    signal.alarm(LIMIT_S)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status: int | str = program(arguments)
    except BaseException:
        status = traceback.format_exc()
    finally:
        signal.alarm(0)
    return {"status": status, "said": said.getvalue(), "seconds": round(time.perf_counter() - start, 3)}


def listing(folder: Path) -> set[str]:
    """What lies below a folder, but not in its ``out``, and beside it."""
    inside = {str(path) for path in folder.rglob("*") if not path.is_relative_to(folder / "out")}
    return inside | set(map(str, folder.parent.iterdir()))


def programs() -> dict[str, Program]:
    import process
    from evaluation.__main__ import main as judge
    from mcbo.core.errors import InputError
    from mcbo.io.nifti import read_displacement

    def reader(arguments: list[str]) -> int:
        try:
            read_displacement(Path(arguments[0]))
        except InputError as error:
            print(error)
            return 1
        return 0

    return {"method": process.main, "judge": judge, "reader": reader}


def main(root: Path) -> None:
    """Runs everything."""
    known = programs()
    os.chdir(root)  # where a shell that was tricked would write
    for number, sample in enumerate(samples()):
        for door in range(3):
            folder = root / f"{number}-{door}"
            make_around(folder)
            chosen = next((found for k, found in enumerate(doors(sample, folder)) if k == door), None)
            if chosen is None:
                break
            program, spoiled, arguments = chosen
            spoiled.unlink(missing_ok=True)
            sample.build(spoiled)
            before = listing(folder)
            result = attempt(known[program], arguments)
            new = sorted(listing(folder) - before - {str(folder / "out")})
            expected = sample.judge if program == "judge" else sample.method
            print(
                json.dumps({"name": sample.name, "program": program, "door": door, "expected": expected, "new": new} | result)
            )
    print(json.dumps({"peak_bytes": peak_bytes()}))


def peak_bytes() -> int:
    """The most memory that this process had resident. (``ru_maxrss`` begins with that of the process that started it.)"""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main(Path(sys.argv[1]))
