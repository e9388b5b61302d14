"""Work in threads: all of it is done, once, by as many as there should be, and errors arrive."""

import itertools
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mcbo.kernels import threads as crews
from mcbo.kernels.threads import in_threads, parts_of, side_by_side


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
    done = []

    def call(items: Sequence[int]) -> None:
        if 0 in items:
            raise ValueError("one side")
        time.sleep(0.2)
        done.append(True)

    with pytest.raises(ValueError, match="one side"):
        side_by_side(call, [0, 1], 2)
    assert done or torch.get_num_threads() == 1


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


def test_without_more_threads_of_the_system_one_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    seen = []
    crews._Crew().work(lambda: seen.append(threading.get_ident()), 3)
    assert seen == [threading.get_ident()]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_it_all() -> None:
    """None of the crew's threads is there."""
    crew = crews._Crew()
    crew.work(lambda: None, 2)
    child = os.fork()
    if child == 0:
        seen: list[int] = []
        crew.work(lambda: seen.append(1), 2)
        os._exit(0 if seen == [1] else 1)
    for _ in range(600):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
    assert ended == child
    assert status == 0
