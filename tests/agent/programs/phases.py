"""Brings a session into each phase of its life, and holds it there: for tests and for the Pythons that they kill.

starting    the agent waits for the second half of a long request (it goes out when trio gets to it)
parked      at the checkpoint
proceeding  past the checkpoint, but stopped (SIGSTOP) short of execve(2)
running     a family that ignores every signal (see family.py)
ended       the family's leader is gone, the rest of it is not
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import trio
import trio.testing

import linx_trio as linx
from linx_trio import _agent
from tests.support import DEADLINE, eventually, eventually_async, stat_of

PROGRAMS = Path(__file__).parent
PHASES = ("starting", "parked", "proceeding", "running", "ended")

SHAPES = ("child", "grandchild", "session", "daemon", "chain", "orphans", "reaper", "sibling", "stopped", "busy")
FAMILY = ("immune", "child", "grandchild", "session", "daemon", "orphans", "reaper", "stopped")

_MORE_THAN_A_SOCKET_HOLDS = ["x" * 120_000] * 8


def script(name: str, *arguments: str) -> list[str]:
    """The argv of one of the programs here that need nothing but Python itself."""
    return [sys.executable, "-I", "-S", str(PROGRAMS / name), *arguments]


def family(*words: str) -> list[str]:
    """The argv of a family (see family.py)."""
    return script("family.py", *words)


def argv_for(phase: str, words: Sequence[str] = FAMILY) -> list[str]:
    """What `spawn_in` runs."""
    match phase:
        case "starting":
            return ["true", *_MORE_THAN_A_SOCKET_HOLDS]
        case "ended":
            return family("leaderless", *words)
    return family(*words)


def spawn_in(phase: str, words: Sequence[str] = FAMILY, **options: Any) -> AbstractAsyncContextManager[linx.Session]:
    """A session that `reach` can bring into that phase."""
    return linx.spawn(argv_for(phase, words), wait_ready=phase != "starting", stdout=linx.PIPE, **options)


async def reach(session: linx.Session, phase: str) -> list[int]:
    """Brings it there. Returns the pids of the session's processes, the workload's own first (none while starting)."""
    match phase:
        case "starting":
            assert session.state == "starting"
            return []
        case "parked":
            assert session.state == "ready"
            return [session.host_pid]
        case "proceeding":
            await stop(session.host_pid)
            await send_proceed(session)
            assert session.state == "ready"
            return [session.host_pid]
    await session.proceed()
    pids = await members(session)
    if phase == "ended":
        assert await session.wait() == linx.Exited(3)
        del pids[0]
    return pids


def zygote() -> int:
    """The pid of the zygote that the last session was started by."""
    return _agent.current()[-1].pid


def lone_zygote() -> int:
    """The same, without spares: so it has to start the next session's monitor itself."""
    while (spare := _agent.current()[-1].take_spare()) is not None:
        spare.close()
    return zygote()


# ---- fork loops ------------------------------------------------------------------------------------------------------

UNUSED_UID = 40000 + os.getpid() % 20000
"""Nobody. Another one in each run of the tests: they count this user's processes."""
ROOM = 40
"""Processes that a fork loop may have."""


def threads_of(uid: int) -> int:
    """What counts against the user's RLIMIT_NPROC."""
    count = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        except OSError:
            continue
        if int(fields["Uid"].split()[0]) == uid:
            count += int(fields["Threads"])
    return count


def bomb_options() -> tuple[str, dict[str, tuple[int, int]]]:
    """The user that a bomb becomes, and its limits. Root has none, so there the bomb becomes somebody else."""
    root = os.geteuid() == 0
    limit = threads_of(UNUSED_UID if root else os.getuid()) + ROOM
    return str(UNUSED_UID if root else -1), {"nproc": (limit, limit)}


# ---- moving on -------------------------------------------------------------------------------------------------------


async def members(session: linx.Session) -> list[int]:
    """The pids that a family announces on its standard output."""
    return [int(pid) for pid in (await line_of(session)).split()]


async def line_of(session: linx.Session) -> str:
    """The next line of its standard output, which is a pipe."""
    assert session.stdout is not None
    line = b""
    with trio.fail_after(DEADLINE):
        while not line.endswith(b"\n"):
            chunk = await session.stdout.receive_some(1)
            assert chunk, f"it ended in the middle of a line: {line!r}"
            line += chunk
    return line.decode()


async def stop(pid: int) -> None:
    """SIGSTOP; returns when it has taken effect."""
    os.kill(pid, signal.SIGSTOP)
    await eventually_async(lambda: state_of(pid) == "T", f"{pid} is stopped")


def stop_now(pid: int) -> None:
    """The same without giving trio a chance to do anything meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: state_of(pid) == "T", f"{pid} is stopped")


def state_of(pid: int) -> str:
    """``R S D T Z …`` as in proc(5), or nothing."""
    fields = stat_of(pid)
    return fields[0] if fields is not None else ""


async def send_proceed(session: linx.Session) -> None:
    """Says proceed without waiting for what comes of it."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.proceed)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
