"""Containers to enter: a process in fresh namespaces of every kind, whose user namespace has a root. Anybody can make
one.

An entered process' own pid is not the one that the host knows it by, and before it has executed something nobody but
root may look into it. So what belongs to a session is told by descent: from this process' zygotes down.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import linx_trio as linx
from linx_trio import _agent
from tests.support import children_of, descendants_of, name_of, stat_of

KINDS = frozenset(member.value for member in linx.Namespace)

REAPING_INIT = ["env", "--ignore-signal=CHLD", "sleep", "100000"]
"""What ignores SIGCHLD need not wait for its children, the adopted ones among them (``wait(2)``)."""


def map_root(pid: int, count: int = 1) -> None:
    """Root inside is who we are outside; with root, `count` ids are mapped to themselves."""
    Path(f"/proc/{pid}/setgroups").write_text("deny" if os.geteuid() else "allow")
    Path(f"/proc/{pid}/uid_map").write_text(f"0 {os.geteuid()} {count}")
    Path(f"/proc/{pid}/gid_map").write_text(f"0 {os.getegid()} {count}")


@contextlib.asynccontextmanager
async def parked_container(kinds: Iterable[str] = KINDS, count: int = 1) -> AsyncIterator[linx.Session]:
    """One whose init has not run yet."""
    hostname = "inner" if "uts" in set(kinds) else None
    async with linx.spawn(REAPING_INIT, namespaces=kinds, hostname=hostname, stdio=linx.DEVNULL, env={}) as session:
        if "user" in set(kinds):
            map_root(session.host_pid, count)
        yield session


@contextlib.asynccontextmanager
async def container(kinds: Iterable[str] = KINDS, count: int = 1) -> AsyncIterator[linx.Session]:
    """A running one."""
    async with parked_container(kinds, count) as session:
        await session.proceed()
        yield session
        assert session.state in ("running", "signaled")


def below() -> set[int]:
    """Everything that this process' sessions consist of: monitors, reapers, workloads and what descends from them, in
    containers too.
    """
    return {pid for zygote in _agent.current() for pid in descendants_of(zygote.pid)}


def reapers_of(host_pid: int) -> list[int]:
    """Those above a workload that has entered a PID namespace, the nearest first."""
    found: list[int] = []
    pid = parent_of(host_pid)
    while name_of(pid) == "linx-reaper":
        found.append(pid)
        pid = parent_of(pid)
    assert name_of(pid) == "linx-monitor"
    assert found
    return found


def monitor_above(host_pid: int) -> int:
    """The monitor of a session, whatever is between the two."""
    pid = parent_of(host_pid)
    while name_of(pid) == "linx-reaper":
        pid = parent_of(pid)
    assert name_of(pid) == "linx-monitor"
    return pid


def parent_of(pid: int) -> int:
    fields = stat_of(pid)
    assert fields is not None, f"there is no process {pid}"
    return int(fields[1])


def is_untouched(target: linx.Session) -> bool:
    """It runs, and nothing has been left to it."""
    return target.state == "running" and not children_of(target.host_pid)
