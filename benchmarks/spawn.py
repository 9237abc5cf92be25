"""What a session costs: spawn to exit of a program that does nothing.

    python benchmarks/spawn.py [--rounds N] [--quick] [--json FILE]

Three jobs, each for a dynamically linked program and for a tiny static one: no namespaces one at a time, no
namespaces with 8 in flight, and fresh pid, mount, uts and ipc namespaces. `benchmarks/README.md` says how to
read the tables, and `harness.py` how they are measured.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

# A script finds only its own folder. Last on the path: an installed linx_trio is the one to measure.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import command
from benchmarks.harness import Batch, Contender, Once, Table, Target, blocking, in_flight, missing, serial
from benchmarks.machine import NO_LINX, CompileError, compile_c, linkage, may_make_namespaces, tiny_program

NAMESPACES = frozenset({"pid", "mount", "uts", "ipc"})
WIDTH = 8


# -- the rivals: each takes a program and returns what one session of it is ------------------------


def linx_run(program: str, namespaces: frozenset[str] = frozenset()) -> Once:
    async def once() -> None:
        import linx_trio as linx

        await linx.run([program], namespaces=namespaces)

    return once


def linx_spawn(program: str) -> Once:
    async def once() -> None:
        import linx_trio as linx

        async with linx.spawn([program], auto_proceed=True) as session:
            await session.wait()
        _expect_success(session.returncode)

    return once


def linx_checkpoint(program: str, namespaces: frozenset[str] = frozenset()) -> Once:
    """The checkpoint as it is meant to be used: the body gets the parked workload, and releases it."""

    async def once() -> None:
        import linx_trio as linx

        async with linx.spawn([program], namespaces=namespaces) as session:
            await session.proceed()
            await session.wait()
        _expect_success(session.returncode)

    return once


def trio_run_process(*argv: str) -> Once:
    async def once() -> None:
        await trio.run_process(argv)

    return once


def trio_open_process(program: str) -> Once:
    """The leanest that trio offers: without run_process's pipe for stdin, and without its nursery."""

    async def once() -> None:
        _expect_success(await (await trio.lowlevel.open_process([program])).wait())

    return once


def subprocess_run(program: str) -> Batch:
    return blocking(lambda: subprocess.run([program], check=True))


def raw_c(loop: Path, *argv: str) -> Batch:
    """The C loop times itself, so neither its own start nor Python is in the figure."""
    options, program = argv[:-1], argv[-1]

    async def batch(sessions: int, warmup: int) -> float:
        command = [str(loop), *options, str(sessions), str(warmup), program]
        done = await trio.run_process(command, capture_stdout=True)
        return float(done.stdout.split()[-1])  # after whatever the program itself wrote

    return batch


def _expect_success(returncode: int | None) -> None:
    if returncode != 0:
        raise RuntimeError(f"the program ended with return code {returncode}")


# -- the tables ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loops:
    """The compiled raw loop: as `cc` links by default, and static. A path, or why there is none."""

    plain: Path | str
    static: Path | str


def _linx(name: str, batch: Batch, target: Target | None = None) -> Contender:
    return Contender(name, batch, target, absent=NO_LINX, required=True)


def _raw(name: str, loop: Path | str, *argv: str, required: bool = False) -> Contender:
    if isinstance(loop, str):
        return Contender(name, missing, absent=loop, required=required)
    return Contender(name, raw_c(loop, *argv))


def _tool(name: str, *argv: str) -> Contender:
    absent = None if shutil.which(name) else "not installed"
    return Contender(name, serial(trio_run_process(name, *argv)), absent=absent)


def one_at_a_time(program: str, loops: Loops) -> Table:
    target = Target("at most", 1.3)
    return Table(
        key="serial",
        title="1. no namespaces, one at a time",
        measure="time",
        baseline="trio.run_process",
        contenders=(
            _linx("linx.run", serial(linx_run(program)), target),
            _linx("linx.spawn-auto", serial(linx_spawn(program)), target),
            _linx("linx.spawn", serial(linx_checkpoint(program))),
            Contender("trio.run_process", serial(trio_run_process(program))),
            Contender("trio.open_process", serial(trio_open_process(program))),
            Contender("subprocess.run", subprocess_run(program)),
            _raw("raw-c", loops.plain, program),
        ),
    )


def many_in_flight(program: str) -> Table:
    target = Target("at least", 1.2)
    return Table(
        key="parallel",
        title=f"2. no namespaces, {WIDTH} in flight",
        measure="rate",
        baseline="trio.run_process",
        contenders=(
            _linx("linx.run", in_flight(linx_run(program), WIDTH), target),
            _linx("linx.spawn-auto", in_flight(linx_spawn(program), WIDTH), target),
            Contender("trio.run_process", in_flight(trio_run_process(program), WIDTH)),
            Contender("trio.open_process", in_flight(trio_open_process(program), WIDTH)),
        ),
        sessions=10 * WIDTH,
        warmup=WIDTH,
    )


def with_namespaces(program: str, loops: Loops) -> Table:
    target = Target("at most", 2.1)
    # bwrap always makes a mount namespace and a new root; binding all of / is the least it can do.
    whole_tree = ("--dev-bind", "/", "/")
    return Table(
        key="namespaces",
        title="3. fresh pid, mount, uts and ipc namespaces, one at a time",
        measure="time",
        baseline="raw-c",
        contenders=(
            _linx("linx.spawn", serial(linx_checkpoint(program, NAMESPACES)), target),
            _linx("linx.run", serial(linx_run(program, NAMESPACES)), target),
            _raw("raw-c", loops.plain, "--namespaces", program, required=True),
            _raw("raw-c-static", loops.static, "--namespaces", program),
            _tool("unshare", "--pid", "--mount", "--uts", "--ipc", "--fork", program),
            _tool("bwrap", "--unshare-pid", "--unshare-uts", "--unshare-ipc", *whole_tree, program),
        ),
    )


# -- the command -----------------------------------------------------------------------------------


def parse(argv: list[str] | None) -> tuple[command.Plan, Path]:
    """The plan, and the program that is not the tiny one."""
    parser = command.parser(
        "spawn.py", "What a session costs: spawn to exit of a trivial program.", rounds=40, tables=3
    )
    parser.add_argument("--program", type=Path, default=Path("/bin/true"), metavar="PATH", help="default: %(default)s")
    args = parser.parse_args(argv)
    plan = command.plan(parser, args)
    if not os.access(args.program, os.X_OK) or args.program.is_dir():
        parser.error(f"--program {args.program}: not an executable file")
    loops = Loops("not compiled yet", "not compiled yet")
    command.refuse_unknown_names(parser, plan, _tables(plan, str(args.program), loops))
    return plan, args.program.absolute()


def _tables(plan: command.Plan, program: str, loops: Loops) -> list[Table]:
    tables = (one_at_a_time(program, loops), many_in_flight(program), with_namespaces(program, loops))
    return [table for part, table in enumerate(tables, start=1) if part in plan.parts]


def compile_loops(folder: Path) -> Loops:
    source = Path(__file__).with_name("raw_clone3.c")

    def build(name: str, *flags: str) -> Path | str:
        try:
            return compile_c(source, folder / name, *flags)
        except CompileError as error:
            return f"not compiled: {error}"

    return Loops(build("raw_clone3"), build("raw_clone3_static", "-static"))


async def benchmark(plan: command.Plan, chosen: Path, folder: Path) -> tuple[command.Report, bool]:
    """Run the tables for each program and print them; the tables as JSON, and whether all of it ran."""
    loops = compile_loops(folder)
    programs = [(chosen, linkage(chosen))]
    ok = True
    try:
        programs.append(tiny_program(folder))
    except CompileError as error:
        print(f"the tiny static program is left out: {error}\n")
        ok = False
    out: command.Report = []
    for program, how in programs:
        name = str(program) if program == chosen else "int main(void) { return 0; }"
        print(f"== {name} ({how})\n")
        for table in _tables(plan, str(program), loops):
            if table.key == "namespaces" and not may_make_namespaces():
                print(f"{table.title}\n  skipped: without a user namespace these need root (CAP_SYS_ADMIN)\n")
                continue
            ran, all_ran = await command.run_table(plan, table)
            ok = ok and all_ran
            out += [{"program": name, "linkage": how, **row} for row in ran]
    return out, ok


def main(argv: list[str] | None = None) -> int:
    plan, program = parse(argv)
    with tempfile.TemporaryDirectory(prefix="linx-bench-") as folder:
        return command.run(plan, partial(benchmark, plan, program, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
