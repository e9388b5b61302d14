"""NVIDIA's libraries and torch's CUDA interface as far as ``mcbo.kernels.cuda`` uses them, without a GPU."""

import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

ADDRESS, DEFAULT_STREAM = 0xCB, 0


@dataclass
class FakeCuda:
    """What the libraries answer, and what they were asked.

    Attributes:
        architectures: that NVRTC knows.
        driver: the CUDA version of the driver, times 1000.
        nvrtc: whether there is such a library.
        refused: an error for each kernel that cannot be launched or loaded, and each source that does not compile.
        compiled: ``(source, options)`` of each compilation.
        loaded: each kernel that was looked up.
        configs: each grid and block that was made into a configuration.
        contexts: the thread that made the context its own, each time.
        launched: ``(stream, config, kernel, arguments)`` of each launch.
        stream: torch's current one.
    """

    architectures: tuple[int, ...] = (75, 90)
    driver: int = 13000
    nvrtc: bool = True
    refused: dict[str, str] = field(default_factory=dict)
    compiled: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    configs: list[tuple[Any, Any]] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)
    launched: list[tuple[Any, ...]] = field(default_factory=list)
    stream: int = DEFAULT_STREAM

    # cuda.core
    LEGACY_DEFAULT_STREAM = "default stream"

    def ProgramOptions(self, **options: Any) -> dict[str, Any]:  # noqa: N802
        return options

    def Program(self, source: str, kind: str, options: dict[str, Any]) -> Any:  # noqa: N802
        assert kind == "c++"
        if options.get("define_macro") == []:  # as cuda-core 1.2.2 does
            raise FakeCudaError("Expected define_macro ..., got []")

        def compile_to(form: str) -> Any:
            assert form == "cubin"
            self.compiled.append((source, options))
            for word, log in self.refused.items():
                if word in source:
                    raise FakeCudaError(log)
            return SimpleNamespace(code=f"{options['arch']} binary of {source}".encode())

        return SimpleNamespace(compile=compile_to)

    def launch(self, stream: Any, config: Any, kernel: str, *arguments: Any) -> None:
        self._refuse(f"launch {kernel}")
        self.launched.append((stream, config, kernel, arguments))

    def LaunchConfig(self, *, grid: Any, block: Any) -> tuple[Any, Any]:  # noqa: N802
        self.configs.append((grid, block))
        return grid, block

    def Device(self, index: int) -> Any:  # noqa: N802
        assert index == 0
        return SimpleNamespace(set_current=lambda: self.contexts.append(threading.get_ident()))

    @property
    def ObjectCode(self) -> Any:  # noqa: N802
        def get_kernel(name: str) -> str:
            self._refuse(f"load {name}")
            self.loaded.append(name)
            return name

        return SimpleNamespace(from_cubin=lambda binary, name: SimpleNamespace(get_kernel=get_kernel, code=binary, name=name))

    @property
    def Stream(self) -> Any:  # noqa: N802
        return SimpleNamespace(from_handle=lambda handle: f"stream {handle}")

    def _refuse(self, what: str) -> None:
        if what in self.refused:
            raise FakeCudaError(self.refused[what])

    # cuda.bindings
    def nvrtcVersion(self) -> tuple[int, int, int]:  # noqa: N802
        if not self.nvrtc:
            raise RuntimeError("Failure finding a library")
        return 0, 13, 0

    def nvrtcGetSupportedArchs(self) -> tuple[int, list[int]]:  # noqa: N802
        return 0, list(self.architectures)

    def cuDriverGetVersion(self) -> tuple[int, int]:  # noqa: N802
        return 0, self.driver


class FakeCudaError(Exception):
    """Like those of cuda-core, which have no public base."""


class FakeGpu:
    """A device that tensors on the CPU lie on."""

    index = 0

    def __eq__(self, other: object) -> bool:
        return other == torch.device("cpu")

    def __hash__(self) -> int:
        return 0

    def __str__(self) -> str:
        return "cuda:0"


def install(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Puts the fakes in the place of the libraries, and of torch's CUDA interface, until the test ends."""
    fake = FakeCuda()
    package, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
    package.core, package.bindings = fake, bindings  # type: ignore[attr-defined]
    bindings.nvrtc = bindings.driver = fake  # type: ignore[attr-defined]
    bindings.__version__ = "13.5.0"  # type: ignore[attr-defined]
    parts = {
        "cuda": package,
        "cuda.core": fake,
        "cuda.bindings": bindings,
        "cuda.bindings.nvrtc": fake,
        "cuda.bindings.driver": fake,
    }
    for name, module in parts.items():
        monkeypatch.setitem(sys.modules, name, module)

    def guard(device: object) -> AbstractContextManager[None]:
        assert str(device) == "cuda:0"
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "device", guard)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=fake.stream))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    return fake
