"""Compiles the kernels for CPUs ahead of time: ``python -m mcbo.studies.prebuilt_kernels --output FOLDER``.

Registers phantoms, to see with which types of arguments kernels are called; then compiles them for each level of x86-64
(``kernels/levels.py``), whatever this processor is. A process finds them by ``MCBO_CPU_PREBUILT=FOLDER``.
"""

import argparse
import importlib
import os
import pickle
import pkgutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from mcbo.api.register import register
from mcbo.dataset.learn2reg import read_json
from mcbo.io.files import format_bytes, prepare_folder
from mcbo.kernels.levels import LEVELS, PREBUILT
from mcbo.methods.presets import TASKS
from mcbo.runs.options import Options
from mcbo.runs.runner import run
from mcbo.studies.demo import write_dataset
from mcbo.studies.phantom import Phantom, make_phantom

SHAPE = (36, 28, 44)
"""Of the phantoms: small, but no stage is left out."""

Signatures = list[tuple[str, str, list[Any]]]
"""Module and name of a kernel, and the types of arguments with which it was called."""


def phantoms() -> Iterator[Phantom]:
    """One whose moving images belong to the fixed one, and one whose moving images do not."""
    phantom = make_phantom(SHAPE, wedge=True)
    yield phantom
    yield replace(phantom, cet1=phantom.cet1.flip(2), t2=phantom.t2.flip(3))


def use_kernels(folder: Path) -> None:
    """Registers phantoms with each preset of each task, as a dataset; and with the default, as images of one's own."""
    from mcbo.kernels.cpu import cosine

    cosine.FEW_CELLS = 0  # so that small phantoms do what large images do
    for number, phantom in enumerate(phantoms()):
        dataset = write_dataset(phantom, folder / f"{number}/dataset")
        cases = read_json(dataset, split="val").cases
        for task in TASKS.values():
            for name, preset in task.presets.items():
                run(cases, preset, Options(output=folder / f"{number}/{task.name}-{name}", device="cpu", warped=True))
        fixed, *movings = sorted(dataset.parent.glob("imagesTr/*.nii.gz"))
        register(fixed, movings, device="cpu", uncertainty=True)


def used_signatures() -> Signatures:
    """Those of all kernels that this process has called, what these call included."""
    import mcbo.kernels.cpu as kernels

    found = []
    names = ["mcbo.kernels.simd", *(f"{kernels.__name__}.{part.name}" for part in pkgutil.iter_modules(kernels.__path__))]
    for module in names:
        for name, value in vars(importlib.import_module(module)).items():
            signatures = getattr(value, "signatures", None)
            if signatures and getattr(value, "__module__", None) == module:
                found.append((module, name, list(signatures)))
    return found


def compile_all(signatures: Signatures) -> None:
    """Compiles kernels for the level that numba was told of, into the folder that it was told of."""
    for module, name, types in signatures:
        kernel = getattr(importlib.import_module(module), name)
        for one in types:
            kernel.compile(one)


def build(output: Path) -> int:
    """Compiles all kernels for all levels into a folder; returns the bytes of all. Raises ``OutputError``."""
    prepare_folder(output)
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder, "signatures")
        _call("--list", listed, {"NUMBA_CACHE_DIR": f"{folder}/kept"})

        def compile_for(level: str) -> None:
            settings = {"NUMBA_CPU_NAME": level, "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str((output / level).absolute())}
            _call("--compile", listed, settings)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_for, LEVELS))
    for level in LEVELS:
        if not any((output / level).glob("*.nbc")):
            raise SystemExit(f"{output / level}: expected kernels, found none; numba kept them elsewhere")
    return sum(path.stat().st_size for path in output.glob("*/*"))


def _call(option: str, path: Path, settings: dict[str, str]) -> None:
    """A process of its own, as numba reads its settings only once."""
    environment = {key: value for key, value in os.environ.items() if key != PREBUILT} | settings
    command = [sys.executable, "-m", "mcbo.studies.prebuilt_kernels", option, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{done.stdout}{done.stderr}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Builds, and tells what was built."""
    parser = argparse.ArgumentParser(
        "python -m mcbo.studies.prebuilt_kernels", description="Compile the kernels for CPUs ahead of time."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--output", type=Path, metavar="FOLDER", help="folder to write to")
    what.add_argument("--list", type=Path, help=argparse.SUPPRESS)
    what.add_argument("--compile", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.list:
        with tempfile.TemporaryDirectory() as folder:
            use_kernels(Path(folder))
        options.list.write_bytes(pickle.dumps(used_signatures()))
    elif options.compile:
        compile_all(pickle.loads(options.compile.read_bytes()))  # noqa: S301 (the file is our own)
    else:
        started = time.perf_counter()
        size = build(options.output)
        print(f"kernels for {' '.join(LEVELS)}: {format_bytes(size)} in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
