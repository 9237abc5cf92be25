"""What a session costs: spawn to exit of a program that does nothing.

    python benchmarks/spawn.py [--rounds N] [--quick] [--json FILE]

Three jobs, each for a dynamically linked program and for a tiny static one: no namespaces one at a time, no
namespaces with 8 in flight, and fresh pid, mount, uts and ipc namespaces. `benchmarks/README.md` says how to
read the tables, and `harness.py` how they are measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import trio

# A script finds only its own folder. Last on the path: an installed linx_trio is the one to measure.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import (
    Batch,
    Contender,
    Once,
    Table,
    Target,
    as_json,
    blocking,
    in_flight,
    measure,
    missing,
    render,
    serial,
)
from benchmarks.machine import (
    CompileError,
    compile_c,
    describe,
    linkage,
    may_make_namespaces,
    stolen_seconds,
    tiny_program,
)

NAMESPACES = frozenset({"pid", "mount", "uts", "ipc"})
WIDTH = 8

HAVE_LINX = importlib.util.find_spec("linx_trio") is not None
NO_LINX = None if HAVE_LINX else "linx_trio is not importable: run `pip install .` in the source tree"


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


@dataclass(frozen=True, slots=True)
class Plan:
    rounds: int
    settle: float
    seed: int
    shrink: int
    only: tuple[str, ...]
    parts: frozenset[int]
    json: Path | None
    program: Path

    def chosen(self, table: Table) -> Table:
        """`table` with the contenders that --only names, and with the smaller batches of --quick."""
        kept = tuple(c for c in table.contenders if any(fnmatchcase(c.name, glob) for glob in self.only))
        return replace(table, contenders=kept, sessions=max(table.sessions // self.shrink, 1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spawn.py", description="What a session costs: spawn to exit of a trivial program."
    )
    add = parser.add_argument
    add("--rounds", type=int, metavar="N", help="rounds per table (default: 40; quick: 7)")
    add("--quick", action="store_true", help="few rounds of small batches")
    add("--json", type=Path, metavar="FILE", help="write every sample there too")
    add("--program", type=Path, default=Path("/bin/true"), metavar="PATH", help="default: %(default)s")
    add("--only", default="*", metavar="NAMES", help="contenders, by comma, with * and ?: 'trio.*,raw-c'")
    add("--part", type=int, action="append", choices=(1, 2, 3), help="only this table (may be repeated)")
    add("--settle", type=float, default=5.0, metavar="MS", help="pause before each batch (default: 5)")
    add("--seed", type=int, default=1, help="of the order inside the rounds (default: 1)")
    return parser


def parse(argv: list[str] | None) -> Plan:
    parser = _parser()
    args = parser.parse_args(argv)
    rounds = (7 if args.quick else 40) if args.rounds is None else args.rounds
    if rounds < 1:
        parser.error(f"--rounds must be at least 1, not {rounds}")
    if args.settle < 0:
        parser.error(f"--settle must not be negative, not {args.settle:g}")
    if not os.access(args.program, os.X_OK) or args.program.is_dir():
        parser.error(f"--program {args.program}: not an executable file")
    only = tuple(name.strip() for name in args.only.split(","))
    plan = Plan(
        rounds=rounds,
        settle=args.settle / 1e3,
        seed=args.seed,
        shrink=3 if args.quick else 1,
        only=only,
        parts=frozenset(args.part or (1, 2, 3)),
        json=args.json,
        program=args.program.absolute(),
    )
    _refuse_unknown_names(parser, plan)
    return plan


def _refuse_unknown_names(parser: argparse.ArgumentParser, plan: Plan) -> None:
    loops = Loops("not compiled yet", "not compiled yet")
    known = {c.name for table in _tables(plan, str(plan.program), loops) for c in table.contenders}
    for glob in plan.only:
        if not any(fnmatchcase(name, glob) for name in known):
            parser.error(f"--only {glob}: no such contender; there are {', '.join(sorted(known))}")


def _tables(plan: Plan, program: str, loops: Loops) -> list[Table]:
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


async def benchmark(plan: Plan, folder: Path) -> tuple[list[dict[str, object]], bool]:
    """Run the tables for each program and print them; the tables as JSON, and whether all of it ran."""
    loops = compile_loops(folder)
    programs = [(plan.program, linkage(plan.program))]
    ok = True
    try:
        programs.append(tiny_program(folder))
    except CompileError as error:
        print(f"the tiny static program is left out: {error}\n")
        ok = False
    out: list[dict[str, object]] = []
    for program, how in programs:
        name = str(plan.program) if program == plan.program else "int main(void) { return 0; }"
        print(f"== {name} ({how})\n")
        for table in map(plan.chosen, _tables(plan, str(program), loops)):
            if table.key == "namespaces" and not may_make_namespaces():
                print(f"{table.title}\n  skipped: without a user namespace these need root (CAP_SYS_ADMIN)\n")
                continue
            if not table.contenders:
                continue
            result = await measure(table, rounds=plan.rounds, settle=plan.settle, seed=plan.seed)
            ok = ok and result.ok
            out.append({"program": name, "linkage": how, **as_json(result)})
            print(render(result) + "\n", flush=True)
    return out, ok


def main(argv: list[str] | None = None) -> int:
    plan = parse(argv)
    facts = describe()
    for key, value in facts.items():
        print(f"{key:>10}  {value}")
    print(flush=True)
    stolen = stolen_seconds()
    with tempfile.TemporaryDirectory(prefix="linx-bench-") as folder:
        tables, ok = trio.run(benchmark, plan, Path(folder))
    stolen = stolen_seconds() - stolen
    print(f"cpu time stolen by the hypervisor meanwhile: {stolen:.1f} s; load now: {os.getloadavg()[0]:.2f}")
    if plan.json is not None:
        report = {"machine": facts, "seed": plan.seed, "stolen_seconds": stolen, "tables": tables}
        plan.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if not ok:
        print("something did not run: see above", file=sys.stderr)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
