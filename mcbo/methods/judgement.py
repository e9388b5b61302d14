"""The judgement of the cascade: which of identity, rigid and full result to write."""

import math

from mcbo.core.types import Displacement, Judgement
from mcbo.geometry import cells
from mcbo.methods.cascade_case import CascadeCase
from mcbo.methods.config import Cascade
from mcbo.steps.gauss_newton import Information, information_of
from mcbo.steps.similarity import similarity


def judge(case: CascadeCase, candidates: dict[str, Displacement], config: Cascade) -> Judgement:
    """Compares identity, rigid and full result by features that no stage was fitted to (docs/method.md, step 6)."""
    scores = {name: _similarity(case, displacement, config) for name, displacement in candidates.items()}
    chosen = "full" if scores["full"] > scores["rigid"] + config.full_gain else "rigid"
    gain = scores[chosen] - scores["identity"]
    room = 1 - scores["identity"]
    is_small = _mean_length(case, candidates[chosen]) < config.small_motion and gain < config.small_gain * room
    before, after = (_evidence(case, candidates[name], config) for name in ("identity", "rigid"))
    rises = any(
        b.correlation > a.correlation + config.least_rise * b.standard_error for a, b in zip(before, after, strict=True)
    )
    is_clear = gain > config.clear_gain * room
    if gain > 0 and (rises or is_clear) and not is_small:
        return Judgement(chosen=chosen, similarity=scores, confidence=scores[chosen])
    is_related = any(one.correlation > config.least_correlation * one.standard_error for one in before)
    return Judgement(chosen="identity" if is_related else "cautious", similarity=scores, confidence=scores["identity"])


def judge_cautious(case: CascadeCase, displacement: Displacement, judgement: Judgement, config: Cascade) -> Judgement:
    """Keeps what the cautious stage found if similarity says anything for it; else no motion."""
    score = _similarity(case, displacement, config)
    scores = judgement.similarity | {"cautious": score}
    if score <= scores["identity"]:
        return Judgement(chosen="identity", similarity=scores, confidence=scores["identity"])
    return Judgement(chosen="cautious", similarity=scores, confidence=score)


def _mean_length(case: CascadeCase, displacement: Displacement) -> float:
    """Voxels that the field of view moves in the mean."""
    return float(displacement.norm(dim=1, keepdim=True)[case.mask].mean())


def _similarity(case: CascadeCase, displacement: Displacement, config: Cascade) -> float:
    """The highest similarity of a modality, times the root of how much of the fixed image has a counterpart."""
    grid = case.on_grid(displacement, spacing=config.judge_spacing, radius=config.judge_radius, dilation=config.judge_dilation)
    shared = [grid.known * (m.known > cells.MOSTLY) for m in grid.modalities]
    overlap = min(float(weight.sum() / grid.known.sum().clamp(min=1e-6)) for weight in shared)
    best = max(similarity(grid.fixed, m.features, weight) for m, weight in zip(grid.modalities, shared, strict=True))
    return best * math.sqrt(min(overlap, 1.0))


def _evidence(case: CascadeCase, displacement: Displacement, config: Cascade) -> list[Information]:
    """How the gradients of each modality correlate with those of the fixed image."""
    grid = case.on_grid(
        displacement, spacing=config.judge_spacing, radius=config.evidence_radius, dilation=config.evidence_dilation
    )
    return [
        information_of(grid.fixed, m.features, (grid.known > cells.MOSTLY) & (m.known > cells.MOSTLY)) for m in grid.modalities
    ]
