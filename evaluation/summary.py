"""Scores of a whole submission."""

from pathlib import Path

import pandas as pd

from evaluation.metrics import landmark_errors_mm
from evaluation.pairs import EvaluationError, read_displacement, read_landmarks, read_pairs, read_spacing_mm


def score_tre(dataset: Path, predictions: Path, *, split: str = "val") -> pd.DataFrame:
    """TRE of each pair before and after registration.

    Args:
        dataset: the dataset JSON; landmarks stand in ``landmarks*`` beside ``images*``.
        predictions: folder of displacements.
        split: ``val``, ``test`` or ``train``.

    Returns:
        One row per pair, indexed by the displacement's name: ``initial_tre_mm``, ``tre_mm``.

    Raises:
        EvaluationError: if something is missing or malformed.
    """
    rows = {}
    for pair in read_pairs(dataset, split=split):
        fixed, moving = read_landmarks(pair.fixed_landmarks), read_landmarks(pair.moving_landmarks)
        if fixed.shape != moving.shape:
            raise EvaluationError(
                f"{pair.name}: expected as many fixed as moving landmarks, found {len(fixed)} and {len(moving)}"
            )
        spacing_mm = read_spacing_mm(pair.moving)
        displacement = read_displacement(predictions, pair.name)
        rows[pair.name] = {
            "initial_tre_mm": landmark_errors_mm(None, fixed, moving, spacing_mm).mean(),
            "tre_mm": landmark_errors_mm(displacement, fixed, moving, spacing_mm).mean(),
        }
    return pd.DataFrame.from_dict(rows, orient="index")
