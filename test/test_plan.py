"""Estimates of a run, from figures whose outcome can be told by hand."""

import json
import re
from pathlib import Path

import pytest

from mcbo.__main__ import main
from mcbo.errors import InputError
from mcbo.figures import PUBLISHED, Figure, FigureSet
from mcbo.memory import PROCESS_GB
from mcbo.plan import Request, plan
from mcbo.plan_command import format_duration, parse_size, read_figures
from mcbo.tasks import find_config

ROOT = Path(__file__).resolve().parents[1]
TWO_SIZES = FigureSet("ReMIND2Reg", False, "here", (Figure("cascade", 1, 10**6, 2.0), Figure("cascade", 1, 3 * 10**6, 12.0)))
"""2 and 4 µs a voxel."""


def request(
    cases: int = 10,
    shape: tuple[int, int, int] = (100, 80, 125),
    movings: int = 1,
    task: str = "ReMIND2Reg",
    preset: str = "cascade",
    is_gpu: bool = False,
    workers: int = 1,
    price: float | None = None,
) -> Request:
    return Request(cases, shape, movings, task, find_config(task, preset), is_gpu, workers, price)


def test_a_size_that_was_measured_takes_what_was_measured() -> None:
    estimate = plan(request(), TWO_SIZES)
    assert [estimate.seconds_per_case, estimate.seconds] == pytest.approx([2, 20])
    assert estimate.cost is None
    assert estimate.input_gb == pytest.approx(10 * 2 * 4e6 / 1e9)
    assert estimate.output_gb == pytest.approx(10 * 12e6 / 1e9)


@pytest.mark.parametrize(
    ("shape", "seconds", "outside"),
    [((100, 200, 100), 2 * 3, False), ((50, 100, 100), 0.5 * 2, True), ((200, 200, 100), 4 * 4, True)],
)
def test_between_sizes_and_beyond(shape: tuple[int, int, int], seconds: float, outside: bool) -> None:
    estimate = plan(request(shape=shape), TWO_SIZES)
    assert estimate.seconds_per_case == pytest.approx(seconds)
    assert any("outside of what was measured" in sentence for sentence in estimate.assumptions) == outside


def test_more_moving_images_take_more_and_fewer_are_not_taken_for_faster() -> None:
    assert plan(request(movings=3), TWO_SIZES).seconds_per_case == pytest.approx(6)
    with_two = FigureSet("ReMIND2Reg", False, "here", (Figure("cascade", 2, 10**6, 5.0),))
    estimate = plan(request(movings=1), with_two)
    assert estimate.seconds_per_case == pytest.approx(5)
    assert any("which is too much" in sentence for sentence in estimate.assumptions)


def test_workers_share_the_cases_and_each_is_paid_for() -> None:
    estimate = plan(request(cases=10, workers=4, price=1800), TWO_SIZES)
    assert estimate.seconds == pytest.approx(3 * 2)  # three rounds
    assert estimate.cost == pytest.approx(4 * 6 / 3600 * 1800)


def test_of_a_gpu_only_memory_is_told_unless_one_was_measured() -> None:
    unknown = plan(request(is_gpu=True, price=1), TWO_SIZES)
    assert (unknown.seconds, unknown.seconds_per_case, unknown.cost) == (None, None, None)
    assert unknown.assumptions[0].startswith("not measured on a GPU")
    assert unknown.memory_gb == (unknown.tensors_gb, unknown.tensors_gb)
    known = plan(request(is_gpu=True), FigureSet("ReMIND2Reg", True, "a card", (Figure("cascade", 1, 10**6, 0.5),)))
    assert known.seconds == pytest.approx(5)


def test_of_what_was_not_measured_no_time_is_told() -> None:
    for asked in (request(preset="mcbo2024"), request(task="COMULIS3DCLEM")):
        estimate = plan(asked, TWO_SIZES)
        assert estimate.seconds is None
        assert "python -m mcbo benchmark" in estimate.assumptions[0]
        assert estimate.tensors_gb > 0


def test_the_published_figures_are_those_of_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    rates = re.search(r"--scaling 96,128,192,256` \(one modality\): ([\d.]+), ([\d.]+), ([\d.]+) and ([\d.]+) µs", text)
    assert rates is not None
    by_key = {(figure.preset, figure.movings, figure.voxels): figure for figure in PUBLISHED.figures}
    for size, rate in zip((96, 128, 192, 256), rates.groups(), strict=True):
        assert by_key["mcbo2024", 1, size**3].seconds == pytest.approx(1e-6 * float(rate) * size**3)
    for preset, movings, words in (
        ("mcbo2024", 1, "one modality"),
        ("mcbo2024", 2, "two modalities"),
        ("cascade", 2, "two mod"),
    ):
        row = re.search(rf"^\| `{preset}` \| 256³.*{words}.* \| (\d+) \| ([\d.]+) GB", text, flags=re.MULTILINE)
        assert row is not None
        figure = by_key[preset, movings, 256**3]
        assert (round(figure.seconds), figure.peak_memory_gb) == (int(row[1]), float(row[2]))
    beside = re.search(r"the process adds ([\d.]+) to ([\d.]+) GB", text)
    assert beside is not None
    assert tuple(map(float, beside.groups())) == PROCESS_GB
    assert f"a process took up to {PROCESS_GB[1]} GB more" in text


def test_the_command_says_what_it_rests_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plan.json"
    arguments = ["--cases", "1000", "--size", "256", "--movings", "2", "--workers", "10", "--price-per-hour", "0.5"]
    assert main(["plan", *arguments, "--json", str(file)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^a case +58 s$", said, flags=re.MULTILINE)
    assert re.search(r"^the run +97 min$", said, flags=re.MULTILINE)  # 100 rounds
    assert re.search(r"^cost +8\.06$", said, flags=re.MULTILINE)
    assert "2026-11-24" in said
    assert "4.3 GB were measured at 256³ with 2 moving image(s)" in said
    content = json.loads(file.read_text())
    assert content["request"]["shape"] == [256, 256, 256]
    assert content["estimate"]["seconds"] == pytest.approx(5800)
    assert main(["plan", "--cases", "1", "--size", "256", "--device", "auto"]) == 1
    assert "--device: expected cpu, or the name of a GPU, got 'auto'" in capsys.readouterr().err
    assert main(["plan", "--cases", "1", "--size", "256", "--device", "T4"]) == 0
    said = capsys.readouterr().out
    assert "not measured on a GPU" in said
    assert re.search(r"^the run +not known$", said, flags=re.MULTILINE)


def test_figures_of_ones_own_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.json"
    assert (
        main(["benchmark", "--size", "24", "--repeat", "1", "--preset", "mcbo2024", "--device", "cpu", "--json", str(file)])
        == 0
    )
    figures = read_figures(file)
    assert (figures.task, figures.is_gpu, len(figures.figures)) == ("ReMIND2Reg", False, 1)
    arguments = ["--cases", "4", "--size", "24x20x28", "--preset", "mcbo2024", "--benchmark", str(file)]
    assert main(["plan", *arguments]) == 0
    assert str(file) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ({}, "about"),
        ({"about": {"preset": "x", "device": "cpu", "machine": "m", "torch": "2"}, "measurements": []}, "measurements"),
        (
            {
                "about": {"preset": "x", "device": "cpu", "machine": "m", "torch": "2"},
                "measurements": [{"shape": [8, 9, 10], "movings": 1, "seconds": -1, "peak_memory_gb": 1}],
            },
            "measurements.0.seconds",
        ),
    ],
)
def test_a_file_that_is_no_benchmark(tmp_path: Path, content: object, where: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"expected what python -m mcbo benchmark --json writes, but {where} is missing"):
        read_figures(file)


@pytest.mark.parametrize("text", ["[]", "not JSON", None])
def test_what_is_no_benchmark_file_is_not_called_another_kind_of_file(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "figures.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=r"figures\.json: .*what python -m mcbo benchmark --json writes"):
        read_figures(file)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--cases", "0", "--size", "64"), "--cases: expected at least 1, got 0"),
        (("--cases", "1", "--size", "64x64"), "--size: expected a number of voxels such as 256"),
        (("--cases", "1", "--size", "-64"), "--size: expected a number of voxels such as 256"),
        (("--cases", "1", "--size", "99999"), "--size: expected at most 32768 voxels along an axis"),
        (("--cases", "1", "--size", "4"), "expected at least 8 voxels along every axis"),
        (("--cases", "1", "--size", "64", "--movings", "0"), "--movings: expected at least 1, got 0"),
        (("--cases", "1", "--size", "64", "--workers", "0"), "--workers: expected at least 1, got 0"),
        (("--cases", "1", "--size", "64", "--price-per-hour", "nan"), "--price-per-hour: expected a number from 0, got nan"),
        (("--cases", "1", "--size", "64", "--benchmark", "absent.json"), "absent.json: no such file"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 1
    assert sentence in capsys.readouterr().err


def test_sizes_and_durations() -> None:
    assert parse_size("64") == (64, 64, 64)
    assert parse_size("64X48×32") == (64, 48, 32)
    assert [format_duration(seconds) for seconds in (4, 56, 720, 12240)] == ["4.0 s", "56 s", "12 min", "3.4 h"]
