import pytest
import torch
from helpers import random_tensor

from mcbo.steps.similarity import similarities, similarity

SHAPE = (9, 11, 13)
ALL = torch.ones(1, 1, *SHAPE)


def test_identical_features_score_one_and_unrelated_ones_none(device: torch.device) -> None:
    fixed, other, known = (t.to(device) for t in (random_tensor(1, 12, *SHAPE), random_tensor(1, 12, *SHAPE, seed=1), ALL))
    assert similarity(fixed, fixed, known) == pytest.approx(1)
    assert similarity(fixed, other, known) == pytest.approx(0, abs=0.03)
    assert similarity(fixed, 1 - fixed, known) == pytest.approx(-1, abs=0.01)  # inverted, of one mean to within 0.01


def test_half_of_what_is_seen_may_be_shared() -> None:
    """With as much noise as signal, D is 2 variances of noise of the D₀ of 4."""
    signal, a, b = (random_tensor(1, 12, *SHAPE, seed=seed) for seed in range(3))
    assert similarity(signal + a, signal + b, ALL) == pytest.approx(0.5, abs=0.02)


def test_by_hand() -> None:
    """Means ½ and 1, variances ¼ and 1, mean squared difference ½: 1 − ½/(¼ + ¼ + 1)."""
    fixed, moved = torch.tensor([0.0, 1.0]).view(1, 1, 1, 1, 2), torch.tensor([0.0, 2.0]).view(1, 1, 1, 1, 2)
    assert similarity(fixed, moved, torch.ones(1, 1, 1, 1, 2)) == pytest.approx(2 / 3)


def test_it_does_not_matter_which_is_called_fixed() -> None:
    fixed, known = random_tensor(1, 12, *SHAPE), random_tensor(1, 1, *SHAPE, seed=2)
    moved = fixed + random_tensor(1, 12, *SHAPE, seed=1)
    assert similarity(fixed, moved, known) == pytest.approx(similarity(moved, fixed, known), abs=1e-6)


def test_what_is_unknown_does_not_count() -> None:
    fixed, moved = random_tensor(1, 12, *SHAPE), random_tensor(1, 12, *SHAPE, seed=1)
    moved[..., :6] = fixed[..., :6]
    known = torch.zeros(1, 1, *SHAPE)
    assert similarity(fixed, moved, known) == -1
    known[..., :6] = 1
    assert similarity(fixed, moved, known) == pytest.approx(1)
    known[..., 3:9] = 1
    box = (..., slice(0, 9))
    assert similarity(fixed, moved, known) == pytest.approx(similarity(fixed[box], moved[box], ALL[box]))


def test_several_at_once_are_each_for_itself(device: torch.device) -> None:
    fixed, moved = random_tensor(1, 12, *SHAPE).to(device), random_tensor(3, 12, *SHAPE, seed=1).to(device)
    moved[1] = (moved[1] + fixed[0]) / 2
    known = random_tensor(3, 1, *SHAPE, seed=2).round().to(device)
    known[2] = 0
    found = similarities(fixed, moved, known)
    assert found.shape == (3,)
    assert found.tolist() == pytest.approx([similarity(fixed, moved[b : b + 1], known[b : b + 1]) for b in range(3)])
    assert found[2] == -1
