"""A GPU whose memory is full in mid-case: told by an error that a fake raises, on the CPU."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import fields, paper_config, write_phantoms

import process
from mcbo import runtime
from mcbo.core.memory import format_gb
from mcbo.kernels.cpu import COMPILED
from mcbo.runs import compute
from mcbo.runtime import within_memory

SHAPE = (20, 18, 22)
CASES = ("0001", "0002")
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("data"), CASES, SHAPE)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets the CPU pass for a GPU with 3 GB free where a lack of memory is dealt with; the budgets of all attempts."""
    budgets: list[int] = []

    def on_gpu(attempt: Callable[[int], Any], *, device: torch.device, **more: Any) -> Any:
        assert device.type == "cpu"

        def noting(budget: int) -> Any:
            budgets.append(budget)
            return attempt(budget)

        return within_memory(noting, device=torch.device("cuda"), **more)

    monkeypatch.setattr(compute, "within_memory", on_gpu)
    monkeypatch.setattr(runtime, "free_bytes", lambda _: 3 * 10**9)
    return budgets


def failing(monkeypatch: pytest.MonkeyPatch, step: str, times: int, error: Exception = FULL) -> None:
    """Lets a step of computing fail so many times."""
    whole, left = getattr(compute, step), times

    def once_more(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        if left:
            left -= 1
            raise error
        return whole(*args, **kwargs)

    monkeypatch.setattr(compute, step, once_more)


def arguments(data: Path, out: Path) -> list[str]:
    return [str(data), "--output", str(out), "--preset", "mcbo2024", "--device", "cpu", "--memory-gb", "4"]


@pytest.mark.parametrize("step", ["register", "examine"])
def test_a_case_is_tried_once_more_within_half_of_the_budget(
    data: Path, tmp_path: Path, gpu: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: str
) -> None:
    failing(monkeypatch, step, times=1)
    assert process.main(arguments(data, tmp_path / "out")) == 0
    assert gpu[1] == gpu[0] // 2
    assert len(gpu) == 3  # the second case is not concerned
    error = capsys.readouterr().err
    least = paper_config().least_bytes(SHAPE, movings=1, kernels=COMPILED)
    assert "0001_0000.nii.gz: cuda ran out of memory within a budget of 4.00 GB; " in error
    assert f"at least {format_gb(least)} are needed, 3.00 GB are free now: trying once more within 2.00 GB" in error
    monkeypatch.undo()
    assert process.main(arguments(data, tmp_path / "undisturbed")) == 0
    assert fields(tmp_path / "out") == fields(tmp_path / "undisturbed")


def test_a_case_that_runs_out_of_memory_twice_fails_with_figures_and_no_other_does(
    data: Path, tmp_path: Path, gpu: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, "register", times=2)
    assert process.main(arguments(data, tmp_path)) == process.SOME_FAILED
    assert len(gpu) == 3
    report = json.loads((tmp_path / "report.json").read_text())["cases"]
    (message,) = report["0001"]["failed"].values()
    least = paper_config().least_bytes(SHAPE, movings=1, kernels=COMPILED)
    assert message.endswith(
        f"0001_0000.nii.gz: cuda ran out of memory within a budget of 2.00 GB; at least {format_gb(least)} are needed, "
        "3.00 GB are free now: end other programs on it, or use another --device"
    )
    assert message in capsys.readouterr().err
    assert report["0002"]["failed"] == {}


def test_the_second_budget_is_no_smaller_than_what_the_case_needs() -> None:
    budgets = []

    def attempt(budget: int) -> int:
        budgets.append(budget)
        if len(budgets) == 1:
            raise RuntimeError("CUDA error: out of memory")
        return budget

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "free_bytes", lambda _: 0)
        found = within_memory(
            attempt, who="x", device=torch.device("cuda"), budget_bytes=100, least_bytes=lambda: 70, warn=lambda _: None
        )
    assert budgets == [100, 70]
    assert found == 70


@pytest.mark.parametrize(
    ("device", "error"),
    [
        ("cpu", FULL),  # as torch says of a full GPU; here nothing else is known
        ("cpu", MemoryError("Unable to allocate 2.00 GiB: out of memory")),
        ("cuda", RuntimeError("CUDA error: an illegal memory access was encountered")),
        ("cuda", ValueError("a bug")),
    ],
)
def test_other_errors_are_left_as_they_are(device: str, error: Exception) -> None:
    calls = []

    def attempt(budget: int) -> None:
        calls.append(budget)
        raise error

    with pytest.raises(type(error)) as raised:
        within_memory(
            attempt, who="x", device=torch.device(device), budget_bytes=100, least_bytes=lambda: 70, warn=lambda _: None
        )
    assert raised.value is error
    assert calls == [100]


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 15.78 GiB total capacity)",
        "CUDA error: out of memory",
        "CUDA_ERROR_OUT_OF_MEMORY: The API call failed because it was unable to allocate enough memory",
        "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_a_full_gpu_is_known_by_what_its_libraries_say(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    class OtherError(Exception):
        """As of bindings that are not torch's."""

    monkeypatch.setattr(runtime, "free_bytes", lambda _: 0)
    for kind in (RuntimeError, OtherError):
        told: list[str] = []
        errors = iter([kind(text)])

        def attempt(budget: int, errors: Any = errors) -> int:
            for error in errors:
                raise error
            return budget

        found = within_memory(
            attempt, who="x", device=torch.device("cuda"), budget_bytes=100, least_bytes=lambda: 1, warn=told.append
        )
        assert found == 50
        assert len(told) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_a_gpu_the_tensors_of_the_first_attempt_are_gone_before_the_second() -> None:
    device = torch.device("cuda")
    size = int(0.6 * runtime.free_bytes(device))

    def attempt(budget: int) -> int:
        first = torch.empty(size, dtype=torch.uint8, device=device)
        if budget == 100:
            torch.empty(size, dtype=torch.uint8, device=device)
        return first.numel()

    told: list[str] = []
    found = within_memory(attempt, who="x", device=device, budget_bytes=100, least_bytes=lambda: 1, warn=told.append)
    assert found == size
    assert len(told) == 1
