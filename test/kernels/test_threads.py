"""Work in threads: all of it is done, once, by as many as there should be, and errors arrive."""

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mcbo.kernels import in_turns
from mcbo.kernels import threads as crews
from mcbo.kernels.threads import in_threads, parts_of, side_by_side, turns_side_by_side


@given(count=st.integers(0, 300), threads=st.integers(1, 9), least=st.integers(1, 20), more=st.integers(0, 20))
def test_parts_are_the_whole_range_in_order(count: int, threads: int, least: int, more: int) -> None:
    parts = parts_of(count, threads, least=least, most=least + more)
    assert [number for begin, end in parts for number in range(begin, end)] == list(range(count))
    sizes = [end - begin for begin, end in parts]
    assert all(0 < size <= least + more for size in sizes)
    assert all(size >= least for size in sizes[:-1])


def test_a_range_is_cut_into_parts_that_are_all_of_it() -> None:
    threads = torch.get_num_threads()
    try:
        for count, parts in itertools.product((1, 2, 7), (1, 2, 3, 9)):
            torch.set_num_threads(parts)
            seen = np.zeros(count, dtype=np.int64)

            def mark(seen: NDArray[np.int64], first: int, last: int) -> None:
                seen[first:last] += 1

            in_threads(mark, count, seen)
            assert (seen == 1).all()
    finally:
        torch.set_num_threads(threads)


def test_an_error_in_a_thread_is_not_lost() -> None:
    def fail(first: int, last: int) -> None:
        raise ValueError(f"{first} {last}")

    with pytest.raises(ValueError, match=r"\d \d"):
        in_threads(fail, 4)


@pytest.mark.parametrize(("threads", "shares"), [(1, [1]), (2, [1, 1]), (5, [3, 2])])
def test_batches_side_by_side_share_the_threads(threads: int, shares: list[int]) -> None:
    """Each waits for the other, which only calls that run at a time survive; a call that torch computes for comes first."""
    before = torch.get_num_threads()
    meeting = threading.Barrier(len(shares), timeout=60)

    def count(_: Sequence[int]) -> int:
        torch.ones(10**6).mul_(2)
        meeting.wait()
        return torch.get_num_threads()

    crews._groups.cache_clear()  # tests before this one may have made them
    try:
        torch.set_num_threads(threads)
        assert side_by_side(count, [0, 1], 2) == shares
        assert torch.get_num_threads() == threads
        with ThreadPoolExecutor(1) as late:
            assert late.submit(torch.get_num_threads).result() == threads
    finally:
        torch.set_num_threads(before)


@given(threads=st.integers(1, 5), count=st.integers(0, 20), most=st.integers(1, 9))
@settings(deadline=None, max_examples=60)
def test_batches_are_all_items_in_order_and_never_too_many_at_a_time(threads: int, count: int, most: int) -> None:
    before = torch.get_num_threads()
    lock, running, largest = threading.Lock(), [0], [0]

    def call(items: Sequence[int]) -> list[int]:
        with lock:
            running[0] += len(items)
            largest[0] = max(largest[0], running[0])
        time.sleep(0.001)
        with lock:
            running[0] -= len(items)
        return list(items)

    try:
        torch.set_num_threads(threads)
        batches = side_by_side(call, range(count), most)
    finally:
        torch.set_num_threads(before)
    assert [item for batch in batches for item in batch] == list(range(count))
    assert largest[0] <= most
    assert all(batches)


def test_three_batches_of_two_turns_end_together_on_two_threads() -> None:
    """In each turn, a batch waits for another: the last batch would wait for ever, if it began when the others are done."""
    before = torch.get_num_threads()
    meeting = threading.Barrier(2, timeout=60)

    def take_turns(items: Sequence[int]) -> Generator[None, None, tuple[int, ...]]:
        meeting.wait()
        yield
        meeting.wait()
        return tuple(items)

    try:
        torch.set_num_threads(2)
        assert turns_side_by_side(take_turns, range(3), 2) == [(0,), (1,), (2,)]
    finally:
        torch.set_num_threads(before)


def test_turns_one_after_another() -> None:
    def take_turns(items: Sequence[int]) -> Generator[None, None, list[int]]:
        for _ in items:
            yield
        return [-item for item in items]

    assert in_turns(take_turns, range(5), 2) == [[0, -1], [-2, -3], [-4]]


def test_callers_at_a_time_leave_torch_its_number_of_threads() -> None:
    """Each of them is the first, so that each would make the groups."""
    before = torch.get_num_threads()
    callers = 3
    crews._groups.cache_clear()
    try:
        for threads in range(2, 42):  # each number once: the groups of one that was used before are there
            torch.set_num_threads(threads)
            meeting = threading.Barrier(callers, timeout=60)

            def call(meeting: threading.Barrier = meeting) -> int:
                number = torch.get_num_threads()
                meeting.wait()
                side_by_side(lambda _: torch.get_num_threads(), [0, 1], 2)
                return number

            with ThreadPoolExecutor(callers) as pool:
                numbers = [caller.result() for caller in [pool.submit(call) for _ in range(callers)]]
            with ThreadPoolExecutor(1) as late:
                assert [*numbers, late.submit(torch.get_num_threads).result()] == [threads] * (callers + 1)
    finally:
        torch.set_num_threads(before)


def test_an_error_in_one_batch_waits_for_the_others() -> None:
    before, done = torch.get_num_threads(), []
    begun = threading.Barrier(2, timeout=60)

    def call(items: Sequence[int]) -> None:
        begun.wait()
        if 0 in items:
            raise ValueError("one side")
        time.sleep(0.2)
        done.append(True)

    try:
        torch.set_num_threads(2)
        with pytest.raises(ValueError, match="one side"):
            side_by_side(call, [0, 1], 2)
    finally:
        torch.set_num_threads(before)
    assert done


@pytest.mark.parametrize(("threads", "most"), [(2, 2), (3, 3), (5, 2)])
def test_after_an_error_no_turn_begins(threads: int, most: int) -> None:
    """All take batches from one queue, or, as 5 threads make unequal groups, each group from its own."""
    before, begun, failed = torch.get_num_threads(), threading.Event(), threading.Event()
    late: list[int] = []

    def take_turns(items: Sequence[int]) -> Generator[None, None, None]:
        yield
        for turn in range(50):
            if failed.is_set():
                late.append(turn)
            if items[0] == 0:
                assert begun.wait(60)
                failed.set()
                raise ValueError("second turn")
            begun.set()
            assert failed.wait(60)
            time.sleep(0.05)  # until who failed has said so
            yield

    try:
        torch.set_num_threads(threads)
        with pytest.raises(ValueError, match="second turn"):
            turns_side_by_side(take_turns, range(8), most)
    finally:
        torch.set_num_threads(before)
    assert len(late) < threads  # each other thread may be about to begin one


def test_an_interrupt_ends_turns() -> None:
    before, turns = torch.get_num_threads(), 1000
    taken: list[int] = []

    def take_turns(_: Sequence[int]) -> Generator[None, None, None]:
        for turn in range(turns):
            if len(taken) == 10:
                os.kill(os.getpid(), signal.SIGINT)
            taken.append(turn)
            time.sleep(0.01)
            yield

    try:
        torch.set_num_threads(2)
        with pytest.raises(KeyboardInterrupt):
            turns_side_by_side(take_turns, range(4), 2)
        ended = len(taken)
        time.sleep(0.05)
    finally:
        torch.set_num_threads(before)
    assert len(taken) == ended < 4 * turns


def test_without_more_threads_of_the_system_batches_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    crews._groups.cache_clear()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    try:
        torch.set_num_threads(2)
        assert side_by_side(list, range(3), 2) == [[0, 1], [2]]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_thread_helps_who_is_not_done() -> None:
    """Each of two waits for the other: a single thread would never end."""
    before = torch.get_num_threads()
    meeting = threading.Barrier(2, timeout=60)

    def meet(*_: int) -> None:
        meeting.wait()

    try:
        torch.set_num_threads(2)
        in_threads(meet, 2)
    finally:
        torch.set_num_threads(before)


def test_an_error_of_a_helper_is_raised_where_the_call_came_from() -> None:
    before, here = torch.get_num_threads(), threading.get_ident()
    helped = threading.Event()

    def fail_elsewhere(*_: int) -> None:
        if threading.get_ident() != here:
            helped.set()
            raise KeyError("helper")
        assert helped.wait(60)

    try:
        torch.set_num_threads(2)
        with pytest.raises(KeyError, match="helper"):
            in_threads(fail_elsewhere, 100)
    finally:
        torch.set_num_threads(before)


def test_after_an_error_no_more_is_begun() -> None:
    before = torch.get_num_threads()
    done: list[int] = []

    def fail(numbers: Sequence[int]) -> None:
        done.extend(numbers)
        raise ValueError("first")

    try:
        for threads in (2, 4):
            torch.set_num_threads(threads)
            done.clear()
            with pytest.raises(ValueError, match="first"):
                side_by_side(fail, range(100), threads)
            assert len(done) <= threads
            with pytest.raises(ValueError, match="first"):
                in_threads(lambda first, last: fail([first, last]), 100)
    finally:
        torch.set_num_threads(before)


def test_what_a_call_worked_on_is_freed_with_it() -> None:
    """Also where it ends before a helper comes, or with an error, and no garbage is collected."""
    before, kept = torch.get_num_threads(), 0
    gc.disable()

    def read(values: NDArray[np.float64], *_: int) -> None:
        if len(values) == 1:
            raise ValueError("short")

    try:
        torch.set_num_threads(3)
        for length in (1, 2) * 20:
            for call in (
                lambda values: in_threads(read, 9, values),
                lambda values: side_by_side(lambda _: read(values), range(4), 3),
            ):
                values = np.zeros(length)
                with pytest.raises(ValueError, match="short") if length == 1 else nullcontext():
                    call(values)
                time.sleep(0.005)
                watched = weakref.ref(values)
                del values
                kept += watched() is not None
    finally:
        torch.set_num_threads(before)
        gc.enable()
    assert kept == 0


def test_without_more_threads_of_the_system_one_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    crew, seen = crews._Crew(), []
    for _ in range(5):
        crew.work(lambda: seen.append(threading.get_ident()), 3)
    assert seen == [threading.get_ident()] * 5
    assert crew._calls.empty()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_a_crew_of_its_own() -> None:
    """Of the crew that it was forked from, it has no thread; two at a time meet."""
    program = (
        "import os, threading\n"
        "from mcbo.kernels.threads import _CREW\n"
        "_CREW.work(lambda: None, 2)\n"
        "if child := os.fork():\n"
        "    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "meeting = threading.Barrier(2, timeout=60)\n"
        "_CREW.work(lambda: meeting.wait() and None, 1)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=120, check=False).returncode == 0
