"""The agent is killed: what it guarded dies too, the session says so, and nobody else notices."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from pathlib import Path

import pytest
import trio
import trio.testing

import linx_trio as linx
from linx_trio import _agent, _session
from tests.agent.programs.phases import (
    FAMILY,
    PHASES,
    SHAPES,
    argv_for,
    bomb_options,
    family,
    line_of,
    members,
    reach,
    script,
    send_proceed,
    spawn_in,
    state_of,
    stop,
    stop_now,
    zygote,
)
from tests.support import (
    DEADLINE,
    children_of,
    eventually,
    eventually_async,
    exists,
    monitor_of,
    name_of,
    stat_of,
    with_token,
)

LAST_STATE = {"starting": "starting", "parked": "ready", "proceeding": "ready", "running": "running"}


def only_monitor() -> int:
    """The zygote's only child: looked for without giving trio a chance to do anything meanwhile."""
    eventually(lambda: len(children_of(zygote())) == 1, "there is a monitor")
    (monitor,) = children_of(zygote())
    return monitor


def is_gone(pid: int) -> bool:
    """Also a zombie is gone, where the zygote that should have reaped it is dead, and process 1 has to."""
    return state_of(pid) in ("", "Z")


async def died(session: linx.Session, exit_status: int | None, state: str) -> None:
    """Every verb that waits tells the same story; those that do not, say that there is no process."""
    for verb in (session.wait, session.wait):
        with trio.fail_after(DEADLINE), pytest.raises(linx.AgentDied) as caught:
            await verb()
        assert caught.value.exit_status == exit_status
        assert caught.value.state == state
    assert session.state == "failed"
    assert session.outcome is None
    assert session.returncode is None
    for illegal in (session.proceed, session.abort):
        with pytest.raises(linx.NoProcess):
            await illegal()
    with pytest.raises(linx.NoProcess):
        session.terminate()
    events = [event async for event in session.events()]
    assert isinstance(events[-1], linx.Failed)
    assert (linx.Running() in events) is (state == "running") is session.ran


# ---- the monitor -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["starting", "parked", "proceeding", "running"])
async def test_monitor_killed(phase: str, nothing_is_left: str) -> None:
    async with spawn_in(phase) as s:
        pids = await reach(s, phase)
        os.kill(only_monitor(), signal.SIGKILL)
        await died(s, -9, LAST_STATE[phase])
        assert [pid for pid in pids if exists(pid)] == []  # already: the zygote speaks only when they are gone
        assert with_token(nothing_is_left) == []
        started = time.monotonic()
    assert time.monotonic() - started < _session.CLOSE_SECONDS
    assert s.outcome is None


async def test_monitor_killed_after_the_end(nothing_is_left: str) -> None:
    """The outcome is known, and stays; what the workload left behind goes."""
    async with spawn_in("ended") as s:
        pids = await reach(s, "ended")
        assert [pid for pid in pids if exists(pid)] == pids
        os.kill(only_monitor(), signal.SIGKILL)
        await eventually_async(lambda: not any(map(exists, pids)), "its descendants are gone")
        assert await s.wait() == linx.Exited(3)
    assert s.outcome == linx.Exited(3)
    assert s.state == "exited"


async def test_monitor_killed_while_somebody_proceeds() -> None:
    async with spawn_in("parked") as s:
        await stop(s.host_pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_expect_agent_died, s)
            await trio.testing.wait_all_tasks_blocked()
            os.kill(monitor_of(s.host_pid), signal.SIGKILL)


async def _expect_agent_died(session: linx.Session) -> None:
    with pytest.raises(linx.AgentDied):
        await session.proceed()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD])
async def test_other_signals_do_not_touch_the_agent(number: signal.Signals) -> None:
    """Nothing but SIGKILL (and SIGSTOP) cuts a clean-up short."""
    async with spawn_in("running") as s, spawn_in("parked") as other:
        pids = await reach(s, "running") + await reach(other, "parked")
        victims = [zygote(), *children_of(zygote())]
        assert len(victims) == 3
        for victim in victims:
            os.kill(victim, number)
        await linx.run(["true"])  # they have had a look since
        await other.proceed()
        assert [pid for pid in [*victims, *pids] if not exists(pid)] == []
    assert zygote() == victims[0]


@pytest.mark.parametrize("phase", ["parked", "running"])
async def test_monitor_killed_and_the_body_fails(phase: str) -> None:
    boom = ZeroDivisionError()

    async def body() -> None:
        async with spawn_in(phase) as s:
            await reach(s, phase)
            os.kill(monitor_of(s.host_pid), signal.SIGKILL)
            raise boom

    with pytest.raises(ZeroDivisionError) as caught:
        await body()
    assert caught.value is boom


async def test_monitor_killed_while_entering(nothing_is_left: str) -> None:
    """Here nobody has a session yet whose wait() could say it."""

    async def enter() -> None:
        async with linx.spawn(argv_for("starting")):
            raise AssertionError("entered")

    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_kill_the_first_monitor)
            with pytest.raises(linx.AgentDied) as caught:
                await enter()
    assert caught.value.exit_status == -9
    assert with_token(nothing_is_left) == []


async def _kill_the_first_monitor() -> None:
    """Once it has begun to read the request, which otherwise would go to another one."""
    while not (monitors := [pid for pid in children_of(zygote()) if name_of(pid) == "linx-monitor"]):
        await trio.lowlevel.checkpoint()
    os.kill(monitors[0], signal.SIGKILL)


async def test_monitor_killed_under_run(nothing_is_left: str) -> None:
    async with trio.open_nursery() as nursery:
        s: linx.Session = await nursery.start(_run_and_expect_agent_died, family("undying", *SHAPES))
        assert len(await members(s)) > len(SHAPES)
        os.kill(monitor_of(s.host_pid), signal.SIGKILL)
    assert with_token(nothing_is_left) == []


async def _run_and_expect_agent_died(
    argv: list[str], task_status: trio.TaskStatus[linx.Session] = trio.TASK_STATUS_IGNORED
) -> None:
    with pytest.raises(linx.AgentDied):
        await linx.run(argv, stdout=linx.PIPE, task_status=task_status)


@pytest.mark.parametrize("manner", ["undying", "immune"])
async def test_monitor_killed_with_a_large_family(manner: str, nothing_is_left: str) -> None:
    """Only the workload itself has a parent-death signal, and it can take that back."""
    async with linx.spawn(family(manner, *SHAPES), stdout=linx.PIPE) as s:
        await s.proceed()
        pids = await members(s)
        os.kill(monitor_of(pids[0]), signal.SIGKILL)
        await died(s, -9, "running")
        assert [pid for pid in pids if exists(pid)] == []
    assert with_token(nothing_is_left) == []


async def test_monitor_and_descendants_killed_together(nothing_is_left: str) -> None:
    async with linx.spawn(family("immune", *SHAPES), stdout=linx.PIPE) as s:
        await s.proceed()
        pids = await members(s)
        for pid in [*pids[1::2], monitor_of(pids[0]), *pids[2::2]]:
            with contextlib.suppress(ProcessLookupError):  # the zygote may be as quick as we
                os.kill(pid, signal.SIGKILL)
        await died(s, -9, "running")
        assert [pid for pid in pids if exists(pid)] == []


async def test_a_workload_kills_its_own_monitor(nothing_is_left: str) -> None:
    async with linx.spawn(["sh", "-c", "setsid sleep 3600 & kill -9 $PPID; sleep 3600"]) as s:
        await send_proceed(s)  # the monitor may be killed before it has told that the workload runs
        with trio.fail_after(DEADLINE), pytest.raises(linx.AgentDied) as caught:
            await s.wait()
        assert caught.value.exit_status == -9
        assert with_token(nothing_is_left) == []


@pytest.mark.parametrize(("kind", "news"), [("fork", "full\n"), ("comet", "flying\n")])
async def test_monitor_killed_under_a_fork_loop(kind: str, news: str, nothing_is_left: str) -> None:
    """Then it is the zygote that has to keep up with it."""
    uid, limits = bomb_options()
    argv = script("bomb.py", kind, uid)
    async with linx.spawn(argv, stdout=linx.PIPE, stderr=linx.DEVNULL, rlimits=limits) as s:
        await s.proceed()
        assert await line_of(s) == news
        os.kill(only_monitor(), signal.SIGKILL)
        await died(s, -9, "running")
        assert with_token(nothing_is_left) == []


@pytest.mark.parametrize("phase", ["parked", "proceeding", "running", "ended"])
async def test_neighbours_live_on(phase: str, nothing_is_left: str) -> None:
    async with (
        linx.spawn(family(*FAMILY), stdout=linx.PIPE) as running,
        linx.spawn(["sh", "-c", "exit 6"]) as parked,
        spawn_in("ended") as ended,
    ):
        await running.proceed()
        theirs = await members(running) + await reach(ended, "ended") + [parked.host_pid]
        async with spawn_in(phase) as s:
            pids = await reach(s, phase)
            (monitor,) = set(children_of(zygote())) - {
                monitor_of(running.host_pid), monitor_of(parked.host_pid), _monitor_above(theirs)
            }  # fmt: skip
            os.kill(monitor, signal.SIGKILL)
            await eventually_async(lambda: not any(map(exists, pids)), "the victim's processes are gone")
        assert [pid for pid in theirs if exists(pid)] == theirs
        assert (running.state, parked.state, ended.state) == ("running", "ready", "exited")
        await parked.proceed()
        assert await parked.wait() == linx.Exited(6)
    assert with_token(nothing_is_left) == []


def _monitor_above(pids: list[int]) -> int:
    """The monitor that has adopted the orphans among these, whose own workload is gone."""
    for pid in reversed(pids):
        fields = stat_of(pid)
        assert fields is not None
        parent = int(fields[1])
        if parent in children_of(zygote()) and stat_of(parent) is not None and not _has_leader(parent, pids):
            return parent
    raise AssertionError(f"no monitor above {pids}")


def _has_leader(monitor: int, pids: list[int]) -> bool:
    return children_of(monitor)[0] in (pids[0], pids[-1])


@pytest.mark.parametrize("count", [2, 12])
async def test_several_monitors_killed_at_once(count: int, nothing_is_left: str) -> None:
    sessions: list[linx.Session] = []
    pids: list[int] = []
    done = trio.Event()

    async def one() -> None:
        async with linx.spawn(family("immune", "undying", "daemon", "orphans"), stdout=linx.PIPE) as s:
            await s.proceed()
            pids.extend(await members(s))
            sessions.append(s)
            await done.wait()
            await died(s, -9, "running")

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
        await eventually_async(lambda: len(sessions) == count, "all run")
        for session in sessions:
            os.kill(monitor_of(session.host_pid), signal.SIGKILL)
        done.set()
    assert [pid for pid in pids if exists(pid)] == []
    assert with_token(nothing_is_left) == []


# ---- the monitor is stopped --------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
async def test_monitor_stopped(phase: str, monkeypatch: pytest.MonkeyPatch, nothing_is_left: str) -> None:
    """It does nothing of what it is told. Leaving still ends, and leaves nothing."""
    monkeypatch.setattr(_session, "CLOSE_SECONDS", 0.5)
    monitor = 0
    try:
        with trio.fail_after(DEADLINE):
            async with spawn_in(phase) as s:
                pids = await reach(s, phase)
                monitor = only_monitor()
                stop_now(monitor)
        assert [pid for pid in pids if exists(pid)] == []
        assert with_token(nothing_is_left) == []
        assert not exists(monitor)
    finally:
        if monitor and state_of(monitor) == "T":
            os.kill(monitor, signal.SIGKILL)


async def test_a_workload_stops_its_own_monitor(monkeypatch: pytest.MonkeyPatch, nothing_is_left: str) -> None:
    monkeypatch.setattr(_session, "CLOSE_SECONDS", 0.5)
    code = "setsid sleep 3600 & kill -STOP $PPID; echo done; sleep 3600"
    async with linx.spawn(["sh", "-c", code], stdout=linx.PIPE) as s:
        await send_proceed(s)  # it may be stopped before it has told that the workload runs
        assert await line_of(s) == "done\n"
    assert with_token(nothing_is_left) == []


# ---- the zygote ------------------------------------------------------------------------------------------------------


async def test_zygote_killed_and_sessions_go_on(nothing_is_left: str) -> None:
    first = zygote()
    async with (
        linx.spawn(family(*FAMILY), stdout=linx.PIPE) as running,
        linx.spawn(["sh", "-c", "exit 6"]) as parked,
        spawn_in("ended") as ended,
        linx.spawn(["true"]) as aborted,
    ):
        await running.proceed()
        theirs = await members(running) + await reach(ended, "ended")
        pids = [*theirs, parked.host_pid, aborted.host_pid]
        monitors = [monitor_of(s.host_pid) for s in (running, parked, aborted)]
        os.kill(first, signal.SIGKILL)
        await eventually_async(lambda: is_gone(first), "the zygote is dead")
        assert [pid for pid in pids if exists(pid)] == pids
        await parked.proceed()
        assert await parked.wait() == linx.Exited(6)
        await aborted.abort()
        assert aborted.outcome == linx.Aborted()
        running.terminate()
        assert [pid for pid in theirs if exists(pid)] == theirs  # it ignores that
        started = time.monotonic()
    assert time.monotonic() - started < _session.CLOSE_SECONDS
    assert [pid for pid in pids if exists(pid)] == []
    assert with_token(nothing_is_left) == []
    assert running.outcome == linx.Signaled(9)
    assert ended.outcome == linx.Exited(3)
    await eventually_async(lambda: all(map(is_gone, monitors)), "the monitors are gone")


@pytest.mark.parametrize(
    ("way", "corpse"),
    [
        *itertools.product(["spawn", "auto_proceed", "run", "long request"], ["waited for", "not waited for"]),
        ("wait_ready=False", "waited for"),  # where nobody waits, nobody can try again
    ],
)
async def test_the_next_spawn_after_the_zygote_was_killed(way: str, corpse: str) -> None:
    for _ in range(8):
        victim = zygote()
        os.kill(victim, signal.SIGKILL)
        if corpse == "waited for":
            eventually(lambda: is_gone(victim), "the zygote is dead")  # noqa: B023
        with trio.fail_after(DEADLINE):
            match way:
                case "spawn":
                    async with linx.spawn(["sh", "-c", "exit 6"]) as s:
                        assert s.state == "ready"
                        await s.proceed()
                        assert await s.wait() == linx.Exited(6)
                case "auto_proceed":
                    async with linx.spawn(["sh", "-c", "exit 6"], auto_proceed=True) as s:
                        assert await s.wait() == linx.Exited(6)
                case "run":
                    assert (await linx.run(["sh", "-c", "exit 6"], check=False)).returncode == 6
                case "long request":
                    async with linx.spawn(argv_for("starting")) as s:
                        await s.proceed()
                        assert await s.wait() == linx.Exited(0)
                case _:
                    async with linx.spawn(["sh", "-c", "exit 6"], wait_ready=False) as s:
                        await s.proceed()
                        assert await s.wait() == linx.Exited(6)
        if corpse == "waited for":  # else its spare may have had the session, at the last moment
            assert zygote() != victim


async def test_the_zygote_is_killed_before_it_has_said_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is no broken installation, so the next one gets its chance."""
    killed: list[int] = []
    spawn = _agent._spawn

    def spawn_and_kill(path: Path, control: int) -> int:
        pid = spawn(path, control)
        if not killed:
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)
        return pid

    monkeypatch.setattr(_agent, "_spawn", spawn_and_kill)
    victim = zygote()
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: is_gone(victim), "it is dead")  # else its spare may have the session, at the last moment
    assert (await linx.run(["sh", "-c", "exit 6"], check=False)).returncode == 6
    assert killed
    assert zygote() not in killed


def test_the_next_run_sync_after_the_zygote_was_killed() -> None:
    linx.run_sync(["true"])
    victim = zygote()
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: is_gone(victim), "it is dead")
    assert linx.run_sync(["sh", "-c", "exit 6"], check=False).returncode == 6
    assert zygote() != victim


async def test_many_spawns_while_zygotes_are_being_killed(nothing_is_left: str) -> None:
    """Each of them works, or says AgentDied; nothing is left either way."""
    finished = 0
    over = trio.Event()

    async def spawner() -> None:
        nonlocal finished
        while not over.is_set():
            completed = await linx.run(["sh", "-c", "setsid sleep 3600 & exit 6"], check=False)
            assert completed.returncode == 6
            finished += 1

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(spawner)
        for _ in range(10):
            before, victim = finished, next(reversed(_agent.current()), None)
            if victim is not None:
                os.kill(victim.pid, signal.SIGKILL)
            await eventually_async(lambda: finished > before + 3, "it goes on")  # noqa: B023
        over.set()
    assert with_token(nothing_is_left) == []


async def test_the_zygote_is_stopped_and_forgotten(nothing_is_left: str) -> None:
    """Killed later, it still takes nothing with it."""
    async with linx.spawn(family(*FAMILY), stdout=linx.PIPE) as s:
        await s.proceed()
        pids = await members(s)
        first = zygote()
        await stop(first)
        os.kill(first, signal.SIGKILL)
        await eventually_async(lambda: is_gone(first), "it is dead")
        async with linx.spawn(["true"]) as other:
            assert monitor_of(other.host_pid) in children_of(zygote())
            assert zygote() != first
        assert [pid for pid in pids if exists(pid)] == pids
    assert with_token(nothing_is_left) == []


# ---- both ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["zygote first", "monitor first"])
@pytest.mark.parametrize("phase", ["parked", "proceeding", "running"])
async def test_zygote_and_monitor_killed(phase: str, order: str, nothing_is_left: str) -> None:
    """Nobody is left to say how it ended; the parent-death signal sees to the workload."""
    words = ("immune",)
    async with spawn_in(phase, words) as s:
        (pid,) = await reach(s, phase)
        victims = [zygote(), monitor_of(pid)]
        for victim in victims if order == "zygote first" else victims[::-1]:
            os.kill(victim, signal.SIGKILL)
        with trio.fail_after(DEADLINE), pytest.raises(linx.AgentDied) as caught:
            await s.wait()
        assert caught.value.state == LAST_STATE[phase]
        assert caught.value.exit_status in (None, -9)
        await eventually_async(lambda: is_gone(pid), "the workload is dead")
    assert with_token(nothing_is_left) == []
    async with linx.spawn(["true"]) as s:
        await s.proceed()
        assert await s.wait() == linx.Exited(0)


def links_of(pid: int) -> set[str]:
    """What its fds are; a zygote may be about to close one."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found


async def test_a_new_zygote_is_its_own_group_leader_and_has_no_fds_of_ours() -> None:
    victim = zygote()
    os.kill(victim, signal.SIGKILL)
    await eventually_async(lambda: is_gone(victim), "it is dead")
    read_end, write_end = os.pipe()  # close-on-exec
    inheritable = os.dup(write_end)
    os.set_inheritable(inheritable, True)
    try:
        async with linx.spawn(["true"]) as s:
            pipe = os.readlink(f"/proc/self/fd/{write_end}")
            for pid in (zygote(), monitor_of(s.host_pid), s.host_pid):
                assert pipe not in links_of(pid)
            fields = stat_of(zygote())
            assert fields is not None
            assert int(fields[2]) == zygote()
    finally:
        for fd in (read_end, write_end, inheritable):
            os.close(fd)
