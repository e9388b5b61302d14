"""Cases on workers: the same results as one process, whatever dies. What takes longer is in ``cluster_check.py``."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("distributed", reason="the extra 'cluster' is not installed: pip install '.[cluster]'")

import torch
from clusters import ROOT, cluster, finish, leftovers, make_cases, reported, start, wait_until
from helpers import fields, paper_config

import process
from mcbo.core.errors import ClusterError, OutputError
from mcbo.dataset.learn2reg import open_input
from mcbo.report import earlier_cases
from mcbo.runs import cluster as client
from mcbo.runs.options import Options
from mcbo.runs.resume import entry_file
from mcbo.runs.worker import Assignment, check_versions, do_case
from mcbo.runtime import versions

CASES = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cases(tmp_path_factory.mktemp("data"), [(20, 18, 22)] * CASES)


@pytest.fixture(scope="module")
def truth(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The fields of one process with one thread, as each worker has."""
    out = tmp_path_factory.mktemp("alone")
    assert alone(data, out) == 0
    return fields(out)


def alone(data: Path, out: Path) -> int:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return process.main([str(data), "--output", str(out), "--preset", "mcbo2024", "--device", "cpu"])
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def assignment(data: Path, tmp_path: Path) -> Assignment:
    (case, *_) = open_input(data, split="val").cases
    options = Options(tmp_path / "out", device="cpu")
    options.output.mkdir()
    return Assignment(case, paper_config(), options, earlier=(), run="this", versions=versions())


def test_workers_are_killed_and_the_scheduler_too(
    data: Path, truth: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with cluster(tmp_path / "cluster") as running:
        program = start(data, out, "--scheduler", running.address)
        running.kill_worker_in_mid_case()
        status, output, errors = finish(program)
        assert (status, errors) == (0, "")
        assert sorted(line.split("case ")[1][:4] for line in output.splitlines() if ": done, " in line) == sorted(reported(out))
        assert len(reported(out)) == CASES
        assert fields(out) == truth
        assert leftovers(out) == []

        gone = tmp_path / "gone"
        program = start(data, gone, "--scheduler", running.address)
        wait_until(lambda: list(gone.glob("disp*")))
        gone.rename(tmp_path / "moved")
        gone.mkdir()
        status, output, errors = finish(program)
        assert status == process.SOME_FAILED
        assert "0 displacement(s) written" in output
        assert "since its output folder is gone" in errors
        assert f"what was finished before is in {tmp_path / 'moved'}" in errors
        assert "Traceback" not in errors

        program = start(data, out, "--scheduler", running.address, "--overwrite")
        wait_until(lambda: any(running.client.processing().values()))
        running.scheduler.kill()
        status, _, errors = finish(program)
    assert status == process.SOME_FAILED
    assert (
        "the scheduler was lost before it was done; the next run resumes" in errors or "since the scheduler was lost" in errors
    )
    assert "Traceback" not in errors
    assert alone(data, out) == 0  # the next run goes on
    output = capsys.readouterr().out
    assert output.count("done before") + output.count(": done, ") == CASES
    assert fields(out) == truth
    assert leftovers(out) == []


def test_the_caller_s_own_dask_scheduler_is_left_alone(tmp_path: Path) -> None:
    import dask

    with (
        cluster(tmp_path / "cluster", workers=1) as running,
        client._connect(Options(tmp_path, scheduler=running.address), cases=1),
    ):
        assert dask.config.get("scheduler", None) is None
    assert dask.config.get("scheduler", None) is None


def test_local_workers(data: Path, truth: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "imagesTr" / "ReMIND2Reg_0003_0001.nii.gz").rename(tmp_path / "hidden")
    try:
        status, output, errors = finish(start(data, tmp_path / "out", "--workers", "2"))
    finally:
        (tmp_path / "hidden").rename(data / "imagesTr" / "ReMIND2Reg_0003_0001.nii.gz")
    assert status == process.SOME_FAILED
    assert [line.partition(":")[0] for line in errors.splitlines()] == ["ERROR", "ERROR"]  # told once, and once at the end
    assert "disp_0003_0000_0003_0001 is not written" in errors
    assert fields(tmp_path / "out") == {name: value for name, value in truth.items() if "0003" not in name}
    assert "distributed" not in output + errors
    assert list(reported(tmp_path / "out")) == [f"{number:04d}" for number in range(1, CASES + 1)]
    assert alone(data, tmp_path / "out") == 0  # one process goes on where workers were
    assert capsys.readouterr().out.count("done before") == CASES - 1


def test_a_result_that_no_client_heard_of_is_not_done_again(assignment: Assignment, truth: dict[str, str]) -> None:
    case, options = assignment.case, assignment.options
    assert do_case(assignment).is_fresh
    assert not do_case(assignment).is_fresh  # another worker, after the first died without an answer
    assert not do_case(replace(assignment, options=replace(options, overwrite=True))).is_fresh
    assert do_case(replace(assignment, run="another", options=replace(options, overwrite=True))).is_fresh
    path = entry_file(case, options)
    assert list(earlier_cases(path, assignment.config)) == [case.name]
    assert set(fields(options.output)) <= set(truth)
    assert (
        process.main(
            [str(Path(case.fixed).parents[1]), "--output", str(options.output), "--preset", "mcbo2024", "--case", case.name]
        )
        == 0
    )
    assert list(reported(options.output)) == [case.name]
    assert not path.exists()  # the report has it


def test_a_case_that_takes_too_long_ends_its_worker_and_is_not_tried_again(
    assignment: Assignment,
) -> None:
    """In a process of its own, which the limit ends; the second attempt, as another worker would make it, fails at once."""
    code = """
import pickle, sys, threading
from mcbo.runs import worker
assignment = pickle.loads(sys.stdin.buffer.read())
worker.compute = lambda *_, **__: threading.Event().wait()
worker.do_case(assignment)
"""
    late = replace(assignment, options=replace(assignment.options, case_timeout_s=0.5))
    ended = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(late), cwd=ROOT, check=False, timeout=60)
    assert ended.returncode == 75
    result = do_case(late)
    name = late.case.pairs[0].field_name
    assert result.failed == {name: f"{late.case.fixed}: not finished within 0.5 s (--case-timeout); its worker was restarted"}
    assert do_case(replace(late, run="another", options=replace(late.options, case_timeout_s=600))).failed == {}


def test_a_worker_that_does_not_see_the_folder_says_so(assignment: Assignment) -> None:
    assignment.options.output.rmdir()
    with pytest.raises(
        OutputError, match=r"out: no such folder for the worker in process \d+ on .*; client and workers need the same"
    ):
        do_case(assignment)


def test_differing_versions_are_refused() -> None:
    other = versions() | {"mcbo": "9.9", "python": "3.99"}
    with pytest.raises(ClusterError, match=r"^worker 7: expected mcbo [\d.]+, found 9\.9: install the same"):
        check_versions(versions(), other, "worker 7")
    check_versions(versions(), versions() | {"python": "3.99"}, "worker 7")


def test_without_dask_a_sentence_says_what_to_install(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "find_spec", lambda _: None)
    assert process.main([str(data), "--output", str(tmp_path), "--workers", "2"]) == process.BAD_INPUT
    assert capsys.readouterr().err == (
        "ERROR: --workers and --scheduler need Dask, which is not installed: pip install '.[cluster]' in the checkout of mcbo\n"
    )


def test_dask_is_imported_only_where_it_is_needed() -> None:
    code = "import process, sys; sys.exit(bool({'dask', 'distributed'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nowhere", "tcp://127.0.0.1:x"])
def test_an_address_without_a_scheduler(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    monkeypatch.setattr(client, "_CONNECT_S", 0.5)
    assert process.main([str(data), "--output", str(tmp_path), "--scheduler", address]) == process.BAD_INPUT
    assert f"{address}: expected the address of a Dask scheduler, but" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--workers", "0"], "--workers: expected 1 or more, got 0"),
        (["--case-timeout", "5"], "--case-timeout: expected --workers or --scheduler with it"),
        (["--case-timeout", "0", "--workers", "1"], "--case-timeout: expected a number of seconds above 0, got 0"),
        (["--workers", "1", "--device", "cuda:1"], "expected auto, cpu or cuda with --workers"),
        (["--workers", "1", "--device", "gpu"], "device 'gpu' is not known: expected auto, cpu, cuda or cuda:N"),
        (["--scheduler", "tcp://127.0.0.1:1", "--device", "gpu"], "device 'gpu' is not known"),
    ],
)
def test_options_that_make_no_sense(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    assert process.main([str(data), "--output", str(tmp_path), *options]) == process.BAD_INPUT
    assert sentence in capsys.readouterr().err
