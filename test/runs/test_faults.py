"""The fault table: what a run loses (nothing that was finished), what it says, and how it exits.

Four small cases each time. ``MCBO_TEST_KILLS=20`` kills at twenty moments instead of a few.
"""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from helpers import fields, paper_config, write_nifti, write_phantoms

import process
from mcbo.core.memory import format_gb
from mcbo.io import files
from mcbo.io.files import digest
from mcbo.io.nifti import read_displacement
from mcbo.kernels.cpu import COMPILED
from mcbo.report import write_report
from mcbo.runs import ledger, outputs
from mcbo.studies.phantom import make_phantom

KILLS = int(os.environ.get("MCBO_TEST_KILLS", "3"))
SHAPE = (32, 28, 36)
CASES = ("0001", "0002", "0003", "0004")
FIELDS = [f"disp_{case}_0000_{case}_0001.nii.gz" for case in CASES]
FIELD_BYTES = 12 * 32 * 28 * 36


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("original"), CASES, SHAPE)


@pytest.fixture(scope="module")
def truth(original: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The fields of an undisturbed run."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert process.main(arguments(original, out)) == 0
    return fields(out)


@pytest.fixture
def data(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(original, tmp_path / "data"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own: 1 MiB, two fields and a half."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, check=False)  # noqa: S607
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)  # noqa: S607


def mount(*options: str | Path) -> None:
    subprocess.run(["mount", *options], check=True)  # noqa: S607


def make_read_only(folder: Path) -> None:
    """Lays a read-only view of a folder over it; even root cannot write there then."""
    mount("--bind", folder, folder)
    mount("-o", "remount,bind,ro", folder)


def arguments(data: Path, out: Path) -> list[str]:
    return [str(data), "--output", str(out), "--preset", "mcbo2024", "--device", "cpu"]


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def reported(out: Path) -> dict[str, Any]:
    cases: dict[str, Any] = json.loads((out / "report.json").read_text())["cases"]
    return cases


def start(data: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """The program in a process of its own, once it has begun to work."""
    command = [sys.executable, process.__file__, *arguments(data, out), *more]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    for line in running.stdout:
        if "preset" in line:
            break
    return running


def after_first_case(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Lets something befall the run when its first case is in the report."""
    calls = 0

    def write_then_act(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        write_report(*args, **kwargs)
        if calls == 1:
            action()

    monkeypatch.setattr(ledger, "write_report", write_then_act)


def test_kill_9_loses_nothing_that_was_finished(original: Path, truth: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    moments = random.Random(20261124)  # noqa: S311
    kept: dict[str, tuple[str | None, int]] = {}
    told: set[str] = set()
    for _ in range(KILLS):
        running = start(original, out)
        killer = threading.Timer(moments.uniform(0, 5), running.kill)
        killer.start()
        output, errors = running.communicate(timeout=60)
        killer.cancel()
        assert running.returncode in (-signal.SIGKILL, 0)
        assert errors == ""
        told |= {case for case in CASES if f"case {case}: done, " in output}
        redone = {case for case in CASES if f"case {case}: done, " in output and f"disp_{case}" in str(kept)}
        assert not redone
        for name, (value, made) in kept.items():
            assert (digest(out / name), (out / name).stat().st_mtime_ns) == (value, made)
        assert fields(out).items() <= truth.items()  # whole, or not there
        finished = [out / name for case, name in zip(CASES, FIELDS, strict=True) if case in told]
        kept = {path.name: (digest(path), path.stat().st_mtime_ns) for path in finished}
        if running.returncode == 0:  # killed too late: from the beginning
            shutil.rmtree(out)
            kept, told = {}, set()
    assert process.main(arguments(original, out)) == 0
    assert fields(out) == truth
    assert names(out) == [*FIELDS, "report.json"]
    for name, (value, made) in kept.items():
        assert (digest(out / name), (out / name).stat().st_mtime_ns) == (value, made)


def test_two_runs_at_once(original: Path, truth: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    running = start(original, out)
    try:
        assert process.main(arguments(original, out)) == process.BAD_INPUT
        error = capsys.readouterr().err
        assert f"expected no other run with the same report, but one is at work there (process {running.pid} on " in error
        fixed, moving = (str(original / "imagesTr" / f"ReMIND2Reg_0001_000{c}.nii.gz") for c in range(2))
        assert process.main([fixed, moving, str(out / "mine.nii.gz"), "--preset", "mcbo2024"]) == 0  # another report
        _, errors = running.communicate(timeout=60)
    finally:
        running.kill()
    assert (running.returncode, errors) == (0, "")
    assert names(out) == [*FIELDS, "mine.nii.gz", "mine.report.json", "report.json"]
    assert fields(out) == truth


def test_a_full_disk_is_seen_before_the_work(
    original: Path, truth: dict[str, str], small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert process.main(arguments(original, small_disk)) == process.SOME_FAILED
    error = capsys.readouterr().err
    assert "the displacements of all cases may take 1.5 MB (before compression), but 1.0 MB are free there" in error
    assert "disp_0003_0000_0003_0001 is not written: " in error
    assert f"1 displacement(s) may take {FIELD_BYTES / 1e3:.0f} kB (before compression), but " in error
    assert names(small_disk) == [*FIELDS[:2], "report.json"]
    mount("-o", "remount,size=4m", small_disk)
    assert process.main(arguments(original, small_disk)) == 0
    assert capsys.readouterr().out.count("done before") == 2
    assert fields(small_disk) == truth


def test_a_disk_that_fills_up_in_mid_write(
    original: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (files, outputs):
        monkeypatch.setattr(module, "free_disk_bytes", lambda _: 10**9)
    assert process.main(arguments(original, small_disk)) == process.SOME_FAILED
    error = capsys.readouterr().err
    assert f"{FIELDS[2]}: cannot be written: No space left on device" in error
    assert f"{FIELDS[3]}: cannot be written: No space left on device" in error
    assert names(small_disk) == [*FIELDS[:2], "report.json"]
    assert list(reported(small_disk)) == list(CASES)


def test_a_file_size_limit_costs_what_is_larger_and_kills_nobody(original: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, process.__file__, *arguments(original, out), "--case", "0001", "--on-failure", "zero"]
    limit = 100_000  # bytes: a field of no motion compresses to less

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limited, timeout=60)
    assert done.returncode == process.SOME_FAILED
    assert f"{FIELDS[0]}: cannot be written: File too large" in done.stderr
    assert "wrote a zero displacement instead" in done.stderr
    assert names(out) == [FIELDS[0], "report.json"]


def test_memory_for_half_of_a_case_refuses_it_and_no_other(
    data: Path, truth: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = (64, 60, 68)
    phantom = make_phantom(large, seed=2)
    for channel, image in enumerate((phantom.fixed, phantom.cet1)):
        write_nifti(data / "imagesTr" / f"ReMIND2Reg_0002_000{channel}.nii.gz", image[0, 0].numpy().astype(np.int16))
    half = paper_config().least_bytes(large, movings=1, kernels=COMPILED) / 2
    out = tmp_path / "out"
    assert process.main([*arguments(data, out), "--memory-gb", f"{half / 1e9}"]) == process.SOME_FAILED
    error = capsys.readouterr().err
    assert "0002_0000.nii.gz: 64×60×68 voxels with 1 moving image(s) need at least" in error
    assert f"but the run may use {format_gb(half)}" in error
    assert fields(out) == {name: value for name, value in truth.items() if "0002" not in name}


def test_memory_that_the_system_denies_costs_that_case_and_no_other(data: Path, truth: dict[str, str], tmp_path: Path) -> None:
    large = (112, 104, 120)
    noise = np.random.default_rng(0).integers(1, 200, large, dtype=np.int16)
    for channel in range(2):
        write_nifti(data / "imagesTr" / f"ReMIND2Reg_0001_000{channel}.nii.gz", noise)
    half = paper_config().least_bytes(large, movings=1, kernels=COMPILED) // 2
    program = f"""
import resource, sys
sys.path.insert(0, {str(Path(process.__file__).parent)!r})
import process
process.main([*sys.argv[1:], "--case", "0002"])  # libraries that are loaded late
status = open("/proc/self/status").read().split("VmSize:")[1].split()[0]
resource.setrlimit(resource.RLIMIT_AS, (int(status) * 1024 + {half},) * 2)
sys.exit(process.main([*sys.argv[1:], "--case", "0001,0002,0003"]))
"""
    out = tmp_path / "out"
    command = [sys.executable, "-c", program, *arguments(data, out), "--memory-gb", "9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == process.SOME_FAILED
    assert re.search(r"disp_0001_0000_0001_0001 is not written: .*0001_0000\.nii\.gz: .*allocate", done.stderr)
    assert "Traceback" not in done.stderr
    assert fields(out) == {name: truth[name] for name in FIELDS[1:3]}


def test_a_read_only_output_is_known_before_the_work(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert process.main(arguments(original, Path("/proc/mcbo"))) == process.BAD_INPUT
    output = capsys.readouterr()
    assert "/proc/mcbo: results cannot be written there by user" in output.err
    assert "preset" not in output.out


def test_an_output_that_becomes_read_only(
    original: Path,
    truth: dict[str, str],
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mount("-o", "remount,size=8m", small_disk)
    with monkeypatch.context() as patch:
        after_first_case(patch, lambda: make_read_only(small_disk))
        assert process.main(arguments(original, small_disk)) == process.SOME_FAILED
    error = capsys.readouterr().err
    for name in [*FIELDS[1:], "report.json"]:
        assert f"{name}: cannot be written: Read-only file system" in error
    assert process.main(arguments(original, small_disk)) == process.BAD_INPUT
    assert "results cannot be written there" in capsys.readouterr().err
    subprocess.run(["umount", small_disk], check=True)  # noqa: S607
    assert process.main(arguments(original, small_disk)) == 0
    assert "case 0001: done before" in capsys.readouterr().out
    assert fields(small_disk) == truth
    assert names(small_disk) == [*FIELDS, "report.json"]


def test_an_input_that_is_deleted_in_mid_run_costs_its_own_pair(
    data: Path,
    truth: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    victim = data / "imagesTr" / "ReMIND2Reg_0004_0001.nii.gz"  # by then, the second is computed and the third was read
    after_first_case(monkeypatch, victim.unlink)
    out = tmp_path / "out"
    assert process.main(arguments(data, out)) == process.SOME_FAILED
    assert "ReMIND2Reg_0004_0001.nii.gz: no such file" in capsys.readouterr().err
    assert fields(out) == {name: value for name, value in truth.items() if "0004" not in name}


@pytest.mark.parametrize("how", ["renamed", "removed", "replaced"])
def test_an_output_folder_that_is_gone_is_noticed(
    original: Path,
    truth: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
) -> None:
    out, moved = tmp_path / "out", tmp_path / "moved"

    def disturb() -> None:
        if how == "removed":
            shutil.rmtree(out)
            return
        out.rename(moved)
        if how == "replaced":  # by one in which others have a finished result
            out.mkdir()
            (out / FIELDS[3]).write_text("finished")

    after_first_case(monkeypatch, disturb)
    assert process.main([*arguments(original, out), "--on-failure", "zero"]) == process.SOME_FAILED
    output, error = capsys.readouterr()
    assert "0 displacement(s) written" in output
    where = f"what was finished before is in {moved}" if how != "removed" else "what was in it is lost"
    for name in FIELDS:
        assert name.removesuffix(".nii.gz") in error.rpartition("not written: ")[2]
    assert re.search(
        rf"{re.escape(str(out))}: expected the folder in which the run began, but it was renamed, .*; {re.escape(where)}", error
    )
    if how == "replaced":
        assert [(path.name, path.read_text()) for path in out.iterdir()] == [(FIELDS[3], "finished")]
    else:
        assert not out.exists()
    if how != "removed":  # the next run goes on there
        assert fields(moved) == {FIELDS[0]: truth[FIELDS[0]]}
        assert process.main([*arguments(original, moved), "--case", "0001"]) == 0
        assert "case 0001: done before" in capsys.readouterr().out


def test_a_result_that_is_removed_during_the_run_is_noticed(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    after_first_case(monkeypatch, (tmp_path / "out" / FIELDS[0]).unlink)
    assert process.main([*arguments(original, tmp_path / "out"), "--case", "0001,0002"]) == process.SOME_FAILED
    output, error = capsys.readouterr()
    assert "1 displacement(s) written" in output
    assert f"{FIELDS[0]}: it was removed during the run" in error


def test_a_clock_that_was_set_back_changes_nothing(
    original: Path, truth: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert process.main([*arguments(original, out), "--case", "0001,0002"]) == 0
    for name in (f".partial-0123abcd-{FIELDS[2]}", f".partial-0123abce-{FIELDS[3]}", ".report.json.lock"):
        (out / name).write_text("half")
    for days, path in enumerate(sorted(out.iterdir()), start=-2):
        os.utime(path, (time.time() + 86400 * days,) * 2)
    capsys.readouterr()
    assert process.main(arguments(original, out)) == 0
    assert capsys.readouterr().out.count("done before") == 2
    assert names(out) == [*FIELDS, "report.json"]
    assert fields(out) == truth


@pytest.mark.parametrize("how", ["swapped", "edited", "copied", "no digest"])
def test_a_stale_or_foreign_field_is_never_taken_for_ours(
    original: Path, truth: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    out = tmp_path / "out"
    two = [*arguments(original, out), "--case", "0001,0002"]
    assert process.main(two) == 0
    report = out / "report.json"
    content = json.loads(report.read_text())
    first, second = (out / name for name in FIELDS[:2])
    if how == "swapped":
        first.rename(out / "x")
        second.rename(first)
        (out / "x").rename(second)
    elif how == "edited":  # so that it speaks well of foreign files
        for case, path in zip(CASES, (first, second), strict=False):
            path.write_bytes(b"foreign")
            content["cases"][case]["written"][path.name] = digest(path)
        report.write_text(json.dumps(content))
    elif how == "copied":
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        shutil.copy(report, elsewhere)
        out = elsewhere
        two[2] = str(out)
        nibabel.save(nibabel.Nifti1Image(np.zeros((*SHAPE, 3), np.float32), np.eye(4)), out / FIELDS[0])
    else:
        del content["sha256"]
        report.write_text(json.dumps(content))
    capsys.readouterr()
    assert process.main(two) == 0
    assert "done before" not in capsys.readouterr().out
    assert fields(out).items() <= truth.items()
    assert process.main(two) == 0
    assert capsys.readouterr().out.count("done before") == 2


def spoil(data: Path, case: str, channel: str) -> Path:
    """Cuts an image off behind its header."""
    path = data / "imagesTr" / f"ReMIND2Reg_{case}_{channel}.nii.gz"
    path.write_bytes(path.read_bytes()[:5000])
    return path


def test_strict_stops_after_the_first_case_that_failed(
    data: Path,
    truth: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(data, "0002", "0001")
    out = tmp_path / "out"
    monkeypatch.setenv("MCBO_STRICT", "1")
    assert process.main(arguments(data, out)) == process.SOME_FAILED
    assert fields(out) == {FIELDS[0]: truth[FIELDS[0]]}
    sentence = "stopped after 2 of 4 case(s), since one failed and --strict was given"
    assert sentence in capsys.readouterr().err
    assert json.loads((out / "report.json").read_text())["stopped"] == sentence
    spoil(data, "0001", "0000")
    assert process.main(arguments(data, tmp_path / "other")) == process.BAD_INPUT  # nothing could be started


@pytest.mark.parametrize("broken", ["moving", "fixed", "fixed's header", "both headers"])
def test_no_motion_stands_in_for_a_failed_pair_until_a_run_succeeds(
    data: Path, truth: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(data, whole)
    if broken != "moving":
        fixed = spoil(data, "0002", "0000")
        if broken != "fixed":
            fixed.write_bytes(b"no image")
    if broken in ("moving", "both headers"):
        spoil(data, "0002", "0001").write_bytes(b"no image")
    out = tmp_path / "out"
    two = [*arguments(data, out), "--case", "0001,0002", "--on-failure", "zero"]
    for _ in range(2):  # a second run does not take the placeholder for done
        assert process.main(two) == process.SOME_FAILED
        case = reported(out)["0002"]
        assert case["written"] == {}
        assert list(case["failed"]) == ["disp_0002_0000_0002_0001"]
        error = capsys.readouterr().err
        if broken == "both headers":
            assert case["placeholder"] == {}
            assert "no zero displacement instead: neither image has a readable header" in error
            assert not (out / FIELDS[1]).exists()
            continue
        assert case["placeholder"] == {"disp_0002_0000_0002_0001": "zero"}
        assert "wrote a zero displacement instead (--on-failure zero); the next run tries again" in error
        assert "wrote a zero displacement instead for 1 of them" in error
        field = read_displacement(out / FIELDS[1])
        assert field.shape == (1, 3, *SHAPE)
        assert not field.any()
    shutil.copytree(whole, data, dirs_exist_ok=True)
    assert process.main(two) == 0
    assert fields(out).items() <= truth.items()
    assert len(fields(out)) == 2
    assert reported(out)["0002"]["placeholder"] == {}
    assert reported(out)["0002"]["failed"] == {}


@pytest.mark.parametrize("preset", ["mcbo2024", "cascade"])
def test_runs_on_one_machine_give_the_same_bits(original: Path, tmp_path: Path, preset: str) -> None:
    seen = set()
    for _ in range(10 if preset == "mcbo2024" else 2):
        assert process.main([*arguments(original, tmp_path), "--case", "0001", "--preset", preset, "--overwrite"]) == 0
        seen.add(digest(tmp_path / FIELDS[0]))
    assert len(seen) == 1
    if preset == "cascade":  # takes long where others use the second core
        return
    one = read_displacement(tmp_path / FIELDS[0])
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        assert process.main([*arguments(original, tmp_path), "--case", "0001", "--preset", preset, "--overwrite"]) == 0
    finally:
        torch.set_num_threads(threads)
    assert float((read_displacement(tmp_path / FIELDS[0]) - one).abs().max()) < 1e-3  # voxels; docs/guarantees.md
    assert one.any()
