"""A Dask cluster of real processes on the loopback, and ways to hurt it; for ``test_cluster.py`` and ``cluster_check.py``."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from helpers import write_dataset, write_nifti

import process
from mcbo.core.types import Shape
from mcbo.studies.phantom import make_phantom

PATIENCE_S = 120.0
ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    # A worker that is lost is missed at once, and a scheduler that is lost not waited for.
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s",
}


class Cluster:
    """A scheduler, its workers, and a client that looks at them."""

    def __init__(self, folder: Path, workers: int) -> None:
        import distributed

        logging.getLogger("distributed.client").setLevel(logging.CRITICAL + 1)  # it would tell what is killed here at length
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        wait_until(self._file.exists)
        self.address = json.loads(self._file.read_text())["address"]
        self.workers = [
            self._start("worker", "--nthreads", "1", "--memory-limit", "0", "--host", "127.0.0.1", "--no-dashboard", number=n)
            for n in range(workers)
        ]
        self.client = distributed.Client(self.address, timeout=PATIENCE_S, set_as_default=False)
        self.client.wait_for_workers(workers, timeout=PATIENCE_S)

    def _start(self, kind: str, *options: str, number: int = 0) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dask", kind, "--scheduler-file", str(self._file), *options]
        with (self._folder / f"{kind}-{number}.log").open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRONMENT, cwd=self._folder)

    def kill_worker_in_mid_case(self) -> None:
        """Kills, by SIGKILL, the process of a worker that has a case in work; stopped first, so that it still has then."""
        for address, pid in self.client.run(os.getpid).items():
            for _ in range(200):
                os.kill(pid, signal.SIGSTOP)
                time.sleep(0.02)  # what it had finished reaches the scheduler
                if self.client.processing([address])[address]:
                    os.kill(pid, signal.SIGKILL)
                    return
                os.kill(pid, signal.SIGCONT)
                time.sleep(0.02)
        raise AssertionError("no worker had a case in work")

    def close(self) -> None:
        self.client.close(timeout=2)
        programs = (*self.workers, self.scheduler)
        kept = [child for program in programs if program.poll() is None for child in _children(program.pid)]
        for program in programs:
            program.kill()
            program.wait()
        wait_until(lambda: not any(map(_is_alive, kept)))  # what nannies keep ends soon after them, perhaps in mid-file


def _children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


def _is_alive(pid: int) -> bool:
    """Whether a process runs: one that has ended may stay in the list until its parent asks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@contextmanager
def cluster(folder: Path, workers: int = 2) -> Iterator[Cluster]:
    running = Cluster(folder, workers)
    try:
        yield running
    finally:
        running.close()


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def make_cases(folder: Path, shapes: Sequence[Shape]) -> Path:
    """A dataset of one case for each shape, 0001, 0002, …"""
    names = [f"{number:04d}" for number in range(1, len(shapes) + 1)]
    for name, shape in zip(names, shapes, strict=True):
        phantom = make_phantom(shape, seed=int(name))
        for channel, image in enumerate((phantom.fixed, phantom.cet1)):
            write_nifti(folder / "imagesTr" / f"ReMIND2Reg_{name}_000{channel}.nii.gz", image[0, 0].numpy().astype(np.int16))
    write_dataset(folder, [(f"ReMIND2Reg_{name}_0000.nii.gz", f"ReMIND2Reg_{name}_0001.nii.gz") for name in names])
    return folder


def start(data: Path, out: Path, *options: str, threads: int = 1) -> subprocess.Popen[str]:
    """``process.py`` in a process of its own."""
    command = [sys.executable, process.__file__, str(data), "--output", str(out), "--preset", "mcbo2024", "--device", "cpu"]
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=data
    )


def finish(running: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Status, stdout and stderr."""
    try:
        output, errors = running.communicate(timeout=PATIENCE_S)
    finally:
        running.kill()
    return running.returncode, output, errors


def leftovers(out: Path) -> list[str]:
    """Files that should be gone in the end."""
    return sorted(path.name for path in out.iterdir() if path.name.startswith("."))


def reported(out: Path, name: str = "report.json") -> dict[str, Any]:
    cases: dict[str, Any] = json.loads((out / name).read_text())["cases"]
    return cases
