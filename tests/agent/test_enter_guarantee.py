"""What enters a container is gone when its block is left, and the container is as it was.

The container has a PID namespace, so its init would inherit what is orphaned in there: that must never happen. What has
not executed anything yet has no token in its environment, so processes are told by descent (containers.py).
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio

import linx_trio as linx
from tests.agent.containers import below, container, is_untouched, monitor_above, reapers_of
from tests.agent.probes import ROOT, link, status_of
from tests.agent.programs.phases import (
    FAMILY,
    PHASES,
    SHAPES,
    argv_for,
    bomb_options,
    family,
    line_of,
    reach,
    script,
    stop,
    zygote,
)
from tests.support import children_of, eventually_async, exists, name_of, open_fds, with_token

CAP_KILL = f"{1 << 5:016x}"
SOON = 8.0
"""Seconds in which a block is left, also where the agent's own processes have to be killed for it."""


class Boom(Exception):
    pass


@pytest.fixture
async def target() -> AsyncIterator[linx.Session]:
    async with container() as session:
        await eventually_async(lambda: name_of(session.host_pid) == "sleep", "its init has settled")
        yield session


def enter_in(target: Any, phase: str, **options: Any) -> AbstractAsyncContextManager[linx.Session]:
    """A session that `reach` can bring into that phase."""
    return linx.enter(target, argv_for(phase), wait_ready=phase != "starting", stdout=linx.PIPE, **options)


ENDS: dict[str, tuple[linx.Outcome, bool]] = {  # what became of it, and whether it ran
    "starting": (linx.Aborted(), False),
    "parked": (linx.Aborted(), False),
    "proceeding": (linx.Signaled(9), False),
    "running": (linx.Signaled(9), True),
    "ended": (linx.Exited(3), True),
}


# ---- who does not want to go -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("leader", ["leaderless", "leader"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_no_descendant_outlives_the_block(
    target: linx.Session, shape: str, leader: str, nothing_is_left: str
) -> None:
    before = below()
    words = [shape, "immune", *({leader} & {"leaderless"})]
    async with linx.enter(target, family(*words), stdout=linx.PIPE) as s:
        await s.proceed()
        await line_of(s)
        if leader == "leaderless":
            assert await s.wait() == linx.Exited(3)
        assert with_token(nothing_is_left)
        started = time.monotonic()
    assert below() == before
    assert time.monotonic() - started < SOON
    assert s.outcome == (linx.Exited(3) if leader == "leaderless" else linx.Signaled(9))
    assert is_untouched(target)


@pytest.mark.parametrize("kinds", [{"user", "net"}, {"user", "mount", "uts"}, set()])
async def test_without_a_pid_namespace(target: linx.Session, kinds: set[str]) -> None:
    before = below()
    async with linx.enter(target, family("leaderless", "immune", *SHAPES), namespaces=kinds, stdout=linx.PIPE) as s:
        await s.proceed()
        await line_of(s)
        assert await s.wait() == linx.Exited(3)
    assert below() == before
    assert is_untouched(target)


@pytest.mark.parametrize("kind", ["fork", "comet"])
async def test_what_never_stops_forking(kind: str) -> None:
    uid, rlimits = bomb_options()
    async with container(count=65536 if os.geteuid() == 0 else 1) as target:
        before = below()
        async with linx.enter(target, script("bomb.py", kind, uid), rlimits=rlimits, stdout=linx.PIPE) as s:
            await s.proceed()
            await line_of(s)
            started = time.monotonic()
        assert below() == before
        assert time.monotonic() - started < SOON
        assert is_untouched(target)


async def test_what_is_never_the_same_process_for_long(target: linx.Session) -> None:
    """Each forks and ends at once, so that nobody whom one has just heard of is still there."""
    chain = "import os\nprint(flush=True)\nfor _ in range(4): os.fork()\nwhile True:\n if os.fork(): os._exit(0)"
    before = below()
    async with linx.enter(target, [sys.executable, "-c", chain], stdout=linx.PIPE) as s:
        await s.proceed()
        await line_of(s)
        started = time.monotonic()
    assert below() == before
    assert time.monotonic() - started < SOON
    assert not children_of(target.host_pid)
    assert is_untouched(target)


async def test_what_an_intruder_of_its_own_leaves_does_not_hold_it_back(target: linx.Session) -> None:
    """A workload outside of a PID namespace sends a child into one, and that one's parent is killed. The orphan is the
    monitor's, and is no reaper: nobody waits for it to clear up.
    """
    before = below()
    nsenter = f"nsenter -p -t {target.host_pid} -- sleep 100000 & echo $!; sleep 100000"
    async with linx.enter(target, ["sh", "-c", nsenter], namespaces={"user", "net"}, stdout=linx.PIPE) as s:
        await s.proceed()
        pid = int(await line_of(s))
        await eventually_async(lambda: len(children_of(pid)) == 1, "it is in there")
        (orphan,) = children_of(pid)
        os.kill(pid, signal.SIGKILL)
        await eventually_async(lambda: orphan in children_of(monitor_above(s.host_pid)), "it is the monitor's")
        started = time.monotonic()
    assert below() == before
    assert time.monotonic() - started < 1.0 + SOON / 8
    assert is_untouched(target)


# ---- ways to leave, in each phase ------------------------------------------------------------------------------------


async def leave(target: linx.Session, phase: str, how: str) -> linx.Session:
    async with enter_in(target, phase) as s:
        await reach(s, phase)
        if how == "exception":
            raise Boom(s)
        if how == "kill":
            s.kill()
            await s.wait()
    return s


@pytest.mark.parametrize("how", ["normally", "exception", "cancelled", "kill"])
@pytest.mark.parametrize("phase", PHASES)
async def test_leaving(target: linx.Session, phase: str, how: str) -> None:
    before = below()
    if how == "exception":
        with pytest.raises(Boom) as caught:
            await leave(target, phase, how)
        assert not hasattr(caught.value, "__notes__")
        (s,) = caught.value.args
    elif how == "cancelled":
        with trio.CancelScope() as scope:
            async with enter_in(target, phase) as s:
                await reach(s, phase)
                scope.cancel()
                await trio.sleep_forever()
    else:
        s = await leave(target, phase, how)
    assert below() == before
    assert (s.outcome, s.ran) == ENDS[phase]
    assert is_untouched(target)


@pytest.mark.parametrize("wait_ready", [True, False])
async def test_abort(target: linx.Session, wait_ready: bool) -> None:
    before = below()
    async with linx.enter(target, ["true"], wait_ready=wait_ready) as s:
        await s.abort()
        assert s.outcome == linx.Aborted()
        await eventually_async(lambda: below() == before, "it is reaped, its reapers too")
        with pytest.raises(linx.NoProcess):
            await s.proceed()
    assert is_untouched(target)


async def test_entering_is_cancelled(target: linx.Session) -> None:
    """At any moment of it."""
    before = below()
    for microseconds in range(0, 4000, 100):
        with trio.move_on_after(microseconds / 1e6):
            async with linx.enter(target, family("immune", "daemon"), auto_proceed=True):
                pass
        assert below() == before
    assert is_untouched(target)


# ---- the target goes first -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["parked", "proceeding", "running", "ended"])
async def test_the_target_ends(phase: str) -> None:
    """All of its PID namespace is killed by the kernel, reapers and all. That is the workload's end, no trouble of the
    agent's.
    """
    before = below()
    async with container() as target, enter_in(target, phase) as s:
        await reach(s, phase)
        target.kill()
        with trio.fail_after(SOON):
            outcome = await s.wait()
            assert await target.wait() == linx.Signaled(9)
        assert outcome == (linx.Exited(3) if phase == "ended" else linx.Signaled(9))
        assert s.ran is (phase in ("running", "ended"))
        assert (linx.Running() in [event async for event in s.events()]) is s.ran
        await eventually_async(lambda: below() - before <= {monitor_pid(s)}, "nothing of either is left")
    assert below() == before


def monitor_pid(session: linx.Session) -> int:
    """The one child that the zygote has."""
    return next(iter(children_of(zygote())), 0)


async def test_the_target_ends_while_it_is_being_entered() -> None:
    """Then entering fails, with an error that says where; or it has succeeded just before."""
    for microseconds in range(0, 3000, 250):
        async with container() as target, trio.open_nursery() as nursery:

            async def end(target: linx.Session = target, after: float = microseconds / 1e6) -> None:
                await trio.sleep(after)
                target.kill()

            nursery.start_soon(end)
            try:
                async with linx.enter(target, ["sleep", "100000"]) as s:
                    with trio.fail_after(SOON):
                        assert await s.wait() in (linx.Signaled(9), linx.Aborted())
            except linx.SetupError as exc:
                assert exc.stage.startswith(("open_ns_", "setns_", "clone"))  # noqa: PT017
            except linx.NoProcess:
                pass
        assert below() == set()


# ---- the agent is killed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("which", ["inner", "outer"])
async def test_a_reaper_is_killed(target: linx.Session, which: str, stopped: bool) -> None:
    """There are two, so that one can go. The other one clears up, even if somebody has stopped it."""
    before = below()
    async with linx.enter(target, family(*FAMILY), stdout=linx.PIPE) as s:
        await s.proceed()
        await line_of(s)
        reapers = reapers_of(s.host_pid)
        assert len(reapers) == 2
        if stopped:
            await stop(reapers[which == "inner"])
        os.kill(reapers[which == "outer"], signal.SIGKILL)
        if not stopped:
            await eventually_async(s_has_ended(s), "the workload goes with it")
            await eventually_async(lambda: len(below() - before) <= 1, "and all the rest")
        started = time.monotonic()
    assert time.monotonic() - started < SOON
    await eventually_async(lambda: below() == before, "nothing is left")
    assert is_untouched(target)
    assert s.state in ("failed", "signaled")


def s_has_ended(session: linx.Session) -> Callable[[], bool]:
    return lambda: session.state in ("failed", "signaled")


async def test_nothing_is_to_be_had_of_a_reaper(target: linx.Session) -> None:
    """Whoever in there can take it over, which needs CAP_SYS_PTRACE outside, has no rights by it, and no way out: no
    /proc but the one inside, of which nothing can be written.
    """
    async with linx.enter(target, ["sleep", "600"]) as s:
        await s.proceed()
        for pid in reapers_of(s.host_pid):
            await eventually_async(lambda pid=pid: status_of(pid)["Seccomp"] == "2", "it has got there")  # type: ignore[misc]
            status = status_of(pid)
            assert (status["CapPrm"], status["CapEff"], status["CapInh"]) == (CAP_KILL, CAP_KILL, "0" * 16)
            assert status["NoNewPrivs"] == "1"
            if os.geteuid() == 0:
                links = {link(pid, f"fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
                assert not any(stat.S_ISDIR(os.stat(each).st_mode) for each in links if each.startswith("/proc")), links


async def test_all_reapers_are_stopped(target: linx.Session) -> None:
    """As by ``kill -STOP -1`` in the container."""
    before = below()
    async with linx.enter(target, family(*FAMILY), stdout=linx.PIPE) as s:
        await s.proceed()
        await line_of(s)
        for pid in reapers_of(s.host_pid):
            await stop(pid)
        started = time.monotonic()
    assert time.monotonic() - started < SOON
    assert s.outcome == linx.Signaled(9)
    assert below() == before
    assert is_untouched(target)


@pytest.mark.parametrize("phase", ["parked", "proceeding", "running", "ended"])
@pytest.mark.parametrize("stopped", [False, True])
async def test_the_monitor_is_killed(target: linx.Session, phase: str, stopped: bool) -> None:
    before = below()
    async with enter_in(target, phase) as s:
        await reach(s, phase)
        monitor = next(iter(below() - before & set(children_of(zygote()))))
        if stopped and phase != "ended":
            for pid in reapers_of(s.host_pid):
                await stop(pid)
        os.kill(monitor, signal.SIGKILL)
        if phase != "ended":
            with pytest.raises(linx.AgentDied) as caught:
                await s.wait()
            assert caught.value.exit_status == -9
    assert below() == before
    assert is_untouched(target)


async def test_the_zygote_is_killed(target: linx.Session) -> None:
    """Sessions go on without it."""
    async with linx.enter(target, family(*FAMILY), stdout=linx.PIPE) as s:
        await s.proceed()
        await line_of(s)
        entered = [s.host_pid, *reapers_of(s.host_pid), monitor_above(s.host_pid)]
        os.kill(zygote(), signal.SIGKILL)
        async with linx.enter(target, ["true"]) as other:
            await other.proceed()
            assert await other.wait() == linx.Exited(0)
        assert s.state == "running"
    assert s.outcome == linx.Signaled(9)
    await eventually_async(lambda: not any(map(exists, entered)), "its monitor has ended too")
    assert is_untouched(target)


# ---- Python is killed ------------------------------------------------------------------------------------------------

ENTERER = """
import json, sys, trio
import linx_trio as linx
from tests.agent.containers import reapers_of
from tests.agent.programs.phases import family
async def main(target, policy):
    policies = {"kill": linx.Kill(), "linger": linx.LINGER}
    async with linx.enter(target, ["sh", "-c", sys.argv[3]], stdin=0, orphan_policy=policies[policy]) as s:
        if sys.argv[4] == "run":
            await s.proceed()
        print(json.dumps([s.host_pid, *reapers_of(s.host_pid)]), flush=True)
        await trio.sleep_forever()
trio.run(main, int(sys.argv[1]), sys.argv[2])
"""

DAEMONS = "trap '' TERM; (setsid sleep 100000 &); (setsid setsid sleep 100000 &)"


@pytest.mark.parametrize(
    ("policy", "phase"), [("kill", "park"), ("kill", "run"), ("linger", "park"), ("linger", "run")]
)
async def test_python_is_killed(target: linx.Session, policy: str, phase: str, nothing_is_left: str) -> None:
    code = f"{DAEMONS}; read line; exit 5" if policy == "kill" else "read line; sleep 0.1; exit 5"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    python = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", ENTERER, str(target.host_pid), policy, code, phase],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    with python:
        assert python.stdout is not None
        assert python.stdin is not None
        pids = json.loads(python.stdout.readline())
        assert all(map(exists, pids))
        python.kill()
        python.wait()
        if (policy, phase) == ("linger", "run"):
            assert all(map(exists, pids)), "it is left running"
            python.stdin.close()  # its end of file is the workload's end
        await eventually_async(lambda: not any(map(exists, pids)), "nothing of it is left")
        await eventually_async(lambda: not with_token(nothing_is_left), "nor of what it has left behind")
    await eventually_async(lambda: is_untouched(target), "the target is as it was")


# ---- many ------------------------------------------------------------------------------------------------------------


async def test_fifty_at_once(target: linx.Session) -> None:
    before = below()
    codes: list[int | None] = []

    async def one(number: int) -> None:
        async with linx.enter(target, ["sh", "-c", f"setsid sleep 100000 & exit {number}"]) as s:
            await s.proceed()
            await s.wait()
        codes.append(s.returncode)

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(one, number)
    assert sorted(code for code in codes if code is not None) == list(range(50))
    assert below() == before
    assert is_untouched(target)


async def test_two_hundred_in_a_row(target: linx.Session) -> None:
    before = below()
    fds = None
    for number in range(200):
        async with linx.enter(target, ["sh", "-c", "exit 3"], auto_proceed=number % 2 == 0, stdio=linx.PIPE) as s:
            if number % 2:
                await s.proceed()
            assert await s.wait() == linx.Exited(3)
        assert below() == before
        now = len(open_fds()), len(os.listdir(f"/proc/{zygote()}/fd"))
        fds = fds or now
        assert now == fds
    assert is_untouched(target)


async def test_neighbours_in_one_container(target: linx.Session) -> None:
    """Each ends its own only."""
    async with linx.enter(target, family(*FAMILY), stdout=linx.PIPE) as neighbour:
        await neighbour.proceed()
        await line_of(neighbour)
        before = below()
        for phase in PHASES:
            async with enter_in(target, phase) as s:
                await reach(s, phase)
            left = below()
            assert left <= before, "those who only started others may go meanwhile"
            assert len(left) > len(FAMILY), "the neighbour's are there"
        assert neighbour.state == "running"
    assert is_untouched(target)
