"""The compiler of CUDA C++, with NVIDIA's libraries faked; and with NVRTC itself, which needs no GPU, where it is installed."""

import sys
from pathlib import Path

import fake_cuda
import pytest
from fake_cuda import FakeCuda

from mcbo.core.errors import KernelError
from mcbo.kernels.cuda import compiler
from mcbo.kernels.cuda.compiler import compile_module, compiler_version, cuda_core, known_architectures
from mcbo.kernels.cuda.launch import Module

SCALE = Module("scale.cu", (("SIDE", 9),))
SOURCE = """
#include "common.cuh"
extern "C" __global__ void scale(float* values, int count, float factor) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) values[i] = twice(values[i]) * factor + SIDE;
}
"""


@pytest.fixture(autouse=True)
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "scale.cu").write_text(SOURCE)
    (folder / "common.cuh").write_text("__device__ inline float twice(float x) { return 2 * x; }")
    monkeypatch.setattr(compiler, "SOURCES", folder)
    return folder


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return fake_cuda.install(monkeypatch)


def test_what_the_compiler_gets(fake: FakeCuda, sources: Path) -> None:
    assert compile_module(SCALE, "sm_90") == f"sm_90 binary of {SOURCE}".encode()
    compile_module(Module("scale.cu", (("SIDE", 9), ("EXACT", 1))), "sm_75")
    compile_module(Module("scale.cu", (("EXACT", 0),)), "sm_75")
    compile_module(Module("scale.cu"), "sm_75")
    common = {"name": "scale.cu", "include_path": [str(sources)], "std": "c++17"}
    assert [options for _, options in fake.compiled] == [
        common | {"arch": "sm_90", "define_macro": [("SIDE", "9")]},
        common | {"arch": "sm_75", "define_macro": [("SIDE", "9"), ("EXACT", "1")], "fma": False},
        common | {"arch": "sm_75", "define_macro": [("EXACT", "0")]},
        common | {"arch": "sm_75"},
    ]


def test_without_cuda_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.delitem(sys.modules, "cuda.core", raising=False)
    with pytest.raises(
        KernelError, match=r"^the package cuda-core: expected to find it, it is not installed: pip install cuda-core$"
    ):
        cuda_core()


def test_without_cuda_bindings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cuda/core").mkdir(parents=True)
    (tmp_path / "cuda/__init__.py").touch()
    (tmp_path / "cuda/core/__init__.py").write_text("from cuda import bindings")
    for name in [name for name in sys.modules if name.split(".")[0] == "cuda"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with pytest.raises(
            KernelError, match=r"expected beside it cuda-bindings \d+, .*: pip install 'cuda-bindings==\d+\.\*'$"
        ):
            cuda_core()
    finally:
        sys.modules.pop("cuda", None)


def test_without_nvrtc(fake: FakeCuda) -> None:
    fake.nvrtc = False
    with pytest.raises(
        KernelError, match=r"expected NVRTC, the library libnvrtc\.so\.\d+, found none: pip install nvidia-cuda-nvrtc"
    ):
        compile_module(SCALE, "sm_90")


def test_an_architecture_that_the_compiler_does_not_know(fake: FakeCuda) -> None:
    assert known_architectures() == ["sm_75", "sm_90"]
    with pytest.raises(KernelError, match=r"expected an NVRTC that knows sm_120, found 13\.0: install a build of torch"):
        compile_module(SCALE, "sm_120")
    assert not fake.compiled


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (
            "6: COMPILATION, log:\n\nscale.cu(5): error: x is undefined\n  y = x\n  ^\n\n\0",
            "scale.cu(5): error: x is undefined",
        ),
        ("5: INVALID_OPTION\n\0", "5: INVALID_OPTION"),
        ("", "no reason given"),
    ],
)
def test_a_source_that_does_not_compile(fake: FakeCuda, log: str, reason: str) -> None:
    fake.refused = {"scale": log}
    with pytest.raises(KernelError) as error:
        compile_module(SCALE, "sm_90")
    assert str(error.value) == f"scale.cu: NVRTC 13.0 does not compile it for sm_90: {reason}"


@pytest.fixture
def nvrtc() -> str:
    """Its version."""
    try:
        return compiler_version()
    except KernelError as error:
        pytest.skip(f"NVRTC is not installed here: {error}")


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_nvrtc_compiles(nvrtc: str, architecture: str) -> None:
    if architecture not in known_architectures():
        pytest.skip(f"NVRTC {nvrtc} does not know it")
    plain, exact = (
        compile_module(Module("scale.cu", constants), architecture)
        for constants in (SCALE.constants, (*SCALE.constants, ("EXACT", 1)))
    )
    assert plain[:4] == exact[:4] == b"\x7fELF"
    assert b"scale" in plain
    assert plain != exact  # a multiplication and an addition are no longer one instruction


@pytest.mark.usefixtures("nvrtc")
def test_nvrtc_says_what_is_wrong(sources: Path) -> None:
    (sources / "common.cuh").write_text("__device__ inline float twice(float x) { return 2 * y; }")
    with pytest.raises(
        KernelError, match=r'^scale\.cu: NVRTC .* for sm_90: .*common\.cuh\(1\): error: identifier "y" is undefined$'
    ):
        compile_module(SCALE, "sm_90")
