"""Readers in another process: whatever befalls one, the next file is read."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from malformed_files import DATA, SIZE, meta, nrrd
from malformed_inputs import tfm

from mcbo.core.errors import InputError, MemoryBudgetError
from mcbo.io.images import read_any
from mcbo.io.sandbox import client
from mcbo.io.sandbox.client import Limits, read_outside
from mcbo.io.sandbox.wire import Frame


def allow(_: Frame) -> Limits:
    return Limits(seconds=1)


def read(path: Path, io: str, limits: Limits | None = None) -> Any:
    """Reads an image without the judgement of its header that comes before elsewhere."""
    request = {"what": "image", "path": str(path), "io": io}
    return read_outside("with_itk", request, expected="an image", judge=allow, limits=limits)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.nrrd"
    path.write_bytes(nrrd())
    return path


def check_alive(good: Path) -> None:
    array, about = read(good, "NrrdImageIO")
    assert array.tobytes() == DATA
    assert array.shape == SIZE[::-1]
    assert about["spacing"] == [1, 1, 1]


def test_a_reader_that_crashes_is_a_sentence(tmp_path: Path, good: Path) -> None:
    (tmp_path / "a.mhd").write_bytes(meta({"ElementDataFile": "s%s.raw 1 10 1"}, b""))
    with pytest.raises(InputError, match=r"expected an image, but ITK crashes at it \(SIG[A-Z]+\): it is damaged"):
        read(tmp_path / "a.mhd", "MetaImageIO")
    check_alive(good)
    (tmp_path / "a.tfm").write_bytes(tfm("BSplineTransform_double_3_3", "0 0 0", "3 3 3 0 0 0 1 1 1 1 0 0 0 1 0 0 0 1"))
    request = {"what": "linear", "path": str(tmp_path / "a.tfm")}
    with pytest.raises(InputError, match=r"a transform, but"):
        read_outside("with_itk", request, expected="a transform", judge=allow)
    check_alive(good)


def test_a_reader_that_hangs_is_ended_in_time(tmp_path: Path, good: Path) -> None:
    """In its header, or in its data."""
    (tmp_path / "a.mhd").write_bytes(meta({"ElementDataFile": "%2000000000d 1 1 1"}, b""))
    os.mkfifo(tmp_path / "a.nrrd")
    for name, io in (("a.mhd", "MetaImageIO"), ("a.nrrd", "NrrdImageIO")):
        start = time.monotonic()
        with pytest.raises(InputError, match="expected an image, but ITK does not finish reading it"):
            read(tmp_path / name, io, Limits(seconds=0.5))
        assert time.monotonic() - start < 5
        check_alive(good)


def test_a_reader_that_takes_too_much_memory_is_refused_it(tmp_path: Path, good: Path) -> None:
    path = tmp_path / "a.nrrd"
    path.write_bytes(nrrd({"sizes": "1024 1024 1024", "type": "double", "encoding": "gzip"}))
    with pytest.raises((InputError, MemoryBudgetError), match="expected an image, but"):
        read(path, "NrrdImageIO")
    check_alive(good)


def test_the_judge_has_the_last_word(good: Path) -> None:
    def refuse(header: Frame) -> Limits:
        assert header == {"size": list(SIZE), "numbers": 1, "value_bytes": 4}
        raise InputError("expected another image")

    request = {"what": "image", "path": str(good), "io": "NrrdImageIO"}
    with pytest.raises(InputError, match="expected another image"):
        read_outside("with_itk", request, expected="an image", judge=refuse)
    check_alive(good)


def test_an_interrupted_read_ends_its_reader(tmp_path: Path, good: Path) -> None:
    os.mkfifo(tmp_path / "a.nrrd")
    check_alive(good)
    before = client._server
    assert before is not None

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            read(tmp_path / "a.nrrd", "NrrdImageIO")
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert before.process.poll() is not None
    check_alive(good)


def test_the_process_may_be_gone(good: Path) -> None:
    check_alive(good)
    server = client._server
    assert server is not None
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    check_alive(good)
    assert client._server is not server


def test_many_threads_read_at_a_time(good: Path) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                check_alive(good)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_it_ends_with_the_program_and_imports_no_torch(good: Path) -> None:
    """Even if the program is killed."""
    script = (
        "import os, pathlib, sys; from mcbo.io.images import read_any; from mcbo.io.sandbox import client;"
        f"read_any(pathlib.Path({str(good)!r})); print(client._server.process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    number = int(done.stdout)
    end = time.monotonic() + 10
    while Path(f"/proc/{number}").exists() and Path(f"/proc/{number}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < end
        time.sleep(0.02)
    imports = "import sys, mcbo.io.sandbox.server, mcbo.io.sandbox.with_itk, mcbo.io.sandbox.with_nibabel; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", imports], capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout.split()


def test_its_limits_reach_the_reader(good: Path) -> None:
    """No file can be written, and only few opened."""
    check_alive(good)
    server = client._server
    assert server is not None
    limits = {
        line[:26].strip(): line[26:].split()[0] for line in Path(f"/proc/{server.process.pid}/limits").read_text().splitlines()
    }
    assert limits["Max file size"] == "0"
    assert limits["Max core file size"] == "0"
    assert int(limits["Max open files"]) <= 256


def test_nifti_needs_no_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nibabel

    monkeypatch.setattr(client, "_connect", lambda _: pytest.fail("another process was asked"))
    nibabel.save(nibabel.Nifti1Image(np.zeros(SIZE, np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    assert read_any(tmp_path / "a.nii.gz")[0].shape == (1, 1, *SIZE)
