"""What is free, and allocations that fail."""

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import typer

from mcbo.cli.program import run_app
from mcbo.core import memory
from mcbo.core.errors import MemoryBudgetError
from mcbo.core.memory import available_bytes, check_fits, format_gb, within_host_memory

TORCH = (
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
)


def test_more_than_a_share_of_what_is_free_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 4 * 10**9)
    check_fits(3 * 10**9, "an image")
    with pytest.raises(MemoryBudgetError, match=r"an image takes 3\.10 GB of memory, but 3\.00 GB may be used \(75 %"):
        check_fits(3_100_000_000, "an image")


@pytest.mark.parametrize(
    ("count", "text"),
    [(10_000, "0.01 MB"), (7_731_000, "7.73 MB"), (99_990_000, "99.99 MB"), (100_000_000, "0.10 GB"), (12.345e9, "12.35 GB")],
)
def test_memory_is_told_in_a_unit_that_shows_it(count: float, text: str) -> None:
    assert format_gb(count) == text


def test_the_limit_of_a_container_counts_but_not_what_it_read_from_files(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("8000\n")
    (tmp_path / "memory.current").write_text("7900\n")
    (tmp_path / "memory.stat").write_text("anon 3000\ninactive_file 4000\nactive_file 900\n")
    assert memory._container_free_bytes(tmp_path) == [4100]
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._container_free_bytes(tmp_path) == []
    older = tmp_path / "memory"
    older.mkdir()
    (older / "memory.limit_in_bytes").write_text("1000\n")
    (older / "memory.usage_in_bytes").write_text("1200\n")
    (older / "memory.stat").write_text("inactive_file 7\ntotal_inactive_file 300\n")
    assert memory._container_free_bytes(tmp_path) == [100]
    assert available_bytes() > 0


@pytest.mark.parametrize(
    "error",
    [MemoryError(), MemoryError("Unable to allocate 9 GiB"), RuntimeError(TORCH), OSError(12, "Cannot allocate memory"),
     RuntimeError("ITK ERROR: Failed to allocate memory for image."),
     np._core._exceptions._ArrayMemoryError((9,), np.dtype("u1"))],  # type: ignore[attr-defined]
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_allocations_that_fail_are_a_sentence(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = "expected enough memory, but an allocation failed with"
    with pytest.raises(MemoryBudgetError, match=f"warp: {sentence}"), within_host_memory("warp"):
        raise error
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise error

    assert run_app(app, [], name="mcbo") == 1
    assert f"ERROR: mcbo: {sentence}" in capsys.readouterr().err


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="inconsistent tensor size"), within_host_memory("warp"):
        torch.zeros(2) @ torch.zeros(3)


SCRIPT = """
import resource, sys
from mcbo.cli.main import main
from mcbo.core import memory
memory.check_fits = lambda *_: None
for name in ("mcbo.io.nifti", "mcbo.geometry.resample", "mcbo.geometry.inverse"):
    sys.modules[name].check_fits = memory.check_fits
main(["warp", "small.nii", "--points", "points.csv", "--output", "warm.csv"])
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 14_000_000,) * 2)
print([main(call.split()) for call in sys.argv[1:]])
"""


def test_commands_without_memory_end_with_a_sentence(tmp_path: Path) -> None:
    """Not only what the guard foresees: it is taken away here."""
    for name, size in (("small.nii", 6), ("large.nii", 96)):
        nibabel.save(nibabel.Nifti1Image(np.zeros((size, size, size, 3), np.float32), np.eye(4)), tmp_path / name)
    (tmp_path / "points.csv").write_text("1,2,3\n")
    root = Path(__file__).resolve().parents[2]
    program = f"import sys; sys.path.insert(0, {str(root)!r})\n{SCRIPT}"
    words = ("invert large.nii", "compose large.nii large.nii", "export large.nii --to ants")
    calls = [f"{call} --output o.nii" for call in words]
    done = subprocess.run([sys.executable, "-c", program, *calls], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("[1, 1, 1]\n"), done.stderr
    assert done.stderr.count("ERROR: ") == 3
    assert all("memory" in line for line in done.stderr.splitlines() if line.startswith("ERROR: "))
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o.nii").exists()
