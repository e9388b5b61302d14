"""Evaluates on grand-challenge.org: scores what the jobs of an algorithm wrote, several pairs at a time."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from evaluation.errors import EvaluationError
from evaluation.pairs import Pair, parse_name, read_pairs
from evaluation.platforms.jobs import Job, assign, read_jobs, read_output
from evaluation.scoring import PairScore, score_field
from evaluation.settings import Settings
from evaluation.summary import Scores, gather, means_with_failures_as_identity, plain, to_official

INPUT, GROUND_TRUTH, OUTPUT = Path("/input"), Path("/opt/ml/input/data/ground_truth"), Path("/output")
"""Where the site mounts jobs and ground truth, and takes the result from."""
T = TypeVar("T")

MOST_WORKERS = 4
"""By default: scoring a pair of 256³ voxels takes about 2 GB."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of an algorithm.

    Attributes:
        scores: of every pair of the ground truth.
        jobs: the job of each pair that has one.
        problems: what is odd about jobs and does not belong to one pair.
    """

    scores: Scores
    jobs: dict[Pair, Job]
    problems: list[str]


def find_dataset(folder: Path) -> Path:
    """The dataset JSON of a folder, or of the only folder inside it, as a tarball may have it."""
    found = sorted(folder.glob("*_dataset.json")) or sorted(folder.glob("*/*_dataset.json"))
    if len(found) != 1:
        listed = f" ({', '.join(str(path.relative_to(folder)) for path in found[:5])})" if found else ""
        raise EvaluationError(
            f"{folder}: expected one *_dataset.json beside the images and landmarks, found {len(found)}{listed}"
        )
    return found[0]


def evaluate(
    folder: Path,
    dataset: Path,
    settings: Settings,
    *,
    split: str = "val",
    socket: str | None = None,
    workers: int | None = None,
    trust_paths: bool = False,
) -> Evaluation:
    """Scores the jobs of an algorithm.

    Args:
        folder: with ``predictions.json``, and the outputs of each job under its key.
        dataset: JSON of the ground truth.
        settings: what to score.
        split: whose pairs.
        socket: slug of the displacement's socket, if it is not the only one.
        workers: processes; None for one per core, at most ``MOST_WORKERS``.
        trust_paths: allow files of the ground truth outside its folder.

    Raises:
        EvaluationError: if the ground truth or the list of jobs cannot be read. What a job wrote never raises.
    """
    pairs = read_pairs(dataset, split=split, trust_paths=trust_paths) if settings.pairs is None else list(settings.pairs)
    jobs, problems = read_jobs(folder / "predictions.json")
    assigned, unused = assign(jobs, pairs)
    tasks = [partial(_score, folder, pair, assigned.get(pair), settings, socket) for pair in pairs]
    scored = run_each(tasks, workers or min(MOST_WORKERS, len(os.sched_getaffinity(0))))
    scores = [
        score if isinstance(score, PairScore) else PairScore(pair, error=f"scoring it failed: {score}")
        for pair, score in zip(pairs, scored, strict=True)
    ]
    return Evaluation(gather(dataset, scores, settings), assigned, problems + unused)


def _score(folder: Path, pair: Pair, job: Job | None, settings: Settings, socket: str | None) -> PairScore:
    if job is None:
        return PairScore(pair, error="expected a job with its two images, found none")
    return score_field(pair, lambda shape: read_output(folder, job, pair, socket=socket, shape=shape), settings)


def run_each(tasks: Sequence[Callable[[], T]], workers: int) -> list[T | str]:
    """The result of each task, or why it has none, run by several processes.

    A process that is killed, for lack of memory for example, takes its pool with it; what was not finished is then done again,
    each task in a process of its own.
    """
    if workers == 1 or len(tasks) < 2:
        return [_outcome(task) for task in tasks]
    done = _in_pool(tasks, min(workers, len(tasks)))
    return [
        done[i] if i in done else _in_pool([task], 1).get(0, "its process was killed, perhaps for lack of memory")
        for i, task in enumerate(tasks)
    ]


def _in_pool(tasks: Sequence[Callable[[], T]], workers: int) -> dict[int, T | str]:
    """The outcomes of those tasks whose process lived."""
    # Fresh processes: a copy of one with threads can hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures: list[Future[T | str]] = [pool.submit(_outcome, task) for task in tasks]
        return dict(_finished(futures))


def _finished(futures: Iterable[Future[T]]) -> Iterable[tuple[int, T]]:
    for i, future in enumerate(futures):
        try:
            yield i, future.result()
        except BrokenProcessPool:
            continue


def _outcome(task: Callable[[], T]) -> T | str:
    """What a task returns, or the error that it raises, as text: whatever one pair does, the others are scored."""
    try:
        return task()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def to_metrics(evaluation: Evaluation) -> dict[str, object]:
    """The content of ``metrics.json``: ``results`` per pair, ``aggregates``, and what else there is to say.

    Per pair: the keys of ``evaluation score``, the case, the job, its status and its runtime in seconds. Aggregates are those
    of ``evaluation score``, over the pairs that have a score; ``mean_failed_as_identity`` counts the others as if they had not
    been moved.
    """
    official: Any = to_official(evaluation.scores)
    cases, aggregates = official["cases"], official["aggregates"]
    results = []
    for score in evaluation.scores.pairs:
        job = evaluation.jobs.get(score.pair)
        about = {
            "case": parse_name(score.pair.fixed)[0],
            "pair": score.pair.key,
            "job": job.key if job else None,
            "status": job.status if job else None,
            "runtime_s": job.runtime_s if job else None,
        }
        results.append(about | cases[score.pair.key])
    for name, mean in means_with_failures_as_identity(evaluation.scores).items():
        aggregates.setdefault(name, {})["mean_failed_as_identity"] = mean
    used = {job.key: job for job in evaluation.jobs.values()}
    runtimes = np.array([job.runtime_s for job in used.values() if job.runtime_s is not None])
    if runtimes.size:
        statistics = {"mean": runtimes.mean(), "std": runtimes.std(), "max": runtimes.max(), "sum": runtimes.sum()}
        aggregates["runtime_s"] = {key: float(value) for key, value in statistics.items()} | {"jobs": int(runtimes.size)}
    aggregates["scored"] = len(evaluation.scores.scored)
    aggregates["failed"] = len(evaluation.scores.pairs) - len(evaluation.scores.scored)
    about_all = {key: official[key] for key in ("name", "eval_version", "failed")}
    return {"results": plain(results), "aggregates": plain(aggregates), **about_all, "problems": evaluation.problems}
