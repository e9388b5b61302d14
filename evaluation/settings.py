"""What to score: metrics named on the command line, or an official evaluation config."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.errors import EvaluationError, shown
from evaluation.files import read_json
from evaluation.pairs import Pair, pairs_of
from evaluation.tasks import METRICS

MAX_NAME = 100
"""Characters of a method's name."""

_LABEL = re.compile("[0-9]{1,9}")
_FOLDER = re.compile("[A-Za-z0-9_-]{1,50}")
"""A folder beside ``images*``, with no way to lead elsewhere."""


@dataclass(frozen=True)
class Method:
    """A metric to compute.

    Attributes:
        metric: ``tre``, ``sdlogj``, ``dice`` or ``hd95``.
        name: its name in the results.
        labels: for Dice and HD95; None for all labels of the case.
        points: for the TRE, the folder of the points beside ``images*``: ``landmarks`` or ``keypoints``.
    """

    metric: str
    name: str
    labels: tuple[int, ...] | None = None
    points: str = "landmarks"


@dataclass(frozen=True)
class Settings:
    """What to score.

    Attributes:
        methods: the metrics, in the order of the results.
        required: whether a pair fails if data for a metric are missing; otherwise it lacks that metric.
        masked: whether SDlogJ is computed inside the masks of the fixed images, where they exist.
        pairs: the pairs to score; None for those of the dataset.
        name: of the task in the results; None for the dataset's.
    """

    methods: tuple[Method, ...]
    required: bool
    masked: bool = False
    pairs: tuple[Pair, ...] | None = None
    name: str | None = None


def from_options(metrics: Sequence[str] | None) -> Settings:
    """Settings for metrics named on the command line; None for all for which there are data.

    Raises:
        EvaluationError: for an unknown name, or none.
    """
    unknown = [name for name in metrics or () if name not in METRICS]
    if unknown or (metrics is not None and not metrics):
        found = repr(unknown[0]) if unknown else "none"
        raise EvaluationError(f"--metrics: expected some of {', '.join(METRICS)}, found {found}")
    methods = tuple(Method(option, METRICS[option].name) for option in dict.fromkeys(metrics or METRICS))
    return Settings(methods, required=metrics is not None)


def from_config(path: Path, dataset: Path, *, trust_paths: bool = False) -> Settings:
    """Settings from an official ``*_evaluation_config.json``.

    Args:
        path: of the config; its keys ``evaluation_methods``, ``masked_evaluation``, ``eval_pairs`` and ``task_name`` are used.
        dataset: the dataset JSON, beside which the images lie.
        trust_paths: allow files outside the dataset's folder.

    Raises:
        EvaluationError: if it is no such config.
    """
    content = read_json(path)
    listed = content.get("evaluation_methods")
    if not isinstance(listed, list) or not listed:
        raise EvaluationError(f"{path}: expected a list under evaluation_methods, found {shown(listed)}")
    methods = tuple(_method(entry, path) for entry in listed)
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise EvaluationError(f"{path}: expected evaluation methods with different names, found {shown(names)}")
    pairs = content.get("eval_pairs")
    name = content.get("task_name")
    return Settings(
        methods,
        required=True,
        masked=bool(content.get("masked_evaluation", False)),
        pairs=tuple(pairs_of(pairs, dataset, f"{path}: eval_pairs", trust_paths=trust_paths)) if pairs else None,
        name=name[:MAX_NAME] if isinstance(name, str) else None,
    )


def _method(entry: object, path: Path) -> Method:
    """A method from an entry of the config at ``path``."""
    if isinstance(entry, dict) and entry.get("metric") in list(METRICS):  # a list: the entry may not be hashable
        metric, labels, points = entry["metric"], entry.get("labels"), entry.get("dest", "landmarks")
        name = entry.get("name", METRICS[metric].name)
        labeled = labels is None or (isinstance(labels, list) and all(_LABEL.fullmatch(str(label)) for label in labels))
        named = isinstance(name, str) and 0 < len(name) <= MAX_NAME
        if labeled and named and isinstance(points, str) and _FOLDER.fullmatch(points):
            return Method(metric, name, None if labels is None else tuple(map(int, labels)), points)
    known = ", ".join(METRICS)
    raise EvaluationError(f"{path}: expected evaluation methods with a metric out of {known}, found {shown(entry)}")
