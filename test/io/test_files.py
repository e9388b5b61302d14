import errno
import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mcbo.core.errors import DiskSpaceError, OutputError
from mcbo.io import files
from mcbo.io.files import check_can_hold, check_room, format_bytes, prepare_folder, write_bytes, write_whole
from mcbo.io.lock import hold, refuse_if_held
from mcbo.io.nifti import write_volume


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "new" / "deep")
    assert list((tmp_path / "new" / "deep").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file: results cannot be written there by user \d+: File exists"):
        prepare_folder(tmp_path / "file")


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(file: Path) -> None:
        file.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"a\.txt: cannot be written: No space left on device"):
        write_whole(tmp_path / "a.txt", fail)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_volume(tmp_path / "file" / "a.nii.gz", torch.zeros(1, 1, 2, 2, 2), np.eye(4))


@pytest.mark.parametrize("suffix", ["nii.gz", "nii", "npz"])
def test_a_file_that_grows_beyond_its_limit_is_a_sentence_and_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    program = """
import resource, sys, torch, numpy
from pathlib import Path
from mcbo.core.errors import OutputError
from mcbo.io.nifti import write_displacement
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    write_displacement(Path(sys.argv[1]), torch.rand(1, 3, 20, 21, 22), numpy.eye(4))
except OutputError as error:
    print(error)
"""
    path = tmp_path / f"disp.{suffix}"
    root = Path(files.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False, cwd=root, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{path}: cannot be written: File too large\n"
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_synced_before_it_has_its_name_and_then_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    path = tmp_path / "a.txt"

    def fsync(descriptor: int) -> None:
        is_folder = Path(f"/proc/self/fd/{descriptor}").resolve() == tmp_path
        assert path.exists() == is_folder
        synced.append("folder" if is_folder else "file")

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(path, lambda file: file.write_text("whole"))
    assert synced == ["file", "folder"]
    assert path.read_text() == "whole"


def test_file_systems_that_cannot_sync_are_borne_and_disks_that_fail_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [errno.EINVAL, errno.EINVAL, errno.EIO, errno.ENOSPC]

    def fsync(_: int) -> None:
        number = answers.pop(0)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(tmp_path / "a.txt", lambda file: file.write_text("a"))
    for _ in range(2):
        with pytest.raises(OutputError, match=r"b\.txt: cannot be written"):
            write_whole(tmp_path / "b.txt", lambda file: file.write_text("b"))
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_partial_files_of_the_dead_are_cleared_and_those_of_the_living_stay(tmp_path: Path) -> None:
    dead, future, alive = (tmp_path / f".partial-0000000{k}-disp.nii.gz" for k in range(3))
    foreign = tmp_path / ".partial-results"
    for path in (dead, future, alive, foreign):
        path.write_text("half")
    os.utime(future, (time.time() + 1e6,) * 2)  # the clock was set back since
    (tmp_path / ".partial-00000003-folder").mkdir()
    with alive.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        prepare_folder(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == [alive.name, ".partial-00000003-folder", foreign.name]
    prepare_folder(tmp_path)
    assert not alive.exists()


def test_a_file_that_is_being_written_is_not_cleared_by_another_run(tmp_path: Path) -> None:
    def write(file: Path) -> None:
        file.write_text("half")
        prepare_folder(tmp_path)
        assert file.read_text() == "half"
        file.write_text("whole")

    write_whole(tmp_path / "a.txt", write)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["whole"]


def test_links_under_the_name_of_a_partial_file_lead_nowhere(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("kept")
    out = tmp_path / "out"
    out.mkdir()
    (out / ".partial-00000000-x").symlink_to(other)
    prepare_folder(out)
    assert other.read_text() == "kept"


def test_without_locks_files_are_written_and_half_written_ones_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    left = tmp_path / ".partial-00000000-disp.nii.gz"
    left.write_text("half")
    prepare_folder(tmp_path)
    write_whole(tmp_path / "a.txt", lambda file: file.write_text("whole"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [left.name, "a.txt"]


def test_room_is_refused_with_both_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "free_disk_bytes", lambda _: 1_500_000)
    check_room(tmp_path, 1_500_000, "this")
    with pytest.raises(
        DiskSpaceError, match=r"2 displacement\(s\) may take 2\.5 GB \(before compression\), but 1\.5 MB are free"
    ):
        check_room(tmp_path, 2_500_000_000, "2 displacement(s)")
    assert format_bytes(12_345) == "12 kB"


def test_names_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    path = tmp_path / f"{'ä' * 120}.txt"
    write_bytes(path, b"whole")
    assert path.read_bytes() == b"whole"


def test_an_error_removes_the_folders_made_for_a_file_and_no_others(tmp_path: Path) -> None:
    def fail(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="No space left on device"):
        write_whole(tmp_path / "there" / "new" / "deep" / "a.txt", fail)
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_bytes_that_do_not_arrive_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, content: whole(path, content[:3]))
    with pytest.raises(OutputError, match=r"a\.txt: cannot be written: 3 of 5 bytes arrived"):
        write_bytes(tmp_path / "a.txt", b"whole")
    assert list(tmp_path.iterdir()) == []


def locks_of_nfs(descriptor: int, operation: int) -> None:
    """NFS keeps locks as those of ``fcntl``: an exclusive one for a file opened to be written, a shared one to be read."""
    mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    needed = {fcntl.LOCK_EX: (os.O_WRONLY, os.O_RDWR), fcntl.LOCK_SH: (os.O_RDONLY, os.O_RDWR)}
    if mode not in needed[operation & ~fcntl.LOCK_NB]:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def test_on_nfs_what_a_killed_run_left_is_cleared_if_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", locks_of_nfs)
    left = tmp_path / ".partial-00000000-disp.nii.gz"
    left.write_text("half")
    write_bytes(tmp_path / "a.txt", b"whole")
    refuse_if_held(tmp_path / "a.txt")
    prepare_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    whole = os.open

    def may_only_read(path: Path, flags: int, *mode: int) -> int:
        if path == left and flags & os.O_ACCMODE != os.O_RDONLY:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return whole(path, flags, *mode)

    left.write_text("of another user")
    monkeypatch.setattr(os, "open", may_only_read)
    prepare_folder(tmp_path)
    assert left.read_text() == "of another user"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, 524])
def test_what_a_file_system_cannot_do_is_borne(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(number, "not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    if number != errno.ENOLCK:
        monkeypatch.setattr(os, "fsync", unsupported)
        monkeypatch.setattr(os, "posix_fallocate", unsupported)
    prepare_folder(tmp_path)
    write_whole(tmp_path / "a.txt", lambda file: check_can_hold(file, 100))
    with hold(tmp_path / "x"):
        write_bytes(tmp_path / "b.txt", b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt"]


@pytest.mark.parametrize("found", [(0, 0, 0), OSError(errno.ENOENT, "No such file or directory")])
def test_room_that_is_not_known_is_not_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: tuple[int, int, int] | OSError
) -> None:
    def usage(_: Path) -> Any:
        if isinstance(found, OSError):
            raise found
        return type("usage", (), dict(zip(("total", "used", "free"), found, strict=True)))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    check_room(tmp_path, 10**18, "this")
    assert files.free_disk_bytes(tmp_path) > 10**18
