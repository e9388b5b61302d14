"""Reading, computing and writing side by side, and shards: what is done when, and that nothing else changes."""

import itertools
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import fields, paper_config, write_phantoms

import process
from mcbo.core.errors import OutputError
from mcbo.core.timing import StageTimer
from mcbo.dataset.learn2reg import open_input
from mcbo.io.lock import hold
from mcbo.kernels.cpu import COMPILED
from mcbo.methods.memory_model import image_bytes
from mcbo.report import earlier_cases
from mcbo.runs import pipelined
from mcbo.runs.compute import compute
from mcbo.runs.ledger import Ledger
from mcbo.runs.load import load
from mcbo.runs.options import Options, Setup
from mcbo.runs.resume import read_earlier
from mcbo.runs.runner import run
from mcbo.runs.write import write

SHAPE = (20, 18, 22)
CASES = ("0001", "0002", "0003", "0004")
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("data"), CASES, SHAPE)


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    return [str(data), "--output", str(out), "--preset", "mcbo2024", "--device", "cpu", *more]


def reported(out: Path, name: str = "report.json") -> dict[str, Any]:
    cases: dict[str, Any] = json.loads((out / name).read_text())["cases"]
    return cases


def after(step: Callable[..., Any], *, tell: threading.Event | None = None, wait: threading.Event | None = None) -> Any:
    """A step that waits for one event before its first call's work, or tells another after its second's."""
    calls = 0

    def stepping(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if wait is not None and calls == 1:
            assert wait.wait(PATIENCE_S), "the other step was not done meanwhile"
        result = step(*args, **kwargs)
        if tell is not None and calls == 2:
            tell.set()
        return result

    return stepping


def test_the_next_case_is_read_while_one_is_computed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second_is_read = threading.Event()
    monkeypatch.setattr(pipelined, "load", after(load, tell=second_is_read))
    monkeypatch.setattr(pipelined, "compute", after(compute, wait=second_is_read))
    assert process.main(arguments(data, tmp_path)) == 0
    first, second, *_ = reported(tmp_path).values()
    assert list(first["spans_s"]) == ["read", "compute", "write"]
    assert second["spans_s"]["read"][0] >= first["spans_s"]["read"][1]
    assert second["spans_s"]["read"][1] <= first["spans_s"]["compute"][1]  # the report shows it
    assert first["waited_s"] >= 0
    assert {"read", "write"} <= first["stages"].keys()


def test_a_case_is_written_while_the_next_is_computed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second_is_computed = threading.Event()
    monkeypatch.setattr(pipelined, "compute", after(compute, tell=second_is_computed))
    monkeypatch.setattr(pipelined, "write", after(write, wait=second_is_computed))
    assert process.main(arguments(data, tmp_path)) == 0
    spans = [case["spans_s"] for case in reported(tmp_path).values()]
    assert spans[0]["write"][1] > spans[1]["compute"][1]  # the report shows it
    assert all(later["compute"][0] >= earlier["compute"][1] for earlier, later in itertools.pairwise(spans))
    assert list(reported(tmp_path)) == list(CASES)


@pytest.mark.parametrize("neighbors", [True, False])
def test_without_memory_for_neighbors_cases_take_turns(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, neighbors: bool
) -> None:
    """The same bits either way; with a byte less than the images of the next case take, nothing is read ahead."""
    ahead = []
    whole = load

    def listening(*args: Any, **kwargs: Any) -> Any:
        ahead.append(kwargs["ahead"])
        return whole(*args, **kwargs)

    monkeypatch.setattr(pipelined, "load", listening)
    config = paper_config()
    fitted = replace(config, levels=config.levels[2:])
    images, results = image_bytes(SHAPE, movings=1), 12 * 20 * 18 * 22
    budget = fitted.least_bytes(SHAPE, movings=1, kernels=COMPILED) + 2 * results + images - (0 if neighbors else results + 1)
    outcome = run(
        open_input(data, split="val").cases, config, Options(tmp_path / "out", device="cpu", memory_gb=(budget + 0.5) / 1e9)
    )
    assert not outcome.failed
    assert ahead == [False, *([True] * 3 if neighbors else [False] * 3)]
    assert process.main(arguments(data, tmp_path / "other")) == 0
    assert fields(tmp_path / "out") == fields(tmp_path / "other")


def test_what_goes_wrong_in_a_thread_is_not_swallowed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    cases, options = open_input(data, split="val").cases, Options(tmp_path, device="cpu")
    for step in ("load", "write"):
        with monkeypatch.context() as patch:
            patch.setattr(pipelined, step, broken)
            with pytest.raises(ZeroDivisionError, match="a bug"):
                run(cases, paper_config(), options)


def test_no_thread_of_the_pipeline_has_to_be_started_once_a_case_fills_the_memory(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, start = threading.Event(), threading.Thread.start

    def start_early(thread: threading.Thread) -> None:
        if begun.is_set() and thread.name.startswith(("mcbo-read", "mcbo-write")):
            raise RuntimeError("can't start new thread")
        start(thread)

    def begin(*args: Any, **kwargs: Any) -> None:
        begun.set()
        compute(*args, **kwargs)

    monkeypatch.setattr(threading.Thread, "start", start_early)
    monkeypatch.setattr(pipelined, "compute", begin)
    assert process.main(arguments(data, tmp_path)) == 0
    assert len(fields(tmp_path)) == 4


def test_an_interrupt_lets_the_case_that_is_written_be_finished(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, interrupted = 0, threading.Event()
    whole = compute

    def interrupt_second(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            interrupted.set()
            raise KeyboardInterrupt
        whole(*args, **kwargs)

    monkeypatch.setattr(pipelined, "compute", interrupt_second)
    monkeypatch.setattr(pipelined, "write", after(write, wait=interrupted))
    assert process.main(arguments(data, tmp_path)) == 130
    assert list(reported(tmp_path)) == ["0001"]
    assert len(fields(tmp_path)) == 1
    assert "stopped after 1 of 4 case(s)" in capsys.readouterr().err


def test_shards_share_the_cases_and_a_whole_run_gathers_them(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert process.main(arguments(data, tmp_path, "--shard", "1/3")) == 0
    assert list(reported(tmp_path, "report-1-of-3.json")) == ["0001", "0004"]
    monkeypatch.setenv("MCBO_SHARD", "3/3")
    assert process.main(arguments(data, tmp_path)) == 0
    assert list(reported(tmp_path, "report-3-of-3.json")) == ["0003"]
    monkeypatch.setenv("MCBO_SHARD", "1/2")  # another N: the first and third are done, by two shards
    capsys.readouterr()
    assert process.main(arguments(data, tmp_path)) == 0
    assert capsys.readouterr().out.count("done before") == 2
    monkeypatch.setenv("MCBO_SHARD", "2/2")  # the fourth is done
    assert process.main(arguments(data, tmp_path)) == 0
    assert capsys.readouterr().out.count("done before") == 1
    monkeypatch.delenv("MCBO_SHARD")
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("disp_*")}
    assert process.main(arguments(data, tmp_path)) == 0
    assert capsys.readouterr().out.count("done before") == 4
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("disp_*")} == written
    assert list(reported(tmp_path)) == list(CASES)
    assert all(entry["failed"] == {} for entry in reported(tmp_path).values())


def test_a_shard_beyond_the_cases_has_nothing_to_do(data: Path, tmp_path: Path) -> None:
    assert process.main(arguments(data, tmp_path, "--shard", "5/5")) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report-5-of-5.json"]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2", "1/", "", "²/3"])
def test_a_shard_is_told_by_two_numbers(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert process.main(arguments(data, tmp_path, "--shard", text)) == process.BAD_INPUT
    assert "--shard: expected I" in capsys.readouterr().err


def test_shards_and_a_whole_run_exclude_each_other(data: Path, tmp_path: Path) -> None:
    cases, options = open_input(data, split="val").cases, Options(tmp_path, device="cpu")
    with hold(tmp_path / ".report-1-of-2.json.lock"), pytest.raises(OutputError, match="one is at work there"):
        run(cases, paper_config(), options)
    with hold(tmp_path / ".report.json.lock"), pytest.raises(OutputError, match="one is at work there"):
        run(cases, paper_config(), replace(options, shard=(2, 2)))


def test_a_report_may_lag_behind_and_nothing_is_forgotten(data: Path, tmp_path: Path) -> None:
    """Where each case has a file of its own, the report need not be written after each."""
    cases, options = open_input(data, split="val").cases, Options(tmp_path, device="cpu")
    run(cases, paper_config(), options)
    setup = Setup(paper_config(), options, torch.device("cpu"))
    earlier = read_earlier(earlier_cases(tmp_path / "report.json", paper_config()), setup)
    (tmp_path / "report.json").unlink()
    ledger = Ledger(cases, setup, "here", report_every_s=3600)
    for case in reversed(cases):
        loaded = load(case, setup, earlier=earlier[case.name], timer=StageTimer())
        ledger.settle(case, loaded.result)
    assert list(reported(tmp_path)) == ["0004"]
    ledger.save_report()
    assert list(reported(tmp_path)) == list(CASES)
    assert [path.name for path in ledger.outcome().written] == list(fields(tmp_path))
