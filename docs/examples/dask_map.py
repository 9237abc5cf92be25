"""A batch of programs that nobody has read, run by Dask: each in a sandbox, on whichever worker is free.

    pip install distributed
    python dask_map.py

A worker that is killed, with -9 even, takes its sandboxes with it: each has an agent that sees its Python vanish.
"""

from dask.distributed import Client, LocalCluster

import linx_trio as linx

PROGRAMS = {
    "sum": "print(sum(range(10)))",
    "greedy": "x = bytearray(1 << 34)",
    "nosy": "print(open('/etc/shadow').read())",
    "forker": "import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True); print('left one')",
}


def judge(program: str) -> linx.Completed:
    """Runs in a worker, in one of its threads."""
    sandbox = linx.sandboxed(["/usr/bin/python3", "-c", program], rlimits={"as": (1 << 30, 1 << 30), "cpu": (10, 10)})
    return linx.run_sync(sandbox, capture_stdout=True, capture_stderr=True, check=False, max_output=10_000)


def main() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster, Client(cluster) as client:
        jobs = client.map(judge, list(PROGRAMS.values()))
        for name, done in zip(PROGRAMS, client.gather(jobs), strict=True):
            last = (done.stdout + done.stderr).decode().strip().splitlines()[-1]
            print(f"{name}: {done.outcome}: {last}")


if __name__ == "__main__":  # Dask starts its workers by importing this file
    main()
