"""Runs the CUDA kernels on the CPU: their sources compiled as C++ (``cuda_on_cpu.h``), launched on tensors of the CPU."""

import ctypes
import re
import subprocess
from functools import cache
from pathlib import Path

from counted_device import Counts
from torch import Tensor

import mcbo.kernels.cuda
from mcbo.core.types import Shape
from mcbo.kernels.cuda.launch import Argument, Launch, Module

SOURCES = Path(mcbo.kernels.cuda.__file__).parent
KERNEL = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(([^)]*)\)')
COMPILER = (
    "g++",
    "-std=c++20",
    "-O2",
    "-march=native",
    "-fPIC",
    "-shared",
    "-pthread",
    "-fvisibility=hidden",
    "-Wall",
    "-Wno-unknown-pragmas",
)


class OnCpu:
    """A ``Launch`` that runs kernels on the CPU and counts them.

    ``folder`` is where the libraries are built.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.launches: dict[str, int] = {}
        self._library = cache(self._build)

    def __call__(self, module: Module, kernel: str, blocks: Shape, threads: Shape, *arguments: Argument) -> None:
        self.launches[kernel] = self.launches.get(kernel, 0) + 1
        sizes = [ctypes.c_int(size) for size in (*blocks, *threads)]
        getattr(self._library(module), f"launch_{kernel}")(*sizes, *map(_passed, arguments))

    def _build(self, module: Module) -> ctypes.CDLL:
        source = (SOURCES / module.file).read_text()
        name = "-".join([Path(module.file).stem, *(f"{key}{value}" for key, value in module.constants)]).lower()
        code, library = self._folder / f"{name}.cpp", self._folder / f"{name}.so"
        code.write_text(
            f'#include "cuda_on_cpu.h"\n#include "{module.file}"\n' + "".join(map(_launcher, KERNEL.findall(source)))
        )
        definitions = [f"-D{key}={value}" for key, value in module.constants]
        exact = ["-ffp-contract=off"] if ("EXACT", 1) in module.constants else []
        folders = ["-I", str(SOURCES), "-I", str(Path(__file__).parent)]
        command = [*COMPILER, *exact, *definitions, *folders, str(code), "-o", str(library)]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(library))


def counting(kernels: OnCpu, counts: Counts) -> Launch:
    """Runs kernels on the tensors of a counted device, and counts their launches there."""

    def launch(module: Module, kernel: str, blocks: Shape, threads: Shape, *arguments: Argument) -> None:
        counts.launch(kernel)
        here = [counts.unwrap(one) if isinstance(one, Tensor) else one for one in arguments]
        kernels(module, kernel, blocks, threads, *here)

    return launch


def _launcher(kernel: tuple[str, str]) -> str:
    """C++ that runs a kernel on a grid."""
    name, parameters = kernel
    names = ", ".join(re.findall(r"(\w+)\s*(?:,|$)", parameters))
    sizes = ", ".join(f"int {size}" for size in ("gx", "gy", "gz", "bx", "by", "bz"))
    return (
        f'extern "C" __attribute__((visibility("default"))) void launch_{name}({sizes}, {" ".join(parameters.split())}) {{\n'
        f"    run_grid({{gx, gy, gz}}, {{bx, by, bz}}, [=] {{ {name}({names}); }});\n}}\n"
    )


def _passed(argument: Argument) -> ctypes.c_void_p | ctypes.c_int | ctypes.c_float:
    if isinstance(argument, Tensor):
        assert argument.is_contiguous()
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_int(argument) if isinstance(argument, int) else ctypes.c_float(argument)
