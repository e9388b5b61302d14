"""The cache of compiled kernels: whatever befalls it, the run goes on with the right result and one warning."""

import errno
import importlib.util
import logging
import os
import pickle
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numba.core import config

from mcbo.core.errors import OutputError
from mcbo.kernels import caches, simd
from mcbo.kernels.caches import KernelFiles, kernel_folder, own_folder, sealed
from mcbo.kernels.levels import LEVELS, PREBUILT, level_of, shipped_folder
from mcbo.kernels.simd import compiled

NUMBA: Any = config

SOURCE = """
def twice(x):
    return 2 * x


def thrice(x):
    return 3 * x
"""

BREAKS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut off": lambda content: content[:-1],
    "cut in half": lambda content: content[: len(content) // 2],
    "a bit is wrong": lambda content: content[:50] + bytes([content[50] ^ 1]) + content[51:],
    "zeros": lambda content: bytes(len(content)),
    "longer": lambda content: content + b"\0",
    "no pickle": lambda _: sealed(b"whole, but nothing that can be loaded"),
    "something else": lambda _: sealed(b"\x80\x04N."),  # None
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to keep compiled functions in, and nothing said yet."""
    monkeypatch.setattr(NUMBA, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(caches.complain, "_said", set())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kernel_folder.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Any]]:
    """The functions, as a new process has them."""
    path = tmp_path / "source/functions.py"
    path.parent.mkdir()
    path.write_text(SOURCE)

    def load() -> list[Any]:
        kernel_folder.cache_clear()
        spec = importlib.util.spec_from_file_location("functions", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "functions", module)
        spec.loader.exec_module(module)
        return [compiled(module.twice), compiled(module.thrice)]

    return load


def hits(functions: list[Any]) -> int:
    """Calls all functions; returns how many were in the cache."""
    assert [function(7) for function in functions] == [14, 21]
    return sum(sum(function.stats.cache_hits.values()) for function in functions)


def test_what_was_compiled_is_found(cache: Path, functions: Callable[[], list[Any]], caplog: pytest.LogCaptureFixture) -> None:
    assert [hits(functions()) for _ in range(2)] == [0, 2]
    assert sorted({path.suffix for path in cache.iterdir()}) == [".nbc", ".nbi"]
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert not caplog.records


def test_what_came_along_is_read_first_and_never_written(
    cache: Path, functions: Callable[[], list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hits(functions())
    shipped = cache.rename(tmp_path / "shipped")
    before = {path.name: path.read_bytes() for path in shipped.iterdir()}
    monkeypatch.setattr(simd, "_SHIPPED", shipped)
    assert hits(functions()) == 2
    assert not list(cache.iterdir())
    next(shipped.glob("*thrice*.nbc")).unlink()
    assert [hits(functions()), hits(functions())] == [1, 2]
    assert {path.name for path in cache.iterdir()} == {name for name in before if "thrice" in name}
    assert all(path.read_bytes() == before[path.name] for path in shipped.iterdir())


def test_the_level_of_a_processor() -> None:
    features = {name: True for names in LEVELS.values() for name in names}
    assert level_of(features) == "x86-64-v4"
    assert level_of(features | {"avx512bw": False}) == "x86-64-v3"
    assert level_of(features | {"fma": False}) is None  # AVX-512 alone is none of them
    assert level_of({"neon": True}) is None


def test_what_came_along_is_for_a_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shipped_folder("x86-64-v3") is None
    monkeypatch.setenv(PREBUILT, str(tmp_path))
    assert shipped_folder("x86-64-v3") is None
    (tmp_path / "x86-64-v3").mkdir()
    assert shipped_folder("x86-64-v3") == tmp_path / "x86-64-v3"
    assert shipped_folder(None) is None


def test_what_came_along_is_not_used_if_others_may_write_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(caches.complain, "_said", set())
    monkeypatch.setenv(PREBUILT, str(tmp_path))
    (tmp_path / "x86-64-v3").mkdir()
    for mode in (0o775, 0o757):
        (tmp_path / "x86-64-v3").chmod(mode)
        assert shipped_folder("x86-64-v3") is None
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.message == (
        f"{PREBUILT} is not used: expected a folder that only its owner may write to, found {tmp_path / 'x86-64-v3'}"
    )


def test_nothing_is_added_to_what_came_along_where_no_folder_can_be_written_to(
    cache: Path, functions: Callable[[], list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hits(functions())
    shipped = cache.rename(tmp_path / "shipped")
    next(shipped.glob("*thrice*.nbc")).unlink()
    before = sorted(shipped.iterdir())
    monkeypatch.setattr(simd, "_SHIPPED", shipped)
    monkeypatch.setattr(caches, "_takes_files", lambda _: False)
    assert [hits(functions()), hits(functions())] == [1, 1]
    assert sorted(shipped.iterdir()) == before


@pytest.mark.parametrize("which", [".nbi", ".nbc"])
@pytest.mark.parametrize("kind", BREAKS)
def test_a_damaged_cache_is_made_anew(
    cache: Path, functions: Callable[[], list[Any]], caplog: pytest.LogCaptureFixture, kind: str, which: str
) -> None:
    hits(functions())
    for path in cache.glob(f"*{which}"):
        path.write_bytes(BREAKS[kind](path.read_bytes()))
    assert hits(functions()) == 0
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.endswith("expected a compiled kernel, found a damaged file: compiled anew")
    assert hits(functions()) == 2


@pytest.mark.parametrize("gone", [".nbi", ".nbc"])
def test_a_file_that_is_gone_is_made_anew(
    cache: Path, functions: Callable[[], list[Any]], caplog: pytest.LogCaptureFixture, gone: str
) -> None:
    hits(functions())
    for path in cache.glob(f"*{gone}"):
        path.unlink()
    assert [hits(functions()), hits(functions())] == [0, 2]
    assert not caplog.records


def test_a_full_disk_costs_one_warning(
    cache: Path, functions: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        write(path, content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert hits(functions()) == 0
    assert not list(cache.iterdir())
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "No space left on device" in caplog.text


@pytest.mark.parametrize("kind", ["writable by the group", "writable by all", "a link", "a file", "no folder"])
def test_a_cache_of_others_is_left_for_another(
    cache: Path,
    functions: Callable[[], list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    if kind == "a link":
        (cache.parent / "elsewhere").mkdir(mode=0o700)
        cache.symlink_to(cache.parent / "elsewhere")
    elif kind == "a file":
        cache.touch()
    elif kind == "no folder":
        monkeypatch.setattr(NUMBA, "CACHE_DIR", "/dev/null/cache")
    else:
        cache.mkdir()
        cache.chmod(0o770 if "group" in kind else 0o1777)
    assert [hits(functions()) for _ in range(2)] == [0, 2]
    (record,) = caplog.records
    assert record.message.startswith(f"NUMBA_CACHE_DIR is not used, but {cache.parent / 'home/mcbo-numba'}: ")
    assert cache.is_file() or not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize("kind", ["of another user", "read-only"])
def test_without_a_cache_the_run_goes_on(
    cache: Path,
    functions: Callable[[], list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    cache.mkdir(mode=0o700)
    mine = os.getuid()
    if kind == "read-only":
        monkeypatch.setattr(caches, "_takes_files", lambda _: False)
    else:
        monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    assert [hits(functions()) for _ in range(2)] == [0, 0]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.startswith("compiled kernels are not kept, so that every run compiles anew what it needs: ")
    assert not list(cache.iterdir())


def test_beside_the_source_first_then_at_home_then_in_the_temp_folder(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = cache.parent / "source"
    source.mkdir()
    assert kernel_folder(source, "") == source / "__pycache__"
    kernel_folder.cache_clear()
    monkeypatch.setattr(caches, "_takes_files", lambda folder: folder.name != "__pycache__")
    assert kernel_folder(source, "") == cache.parent / "home/mcbo-numba"
    kernel_folder.cache_clear()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: Path("/dev/null"))
    folder = kernel_folder(source, "")
    assert folder == cache.parent / f"mcbo-numba-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not caplog.records


def test_settings_of_numba_that_make_no_sense(
    cache: Path, functions: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(NUMBA, "CACHE_LOCATOR_CLASSES", "Nonsense")
    assert hits(functions()) == 0
    assert "Unknown cache locator class" in caplog.text
    assert not cache.exists() or not list(cache.iterdir())


def test_code_of_another_version_is_not_run(tmp_path: Path) -> None:
    """Two versions, each of which overwrites what the other keeps under the same name."""

    def files(stamp: str) -> KernelFiles:
        return KernelFiles(tmp_path, "one", stamp, pickle.dumps)

    files("old").save("key", "old code")
    assert files("old").load("key") == "old code"
    assert files("new").load("key") is None
    index = (tmp_path / "one.nbi").read_bytes()
    files("new").save("key", "new code")
    assert files("old").load("key") is None
    (tmp_path / "one.nbi").write_bytes(index)  # as when both write at once
    assert files("old").load("key") is None
    files("old").flush()
    assert files("old").load("key") is None


def test_a_folder_must_be_ones_own(tmp_path: Path) -> None:
    assert stat.S_IMODE(own_folder(tmp_path / "a/b").stat().st_mode) == 0o700
    (tmp_path / "a/b").chmod(0o702)
    with pytest.raises(
        OutputError, match=r"a/b: expected a folder of user \d+ that nobody else may write to, found drwx----w-"
    ):
        own_folder(tmp_path / "a/b")
    with pytest.raises(OutputError, match="embedded null byte"):
        own_folder(tmp_path / "a\0b")
