"""What is to be scored: the metrics asked for on the command line, or an official evaluation config."""

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

_FOLDER = re.compile("[A-Za-z0-9_-]{1,50}")
"""A kind of folder beside ``images*``; nothing that leads elsewhere."""


@dataclass(frozen=True)
class Method:
    """One metric to compute.

    Attributes:
        metric: ``tre``, ``sdlogj``, ``dice`` or ``hd95``.
        name: what it is called in the results.
        labels: for Dice and HD95: which; None for all that the case has.
        points: for the TRE: the folder of the points beside ``images*``, ``landmarks`` or ``keypoints``.
    """

    metric: str
    name: str
    labels: tuple[int, ...] | None = None
    points: str = "landmarks"


@dataclass(frozen=True)
class Settings:
    """What is to be scored.

    Attributes:
        methods: the metrics, in the order of the results.
        required: whether a pair fails where the data for a metric are missing; otherwise the metric is left out there.
        masked: whether SDlogJ is computed inside the masks of the fixed images, where they exist.
        pairs: the pairs to score, or None for those of the dataset.
        name: of the task in the results, or None for the dataset's.
    """

    methods: tuple[Method, ...]
    required: bool
    masked: bool = False
    pairs: tuple[Pair, ...] | None = None
    name: str | None = None


def from_options(metrics: Sequence[str] | None) -> Settings:
    """Settings for metrics named on the command line; without names, all for which there are data.

    Raises:
        EvaluationError: for an unknown name.
    """
    if metrics is not None and not metrics:
        raise EvaluationError(f"--metrics: expected some of {', '.join(METRICS)}, found none")
    for name in metrics or ():
        if name not in METRICS:
            raise EvaluationError(f"--metrics: expected some of {', '.join(METRICS)}, found {name!r}")
    return Settings(
        methods=tuple(Method(option, METRICS[option].name) for option in dict.fromkeys(metrics or METRICS)),
        required=metrics is not None,
    )


def from_config(path: Path, dataset: Path, *, trust_paths: bool = False) -> Settings:
    """Settings from an official ``*_evaluation_config.json``.

    Args:
        path: of the config; its keys ``evaluation_methods``, ``masked_evaluation``, ``eval_pairs`` and ``task_name`` are used.
        dataset: the dataset JSON, beside which the images lie.
        trust_paths: let files lie outside of the dataset's folder.

    Raises:
        EvaluationError: if it is not such a config.
    """
    content = read_json(path)
    listed = content.get("evaluation_methods")
    if not isinstance(listed, list) or not listed:
        raise EvaluationError(f"{path}: expected a list under evaluation_methods, found {shown(listed)}")
    methods = []
    for entry in listed:
        method = _method(entry)
        if method is None:
            raise EvaluationError(
                f"{path}: expected evaluation methods with a metric out of {', '.join(METRICS)}, found {shown(entry)}"
            )
        methods.append(method)
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise EvaluationError(f"{path}: expected evaluation methods with names of their own, found {shown(names)}")
    pairs = content.get("eval_pairs")
    name = content.get("task_name")
    return Settings(
        methods=tuple(methods),
        required=True,
        masked=bool(content.get("masked_evaluation", False)),
        pairs=tuple(pairs_of(pairs, dataset, f"{path}: eval_pairs", trust_paths=trust_paths)) if pairs else None,
        name=name[:MAX_NAME] if isinstance(name, str) else None,
    )


def _method(entry: object) -> Method | None:
    """A method of a config, or None if the entry is none."""
    if not isinstance(entry, dict) or entry.get("metric") not in list(METRICS):
        return None
    labels, name, points = entry.get("labels"), entry.get("name", METRICS[entry["metric"]].name), entry.get("dest", "landmarks")
    if not (labels is None or (isinstance(labels, list) and all(map(_is_label, labels)))):
        return None
    if not (isinstance(name, str) and name and len(name) <= MAX_NAME and isinstance(points, str) and _FOLDER.fullmatch(points)):
        return None
    return Method(entry["metric"], name, None if labels is None else tuple(map(int, labels)), points)


def _is_label(value: object) -> bool:
    return isinstance(value, int | str) and bool(re.fullmatch("[0-9]{1,9}", str(value)))
