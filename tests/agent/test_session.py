"""The life of a session, as a user sees it: members and verbs in every state, events, signals, waiting, the end."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import pickle
import resource
import select
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import linx_trio as linx
from tests.agent.probes import cat, proc, settled, working_in
from tests.support import eventually_async, exists, stat_of

STATES = ("starting", "ready", "running", "exited", "signaled", "aborted", "failed")
ENDED = ("exited", "signaled", "aborted", "failed")
SLEEP = ["sleep", "600"]


@contextlib.asynccontextmanager
async def session_in(state: str) -> AsyncIterator[linx.Session]:
    """A session in `state`. It cannot leave ``"starting"`` before the next checkpoint: until then nothing is read."""
    argv = {"exited": ["sh", "-c", "exit 7"], "failed": ["/nonexistent"]}.get(state, SLEEP)
    async with linx.spawn(argv, wait_ready=state != "starting") as s:
        match state:
            case "running":
                await s.proceed()
            case "exited":
                await s.proceed()
                await s.wait()
            case "signaled":
                await s.proceed()
                s.signal(9)
                await s.wait()
            case "aborted":
                await s.abort()
            case "failed":
                with pytest.raises(linx.SetupError):
                    await s.proceed()
        assert s.state == state
        yield s


async def events_of(s: linx.Session) -> list[linx.Event]:
    return [event async for event in s.events()]


async def test_parked_then_released() -> None:
    async with linx.spawn(["/bin/sh", "-c", "exit 7"]) as s:
        assert s.state == "ready"
        assert not s.ran
        await s.proceed()
        assert await s.wait() == linx.Exited(7)
        assert s.returncode == 7
    assert [event async for event in s.events()] == [linx.Ready(s.host_pid), linx.Running(), linx.Exited(7)]


async def test_none_of_the_workload_runs_before_proceed(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    async with linx.spawn(["touch", mark]) as s:
        assert proc(s.host_pid, "comm") != "touch\n"
        assert os.listdir(tmp_path) == []
        await s.proceed()
        assert await s.wait() == linx.Exited(0)
    assert os.listdir(tmp_path) == ["ran"]


# ---- members, in each state --------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
async def test_members(state: str) -> None:
    async with session_in(state) as s:
        if state == "starting":
            for member in ("host_pid", "child_pid", "pidfd"):
                with pytest.raises(linx.NotReady) as raised:
                    getattr(s, member)
                assert (raised.value.verb, raised.value.state) == (member, "starting")
        else:
            assert s.host_pid == s.child_pid > 0
            assert s.pidfd.fileno() == s.pidfd >= 0
        outcome = {"exited": linx.Exited(7), "signaled": linx.Signaled(9), "aborted": linx.Aborted()}.get(state)
        assert s.outcome == outcome
        assert s.returncode == {"exited": 7, "signaled": -9}.get(state)
        assert s.ran == (state in ("running", "exited", "signaled"))
        assert (s.usage is not None) == (state in ("exited", "signaled"))
        assert s.containment == "subreaper"
        assert [s.stdin, s.stdout, s.stderr, s.stdio] == [None] * 4
        assert state in repr(s)
        assert s.workload.arguments[0] in repr(s)
        assert (state == "starting") != (str(s.info().host_pid) in repr(s))
        with pytest.raises(linx.NoPty) as no_pty:
            _ = s.pty
        assert no_pty.value.state == state


@pytest.mark.parametrize("state", STATES)
async def test_info(state: str) -> None:
    async with session_in(state) as s:
        info = s.info()
        known = state != "starting"
        assert info == linx.Info(
            mode="spawn",
            state=state,
            host_pid=s.host_pid if known else None,
            child_pid=s.child_pid if known else None,
            argv=s.workload.arguments,
            namespaces=frozenset(),
            pty=False,
            containment="subreaper",
            outcome=s.outcome,
            usage=s.usage,
            degraded=(),
        )
        with pytest.raises(dataclasses.FrozenInstanceError):
            info.state = "other"  # type: ignore[misc]
        assert pickle.loads(pickle.dumps(info)) == info
    assert info.state == state, "a snapshot does not change"


@pytest.mark.parametrize("state", STATES)
async def test_members_after_the_block(state: str) -> None:
    async with session_in(state) as s:
        pass
    left = {"starting": "aborted", "ready": "aborted", "running": "signaled"}.get(state, state)
    assert s.state == left
    if state == "failed":
        with pytest.raises(linx.SetupError):
            await s.wait()
    else:
        assert await s.wait() == s.outcome is not None
    with pytest.raises(linx.NoProcess):
        s.signal(1)
    with pytest.raises(linx.NoProcess):
        s.terminate()
    with pytest.raises(linx.NoProcess):
        await s.abort()
    if state != "starting":
        assert s.pidfd == -1
        assert not exists(s.host_pid)
    assert len([event for event in await events_of(s) if not isinstance(event, (linx.Ready, linx.Running))]) == 1


async def test_pidfd_is_the_workloads() -> None:
    async with linx.spawn(SLEEP) as s:
        fdinfo = proc("self", f"fdinfo/{s.pidfd.fileno()}").split()
        assert fdinfo[fdinfo.index("Pid:") + 1] == str(s.host_pid)
        assert not os.get_inheritable(s.pidfd)
        await s.proceed()
        assert not select.select([s.pidfd], [], [], 0)[0]
        s.kill()
        await s.wait()
        assert select.select([s.pidfd], [], [], 0)[0], "readable, since the process has ended"


# ---- verbs, in each state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["starting", "ready", "running"])
async def test_proceed(state: str) -> None:
    async with session_in(state) as s:
        for _ in range(3):
            await s.proceed()
            assert s.state == "running"
        assert proc(s.host_pid, "comm") == "sleep\n", "it is past execve(2)"
    assert await events_of(s) == [linx.Ready(s.host_pid), linx.Running(), linx.Signaled(9)]


async def use(s: linx.Session, verb: str) -> None:
    """Any verb, of the plain kind or the awaited."""
    arguments = [15] if verb == "signal" else []
    result = getattr(s, verb)(*arguments)
    if result is not None:
        await result


@pytest.mark.parametrize("state", ENDED)
@pytest.mark.parametrize("verb", ["proceed", "abort", "signal", "terminate"])
async def test_verbs_after_the_end(state: str, verb: str) -> None:
    async with session_in(state) as s:
        with pytest.raises(linx.NoProcess) as raised:
            await use(s, verb)
        assert (raised.value.verb, raised.value.state) in ((verb, state), ("signal", state))
        assert isinstance(raised.value, RuntimeError)
        assert s.state == state


@pytest.mark.parametrize("state", ["starting", "ready"])
async def test_abort_before_it_runs(state: str) -> None:
    async with session_in(state) as s:
        await s.abort()
        assert s.outcome == linx.Aborted()
        assert not exists(s.host_pid), "it is reaped when abort() returns"
    assert await events_of(s) == [linx.Ready(s.host_pid), linx.Aborted()]


async def test_abort_while_it_runs() -> None:
    async with session_in("running") as s:
        with pytest.raises(linx.AlreadyRunning) as raised:
            await s.abort()
        assert (raised.value.verb, raised.value.state) == ("abort", "running")
        assert exists(s.host_pid)
        s.terminate()
        assert await s.wait() == linx.Signaled(15)


@pytest.mark.parametrize("state", STATES)
async def test_kill(state: str) -> None:
    async with session_in(state) as s:
        before = s.outcome
        s.kill()
        if state == "failed":
            return
        assert await s.wait() == {
            "starting": linx.Aborted(),
            "ready": linx.Aborted(),
            "running": linx.Signaled(9),
        }.get(state, before)
    assert s.ran == (state in ("running", "exited", "signaled"))


async def test_kill_takes_the_subtree_also_after_the_workloads_end() -> None:
    script = "setsid sleep 600 & echo $!; trap '' TERM; read x"
    async with linx.spawn(["sh", "-c", script], stdin=linx.PIPE, stdout=linx.PIPE, auto_proceed=True) as s:
        assert s.stdin is not None
        assert s.stdout is not None
        stray = int(await s.stdout.receive_some())
        await s.stdin.aclose()
        assert await s.wait() == linx.Exited(1)
        assert exists(stray), "what it left behind lives until the block is left, or until kill()"
        s.kill()
        await eventually_async(lambda: not exists(stray), "kill() after the end kills what was left behind")


async def test_abort_racing_proceed() -> None:
    winners = set()
    for first in ("proceed", "abort") * 10:
        async with linx.spawn(["true"]) as s:
            told: dict[str, type[Exception] | None] = {}

            async def call(verb: str, s: linx.Session = s, told: dict[str, Any] = told) -> None:
                try:
                    await getattr(s, verb)()
                except linx.StateError as exc:
                    told[verb] = type(exc)
                else:
                    told[verb] = None

            async with trio.open_nursery() as nursery:
                nursery.start_soon(call, first)
                nursery.start_soon(call, {"proceed": "abort", "abort": "proceed"}[first])
            outcome = await s.wait()
        if outcome == linx.Aborted():
            assert told == {"proceed": linx.NoProcess, "abort": None}
            assert not s.ran
        else:
            assert outcome == linx.Exited(0)
            assert told == {"proceed": None, "abort": linx.AlreadyRunning}
            assert s.ran
        winners.add(type(outcome))
    assert winners == {linx.Aborted, linx.Exited}


@pytest.mark.parametrize("verb", ["proceed", "abort"])
async def test_a_verb_by_many_tasks(verb: str) -> None:
    async with linx.spawn(SLEEP) as s, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(getattr(s, verb))
    assert s.outcome == (linx.Signaled(9) if verb == "proceed" else linx.Aborted())


async def test_a_cancelled_proceed_changes_nothing() -> None:
    async with linx.spawn(SLEEP) as s:
        for verb in (s.proceed, s.abort):
            with trio.CancelScope() as scope:
                scope.cancel()
                await verb()
            assert scope.cancelled_caught
            assert s.state == "ready"
        await s.proceed()
        with trio.CancelScope() as scope:
            scope.cancel()
            await s.proceed()
        assert scope.cancelled_caught, "a checkpoint, also where there is nothing to do"


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM, signal.SIGQUIT, signal.SIGSEGV, 40])
async def test_killed_from_outside_while_parked(sig: int, tmp_path: Path) -> None:
    """Also by a signal that dumps core: that must not take the agent along."""
    core = resource.getrlimit(resource.RLIMIT_CORE)[1]
    with working_in(tmp_path):
        async with linx.spawn(SLEEP, rlimits={"core": (core, core)}) as s:
            os.kill(s.host_pid, sig)
            outcome = await s.wait()
            assert isinstance(outcome, linx.Signaled)
            assert outcome.signum == sig
            assert not s.ran
            with pytest.raises(linx.NoProcess):
                await s.proceed()
    assert await events_of(s) == [linx.Ready(s.host_pid), outcome]


async def test_stopped_while_parked() -> None:
    async with linx.spawn(SLEEP) as s:
        os.kill(s.host_pid, signal.SIGSTOP)
        await eventually_async(lambda: (stat_of(s.host_pid) or "?")[0] == "T", "it is stopped")
        os.kill(s.host_pid, signal.SIGCONT)
        await s.proceed()
        assert s.state == "running"
    async with linx.spawn(SLEEP) as s:
        os.kill(s.host_pid, signal.SIGSTOP)
        await s.abort()
        assert s.outcome == linx.Aborted()


# ---- entering ----------------------------------------------------------------------------------------------------


async def test_entered_twice() -> None:
    manager = linx.spawn(["true"])
    async with manager:
        with pytest.raises(RuntimeError, match="once"):
            await manager.__aenter__()
    with pytest.raises(RuntimeError, match="once"):
        await manager.__aenter__()


async def test_never_entered_starts_nothing(tmp_path: Path) -> None:
    linx.spawn(["touch", tmp_path / "ran"], auto_proceed=True)
    await trio.lowlevel.checkpoint()
    assert os.listdir(tmp_path) == []


async def test_entering_is_a_checkpoint() -> None:
    for auto_proceed in (False, True):
        with trio.CancelScope() as scope:
            scope.cancel()
            async with linx.spawn(SLEEP, auto_proceed=auto_proceed):
                pytest.fail("it has been cancelled before")
        assert scope.cancelled_caught


async def test_auto_proceed() -> None:
    async with linx.spawn(SLEEP, auto_proceed=True) as s:
        assert s.state == "running"
        await s.proceed()
        with pytest.raises(linx.AlreadyRunning):
            await s.abort()
    assert await events_of(s) == [linx.Ready(s.host_pid), linx.Running(), linx.Signaled(9)]


async def test_auto_proceed_without_waiting() -> None:
    async with linx.spawn(["sh", "-c", "exit 3"], auto_proceed=True, wait_ready=False) as s:
        assert s.state == "starting"
        assert await s.wait() == linx.Exited(3)
    assert await events_of(s) == [linx.Ready(s.host_pid), linx.Running(), linx.Exited(3)]


async def test_auto_proceed_raises_on_entering() -> None:
    with pytest.raises(linx.SetupError) as raised:
        async with linx.spawn(["/nonexistent"], auto_proceed=True):
            pytest.fail("nothing runs")
    assert raised.value.stage == "execve"


async def test_without_waiting_the_verbs_raise() -> None:
    async with linx.spawn(["/nonexistent"], wait_ready=False) as s:
        with pytest.raises(linx.SetupError):
            await s.proceed()
        with pytest.raises(linx.SetupError):
            await s.wait()
    async with linx.spawn(["/nonexistent"], wait_ready=False, auto_proceed=True) as s:
        await trio.lowlevel.checkpoint()
    assert s.state in ("failed", "aborted", "signaled"), "nobody asked, so nobody is told"


@pytest.mark.parametrize("policy", [linx.Kill(grace=0.0), linx.Kill(grace=2.5), linx.LINGER])
async def test_orphan_policies_are_accepted(policy: Any) -> None:
    async with linx.spawn(SLEEP, orphan_policy=policy, auto_proceed=True) as s:
        assert s.workload.orphan_policy == policy
    assert s.outcome == linx.Signaled(9), "leaving the block ends it, whatever the policy for orphans"


# ---- leaving -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
async def test_an_exception_comes_out_as_itself(state: str) -> None:
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as raised:
        async with session_in(state) as s:
            raise error
    assert raised.value is error
    assert s.state not in ("starting", "ready", "running")


async def test_shutdown_with_a_grace() -> None:
    script = "trap 'exit 3' TERM; echo up; while :; do sleep 600 & wait; done"
    kill = linx.Kill(grace=60)
    async with linx.spawn(["sh", "-c", script], stdout=linx.PIPE, shutdown=kill, auto_proceed=True) as s:
        assert s.stdout is not None
        assert await s.stdout.receive_some() == b"up\n"
        started = time.monotonic()
    assert s.outcome == linx.Exited(3)
    assert time.monotonic() - started < 30, "the grace is an upper limit, not a delay"


async def test_shutdown_after_the_grace() -> None:
    script = "trap '' TERM; echo up; while :; do sleep 600 & wait; done"
    kill = linx.Kill(grace=0.1)
    async with linx.spawn(["sh", "-c", script], stdout=linx.PIPE, shutdown=kill, auto_proceed=True) as s:
        assert s.stdout is not None
        assert await s.stdout.receive_some() == b"up\n"
        started = time.monotonic()
    assert s.outcome == linx.Signaled(9)
    assert time.monotonic() - started >= 0.1


async def test_shutdown_of_a_stopped_one() -> None:
    """It is woken, or it could not do what SIGTERM asks of it."""
    started = time.monotonic()
    async with linx.spawn(SLEEP, shutdown=linx.Kill(grace=60), auto_proceed=True) as s:
        s.signal(signal.SIGSTOP)
        await eventually_async(lambda: (stat_of(s.host_pid) or "?")[0] == "T", "it is stopped")
    assert s.outcome == linx.Signaled(15)
    assert time.monotonic() - started < 30


async def test_shutdown_of_a_parked_one_needs_no_grace() -> None:
    started = time.monotonic()
    async with linx.spawn(SLEEP, shutdown=linx.Kill(grace=60)) as s:
        pass
    assert s.outcome == linx.Aborted()
    assert time.monotonic() - started < 30


# ---- events ------------------------------------------------------------------------------------------------------

ENDS: dict[str, tuple[list[str], Callable[[linx.Session], Any], linx.Event]] = {
    "exited": (["sh", "-c", "exit 4"], lambda s: s.proceed(), linx.Exited(4)),
    "signaled": (["sh", "-c", "kill -INT $$"], lambda s: s.proceed(), linx.Signaled(2)),
    "aborted": (["true"], lambda s: s.abort(), linx.Aborted()),
    "failed": (["/nonexistent"], lambda s: s.proceed(), linx.Failed(errno.ENOENT, "execve")),
}


@pytest.mark.parametrize("end", ENDS)
async def test_events_are_the_same_for_every_reader(end: str) -> None:
    argv, verb, last = ENDS[end]
    seen: list[list[linx.Event]] = []

    async def watch(s: linx.Session) -> None:
        seen.append(await events_of(s))

    async with linx.spawn(argv, wait_ready=False) as s, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(watch, s)
        with contextlib.suppress(linx.SetupError):
            await verb(s)
        nursery.start_soon(watch, s)
    seen.append(await events_of(s))
    middle = [linx.Running()] if end in ("exited", "signaled") else []
    assert seen == [[linx.Ready(s.host_pid), *middle, last]] * 5


async def test_an_iterator_ends_once_and_for_all() -> None:
    async with linx.spawn(["true"], auto_proceed=True) as s:
        iterator = s.events()
        assert aiter(iterator) is iterator
        assert [event async for event in iterator][-1] == linx.Exited(0)
        for _ in range(2):
            with pytest.raises(StopAsyncIteration):
                await anext(iterator)


async def test_events_match_and_do_not_change() -> None:
    async with linx.spawn(["sh", "-c", "exit 5"], auto_proceed=True) as s:
        told = []
        async for event in s.events():
            match event:
                case linx.Ready(pid):
                    told.append(("ready", pid))
                case linx.Running():
                    told.append(("running", 0))
                case linx.Exited(code):
                    told.append(("exited", code))
            assert not hasattr(event, "__dict__")
            assert pickle.loads(pickle.dumps(event)) == event
            with pytest.raises((dataclasses.FrozenInstanceError, TypeError, AttributeError)):
                event.pid = 0  # type: ignore[union-attr]
        assert told == [("ready", s.host_pid), ("running", 0), ("exited", 5)]


async def test_owner_hears_everything() -> None:
    send, receive = trio.open_memory_channel[linx.Event](10)
    async with linx.spawn(["true"], owner=send) as s:
        assert receive.receive_nowait() == linx.Ready(s.host_pid)
        await s.proceed()
        await s.wait()
        assert [await receive.receive(), await receive.receive()] == [linx.Running(), linx.Exited(0)]
    with pytest.raises(trio.WouldBlock):
        receive.receive_nowait()


async def test_a_slow_owner_delays_nobody() -> None:
    send, receive = trio.open_memory_channel[linx.Event](0)
    async with linx.spawn(["true"], owner=send) as s:
        await s.proceed()
        assert await s.wait() == linx.Exited(0)
    assert [await receive.receive() for _ in range(3)] == [linx.Ready(s.host_pid), linx.Running(), linx.Exited(0)]


async def test_an_owner_that_has_gone() -> None:
    send, receive = trio.open_memory_channel[linx.Event](0)
    receive.close()
    async with linx.spawn(["true"], owner=send) as s:
        await s.proceed()
        assert await s.wait() == linx.Exited(0)
    assert len(await events_of(s)) == 3


async def test_an_owner_that_goes_while_events_wait_for_it() -> None:
    send, receive = trio.open_memory_channel[linx.Event](0)
    async with linx.spawn(["true"], owner=send) as s:
        receive.close()
        await s.proceed()
        assert await s.wait() == linx.Exited(0)


async def test_set_owner() -> None:
    first, second = trio.open_memory_channel[linx.Event](10), trio.open_memory_channel[linx.Event](10)
    async with linx.spawn(["cat"], stdin=linx.PIPE, stdout=linx.PIPE, owner=first[0]) as s:
        s.set_owner(second[0])
        await s.proceed()
        s.set_owner(None)
        s.kill()
        await s.wait()
        for wrong in (first[1], "channel", print):
            with pytest.raises(TypeError, match="channel"):
                s.set_owner(wrong)  # type: ignore[arg-type]
    for send, _ in (first, second):
        send.close()
    assert [event async for event in first[1]] == [linx.Ready(s.host_pid)]
    assert [event async for event in second[1]] == [linx.Running()]
    assert len(await events_of(s)) == 3, "events() has all of them, whoever the owner was"


# ---- signals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sig", [0, -1, 65, 1000])
async def test_no_such_signal(sig: int) -> None:
    for state in ("ready", "exited"):
        async with session_in(state) as s:
            with pytest.raises(ValueError, match=str(sig)):
                s.signal(sig)


@pytest.mark.parametrize("sig", [True, "9", 9.0, None])
async def test_no_signal_at_all(sig: Any) -> None:
    async with session_in("ready") as s:
        with pytest.raises(TypeError, match="sig"):
            s.signal(sig)


LISTENER = """
import signal
every = set(range(1, 65)) - {9, 19, 32, 33}
signal.pthread_sigmask(signal.SIG_BLOCK, every)
print("up", flush=True)
while True:
    print(int(signal.sigwait(every)), flush=True)
"""


async def test_every_signal_arrives() -> None:
    argv = [sys.executable, "-I", "-S", "-c", LISTENER]
    async with linx.spawn(argv, stdout=linx.PIPE, auto_proceed=True) as s:
        assert s.stdout is not None
        assert await s.stdout.receive_some() == b"up\n"
        for number in sorted(set(range(1, 65)) - {9, 19, 32, 33}):
            s.signal(signal.Signals(number) if number in signal.valid_signals() and number < 32 else number)
            assert await s.stdout.receive_some() == b"%d\n" % number
        for _ in range(20):
            s.signal(40)
        heard = b""
        while heard.count(b"\n") < 20:
            heard += await s.stdout.receive_some()
        assert heard == b"40\n" * 20, "none of a burst of real-time signals is lost"


FIRST_DEADLY = [([15, 9], 15), ([9, 15], 9), ([1, 15, 2], 1), ([2, 1, 9, 15], 2), ([64, 15], 64), ([18, 28, 10, 9], 10)]


@pytest.mark.parametrize(("kept", "deadly"), FIRST_DEADLY)
@pytest.mark.parametrize("state", ["starting", "ready"])
async def test_signals_are_kept_and_delivered_in_order(state: str, kept: list[int], deadly: int) -> None:
    async with session_in(state) as s:
        for sig in kept:
            s.signal(sig)
        await s.proceed()
        assert await s.wait() == linx.Signaled(deadly)
        assert s.ran
        assert s.returncode == -deadly
    assert await events_of(s) == [linx.Ready(s.host_pid), linx.Running(), linx.Signaled(deadly)]


@pytest.mark.parametrize(("kept", "stopped"), [([19, 18], False), ([18, 19], True), ([19, 18, 19], True)])
async def test_stopping_and_continuing_keep_their_order(kept: list[int], stopped: bool) -> None:
    async with linx.spawn(["cat"], stdin=linx.PIPE, stdout=linx.PIPE) as s:
        for sig in kept:
            s.signal(sig)
        await s.proceed()
        if stopped:
            await eventually_async(lambda: (stat_of(s.host_pid) or "?")[0] == "T", "it is stopped")
            s.signal(signal.SIGCONT)
        await settled(s)


async def test_kept_signals_do_not_touch_the_parked_child() -> None:
    async with linx.spawn(SLEEP) as s:
        s.signal(signal.SIGKILL)
        s.terminate()
        async with cat():  # a whole other session later …
            pass
        assert s.state == "ready"
        fields = stat_of(s.host_pid)
        assert fields is not None
        assert fields[0] == "S", "… it is still there"
        await s.abort()
        assert s.outcome == linx.Aborted()


async def test_kept_signals_with_auto_proceed() -> None:
    async with linx.spawn(SLEEP, auto_proceed=True, wait_ready=False) as s:
        s.signal(2)
        s.signal(15)
        assert await s.wait() == linx.Signaled(2)
    assert await events_of(s) == [linx.Ready(s.host_pid), linx.Running(), linx.Signaled(2)]


# ---- waiting -----------------------------------------------------------------------------------------------------


async def test_wait_by_many_tasks() -> None:
    outcomes: list[linx.Outcome] = []

    async def wait(s: linx.Session) -> None:
        outcomes.append(await s.wait())

    async with cat() as s, trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(wait, s)
        await trio.testing.wait_all_tasks_blocked()
        assert not outcomes
        assert s.stdin is not None
        await s.stdin.aclose()
    assert outcomes == [linx.Exited(0)] * 50
    assert await s.wait() is outcomes[0]


async def test_a_cancelled_wait_does_not_touch_the_session() -> None:
    async with cat() as s:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(s.wait)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        with trio.move_on_after(0.001) as scope:
            await s.wait()
        assert scope.cancelled_caught
        assert s.state == "running"
        await settled(s)


async def test_wait_before_proceed() -> None:
    async with linx.spawn(["sh", "-c", "exit 9"]) as s, trio.open_nursery() as nursery:
        nursery.start_soon(s.wait)
        await trio.testing.wait_all_tasks_blocked()
        await s.proceed()
    assert s.outcome == linx.Exited(9)


async def test_a_failed_session_raises_a_fresh_error_each_time() -> None:
    async with linx.spawn(["/nonexistent"]) as s:
        errors = []
        for verb in (s.proceed, s.wait, s.wait):
            with pytest.raises(linx.SetupError) as raised:
                await verb()
            errors.append(raised.value)
    with pytest.raises(FileNotFoundError) as again:
        await s.wait()
    errors.append(again.value)  # type: ignore[arg-type]
    assert len(set(map(id, errors))) == 4
    assert {(e.errno, e.stage, e.filename) for e in errors} == {(errno.ENOENT, "execve", "/nonexistent")}
    assert (s.outcome, s.returncode, s.usage) == (None, None, None)


# ---- outcome and usage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 2, 127, 128, 137, 255])
async def test_exit_statuses(code: int) -> None:
    async with linx.spawn(["sh", "-c", f"exit {code}"], auto_proceed=True) as s:
        assert await s.wait() == linx.Exited(code)
        assert s.returncode == code


async def test_usage_of_cpu() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    started = time.monotonic()
    async with linx.spawn(["sh", "-c", f"{sys.executable} -I -S -c '{burn}'; true"], auto_proceed=True) as s:
        await s.wait()
        elapsed = time.monotonic() - started
    assert s.usage is not None
    assert 0.29 <= s.usage.user_time + s.usage.system_time <= elapsed * (os.cpu_count() or 1)
    assert 0.29 <= s.usage.wall_time <= elapsed
    assert s.usage.oom_killed is None


async def test_usage_of_memory() -> None:
    size = 64 << 20
    async with linx.spawn([sys.executable, "-I", "-S", "-c", f"bytearray({size})"], auto_proceed=True) as big:
        await big.wait()
    ballast = bytearray(size)
    async with linx.spawn(["true"], auto_proceed=True) as small:
        await small.wait()
    assert big.usage is not None
    assert small.usage is not None
    assert size <= big.usage.max_rss < 2 * size
    assert 0 < small.usage.max_rss < len(ballast) // 2, "it has nothing of its starter's memory"


async def test_usage_without_running() -> None:
    async with linx.spawn(SLEEP) as s:
        os.kill(s.host_pid, signal.SIGKILL)
        await s.wait()
    assert s.usage is not None
    assert s.usage.wall_time == 0


def dumps_core(argv: list[str], directory: Path, limit: int) -> bool:
    """Whether it leaves a core, watched with ``waitpid(2)`` itself: where cores go is the machine's business."""
    script = f'cd "$0" && ulimit -c {"unlimited" if limit == -1 else limit} && exec "$@"'
    pid = os.posix_spawnp("sh", ["sh", "-c", script, str(directory), *argv], os.environ)
    return os.WCOREDUMP(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("limit", [0, resource.getrlimit(resource.RLIMIT_CORE)[1]])
async def test_core_dumped(limit: int, tmp_path: Path) -> None:
    argv = ["sh", "-c", "kill -SEGV $$"]
    expected = dumps_core(argv, tmp_path, limit)
    async with linx.spawn(argv, cwd=tmp_path, rlimits={"core": (limit, limit)}, auto_proceed=True) as s:
        assert await s.wait() == linx.Signaled(signal.SIGSEGV, core_dumped=expected)
    assert s.returncode == -signal.SIGSEGV
