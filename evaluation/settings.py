"""What is to be scored: the metrics asked for on the command line, or an official evaluation config."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.pairs import EvaluationError, Pair, pairs_of, read_json
from evaluation.tasks import METRICS


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


def from_config(path: Path, dataset: Path) -> Settings:
    """Settings from an official ``*_evaluation_config.json``.

    Args:
        path: of the config; its keys ``evaluation_methods``, ``masked_evaluation``, ``eval_pairs`` and ``task_name`` are used.
        dataset: the dataset JSON, beside which the images lie.

    Raises:
        EvaluationError: if it is not such a config.
    """
    content = read_json(path)
    listed = content.get("evaluation_methods")
    if not isinstance(listed, list) or not listed:
        raise EvaluationError(f"{path}: expected a list under evaluation_methods, found {listed!r}")
    methods = []
    for entry in listed:
        try:
            labels = entry.get("labels")
            method = Method(
                metric=entry["metric"],
                name=str(entry.get("name", METRICS[entry["metric"]].name)),
                labels=None if labels is None else tuple(int(label) for label in labels),
                points=str(entry.get("dest", "landmarks")),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise EvaluationError(
                f"{path}: expected evaluation methods with a metric out of {', '.join(METRICS)}, found {entry!r}"
            ) from error
        methods.append(method)
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise EvaluationError(f"{path}: expected evaluation methods with names of their own, found {', '.join(names)}")
    pairs = content.get("eval_pairs")
    name = content.get("task_name")
    return Settings(
        methods=tuple(methods),
        required=True,
        masked=bool(content.get("masked_evaluation", False)),
        pairs=tuple(pairs_of(pairs, dataset)) if pairs else None,
        name=name if isinstance(name, str) else None,
    )
