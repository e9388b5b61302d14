"""How to run, as opposed to what."""

from dataclasses import dataclass
from pathlib import Path

from mcbo.report import REPORT

ON_FAILURE = ("none", "zero")
"""What a failed pair may get instead of its displacement: no file, or one of no motion."""


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what.

    Attributes:
        output: folder of the results.
        suffix: of the displacements, ``.nii.gz``, ``.nii`` or ``.npz``.
        report_name: file name of the report in the output folder.
        movings: channels whose displacements are written; all, if empty.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        memory_gb: what the tensors of a case may use; a share of what is free, if None.
        warped: also write the warped moving images.
        overwrite: do again what an earlier run has done.
        reference: compute with plain torch although there are compiled kernels, to compare the two.
        strict: stop after the first case in which a pair failed.
        on_failure: what a failed pair gets: ``none``, or a displacement of ``zero``.
        shard: ``(I, N)``: every Nth case from the Ith on, counted from 1; all, if None.
        workers: processes that cases are spread over, or how many cases a scheduler gets at a time; None: this process alone,
            or as many as the scheduler has workers.
        scheduler: address of a running Dask scheduler.
        case_timeout_s: what a case may take on a worker.
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
