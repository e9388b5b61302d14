import errno
import fcntl
import logging
import multiprocessing
import os
import re
import socket
from pathlib import Path

import pytest

from mcbo.core.errors import OutputError
from mcbo.io.lock import hold, refuse_if_held


def test_a_second_run_is_told_who_holds_the_lock_and_the_end_removes_it(tmp_path: Path) -> None:
    path = tmp_path / ".report.json.lock"
    with hold(path):
        with (
            pytest.raises(
                OutputError,
                match=rf"one is at work there \(process {os.getpid()} on {re.escape(socket.gethostname())} since 20\d\d-",
            ),
            hold(path),
        ):
            pass
        assert path.exists()
        with hold(tmp_path / ".other.report.json.lock"):  # a run with another report
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_a_killed_run_left_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / ".report.json.lock"
    path.write_text(
        "process 1 on elsewhere since 2001-01-01 00:00:00, and much more that is longer than what comes in its place\n"
    )
    with hold(path):
        assert re.fullmatch(r"process \d+ on \S+ since [-0-9]+ [:0-9]+ [+-]\d+\n", path.read_text())
    assert not path.exists()


def test_a_pipe_in_the_place_of_a_lock_file_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / ".report.json.lock"
    os.mkfifo(path)
    refuse_if_held(path)
    with hold(path), pytest.raises(OutputError, match="one is at work there"), hold(path):
        pass


def test_the_folder_is_watched_whatever_number_its_successor_has(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    with hold(folder / "x") as place:
        place.check()
        folder.rename(tmp_path / "moved")
        with pytest.raises(OutputError, match=rf"No such file .*; what was finished before is in {tmp_path / 'moved'}"):
            place.check()
        (tmp_path / "moved").rename(folder)
        place.check()
        (folder / "x").unlink()
        folder.rmdir()
        folder.mkdir()
        with pytest.raises(OutputError, match=r"another one is in its place.*; what was in it is lost"):
            place.check()


def test_an_error_in_the_block_releases_the_lock(tmp_path: Path) -> None:
    path = tmp_path / ".report.json.lock"
    with pytest.raises(KeyError), hold(path):
        raise KeyError
    with hold(path):
        pass


def test_a_lock_file_that_was_replaced_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / ".report.json.lock"
    with hold(path):
        path.unlink()
        path.write_text("of another")
    assert path.read_text() == "of another"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="the lock file of this run cannot be created: No such file"),
        hold(tmp_path / "absent" / "x"),
    ):
        pass


def test_a_file_system_without_locks_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(logging.getLogger("mcbo"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("mcbo"), "handlers", [])  # another test may have left some
    with hold(tmp_path / "x"):
        pass
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}: this file system does not support locks; make sure that no other run writes there"
    ]
    assert list(tmp_path.iterdir()) == []


def _take_turns(path: Path, counter: Path) -> None:
    for _ in range(50):
        while True:
            try:
                with hold(path):
                    counter.write_text(str(int(counter.read_text()) + 1))
                break
            except OutputError:
                continue


def test_of_many_that_come_and_go_only_one_is_inside(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_take_turns, args=(tmp_path / "x", counter)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert counter.read_text() == "150"
    assert not (tmp_path / "x").exists()
