"""The project's first examples of entering another process' namespaces: one test each."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import linx_trio as linx
from tests.agent.containers import map_root

NOBODY = 99999999
"""A pid beyond any ``kernel.pid_max``."""


@contextlib.asynccontextmanager
async def long_running() -> AsyncIterator[linx.Session]:
    """``sleep`` with a fresh network namespace. Root needs no more; anybody else makes a user namespace for it."""
    kinds = {"net"} if os.geteuid() == 0 else {"net", "user"}
    async with linx.spawn(["/bin/sleep", "60"], namespaces=kinds) as session:
        if "user" in kinds:
            map_root(session.host_pid)
        await session.proceed()
        yield session


def links_of(pid: int) -> int:
    """How many network links that process has; a fresh namespace may have more than ``lo`` (tunnels, by modules)."""
    return len(Path(f"/proc/{pid}/net/dev").read_text().splitlines()) - 2


async def output_of(session: linx.Session) -> str:
    assert session.stdout is not None
    return b"".join([bytes(chunk) async for chunk in session.stdout]).decode()


async def test_a_probe_inside_of_a_container() -> None:
    async with long_running() as ct:
        target_pid = ct.host_pid
        async with linx.enter(target_pid, ["/bin/sh", "-c", "ip -o link | wc -l"], stdout=linx.PIPE) as probe:
            assert probe.state == "ready"
            await probe.proceed()
            assert await probe.wait() == linx.Exited(0)
            assert await output_of(probe) == f"{links_of(target_pid)}\n"  # only what is in there
        assert [event async for event in probe.events()] == [
            linx.Ready(probe.host_pid),
            linx.Running(),
            linx.Exited(0),
        ]
        ct.signal(9)
        assert await ct.wait() == linx.Signaled(9)


async def test_every_namespace_by_default() -> None:
    """Every file under ``/proc/<target>/ns/``."""
    async with long_running() as ct, linx.enter(ct.host_pid, ["/bin/sleep", "60"]) as probe:
        await probe.proceed()
        for file in os.listdir("/proc/self/ns"):
            inside = os.readlink(f"/proc/{ct.host_pid}/ns/{file}")
            assert os.readlink(f"/proc/{probe.host_pid}/ns/{file}") == inside


async def test_narrowed_to_the_network() -> None:
    """Mounts, pids and all else stay the caller's. An ordinary user also needs the user namespace."""
    kinds = ["net"] if os.geteuid() == 0 else ["net", "user"]
    async with long_running() as ct, linx.enter(ct.host_pid, ["/bin/sleep", "60"], namespaces=kinds) as probe:
        await probe.proceed()
        for file in os.listdir("/proc/self/ns"):
            where = ct.host_pid if file in kinds else "self"
            assert os.readlink(f"/proc/{probe.host_pid}/ns/{file}") == os.readlink(f"/proc/{where}/ns/{file}")


@pytest.mark.parametrize("wait_ready", [True, False])
async def test_a_bogus_target(wait_ready: bool) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        async with linx.enter(NOBODY, ["/bin/true"], wait_ready=wait_ready) as s:
            await s.wait()
    error = raised.value
    assert isinstance(error, linx.SetupError)
    assert (error.errno, error.stage) == (2, "open_ns_user")
