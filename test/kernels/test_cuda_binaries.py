"""Compiled modules on disk: nothing wrong is ever read, and no fault costs more than a compilation."""

import logging
import os
import stat
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fake_cuda
import pytest
from fake_cuda import FakeCuda

from mcbo.core.errors import OutputError
from mcbo.kernels.cuda import binaries, compiler
from mcbo.kernels.cuda.binaries import CACHE, PREBUILT, cache_folder, file_name, obtain, read, write
from mcbo.kernels.cuda.launch import Module

ONE = Module("one.cu", (("SIDE", 9),))
MADE = b"sm_90 binary of first"


@pytest.fixture(autouse=True)
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "one.cu").write_text("first")
    (folder / "common.cuh").write_text("header")
    monkeypatch.setattr(compiler, "SOURCES", folder)
    for name in (CACHE, PREBUILT):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return fake_cuda.install(monkeypatch)


def test_all_that_decides_a_binary_is_in_its_name(sources: Path) -> None:
    def name(module: Module = ONE, architecture: str = "sm_90", version: str = "13.0") -> str:
        return file_name(module, architecture, compiler_version=version)

    (sources / "two.cu").write_text("second")
    names = [
        name(),
        name(Module("two.cu", ONE.constants)),
        name(Module("one.cu", (("SIDE", 7),))),
        name(Module("one.cu", (("SIDE", 9), ("EXACT", 1)))),
        name(architecture="sm_75"),
        name(version="13.5"),
    ]
    for file, text in (("one.cu", "changed"), ("common.cuh", "changed"), ("new.cuh", "")):
        (sources / file).write_text(text)
        names.append(name())
    assert len(set(names)) == len(names)
    assert name() == names[-1]
    assert names[0].startswith("one-sm_90-")
    assert names[0].endswith(".cubin")


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write(tmp_path / "new/one", MADE)
    assert read(tmp_path / "new/one") == MADE
    assert read(tmp_path / "new/other") is None
    assert read(tmp_path) is None


BREAKS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut off": lambda content: content[:-1],
    "cut in half": lambda content: content[: len(content) // 2],
    "no binary": lambda content: content[-32:],
    "a bit is wrong": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "longer": lambda content: content + b"\0",
}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_broken_binary_is_made_anew(fake: FakeCuda, tmp_path: Path, kind: str) -> None:
    assert obtain(ONE, "sm_90", cache=tmp_path / "cache") == MADE
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    file.write_bytes(BREAKS[kind](whole))
    assert read(file) is None
    assert obtain(ONE, "sm_90", cache=tmp_path / "cache") == MADE
    assert file.read_bytes() == whole
    assert len(fake.compiled) == 2


def test_each_module_is_compiled_once(fake: FakeCuda, sources: Path, tmp_path: Path) -> None:
    for _ in range(3):
        assert obtain(ONE, "sm_90", cache=tmp_path / "cache") == MADE
    assert len(fake.compiled) == 1
    (sources / "one.cu").write_text("second")
    assert obtain(ONE, "sm_90", cache=tmp_path / "cache") == b"sm_90 binary of second"
    assert len(fake.compiled) == 2


def test_without_a_cache_it_is_compiled_each_time(fake: FakeCuda) -> None:
    assert [obtain(ONE, "sm_90", cache=None) for _ in range(2)] == [MADE] * 2
    assert len(fake.compiled) == 2


def test_a_cache_that_cannot_be_written_costs_a_compilation(
    fake: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, _: bytes) -> None:
        raise OutputError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr(binaries, "write", full)
    with caplog.at_level(logging.INFO, "mcbo"):
        assert obtain(ONE, "sm_90", cache=tmp_path) == MADE
    assert len(fake.compiled) == 1
    (record,) = caplog.records
    assert record.message.startswith("one.cu is not cached: ")
    assert record.message.endswith("No space left on device")


def test_writers_at_a_time_leave_one_whole_file(fake: FakeCuda, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: obtain(ONE, "sm_90", cache=tmp_path / "cache"), range(32)))
    assert found == [MADE] * 32
    assert 1 <= len(fake.compiled) <= 8
    (file,) = (tmp_path / "cache").iterdir()
    assert read(file) == MADE


def test_what_came_with_the_image_needs_no_compiler(fake: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "image" / file_name(ONE, "sm_90", compiler_version=""), b"shipped")
    monkeypatch.setenv(PREBUILT, str(tmp_path / "image"))
    fake.nvrtc = False
    assert obtain(ONE, "sm_90", cache=tmp_path / "cache") == b"shipped"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", [*BREAKS, "none", "for another GPU", "of another source"])
def test_where_the_image_does_not_help(
    fake: FakeCuda, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    file = tmp_path / "image" / file_name(ONE, "sm_75" if kind == "for another GPU" else "sm_90", compiler_version="")
    monkeypatch.setenv(PREBUILT, str(file.parent))
    if kind != "none":
        write(file, b"shipped")
    if kind in BREAKS:
        file.write_bytes(BREAKS[kind](file.read_bytes()))
    if kind == "of another source":
        (sources / "common.cuh").write_text("changed")
    assert obtain(ONE, "sm_90", cache=tmp_path / "cache") == MADE
    assert len(fake.compiled) == 1


def test_the_cache_is_this_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = cache_folder()
    assert folder == tmp_path / f"mcbo-cuda-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert cache_folder() == folder  # it is there now
    monkeypatch.setenv(CACHE, str(tmp_path / "chosen/by/me"))
    assert cache_folder() == tmp_path / "chosen/by/me"
    assert stat.S_IMODE((tmp_path / "chosen/by/me").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "kind", ["writable by the group", "writable by all", "of another user", "a link", "a file", "no folder"]
)
def test_a_cache_of_others_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setenv(CACHE, str(folder))
    mine = os.getuid()
    if kind == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    elif kind == "a file":
        folder.touch()
    elif kind == "no folder":
        monkeypatch.setenv(CACHE, "/dev/null/cache")
    else:
        folder.mkdir()
        folder.chmod({"writable by the group": 0o770, "writable by all": 0o1777}.get(kind, 0o700))
    if kind == "of another user":
        monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    with caplog.at_level(logging.INFO, "mcbo"):
        assert cache_folder() is None
    (record,) = caplog.records
    assert record.message.startswith("CUDA kernels are not cached: ")


def test_the_log_says_why_there_is_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path))
    tmp_path.chmod(0o777)
    user = os.getuid()
    with caplog.at_level(logging.INFO, "mcbo"):
        cache_folder()
    assert [record.message for record in caplog.records] == [
        f"CUDA kernels are not cached: {tmp_path}: expected a folder of user {user} that nobody else may write to, "
        f"found drwxrwxrwx of user {user}: set MCBO_CUDA_CACHE to another"
    ]
