"""The schemes of ranking: a table worked out by hand, and random ones by a second computation."""

from dataclasses import replace
from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import rankdata, wilcoxon

from evaluation.ranking import schemes
from evaluation.ranking.schemes import SCHEMES, Standing, can_win, passes_gate, rank, rank_intervals, stand
from evaluation.ranking.signed_rank import EXACT_UP_TO, holm, signed_rank

Table = dict[str, NDArray[np.float64]]

NEW = SCHEMES["2026"]
TRE = np.array(
    [
        [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
        [1.5, 1.7, 1.9, 2.1, 2.3, 2.5],  # worse than the first by 0.5, 0.6, … 1.0
        [2.0, 2.1, 1.8, 2.9, 3.0, 3.3],  # than the second by 0.5, 0.4, −0.1, 0.8, 0.7, 0.8
        [2.1, 2.0, 1.9, 2.8, 3.1, 3.2],  # than the third by ±0.1, than the second by 0.6, 0.3, 0, 0.7, 0.8, 0.7
    ]
)
NDV = np.array(
    [
        [0.02, 0.03, 0.02, 0.04, 0.03, 0.05],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.004, 0.001, 0.003, 0.002, 0.0, 0.004],  # below 0.005: nothing
        [0.3, 0.4, 0.5, 0.3, 0.4, 0.6],
    ]
)
RAW_TRE = np.array(
    [
        [1, 1 / 64, 1 / 64, 1 / 64],  # better in all six cases: one of 64 choices of signs
        [1, 1, 2 / 64, 1 / 32],  # the smallest difference against it: two of 64; a case is equal: one of 32
        [1, 63 / 64, 1, 42 / 64],  # six equal magnitudes, three against it: as many or fewer in 1 + 6 + 15 + 20 of 64
        [1, 1, 42 / 64, 1],
    ]
)
HAND: Table = {"tre": TRE, "ndv": NDV}


def complete(table: Table) -> dict[str, NDArray[np.bool_]]:
    return {name: np.asarray(~np.isnan(values).any(axis=1)) for name, values in table.items()}


def test_a_table_by_hand_before_the_adjustment() -> None:
    found = stand(HAND, complete(HAND), replace(NEW, holm=False))
    assert found.p["tre"] == pytest.approx(RAW_TRE)
    assert found.wins["tre"].tolist() == [3, 2, 0, 0]
    assert found.wins["ndv"].tolist() == [1, 2, 2, 0]  # second and third are equal, and regular
    assert found.scores["tre"].tolist() == [1, 0.75, 0.25, 0.25]
    assert found.scores["ndv"].tolist() == [0.5, 0.75, 0.75, 0.25]
    assert found.components["regularity"].tolist() == [0.5, 0.75, 0.25, 0.25]  # the third is not accurate: capped
    assert found.final == pytest.approx([0.5 ** (0.2 / 0.6), 0.75, 0.25, 0.25])
    means = TRE.mean(axis=1)
    assert means[2] == pytest.approx(means[3])
    assert rank(found.final, np.zeros(4, int), means).tolist() == [1, 2, 3, 3]


def test_the_same_table_adjusted_by_hand() -> None:
    """Twelve comparisons: 12/64 for the three smallest; 9/32 for the next two; the rest 1. So nobody wins by six cases."""
    found = stand(HAND, complete(HAND), NEW)
    expected = np.ones((4, 4))
    expected[0, 1:] = 12 / 64
    expected[1, 2:] = 9 / 32
    assert found.p["tre"] == pytest.approx(expected)
    assert found.wins["tre"].tolist() == found.wins["ndv"].tolist() == [0, 0, 0, 0]
    assert found.final == pytest.approx([0.25] * 4)
    assert not can_win(4, 6, NEW)
    assert can_win(4, 8, NEW)  # 12/256
    assert can_win(4, 6, SCHEMES["2022"])


def test_eight_cases_suffice_for_four_methods() -> None:
    table: Table = {"tre": np.arange(4.0)[:, None] + np.linspace(0, 0.5, 8)}
    found = stand(table, complete(table), NEW)
    assert found.p["tre"][np.triu_indices(4, 1)] == pytest.approx([12 / 256] * 6)
    assert found.wins["tre"].tolist() == [3, 2, 1, 0]
    assert found.final == pytest.approx([1, 0.75, 0.5, 0.25])


def test_the_former_scheme_by_hand() -> None:
    """Scores 0.1 + 0.9 · wins / 3, their geometric mean; no adjustment, no cap."""
    found = stand(HAND, complete(HAND), SCHEMES["2022"])
    assert found.p["tre"] == pytest.approx(RAW_TRE)
    assert found.scores["tre"] == pytest.approx([1, 0.7, 0.1, 0.1])
    assert found.scores["ndv"] == pytest.approx([0.4, 0.7, 0.7, 0.1])
    assert found.final == pytest.approx(np.sqrt([0.4, 0.49, 0.07, 0.01]))


def test_only_who_beats_the_baseline_is_praised_for_regularity() -> None:
    """By half of the metrics of accuracy: by one of two, not by none."""
    better = np.linspace(0.5, 1, 8)
    base: Table = {"tre": np.full(8, 3.0), "dice": np.full(8, 0.5), "ndv": np.full(8, 0.0)}
    table: Table = {
        "tre": np.stack([3 - better, 3 + better, 3 + better]),
        "dice": np.stack([0.5 - better / 9, 0.5 + better / 9, 0.5 - better / 9]),  # more is better
        "ndv": np.stack([0.1 * better, 0 * better, 0 * better]),
    }
    gate = passes_gate(table, base, NEW)
    assert gate.tolist() == [True, True, False]
    free, gated = stand(table, complete(table), NEW), stand(table, complete(table), NEW, gate=gate)
    assert gated.components["regularity"][2] == pytest.approx(1 / 3)
    assert gated.components["regularity"][:2].tolist() == free.components["regularity"][:2].tolist()


def test_a_missing_case_scores_the_lowest() -> None:
    table: Table = {"tre": np.arange(3.0)[:, None] + np.linspace(0, 0.5, 9)}
    table["tre"][0, 4] = np.nan
    found = stand(table, complete(table), NEW)
    assert found.wins["tre"].tolist() == [0, 1, 0]
    assert found.final == pytest.approx([1 / 3, 2 / 3, 1 / 3])


@pytest.mark.parametrize("cases", [1, 2, 5, 12, EXACT_UP_TO, EXACT_UP_TO + 1, 80])
def test_the_signed_rank_test_is_that_of_scipy(cases: int) -> None:
    differences = np.random.default_rng(cases).normal(0.2, 1, (3, cases))
    for row, below, above in zip(differences, *signed_rank(differences), strict=True):
        assert below == pytest.approx(wilcoxon(row, alternative="less", correction=False).pvalue, rel=1e-9)
        assert above == pytest.approx(wilcoxon(row, alternative="greater", correction=False).pvalue, rel=1e-9)


def test_no_difference_proves_nothing() -> None:
    for cases in (3, EXACT_UP_TO + 1):
        below, above = signed_rank(np.stack([np.zeros(cases), np.full(cases, np.nan)]))
        assert below.tolist() == above.tolist() == [1, 1]


def test_holm_by_hand() -> None:
    """Of 0.01, 0.02, 0.03, 0.005, 0.4, 0.9: 6 · 0.005, 5 · 0.01, 4 · 0.02, 3 · 0.03, 2 · 0.4, 0.9."""
    p = np.array([[1, 0.01, 0.02], [0.03, 1, 0.005], [0.4, 0.9, 1]])
    assert holm(p) == pytest.approx(np.array([[1, 0.05, 0.08], [0.09, 1, 0.03], [0.8, 0.9, 1]]))


# --- the same by a second computation, in plain loops ---


def by_signs(differences: list[float]) -> float:
    """The p that differences lie below 0: of all choices of signs, how many have positive ranks as small."""
    kept = [d for d in differences if d == d and d != 0]
    ranks = rankdata([abs(d) for d in kept])
    found = sum(r for r, d in zip(ranks, kept, strict=True) if d > 0)
    totals = [sum(r for r, sign in zip(ranks, signs, strict=True) if sign) for signs in product((0, 1), repeat=len(kept))]
    return sum(total <= found + 1e-9 for total in totals) / len(totals)


def by_loops(table: Table) -> tuple[dict[str, dict[tuple[int, int], float]], list[float], list[int]]:
    """Adjusted p, final scores out of 100, and ranks."""
    methods = range(len(table["tre"]))
    adjusted: dict[str, dict[tuple[int, int], float]] = {}
    scores: dict[str, list[float]] = {}
    for name, values in table.items():
        used = np.where(values < 0.005, 0, values) if name == "ndv" else values
        raw = {
            (i, j): by_signs([round(float(a - b), 9) for a, b in zip(used[i], used[j], strict=True)])
            for i in methods
            for j in methods
            if i != j
        }
        adjusted[name], so_far = {}, 0.0
        for done, (pair, p) in enumerate(sorted(raw.items(), key=lambda item: item[1])):
            so_far = max(so_far, min(1.0, p * (len(raw) - done)))
            adjusted[name][pair] = so_far
        wins = [sum(p < 0.05 for (better, _), p in adjusted[name].items() if better == i) for i in methods]
        scores[name] = [(won + 1) / len(values) for won in wins]
    finals = [
        100 * prod((accuracy, accuracy, min(accuracy, regularity))) ** (1 / 3)
        for accuracy, regularity in zip(scores["tre"], scores["ndv"], strict=True)
    ]
    order = sorted(methods, key=lambda i: (-round(finals[i], 9), float(table["tre"][i].mean())))
    return adjusted, finals, [1 + order.index(i) for i in methods]


def random_table(seed: int, methods: int, cases: int) -> Table:
    rng = np.random.default_rng(seed)
    tre = np.round(rng.normal(2, 0.4, (methods, cases)) + 0.5 * np.arange(methods)[:, None], 1)  # with equal numbers
    return {"tre": tre + 1e-4 * rng.random((methods, 1)), "ndv": np.round(rng.random((methods, cases)) * 0.02, 3)}


@given(seed=st.integers(0, 10**6), methods=st.integers(2, 4), cases=st.integers(5, 10))
@settings(deadline=None, max_examples=25)
def test_random_tables_by_a_second_computation(seed: int, methods: int, cases: int) -> None:
    table = random_table(seed, methods, cases)
    found: Standing = stand(table, complete(table), NEW)
    adjusted, finals, ranks = by_loops(table)
    for name, expected in adjusted.items():
        for (i, j), p in expected.items():
            assert found.p[name][i, j] == pytest.approx(p, abs=1e-12)
    assert 100 * found.final == pytest.approx(finals)
    assert rank(found.final, np.zeros(methods, int), table["tre"].mean(axis=1)).tolist() == ranks


def test_rank_intervals_by_a_second_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemes, "BOOTSTRAPS", 40)
    table = random_table(5, 3, 8)
    drawn = np.random.default_rng(0).integers(8, size=(40, 8))
    ranks = np.sort([by_loops({name: values[:, cases] for name, values in table.items()})[2] for cases in drawn], axis=0)
    expected = [(int(column[0]), int(column[38])) for column in ranks.T]  # 2.5 and 97.5 % of 40: the first and the 39th
    assert any(low < high for low, high in expected)
    assert rank_intervals(table, complete(table), NEW, np.zeros(3, int), None) == expected


def test_rank_intervals_are_narrow_where_methods_differ() -> None:
    table: Table = {"tre": np.arange(3.0)[:, None] + np.linspace(0, 0.5, 12), "ndv": np.zeros((3, 12))}
    assert rank_intervals(table, complete(table), NEW, np.zeros(3, int), None) == [(1, 1), (2, 2), (3, 3)]
    noise: Table = {"tre": np.random.default_rng(0).normal(2, 1, (3, 12)), "ndv": np.zeros((3, 12))}
    assert any(low < high for low, high in rank_intervals(noise, complete(noise), NEW, np.zeros(3, int), None))
