"""What `linx.sandbox` costs, against bubblewrap with the flags that do the same, both started from trio.

    python benchmarks/sandbox.py [--rounds N] [--quick] [--json FILE]

bubblewrap gets its arguments from the very `Workload` that the sandbox is: the same mounts, masks and files in the same
order, the same namespaces, no capabilities, the same seccomp program, no nested user namespaces. Then with less of it.
`benchmarks/README.md` says how to read the table.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import trio

# A script finds only its own folder. Last on the path: an installed linx_trio is the one to measure.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import command
from benchmarks.harness import Contender, Once, Table, Target, serial
from benchmarks.machine import NO_LINX

PROGRAM = ["true"]


def linx_run(workload: Any) -> Once:
    async def once() -> None:
        import linx_trio as linx

        await linx.run(workload)

    return once


def linx_from_scratch() -> Once:
    """The description is made and checked each time, too."""

    async def once() -> None:
        import linx_trio as linx

        async with linx.sandbox(PROGRAM, auto_proceed=True) as session:
            await session.wait()

    return once


def bubblewrap(workload: Any, *, hardened: bool = True, masked: bool = True) -> Once:
    """Files and the filter are written once, into memory, and read from their beginning each time."""
    fds: list[int] = []

    def file_of(data: bytes) -> str:
        fd = os.memfd_create("bwrap", 0)
        os.write(fd, data)
        fds.append(fd)
        return str(fd)

    arguments = ["bwrap"]
    if hardened:
        arguments += ["--disable-userns", "--seccomp", file_of(workload.seccomp.program)]
    arguments += [*_arguments(workload, file_of, masked=masked), "--", *PROGRAM]

    async def once() -> None:
        for fd in fds:
            os.lseek(fd, 0, os.SEEK_SET)
        await trio.run_process(arguments, pass_fds=tuple(fds))

    return once


def _arguments(workload: Any, file_of: Callable[[bytes], str], *, masked: bool) -> Iterator[str]:
    """The workload in bubblewrap's words. For a limit, such as that of core dumps, it has none."""
    yield from ("--unshare-user", "--unshare-all", "--new-session", "--die-with-parent", "--cap-drop", "ALL")
    yield from ("--hostname", workload.hostname, "--clearenv")
    for name, value in workload.env.items():
        yield from ("--setenv", name, value)
    for entry in workload.mounts:
        yield from _mount(entry, file_of, masked=masked)
    yield from ("--remount-ro", "/", "--chdir", str(workload.cwd))


def _mount(entry: Any, file_of: Callable[[bytes], str], *, masked: bool) -> Iterator[str]:
    from linx_trio import mount

    match entry:
        case mount.Bind(src=src, dst=dst, readonly=readonly):
            yield from ("--ro-bind" if readonly else "--bind", cast("str", src), cast("str", dst))
        case mount.Symlink(target=target, dst=dst):
            yield from ("--symlink", cast("str", target), cast("str", dst))
        case mount.Proc(dst=dst, readonly=readonly):
            yield from ("--proc", cast("str", dst))
            if readonly and masked:
                yield from ("--remount-ro", cast("str", dst))
        case mount.Dev(dst=dst):
            yield from ("--dev", cast("str", dst))
            if masked:
                yield from ("--perms", "1777", "--tmpfs", os.path.join(cast("str", dst), "shm"))
        case mount.Tmpfs(dst=dst, mode=mode):
            yield from ("--perms", f"{mode or 0o755:o}", "--tmpfs", cast("str", dst))
        case mount.Dir(dst=dst):
            yield from ("--dir", cast("str", dst))
        case mount.File(dst=dst, data=data) if masked:
            content = data.encode() if isinstance(data, str) else data
            yield from ("--perms", "0644", "--file", file_of(content), cast("str", dst))
        case _ if masked and entry.kind == "mask" and os.path.isdir(entry.dst):
            yield from ("--tmpfs", entry.dst, "--remount-ro", entry.dst)
        case _ if masked and entry.kind == "mask" and os.path.exists(entry.dst):
            yield from ("--dev-bind", "/dev/null", entry.dst)


def table() -> Table:
    import linx_trio as linx

    workload = linx.sandboxed(PROGRAM)
    absent = None if shutil.which("bwrap") else "bwrap is not installed"
    target = Target("at most", 0.5)
    return Table(
        key="sandbox",
        title="a full sandbox, one at a time",
        measure="time",
        baseline="bwrap",
        contenders=(
            Contender("linx.run", serial(linx_run(workload)), target, absent=NO_LINX, required=True),
            Contender("linx.sandbox", serial(linx_from_scratch()), target, absent=NO_LINX),
            Contender("bwrap", serial(bubblewrap(workload)), absent=absent, required=True),
            Contender("bwrap-unmasked", serial(bubblewrap(workload, masked=False)), absent=absent),
            Contender("bwrap-less", serial(bubblewrap(workload, hardened=False, masked=False)), absent=absent),
        ),
    )


async def benchmark(plan: command.Plan) -> tuple[command.Report, bool]:
    return await command.run_table(plan, table())


def main(argv: list[str] | None = None) -> int:
    parser = command.parser(
        "sandbox.py", "What a sandbox costs: start to exit of a trivial program.", rounds=40, tables=1
    )
    plan = command.plan(parser, parser.parse_args(argv))
    command.refuse_unknown_names(parser, plan, [table()])
    version = subprocess.run(["bwrap", "--version"], capture_output=True, text=True) if shutil.which("bwrap") else None
    print(f"{'bwrap':>10}  {version.stdout.strip() if version else 'not installed'}")
    return command.run(plan, partial(benchmark, plan), "pyseccomp")


if __name__ == "__main__":
    sys.exit(main())
