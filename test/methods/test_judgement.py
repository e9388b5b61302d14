"""The part of a motion that makes the expected error least, against a search."""

from dataclasses import replace

import pytest
import torch
from helpers import cascade_config

from mcbo.geometry import rigid
from mcbo.methods.hypotheses import Hypotheses
from mcbo.methods.judgement import shortened


@pytest.mark.parametrize(("probability", "length"), [(0.01, 6.0), (0.2, 6.0), (0.4, 3.0), (0.45, 20.0)])
def test_the_expected_error_is_least(probability: float, length: float) -> None:
    expected = 5.0
    parts = torch.linspace(0, 1, 100001, dtype=torch.float64)
    right, wrong = (1 - parts) * length, ((parts * length) ** 2 + expected**2).sqrt()
    best = float(parts[(probability * right + (1 - probability) * wrong).argmin()])
    assert shortened(length, probability=probability, expected=expected) == pytest.approx(best, abs=1e-3)


def test_from_even_odds_on_the_whole_motion_is_written() -> None:
    assert shortened(6.0, probability=0.5, expected=5.0) == shortened(6.0, probability=1.0, expected=5.0) == 1


def test_nothing_found_moves_nothing() -> None:
    assert shortened(6.0, probability=0.0, expected=5.0) == 0
    assert shortened(0.0, probability=0.2, expected=5.0) == 1


def test_the_probability_is_even_where_the_settings_say_so() -> None:
    settings = cascade_config().judgement
    motions = (rigid.identity(), rigid.identity())
    hypotheses = Hypotheses(motions, (0.6, 0.1), best=1, deviations=settings.even, deviations_nearby=settings.even_nearby)
    assert settings.probability(hypotheses) == pytest.approx((0.5, 0.5), abs=1e-6)
    symmetric = replace(hypotheses, scores=(0.1, settings.even_similarity))  # similar, but its mirror image as well
    assert settings.probability(symmetric)[0] == pytest.approx(0.75)
    assert settings.probability(replace(symmetric, deviations=-100.0))[0] == pytest.approx(0.5)
    assert settings.is_found(replace(hypotheses, deviations=settings.even + 0.1))
    assert not settings.is_found(replace(hypotheses, deviations=settings.even - 0.1))
