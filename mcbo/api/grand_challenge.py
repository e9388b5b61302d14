"""A job of grand-challenge.org, from files to files: the images of its sockets become one displacement field.

The field is what ITK calls a displacement field: on the fixed image's grid, in millimeters along the axes of its world (LPS),
from points of the fixed image to those of the moving one.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from mcbo.api.preset import AUTO, wanted_config
from mcbo.api.register import register
from mcbo.api.result import Result, labels_of
from mcbo.core.errors import InputError, OutputError, naming
from mcbo.core.log import log
from mcbo.core.timing import StageTimer
from mcbo.core.types import Choice
from mcbo.dataset.learn2reg import displacement_name
from mcbo.dataset.sockets import Job, Socket, Sockets, read_job
from mcbo.geometry.grid import Grid
from mcbo.io.files import check_room, digest, prepare_folder, suffix_of
from mcbo.io.image_like import Geometry, to_intensities
from mcbo.io.itk import to_component_axis, to_vectors
from mcbo.io.itk_files import write_image
from mcbo.io.lock import hold
from mcbo.io.microscopy.selection import Selection, VoxelSize
from mcbo.io.nifti import write_displacement
from mcbo.methods.memory_model import result_bytes
from mcbo.methods.presets import task_of
from mcbo.report import REPORT, stages_of, write_report
from mcbo.runtime import CpuPeakMeter

CASE = "job"
"""The name of the only case in the report."""


@dataclass(frozen=True)
class JobOptions:
    """How to do jobs.

    Attributes:
        inputs: the ``inputs.json`` of a job.
        output: folder of its results.
        sockets: what the user says of sockets.
        task: None for that of the modalities.
        preset: None for the task's default: on the fixed image's voxels, as ``process.py`` does it, if all images lie on one
            grid, else ``auto``.
        expect, accept: as for ``register``.
        spacing: of TIFF files that do not state their voxel size.
        device, memory_gb: as for ``register``.
        challenge_suffix: ``.nii.gz`` or ``.npz``, to write the displacement in the challenge's format, too.
        trust_paths: whether images may lie outside of the folder of ``inputs``.
    """

    inputs: Path
    output: Path
    sockets: Sockets = field(default_factory=Sockets)
    task: str | None = None
    preset: str | None = None
    expect: tuple[float, float] | None = None
    accept: Choice | None = None
    spacing: VoxelSize | None = None
    device: str = "auto"
    memory_gb: float | None = None
    challenge_suffix: str | None = None
    trust_paths: bool = False

    @property
    def result(self) -> Path:
        """The displacement field."""
        return self.output / "images" / self.sockets.output / "output.mha"


@dataclass(frozen=True)
class PreparedJob:
    """A job that can start: its inputs, and the task that they are of."""

    job: Job
    task: str
    options: JobOptions

    @property
    def challenge_files(self) -> list[Path]:
        """In the challenge's format, if that is wanted: under official names, if the images were uploaded under such."""
        suffix = self.options.challenge_suffix
        if suffix is None:
            return []
        fixed = _official(self.job.fixed)
        try:
            names = [displacement_name(fixed, _official(moving)) for moving in self.job.movings]
        except InputError:
            names = ["displacement"]
        return [self.options.output / f"{name}{suffix}" for name in names]


def prepare_job(options: JobOptions) -> PreparedJob:
    """Reads what a job is, makes its output folder, and removes results of an earlier job, which this one replaces.

    Raises:
        InputError: if the job cannot be done; the message names sockets.
        OutputError: if results cannot be written.
    """
    job = read_job(options.inputs, options.sockets, trust_paths=options.trust_paths)
    task = options.task or task_of(job.modalities)
    config = wanted_config(options.preset or AUTO, task, options.expect, options.accept)
    if len(job.movings) > 1 and not config.modality_fusion:
        slugs = ", ".join(f"'{moving.slug}'" for moving in job.movings)
        raise InputError(
            f"sockets {slugs}: expected one moving image, since preset {config.name} of {task} does not fuse several to one "
            'displacement; exclude one with --sockets or MCBO_SOCKETS, as "none"'
        )
    prepared = PreparedJob(job, task, options)
    prepare_folder(options.output)
    for path in (options.result, *prepared.challenge_files):
        if any(path.resolve() == socket.path.resolve() for socket in (job.fixed, *job.movings)):
            raise InputError(f"{path}: expected another output than an input, which would be lost")
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{path}: cannot be replaced: {error.strerror or error}") from error
    return prepared


def run_job(prepared: PreparedJob) -> list[Path]:
    """Registers the images of a job; returns the files of its displacement.

    Raises:
        McboError: if that fails; messages name sockets.
    """
    options, sockets = prepared.options, (prepared.job.fixed, *prepared.job.movings)
    start = time.perf_counter()
    with hold(options.output / f".{REPORT}.lock"), CpuPeakMeter() as meter:
        timer = StageTimer(meter=meter)
        for socket in sockets:
            log.info("socket '%s': %s image (%s)", socket.slug, socket.side, socket.modality or "any modality")
        with timer.stage("read"):
            (fixed, grid), *movings = (_read(socket, options.spacing) for socket in sockets)
        fields = 1 + len(prepared.challenge_files)
        check_room(options.output, result_bytes(grid.shape, pairs=fields, warped=False), f"{fields} file(s) of a displacement")
        result = register(
            (fixed, grid.affine),
            [(moving, its_grid.affine) for moving, its_grid in movings],
            preset=options.preset or _preset_for(grid, [its_grid for _, its_grid in movings], prepared.task),
            task=prepared.task,
            expect=options.expect,
            accept=options.accept,
            device=options.device,
            memory_gb=options.memory_gb,
            names=[socket.slug for socket in sockets],
        )
        with timer.stage("write"):
            files = _write(prepared, result)
        _report(prepared, result, files, timer, seconds=time.perf_counter() - start)
    return files


def _read(socket: Socket, spacing: VoxelSize | None) -> tuple[Tensor, Grid]:
    with naming(f"socket '{socket.slug}'"):
        return to_intensities(socket.path, socket.slug, Geometry(selection=Selection(default_spacing=spacing)))


def _preset_for(fixed: Grid, movings: Sequence[Grid], task: str) -> str:
    """The preset of a task for images on these grids."""
    return wanted_config(AUTO, task, None).name if all(moving.matches(fixed) for moving in movings) else AUTO


def _official(socket: Socket) -> Path:
    """What the image was called, in the challenge's format whatever it is in now."""
    name = Path(socket.original or "").name
    return Path(f"{name.removesuffix(suffix_of(Path(name)))}.nii.gz")


def _write(prepared: PreparedJob, result: Result) -> list[Path]:
    """Writes the displacement, the site's file last, since it makes the job complete."""
    transform = result.transforms[0]  # all are the same, since modalities are fused
    for path in prepared.challenge_files:
        write_displacement(path, transform.tensor, transform.affine)
    vectors = to_vectors(transform.tensor, transform.fixed)
    # Not compressed: that takes seconds, which count as run time, and saves little of such numbers.
    write_image(prepared.options.result, to_component_axis(vectors), compressed=False)
    return [prepared.options.result, *prepared.challenge_files]


def _report(prepared: PreparedJob, result: Result, files: Sequence[Path], timer: StageTimer, *, seconds: float) -> None:
    options, sockets = prepared.options, (prepared.job.fixed, *prepared.job.movings)
    own = stages_of(timer)
    names = [str(file.relative_to(options.output)) for file in files]
    shown = names[1:]  # by `mcbo report`
    report = result.report.model_copy(
        update={
            "images": [str(socket.path) for socket in sockets],
            "inputs": {str(socket.path): digest(socket.path) for socket in sockets},
            "settings": {
                "task": prepared.task,
                "sockets": {socket.slug: socket.modality or socket.side for socket in sockets},
            },
            "files": {
                label: {"field": names[0]} | ({"displacement": shown[number % len(shown)]} if shown else {})
                for number, label in enumerate(labels_of([socket.slug for socket in prepared.job.movings]))
            },
            "written": {name: digest(file) for name, file in zip(names, files, strict=True)},
            "stages": {"read": own["read"], **result.report.stages, "write": own["write"]},
            "seconds": round(seconds, 3),
        }
    )
    write_report(options.output / REPORT, {CASE: report}, result.config, report.device)
