"""Run-time options."""

from dataclasses import dataclass
from pathlib import Path

import torch

from mcbo.core.types import Kernels
from mcbo.io.lock import Place
from mcbo.kernels import REFERENCE
from mcbo.methods.config import Preset
from mcbo.report import REPORT
from mcbo.runtime import ready_kernels

ON_FAILURE = ("none", "zero")
"""What a failed pair gets: no file, or a zero displacement."""


@dataclass(frozen=True)
class Options:
    """Run-time options. Displacements depend on them only up to rounding.

    Attributes:
        output: folder of the results.
        suffix: of the displacements, ``.nii.gz``, ``.nii`` or ``.npz``.
        report_name: file name of the report in the output folder.
        movings: channels whose displacements are written; all, if empty.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        memory_gb: limit for the tensors of a case; a share of the free memory, if None.
        warped: also write the warped moving images.
        overwrite: recompute cases that an earlier run finished.
        reference: compute with plain torch instead of the compiled kernels, to compare the two.
        strict: stop after the first case in which a pair failed.
        on_failure: one of ``ON_FAILURE``.
        shard: ``(I, N)``: every Nth case from the Ith on, counted from 1; all, if None.
        workers: number of worker processes or, with a scheduler, of cases at a time; None: this process alone, or as many
            cases as the scheduler has workers.
        scheduler: address of a running Dask scheduler.
        case_timeout_s: abort a case on a worker after that many seconds.
    """

    output: Path
    suffix: str = ".nii.gz"
    report_name: str = REPORT
    movings: tuple[str, ...] = ()
    device: str = "auto"
    memory_gb: float | None = None
    warped: bool = False
    overwrite: bool = False
    reference: bool = False
    strict: bool = False
    on_failure: str = ON_FAILURE[0]
    shard: tuple[int, int] | None = None
    workers: int | None = None
    scheduler: str | None = None
    case_timeout_s: float | None = None


@dataclass(frozen=True)
class Setup:
    """What the cases that a process registers have in common. ``place`` is the output folder, if it is watched."""

    config: Preset
    options: Options
    device: torch.device
    place: Place | None = None

    def check_place(self) -> None:
        """Raises ``OutputError`` if the output folder is no longer the one in which the run began."""
        if self.place is not None:
            self.place.check()

    @property
    def kernels(self) -> Kernels:
        """The compute kernels: the fastest for the device, or the reference where the options say so."""
        return REFERENCE if self.options.reference else ready_kernels(self.device)
