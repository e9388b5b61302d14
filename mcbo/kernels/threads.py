"""Work shared out among threads: a crew that meets after each kernel, and groups that work longer by themselves."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cache
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from mcbo.kernels import in_batches

Result = TypeVar("Result")

FINEST = 16
"""Of a range, the least that a thread takes at once: a part of this number per thread."""
_MAKING_GROUPS = threading.Lock()


def parts_of(count: int, threads: int, *, least: int, most: int) -> list[tuple[int, int]]:
    """Parts of ``range(count)``, begin and end, of ``least`` to ``most``: half a thread's share of what is left.

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
    parts = iter(parts_of(count, threads, least=-(-count // (FINEST * threads)), most=count))  # safe to share: one takes each

    def work() -> None:
        for first, last in parts:
            function(*arguments, first, last)

    _CREW.work(work, threads - 1)


class _Crew:
    """Threads that wait for calls, and are begun when needed.

    A call takes 20 µs more than its work with it, 65 with a ``ThreadPoolExecutor`` (AMD EPYC, two threads, 2026-11-29); a
    registration has thousands.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], None], list[None], SimpleQueue[BaseException | None]]] = SimpleQueue()
        self._lock = threading.Lock()
        self._there = self._wanted = 0

    def work(self, function: Callable[[], None], helpers: int) -> None:
        """Calls a function here and on as many ``helpers`` as come before this thread is done with it; waits for those."""
        with self._lock:
            self._wanted += helpers
            missing = self._wanted - self._there
            with suppress(RuntimeError):  # the system has no more: then, fewer help
                for _ in range(missing):
                    threading.Thread(target=self._serve, name="mcbo", daemon=True).start()
                    self._there += 1
        places: list[None] = [None] * helpers  # whoever begins takes one
        ended: SimpleQueue[BaseException | None] = SimpleQueue()
        for _ in range(helpers):
            self._calls.put((function, places, ended))
        errors: list[BaseException | None] = []
        try:
            function()
        finally:
            begun = helpers - sum(_takes_one(places) for _ in range(helpers))
            errors += [ended.get() for _ in range(begun)]
            with self._lock:
                self._wanted -= helpers
        for error in errors:
            if error is not None:
                raise error

    def _serve(self) -> None:
        while True:
            function, places, ended = self._calls.get()
            if not _takes_one(places):
                continue
            try:
                function()
            except BaseException as error:  # raised where the call came from
                ended.put(error)
            else:
                ended.put(None)
            del function, places, ended  # what they hold is not kept until the next call


def _takes_one(places: list[None]) -> bool:
    try:
        places.pop()
    except IndexError:
        return False
    return True


_CREW = _Crew()


def side_by_side(function: Callable[[Any], Result], items: Any, most: int) -> list[Result]:
    """As ``kernels.in_batches``, in smaller batches on several threads, which share those of torch evenly.

    Long calls that never wait for each other keep cores busier than threads that meet after every short step.
    """
    threads = torch.get_num_threads()
    count = min(threads, len(items), most)
    if count < 2:
        return in_batches(function, items, most)
    batches = [items[first:last] for first, last in parts_of(len(items), count, least=1, most=most // count)]
    with _MAKING_GROUPS:  # two callers at once would take each other's temporary setting for torch's own
        groups = _groups(threads, count)
    results: list[Any] = [None] * len(batches)
    waiting = iter(enumerate(batches))
    evenly = threads % count == 0  # else a batch must always have the same number of threads, as torch's sums depend on it

    def work(group: int) -> None:
        for number, batch in waiting if evenly else [*enumerate(batches)][group::count]:
            results[number] = function(batch)

    calls = [group.submit(work, number) for number, group in enumerate(groups)]
    wait(calls)  # for all, even if one fails
    for call in calls:
        call.result()
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
