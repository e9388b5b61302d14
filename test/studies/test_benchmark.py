import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def mcbo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mcbo", *arguments], capture_output=True, text=True, cwd=ROOT, check=False)


def test_stages_and_reference(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = mcbo(
        "benchmark",
        "--size",
        "24",
        "--repeat",
        "1",
        "--threads",
        "1",
        "--preset",
        "mcbo2024",
        "--reference",
        "--json",
        str(file),
    )
    assert done.returncode == 0
    # The paper's preset does not help a phantom that small, and says so.
    assert all("the feature distance did not fall" in line for line in done.stderr.splitlines())
    for word in ("level 2 solve", "write", "peak GB", "memory model", "torch: ", "1 threads", "times as long"):
        assert word in done.stdout
    content = json.loads(file.read_text())
    (one,) = content["measurements"]
    assert one["shape"] == [24, 24, 24]
    assert 0 < one["seconds"] < 600
    assert 0 < one["model_gb"] < one["peak_memory_gb"] < 5
    (plain,) = content["plain_torch"]
    assert plain["shape"] == one["shape"]
    assert set(plain["stages"]) == set(one["stages"])
    assert {"read", "features", "level 4 solve", "level 1 refine", "write"} <= set(one["stages"])


def test_scaling() -> None:
    done = mcbo("benchmark", "--scaling", "16,20", "--repeat", "1", "--modalities", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "16×16×16" in done.stdout
    assert "20×20×20" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--size", "8"), "--size or --scaling: expected at least 16, got 8"),
        (("--repeat", "0"), "--repeat: expected at least 1, got 0"),
        (("--modalities", "3"), "--modalities: expected 1 or 2, got 3"),
        (("--threads", "0"), "--threads: expected at least 1, got 0"),
        (("--scaling", "64,x"), "--scaling: expected whole numbers separated by commas, got '64,x'"),
        (("--preset", "best"), "preset 'best' is not known"),
        (("--device", "tpu"), "device 'tpu' is not known"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...], sentence: str) -> None:
    done = mcbo("benchmark", *arguments)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
