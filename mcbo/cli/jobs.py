"""``process.py`` as an algorithm of grand-challenge.org: one job at its start, or one whenever the site asks."""

import os
from collections.abc import Sequence
from pathlib import Path

from mcbo.api.grand_challenge import JobOptions, prepare_job, run_job
from mcbo.api.preset import AUTO, wanted_config
from mcbo.cli.options import API_METHODS, check_choice
from mcbo.cli.program import ALL_WRITTEN, SOME_FAILED
from mcbo.cli.server import serve
from mcbo.core.errors import DeviceError, DiskSpaceError, InputError, McboError, MemoryBudgetError
from mcbo.core.log import log
from mcbo.core.types import Choice
from mcbo.dataset.sockets import INPUTS, parse_sockets
from mcbo.io.microscopy.selection import voxel_size
from mcbo.io.source import is_url, shown_url
from mcbo.methods.presets import DEFAULT_TASK
from mcbo.runs.options import ON_FAILURE, Options
from mcbo.runtime import select_device, warm_up

_SITES_CHOICE = "GRAND_CHALLENGE_COMPONENT_API_METHOD"
"""The variable by which the site tells a container what the label of its image says, ``org.grand-challenge.api-method``."""


def are_served(api_method: str | None) -> bool:
    """Whether jobs are to be done over HTTP, as the option says, else the site; raises ``InputError`` for unknown words."""
    name = _SITES_CHOICE if api_method is None else "--api-method"
    choice = api_method or os.environ.get(_SITES_CHOICE) or API_METHODS[0]
    check_choice(name, choice, API_METHODS)
    return choice == API_METHODS[1]


def find_inputs(paths: Sequence[str], *, is_served: bool) -> Path | None:
    """The ``inputs.json`` that a single path names or contains; None if there is none, which may come later where it is served.

    Raises:
        InputError: if jobs are served from anything but one folder.
    """
    if len(paths) != 1 or is_url(paths[0]):
        if is_served:
            raise InputError(f"--api-method: expected a folder for its jobs, got {' '.join(map(shown_url, paths))}")
        return None
    path = Path(paths[0])
    found = path if path.name == INPUTS else path / INPUTS
    return found if is_served or found.is_file() else None


def do_jobs(
    inputs: Path,
    options: Options,
    *,
    cases: Sequence[str],
    sockets: str | None,
    task: str | None,
    preset: str | None,
    expect: tuple[float, float] | None,
    accept: Choice | None,
    spacing: Sequence[str] | None,
    challenge_format: bool,
    trust_paths: bool,
    port: int | None,
) -> int:
    """Does the job of an ``inputs.json`` and returns the exit status; or with a port, does each that is asked for there.

    Raises:
        McboError: if it cannot be started, among others because of options that jobs do not have.
    """
    unwanted = {
        "--case": cases,
        "--moving": options.movings,
        "--shard": options.shard,
        "--workers": options.workers,
        "--scheduler": options.scheduler,
        "--warped": options.warped,
        "--on-failure": options.on_failure != ON_FAILURE[0],
    }
    if given := [name for name, value in unwanted.items() if value]:
        raise InputError(f"{', '.join(given)}: expected none, since a job of grand-challenge.org is one case with one result")
    if spacing and len(spacing) > 1:
        raise InputError(f"--spacing: expected it once, for all images of the job, got it {len(spacing)} times")
    wanted_config(preset or AUTO, task or DEFAULT_TASK, expect, accept)  # refuses unknown ones before any job
    settings = JobOptions(
        inputs=inputs,
        output=options.output,
        sockets=parse_sockets(sockets),
        task=task,
        preset=preset,
        expect=expect,
        accept=accept,
        spacing=voxel_size(spacing[0]) if spacing else None,
        device=options.device,
        memory_gb=options.memory_gb,
        challenge_suffix=options.suffix if challenge_format else None,
        trust_paths=trust_paths,
    )
    if port is None:
        return _do_job(settings)
    warm_up(select_device(options.device))  # what jobs need is in memory before the first one
    serve(lambda: ", ".join(map(str, run_job(prepare_job(settings)))), port=port)
    return ALL_WRITTEN


def _do_job(options: JobOptions) -> int:
    prepared = prepare_job(options)
    try:
        for path in run_job(prepared):
            log.info("%s", path)
    except (InputError, DeviceError, MemoryBudgetError, DiskSpaceError):
        raise
    except (McboError, MemoryError, RuntimeError) as error:  # torch reports a lack of memory as RuntimeError
        log.error("%s", error)
        return SOME_FAILED
    return ALL_WRITTEN
