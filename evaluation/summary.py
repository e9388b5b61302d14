"""Scores of a whole submission."""

from pathlib import Path

import pandas as pd

from evaluation.metrics import landmark_errors_mm
from evaluation.pairs import EvaluationError, beside, find_field, read_field, read_grid, read_landmarks, read_pairs


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
        shape, _ = read_grid(pair.fixed)
        _, spacing_mm = read_grid(pair.moving)
        fixed = read_landmarks(beside(pair.fixed, "landmarks", ".csv"), inside=shape)
        moving = read_landmarks(beside(pair.moving, "landmarks", ".csv"))  # may have left the moving image's box
        if fixed.shape != moving.shape:
            raise EvaluationError(
                f"{pair.field_name}: expected as many fixed as moving landmarks, found {len(fixed)} and {len(moving)}"
            )
        displacement = read_field(find_field(predictions, pair), shape=shape)
        rows[pair.field_name] = {
            "initial_tre_mm": landmark_errors_mm(None, fixed, moving, spacing_mm).mean(),
            "tre_mm": landmark_errors_mm(displacement, fixed, moving, spacing_mm).mean(),
        }
    return pd.DataFrame.from_dict(rows, orient="index")
