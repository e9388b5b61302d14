"""Evaluates on Codabench: its folders, ``scores.json`` and ``detailed_results.html``."""

from pathlib import Path
from typing import Any

from evaluation.images import read_field
from evaluation.pairs import Pair, find_field, parse_name, read_pairs
from evaluation.scoring import PairScore, score_field
from evaluation.settings import Settings
from evaluation.summary import Scores, gather, means_with_failures_as_identity, to_official
from evaluation.tasks import METRICS

INPUT, OUTPUT = Path("/app/input"), Path("/app/output")
"""``ref`` and ``res`` in the first hold ground truth and submission; the second receives the result."""
SCORES, DETAILS = "scores.json", "detailed_results.html"
WORST = {True: 0.0, False: 1e6}
"""What a metric is called that no pair has, by whether higher is better: the site wants a number for each column."""


def score_submission(
    folder: Path, dataset: Path, settings: Settings, *, split: str = "val", trust_paths: bool = False
) -> Scores:
    """As ``summary.score``; displacements may also have the names that Learn2Reg asks for on Codabench.

    Raises:
        EvaluationError: if the dataset JSON cannot be read.
    """
    pairs = read_pairs(dataset, split=split, trust_paths=trust_paths) if settings.pairs is None else settings.pairs
    return gather(dataset, [_score(folder, pair, settings) for pair in pairs], settings)


def _score(folder: Path, pair: Pair, settings: Settings) -> PairScore:
    return score_field(pair, lambda shape: read_field(find_field(folder, pair, field_names(pair)), shape=shape), settings)


def field_names(pair: Pair) -> list[str]:
    """Two digits a channel: ``disp_0099_00_0099_01.nii.gz``."""
    (fixed, fixed_channel), (moving, moving_channel) = parse_name(pair.fixed), parse_name(pair.moving)
    if not fixed_channel.startswith("00") or not moving_channel.startswith("00"):
        return []
    return [f"disp_{fixed}_{fixed_channel[2:]}_{moving}_{moving_channel[2:]}.nii.gz"]


def to_flat(scores: Scores) -> dict[str, float]:
    """Flat numbers for ``scores.json``.

    Of each metric the mean and the standard deviation over the pairs that have a score, and for accuracy the mean with those
    that have none as if they had not been moved; the numbers of pairs with and without a score.
    """
    aggregates: Any = to_official(scores)["aggregates"]
    filled = means_with_failures_as_identity(scores)
    flat: dict[str, float] = {}
    for method in scores.settings.methods:
        name = method.name
        if name in aggregates:
            flat |= {name: aggregates[name]["mean"], f"{name}_std": aggregates[name]["std"]}
        elif name in filled or scores.settings.required:
            flat |= {name: WORST[METRICS[method.metric].higher_is_better], f"{name}_std": 0.0}
        if name in filled:
            flat[f"{name}_failed_as_identity"] = filled[name]
    return flat | {"scored": len(scores.scored), "failed": len(scores.pairs) - len(scores.scored)}
