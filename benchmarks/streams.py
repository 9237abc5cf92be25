"""What passes through a session's terminal and pipes, in MB/s.

    python benchmarks/streams.py [--rounds N] [--quick] [--json FILE] [--megabytes N]

Five jobs: a file that `cat` writes to a terminal, once as the terminal comes ("cooked": each newline becomes two
bytes) and once in raw mode; the same into a pipe; and, the other way, bytes sent to a program that reads its raw
terminal, or its pipe, to the end. Each time from the call that starts the program to its exit being known, with the
bytes counted: who loses one has failed.

The rival to match is trio's own `FdStream` over a bare `os.openpty` or `os.pipe`: the same kernel, the same loop,
nothing in between. `benchmarks/README.md` says how to read the tables, and `harness.py` how they are measured.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import termios
import time
import tty
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

# A script finds only its own folder. Last on the path: an installed linx_trio is the one to measure.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import command
from benchmarks.harness import Batch, Contender, Table, Target
from benchmarks.machine import NO_LINX

BLOCK = 65536  # what FdStream reads at most, and a pipe's capacity
PIECE = 1 << 20  # what is sent in one call
LINE = b"x" * 79 + b"\n"
MEMORY = Path("/dev/shm")
PATIENCE = 60.0  # seconds, of pexpect

HAVE_PEXPECT = importlib.util.find_spec("pexpect") is not None
NO_PEXPECT = None if HAVE_PEXPECT else "pexpect is not installed: pip install pexpect"


@dataclass(frozen=True, slots=True)
class Load:
    """A file of `size` bytes, all of them `LINE`s."""

    path: Path
    size: int

    @classmethod
    def write(cls, path: Path, size: int) -> Load:
        path.write_bytes(LINE * (size // len(LINE)))
        return cls(path, path.stat().st_size)

    @property
    def cooked(self) -> int:
        """How many bytes come out of a terminal that turns ``\\n`` into ``\\r\\n``."""
        return self.size + self.size // len(LINE)

    @property
    def cat(self) -> list[str]:
        return ["cat", str(self.path)]

    def swallow(self, *, terminal: bool) -> list[str]:
        """Reads as much from stdin. A terminal in raw mode has no end of the file, so it is told how much."""
        return ["sh", "-c", f"exec head -c {self.size} >/dev/null" if terminal else "exec cat >/dev/null"]


Job = Callable[[Load], Awaitable[int]]
"""Moves a load through, and returns how many bytes arrived."""


def _blocking(move: Callable[[Load], int]) -> Job:
    """A rival that knows nothing of trio; nothing else wants its loop meanwhile."""

    async def job(load: Load) -> int:
        return move(load)

    return job


# -- linx ------------------------------------------------------------------------------------------


async def _drain(stream: trio.abc.ReceiveStream) -> int:
    total = 0
    with _hangup_is_the_end():
        while data := await stream.receive_some(BLOCK):
            total += len(data)
    return total


@contextmanager
def _hangup_is_the_end() -> Iterator[None]:
    """A terminal without a program fails with EIO, which FdStream passes on and `PtyStream` does not."""
    try:
        yield
    except trio.BrokenResourceError as exc:
        if not isinstance(exc.__cause__, OSError) or exc.__cause__.errno != errno.EIO:
            raise


async def _feed(stream: trio.abc.SendStream, size: int) -> int:
    with memoryview(bytes(PIECE)) as piece:
        for start in range(0, size, PIECE):
            await stream.send_all(piece[: size - start])
    return size


async def linx_pty_out(load: Load, *, raw: bool) -> int:
    import linx_trio as linx

    async with linx.spawn(load.cat, stdio=linx.PTY) as session:
        if raw:
            tty.setraw(session.pty.fileno())
        await session.proceed()
        total = await _drain(session.pty)
        await session.wait()
    return total


async def linx_pty_in(load: Load) -> int:
    import linx_trio as linx

    async with linx.spawn(load.swallow(terminal=True), stdio=linx.PTY) as session:
        tty.setraw(session.pty.fileno())
        await session.proceed()
        total = await _feed(session.pty, load.size)
        await session.wait()
    return total


async def linx_pipe_out(load: Load) -> int:
    import linx_trio as linx

    async with linx.spawn(load.cat, stdout=linx.PIPE, auto_proceed=True) as session:
        assert session.stdout is not None
        total = await _drain(session.stdout)
        await session.wait()
    return total


async def linx_pipe_in(load: Load) -> int:
    import linx_trio as linx

    async with linx.spawn(load.swallow(terminal=False), stdin=linx.PIPE, auto_proceed=True) as session:
        assert session.stdin is not None
        total = await _feed(session.stdin, load.size)
        await session.stdin.aclose()
        await session.wait()
    return total


# -- the bare kernel: with trio, and blocking ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bare:
    """A terminal or a pipe, opened here: this side's end, the program's, and what the program's end is to it.

    As with linx, a program gets a process session of its own, and a terminal is its controlling terminal. Both show in
    the figures: the scheduler shares a busy cpu out by sessions (autogroups, sched(7)), and what is written to one's
    controlling terminal is slower by some 7 %.
    """

    ours: int
    theirs: int
    stdio: dict[str, int]

    @property
    def options(self) -> dict[str, Any]:
        """For `subprocess.Popen`, and what is like it."""
        terminal = {"preexec_fn": partial(fcntl.ioctl, 0, termios.TIOCSCTTY, 0)} if os.isatty(self.ours) else {}
        return {**self.stdio, "start_new_session": True, **terminal}


def open_terminal(raw: bool) -> Bare:
    master, slave = os.openpty()
    if raw:
        tty.setraw(slave)
    return Bare(master, slave, {"stdin": slave, "stdout": slave, "stderr": slave})


def open_pipe_out() -> Bare:
    read_end, write_end = os.pipe()
    return Bare(read_end, write_end, {"stdout": write_end})


def open_pipe_in() -> Bare:
    read_end, write_end = os.pipe()
    return Bare(write_end, read_end, {"stdin": read_end})


@asynccontextmanager
async def _trio_stream(bare: Bare, argv: list[str]) -> AsyncIterator[trio.lowlevel.FdStream]:
    async with trio.lowlevel.FdStream(bare.ours) as stream:
        process = await trio.lowlevel.open_process(argv, **bare.options)
        os.close(bare.theirs)
        yield stream
        await process.wait()


async def trio_out(load: Load, *, opened: Callable[[], Bare]) -> int:
    async with _trio_stream(opened(), load.cat) as stream:
        return await _drain(stream)


async def trio_in(load: Load, *, terminal: bool) -> int:
    opened = open_terminal(raw=True) if terminal else open_pipe_in()
    async with _trio_stream(opened, load.swallow(terminal=terminal)) as stream:
        total = await _feed(stream, load.size)
        if not terminal:
            await stream.aclose()
        return total


def blocking_out(load: Load, *, opened: Callable[[], Bare]) -> int:
    bare = opened()
    process = subprocess.Popen(load.cat, **bare.options)
    os.close(bare.theirs)
    total = 0
    with contextlib.suppress(OSError):  # EIO; anything else shows in the total
        while data := os.read(bare.ours, BLOCK):
            total += len(data)
    process.wait()
    os.close(bare.ours)
    return total


def blocking_in(load: Load, *, terminal: bool) -> int:
    bare = open_terminal(raw=True) if terminal else open_pipe_in()
    process = subprocess.Popen(load.swallow(terminal=terminal), **bare.options)
    os.close(bare.theirs)
    with open(bare.ours, "wb", buffering=0) as ours:
        total, piece = 0, memoryview(bytes(PIECE))
        while total < load.size:
            total += ours.write(piece[: load.size - total]) or 0
        if terminal:
            process.wait()  # to close it earlier would hang the program up
    process.wait()
    return total


# -- pexpect: it blocks too, and has only terminals ------------------------------------------------


@contextmanager
def _pexpect(argv: list[str], *, raw: bool, maxread: int) -> Iterator[Any]:
    """A pexpect child without the pauses that it makes for people's programs: they are no part of its speed."""
    pexpect: Any = importlib.import_module("pexpect")
    set_up = partial(tty.setraw, 0) if raw else None
    child = pexpect.spawn(argv[0], argv[1:], timeout=PATIENCE, maxread=maxread, preexec_fn=set_up)
    child.delaybeforesend = None
    child.ptyproc.delayafterclose = child.ptyproc.delayafterterminate = 0
    yield child
    child.wait()
    child.close()


def pexpect_read(load: Load, *, raw: bool, maxread: int) -> int:
    """Its counterpart of `receive_some`."""
    pexpect: Any = importlib.import_module("pexpect")
    total = 0
    with _pexpect(load.cat, raw=raw, maxread=maxread) as child, contextlib.suppress(pexpect.EOF):
        while True:
            total += len(child.read_nonblocking(maxread))
    return total


def pexpect_in(load: Load) -> int:
    total, piece = 0, bytes(PIECE)
    with _pexpect(load.swallow(terminal=True), raw=True, maxread=BLOCK) as child:
        while total < load.size:
            total += child.send(piece[: load.size - total])
    return total


# -- the tables ------------------------------------------------------------------------------------


def _moving(job: Job, load: Load, small: Load, arriving: Callable[[Load], int]) -> Batch:
    """A batch of `job`s with `load`, warmed up with `small`. Raises `RuntimeError` if bytes are missing."""

    async def checked(load: Load) -> None:
        total = await job(load)
        if total != arriving(load):
            raise RuntimeError(f"{total} bytes arrived of {arriving(load)}")

    async def batch(sessions: int, warmup: int) -> float:
        for _ in range(warmup):
            await checked(small)
        start = time.perf_counter_ns()
        for _ in range(sessions):
            await checked(load)
        return (time.perf_counter_ns() - start) / max(sessions, 1)

    return batch


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes tables of jobs out of the files that they share."""

    load: Load
    small: Load

    def table(self, key: str, title: str, linx: Job, rivals: dict[str, Job], *, cooked: bool = False) -> Table:
        """`linx` against `rivals`, of which the first is the baseline."""

        def batch(job: Job) -> Batch:
            return _moving(job, self.load, self.small, lambda load: load.cooked if cooked else load.size)

        def rival(name: str, job: Job) -> Contender:
            return Contender(name, batch(job), absent=NO_PEXPECT if name.startswith("pexpect") else None)

        ours = Contender("linx", batch(linx), Target("at least", 0.9), absent=NO_LINX, required=True)
        return Table(
            key=key,
            title=title,
            measure="throughput",
            baseline=next(iter(rivals)),
            contenders=(ours, *(rival(name, job) for name, job in rivals.items())),
            sessions=1,
            warmup=1,
            volume=self.load.size,
        )


def terminal_out(make: Maker, *, raw: bool) -> Table:
    opened = partial(open_terminal, raw)
    return make.table(
        "raw" if raw else "cooked",
        "2. out of a terminal in raw mode" if raw else "1. out of a terminal as it comes",
        partial(linx_pty_out, raw=raw),
        {
            "trio.FdStream": partial(trio_out, opened=opened),
            "os.read": _blocking(partial(blocking_out, opened=opened)),
            "pexpect": _blocking(partial(pexpect_read, raw=raw, maxread=2000)),  # its default
            "pexpect-64k": _blocking(partial(pexpect_read, raw=raw, maxread=BLOCK)),
        },
        cooked=not raw,
    )


def pipe_out(make: Maker) -> Table:
    rivals: dict[str, Job] = {
        "trio.FdStream": partial(trio_out, opened=open_pipe_out),
        "os.read": _blocking(partial(blocking_out, opened=open_pipe_out)),
    }
    return make.table("pipe", "3. out of a pipe", linx_pipe_out, rivals)


def terminal_in(make: Maker) -> Table:
    rivals: dict[str, Job] = {
        "trio.FdStream": partial(trio_in, terminal=True),
        "os.write": _blocking(partial(blocking_in, terminal=True)),
        "pexpect.send": _blocking(pexpect_in),
    }
    return make.table("raw-in", "4. into a terminal in raw mode", linx_pty_in, rivals)


def pipe_in(make: Maker) -> Table:
    rivals: dict[str, Job] = {
        "trio.FdStream": partial(trio_in, terminal=False),
        "os.write": _blocking(partial(blocking_in, terminal=False)),
    }
    return make.table("pipe-in", "5. into a pipe", linx_pipe_in, rivals)


def tables(terminals: Maker, pipes: Maker) -> list[Table]:
    return [
        terminal_out(terminals, raw=False),
        terminal_out(terminals, raw=True),
        pipe_out(pipes),
        terminal_in(terminals),
        pipe_in(pipes),
    ]


# -- the command -----------------------------------------------------------------------------------

FASTER = 4  # a pipe moves this many times as much, in less time all the same


def parse(argv: list[str] | None) -> tuple[command.Plan, int]:
    """The plan, and how many megabytes go through a terminal."""
    parser = command.parser("streams.py", "What passes through a session's terminal and pipes.", rounds=15, tables=5)
    parser.add_argument(
        "--megabytes",
        type=int,
        metavar="N",
        help="through a terminal; pipes get 4 times as much (default: 64; quick: 8)",
    )
    args = parser.parse_args(argv)
    plan = command.plan(parser, args)
    megabytes = (8 if args.quick else 64) if args.megabytes is None else args.megabytes
    if megabytes < 1:
        parser.error(f"--megabytes must be at least 1, not {megabytes}")
    nothing = Maker(Load(Path(), 0), Load(Path(), 0))
    command.refuse_unknown_names(parser, plan, tables(nothing, nothing))
    return plan, megabytes


async def benchmark(plan: command.Plan, megabytes: int, folder: Path) -> tuple[command.Report, bool]:
    """Run the tables and print them; them as JSON, and whether all of it ran."""
    small = Load.write(folder / "small", 10**6)
    terminals = Maker(Load.write(folder / "terminals", megabytes * 10**6), small)
    pipes = Maker(Load.write(folder / "pipes", FASTER * megabytes * 10**6), small)
    out: command.Report = []
    ok = True
    for part, table in enumerate(tables(terminals, pipes), start=1):
        if part in plan.parts:
            ran, all_ran = await command.run_table(plan, table)
            ok = ok and all_ran
            out += ran
    return out, ok


def main(argv: list[str] | None = None) -> int:
    plan, megabytes = parse(argv)
    memory = MEMORY if os.access(MEMORY, os.W_OK) else None  # a disk is no part of this
    with tempfile.TemporaryDirectory(prefix="linx-bench-", dir=memory) as folder:
        return command.run(plan, partial(benchmark, plan, megabytes, Path(folder)), "pexpect")


if __name__ == "__main__":
    sys.exit(main())
