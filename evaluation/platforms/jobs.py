"""The jobs of an algorithm on grand-challenge.org: ``predictions.json``, and the file that each job wrote."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import EvaluationError, shown
from evaluation.files import read_json_list
from evaluation.images import Shape, read_field
from evaluation.pairs import Pair
from evaluation.platforms.metaimage import read_metaimage

SUCCEEDED = "succeeded"
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}", re.ASCII)
_DURATION = re.compile(r"P([0-9]{1,6})DT([0-9]{1,4})H([0-9]{1,4})M([0-9]{1,4}(?:\.[0-9]{1,9})?)S", re.ASCII)
"""ISO 8601 as Django writes it: ``P0DT00H02M03.5S``."""
_DISPLACEMENT = re.compile("displacement|deformation", re.IGNORECASE)
_SUFFIXES = re.compile(r"\.(nii|nii\.gz|mha|mhd|tif|tiff|nrrd)$", re.IGNORECASE)


@dataclass(frozen=True)
class Output:
    """What a job wrote: the slug of its socket, and where, relative to the job's folder of outputs."""

    slug: str
    relative_path: str


@dataclass(frozen=True)
class Job:
    """One run of the algorithm.

    Attributes:
        key: its primary key, which is the name of its folder.
        status: as the site gives it.
        inputs: names of its input images, without suffix.
        outputs: of its sockets.
        runtime_s: of the algorithm; None if the site does not know it.
    """

    key: str
    status: str
    inputs: frozenset[str]
    outputs: tuple[Output, ...]
    runtime_s: float | None

    @property
    def succeeded(self) -> bool:
        """Whether the site says so."""
        return self.status.lower() == SUCCEEDED


def read_jobs(path: Path) -> tuple[list[Job], list[str]]:
    """The jobs of a ``predictions.json``, in the order of their keys, and what is wrong with entries that are none.

    Raises:
        EvaluationError: if the file is not a list in JSON.
    """
    jobs, problems = [], []
    for number, entry in enumerate(read_json_list(path)):
        try:
            jobs.append(_job(entry))
        except ValueError as error:
            problems.append(f"{path}: job {number}: {error}")
    return sorted(jobs, key=lambda job: job.key), problems


def _job(entry: object) -> Job:
    """A job from its entry; ValueError if it is none."""
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object, found {shown(entry)}")
    key, status = entry.get("pk"), entry.get("status")
    if not isinstance(key, str) or not _PLAIN.fullmatch(key):
        raise ValueError(f"expected a primary key under pk, found {shown(key)}")
    if not isinstance(status, str):
        raise ValueError(f"expected a status, found {shown(status)}")
    inputs = frozenset(name for value in _listed(entry, "inputs") if (name := _image_name(value)))
    return Job(key, status, inputs, tuple(_output(value) for value in _listed(entry, "outputs")), _runtime(entry))


def _listed(entry: dict[str, object], key: str) -> list[dict[str, object]]:
    values = entry.get(key) or []
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise ValueError(f"expected a list of objects under {key}, found {shown(values)}")
    return values


def _image_name(value: dict[str, object]) -> str | None:
    image = value.get("image")
    name = image.get("name") if isinstance(image, dict) else None
    return stem(name) if isinstance(name, str) else None


def stem(name: str) -> str:
    """The name of an image file without its folder and suffix."""
    return _SUFFIXES.sub("", name.rpartition("/")[2])


def _output(value: dict[str, object]) -> Output:
    socket = value.get("socket") or value.get("interface")  # its older name
    if not isinstance(socket, dict):
        raise ValueError(f"expected a socket in each output, found {shown(value)}")
    slug, relative_path = socket.get("slug"), socket.get("relative_path")
    if not isinstance(slug, str) or not isinstance(relative_path, str):
        raise ValueError(f"expected slug and relative_path of each output, found {shown(socket)}")
    return Output(slug, relative_path)


def _runtime(entry: dict[str, object]) -> float | None:
    """Seconds: of the invocation, where the site tells it, else of the whole job."""
    for key in ("invoke_duration", "exec_duration"):
        value = entry.get(key)
        match = _DURATION.fullmatch(value) if isinstance(value, str) else None
        if match:
            days, hours, minutes, seconds = map(float, match.groups())
            return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    return None


def assign(jobs: Sequence[Job], pairs: Sequence[Pair]) -> tuple[dict[Pair, Job], list[str]]:
    """For each pair the job that had its two images, and what is odd about jobs that are not used.

    One that succeeded comes before one that did not, then the smaller key: the order of the jobs does not matter.
    """
    assigned: dict[Pair, Job] = {}
    problems = []
    used = set()
    for pair in pairs:
        names = {stem(path.name) for path in (pair.fixed, pair.moving)}
        candidates = sorted((job for job in jobs if names <= job.inputs), key=lambda job: (not job.succeeded, job.key))
        if candidates:
            assigned[pair] = candidates[0]
            used |= {job.key for job in candidates}
        if len(candidates) > 1:
            listed = ", ".join(job.key for job in candidates[1:])
            problems.append(f"{pair.key}: several jobs had its images; {candidates[0].key} is scored, {listed} not")
    for job in jobs:
        if job.key not in used:
            found = f"found {shown(sorted(job.inputs))}; name them as the ground truth does"
            problems.append(f"job {job.key}: expected the two images of a pair among its inputs, {found}")
    return assigned, problems


def read_output(folder: Path, job: Job, pair: Pair, *, socket: str | None, shape: Shape) -> NDArray[np.float32]:
    """The displacement that a job wrote for a pair, ``(H, W, D, 3)`` voxels.

    A MetaImage is read in ITK's convention, any other file as the challenge has it.

    Args:
        folder: of all jobs; outputs of this one are under ``KEY/output``.
        job: the job.
        pair: the pair, for the grid and the names.
        socket: the slug of the displacement's socket; None for the only one, or the only one called displacement.
        shape: of the fixed image.

    Raises:
        EvaluationError: if it failed, or there is no such file, or it is no displacement of that shape.
    """
    if not job.succeeded:
        raise EvaluationError(f"job {job.key}: expected the status Succeeded, found {shown(job.status)}")
    path = _output_file(folder / job.key / "output", job, socket)
    if path.suffix == ".mha":
        return read_metaimage(path, fixed=pair.fixed, moving=pair.moving, shape=shape)
    return read_field(path, shape=shape)


def _output_file(folder: Path, job: Job, socket: str | None) -> Path:
    outputs = [output for output in job.outputs if output.slug == socket or socket is None]
    if len(outputs) > 1:
        outputs = [output for output in outputs if _DISPLACEMENT.search(output.slug)]
    if len(outputs) != 1:
        listed = shown([output.slug for output in job.outputs])
        called = f"the socket {socket}" if socket else "one output of displacements; name its socket with --socket"
        raise EvaluationError(f"job {job.key}: expected {called}, found {listed}")
    path = folder / outputs[0].relative_path
    expected = f"job {job.key}: expected a displacement at {shown(outputs[0].relative_path)}"
    try:
        real, root = os.path.realpath(path, strict=True), os.path.realpath(folder, strict=True)
        if os.path.commonpath([real, root]) != root or real == root:
            raise EvaluationError(f"{expected}, found a path that leads out of the job's folder")
        files = [path]
        if path.is_dir():
            names = sorted(entry.name for entry in os.scandir(path))
            files = [path / name for name in names if name.endswith(".mha")] or [
                path / name for name in names if name.endswith((".nii.gz", ".nii", ".npz"))
            ]
            if len(files) != 1:
                raise EvaluationError(f"{expected}, one .mha file, found {shown(names) if names else 'an empty folder'}")
            if os.path.commonpath([os.path.realpath(files[0], strict=True), root]) != root:
                raise EvaluationError(f"{expected}, found a link that leads out of the job's folder")
    except (OSError, ValueError) as error:  # ValueError: a null byte, or links in a circle
        raise EvaluationError(f"{expected}, found no such file") from error
    return files[0]
