"""What every command does where its output cannot be written, must not be, or is stopped: a sentence, and nothing is lost.

``docs/guarantees.md`` has the table.
"""

import errno
import fcntl
import io
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch
from commands import CALLS, FIELD, FILES, FIXED, JSON, MOVING, PREDICTION, Call, make_inputs

import mcbo as mcbo_package
import process
from evaluation.__main__ import main as judge
from mcbo.cli import register as register_command
from mcbo.cli.main import main as mcbo
from mcbo.core.errors import InputError
from mcbo.io.files import digest
from mcbo.io.nifti import read_displacement
from mcbo.report import REPORT
from mcbo.studies import demo

ROOT = Path(__file__).resolve().parents[2]
WRITES_LATE = ("process", "pair", "register", "benchmark", "ablate", "ablate table", "report", "score html")
"""Those that take more than a moment."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """Inputs that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "inputs"))


def contents(folder: Path) -> dict[str, str | None]:
    """All files and folders below one, with the digests of the former."""
    return {str(path.relative_to(folder)): None if path.is_dir() else digest(path) for path in folder.rglob("*")}


@contextmanager
def full_disk(_: pytest.MonkeyPatch) -> Iterator[None]:
    """No file grows beyond 20 bytes."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@contextmanager
def failing_sync(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fsync(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


@contextmanager
def failing_rename(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def replace(*_: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        yield


FAULTS = {"File too large": full_disk, "Input/output error": failing_sync, "Disk quota exceeded": failing_rename}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("reason", FAULTS)
def test_a_write_that_fails_is_a_sentence_and_leaves_what_was_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], call: Call, reason: str
) -> None:
    if call.output:
        (folder / "out").mkdir()
        (folder / "out" / call.output).write_text("finished")
    before = contents(folder)
    with FAULTS[reason](monkeypatch):
        status = call.run(folder)
    assert status == (process.SOME_FAILED if call.main is process.main else 1)
    error = capsys.readouterr().err
    assert re.search(rf"cannot be written: {reason}|cannot be written there .*{reason}", error)
    assert "Traceback" not in error
    if call.words.startswith("@") and call.output:  # of a pair that failed, process.py leaves no file
        before.pop(f"out/{call.output}")
    assert contents(folder) == before


CALLED = {
    "open": (os, "open", errno.ENOSPC),
    "rename": (os, "replace", errno.ESTALE),
    "make a folder": (os, "mkdir", errno.EROFS),
    "lock": (fcntl, "flock", errno.EIO),
    "list": (os, "scandir", errno.EIO),
    "look": (os, "stat", errno.ESTALE),
    "look at a link": (os, "lstat", errno.EACCES),
    "look at what is open": (os, "fstat", errno.EIO),
}
"""What a file system is asked to do, and an error that it may return."""


@pytest.mark.parametrize("asked", CALLED)
@pytest.mark.parametrize("nth", [1, 2])
def test_whatever_the_file_system_refuses_is_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: str, nth: int
) -> None:
    module, function, number = CALLED[asked]
    whole, before = getattr(module, function), contents(folder)
    for name, call in CALLS.items():
        if name in ("report", "benchmark", "ablate", "ablate table", "score html"):
            continue
        calls = 0

        def refused(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            ours = not isinstance(arguments[0], str | Path) or str(folder) in str(arguments[0])
            calls += ours
            if ours and calls == nth:
                raise OSError(number, os.strerror(number))
            return whole(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(module, function, refused)
            status = call.run(folder)
        assert status in (0, 1, 2), name
        assert status == 0 or "ERROR: " in capsys.readouterr().err, name
        shutil.rmtree(folder / "out", ignore_errors=True)
        assert contents(folder) == before, name


@pytest.mark.parametrize("call", [call for name, call in CALLS.items() if name not in WRITES_LATE])
@pytest.mark.parametrize("signals", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT,)])
def test_a_signal_in_mid_write_leaves_nothing_and_is_told(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    call: Call,
    signals: tuple[signal.Signals, ...],
) -> None:
    def fsync(_: int) -> None:
        for number in signals:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(os, "fsync", fsync)
    before = contents(folder)
    assert call.run(folder) == 128 + signals[0]
    assert contents(folder) == before
    assert capsys.readouterr().err == "ERROR: stopped before it was done; finished results are kept\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_register_is_stopped_as_process_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    def stopped(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr(register_command, "register", stopped)
    before = contents(folder)
    assert CALLS["register"].run(folder, folder / "new" / "deep") == 128 + number
    sentence = "ERROR: stopped after 0 of 1 case(s); nothing was finished\n"
    assert capsys.readouterr().err == sentence
    assert contents(folder) == before


def test_signals_may_come_at_any_time(folder: Path) -> None:
    """The second SIGTERM reaches the program while it ends."""
    command = [sys.executable, "-m", "mcbo", "register", str(folder / FIXED), str(folder / MOVING)]
    running = subprocess.Popen(
        [*command, "--output", str(folder / "out")], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: (folder / "out" / ".report.json.lock").exists())
    running.terminate()
    wait_until(lambda: not (folder / "out").exists())
    running.terminate()
    errors = running.communicate(timeout=20)[1]
    assert (running.returncode, "Traceback" in errors, "stopped after 0 of 1 case(s)" in errors) == (143, False, True)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def names_of(path: Path, folder: Path) -> Iterator[Path]:
    """A file by other names than its own."""
    yield path
    yield folder / "data" / ".." / path.relative_to(folder)
    suffix = path.name[path.name.index(".") :]
    hard, soft = folder / f"hard{suffix}", folder / f"soft{suffix}"
    hard.hardlink_to(path)
    yield hard
    soft.symlink_to(path)
    yield soft


@pytest.mark.parametrize(("name", "victim"), [(name, victim) for name, call in FILES.items() for victim in call.inputs])
def test_no_input_is_overwritten_by_any_name(folder: Path, capsys: pytest.CaptureFixture[str], name: str, victim: str) -> None:
    for output in names_of(folder / victim, folder):
        before = contents(folder)
        assert CALLS[name].run(folder, output) == 1
        error = capsys.readouterr().err
        assert re.search("expected another (output than an input|name than that of FIELD)|found a link", error)
        assert contents(folder) == before


def test_no_result_of_a_folder_is_an_input(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, said = folder / "out", "expected another output than an input"
    out.mkdir()
    for name, target in ((JSON, REPORT), (JSON, f".{REPORT}.lock"), (FIXED, Path(PREDICTION).name)):
        (out / target).hardlink_to(folder / name)
        before = contents(folder)
        assert CALLS["process"].run(folder) == 1
        assert said in capsys.readouterr().err
        if target == Path(PREDICTION).name:
            assert CALLS["zero"].run(folder) == 1
            assert said in capsys.readouterr().err
        assert contents(folder) == before
        (out / target).unlink()
    for target in ("warped.nii.gz", "displacement.nii.gz", f".{REPORT}.lock"):
        (out / target).hardlink_to(folder / MOVING)
        before = contents(folder)
        assert CALLS["register"].run(folder) == 1
        assert said in capsys.readouterr().err
        assert contents(folder) == before
        (out / target).unlink()


def test_results_from_python_replace_no_input(folder: Path) -> None:
    fixed, moving = folder / FIXED, folder / MOVING
    for name, source in (("warped.nii.gz", moving), ("inverse.nii.gz", fixed)):
        (folder / "out").mkdir(exist_ok=True)
        shutil.copy(source, folder / "out" / name)
    result = mcbo_package.register(folder / "out/inverse.nii.gz", folder / "out/warped.nii.gz", preset="mcbo2024")
    before = contents(folder)
    with pytest.raises(InputError, match="expected another output than an input"):
        result.save(folder / "out")
    assert contents(folder) == before
    assert len(result.save(folder / "elsewhere")) == 5


@pytest.mark.parametrize("call", [FILES[name] for name in FILES if name not in ("benchmark", "ablate")])
def test_only_a_file_is_written_to(folder: Path, capsys: pytest.CaptureFixture[str], call: Call) -> None:
    out = folder / "out" / call.output
    out.parent.mkdir()
    target = folder / "target"
    with socket.socket(socket.AF_UNIX) as unix:
        makers: dict[str, Callable[[], object]] = {
            "pipe": lambda: os.mkfifo(out),
            "folder": out.mkdir,
            "link": lambda: out.symlink_to(target),
            "link that leads nowhere": lambda: out.symlink_to(folder / "absent"),
            "socket": lambda: _bind(unix, out),
        }
        for what, make in makers.items():
            target.write_text("kept")
            make()
            assert call.run(folder) == 1, what
            assert re.search(r"expected a file( to write)?, found a (named pipe|folder|link|socket)", capsys.readouterr().err)
            assert target.read_text() == "kept"
            out.rmdir() if out.is_dir() else out.unlink()


def _bind(unix: socket.socket, path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        unix.bind(path.name)
    finally:
        os.chdir(before)


@pytest.mark.parametrize("name", ["benchmark", "ablate", "ablate table", "report", "score"])
def test_devices_and_one_file_for_two_are_refused_before_the_work(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert FILES[name].run(folder, Path("/dev/null")) == 1
    assert re.search("expected a file( to write)?, found a (named pipe, a socket or a )?device", capsys.readouterr().err)
    twice = {"ablate": ["--markdown"], "score": ["--csv"]}.get(name)
    if twice:
        call = FILES[name]
        again = Call(call.main, f"{call.words} {twice[0]} {folder}/out/../out/a.json", call.output)
        assert again.run(folder) == 1
        assert "expected another file than that of" in capsys.readouterr().err


@pytest.mark.parametrize("call", [CALLS["process"], CALLS["register"], CALLS["zero"]], ids=["process", "register", "zero"])
def test_a_folder_may_be_a_link_but_nothing_else(folder: Path, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "real").mkdir()
    (folder / "link").symlink_to("real")
    assert call.run(folder, folder / "link") == 0
    assert {path.name for path in (folder / "real").iterdir()} == set(call.writes)
    os.mkfifo(folder / "pipe")
    capsys.readouterr()
    for name in ("pipe", FIELD):
        before = contents(folder)
        assert call.run(folder, folder / name) == 1
        error = capsys.readouterr().err
        assert "File exists" in error or "expected a folder" in error
        assert contents(folder) == before


def test_what_a_killed_command_left_goes_with_the_next(folder: Path) -> None:
    for name in ("warp", "score csv"):
        call = CALLS[name]
        (folder / "out").mkdir(exist_ok=True)
        (folder / "out" / f".partial-01234567-{call.output}").write_text("half")
        assert call.run(folder) == 0
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.csv", "a.nii.gz"]


@pytest.mark.parametrize("how", ["renamed", "removed", "replaced"])
def test_register_notices_that_its_folder_is_gone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    whole, out = mcbo_package.register, folder / "out"

    def disturbed(*arguments: object, **options: object) -> object:
        result = whole(*arguments, **options)  # type: ignore[arg-type]
        disturb(out, how)
        return result

    monkeypatch.setattr(register_command, "register", disturbed)
    assert CALLS["register"].run(folder) == 1
    assert re.search(
        rf"ERROR: {re.escape(str(out))}: expected the folder in which the run began, but it was renamed, removed or replaced",
        capsys.readouterr().err,
    )
    if how == "replaced":
        assert contents(out) == {"displacement.nii.gz": digest(folder / FIELD)}
    else:
        assert not out.exists()


def disturb(out: Path, how: str) -> None:
    """What befalls a folder while a run works: ``replaced`` by one in which others have a finished result."""
    if how == "removed":
        shutil.rmtree(out)
        return
    out.rename(out.with_name("moved"))
    if how == "replaced":
        out.mkdir()
        shutil.copy(out.with_name(FIELD), out / "displacement.nii.gz")


def test_a_registration_that_fails_leaves_no_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / MOVING).write_bytes(b"no image")
    before = contents(folder)
    assert CALLS["register"].run(folder, folder / "new" / "deep") == 1
    assert "ERROR: " in capsys.readouterr().err
    assert contents(folder) == before


def test_the_demo_writes_nothing_if_it_cannot_run_or_would_replace_a_dataset(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert process.main(["--demo", "--output", str(folder / "new"), "--device", "cuda:99"]) == 1
    assert "is not available" in capsys.readouterr().err
    assert not (folder / "new").exists()
    (folder / "data").rename(folder / "dataset")
    before = contents(folder)
    assert process.main(["--demo", "--output", str(folder), "--device", "cpu"]) == 1
    assert f"{demo.TASK}_dataset.json: expected no dataset but the demo's" in capsys.readouterr().err
    assert contents(folder) == before


def full() -> TextIO:
    return Path("/dev/full").open("w")


def broken_pipe() -> TextIO:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


STREAMS: dict[str, Callable[[], TextIO | None]] = {"full": full, "closed": lambda: None, "broken": broken_pipe}
PRINTED = {"benchmark", "score", "validate", "version"}
"""What these print is what they are called for; others also write a file, or only log."""


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(
    ("name", "main", "words"),
    [
        ("version", mcbo, "--version"),
        ("process", process.main, f"@{JSON} --output @submission --preset mcbo2024"),
        ("warp", mcbo, f"warp @{FIELD} --image @{MOVING} --output >"),
        ("benchmark", mcbo, "benchmark --size 16 --repeat 1 --preset mcbo2024"),
        ("score", judge, f"score --dataset @{JSON} --predictions @submission --metrics sdlogj"),
        ("score to a file", judge, f"score --dataset @{JSON} --predictions @submission --metrics sdlogj --output >"),
        ("validate", judge, f"validate --dataset @{JSON} --predictions @submission"),
        ("zero", judge, f"zero --dataset @{JSON} --output @zero"),
    ],
)
def test_a_stream_that_takes_nothing_costs_a_sentence_at_most(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stream: str,
    name: str,
    main: Callable[[list[str]], int],
    words: str,
) -> None:
    out = STREAMS[stream]()
    monkeypatch.setattr(sys, "stdout", out)
    call = Call(main, words, "a.nii.gz" if name == "warp" else "a.json")
    assert call.run(folder) == (1 if stream == "full" or name in PRINTED else 0)
    error = capsys.readouterr().err
    reason = {"full": "No space left on device", "closed": "it is closed"}.get(stream)
    told = f"ERROR: standard output: cannot be written: {reason}\n"
    assert error == (told if reason and (stream == "full" or name in PRINTED) else "")
    if out is not None:
        out.close()  # what is left in its buffer goes nowhere, without an error


@pytest.mark.parametrize("stream", STREAMS)
def test_without_a_stream_for_errors_the_status_tells(folder: Path, monkeypatch: pytest.MonkeyPatch, stream: str) -> None:
    for main, words in ((process.main, "@absent.json --output >"), (judge, "zero --dataset @absent.json --output >")):
        err = STREAMS[stream]()
        monkeypatch.setattr(sys, "stderr", err)
        assert Call(main, words, "").run(folder) == 1
        if err is not None:
            err.close()


@pytest.mark.parametrize("name", ["register", "warp", "ablate", "score", "leaderboard"])
def test_ascii_is_enough(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Names and typography that it lacks are escaped."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True) for _ in range(2)]
    for attribute, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, attribute, stream)
    place = folder.rename(folder.with_name("Bänke → Ω"))
    call = CALLS[name]
    assert Call(call.main, call.words.replace(" --quiet", ""), call.output).run(place) == 0
    output, error = (stream.buffer.getvalue() for stream in streams)
    assert output.isascii()
    assert error.isascii()
    if name in ("register", "warp"):
        assert b"B\\xe4nke \\u2192 \\u03a9" in output


def test_programs_whose_streams_are_closed_or_full_end_as_they_should(folder: Path) -> None:
    """As a shell runs them: nothing is left to be said when Python ends, and no file takes a closed stream's number."""
    export = [sys.executable, "-m", "mcbo", "export", str(folder / FIELD), "--to", "itk", "--output", str(folder / "a.h5")]
    version = [sys.executable, "-m", "mcbo", "--version"]
    for command, redirection, status in ((export, ">&- 2>&-", 0), (version, ">/dev/full 2>/dev/full", 1)):
        line = ["/bin/bash", "-c", f'exec "$@" {redirection}', "bash", *command]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
    assert CALLS["import"].run(folder) == 0
    assert mcbo(["import", str(folder / "a.h5"), "--output", str(folder / "again.nii.gz")]) == 0
    field, again = (read_displacement(folder / name) for name in (FIELD, "again.nii.gz"))
    assert torch.allclose(field, again, atol=1e-4)
