"""Work shared out among threads: a crew that meets after each kernel, and groups that work longer by themselves."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cache
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from mcbo.kernels import in_turns

Item = TypeVar("Item")
Result = TypeVar("Result")

FINEST = 16
"""The smallest part that a thread takes at once is its share of a range divided by this."""
_MAKING_GROUPS = threading.Lock()


def parts_of(count: int, threads: int, *, least: int, most: int) -> list[tuple[int, int]]:
    """Parts of ``range(count)``, begin and end: half a thread's share of what is left, but ``least`` to ``most``.

    Whoever is done with one takes the next, as some take longer and some cores are busy. The last are small, to end together.
    """
    parts, begin = [], 0
    while begin < count:
        end = min(begin + min(max((count - begin) // (2 * threads), least), most), count)
        parts.append((begin, end))
        begin = end
    return parts


def in_threads(function: Callable[..., None], count: int, *arguments: object) -> None:
    """Calls ``function(*arguments, first, last)`` for parts of ``range(count)``, on as many threads as torch has.

    What is computed may not depend on how the range was cut.
    """
    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        function(*arguments, 0, count)
        return
    parts = deque(parts_of(count, threads, least=-(-count // (FINEST * threads)), most=count))

    def work() -> None:
        _for_each(parts, lambda part: function(*arguments, *part))

    _CREW.work(work, threads - 1)


class _Crew:
    """Threads that wait for calls, and are begun when needed.

    A call takes 20 µs more than its work with it, 65 with a ``ThreadPoolExecutor`` (AMD EPYC, two threads, 2026-11-29); a
    registration has thousands.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[deque[Callable[[], None]], SimpleQueue[BaseException | None]]] = SimpleQueue()
        self._lock = threading.Lock()
        self._there = self._wanted = 0

    def work(self, function: Callable[[], None], helpers: int) -> None:
        """Calls a function here and on as many ``helpers`` as are free before this thread is done; waits for those."""
        places = deque([function] * helpers)  # whoever begins takes one; of a call that is over, none is left
        ended: SimpleQueue[BaseException | None] = SimpleQueue()
        errors: list[BaseException | None] = []
        try:
            for _ in range(self._ready(helpers)):
                self._calls.put((places, ended))
            function()
        finally:
            with self._lock:
                self._wanted -= helpers
            begun = helpers - sum(_take(places) is not None for _ in range(helpers))
            errors += [ended.get() for _ in range(begun)]
        error = next((error for error in errors if error is not None), None)
        errors.clear()
        if error is not None:
            try:
                raise error
            finally:
                del error  # it refers to this frame: else, its arrays would wait for the garbage collector

    def _ready(self, helpers: int) -> int:
        """How many helpers there may be for a call that wants so many."""
        with self._lock:
            self._wanted += helpers
            with suppress(RuntimeError):  # the system has no more threads: then, fewer help
                while self._there < self._wanted:
                    threading.Thread(target=self._serve, name="mcbo", daemon=True).start()
                    self._there += 1
            return min(helpers, self._there)

    def _serve(self) -> None:
        while True:
            places, ended = self._calls.get()
            function = _take(places)
            if function is not None:
                error = _error_of(function)
                del function  # it holds arrays
                ended.put(error)
                del error


def _take(items: deque[Item]) -> Item | None:
    """The first of what several threads take from, each item once; None if there is none."""
    try:
        return items.popleft()
    except IndexError:
        return None


def _error_of(function: Callable[[], None]) -> BaseException | None:
    try:
        function()
    except BaseException as error:  # raised where the call came from
        return error
    return None


def _for_each(items: deque[Item], function: Callable[[Item], None]) -> None:
    """Calls a function for items that other threads take from, too; after an error, what is left is not begun."""
    try:
        while (item := _take(items)) is not None:
            function(item)
    except BaseException:
        items.clear()
        raise


_CREW = _Crew()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_CREW.__init__)  # type: ignore[misc]  # whose threads are not there


def side_by_side(function: Callable[[Any], Result], items: Any, most: int) -> list[Result]:
    """As ``kernels.in_batches``, in smaller batches on several threads, which share those of torch evenly.

    Long calls that never wait for each other keep cores busier than threads that meet after every short step.
    """

    def in_one_turn(some: Any) -> Generator[None, None, Result]:
        yield from ()
        return function(some)

    return turns_side_by_side(in_one_turn, items, most)


def turns_side_by_side(function: Callable[[Any], Generator[None, None, Result]], items: Any, most: int) -> list[Result]:
    """As ``kernels.in_turns``, in smaller batches on several threads, as above.

    The batch that has waited longest has the next turn, so that the last few long ones end together.
    """
    threads = torch.get_num_threads()
    count = min(threads, len(items), most)
    if count < 2:
        return in_turns(function, items, most)
    batches = [items[first:last] for first, last in parts_of(len(items), count, least=1, most=most // count)]
    with _MAKING_GROUPS:  # two callers at once would take each other's temporary setting for torch's own
        groups = _groups(threads, count)
    results: list[Any] = [None] * len(batches)
    waiting = [(number, function(batch)) for number, batch in enumerate(batches)]
    shared = deque(waiting)
    # Unless all groups have as many threads, a batch always has the same group, as torch's sums depend on their number.
    queues = [shared if threads % count == 0 else deque(waiting[group::count]) for group in range(count)]

    def work(queue: deque[tuple[int, Generator[None, None, Result]]]) -> None:
        def take_turn(batch: tuple[int, Generator[None, None, Result]]) -> None:
            number, turns = batch
            try:
                next(turns)
            except StopIteration as end:
                results[number] = end.value
            else:
                queue.append(batch)

        _for_each(queue, take_turn)

    calls = [group.submit(work, queue) for group, queue in zip(groups, queues, strict=True)]
    try:
        wait(calls)
    except BaseException:
        for queue in queues:
            queue.clear()
        wait(calls)
        raise
    for done in calls:
        done.result()
    return results


@cache
def _groups(threads: int, count: int) -> list[ThreadPoolExecutor]:
    """``count`` threads, to each of which torch gives its share of ``threads``.

    Torch keeps a number of threads per thread, copied at its first use there from a default. Setting either sets the default
    too, so another thread restores it; a thread that first uses torch in between gets too few.
    """
    groups = [ThreadPoolExecutor(1, thread_name_prefix="mcbo") for _ in range(count)]
    with ThreadPoolExecutor(1) as passing:
        number = passing.submit(torch.get_num_threads).result()
        for place, group in enumerate(groups):
            group.submit(torch.get_num_threads).result()
            group.submit(torch.set_num_threads, (threads + count - 1 - place) // count).result()
        passing.submit(torch.set_num_threads, number).result()
    return groups
