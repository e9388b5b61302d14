"""What takes too long for the tests of a cluster: ``python test/manual/cluster_check.py [CHECK …]``; prints what it measured.

bits, worker, scheduler, client, timeout, throughput, thousand, overlap; all, if none is named.
"""

import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1] / "support")]

from clusters import cluster, finish, leftovers, make_cases, reported, start, wait_until  # noqa: E402
from helpers import fields  # noqa: E402

SMALL = (32, 28, 36)
MIDDLE = (96, 80, 88)
TINY = (8, 8, 8)


def alone(data: Path, out: Path) -> dict[str, str]:
    status, _, errors = finish(start(data, out))
    assert (status, errors) == (0, "")
    return fields(out)


def check_bits(folder: Path) -> None:
    data = make_cases(folder / "data", [SMALL] * 8)
    truth = alone(data, folder / "alone")
    with cluster(folder / "cluster") as running:
        status, output, errors = finish(start(data, folder / "out", "--scheduler", running.address))
    assert (status, errors) == (0, ""), errors
    assert fields(folder / "out") == truth
    workers = {entry["worker"] for entry in reported(folder / "out").values()}
    print(f"bits: {len(truth)} digests as in one process, by {len(workers)} workers")
    assert leftovers(folder / "out") == []
    assert output.count(": done, ") == 8


def check_worker(folder: Path) -> None:
    data = make_cases(folder / "data", [SMALL] * 8)
    truth = alone(data, folder / "alone")
    out = folder / "out"
    with cluster(folder / "cluster") as running:
        program = start(data, out, "--scheduler", running.address)
        wait_until(lambda: fields(out))
        running.kill_worker_in_mid_case()
        status, output, errors = finish(program)
    done = [line.split("case ")[1][:4] for line in output.splitlines() if ": done, " in line]
    assert (status, errors, sorted(done)) == (0, "", sorted(reported(out))), (status, errors, done)
    assert len(done) == 8
    assert fields(out) == truth
    print(f"worker: killed in mid-case; {len(done)} done, none twice, digests as in one process")
    assert leftovers(out) == []


def check_scheduler(folder: Path) -> None:
    data = make_cases(folder / "data", [SMALL] * 8)
    truth = alone(data, folder / "alone")
    out = folder / "out"
    with cluster(folder / "cluster") as running:
        program = start(data, out, "--scheduler", running.address)
        wait_until(lambda: len(fields(out)) >= 3)
        running.scheduler.kill()
        status, _, said = finish(program)
        assert status == 2, said
    there = len(fields(out))
    with cluster(folder / "again") as running:
        status, output, errors = finish(start(data, out, "--scheduler", running.address))
    assert (status, errors) == (0, ""), errors
    assert fields(out) == truth
    print(
        f"scheduler: killed with {there} of 8 there; resumed: {output.count('done before')} skipped, "
        f"{output.count(': done, ')} done; said: {said}"
    )
    assert output.count("done before") == there
    assert leftovers(out) == []


def check_client(folder: Path) -> None:
    data = make_cases(folder / "data", [MIDDLE] * 4)
    truth = alone(data, folder / "alone")
    out = folder / "out"
    with cluster(folder / "cluster") as running:
        program = start(data, out, "--scheduler", running.address)
        wait_until(lambda: any(running.client.processing().values()))
        time.sleep(3)
        program.send_signal(signal.SIGKILL)
        finish(program)
        wait_until(lambda: len(fields(out)) >= 2 and len(leftovers(out)) >= 2)  # workers finish what they have
        there, left = len(fields(out)), leftovers(out)
        status, output, errors = finish(start(data, out, "--scheduler", running.address))
    assert (status, errors) == (0, ""), errors
    assert fields(out) == truth
    print(
        f"client: killed; workers finished {there}, left {left}; resumed: {output.count('done before')} skipped, "
        f"{output.count(': done, ')} done; left over: {leftovers(out)}"
    )


def check_timeout(folder: Path) -> None:
    data = make_cases(folder / "data", [SMALL, (160, 150, 170), SMALL, SMALL])
    out = folder / "out"
    start_s = time.perf_counter()
    status, output, errors = finish(start(data, out, "--workers", "2", "--case-timeout", "8"))
    print(
        f"timeout: status {status} after {time.perf_counter() - start_s:.1f} s; {output.count(': done, ')} done; said: {errors}"
    )
    assert status == 2
    assert sorted(fields(out)) == [f"disp_{c}_0000_{c}_0001.nii.gz" for c in ("0001", "0003", "0004")]


def check_throughput(folder: Path) -> None:
    """Between the first and the last case of a run that is warm: the start of Python and torch is not counted."""
    data = make_cases(folder / "data", [MIDDLE] * 8)
    for attempt in range(2):
        took = {}
        for name, threads, more in (("1 process, 2 threads", 2, ()), ("2 workers, 1 thread each", 2, ("--workers", "2"))):
            out = folder / f"{name}-{attempt}"
            began = time.perf_counter()
            status, _, errors = finish(start(data, out, *more, threads=threads))
            assert (status, errors) == (0, ""), errors
            took[name] = time.perf_counter() - began
            times = [(out / file).stat().st_mtime for file in fields(out)]
            print(f"throughput: {name}: {took[name]:.1f} s in all, {max(times) - min(times):.1f} s from first to last file")
        first, second = took.values()
        print(f"throughput: ratio {first / second:.2f}")


def check_thousand(folder: Path) -> None:
    data = make_cases(folder / "data", [TINY] * 1000)
    began = time.perf_counter()
    program = start(data, folder / "alone")
    status, _, _ = finish(program)
    alone_s = time.perf_counter() - began
    out = folder / "out"
    with cluster(folder / "cluster") as running:
        began = time.perf_counter()
        program = start(data, out, "--scheduler", running.address)
        memory: list[tuple[int, int, int]] = []
        log = (folder / "output").open("w")
        assert program.stdout is not None
        count = 0
        for line in program.stdout:
            if ": done, " in line:
                count += 1
                if count in (100, 500, 990):
                    memory.append((count, resident(running.scheduler.pid), resident(program.pid)))
            log.write(line)
        cluster_status, _, errors = finish(program)
        cluster_s = time.perf_counter() - began
    assert (status, cluster_status, errors) == (0, 0, ""), errors
    assert fields(out) == fields(folder / "alone")
    entries = reported(out).values()
    busy = sum(entry["seconds"] for entry in entries)
    spent = sum(entry["seconds"] for entry in reported(folder / "alone").values())
    print(
        f"thousand: one process {alone_s:.1f} s (cases {spent:.1f} s); "
        f"scheduler and 2 workers {cluster_s:.1f} s (cases {busy:.1f} s)"
    )
    print(
        f"thousand: beside the cases, {2 * cluster_s - busy:.1f} ms of a worker's time a case, the start of the client included"
    )
    for number, scheduler, client in memory:
        print(f"thousand: after {number} cases: scheduler {scheduler / 1e6:.1f} MB, client {client / 1e6:.1f} MB")


def resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def check_overlap(folder: Path) -> None:
    """How much reading and writing hide behind computing; where both cores compute, they take their time from it."""
    data = make_cases(folder / "data", [MIDDLE] * 4)
    status, _, errors = finish(start(data, folder / "out"))
    assert (status, errors) == (0, "")
    entries = list(reported(folder / "out").values())
    for entry in entries:
        print(f"overlap: {entry['spans_s']}, waited {entry['waited_s']} s")
    hidden = sum(entry["spans_s"][step][1] - entry["spans_s"][step][0] for entry in entries for step in ("read", "write"))
    whole = entries[-1]["spans_s"]["write"][1] - entries[0]["spans_s"]["read"][0]
    print(
        f"overlap: {sum(entry['seconds'] for entry in entries):.2f} s of work in {whole:.2f} s; "
        f"reading and writing {hidden:.2f} s"
    )


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}


def main(names: list[str]) -> None:
    for name in names or CHECKS:
        with tempfile.TemporaryDirectory(prefix="mcbo-cluster-") as folder:
            CHECKS[name](Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
