import time

import pytest

from mcbo.core.timing import StageTimer


class FakeMeter:
    def __init__(self) -> None:
        self.resets = 0
        self.peaks = iter([30, 10, 20])

    def reset(self) -> None:
        self.resets += 1

    def peak_bytes(self) -> int:
        return next(self.peaks)


def test_stages_add_up_seconds_and_keep_the_highest_peak() -> None:
    heard: list[tuple[str, float]] = []
    meter = FakeMeter()
    timer = StageTimer(meter=meter, listener=lambda name, work: heard.append((name, work)))
    for _ in range(2):
        with timer.stage("solve", work=0.25):
            pass
    with timer.stage("fuse"):
        pass
    assert timer.records["solve"].peak_bytes == 30
    assert timer.records["fuse"].peak_bytes == 20
    assert timer.records["solve"].seconds > 0
    assert meter.resets == 3
    assert heard == [("solve", 0), ("solve", 0.25), ("solve", 0), ("solve", 0.25), ("fuse", 0), ("fuse", 0)]


def test_a_stage_rests_while_another_runs_inside_it() -> None:
    timer = StageTimer()
    start = time.perf_counter()
    with timer.stage("outer"):
        time.sleep(0.02)
        with timer.stage("inner"):
            time.sleep(0.2)
        time.sleep(0.02)
    whole = time.perf_counter() - start
    outer, inner = timer.records["outer"].seconds, timer.records["inner"].seconds
    assert inner >= 0.2
    assert outer + inner <= whole
    assert outer < inner


def test_there_is_tidied_up_before_every_new_stage_alone() -> None:
    begun: list[str] = []
    tidied: list[list[str]] = []
    timer = StageTimer(listener=lambda name, _: begun.append(name), tidy=lambda: tidied.append(list(begun)))
    for name in ("solve", "upsample", "solve", "refine"):
        with timer.stage(name):
            pass
    assert [len(names) for names in tidied] == [0, 2, 6]


def test_an_error_passes_through() -> None:
    with pytest.raises(KeyError), StageTimer().stage("solve"):
        raise KeyError
