import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import paper_config

from mcbo.runs.options import Options
from mcbo.studies.benchmark import (
    Difference,
    Gpu,
    Measurement,
    Stage,
    compare_with_cpu,
    differences_to_text,
    measure,
    to_content,
    to_text,
)
from mcbo.studies.device_use import BETWEEN, DeviceUse

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
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("level 2 solve", "write", "peak GB", "memory model", "torch: ", "1 thread;", "times as long"):
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
    assert set(content) == {"about", "measurements", "plain_torch"}
    assert "gpu" not in one
    assert "launches" not in done.stdout


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


def on_a_gpu() -> Measurement:
    return Measurement(
        shape=(256, 256, 256),
        movings=2,
        seconds=2.5,
        microseconds_per_voxel=0.149,
        peak_memory_gb=5.5,
        model_gb=5.75,
        stages={"read": Stage(0.5, 0.9), "level 4 solve": Stage(1.0, 5.5), "write": Stage(1.0, 1.2)},
        gpu=Gpu(6.5, 7.25, {"level 4 solve": DeviceUse(14, 3, 2, 0.875), BETWEEN: DeviceUse(0, 4, 1, 0.125)}),
    )


def test_the_table_of_a_gpu() -> None:
    assert to_text({}, [on_a_gpu()]).splitlines()[1:] == [
        "phantom of 256×256×256 voxels, 2 moving image(s), from files to file",
        "",
        "stage                      seconds   peak GB    busy s  launches    copies     waits",
        "read                         0.500",
        "level 4 solve                1.000      5.50     0.875        14         3         2",
        "write                        1.000",
        "between stages                                   0.125         0         4         1",
        "all                          2.500      5.50     1.000        14         7         3",
        "",
        "first case of this process: 7.25 s",
        "memory model: 5.75 GB of tensors on the GPU; torch holds 6.50 GB of its memory",
    ]


def test_the_json_of_a_gpu() -> None:
    gpu = json.loads(json.dumps(to_content(on_a_gpu())))["gpu"]
    assert gpu["first_seconds"] == 7.25
    assert gpu["stages"]["level 4 solve"] == {"launches": 14, "copies": 3, "waits": 2, "busy_s": 0.875}
    assert gpu["whole"] == {"launches": 14, "copies": 7, "waits": 3, "busy_s": 1.0}


def test_a_device_is_compared_with_the_cpu(tmp_path: Path) -> None:
    found = compare_with_cpu(paper_config(), Options(output=tmp_path, device="cpu"), movings=2, size=24)
    assert found == {f"disp_0001_0000_0001_000{channel}.nii.gz": Difference(0.0, 0.0) for channel in (1, 2)}
    assert "at most" in differences_to_text(found)


@pytest.mark.gpu
def test_a_gpu_is_measured(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    options = Options(output=tmp_path, device="cuda")
    (one,) = measure([32], config=paper_config(), options=options, movings=1, repeat=1)
    assert one.gpu is not None
    assert one.gpu.first_seconds is not None
    assert one.gpu.stages["level 4 solve"].launches > 0
    assert 0 < one.gpu.whole.launches < 15000
    assert 0 < one.gpu.whole.busy_s < one.gpu.first_seconds + 10
    assert 0 < one.peak_memory_gb < one.gpu.held_gb < 2
    assert all(difference.mean < 0.02 for difference in compare_with_cpu(paper_config(), options, movings=1, size=32).values())
