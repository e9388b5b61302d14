"""Ranks, tests and intervals on results whose order is known."""

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from evaluation.errors import EvaluationError
from evaluation.leaderboard import Board, build_board
from evaluation.pairs import Pair
from evaluation.ranking.schemes import SCHEMES
from evaluation.render import BOARD_WRITERS
from evaluation.scoring import PairScore
from evaluation.settings import from_options
from evaluation.summary import Scores
from evaluation.tasks import find_task

CASES = 8
BASE = np.linspace(1, 3, CASES)


def method(tre: NDArray[np.float64], *, sdlogj: float | None = None, task: str = "ReMIND2Reg") -> Scores:
    pairs = []
    for index, value in enumerate(tre):
        names = [Path(f"imagesTr/T_{index:04d}_{channel}.nii.gz") for channel in ("0000", "0001")]
        score = PairScore(Pair(*names))
        if math.isnan(value):
            score.error = "missing"
        else:
            score.values, score.voxels = {"TRE_lm": [value]}, {"TRE_lm": [2 * value]}
        if sdlogj is not None:
            score.values["LogJacDetStd"] = [sdlogj]
        pairs.append(score)
    return Scores(find_task(task), from_options(None), tuple(pairs))


def test_wins_scores_and_ranks_by_hand() -> None:
    """Good beats both, fair beats poor: wins 2, 1, 0 of 2, so scores 1, 0.55, 0.1."""
    noise = 0.01 * np.arange(CASES)
    board = build_board({"poor": method(BASE + 2), "good": method(BASE + noise), "fair": method(BASE + 1)})
    assert [(row.rank, row.method) for row in board.rows] == [(1, "good"), (2, "fair"), (3, "poor")]
    assert [row.results["tre"].wins for row in board.rows] == [2, 1, 0]
    assert [row.score for row in board.rows] == pytest.approx([1.0, 0.55, 0.1])
    assert board.p_values["tre"]["good", "poor"] == pytest.approx(wilcoxon(BASE + noise, BASE + 2, alternative="less").pvalue)
    assert board.p_values["tre"]["good", "poor"] == pytest.approx(1 / 2**CASES)  # all eight differences point one way
    assert board.p_values["tre"]["poor", "good"] > 0.99


def test_equal_methods_share_a_rank() -> None:
    board = build_board({"a": method(BASE), "b": method(BASE)})
    assert [(row.rank, row.score) for row in board.rows] == [(1, 0.1), (1, 0.1)]
    assert board.p_values["tre"]["a", "b"] == 1


@pytest.mark.parametrize("ranking", SCHEMES)
def test_below_five_cases_there_are_no_ranks_and_the_mean_orders(ranking: str) -> None:
    board = build_board({"b": method(BASE[:4] + 1), "a": method(BASE[:4])}, metrics=["tre"], ranking=ranking)
    assert [(row.rank, row.method, row.score) for row in board.rows] == [(None, "a", None), (None, "b", None)]
    assert "| – | a | 1.429 ± 0.319 | – |" in BOARD_WRITERS[".md"](board)
    assert "No ranks" in BOARD_WRITERS[".html"](board)
    assert json.loads(BOARD_WRITERS[".json"](board))["rows"][0]["rank"] is None
    assert BOARD_WRITERS[".csv"](board).splitlines()[1].startswith(",,,a,,1.428")
    assert build_board({"a": method(BASE[:5])}, metrics=["tre"], ranking=ranking).rows[0].rank == 1


def test_two_modalities_of_a_patient_are_one_case() -> None:
    """Four patients with two pairs each are four cases: too few. Of five, the mean over pairs counts; a missing pair misses."""
    scores = {}
    for name, better in (("a", 0.5), ("b", 0.0)):
        single = method(BASE - better).pairs
        second = [PairScore(Pair(p.pair.fixed, Path(str(p.pair.moving).replace("0001.nii", "0002.nii")))) for p in single]
        for pair in second:
            pair.values = {"TRE_lm": [4.0 - better]}
        scores[name] = Scores(find_task("ReMIND2Reg"), from_options(None), (*single, *second))
    assert len({p.pair.key for p in scores["a"].pairs}) == 2 * CASES
    board = build_board(scores)
    assert (board.cases[0], len(board.cases), len(board.pairs)) == ("0000", CASES, 2 * CASES)
    assert board.rows[0].results["tre"].per_case == pytest.approx((BASE + 4) / 2 - 0.5)
    assert board.p_values["tre"]["a", "b"] == pytest.approx(1 / 2**CASES)  # not 1 / 2**16
    scores["a"].pairs[-1].error = "missing"
    assert build_board(scores).rows[1].results["tre"].missing == 1
    four = {n: Scores(s.task, s.settings, (*s.pairs[:4], *s.pairs[CASES : CASES + 4])) for n, s in scores.items()}
    assert not build_board(four).ranked


def test_too_few_cases_for_so_many_methods_is_said() -> None:
    methods = {name: method(BASE[:6] + shift) for shift, name in enumerate("abcd")}
    assert "no difference between so many methods can be significant" in BOARD_WRITERS[".md"](
        build_board(methods, metrics=["tre"], ranking="2026")
    )
    assert "so many methods" not in BOARD_WRITERS[".md"](build_board(methods))


def test_the_baseline_is_shown_and_not_ranked() -> None:
    methods = {"base": method(BASE), "good": method(BASE - 0.5), "poor": method(BASE + 1)}
    board = build_board(methods, metrics=["tre"], ranking="2026", baseline="base")
    assert [(row.rank, row.method) for row in board.rows] == [(1, "good"), (2, "poor"), (None, "base")]
    assert [row.score for row in board.rows[:2]] == pytest.approx([100, 50])  # of two methods
    assert board.rows[2].score is None
    for name in ("nobody", "base"):
        with pytest.raises(EvaluationError, match="--baseline: expected one of several methods"):
            build_board({"base": method(BASE)}, baseline=name)


def test_simulated_images_have_no_published_results() -> None:
    scores = method(BASE)
    assert build_board({"a": replace(scores, simulated=True)}, published="val").published == ()
    assert build_board({"a": scores}, published="val").published


def test_a_missing_metric_scores_a_tenth() -> None:
    incomplete = np.where(np.arange(CASES) == 3, np.nan, BASE - 0.5)
    board = build_board({"incomplete": method(incomplete), "whole": method(BASE)})
    assert [(row.method, row.score, row.results["tre"].wins) for row in board.rows] == [
        ("whole", 0.1, 0),
        ("incomplete", 0.1, 0),
    ]
    assert "on 7 of 8 cases" in BOARD_WRITERS[".md"](board)


def test_several_metrics_meet_in_their_geometric_mean() -> None:
    """a wins by TRE, b by smoothness: each sqrt(1 · 0.1)."""
    a = method(BASE, sdlogj=0.2)
    b = method(BASE + 1, sdlogj=0.1)
    board = build_board({"a": a, "b": b}, metrics=["tre", "sdlogj"])
    assert [row.score for row in board.rows] == pytest.approx([math.sqrt(0.1)] * 2)


def test_intervals_hold_the_mean_and_repeat() -> None:
    board, again = (build_board({"a": method(BASE)}) for _ in range(2))
    result = board.rows[0].results["tre"]
    assert result.mean == pytest.approx(2)
    assert result.low < 2 < result.high
    assert (result.low, result.high) == (again.rows[0].results["tre"].low, again.rows[0].results["tre"].high)


def test_the_unit_is_that_of_the_task() -> None:
    assert build_board({"a": method(BASE)}).rows[0].results["tre"].mean == pytest.approx(2)
    voxels = build_board({"a": method(BASE, task="COMULIS3DCLEM")})
    assert voxels.unit == "voxels"
    assert voxels.rows[0].results["tre"].mean == pytest.approx(4)


@pytest.fixture
def board() -> Board:
    return build_board({"<b>bold</b>": method(BASE), "pipe|d": method(BASE + 1)}, published="val")


def test_published_rows_are_shown_and_never_ranked(board: Board) -> None:
    rows = list(csv.DictReader(io.StringIO(BOARD_WRITERS[".csv"](board))))
    assert [row["rank"] for row in rows][:3] == ["1", "2", ""]
    published = [row for row in rows if row["source"].startswith("published")]
    assert ("MCBO", "2.224") in [(row["method"], row["tre"]) for row in published]
    assert not any(row["rank"] or row["score"] for row in published)
    assert build_board({"a": method(BASE)}).published == ()
    for kind in (".html", ".md"):
        text = BOARD_WRITERS[kind](board)
        measured, _, apart = text.partition("they come from other images")
        assert "pipe" in measured
        assert "CrossKEY" in apart
        assert "CrossKEY" not in measured


def test_names_are_escaped(board: Board) -> None:
    page = BOARD_WRITERS[".html"](board)
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold" in page
    assert r"pipe\|d" in BOARD_WRITERS[".md"](board)


def test_json_holds_everything(board: Board) -> None:
    content = json.loads(BOARD_WRITERS[".json"](board))
    assert content["rows"][0]["results"]["tre"]["per_case"] == pytest.approx(BASE.tolist())
    assert content["p_values"]["tre"]["<b>bold</b> better than pipe|d"] < 0.05
    assert len(content["cases"]) == CASES


def test_methods_of_one_score_share_the_ranks_of_all_of_them() -> None:
    """Each loses to the other in half of the cases: no test tells them apart, so that each could be first or second."""
    one, other = BASE.copy(), BASE.copy()
    one[::2] += 0.5
    other[1::2] += 0.5
    board = build_board({"a": method(one), "b": method(other)})
    assert {row.rank_interval for row in board.rows} == {(1, 2)}
