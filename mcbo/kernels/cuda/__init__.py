"""The compute kernels in CUDA C++: twins of the torch reference for NVIDIA GPUs."""

from mcbo.core.types import Kernels
from mcbo.kernels import REFERENCE
from mcbo.kernels.cuda.launch import Launch, Module

MODULES: tuple[Module, ...] = ()
"""All modules, to be compiled ahead of the first launch."""


def make_kernels(launch: Launch) -> Kernels:
    """The kernels on the device of a launch."""
    del launch
    return REFERENCE
