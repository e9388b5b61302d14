"""The steps of ``gpu_check.sh`` that need Python: ``gpu_check.py STEP ARGUMENTS``. They need no SimpleITK, numba, or pandas."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

NEEDED = {
    "torch": "", "numpy": "", "scipy": "", "nibabel": "", "pydantic": "", "typer": "", "rich": "", "isal": "",
    "cuda.core": "cuda-core: without it, plain torch is measured",
    "cuda.bindings": "cuda-bindings, which torch for CUDA brings: without it, plain torch is measured",
    "surface_distance": "surface-distance: without it, there is no TRE",
    "pytest": "without it, there are no tests",
    "hypothesis": "without it, there are no tests",
    "numba": "without it, the CPU that the GPU is compared with computes with plain torch",
}  # fmt: skip
OPTIONAL = {"numba"}
WARM_S = {"mcbo2024": 4.0, "cascade": 2.5}
"""Most seconds of a warm case of 256³ voxels with two moving images, from files to file."""


def missing(device: str) -> None:
    """Says which packages there are not, and what follows."""
    needed = [name for name in NEEDED if device != "cpu" or not name.startswith("cuda.")]
    lacking = [name for name in needed if not _is_there(name)]
    for name in lacking:
        print(f"missing: {name}{': ' if NEEDED[name] else ''}{NEEDED[name]}")
    if set(lacking) - OPTIONAL:
        sys.exit("put them into a folder on PYTHONPATH, as the header of this script says")


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # not even its parent is there
        return False


def draw(folder: str, size: str) -> None:
    """Writes a phantom with landmarks as a dataset of one case with two moving images."""
    from mcbo.io.files import write_whole
    from mcbo.io.nifti import write_volume
    from mcbo.studies.phantom import make_phantom

    phantom = make_phantom((int(size),) * 3, wedge=True)
    names = [f"ReMIND2Reg_0001_{channel:04}" for channel in range(3)]
    points = (phantom.fixed_landmarks, phantom.moving_landmarks, phantom.moving_landmarks)
    for name, image, landmarks in zip(names, (phantom.fixed, phantom.cet1, phantom.t2), points, strict=True):
        write_volume(Path(folder, "imagesTr", f"{name}.nii.gz"), image, np.eye(4))
        write_whole(Path(folder, "landmarksTr", f"{name}.csv"), partial(np.savetxt, X=landmarks, fmt="%.3f", delimiter=","))
    fixed, *movings = (f"./imagesTr/{name}.nii.gz" for name in names)
    content = {"name": "ReMIND2Reg", "registration_val": [{"fixed": fixed, "moving": moving} for moving in movings]}
    Path(folder, "ReMIND2Reg_dataset.json").write_text(json.dumps(content))


def measure(dataset: str, preset: str, device: str, figures: str) -> None:
    """Registers the first case once, then three times, then under a profiler: what the process saw of each."""
    from mcbo.core.field import shape_of
    from mcbo.dataset.learn2reg import open_input
    from mcbo.io.nifti import read_image
    from mcbo.methods.presets import DEFAULT_TASK, find_config
    from mcbo.runs.options import Options
    from mcbo.runtime import held_bytes, select_device
    from mcbo.studies.benchmark import Benchmark, Gpu, to_content, to_text

    case = open_input(Path(dataset), split="val").cases[0]
    where = select_device(device)
    options = Options(output=Path(figures).with_suffix(""), device=device, overwrite=True)
    config = find_config(DEFAULT_TASK, preset)
    benchmark = Benchmark(shape_of(read_image(case.fixed).volume), len(case.pairs), [case], config, options)
    first = benchmark.register().seconds
    measured = benchmark.measure(3)
    if where.type == "cuda":
        held_gb = held_bytes(where) / 1e9
        measured = replace(measured, gpu=Gpu(held_gb, first_seconds=first, stages=benchmark.observe(where)))
    print(to_text({"preset": preset, "dataset": Path(dataset).parent.name}, [measured], subject="case"))
    _write(figures, to_content(measured) | {"first_seconds": first})
    if measured.gpu:
        whole = measured.gpu.whole
        _limits(
            ("seconds of a warm case", measured.seconds, WARM_S[preset]),
            ("seconds of the first case", first, 8),
            ("launches", whole.launches, 15000),
            ("waits of the host", whole.waits, 300),
            ("GB held on the GPU", measured.gpu.held_gb, 8),
        )


def compare(preset: str, device: str, size: str, figures: str) -> None:
    """Displacements of a small phantom on the device and on the CPU."""
    from mcbo.methods.presets import DEFAULT_TASK, find_config
    from mcbo.runs.options import Options
    from mcbo.studies.benchmark import compare_with_cpu

    options = Options(output=Path(figures).with_suffix(""), device=device)
    found = compare_with_cpu(find_config(DEFAULT_TASK, preset), options, movings=2, size=int(size))
    for name, one in found.items():
        print(f"{preset}, {name}: {one.mean:.4f} voxels from the CPU's on average, {one.largest:.4f} at most")
    _write(figures, {name: asdict(one) for name, one in found.items()})
    _limits(("mean distance from the CPU's field, voxels", max(one.mean for one in found.values()), 0.02))


def tre(dataset: str, results: str, figures: str) -> None:
    """Mean TRE of the first case by the evaluation package; and what the report says of its memory and time."""
    from evaluation.pairs import read_pairs
    from evaluation.scoring import score_pair
    from evaluation.settings import from_options

    case = _case(results)
    found = {"seconds": case["seconds"], "peak_gb": _peak_gb(case)}
    settings = from_options(["tre"])
    scores = [score_pair(pair, Path(results), settings) for pair in read_pairs(Path(dataset))[: len(case["written"])]]
    for score in scores:
        if score.error:
            sys.exit(score.error)
    found["tre_mm"] = float(np.mean([np.mean(values) for score in scores for values in score.values.values()]))
    found["initial_mm"] = float(np.mean([np.mean(values) for score in scores for values in score.initial.values()]))
    print(f"TRE {found['initial_mm']:.2f} mm before, {found['tre_mm']:.2f} mm after; {found}")
    path = Path(figures)
    _write(figures, _read(path) | found)


def peak(results: str, limit_gb: str) -> None:
    """Fails if the tensors of a run's case took more memory than it was allowed."""
    _limits(("peak GB of the tensors", _peak_gb(_case(results)), float(limit_gb)))


def _case(results: str) -> dict[str, Any]:
    """The only case of a report."""
    (case,) = _read(Path(results, "report.json"))["cases"].values()
    return dict(case)


def _peak_gb(case: dict[str, Any]) -> float:
    """Of the stages that compute: reading, finding masks and writing have the memory of the process."""
    stages = [stage for name, stage in case["stages"].items() if name not in ("read", "masks", "write")]
    return float(max(stage["peak_memory_mb"] for stage in stages)) / 1000


def _limits(*limits: tuple[str, float, float]) -> None:
    """Prints figures beside their limits; status 1 if one is larger."""
    for what, value, limit in limits:
        print(f"{'ok' if value <= limit else 'OVER THE LIMIT'}: {what}: {value:.4g}, expected at most {limit:g}")
    if not all(value <= limit for _, value, limit in limits):
        sys.exit(1)


def block(folder: str, device: str) -> None:
    """The figures, ready for docs/results.md."""
    from mcbo.runtime import describe_device, select_device, versions

    rows = []
    for path in sorted(Path(folder).glob("measure-*.json")):
        data, preset = path.stem.removeprefix("measure-").rsplit("-", 1)
        one, process = json.loads(path.read_text()), _read(Path(folder, f"process-{data}-{preset}.json"))
        whole = one.get("gpu", {}).get("whole", {})
        rows.append(
            [data, f"`{preset}`", _figure(process.get("wall_s")), _figure(process.get("seconds")), _figure(one["seconds"]),
             _figure(whole.get("busy_s")), _figure(whole.get("launches"), 0), _figure(whole.get("waits"), 0),
             _figure(one["peak_memory_gb"]), _figure(one.get("gpu", {}).get("held_gb")), _figure(process.get("tre_mm"))]
        )  # fmt: skip
    about = [describe_device(select_device(device)), f"driver {os.environ.get('DRIVER') or 'unknown'}"]
    about += [f"{name} {value}" for name, value in versions().items() if name in ("mcbo", "torch", "cuda", "python")]
    print(", ".join([*about, f"{datetime.now(UTC):%Y-%m-%d}", f"commit {os.environ.get('COMMIT')}"]) + "\n")
    heads = ["data", "preset", "whole process, s", "its case, s", "warm case, s", "GPU busy, s", "launches", "waits", "peak GB",
             "held GB", "TRE, mm"]  # fmt: skip
    for cells in (heads, ["---"] * len(heads), *rows):
        print(f"| {' | '.join(cells)} |")
    for path in sorted(Path(folder).glob("compare-*.json")):
        found = json.loads(path.read_text()).values()
        mean, largest = (max(one[key] for one in found) for key in ("mean", "largest"))
        print(f"\n`{path.stem.partition('-')[2]}`: {mean:.4f} voxels from the CPU's on average, {largest:.4f} at most")


def wall(figures: str, seconds: str) -> None:
    """Keeps the seconds of a whole process."""
    _write(figures, {"wall_s": float(seconds)})


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def _write(path: str, content: object) -> None:
    Path(path).write_text(json.dumps(content, indent=1))


def _figure(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


STEPS: dict[str, Callable[..., None]] = {
    step.__name__: step for step in (missing, draw, measure, compare, tre, peak, wall, block)
}

if __name__ == "__main__":
    STEPS[sys.argv[1]](*sys.argv[2:])
