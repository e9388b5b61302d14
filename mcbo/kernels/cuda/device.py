"""Kernels on a GPU: compiled modules loaded, and launched in torch's current stream.

What ``launch.py`` calls a ``Launch``. The only module beside ``runtime.py`` that uses torch's CUDA interface, and the only one
beside ``compiler.py`` that uses NVIDIA's ``cuda-core``, which is imported when the first ``DeviceLaunch`` is made.
"""

import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from mcbo.core.errors import KernelError
from mcbo.core.types import Shape
from mcbo.kernels.cuda.binaries import cache_folder, obtain
from mcbo.kernels.cuda.compiler import cuda_core
from mcbo.kernels.cuda.launch import Argument, Module


class DeviceLaunch:
    """A ``Launch`` on one GPU, for any number of threads.

    Args:
        device: ``cuda:N``.

    Raises:
        KernelError: if cuda-core is missing, or the driver is too old for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._core = cuda_core()
        check_driver()
        self._device = device
        self._architecture = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
        self._cache = cache_folder()
        self._lock = threading.Lock()
        self._here = threading.local()
        self._loaded: dict[Module, Any] = {}
        self._kernels: dict[tuple[Module, str], Any] = {}
        self._configs: dict[tuple[Shape, Shape], Any] = {}
        self._streams: dict[int, Any] = {0: self._core.LEGACY_DEFAULT_STREAM}

    def __call__(self, module: Module, kernel: str, blocks: Shape, threads: Shape, *arguments: Argument) -> None:
        """Launches ``kernel`` of a module on a grid of ``blocks`` of ``threads``, both along x, y, z.

        Raises:
            ValueError: if a tensor is not contiguous or on another device, or a number does not fit into an ``int``.
            KernelError: if the module does not compile, has no such kernel, or the driver refuses the launch.
            torch.OutOfMemoryError: if the GPU's memory is full.
        """
        values = [plain(argument, self._device, kernel) for argument in arguments]
        with torch.cuda.device(self._device):
            self._enter()
            run = self._kernels.get((module, kernel))
            if run is None:
                run = self._find(module, kernel)
            try:
                self._core.launch(self._stream(), self._config(blocks, threads), run, *values)
            except Exception as error:  # cuda-core's own have no other public base
                raise _failed(f"{kernel} of {module.file} cannot be launched on {blocks} blocks of {threads}", error) from error

    def prepare(self, modules: Iterable[Module]) -> None:
        """Compiles modules, or takes them from the cache, several at a time, so that no launch of theirs waits for that.

        Raises:
            KernelError: of the first of ``modules`` that does not compile.
        """
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for module, binary in [(module, pool.submit(self._binary, module)) for module in modules]:
                self._load(module, binary.result())

    def _enter(self) -> None:
        """Makes the GPU's context this thread's, once: torch does so only with its first own call."""
        if not hasattr(self._here, "entered"):
            self._core.Device(self._device.index).set_current()
            self._here.entered = True

    def _find(self, module: Module, kernel: str) -> Any:
        """A kernel that was not launched before, unless another thread has just done so."""
        with self._lock:
            if (module, kernel) not in self._kernels:
                if module not in self._loaded:
                    self._load(module, self._binary(module))
                try:
                    self._kernels[module, kernel] = self._loaded[module].get_kernel(kernel)
                except Exception as error:
                    raise _failed(f"{kernel} of {module.file} cannot be loaded", error) from error
            return self._kernels[module, kernel]

    def _binary(self, module: Module) -> bytes:
        return obtain(module, self._architecture, cache=self._cache)

    def _load(self, module: Module, binary: bytes) -> None:
        self._loaded[module] = self._core.ObjectCode.from_cubin(binary, name=module.file)

    def _config(self, blocks: Shape, threads: Shape) -> Any:
        config = self._configs.get((blocks, threads))
        if config is None:
            config = self._configs[blocks, threads] = self._core.LaunchConfig(grid=blocks, block=threads)
        return config

    def _stream(self) -> Any:
        handle = torch.cuda.current_stream(self._device).cuda_stream
        stream = self._streams.get(handle)
        if stream is None:
            stream = self._streams[handle] = self._core.Stream.from_handle(handle)
        return stream


def plain(argument: Argument, device: torch.device, kernel: str) -> int | np.int32 | np.float32:
    """What cuda-core passes as an address (``int``), an ``int`` or a ``float``.

    Raises:
        ValueError: if a tensor is not contiguous or on another device, or a number does not fit.
    """
    if isinstance(argument, int):  # the most frequent kind first
        try:
            return _int(argument)
        except OverflowError as error:
            raise ValueError(f"{kernel}: expected a number that fits into an int, got {argument}") from error
    if isinstance(argument, float):
        return np.float32(argument)
    if argument.device != device:
        raise ValueError(f"{kernel}: expected a tensor on {device}, got one on {argument.device}")
    if not argument.is_contiguous():
        raise ValueError(f"{kernel}: expected a contiguous tensor, got strides {argument.stride()} of {tuple(argument.shape)}")
    return argument.data_ptr()


_int = lru_cache(4096)(np.int32)
"""As a table, which is faster. Not so for ``float``: 0.0 and −0.0 would be one entry."""


def check_driver() -> None:
    """Raises ``KernelError`` if the driver is of an earlier CUDA than cuda-bindings, whose functions it then lacks."""
    import cuda.bindings
    from cuda.bindings import driver

    try:
        status, version = driver.cuDriverGetVersion()
    except RuntimeError as error:  # the library is loaded by the first call
        raise KernelError(f"the NVIDIA driver: expected that cuda-bindings finds it as torch does, found: {error}") from error
    expected = int(cuda.bindings.__version__.partition(".")[0])
    if int(status) or version // 1000 < expected:
        found = f"{version // 1000}.{version % 1000 // 10}"
        raise KernelError(
            f"the NVIDIA driver: expected one for CUDA {expected}.0 or newer, which cuda-bindings {cuda.bindings.__version__} "
            f"needs, found one for CUDA {found}: update it, or install a build of torch for CUDA {version // 1000}"
        )


def _failed(what: str, error: Exception) -> Exception:
    """What to raise for an error of cuda-core, whose first sentence says enough."""
    reason = " ".join(str(error).split()).partition(". ")[0]
    return (torch.OutOfMemoryError if "OUT_OF_MEMORY" in reason else KernelError)(f"{what}: {reason}")
