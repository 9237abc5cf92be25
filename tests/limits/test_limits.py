"""Limits that the kernel really enforces: on a machine that has the controllers, as the one of ``make test-vm``."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import linx_trio as linx
from linx_trio.cgroup import Cgroup
from tests.limits.groups import SECONDS, needs_controllers, own_groups
from tests.support import eventually, eventually_async

pytestmark = [needs_controllers, pytest.mark.usefixtures("no_group_is_left")]

EATER = "b'x' * (256 << 20)"
"""Python that wants 256 MiB, and touches them."""

EAT = [sys.executable, "-c", EATER]
EAT_IN_A_CHILD = ["sh", "-c", 'sleep 600 & "$0" -c "$1"; echo $?; exec sleep 600', sys.executable, EATER]
NO_SWAP = 0 if Path("/proc/swaps").read_text().count("\n") > 1 else None
"""So that it is killed rather than swapped out."""
FORKS = """
import os, sys
made = 0
try:
    for _ in range(40):
        if os.fork() == 0:
            os.read(0, 1)
            os._exit(0)
        made += 1
except OSError as exc:
    print(made, exc.errno, flush=True)
"""
BUSY = ["sh", "-c", "while :; do :; done"]


def text(group: Cgroup, file: str) -> str:
    return Path(group.path, file).read_text().strip()


@pytest.fixture
def no_group_is_left(nothing_is_left: str) -> Iterator[None]:
    yield
    eventually(lambda: not own_groups(), f"no group is left: {own_groups()}", 30)


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"namespaces": {"pid"}, "init": True}], ids=["plain", "init"])
async def test_killed_for_want_of_memory(options: dict[str, Any]) -> None:
    done = await linx.run(EAT, limits=linx.Limits(memory="64M", swap=NO_SWAP), check=False, **options)
    assert done.outcome == linx.Signaled(9)
    assert done.usage is not None
    assert done.usage.oom_killed is True
    assert done.usage.memory_peak is None or 32 << 20 < done.usage.memory_peak <= 65 << 20


async def test_not_killed() -> None:
    done = await linx.run([sys.executable, "-c", "b'x' * (32 << 20)"], limits=linx.Limits(memory="128M"))
    assert done.usage is not None
    assert done.usage.oom_killed is False
    assert done.usage.memory_peak is None or 32 << 20 < done.usage.memory_peak <= 128 << 20


async def test_the_whole_workload_goes(nothing_is_left: str) -> None:
    async with linx.spawn(EAT_IN_A_CHILD, limits=linx.Limits(memory="64M", swap=NO_SWAP), auto_proceed=True) as s:
        with trio.fail_after(SECONDS):
            assert await s.wait() == linx.Signaled(9)
        assert s.usage is not None
        assert s.usage.oom_killed is True
        assert s.cgroup is not None
        with trio.fail_after(SECONDS):
            await s.cgroup.wait_empty()


async def test_or_one_process_of_it() -> None:
    limits = linx.Limits(memory="64M", oom_group=False, swap=NO_SWAP)
    async with linx.spawn(EAT_IN_A_CHILD, limits=limits, stdout=linx.PIPE, auto_proceed=True) as s:
        assert s.stdout is not None
        with trio.fail_after(SECONDS):
            assert await s.stdout.receive_some() == b"137\n"
        assert s.state == "running"
        assert s.cgroup is not None
        assert s.cgroup.stats().oom_kills == 1


async def test_the_whole_group_of_an_entered_workload() -> None:
    """With its reapers, which are there for want of a PID namespace of its own."""
    async with linx.spawn(["sleep", "600"], namespaces={"pid"}, auto_proceed=True) as target:
        limits = linx.Limits(memory="64M", swap=NO_SWAP)
        async with linx.enter(target, EAT, limits=limits, auto_proceed=True) as s:
            with trio.fail_after(SECONDS):
                assert await s.wait() == linx.Signaled(9)
            assert s.usage is not None
            assert s.usage.oom_killed is True
        assert target.state == "running"


async def test_a_sandbox() -> None:
    argv = ["python3" if sys.prefix == "/usr" else "sh", "-c", EATER]
    if argv[0] == "sh":  # whatever /usr has: a shell that doubles a string
        argv[2] = 'x=0123456789abcdef; while :; do x="$x$x"; done'
    async with linx.sandbox(argv, limits=linx.Limits(memory="64M", pids=16, swap=NO_SWAP), auto_proceed=True) as s:
        with trio.fail_after(SECONDS):
            assert await s.wait() == linx.Signaled(9)
        assert s.usage is not None
        assert s.usage.oom_killed is True


async def test_events_tell_of_it() -> None:
    made = Cgroup.create("linx-test", limits=linx.Limits(memory="64M", swap=NO_SWAP))
    async with made as group, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: linx.run(EAT, cgroup=group, check=False))
        with trio.fail_after(SECONDS):
            async for state in group.events():
                if state.oom_kills:
                    break


# ---- pids ------------------------------------------------------------------------------------------------------------


async def test_forks_are_refused() -> None:
    limits = linx.Limits(pids=8)
    async with linx.spawn(
        [sys.executable, "-c", FORKS], limits=limits, stdin=linx.PIPE, stdout=linx.PIPE, auto_proceed=True
    ) as s:
        assert s.stdout is not None
        with trio.fail_after(SECONDS):
            assert await s.stdout.receive_some() == b"7 %d\n" % errno.EAGAIN
        assert s.cgroup is not None
        assert s.cgroup.stats().pids_denied == 1


async def test_a_group_that_is_full() -> None:
    async with Cgroup.create("linx-test") as group, linx.spawn(["sleep", "600"], cgroup=group):
        group.set_pids_max(1)
        with pytest.raises(linx.SetupError) as full:
            await linx.run(["true"], cgroup=group)
        assert (full.value.errno, full.value.stage) == (errno.EAGAIN, "clone")
        assert "pids.max" in str(full.value.hint)
        assert group.stats().pids == 1


# ---- cpu, and the rest -----------------------------------------------------------------------------------------------


async def test_throttled() -> None:
    async with linx.spawn(BUSY, limits=linx.Limits(cpu=0.2), auto_proceed=True) as s:
        group = s.cgroup
        assert group is not None
        assert text(group, "cpu.max") == "20000 100000"
        await eventually_async(lambda: (group.stats().throttled_periods or 0) >= 3, "it is held up", SECONDS)
        stats = group.stats()
        assert stats.throttled_time is not None
        assert stats.throttled_time > 0
        group.set_cpu_max("max")
        group.set_cpu_weight(50)


async def test_every_limit_is_taken() -> None:
    limits = linx.Limits(memory="512M", memory_high="400M", pids=64, cpu=1.5, cpu_weight=50, cpuset=[0])
    async with linx.spawn(["true"], limits=limits) as s:
        assert s.cgroup is not None
        written = {
            file: text(s.cgroup, file)
            for file in (
                "memory.max",
                "memory.high",
                "memory.oom.group",
                "pids.max",
                "cpu.max",
                "cpu.weight",
                "cpuset.cpus",
            )
        }
        assert written == {
            "memory.max": str(512 << 20),
            "memory.high": str(400 << 20),
            "memory.oom.group": "1",
            "pids.max": "64",
            "cpu.max": "150000 100000",
            "cpu.weight": "50",
            "cpuset.cpus": "0",
        }
        stats = s.cgroup.stats()
        assert stats.pids == 1
        assert stats.memory is not None
        assert stats.memory > 0
