"""Work shared out among threads: a crew that meets after each kernel, and groups that work longer by themselves."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
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
_WAKES_S = 0.5
"""How often who waits for long calls looks for a signal: one that comes just before the wait begins does not end it."""
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
        try:
            while (part := _take(parts)) is not None:
                function(*arguments, *part)
        except BaseException:
            parts.clear()  # what is left is not begun
            raise

    _CREW.work(work, threads - 1)


class _Crew:
    """Threads that wait for calls, and are begun when needed.

    The overhead of a call is 20 µs, against 65 with a ``ThreadPoolExecutor`` (AMD EPYC, two threads, 2026-11-29); a
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
        _raise_first(errors)

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


def _raise_first(errors: list[BaseException | None]) -> None:
    """Raises the first error, if there is one, and empties the list: it is kept nowhere, with all that its frames refer to."""
    error = next((error for error in errors if error is not None), None)
    errors.clear()
    if error is not None:
        try:
            raise error
        finally:
            del error  # it refers to this frame


_CREW = _Crew()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_CREW.__init__)  # type: ignore[misc]  # whose threads are not there


def side_by_side(function: Callable[[Any], Result], items: Any, most: int) -> list[Result]:
    """As ``kernels.in_batches``, in smaller batches on several threads, which share those of torch evenly.

    Long calls that never wait for each other keep cores busier than threads that meet after every short step.
    """

    def in_one_turn(some: Any) -> Generator[None, None, Result]:
        yield from ()  # nothing, but it makes this a generator
        return function(some)

    return turns_side_by_side(in_one_turn, items, most)


def turns_side_by_side(function: Callable[[Any], Generator[None, None, Result]], items: Any, most: int) -> list[Result]:
    """As ``kernels.in_turns``, in smaller batches on several threads, as above.

    Of the batches that a thread takes from, the one that has waited longest has the next turn, so that no long one begins when
    all others have ended. After an error, turns that have begun are waited for, and no other begins.
    """
    threads = torch.get_num_threads()
    count = min(threads, len(items), most)
    groups = _groups_of(threads, count)
    if len(groups) < 2:
        return in_turns(function, items, most)
    batches = [items[first:last] for first, last in parts_of(len(items), count, least=1, most=most // count)]
    results: list[Any] = [None] * len(batches)
    waiting = [(number, function(batch)) for number, batch in enumerate(batches)]
    shared = deque(waiting)
    # Unless all groups have as many threads, a batch always has the same group, as torch's sums depend on their number.
    queues = [shared if threads % count == 0 else deque(waiting[group::count]) for group in range(count)]
    stopped = threading.Event()

    def work(queue: deque[tuple[int, Generator[None, None, Result]]]) -> None:
        try:
            while not stopped.is_set() and (batch := _take(queue)) is not None:
                number, turns = batch
                try:
                    next(turns)
                except StopIteration as end:
                    results[number] = end.value
                else:
                    queue.append(batch)
        except BaseException:
            stopped.set()
            raise

    calls: list[Future[None]] = []
    try:
        for group, queue in zip(groups, queues, strict=True):
            calls.append(group.submit(work, queue))
        while wait(calls, timeout=_WAKES_S).not_done:
            pass
    except BaseException:
        stopped.set()
        wait(calls)
        raise
    errors = [call.exception() for call in calls]
    calls.clear()  # they keep the errors
    _raise_first(errors)
    return results


def _groups_of(threads: int, count: int) -> list[ThreadPoolExecutor]:
    """``_groups``; none if there would be fewer than two, or if the system has no more threads."""
    if count > 1:
        with _MAKING_GROUPS, suppress(RuntimeError):  # two callers would take each other's temporary setting for torch's own
            return _groups(threads, count)
    return []


@cache
def _groups(threads: int, count: int) -> list[ThreadPoolExecutor]:
    """``count`` threads, to each of which torch gives its share of ``threads``.

    Torch keeps a number of threads per thread, copied at its first use there from a default. Setting either sets the default
    too, so another thread restores it; a thread that first uses torch in between gets too few.
    """
    groups = [ThreadPoolExecutor(1, thread_name_prefix="mcbo") for _ in range(count)]
    with ThreadPoolExecutor(1) as passing:
        number = passing.submit(torch.get_num_threads).result()
        try:
            for place, group in enumerate(groups):
                group.submit(torch.get_num_threads).result()
                group.submit(torch.set_num_threads, (threads + count - 1 - place) // count).result()
        finally:
            passing.submit(torch.set_num_threads, number).result()
    return groups
