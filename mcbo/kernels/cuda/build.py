"""Compiles all modules ahead of time: ``python -m mcbo.kernels.cuda.build --arch sm_75 --arch sm_90 --output FOLDER``.

Needs NVRTC, but no GPU. A process finds the binaries by ``MCBO_CUDA_PREBUILT=FOLDER``.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mcbo.core.errors import McboError
from mcbo.io.files import format_bytes
from mcbo.kernels.cuda import MODULES
from mcbo.kernels.cuda.binaries import file_name, write
from mcbo.kernels.cuda.compiler import compile_module, compiler_version, known_architectures
from mcbo.kernels.cuda.launch import Module


def build(modules: Sequence[Module], architectures: Sequence[str], output: Path) -> int:
    """Writes each module for each architecture into a folder, several at a time; returns the bytes of all.

    Raises:
        KernelError: if NVRTC is missing, does not know an architecture, or refuses a source.
        OutputError: if the folder cannot be written to.
    """

    def one(module: Module, architecture: str) -> int:
        binary = compile_module(module, architecture)
        write(output / file_name(module, architecture, compiler_version=""), binary)
        return len(binary)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(one, module, architecture) for module in modules for architecture in architectures]
        return sum(job.result() for job in jobs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds, tells what was built, and returns the exit status."""
    parser = argparse.ArgumentParser("python -m mcbo.kernels.cuda.build", description="Compile the CUDA kernels ahead of time.")
    parser.add_argument("--arch", action="append", required=True, type=_architecture, metavar="sm_NN", help="a GPU; repeatable")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="folder to write to")
    parser.add_argument("--skip-unknown", action="store_true", help="leave out architectures that this NVRTC does not know")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    try:
        version, known = compiler_version(), known_architectures()
        left_out = [name for name in options.arch if name not in known] if options.skip_unknown else []
        chosen = [name for name in options.arch if name not in left_out]
        size = build(MODULES, chosen, options.output)
    except McboError as error:
        print(error, file=sys.stderr)
        return 1
    if left_out:
        print(f"left out, since NVRTC {version} does not know them: {' '.join(left_out)}")
    seconds = time.perf_counter() - started
    print(f"NVRTC {version}: {len(MODULES)} modules for {' '.join(chosen)}: {format_bytes(size)} in {seconds:.1f} s")
    return 0


def _architecture(name: str) -> str:
    if not re.fullmatch(r"sm_[0-9]+", name):
        raise argparse.ArgumentTypeError(f"expected sm_ and a number, such as sm_90, got {name!r}")
    return name


if __name__ == "__main__":
    sys.exit(main())
