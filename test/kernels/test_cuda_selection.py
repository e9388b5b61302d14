"""Which kernels a GPU gets, and what the log says where these are not the fastest."""

import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_cuda
import pytest
import torch
from fake_cuda import FakeCuda

from mcbo import runtime
from mcbo.core.errors import DeviceError, KernelError
from mcbo.core.types import Kernels
from mcbo.kernels import REFERENCE, cuda
from mcbo.kernels.cuda import check, compiler
from mcbo.kernels.cuda.binaries import CACHE, PREBUILT
from mcbo.kernels.cuda.launch import Launch, Module
from mcbo.runtime import select_kernels

CHECKS = 3
"""How often the self-check launches the only kernel there is here: for features whole, scaled by a variance, and pooled."""
GPU = torch.device("cuda", 0)
ROOT = Path(__file__).resolve().parents[2]
LAUNCHED = replace(REFERENCE, name="cuda")
REFUSALS = "using plain torch, which is slower than the CUDA kernels: "


@pytest.fixture(autouse=True)
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A GPU whose kernels are the reference's, and one module that has to compile first."""
    monkeypatch.setattr(runtime, "_checked", {})
    monkeypatch.setattr(runtime, "_check_alive", lambda *_: None)
    monkeypatch.setattr(compiler, "SOURCES", tmp_path)
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.delenv(PREBUILT, raising=False)
    (tmp_path / "one.cu").write_text("source")
    monkeypatch.setattr(cuda, "MODULES", (Module("one.cu"),))
    monkeypatch.setattr(cuda, "make_kernels", make_kernels)
    monkeypatch.setattr(check, "agree", lambda kernels, device: agree(kernels, torch.device("cpu"), device))
    return fake_cuda.install(monkeypatch)


def make_kernels(launch: Launch) -> Kernels:
    """Every feature volume costs a launch."""

    def mind_ssc(*arguments: Any, **options: Any) -> Any:
        launch(Module("one.cu"), "features", (1, 1, 1), (1, 1, 1))
        return REFERENCE.mind_ssc(*arguments, **options)

    return replace(LAUNCHED, mind_ssc=mind_ssc)


right = check.agree


def agree(kernels: Kernels, where: torch.device, told: torch.device) -> None:
    assert told == GPU
    right(kernels, where)


def test_a_gpu_gets_its_kernels_once(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    kernels = select_kernels(GPU)
    assert kernels.name == "cuda"
    assert (len(fake.compiled), len(fake.launched)) == (1, CHECKS)
    assert select_kernels(GPU) is kernels
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert select_kernels(torch.device("cuda")) is kernels
    assert (len(fake.compiled), len(fake.launched)) == (1, CHECKS)
    assert not caplog.records


def test_threads_that_ask_at_a_time_wait_for_one_check(fake: FakeCuda) -> None:
    meeting = threading.Barrier(4, timeout=60)

    def ask() -> Kernels:
        meeting.wait()
        return select_kernels(GPU)

    with ThreadPoolExecutor(4) as pool:
        kernels = [asked.result() for asked in [pool.submit(ask) for _ in range(4)]]
    assert all(each is kernels[0] for each in kernels)
    assert len(fake.launched) == CHECKS


def without_core(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    del fake
    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.delitem(sys.modules, "cuda.core")


def without_nvrtc(fake: FakeCuda, _: pytest.MonkeyPatch) -> None:
    fake.nvrtc = False


def with_an_old_driver(fake: FakeCuda, _: pytest.MonkeyPatch) -> None:
    fake.driver = 12020


def with_a_new_gpu(fake: FakeCuda, _: pytest.MonkeyPatch) -> None:
    fake.architectures = (75, 80)


def that_does_not_compile(fake: FakeCuda, _: pytest.MonkeyPatch) -> None:
    fake.refused = {"source": "log:\none.cu(3): error: x is undefined\n"}


def that_does_not_launch(fake: FakeCuda, _: pytest.MonkeyPatch) -> None:
    fake.refused = {"launch features": "CUDA_ERROR_INVALID_VALUE: no. Or else."}


def that_computes_wrong_numbers(_: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any, **options: Any) -> Any:
        return REFERENCE.mind_ssc(*arguments, **options) * 0.75

    monkeypatch.setattr(cuda, "make_kernels", lambda _: replace(LAUNCHED, mind_ssc=wrong))


CUDA = (torch.version.cuda or "13").partition(".")[0]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (without_core, "the package cuda-core: expected to find it, it is not installed: pip install cuda-core"),
        (
            without_nvrtc,
            f"the CUDA compiler: expected NVRTC, the library libnvrtc.so.{CUDA}, found none: pip install nvidia-cuda-nvrtc"
            + ("-cu12" if CUDA == "12" else ""),
        ),
        (
            with_an_old_driver,
            "the NVIDIA driver: expected one for CUDA 13.0 or newer, which cuda-bindings 13.5.0 needs, found one for CUDA 12.2:"
            " update it, or install a build of torch for CUDA 12",
        ),
        (
            with_a_new_gpu,
            "the CUDA compiler: expected an NVRTC that knows sm_90, found 13.0: install a build of torch for this GPU, "
            "which brings one",
        ),
        (that_does_not_compile, "one.cu: NVRTC 13.0 does not compile it for sm_90: one.cu(3): error: x is undefined"),
        (
            that_does_not_launch,
            "mind_ssc fails in the self-check on cpu: features of one.cu cannot be launched on (1, 1, 1) blocks of (1, 1, 1): "
            "CUDA_ERROR_INVALID_VALUE: no",
        ),
        (
            that_computes_wrong_numbers,
            "mind_ssc fails the self-check on cpu: expected the reference's numbers to 0.0001 of the largest, found a "
            "difference of 0.25",
        ),
    ],
)
def test_what_is_missing_is_said_once_and_torch_computes(
    fake: FakeCuda,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[FakeCuda, pytest.MonkeyPatch], None],
    reason: str,
) -> None:
    spoil(fake, monkeypatch)
    assert select_kernels(GPU) is REFERENCE
    assert select_kernels(GPU) is REFERENCE
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message == f"cuda:0: {REFUSALS}{reason}"


def test_without_memory_the_next_call_tries_again(fake: FakeCuda) -> None:
    fake.refused = {"launch features": "CUDA_ERROR_OUT_OF_MEMORY: no"}
    with pytest.raises(torch.OutOfMemoryError):
        select_kernels(GPU)
    fake.refused = {}
    assert select_kernels(GPU).name == "cuda"


def test_a_gpu_that_the_check_has_broken_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch, "zeros", broken)
    with pytest.raises(
        DeviceError, match=r"^cuda:0: the self-check left the GPU unusable .*\(one is wrong\).*: use --device cpu"
    ):
        runtime._check_alive(GPU, KernelError("one is wrong"))


def test_nothing_of_cuda_is_imported_without_a_gpu() -> None:
    script = """
import sys, torch
from mcbo.runtime import select_kernels
select_kernels(torch.device("cpu"))
print(sorted(name for name in sys.modules if name.startswith("mcbo.kernels.cuda")))
import mcbo.kernels.cuda.build, mcbo.kernels.cuda.check, mcbo.kernels.cuda.device
print("cuda.core" in sys.modules)
"""
    told = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout == "[]\nFalse\n"


@pytest.mark.gpu
def test_a_real_gpu_gets_its_kernels(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.undo()
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    monkeypatch.setattr(runtime, "_checked", {})
    kernels = select_kernels(GPU)
    assert not caplog.records
    assert select_kernels(GPU) is kernels
