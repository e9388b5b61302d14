"""How CUDA kernels are named and launched; who compiles and runs them is up to a ``Launch``.

On a GPU, that is ``device.py``; in the tests, one that compiles the same sources as C++ and runs them on the CPU.
"""

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor

from mcbo.core.types import Shape

Argument: TypeAlias = Tensor | int | float
"""A tensor is passed as the address of its first number (it has to be contiguous), an int as ``int``, a float as ``float``."""

THREADS = 256
"""Of a block of a kernel with one thread per cell."""


@dataclass(frozen=True)
class Module:
    """A source to compile.

    Attributes:
        file: a ``.cu`` file of this folder.
        constants: preprocessor definitions, such as ``(("SIDE", 9),)``. With ``("EXACT", 1)``, products and sums are not fused.
    """

    file: str
    constants: tuple[tuple[str, int], ...] = ()


class Launch(Protocol):
    """Launches kernels on the device of their tensors, in torch's current stream."""

    def __call__(self, module: Module, kernel: str, blocks: Shape, threads: Shape, *arguments: Argument) -> None:
        """Launches ``kernel`` of a module on a grid of ``blocks`` of ``threads``, both along x, y, z."""


def per_cell(launch: Launch, module: Module, kernel: str, cells: int, *arguments: Argument, times: int = 1) -> None:
    """Launches a kernel with a thread per cell, repeated ``times`` along ``blockIdx.y``."""
    launch(module, kernel, (-(-cells // THREADS), times, 1), (THREADS, 1, 1), *arguments)
