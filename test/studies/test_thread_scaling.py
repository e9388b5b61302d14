"""Speed-up and serial share, worked out by hand."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mcbo.core.errors import InputError
from mcbo.studies.benchmark import Measurement, Stage
from mcbo.studies.thread_scaling import ThreadScaling, measure_scaling, to_content, to_text

ROOT = Path(__file__).resolve().parents[2]
ONE = Measurement(
    shape=(64, 64, 64),
    movings=1,
    seconds=10.0,
    microseconds_per_voxel=1.0,
    peak_memory_gb=1.0,
    model_gb=0.5,
    stages={"start": Stage(4.0, 1.0), "refine 2": Stage(6.0, 1.0)},
)
FOUR = replace(ONE, seconds=4.0, stages={"start": Stage(2.5, 1.0), "refine 2": Stage(1.5, 1.0)})
SCALING = ThreadScaling((1, 4), (ONE, FOUR), loop_speedup=3.9, copy_speedup=2.6, available=8)


def test_the_serial_share_is_that_of_amdahl() -> None:
    """10 s become 4 with four threads: 2 s are serial and 8 are shared out."""
    assert SCALING.speedup == 2.5
    assert SCALING.serial_share == pytest.approx(0.2)
    assert SCALING.predicted_speedup(4) == pytest.approx(2.5)
    assert SCALING.predicted_speedup(16) == pytest.approx(4.0)


def test_what_is_impossible_is_no_share() -> None:
    """Faster than four threads can be, or slower than one."""
    for seconds, share in ((2.0, 0), (11.0, 1)):
        assert replace(SCALING, measurements=(ONE, replace(FOUR, seconds=seconds))).serial_share == share


def test_more_threads_than_cores_are_as_many_as_those() -> None:
    """Twice as fast on two cores: nothing is serial."""
    scaling = replace(SCALING, measurements=(ONE, replace(FOUR, seconds=5.0)), loop_speedup=2.0, available=2)
    assert scaling.serial_share == 0
    assert scaling.predicted_speedup(16) == pytest.approx(16)


@pytest.mark.parametrize(("loop_speedup", "available"), [(3.1, 8), (1.0, 1)])
def test_of_cores_that_are_not_there_nothing_is_told(loop_speedup: float, available: int) -> None:
    scaling = replace(SCALING, loop_speedup=loop_speedup, available=available)
    assert to_content(scaling)["serial_share"] is to_content(scaling)["predicted_speedup_16"] is None
    assert "serial share: cannot be told, as 4 threads had too few cores to themselves" in to_text(scaling)


def test_what_gains_nothing_is_no_faster() -> None:
    slow = replace(SCALING, measurements=(ONE, replace(FOUR, seconds=10.0)))
    assert to_text(slow).endswith("serial share by Amdahl's law: 100.0%; 16 cores would be no faster than one")


def test_the_table() -> None:
    lines = to_text(SCALING).splitlines()
    assert lines[2].split() == ["stage", "1", "thread", "4", "threads", "speed-up", "share"]
    assert lines[3].split() == ["start", "4.00", "2.50", "1.60", "40.0%"]
    assert lines[5].split() == ["all", "10.00", "4.00", "2.50", "100.0%"]
    assert "3.90 times as fast with 4 threads here" in lines[8]
    assert lines[9] == "a copy of a large array, which waits for the memory that the cores share: 2.60 times"
    assert lines[7] == "speed-up: of 4 threads over one; share: of the run time with one thread"
    assert lines[10] == "serial share by Amdahl's law: 20.0%; 16 cores would be 4.0 times as fast as one"
    assert to_content(SCALING)["threads"] == [1, 4]


def test_each_is_measured_with_its_number_of_threads() -> None:
    before = torch.get_num_threads()
    seen = []
    try:
        measure_scaling([1, 2], lambda: seen.append(torch.get_num_threads()) or ONE)  # type: ignore[func-returns-value]
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 2]


@pytest.mark.parametrize("threads", [[1], [2, 4], [1, 4, 2], [1, 1]])
def test_numbers_that_do_not_ascend_from_1_are_refused(threads: list[int]) -> None:
    with pytest.raises(InputError, match=r"--threads: expected numbers that ascend from 1, such as 1,2,4, got "):
        measure_scaling(threads, lambda: ONE)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--threads", "1,x"), "--threads: expected whole numbers separated by commas, got '1,x'"),
        (("--threads", "0,2"), "--threads: expected at least 1, got 0"),
        (("--threads", "2,4"), "--threads: expected numbers that ascend from 1"),
        (("--threads", "1,2", "--scaling", "16,20"), "--threads: expected one number with --scaling, --reference or a GPU"),
    ],
)
def test_what_the_command_refuses(arguments: tuple[str, ...], sentence: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mcbo", "benchmark", *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 1
    assert sentence in done.stderr


def test_the_command(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ("--size", "32", "--repeat", "1", "--threads", "1,2", "--no-background", "--json", str(file))
    done = subprocess.run(
        [sys.executable, "-m", "mcbo", "benchmark", *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "device: cpu" in done.stdout
    assert "1 and 2 threads" in done.stdout
    assert "serial share" in done.stdout
    content = json.loads(file.read_text())
    assert content["threads"] == [1, 2]
    assert len(content["measurements"]) == 2
