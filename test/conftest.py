"""Fixtures."""

import shutil
from pathlib import Path

import pytest
import torch
from cuda_on_cpu import COMPILER, OnCpu
from hypothesis import settings

from mcbo.core.types import Kernels
from mcbo.kernels import REFERENCE
from mcbo.kernels.cuda import make_kernels
from mcbo.studies.phantom import Phantom, make_phantom

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Golden arrays and development data, where the project's owner keeps them; absent elsewhere."""


settings.register_profile("untimed", deadline=None)  # machines are shared: speed is measured by a command, not by tests
settings.load_profile("untimed")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return torch.device(request.param)


@pytest.fixture(scope="session")
def cuda_on_cpu(tmp_path_factory: pytest.TempPathFactory) -> OnCpu:
    """Launches the CUDA kernels, compiled as C++, on the CPU."""
    if not shutil.which(COMPILER[0]):
        pytest.skip(f"no {COMPILER[0]} here to compile the CUDA kernels as C++")
    return OnCpu(tmp_path_factory.mktemp("cuda"))


@pytest.fixture(scope="module", params=["torch", "numba", "cuda"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """The plain torch code, its compiled twin, and that for GPUs, run on the CPU: what is true of one is true of all."""
    if request.param == "cuda":
        return make_kernels(request.getfixturevalue("cuda_on_cpu"))
    if request.param == "torch":
        return REFERENCE
    pytest.importorskip("numba")  # tests on a GPU have no use for it
    from mcbo.kernels.cpu import COMPILED

    return COMPILED


@pytest.fixture(scope="session")
def phantom() -> Phantom:
    """Three different sizes, odd ones among them, so that swapped axes show."""
    return make_phantom((41, 36, 48), seed=7)


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the owner's shared folder is not beside this checkout")
    return SHARED
