"""Launching on a GPU: with NVIDIA's libraries faked, and, marked ``gpu``, for real."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_cuda
import numpy as np
import pytest
import torch
from fake_cuda import FakeCuda, FakeGpu

from mcbo.core.errors import KernelError
from mcbo.kernels.cuda import compiler
from mcbo.kernels.cuda.binaries import CACHE, PREBUILT
from mcbo.kernels.cuda.device import DeviceLaunch, plain
from mcbo.kernels.cuda.launch import Module

CPU = torch.device("cpu")
SCALE = Module("scale.cu", (("SIDE", 9),))
SOURCE = """
extern "C" __global__ void scale(float* values, int count, float factor) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) values[i] = values[i] * factor + SIDE;
}
extern "C" __global__ void wait(float* values, int ticks) {
    long long start = clock64();
    while (clock64() - start < ticks) {}
    values[0] = 1;
}
extern "C" __global__ void place(int* places) {
    int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    int threads = blockDim.x * blockDim.y * blockDim.z;
    int where = blockIdx.x + 10 * blockIdx.y + 100 * blockIdx.z;
    places[block * threads + thread] = where + 1000 * threadIdx.x + 10000 * threadIdx.y;
}
"""
ONE = (1, 1, 1)


@pytest.fixture(autouse=True)
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "scale.cu").write_text(SOURCE)
    monkeypatch.setattr(compiler, "SOURCES", tmp_path)
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.delenv(PREBUILT, raising=False)
    return tmp_path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return fake_cuda.install(monkeypatch)


@pytest.fixture
def launch(fake: FakeCuda) -> DeviceLaunch:  # noqa: ARG001
    device: Any = FakeGpu()
    return DeviceLaunch(device)


def test_arguments_arrive_as_c_has_them() -> None:
    tensor = torch.arange(6.0).view(2, 3)
    assert plain(tensor[1], CPU, "scale") == tensor.data_ptr() + 12
    for number in (0, 7, -(2**31), 2**31 - 1, True):
        value = plain(number, CPU, "scale")
        assert isinstance(value, np.int32)
        assert value == number
    for real in (0.1, 3.0, 0.0, -0.0):
        single = plain(real, CPU, "scale")
        assert isinstance(single, np.float32)
        assert single.tobytes() == np.array(real, dtype=np.float32).tobytes()


def test_arguments_that_a_kernel_would_misread() -> None:
    with pytest.raises(ValueError, match=r"^scale: expected a contiguous tensor, got strides \(2,\) of \(3,\)$"):
        plain(torch.zeros(6)[::2], CPU, "scale")
    with pytest.raises(ValueError, match=r"^scale: expected a tensor on cpu, got one on meta$"):
        plain(torch.zeros(6, device="meta"), CPU, "scale")
    for number in (2**31, -(2**31) - 1):
        with pytest.raises(ValueError, match=f"^scale: expected a number that fits into an int, got {number}$"):
            plain(number, CPU, "scale")


def test_a_launch(fake: FakeCuda, launch: DeviceLaunch) -> None:
    tensor = torch.zeros(4)
    launch(SCALE, "scale", (3, 2, 1), (32, 4, 1), tensor, 4, 0.5)
    fake.stream = 7
    launch(SCALE, "scale", (3, 2, 1), (32, 4, 1), tensor, 4, 0.5)
    config, values = ((3, 2, 1), (32, 4, 1)), (tensor.data_ptr(), 4, 0.5)
    assert fake.launched == [("default stream", config, "scale", values), ("stream 7", config, "scale", values)]
    assert [options["arch"] for _, options in fake.compiled] == ["sm_90"]


def test_nothing_is_made_twice(fake: FakeCuda, launch: DeviceLaunch) -> None:
    for _ in range(3):
        for kernel in ("scale", "place"):
            for blocks in (ONE, (2, 1, 1)):
                launch(SCALE, kernel, blocks, ONE)
    assert len(fake.launched) == 12
    assert fake.loaded == ["scale", "place"]
    assert fake.configs == [(ONE, ONE), ((2, 1, 1), ONE)]
    assert len(fake.compiled) == 1


def test_each_thread_enters_the_context_once(fake: FakeCuda, launch: DeviceLaunch) -> None:
    def twice() -> None:
        launch(SCALE, "scale", ONE, ONE)
        launch(SCALE, "scale", ONE, ONE)

    threads = [threading.Thread(target=twice) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    twice()
    assert len(fake.contexts) == 4
    assert len(fake.launched) == 8
    assert fake.loaded == ["scale"]


def test_modules_are_prepared_before_their_first_launch(fake: FakeCuda, launch: DeviceLaunch) -> None:
    modules = [Module("scale.cu", (("SIDE", side),)) for side in range(20)]
    launch.prepare(modules)
    assert len(fake.compiled) == 20
    for module in modules:
        launch(module, "scale", ONE, ONE)
    assert len(fake.compiled) == 20


def test_the_first_module_that_does_not_compile_is_named(fake: FakeCuda, launch: DeviceLaunch, sources: Path) -> None:
    for name in ("good", "bad", "worse"):
        (sources / f"{name}.cu").write_text(name)
    fake.refused = {"bad": "bad.cu(1): error: no", "worse": "worse.cu(1): error: no"}
    with pytest.raises(KernelError, match=r"^bad\.cu: NVRTC 13\.0 does not compile it for sm_90: bad\.cu\(1\): error: no$"):
        launch.prepare([Module("good.cu"), Module("bad.cu"), Module("worse.cu")])


def test_errors_of_a_launch(fake: FakeCuda, launch: DeviceLaunch) -> None:
    fake.refused = {
        "load none": "CUDA_ERROR_NOT_FOUND: This indicates that a named symbol\nwas not found. Examples of symbols are",
        "launch wide": "CUDA_ERROR_INVALID_VALUE: Too many threads",
        "launch last": "CUDA_ERROR_OUT_OF_MEMORY: The API call failed. More",
    }
    with pytest.raises(
        KernelError, match=r"^none of scale\.cu cannot be loaded: CUDA_ERROR_NOT_FOUND: This indicates that .* was not found$"
    ):
        launch(SCALE, "none", ONE, ONE)
    with pytest.raises(
        KernelError, match=r"^wide of scale\.cu cannot be launched on \(1, 1, 1\) blocks of \(2048, 1, 1\): CUDA_"
    ):
        launch(SCALE, "wide", ONE, (2048, 1, 1))
    with pytest.raises(torch.OutOfMemoryError, match=r"^last of scale\.cu cannot be launched .*: The API call failed$"):
        launch(SCALE, "last", ONE, ONE)


@pytest.mark.parametrize("version", [12090, 0])
def test_a_driver_that_is_too_old(fake: FakeCuda, version: int) -> None:
    fake.driver = version
    device: Any = FakeGpu()
    with pytest.raises(
        KernelError, match=r"^the NVIDIA driver: expected one for CUDA 13\.0 or newer, .*: update it, or install a"
    ):
        DeviceLaunch(device)
    fake.driver = 13000
    DeviceLaunch(device)


@pytest.fixture
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return torch.device("cuda", 0)


@pytest.fixture
def real(gpu: torch.device) -> Iterator[DeviceLaunch]:
    yield DeviceLaunch(gpu)
    torch.cuda.synchronize(gpu)


@pytest.mark.gpu
def test_a_kernel_computes(gpu: torch.device, real: DeviceLaunch, sources: Path) -> None:
    values = torch.arange(1000.0, device=gpu)
    real(SCALE, "scale", (8, 1, 1), (128, 1, 1), values, 999, 0.1)  # a double would arrive as another float
    expected = torch.arange(1000.0) * torch.tensor(0.1) + 9
    expected[999] = 999
    assert torch.allclose(values.cpu(), expected, rtol=1e-6)
    (file,) = (sources / "cache").iterdir()
    assert file.name.startswith("scale-sm_")


@pytest.mark.gpu
def test_blocks_and_threads_lie_along_x_y_z(gpu: torch.device, real: DeviceLaunch) -> None:
    places = torch.zeros(4 * 3 * 2 * 6, dtype=torch.int32, device=gpu)
    real(SCALE, "place", (4, 3, 2), (3, 2, 1), places)
    z, y, x, ty, tx = torch.meshgrid(*map(torch.arange, (2, 3, 4, 2, 3)), indexing="ij")
    assert torch.equal(places.cpu().long(), (x + 10 * y + 100 * z + 1000 * tx + 10000 * ty).flatten())


@pytest.mark.gpu
def test_launches_go_to_the_current_stream(gpu: torch.device, real: DeviceLaunch) -> None:
    """A slow kernel in a stream of its own: what torch puts behind it there sees its result."""
    values = torch.zeros(1, device=gpu)
    real(SCALE, "wait", ONE, ONE, values, 0)
    torch.cuda.synchronize(gpu)
    stream = torch.cuda.Stream(gpu)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(gpu))
    with torch.cuda.stream(stream):
        values.zero_()
        real(SCALE, "wait", ONE, ONE, values, 100_000_000)
        is_running = not stream.query()
        copy = values.clone()
    stream.synchronize()
    assert is_running
    assert copy.item() == 1


@pytest.mark.gpu
def test_a_thread_that_never_used_the_gpu_launches(gpu: torch.device, real: DeviceLaunch) -> None:
    values = torch.zeros(8, device=gpu)
    torch.cuda.synchronize(gpu)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            real(SCALE, "scale", ONE, (8, 1, 1), values, 8, 1.0)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors
    assert (values.cpu() == 9).all()


@pytest.mark.gpu
def test_what_the_driver_refuses(gpu: torch.device, real: DeviceLaunch) -> None:
    values = torch.zeros(1, device=gpu)
    with pytest.raises(KernelError, match=r"^scale of scale\.cu cannot be launched on \(1, 1, 1\) blocks of \(4096, 1, 1\)"):
        real(SCALE, "scale", ONE, (4096, 1, 1), values, 1, 1.0)
    with pytest.raises(KernelError, match=r"^none of scale\.cu cannot be loaded"):
        real(SCALE, "none", ONE, ONE, values)
    real(SCALE, "scale", ONE, ONE, values, 1, 1.0)  # neither harms what follows
    assert values.item() == 9
