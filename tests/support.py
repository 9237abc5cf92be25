"""What the tests of every lane share: waiting for conditions, cancelling at any moment, looking at processes."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from linx_trio import _agent

DEADLINE = 60.0
"""Seconds for things that take milliseconds: these machines are slow and noisy, and a hang must still end."""

TOKEN = "LINX_TEST_TOKEN"
"""The environment variable by which a test's processes are recognised, wherever they have gone."""


def eventually(condition: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
    """Returns as soon as `condition` is true; fails, saying `what`, when it has not become so in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds} s: {what}"
        time.sleep(0.005)


async def eventually_async(condition: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
    """The same inside trio."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds} s: {what}"
        await trio.sleep(0.005)


@asynccontextmanager
async def cancelled_after(turns: int) -> AsyncIterator[trio.CancelScope]:
    """The block is cancelled when trio has gone round so often, if it has not ended by then; whether that was so is
    the scope's `cancelled_caught`.
    """

    async def cancel_then() -> None:
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    with trio.CancelScope() as scope:
        if turns < 1:
            scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_then)
            yield scope
            nursery.cancel_scope.cancel()


def stat_of(pid: int) -> list[str] | None:
    """The fields of ``/proc/<pid>/stat`` behind the name: state, ppid, pgrp, session, …; `None` if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def exists(pid: int) -> bool:
    """Whether there is such a process, a zombie included."""
    return stat_of(pid) is not None


def name_of(pid: int) -> str:
    """Its name (``comm``), empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children_of(pid: int) -> list[int]:
    """Its direct children, zombies included, whichever of its threads has started them, the main thread's first; of a
    zygote's, all that have something to do with a session.
    """
    found = []
    for thread in sorted(_threads_of(pid), key=lambda tid: (tid != pid, tid)):
        with suppress(FileNotFoundError, ProcessLookupError):
            found += [int(child) for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split()]
    found = list(dict.fromkeys(found))  # a thread that ends meanwhile leaves its own to another one
    if name_of(pid) != "linx-zygote":
        return found
    # The monitors that it has in spare, which have its zygote's name for a moment, and none once they are gone.
    return [child for child in found if name_of(child) not in ("linx-spare", "linx-zygote", "")]


def _threads_of(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):
        return []


def descendants_of(pid: int) -> list[int]:
    found = children_of(pid)
    for child in found:  # grows while it is walked
        found.extend(children_of(child))
    return found


def open_fds() -> set[int]:
    """This process' fds, but for those that stay open between sessions, of which there are now more and now less."""
    return {int(name) for name in os.listdir("/proc/self/fd")} - _agent.kept_fds()


def processes() -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            yield int(name)


def with_token(token: str) -> list[int]:
    """All processes of this machine whose environment has the token: also those that escaped from their session."""
    needle = f"{TOKEN}={token}".encode()
    found = []
    for pid in processes():
        try:
            if needle in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(pid)
        except OSError:
            pass  # gone, or somebody else's
    return found


def monitor_of(host_pid: int) -> int:
    """The monitor of the session whose workload this is."""
    fields = stat_of(host_pid)
    assert fields is not None
    parent = int(fields[1])
    assert name_of(parent) == "linx-monitor"
    return parent
