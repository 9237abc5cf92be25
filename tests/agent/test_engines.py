"""Other engines: workloads that are run by Dask's workers and the standard library's, and go when those are killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import descendants_of, eventually, name_of, processes, stat_of

ROOT = Path(__file__).parents[2]


def environment(path: Path) -> dict[str, str]:
    """In which Python finds this package, and Dask a directory for its files."""
    here = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    return {**os.environ, "PYTHONPATH": here, "DASK_TEMPORARY_DIRECTORY": str(path)}


needs_dask = pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="distributed is not installed")

# Both cancel a workload from afar, by an event of theirs. Then they print the pid of the process that runs the next
# one, run it there, and say what came of it. That workload has a child in a session of its own.
WORKLOAD = 'linx.Workload(["/bin/sh", "-c", "setsid sleep 1000 & exec sleep 1001"])'
DASK = f"""
import dask, linx_trio as linx
from dask.distributed import Client, Event, LocalCluster

if __name__ == "__main__":
    dask.config.set({{"distributed.scheduler.allowed-failures": 0}})  # once killed, it is not tried again
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        stop = Event("stop")
        job = client.submit(linx.run_sync, ["/bin/sleep", "1002"], cancel=stop)
        stop.set()
        print(type(job.exception()).__name__, flush=True)
        (worker,) = client.run(__import__("os").getpid).values()
        print(worker, flush=True)
        print(type(client.submit(linx.run_sync, {WORKLOAD}).exception()).__name__)
"""
PROCESS_POOL = f"""
import multiprocessing, os, linx_trio as linx
from concurrent.futures import ProcessPoolExecutor

if __name__ == "__main__":
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        stop = multiprocessing.Manager().Event()
        job = pool.submit(linx.run_sync, ["/bin/sleep", "1002"], cancel=stop)
        stop.set()
        print(type(job.exception()).__name__, flush=True)
        print(pool.submit(os.getpid).result(), flush=True)
        print(type(pool.submit(linx.run_sync, {WORKLOAD}).exception()).__name__)
"""


@contextmanager
def running(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Python, with that program, for at most as long as the block."""
    with (
        open(path.with_suffix(".err"), "w") as errors,
        subprocess.Popen(
            [sys.executable, path.name],
            cwd=path.parent,
            env=environment(path.parent),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            # If all is well it has ended. If not: not one process more than its own session has may be left.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def below(pid: int) -> list[int]:
    """All its descendants, whichever of its threads has started them."""
    first = [child for child in processes() if (fields := stat_of(child)) and int(fields[1]) == pid]
    return [*first, *(other for child in first for other in descendants_of(child))]


def started(pid: int) -> tuple[int, str]:
    """A process, as nobody else will ever be called."""
    fields = stat_of(pid)
    return pid, fields[19] if fields else ""


@pytest.mark.parametrize(
    ("program", "error"),
    [pytest.param(DASK, "KilledWorker", marks=needs_dask), (PROCESS_POOL, "BrokenProcessPool")],
    ids=["dask", "ProcessPoolExecutor"],
)
def test_a_worker_killed_with_9_takes_its_workloads_with_it(tmp_path: Path, program: str, error: str) -> None:
    path = tmp_path / "main.py"
    path.write_text(program)
    with running(path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "CancelledError\n"
        worker = int(process.stdout.readline())

        def sleepers() -> list[int]:
            return [pid for pid in below(worker) if name_of(pid) == "sleep"]

        eventually(lambda: len(sleepers()) == 2, "the workload runs, and its child")
        family = [started(pid) for pid in below(worker)]
        assert len(family) >= 4  # zygote, monitor, and the two
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: not [one for one in family if started(one[0]) == one], "nothing of it is left")
        assert process.stdout.read().strip() == error, path.with_suffix(".err").read_text()
        assert process.wait() == 0


@needs_dask
def test_the_example_of_dask_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs/examples/dask_map.py"],
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [line.rpartition(": ")[::2] for line in done.stdout.splitlines()] == [
        ("sum: Exited(code=0)", "45"),
        ("greedy: Exited(code=1)", "MemoryError"),
        ("nosy: Exited(code=1): FileNotFoundError: [Errno 2] No such file or directory", "'/etc/shadow'"),
        ("forker: Exited(code=0)", "left one"),
    ]
