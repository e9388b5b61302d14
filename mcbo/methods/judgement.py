"""The judgement of the cascade: which of identity, rigid and full result to write."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mcbo.core.types import Displacement, Judgement
from mcbo.geometry import cells
from mcbo.methods.cascade_case import CascadeCase
from mcbo.steps.gauss_newton import Information
from mcbo.steps.mind import MindSettings
from mcbo.steps.similarity import similarities


@dataclass(frozen=True)
class JudgementSettings:
    """Settings of the judgement.

    Attributes:
        grid_spacing: voxels per cell of the grid on which results are compared.
        mind: features whose similarity is compared.
        evidence_mind: features whose gradients are correlated.
        full_gain: by how much the similarity of the full result must exceed that of the rigid one.
        least_rise: standard errors by which the rigid motion must raise that correlation.
        least_correlation: standard errors of it that images must have to be taken for related.
        doubtful_similarity: below it, the user is warned.
        clear_gain: share of what identity lacks in similarity that a result must gain to be accepted without that rise.
        cautious_reach: voxels that the cautious stage moves on average at most; what it found is shortened to that.
        small_motion: voxels; a result that moves less on average is below what the method resolves, ...
        small_gain: ... unless it gains this share of what identity lacks in similarity.
    """

    grid_spacing: int
    mind: MindSettings
    evidence_mind: MindSettings
    full_gain: float
    least_rise: float
    least_correlation: float
    doubtful_similarity: float
    clear_gain: float
    cautious_reach: float
    small_motion: float
    small_gain: float


def judge(case: CascadeCase, candidates: dict[str, Displacement], settings: JudgementSettings) -> Judgement:
    """Compares identity, rigid and full result by features that no stage was fitted to (docs/method.md, step 6)."""
    compared = torch.stack([_similarity(case, displacement, settings) for displacement in candidates.values()])
    scores = dict(zip(candidates, compared.tolist(), strict=True))
    chosen = "full" if scores["full"] > scores["rigid"] + settings.full_gain else "rigid"
    gain = scores[chosen] - scores["identity"]
    room = 1 - scores["identity"]
    is_small = mean_length(case, candidates[chosen]) < settings.small_motion and gain < settings.small_gain * room
    before, after = (_evidence(case, candidates[name], settings) for name in ("identity", "rigid"))
    rises = any(
        b.correlation > a.correlation + settings.least_rise * b.standard_error for a, b in zip(before, after, strict=True)
    )
    is_clear = gain > settings.clear_gain * room
    if gain > 0 and (rises or is_clear) and not is_small:
        return Judgement(chosen=chosen, similarity=scores, confidence=scores[chosen])
    is_related = any(one.correlation > settings.least_correlation * one.standard_error for one in before)
    return Judgement(chosen="identity" if is_related else "cautious", similarity=scores, confidence=scores["identity"])


def judge_cautious(
    case: CascadeCase, displacement: Displacement, judgement: Judgement, settings: JudgementSettings
) -> Judgement:
    """The cautious result if it is more similar than no motion."""
    score = float(_similarity(case, displacement, settings))
    scores = judgement.similarity | {"cautious": score}
    if score <= scores["identity"]:
        return Judgement(chosen="identity", similarity=scores, confidence=scores["identity"])
    return Judgement(chosen="cautious", similarity=scores, confidence=score)


def mean_length(case: CascadeCase, displacement: Displacement) -> float:
    """Mean motion of the field of view, voxels."""
    return float(displacement.norm(dim=1, keepdim=True)[case.mask].mean())


def _similarity(case: CascadeCase, displacement: Displacement, settings: JudgementSettings) -> Tensor:
    """The highest similarity of a modality, times the root of how much of the fixed image has a counterpart: one float64."""
    grid = case.on_grid(displacement, spacing=settings.grid_spacing, mind=settings.mind)
    shared = [grid.known * (m.known > cells.KNOWN_CELL_SHARE) for m in grid.modalities]
    overlap = torch.stack([weight.sum() for weight in shared]).amin() / grid.known.sum().clamp(min=1e-6)
    scores = [similarities(grid.fixed, m.features, weight) for m, weight in zip(grid.modalities, shared, strict=True)]
    return torch.cat(scores).amax() * overlap.double().clamp(max=1).sqrt()


def _evidence(case: CascadeCase, displacement: Displacement, settings: JudgementSettings) -> list[Information]:
    """Correlation of the gradients of each modality with those of the fixed image."""
    grid = case.on_grid(displacement, spacing=settings.grid_spacing, mind=settings.evidence_mind)
    return [
        case.kernels.information_of(
            grid.fixed, m.features, (grid.known > cells.KNOWN_CELL_SHARE) & (m.known > cells.KNOWN_CELL_SHARE)
        )
        for m in grid.modalities
    ]
