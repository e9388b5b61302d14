"""The judgement of the cascade: how probable it is that something was found, and which result to write."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mcbo.core.field import lengths
from mcbo.core.types import Displacement, Judgement
from mcbo.methods.cascade_case import CascadeCase
from mcbo.methods.hypotheses import Hypotheses
from mcbo.steps.mind import MindSettings


@dataclass(frozen=True)
class JudgementSettings:
    """Settings of the judgement.

    Attributes:
        grid_spacing: voxels per cell of the grid on which results are compared.
        mind: features whose similarity is compared.
        even: standard deviations above chance at which it is as probable as not that something was found.
        odds: by how much the logarithm of the odds rises with each.
        even_similarity, odds_similarity: the same of the similarity, which tells more where an object is like its mirror image.
        even_nearby, odds_nearby: the same near no motion, above the mean of what chance finds there.
        doubtful: probability below which no deformation is sought but the cautious stage tried, and the user is warned.
        cautious_reach: shortest sides of a voxel that the cautious stage moves on average at most.
        full_gain: by how much the similarity of the full result must exceed that of the rigid one.
        small_motion: voxels; a result that moves less on average is below what the method resolves, ...
        small_gain: ... unless it gains this share of what identity lacks in similarity.
    """

    grid_spacing: int
    mind: MindSettings
    even: float
    odds: float
    even_similarity: float
    odds_similarity: float
    even_nearby: float
    odds_nearby: float
    doubtful: float
    cautious_reach: float
    full_gain: float
    small_motion: float
    small_gain: float

    def probability(self, hypotheses: Hypotheses) -> tuple[float, float]:
        """That the best hypothesis is no chance; and that the one found from no motion is none."""
        chance = 1 - _logistic(self.odds * (hypotheses.deviations - self.even))
        chance *= 1 - _logistic(self.odds_similarity * (hypotheses.scores[hypotheses.best] - self.even_similarity))
        return 1 - chance, _logistic(self.odds_nearby * (hypotheses.deviations_nearby - self.even_nearby))

    def is_found(self, hypotheses: Hypotheses) -> bool:
        """Whether the best hypothesis is to be believed."""
        return self.probability(hypotheses)[0] >= self.doubtful


def judge(
    case: CascadeCase, candidates: dict[str, Displacement], hypotheses: Hypotheses, settings: JudgementSettings
) -> Judgement:
    """Compares identity, rigid and full result by features that no stage was fitted to (docs/method.md, step 7).

    ``cautious`` is chosen where it is improbable that something was found; a full result is not needed there.
    """
    compared = torch.stack([_similarity(case, displacement, settings) for displacement in candidates.values()])
    scores = dict(zip(candidates, compared.tolist(), strict=True))
    found, _ = settings.probability(hypotheses)
    if not settings.is_found(hypotheses):
        reason = _why_not_found(hypotheses, found, settings)
        return Judgement(chosen="cautious", similarity=scores, confidence=found, reason=reason)
    chosen, reason = "full", ""
    if "full" not in scores:
        chosen, reason = "rigid", "only a rigid transform was sought, as the user asked"
    elif scores["full"] <= scores["rigid"] + settings.full_gain:
        chosen, reason = "rigid", _compared("the deformation", scores, "full", "rigid", "the rigid motion alone")
    gain = scores[chosen] - scores["identity"]
    least = settings.small_gain * (1 - scores["identity"])
    length = mean_length(case, candidates[chosen])
    if gain <= 0:
        chosen, reason = "identity", _compared(f"the {chosen} result", scores, chosen, "identity", "no motion")
    elif length < settings.small_motion and gain < least:
        reason = (
            f"the {chosen} result moves the image by {length:.2f} voxels on average, below the {settings.small_motion:g} that "
            f"can be told from none, and gains {gain:.3f} in similarity, less than the {least:.3f} that would make up for it"
        )
        chosen = "identity"
    return Judgement(chosen=chosen, similarity=scores, confidence=found, reason=reason)


def _compared(who: str, scores: dict[str, float], name: str, other: str, than: str) -> str:
    return f"{who} makes the images no more similar, {scores[name]:.3f}, than {than}, {scores[other]:.3f}"


def _why_not_found(hypotheses: Hypotheses, found: float, settings: JudgementSettings) -> str:
    score = hypotheses.scores[hypotheses.best]
    return (
        f"the best rigid motion scores {score:.2f}, {abs(hypotheses.deviations):.1f} standard deviations "
        f"{'above' if hypotheses.deviations >= 0 else 'below'} the best that the search finds in mirrored images, where "
        f"nothing fits: probability {found:.2f}, below {settings.doubtful:g} ({settings.even:g} deviations, or a score of "
        f"{settings.even_similarity:g}, are as likely as not), so no deformation was sought"
    )


def overruled(judgement: Judgement, choice: str) -> Judgement:
    """A judgement with the choice that the user demands."""
    return replace(judgement, chosen=choice, overruled="" if choice == judgement.chosen else judgement.chosen)


def judge_cautious(
    case: CascadeCase, displacement: Displacement, judgement: Judgement, settings: JudgementSettings
) -> Judgement:
    """The cautious result if it is more similar than no motion."""
    score = float(_similarity(case, displacement, settings))
    scores = judgement.similarity | {"cautious": score}
    chosen, reason = "cautious", judgement.reason
    if score <= scores["identity"]:
        chosen, reason = "identity", f"{reason}; {_compared('the cautious step', scores, 'cautious', 'identity', 'no motion')}"
    return replace(judgement, chosen=chosen, similarity=scores, reason=reason)


def shortened(length: float, *, probability: float, expected: float) -> float:
    """The part of a motion, from 0 to 1, that makes the expected error least.

    With a probability p the motion, of some ``length``, is right, and a part t of it leaves an error of (1 − t)·length. Else
    the right one is ``expected`` in length and of any direction, and the error is about √((t·length)² + expected²). The
    expected error is least at t·length = expected·q/√(1 − q²), q = p/(1 − p); from p = ½ on, at the whole motion.
    """
    odds = probability / max(1 - probability, 1e-9)
    if odds >= 1:
        return 1.0
    return min(1.0, expected * odds / math.sqrt(1 - odds**2) / max(length, 1e-300))


def _logistic(odds: float) -> float:
    return 1 / (1 + math.exp(-min(max(odds, -50.0), 50.0)))


def mean_length(case: CascadeCase, displacement: Displacement) -> float:
    """Mean motion of the field of view, voxels."""
    return float(lengths(displacement)[case.mask].mean())


def mean_length_mm(case: CascadeCase, displacement: Displacement) -> float:
    """The same in millimeters."""
    return mean_length(case, displacement * displacement.new_tensor(case.spacing_mm).view(1, 3, 1, 1, 1))


def _similarity(case: CascadeCase, displacement: Displacement, settings: JudgementSettings) -> Tensor:
    return case.on_grid(displacement, spacing=settings.grid_spacing, mind=settings.mind).similarity()
