"""The options ``cgroup`` and ``limits``: where a workload is born, what is left of it, and that its own group goes with
it, whoever is killed.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import trio

import linx_trio as linx
from linx_trio import _own_cgroup
from linx_trio.cgroup import Cgroup
from tests.agent.programs.phases import zygote
from tests.privileged.groups import MOUNTS, groups, is_there, needs_v2
from tests.privileged.groups import as_before as as_before
from tests.support import DEADLINE, eventually, eventually_async, exists, monitor_of, with_token

pytestmark = [needs_v2, pytest.mark.usefixtures("as_before")]

SLEEP = ["sleep", "600"]
FAMILY = ["sh", "-c", "sleep 600 & (setsid sleep 600 &) ; echo; exec sleep 600"]
LEAVER = ["sh", "-c", "sleep 600 & (setsid sleep 600 &) ; exit 3"]
WHERE = ["sed", "-n", "s/^0:://p", "/proc/self/cgroup"]
LIMITS = linx.Limits()
ROOT = Path(__file__).parent.parent.parent


def path_of(session: linx.Session) -> str:
    assert session.cgroup is not None
    return session.cgroup.path


# ---- where it is born ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("auto_proceed", [False, True])
async def test_born_in_a_group(auto_proceed: bool) -> None:
    async with Cgroup.create("linx-test") as group:
        for given in (group, group.path, group.name, group.path.encode()):
            async with linx.spawn(SLEEP, cgroup=given, auto_proceed=auto_proceed) as s:
                assert group.members() == [s.host_pid]
                assert path_of(s) == group.path
                assert s.containment == "subreaper"  # others may live there
            assert group.members() == []
        done = await linx.run(WHERE, cgroup=group, capture_stdout=True)
        assert done.stdout == f"/{group.name}\n".encode()
        assert done.usage is not None
        assert done.usage.oom_killed is None


async def test_born_in_a_group_of_its_own() -> None:
    paths = set()
    async with linx.spawn(SLEEP, limits=LIMITS) as one, linx.spawn(SLEEP, limits=LIMITS) as other:
        for s in (one, other):
            assert s.containment == s.info().containment == "cgroup"
            assert s.cgroup is not None
            assert s.cgroup.members() == [s.host_pid]
            paths.add(s.cgroup.path)
    assert len(paths) == 2
    assert [path for path in paths if is_there(path)] == []
    assert one.outcome == other.outcome == linx.Aborted()


async def test_below_a_given_group() -> None:
    async with Cgroup.create("linx-test") as group, linx.spawn(SLEEP, cgroup=group, limits=LIMITS) as s:
        assert os.path.dirname(path_of(s)) == group.path


async def test_in_a_cgroup_namespace_it_is_the_root() -> None:
    for namespaces, init in (({"cgroup"}, False), ({"cgroup", "pid"}, True)):
        done = await linx.run(WHERE, limits=LIMITS, capture_stdout=True, namespaces=namespaces, init=init)
        assert done.stdout == b"/\n"


def test_run_sync_and_workloads() -> None:
    workload = linx.Workload(WHERE, limits=LIMITS)
    for again in (workload, linx.Workload.from_dict(json.loads(json.dumps(workload.to_dict())))):
        done = linx.run_sync(again, capture_stdout=True)
        assert done.stdout.startswith(b"/linx.")
        assert not is_there(MOUNTS[0] + done.stdout.decode().strip())


async def test_a_sandbox() -> None:
    async with linx.sandbox(SLEEP, limits=LIMITS, auto_proceed=True) as s:
        assert s.containment == "pidns"
        path = path_of(s)
        assert s.host_pid in s.cgroup.members()  # type: ignore[union-attr]
    assert not is_there(path)


# ---- what is refused, and what is given up ---------------------------------------------------------------------------

IMPOSSIBLE = linx.Limits(io={"/dev/null": {"rbps": 1}}, hugetlb={"64KB": 0})


@pytest.mark.parametrize("options", [{"limits": IMPOSSIBLE}, {"cgroup": "linx-none"}])
async def test_refused_or_given_up(options: dict[str, Any]) -> None:
    for wait_ready in (True, False):
        with pytest.raises(linx.SetupError) as refused:
            async with linx.spawn(SLEEP, wait_ready=wait_ready, **options):
                pass
        assert refused.value.stage == "cgroup"
        assert refused.value.hint
    async with linx.spawn(SLEEP, optional=set(options), **options) as s:
        assert s.info().degraded == tuple(options)
        assert s.cgroup is None
        assert s.containment == "subreaper"
    with pytest.raises(linx.SetupError):
        await linx.run(["true"], optional={"nice"}, **options)


@pytest.mark.parametrize(
    ("optional", "degraded"),
    [({"limits"}, ("limits",)), ({"limits", "cgroup"}, ("limits",)), ({"cgroup"}, None), (set(), None)],
)
async def test_no_more_is_given_up_than_has_to_be(optional: set[str], degraded: tuple[str, ...] | None) -> None:
    async with Cgroup.create("linx-test") as group:
        spawning = linx.spawn(SLEEP, cgroup=group, limits=IMPOSSIBLE, optional=optional)
        if degraded is None:
            with pytest.raises(linx.SetupError):
                await spawning.__aenter__()
            return
        async with spawning as s:
            assert s.info().degraded == degraded
            assert group.members() == [s.host_pid]


async def test_a_program_that_is_not_there_leaves_no_group() -> None:
    before = groups()
    for auto_proceed in (False, True):
        with pytest.raises(FileNotFoundError):
            async with linx.spawn(["/no/such"], limits=LIMITS, auto_proceed=auto_proceed) as s:
                await s.proceed()
    with pytest.raises(linx.SetupError):
        await linx.run(["true"], limits=LIMITS, cwd="/no/such")
    assert groups() == before


async def test_a_destroyed_group() -> None:
    async with Cgroup.create("linx-test") as group:
        pass
    with pytest.raises(ValueError, match="destroyed"):
        await linx.run(["true"], cgroup=group)
    async with Cgroup.create("linx-test") as group:
        os.rmdir(group.path)
        with pytest.raises(linx.SetupError) as gone:
            await linx.run(["true"], cgroup=group)
        assert (gone.value.errno, gone.value.stage, gone.value.filename) == (errno.ENOENT, "cgroup", group.path)
        assert "has been removed" in str(gone.value.hint)


# ---- its end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("namespaces", [set(), {"pid"}])
@pytest.mark.parametrize("init", [False, True])
async def test_leaving_the_block(nothing_is_left: str, namespaces: set[str], init: bool) -> None:
    if init and not namespaces:
        return
    options: dict[str, Any] = {"namespaces": namespaces, "init": init, "limits": LIMITS, "stdout": linx.PIPE}
    async with linx.spawn(FAMILY, **options) as s:
        await s.proceed()
        assert s.stdout is not None
        await s.stdout.receive_some()
        await eventually_async(lambda: len(with_token(nothing_is_left)) >= 3, "the whole family is there")
        path = path_of(s)
    assert with_token(nothing_is_left) == []
    assert not is_there(path)
    assert s.outcome == linx.Signaled(9)


async def test_what_a_workload_left_behind(nothing_is_left: str) -> None:
    async with linx.spawn(LEAVER, limits=LIMITS, auto_proceed=True) as s:
        assert await s.wait() == linx.Exited(3)
        path = path_of(s)
        assert s.cgroup is not None
        assert s.cgroup.stats().populated
    assert with_token(nothing_is_left) == []
    assert not is_there(path)
    assert s.outcome == linx.Exited(3)


async def test_kill_reaches_all_of_it(nothing_is_left: str) -> None:
    async with linx.spawn(FAMILY, limits=LIMITS, stdout=linx.PIPE, auto_proceed=True) as s:
        assert s.stdout is not None
        await s.stdout.receive_some()
        s.kill()
        assert await s.wait() == linx.Signaled(9)
        assert s.cgroup is not None
        with trio.fail_after(DEADLINE):
            await s.cgroup.wait_empty()
        assert with_token(nothing_is_left) == []
        assert is_there(path_of(s))  # for its numbers, until the block is left


async def test_kill_is_for_the_group() -> None:
    """Also for who is there and no descendant."""
    async with linx.spawn(SLEEP, auto_proceed=True) as guest, linx.spawn(SLEEP, limits=LIMITS, auto_proceed=True) as s:
        assert s.cgroup is not None
        s.cgroup.add(guest)
        s.kill()
        with trio.fail_after(DEADLINE):
            assert await guest.wait() == linx.Signaled(9)
            assert await s.wait() == linx.Signaled(9)


async def test_a_grace_is_kept() -> None:
    polite = ["sh", "-c", "trap 'exit 7' TERM; echo; while :; do sleep 0.05; done"]
    async with linx.spawn(polite, limits=LIMITS, stdout=linx.PIPE, shutdown=linx.Kill(60), auto_proceed=True) as s:
        assert s.stdout is not None
        await s.stdout.receive_some()
    assert s.outcome == linx.Exited(7)


async def test_a_fork_bomb(nothing_is_left: str) -> None:
    bomb = ["sh", "-c", "f() { sleep 600 & f & wait; }; ulimit -u 150; f"]
    async with linx.spawn(bomb, limits=LIMITS, uid=40322, gid=40322, stderr=linx.DEVNULL, auto_proceed=True) as s:
        await eventually_async(lambda: len(with_token(nothing_is_left)) > 60, "it has grown")
        path = path_of(s)
    assert with_token(nothing_is_left) == []
    assert not is_there(path)


async def test_frozen_at_its_end() -> None:
    async with linx.spawn(FAMILY, limits=LIMITS, stdout=linx.PIPE, auto_proceed=True) as s:
        assert s.cgroup is not None
        s.cgroup.freeze()
        await s.cgroup.wait_frozen()
        path = path_of(s)
    assert s.outcome == linx.Signaled(9)
    assert not is_there(path)


async def test_groups_that_were_made_inside() -> None:
    async with linx.spawn(SLEEP, limits=LIMITS, auto_proceed=True) as s:
        os.makedirs(f"{path_of(s)}/a/b")
        with Cgroup.open(f"{path_of(s)}/a/b") as below:
            below.add(s)
        path = path_of(s)
    assert not is_there(path)


async def test_its_numbers_are_read_before_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """However the workload ends, and also where that is the leaving of the block."""
    real = _own_cgroup.Placement.memory_peak
    seen = []

    def memory_peak(placement: _own_cgroup.Placement) -> int | None:
        seen.append(is_there(placement.group.path))
        return real(placement)

    monkeypatch.setattr(_own_cgroup.Placement, "memory_peak", memory_peak)
    for _ in range(10):
        await linx.run(["true"], limits=LIMITS)
        async with linx.spawn(["true"], limits=LIMITS, auto_proceed=True):
            pass
        async with linx.spawn(SLEEP, limits=LIMITS, auto_proceed=True):
            pass
    assert seen == [True] * 30


async def test_a_cancelled_run() -> None:
    before = groups()
    with trio.move_on_after(0.1):
        await linx.run(FAMILY, limits=LIMITS, stdout=linx.DEVNULL)
    assert groups() == before


async def test_many_at_once() -> None:
    before = groups()
    async with trio.open_nursery() as nursery:
        for _ in range(25):
            nursery.start_soon(lambda: linx.run(["sh", "-c", "sleep 600 & true"], limits=LIMITS))
    assert groups() == before


# ---- enter -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("namespaces", [{"uts"}, {"pid"}, {"pid", "user", "mount"}])
async def test_entering(namespaces: set[str]) -> None:
    async with (
        Cgroup.create("linx-test") as group,
        linx.spawn(SLEEP, namespaces=namespaces, auto_proceed=True) as target,
    ):
        async with linx.enter(target, FAMILY, limits=LIMITS, stdout=linx.PIPE, auto_proceed=True) as s:
            assert s.stdout is not None
            await s.stdout.receive_some()
            assert s.cgroup is not None
            assert s.host_pid in s.cgroup.members()
            path = path_of(s)
        assert not is_there(path)
        assert s.outcome == linx.Signaled(9)
        async with linx.enter(target, SLEEP, cgroup=group, auto_proceed=True) as s:
            assert s.host_pid in group.members()
        assert exists(target.host_pid)


@pytest.mark.parametrize("how", ["enter", "init", "plain"])
async def test_the_whole_group_killed_by_somebody_else(how: str) -> None:
    """As the kernel does it for want of memory: with the reapers, which could have said how the workload ended."""
    async with linx.spawn(SLEEP, namespaces={"pid"}, auto_proceed=True) as target:
        own: dict[str, Any] = {"limits": LIMITS, "stdout": linx.PIPE, "auto_proceed": True}
        start: dict[str, Callable[[], AbstractAsyncContextManager[linx.Session]]] = {
            "enter": lambda: linx.enter(target, FAMILY, **own),
            "init": lambda: linx.spawn(FAMILY, namespaces={"pid"}, init=True, **own),
            "plain": lambda: linx.spawn(FAMILY, **own),
        }
        async with start[how]() as s:
            assert s.stdout is not None
            await s.stdout.receive_some()
            assert s.cgroup is not None
            path = path_of(s)
            s.cgroup.kill()
            with trio.fail_after(DEADLINE):
                assert await s.wait() == linx.Signaled(9)
        assert not is_there(path)


# ---- who dies, and what follows --------------------------------------------------------------------------------------

VICTIM = """
import os, sys
import trio
import linx_trio as linx
from linx_trio import _agent

FAMILY = ["sh", "-c", "sleep 600 & (setsid sleep 600 &) ; exec sleep 600"]
WORKLOADS = {"ended": ["true"], "left": ["sh", "-c", "sleep 600 & exit 0"], "lingering": ["cat"]}

async def main():
    what = sys.argv[1]
    options = {"namespaces": {"pid"}} if what == "pidns" else {}
    if what == "lingering":
        options = {"orphan_policy": linx.LINGER, "stdin": 0}
    async with linx.spawn(WORKLOADS.get(what, FAMILY), limits=linx.Limits(), **options) as s:
        if what != "parked":
            await s.proceed()
        if what in ("ended", "left"):
            await s.wait()
        print(s.cgroup.path, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.parametrize("what", ["parked", "running", "ended", "left", "pidns"])
def test_python_is_killed(what: str, nothing_is_left: str) -> None:
    with subprocess.Popen([sys.executable, "-c", VICTIM, what], stdout=subprocess.PIPE, cwd=ROOT) as python:
        assert python.stdout is not None
        path = python.stdout.readline().decode().strip()
        assert is_there(path)
        python.kill()
    eventually(lambda: not with_token(nothing_is_left), "no process is left")
    eventually(lambda: not is_there(path), f"{path} is gone")


def test_python_is_killed_and_the_workload_lingers() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", VICTIM, "lingering"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as python:
        assert python.stdout is not None
        assert python.stdin is not None
        path = python.stdout.readline().decode().strip()
        python.kill()
        python.wait(DEADLINE)
        with Cgroup.open(path) as group:
            (lingering,) = group.members()
            assert Path(f"/proc/{lingering}/comm").read_text() == "cat\n"
        python.stdin.close()
        eventually(lambda: not is_there(path), f"{path} is gone")


@pytest.mark.parametrize("who", ["monitor", "both"])
async def test_the_agent_is_killed(who: str, nothing_is_left: str) -> None:
    """Without a zygote what is double-forked was out of reach; the group still has it."""
    async with linx.spawn(FAMILY, limits=LIMITS, stdout=linx.PIPE, auto_proceed=True) as s:
        assert s.stdout is not None
        await s.stdout.receive_some()
        path, monitor = path_of(s), monitor_of(s.host_pid)
        if who == "both":
            os.kill(zygote(), signal.SIGSTOP)
            os.kill(monitor, signal.SIGKILL)
            os.kill(zygote(), signal.SIGKILL)
        else:
            os.kill(monitor, signal.SIGKILL)
        with pytest.raises(linx.AgentDied):
            await s.wait()
    eventually(lambda: not with_token(nothing_is_left), "no process is left")
    assert not is_there(path)


async def test_what_a_dead_python_could_not_remove_is_swept_up() -> None:
    namespace = os.stat("/proc/self/ns/pid").st_ino
    mine = _own_cgroup._start_of(os.getpid())
    dead, alive = f"linx.{namespace}.{os.getpid()}.1.7", f"linx.{namespace}.{os.getpid()}.{mine}.999999"
    others = f"linx.{namespace + 1}.{os.getpid()}.1.7"
    async with Cgroup.create("linx-sweep") as group:  # once for each place
        for name in (dead, alive, others):
            os.mkdir(f"{group.path}/{name}")
        async with linx.spawn(["true"], cgroup=group, limits=LIMITS) as s:
            assert set(os.listdir(group.path)) & {dead, alive, others} == {alive, others}
            assert is_there(path_of(s))
