"""Fixtures."""

from pathlib import Path

import pytest
import torch

from mcbo.core.types import Kernels
from mcbo.kernels import REFERENCE
from mcbo.kernels.cpu import COMPILED
from mcbo.studies.phantom import Phantom, make_phantom

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Golden arrays and development data, where the project's owner keeps them; absent elsewhere."""


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return torch.device(request.param)


@pytest.fixture(scope="module", params=[REFERENCE, COMPILED], ids=lambda kernels: kernels.name)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """The plain torch code, and its compiled twin: what is true of one is true of the other."""
    assert isinstance(request.param, Kernels)
    return request.param


@pytest.fixture(scope="session")
def phantom() -> Phantom:
    """Three different sizes, odd ones among them, so that swapped axes show."""
    return make_phantom((41, 36, 48), seed=7)


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the owner's shared folder is not beside this checkout")
    return SHARED
