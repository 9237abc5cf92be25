"""What `linx.sandbox` costs, against bubblewrap with the flags that do the same, both started from trio.

    python benchmarks/sandbox.py [--rounds N] [--quick] [--json FILE]

bubblewrap gets its arguments from the very `Workload` that the sandbox is: the same mounts in the same order, the same
namespaces, no capabilities, the same seccomp program, no nested user namespaces. Then the same without the last two,
which cost it most. `benchmarks/README.md` says how to read the table.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
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


def bubblewrap(workload: Any, *, hardened: bool) -> Once:
    arguments = ["bwrap", *_arguments(workload, hardened=hardened), "--", *PROGRAM]

    async def once() -> None:
        if not hardened:
            await trio.run_process(arguments)
            return
        program = os.memfd_create("filter", 0)
        try:
            os.write(program, workload.seccomp.program)
            os.lseek(program, 0, os.SEEK_SET)
            await trio.run_process([arguments[0], "--seccomp", str(program), *arguments[1:]], pass_fds=(program,))
        finally:
            os.close(program)

    return once


def _arguments(workload: Any, *, hardened: bool) -> Iterator[str]:
    """What of the workload bubblewrap has words for; it writes no files."""
    from linx_trio import mount

    yield from ("--unshare-user", "--unshare-all", "--new-session", "--die-with-parent", "--cap-drop", "ALL")
    yield from ("--hostname", workload.hostname, "--clearenv")
    for name, value in workload.env.items():
        yield from ("--setenv", name, value)
    if hardened:
        yield "--disable-userns"
    for entry in workload.mounts:
        match entry:
            case mount.Bind(src=src, dst=dst, readonly=readonly):
                yield from ("--ro-bind" if readonly else "--bind", cast("str", src), cast("str", dst))
            case mount.Symlink(target=target, dst=dst):
                yield from ("--symlink", cast("str", target), cast("str", dst))
            case mount.Proc(dst=dst):
                yield from ("--proc", cast("str", dst))
            case mount.Dev(dst=dst):
                yield from ("--dev", cast("str", dst))
            case mount.Tmpfs(dst=dst):
                yield from ("--tmpfs", cast("str", dst))
            case mount.Dir(dst=dst):
                yield from ("--dir", cast("str", dst))
    yield from ("--remount-ro", "/", "--chdir", str(workload.cwd))


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
            Contender("linx.sandbox", serial(linx_from_scratch()), absent=NO_LINX),
            Contender("bwrap", serial(bubblewrap(workload, hardened=True)), absent=absent, required=True),
            Contender("bwrap-less", serial(bubblewrap(workload, hardened=False)), absent=absent),
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
