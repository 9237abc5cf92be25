"""The shell against agents that die, lie, stall and stutter: one declared error, nothing hangs, nothing is left.

The fixture of ``tests/conftest.py`` counts this process' fds behind each test.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import linx_trio as linx
from linx_trio import _agent, _keeper, _session
from linx_trio._proto import etf
from linx_trio._proto import messages as m
from linx_trio._proto.framing import MAX_FRAME, encode_frame
from tests.proto.events import frame_of
from tests.shell.fake import (
    NOBODY,
    PARKED,
    RAN,
    SPAWNED,
    STARTED,
    USAGE,
    WHOLE,
    FakeAgent,
    FakeZygote,
    Script,
    honest,
    stream_of,
)
from tests.support import cancelled_after

Play = Callable[[Script], FakeZygote]

ARGV = ["/bin/workload", "argument"]
SHORT_ENV = {"A": "1"}


@pytest.fixture
def play(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Makes sessions meet a script."""

    def start(script: Script) -> FakeZygote:
        zygote = FakeZygote(nursery, script)
        monkeypatch.setattr(_agent, "acquire", zygote.acquire)
        monkeypatch.setattr(_agent, "discard", lambda _: None)
        return zygote

    return start


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_session, "CLOSE_SECONDS", 0.03)


async def events_of(session: linx.Session) -> list[linx.Event]:
    return [event async for event in session.events()]


# ---- a normal life ----------------------------------------------------------------------------------------------


async def test_a_whole_life(play: Play) -> None:
    zygote = play(honest)
    async with linx.spawn(ARGV, env=SHORT_ENV, namespaces={"uts", "net"}, stdio=linx.DEVNULL) as s:
        assert (s.state, s.host_pid, s.child_pid, s.ran) == ("ready", NOBODY, 1, False)
        assert os.get_inheritable(s.pidfd) is False
        await s.proceed()
        assert (s.state, s.ran, s.outcome, s.returncode) == ("running", True, None, None)
        await s.proceed()
        s.signal(signal.SIGHUP)
        assert await s.wait() == linx.Signaled(1)
        assert (s.state, s.returncode) == ("signaled", -1)
        assert s.usage == linx.Usage(2.0, 1.0, 4.0, 65536)
    assert s.pidfd == -1
    assert await events_of(s) == [linx.Ready(NOBODY), linx.Running(), linx.Signaled(1)]
    request, *commands = zygote.agent.received
    assert commands[:2] == ["proceed", ("signal", 1)]
    assert request[0] == "spawn"
    assert request[1]["argv"] == [b"/bin/workload", b"argument"]
    assert request[1]["env"] == [b"A=1"]
    assert request[1]["namespaces"] == ["net", "uts"]
    assert request[1]["fds"] == [("null", 0), ("null", 1), ("null", 2), "cwd"]
    assert zygote.agent.fds == 1


async def test_leaving_a_parked_session_aborts_it(play: Play) -> None:
    zygote = play(honest)
    async with linx.spawn(ARGV, shutdown=linx.Kill(grace=1.5)) as s:
        pass
    assert s.outcome == linx.Aborted()
    assert zygote.agent.received[1:] == [("shutdown", 1500)]


async def test_verbs_before_the_checkpoint_are_sent_in_order(play: Play) -> None:
    zygote = play(honest)
    async with linx.spawn(ARGV, wait_ready=False) as s:
        assert s.state == "starting"
        with pytest.raises(linx.NotReady):
            _ = s.host_pid
        s.signal(10)
        s.signal(12)
        await s.proceed()
        assert await s.wait() == linx.Signaled(10)
    assert zygote.agent.received[1:4] == [("signal", 10), ("signal", 12), "proceed"]


async def test_an_agent_that_says_one_byte_at_a_time(play: Play) -> None:
    async def stutter(agent: FakeAgent) -> None:
        await agent.request()
        for i, byte in enumerate(stream_of(WHOLE)):
            await agent.send_with_fd(bytes((byte,)), 1 if i == 0 else 0)
            await wait_all_tasks_blocked()

    play(stutter)
    async with linx.spawn(ARGV, auto_proceed=True) as s:
        assert await s.wait() == linx.Exited(7)
    assert await events_of(s) == [linx.Ready(NOBODY), linx.Running(), linx.Exited(7)]


async def test_an_agent_that_says_all_at_once(play: Play) -> None:
    async def blurt(agent: FakeAgent) -> None:
        await agent.request()
        await agent.say(*WHOLE)

    play(blurt)
    async with linx.spawn(ARGV) as s:
        assert s.state == "exited"
        with pytest.raises(linx.NoProcess):
            await s.proceed()
        assert await s.wait() == linx.Exited(7)
    assert await events_of(s) == [linx.Ready(NOBODY), linx.Running(), linx.Exited(7)]


async def test_many_waiters_get_one_answer(play: Play) -> None:
    play(honest)
    outcomes: list[linx.Outcome] = []
    heard: list[list[linx.Event]] = []

    async def waiter(s: linx.Session) -> None:
        outcomes.append(await s.wait())

    async def listener(s: linx.Session) -> None:
        heard.append(await events_of(s))

    async with linx.spawn(ARGV) as s, trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(waiter, s)
            nursery.start_soon(listener, s)
        with trio.move_on_after(0) as scope:  # a cancelled wait does not touch the session
            await s.wait()
        assert scope.cancelled_caught
        await s.proceed()
        s.terminate()
    assert await s.wait() == linx.Signaled(15)
    assert outcomes == [linx.Signaled(15)] * 50
    assert heard == [[linx.Ready(NOBODY), linx.Running(), linx.Signaled(15)]] * 50


async def test_iterators_of_events_made_at_any_time_see_all_of_them(play: Play) -> None:
    play(honest)
    async with linx.spawn(ARGV, wait_ready=False) as s:
        before = s.events()
        await s.proceed()
        between = s.events()
        assert await anext(between) == linx.Ready(NOBODY)
        s.kill()
        await s.wait()
        behind = s.events()
        everything = [linx.Ready(NOBODY), linx.Running(), linx.Signaled(9)]
        assert [e async for e in before] == [e async for e in behind] == everything
        assert [e async for e in between] == everything[1:]
        with pytest.raises(StopAsyncIteration):
            await anext(before)


async def test_a_cancelled_iterator_loses_no_event(play: Play) -> None:
    play(honest)
    async with linx.spawn(ARGV) as s:
        events = s.events()
        for expected in (linx.Ready(NOBODY), linx.Running(), linx.Signaled(9)):
            with trio.CancelScope() as scope:
                scope.cancel()
                await anext(events)
            assert scope.cancelled_caught
            match expected:
                case linx.Running():
                    await s.proceed()
                case linx.Signaled():
                    s.kill()
            assert await anext(events) == expected


# ---- a monitor for the next session -----------------------------------------------------------------------------


def ended_and_idle(*more: bytes, fds: int = 1, waits: bool = True) -> Script:
    async def script(agent: FakeAgent) -> None:
        await agent.request()
        await agent.send_with_fd(stream_of([*WHOLE, m.Idle()]) + b"".join(more), fds)
        if waits:
            await agent.until_closed()

    return script


async def test_a_monitor_that_is_idle_is_kept(play: Play) -> None:
    """The session is over with that word: nobody waits for the end of the stream."""
    zygote = play(ended_and_idle())
    async with linx.spawn(ARGV) as s:
        assert await s.wait() == linx.Exited(7)
    assert zygote.kept == 1
    s.kill()  # the monitor is another session's now
    await wait_all_tasks_blocked()
    assert zygote.agent.received[1:] == []


async def test_of_a_session_that_is_told_at_once_all_is_known(play: Play) -> None:
    async def script(agent: FakeAgent) -> None:
        await agent.request()
        await agent.say(RAN, m.Idle())

    zygote = play(script)
    async with linx.spawn(ARGV, auto_proceed=True) as s:
        assert await s.wait() == linx.Exited(7)
        assert (s.host_pid, s.child_pid, s.state) == (RAN.host_pid, RAN.child_pid, "exited")
        assert s.usage == linx.Usage(2.0, 1.0, 4.0, 65536, None, None)
        assert [event async for event in s.events()] == [
            linx.Ready(RAN.host_pid), linx.Running(), linx.Exited(7),
        ]  # fmt: skip
    assert zygote.kept == 1


async def test_run_keeps_it_too(play: Play) -> None:
    zygote = play(ended_and_idle())
    assert (await linx.run(ARGV, check=False)).returncode == 7
    assert zygote.kept == 1


SPOILT: dict[str, Script] = {
    "an fd that nobody owns": ended_and_idle(fds=2),
    "half a frame": ended_and_idle(frame_of(m.Exit(0))[:5], waits=False),
    "an event": ended_and_idle(frame_of(m.Exit(0))),
    "nonsense": ended_and_idle(b"\xff" * 4),
    "idle again": ended_and_idle(frame_of(m.Idle())),
}


@pytest.mark.parametrize("case", SPOILT)
async def test_one_that_says_more_is_not(play: Play, case: str) -> None:
    zygote = play(SPOILT[case])
    async with linx.spawn(ARGV) as s:
        assert await s.wait() == linx.Exited(7)
    assert zygote.kept == 0


# ---- nonsense ---------------------------------------------------------------------------------------------------

HUGE = 1 << 20000  # more digits than Python writes
JUNK: dict[str, bytes] = {
    "empty frame": encode_frame(b""),
    "no term": encode_frame(b"\x84a\1"),
    "half a term": encode_frame(b"\x83h\x03d\0"),
    "rubbish behind the term": encode_frame(b"\x83a\1a\1"),
    "text": b"Segmentation fault (core dumped)\n",
    "huge frame": (MAX_FRAME + 1).to_bytes(4, "big"),
    "hugest frame": b"\xff\xff\xff\xff",
    "unknown event": encode_frame(b"\x83a\7"),
    "a number of 6000 digits": encode_frame(etf.encode(HUGE)),
    "an event of 6000 digits": encode_frame(etf.encode(("status", "exited", (HUGE,)))),
    "a list": encode_frame(etf.encode(["lost", 9])),
}
"""What no agent says, whatever it has said before."""

UNTIL_SPAWNED, UNTIL_READY, UNTIL_RUNNING = (SPAWNED,), (SPAWNED, PARKED), (SPAWNED, PARKED, STARTED)
PHASES: dict[str, tuple[m.Message, ...]] = {
    "first": (),
    "starting": UNTIL_SPAWNED,
    "ready": UNTIL_READY,
    "running": UNTIL_RUNNING,
}
WRONG_ORDER: list[tuple[str, m.Message]] = [
    ("first", PARKED),
    ("first", STARTED),
    ("first", m.Exit(0)),
    ("starting", SPAWNED),
    ("starting", RAN),
    ("running", RAN),
    ("starting", STARTED),
    ("starting", m.Exit(0)),
    ("ready", SPAWNED),
    ("ready", PARKED),
    ("ready", m.Exit(0)),
    ("running", SPAWNED),
    ("running", PARKED),
    ("running", STARTED),
    ("running", m.Abortion(NOBODY)),
    ("running", m.Refusal(2, "execve", -1)),
    ("running", m.Degraded(1, "nice", 0)),
]
WRONG_CONTENT: list[tuple[str, m.Message]] = [
    ("starting", m.Degraded(1, "nice", 1000)),
    ("running", m.UsageReport(10**400, 0, 0, 0, False)),
    ("running", m.UsageReport(0, 0, 10**400, 0, False)),
]


def said_then(phase: str, junk: bytes, then: str = "closes", *, fds: int = 1) -> Script:
    async def script(agent: FakeAgent) -> None:
        await agent.request()
        if phase != "first":
            await agent.say(*PHASES[phase])
        await agent.send_with_fd(junk, fds)
        if then == "listens":
            await agent.until_told(("shutdown", 0))
        elif then == "stays":
            await trio.sleep_forever()
        elif then == "babbles":
            while not agent.at_end:
                await agent.send_with_fd(bytes(5000))

    return script


async def meets_nonsense(phase: str) -> None:
    """Whatever is asked of such a session: the one error, and `Failed` as its last event."""
    async with linx.spawn(ARGV, env=SHORT_ENV, wait_ready=False, stdio=linx.PIPE) as s:
        for _ in range(2):
            with pytest.raises(linx.AgentError, match="nonsense"):
                await s.wait()
        assert (s.state, s.outcome, s.returncode, s.ran) == ("failed", None, None, phase == "running")
        milestones: list[linx.Event] = []
        if phase in ("ready", "running"):
            milestones.append(linx.Ready(NOBODY))
        if phase == "running":
            milestones.append(linx.Running())
        assert await events_of(s) == [*milestones, linx.Failed(errno.EPROTO, "agent")]
        for verb in (s.proceed, s.abort):
            with pytest.raises(linx.NoProcess):
                await verb()
        with pytest.raises(linx.NoProcess):
            s.signal(9)
        s.kill()


@pytest.mark.parametrize("then", ["closes", "listens"])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("junk", JUNK)
async def test_nonsense(play: Play, junk: str, phase: str, then: str) -> None:
    zygote = play(said_then(phase, JUNK[junk], then))
    await meets_nonsense(phase)
    assert zygote.asked == 1
    if then == "listens":
        assert ("shutdown", 0) in zygote.agent.received


@pytest.mark.parametrize("then", ["closes", "listens"])
@pytest.mark.parametrize(("phase", "event"), [*WRONG_ORDER, *WRONG_CONTENT], ids=repr)
async def test_events_that_cannot_come_now(play: Play, phase: str, event: m.Message, then: str) -> None:
    play(said_then(phase, frame_of(event), then))
    await meets_nonsense(phase)


async def test_spawned_without_its_fd(play: Play) -> None:
    play(said_then("first", frame_of(SPAWNED), fds=0))
    await meets_nonsense("first")


@pytest.mark.parametrize("phase", ["first", "starting"])
async def test_nonsense_before_the_checkpoint_is_raised_on_entering(play: Play, phase: str) -> None:
    play(said_then(phase, JUNK["unknown event"]))
    with pytest.raises(linx.AgentError, match="nonsense") as caught:
        async with linx.spawn(ARGV, stdio=linx.PIPE):
            pytest.fail("entered")
    assert caught.value.subject == 7


async def test_nonsense_wakes_everybody(play: Play) -> None:
    speak = trio.Event()

    async def script(agent: FakeAgent) -> None:
        await agent.request()
        await agent.say(*UNTIL_READY)
        await speak.wait()
        await agent.send(JUNK["unknown event"])

    async def expects(error: type[Exception], verb: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(error):
            await verb()

    play(script)
    async with linx.spawn(ARGV) as s, trio.open_nursery() as nursery:
        for verb in (s.wait, s.proceed, s.abort):
            nursery.start_soon(expects, linx.AgentError, verb)
        nursery.start_soon(events_of, s)
        await wait_all_tasks_blocked()
        speak.set()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("then", ["stays", "babbles"])
async def test_a_mad_agent_that_never_closes(play: Play, then: str) -> None:
    play(said_then("ready", JUNK["unknown event"], then))
    with pytest.raises(linx.AgentError, match="could not be ended within"):
        await meets_nonsense("ready")


async def say_spawned(agent: FakeAgent, process: trio.Process) -> None:
    """That this is the workload, with a real pidfd."""
    pidfd = os.pidfd_open(process.pid)
    try:
        await agent.send(frame_of(m.Spawned(process.pid)), [pidfd])
    finally:
        os.close(pidfd)


async def test_after_nonsense_the_workload_is_killed_through_its_pidfd(play: Play) -> None:
    """The agent may not be able to do it any more."""
    sleeper = await trio.lowlevel.open_process(["sleep", "1000"])

    async def script(agent: FakeAgent) -> None:
        await agent.request()
        await say_spawned(agent, sleeper)
        await agent.send(JUNK["unknown event"])

    try:
        play(script)
        with pytest.raises(linx.AgentError, match="nonsense"):
            async with linx.spawn(ARGV):
                pytest.fail("entered")
        assert await sleeper.wait() == -signal.SIGKILL
    finally:
        sleeper.kill()
        await sleeper.wait()


# ---- behind the end ---------------------------------------------------------------------------------------------

ENDS: list[tuple[tuple[m.Message, ...], linx.Outcome]] = [
    ((*UNTIL_RUNNING, USAGE, m.Exit(7)), linx.Exited(7)),
    ((RAN,), linx.Exited(7)),
    ((*UNTIL_RUNNING, USAGE, m.Kill(9)), linx.Signaled(9)),
    ((*UNTIL_READY, m.Abortion(NOBODY)), linx.Aborted()),
    ((*UNTIL_READY, USAGE, m.Kill(9)), linx.Signaled(9)),
]


MORE = {**JUNK, **{repr(end): frame_of(end) for end in (m.Exit(0), m.Kill(1), m.Lost(-9), PARKED, USAGE)}}


@pytest.mark.parametrize("kind", MORE)
@pytest.mark.parametrize(
    ("life", "outcome"), ENDS, ids=["exited", "all at once", "signaled", "aborted", "killed while parked"]
)
async def test_what_is_said_behind_the_end_changes_nothing(
    play: Play, life: tuple[m.Message, ...], outcome: linx.Outcome, kind: str
) -> None:
    """Two terminal events, and whatever else."""
    more = MORE[kind]

    async def script(agent: FakeAgent) -> None:
        await agent.request()
        await agent.say(*life)
        await agent.send_with_fd(more + more)

    play(script)
    async with linx.spawn(ARGV, wait_ready=False) as s:
        assert await s.wait() == outcome
    assert s.outcome == outcome
    assert await s.wait() == outcome
    assert (await events_of(s))[-1] == outcome
    assert sum(isinstance(event, linx.Outcome) for event in await events_of(s)) == 1


@pytest.mark.parametrize("rest", [1, 3, 4, 5])
async def test_a_truncated_frame_behind_the_end_changes_nothing(play: Play, rest: int) -> None:
    async def script(agent: FakeAgent) -> None:
        await agent.request()
        await agent.say(*WHOLE)
        await agent.send(frame_of(m.Exit(0))[:rest])

    play(script)
    async with linx.spawn(ARGV) as s:
        assert await s.wait() == linx.Exited(7)


async def test_a_refusal_is_a_setup_error_everywhere(play: Play) -> None:
    async def script(agent: FakeAgent) -> None:
        await agent.request()
        await agent.say(*UNTIL_READY)
        await agent.until_told("proceed")
        await agent.say(m.Refusal(errno.ENOENT, "execve", -1))

    play(script)
    async with linx.spawn(ARGV) as s:
        for verb in (s.proceed, s.wait, s.wait):
            with pytest.raises(linx.SetupError) as caught:
                await verb()
            assert isinstance(caught.value, FileNotFoundError)
            assert (caught.value.errno, caught.value.stage, caught.value.filename) == (2, "execve", ARGV[0])
    assert await events_of(s) == [linx.Ready(NOBODY), linx.Failed(errno.ENOENT, "execve")]


async def test_a_refusal_with_any_number_is_a_setup_error(play: Play) -> None:
    async def script(agent: FakeAgent) -> None:
        await agent.request()
        await agent.say(m.Refusal(1 << 70, "execve", 1 << 70))

    play(script)
    with pytest.raises(linx.LinxError):
        async with linx.spawn(ARGV):
            pytest.fail("entered")


async def test_an_option_that_was_given_up_is_named(play: Play) -> None:
    async def script(agent: FakeAgent) -> None:
        steps = (await agent.request())["steps"]
        place = next(i for i, step in enumerate(steps) if step[0] == "optional" and step[1][0] == "hostname")
        await agent.say(SPAWNED, m.Degraded(1, "hostname", place), PARKED)
        await agent.until_told(("shutdown", 0))
        await agent.say(m.Abortion(NOBODY))

    play(script)
    async with linx.spawn(ARGV, hostname="box", namespaces={"uts"}, optional={"hostname"}) as s:
        assert s.info().degraded == ("hostname",)


# ---- fds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 10, 16, 40])
async def test_extra_fds_are_closed(play: Play, count: int) -> None:
    async def script(agent: FakeAgent) -> None:
        await agent.request()
        for event in WHOLE:
            await agent.send_with_fd(frame_of(event), count)

    play(script)
    before = len(os.listdir("/proc/self/fd"))
    async with linx.spawn(ARGV, auto_proceed=True) as s:
        assert await s.wait() == linx.Exited(7)
        assert s.pidfd >= 0
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_second_spawned_does_not_leak_the_first_ones_fd(play: Play) -> None:
    async def script(agent: FakeAgent) -> None:
        await agent.request()
        await agent.say(SPAWNED, SPAWNED, SPAWNED)

    play(script)
    with pytest.raises(linx.LinxError):
        async with linx.spawn(ARGV):
            pytest.fail("entered")


# ---- an agent that dies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", frame_of(m.Lost(-9)), frame_of(m.Lost(-9)) * 2])
@pytest.mark.parametrize("phase", PHASES)
async def test_an_agent_that_dies(play: Play, phase: str, said: bytes) -> None:
    """The stream's end without a terminal event; or the zygote's word for it, which knows the status."""
    play(said_then(phase, said, fds=0))
    async with linx.spawn(ARGV, wait_ready=False) as s:
        with pytest.raises(linx.AgentDied) as caught:
            await s.wait()
        assert caught.value.exit_status == (-9 if said else None)
        assert caught.value.state == ("starting" if phase == "first" else phase)
        assert s.state == "failed"
    assert (await events_of(s))[-1] == linx.Failed(errno.ECONNRESET, "agent")


async def dies_on_entering() -> tuple[linx.LinxError | None, linx.Session | None]:
    """The error of a session that is entered and waited for, and the session, if it could be entered."""
    session = None
    try:
        async with linx.spawn(ARGV, env=SHORT_ENV, auto_proceed=True, stdio=linx.PIPE) as session:
            await session.wait()
    except linx.LinxError as exc:
        return exc, session
    return None, session


async def test_the_socket_closed_at_every_byte_of_a_conversation(play: Play) -> None:
    stream = stream_of(WHOLE)
    boundaries = set(itertools.accumulate(len(frame_of(event)) for event in WHOLE)) | {0}
    length = 0

    async def script(agent: FakeAgent) -> None:
        await agent.request()
        if length:
            await agent.send_with_fd(stream[:length])

    zygote = play(script)
    for length in range(len(stream) + 1):
        error, session = await dies_on_entering()
        if length == len(stream):
            assert error is None
            assert session is not None
            assert session.outcome == linx.Exited(7)
        elif length in boundaries:
            assert type(error) is linx.AgentDied
        else:
            assert type(error) is linx.AgentError
            assert "middle of a frame" in str(error)
    assert zygote.asked == len(stream) + 1


async def test_the_socket_closed_at_every_byte_of_a_request(play: Play) -> None:
    """Nothing was started then: another agent is asked, a few times."""
    length = total = 0

    async def counts(agent: FakeAgent) -> None:
        nonlocal total
        total = len(await agent.read())

    async def reads(agent: FakeAgent) -> None:
        left = length
        while left:
            left -= len(await agent.read(left))

    play(counts)
    await dies_on_entering()
    zygote = play(reads)
    for length in range(total + 1):
        zygote.asked = 0
        error, _ = await dies_on_entering()
        assert type(error) is linx.AgentDied
        assert error.state == "starting"
        assert zygote.asked == (1 if length == total else _session._ZYGOTE_ATTEMPTS)


@pytest.mark.parametrize("failures", range(_session._ZYGOTE_ATTEMPTS + 1))
@pytest.mark.parametrize("how", ["hand-over", "unread"])
async def test_a_dead_zygote_is_replaced(play: Play, failures: int, how: str) -> None:
    async def script(agent: FakeAgent) -> None:
        if how == "hand-over" or zygote.asked > failures:
            await honest(agent)

    zygote = play(script)
    if how == "hand-over":
        zygote.refusals = [BrokenPipeError(errno.EPIPE, "gone") for _ in range(failures)]
    if failures == _session._ZYGOTE_ATTEMPTS:
        with pytest.raises(linx.AgentDied):
            async with linx.spawn(ARGV, stdio=linx.PIPE):
                pytest.fail("entered")
        return
    async with linx.spawn(ARGV, stdio=linx.PIPE) as s:
        await s.proceed()
        s.terminate()
        assert await s.wait() == linx.Signaled(15)
    assert await events_of(s) == [linx.Ready(NOBODY), linx.Running(), linx.Signaled(15)]
    assert zygote.asked == failures + 1


async def test_a_busy_zygote_is_waited_for(play: Play) -> None:
    zygote = play(honest)
    zygote.refusals = [BlockingIOError(errno.EAGAIN, "full"), OSError(errno.ETOOMANYREFS, "too many references")]
    async with linx.spawn(ARGV) as s:
        assert s.state == "ready"
    assert zygote.asked == 3


async def test_any_other_error_of_the_hand_over_leaves_nothing(play: Play) -> None:
    zygote = play(honest)
    zygote.refusals = [OSError(errno.EIO, "broken")]
    with pytest.raises(linx.SetupError) as caught:
        async with linx.spawn(ARGV, stdio=linx.PIPE):
            pytest.fail("entered")
    assert (caught.value.errno, caught.value.stage) == (errno.EIO, "fork")


@pytest.mark.parametrize("error", [linx.AgentError("stale"), linx.NotSupported("spawning", "Linux")], ids=repr)
async def test_no_agent_at_all(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    async def acquire(caller: object) -> None:
        raise error

    monkeypatch.setattr(_agent, "acquire", acquire)
    with pytest.raises(type(error)) as caught:
        async with linx.spawn(ARGV, stdio=linx.PIPE):
            pytest.fail("entered")
    assert caught.value is error


# ---- an agent that is silent, and people who lose patience ------------------------------------------------------


async def mute(agent: FakeAgent) -> None:
    await agent.until_closed()


def mute_from(phase: str) -> Script:
    async def script(agent: FakeAgent) -> None:
        await agent.request()
        if phase != "first":
            await agent.say(*PHASES[phase])
        await agent.until_closed()

    return script


def ends_when_told(phase: str) -> Script:
    """Silent too, but it obeys when the block is left."""

    async def script(agent: FakeAgent) -> None:
        await agent.request()
        if phase != "first":
            await agent.say(*PHASES[phase])
        async for command in agent:
            if command[0] == "shutdown":
                await agent.say(*([m.Kill(9)] if phase == "running" else [m.Abortion(NOBODY)]))
                return

    return script


async def uses_all(wait_ready: bool) -> None:
    spawned = linx.spawn(ARGV, env=SHORT_ENV, stdio=linx.PIPE, wait_ready=wait_ready)
    async with spawned as s, trio.open_nursery() as nursery:
        nursery.start_soon(events_of, s)
        nursery.start_soon(s.wait)
        s.signal(1)
        await s.proceed()
        await trio.sleep_forever()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("wait_ready", [True, False])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", [mute_from, ends_when_told])
async def test_cancelling_at_every_step(
    play: Play, kind: Callable[[str], Script], phase: str, wait_ready: bool
) -> None:
    """After so many steps of the scheduler, until it makes no difference any more."""
    play(kind(phase))
    for turns in range(0, 24, 1 if kind is ends_when_told else 3):
        async with cancelled_after(turns) as scope:
            await uses_all(wait_ready)
        assert scope.cancelled_caught


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("verb", ["wait", "proceed", "abort", "events", "body"])
@pytest.mark.parametrize("phase", ["starting", "ready", "running"])
async def test_cancelling_each_verb_ends_the_session(play: Play, phase: str, verb: str) -> None:
    play(ends_when_told(phase))
    with trio.CancelScope() as scope:
        async with linx.spawn(ARGV, wait_ready=False) as s, trio.open_nursery() as nursery:
            await wait_all_tasks_blocked()
            assert s.state == phase

            async def ask() -> None:
                match verb:
                    case "wait":
                        await s.wait()
                    case "proceed" if phase != "running":
                        await s.proceed()
                    case "abort" if phase != "running":
                        await s.abort()
                    case "events":
                        await events_of(s)
                    case _:
                        await trio.sleep_forever()

            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    assert s.outcome == (linx.Signaled(9) if phase == "running" else linx.Aborted())


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("phase", PHASES)
async def test_a_silent_agent_does_not_keep_the_block_for_ever(play: Play, phase: str) -> None:
    zygote = play(mute_from(phase))
    with pytest.raises(linx.AgentError, match="could not be ended within"):
        async with linx.spawn(ARGV, wait_ready=False):
            await wait_all_tasks_blocked()
    assert ("shutdown", 0) in zygote.agent.received


@pytest.mark.usefixtures("impatient")
async def test_an_exception_of_the_body_is_not_hidden_by_a_silent_agent(play: Play) -> None:
    play(mute_from("running"))
    mine = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        async with linx.spawn(ARGV):
            raise mine
    assert caught.value is mine
    assert "could not be ended within" in "".join(mine.__notes__)


@pytest.mark.usefixtures("impatient")
async def test_verbs_after_a_close_that_failed(play: Play) -> None:
    play(mute_from("running"))
    with pytest.raises(linx.AgentError):
        async with linx.spawn(ARGV) as s:
            pass
    s.kill()
    for _ in range(2):
        with suppress(linx.NoProcess):
            s.signal(1)
        await wait_all_tasks_blocked()
    with pytest.raises(linx.AgentDied):
        await s.wait()


@pytest.mark.usefixtures("impatient")
async def test_a_silent_agents_workload_is_killed_through_its_pidfd(play: Play) -> None:
    sleeper = await trio.lowlevel.open_process(["sleep", "1000"])

    async def script(agent: FakeAgent) -> None:
        await agent.request()
        await say_spawned(agent, sleeper)
        await agent.say(PARKED)
        await agent.until_closed()

    try:
        play(script)
        with pytest.raises(linx.AgentError, match=str(sleeper.pid)):
            async with linx.spawn(ARGV):
                pass
        assert await sleeper.wait() == -signal.SIGKILL
    finally:
        sleeper.kill()
        await sleeper.wait()


# ---- long requests ----------------------------------------------------------------------------------------------

LONG = {f"V{i}": "x" * 100_000 for i in range(40)}


async def test_a_request_that_does_not_fit_into_the_socket(play: Play) -> None:
    """It is finished before anything that is said behind it, and its fds come with its first byte."""
    first = 0

    async def script(agent: FakeAgent) -> None:
        nonlocal first
        await wait_all_tasks_blocked()
        request = await agent.request()
        first = agent.fds
        assert request["env"] == [f"{name}={value}".encode() for name, value in LONG.items()]
        await agent.until_told("abort")
        await agent.say(SPAWNED, m.Abortion(NOBODY))

    zygote = play(script)
    async with linx.spawn(ARGV, env=LONG, wait_ready=False) as s:
        s.signal(10)
        s.signal(12)
        await s.abort()
        assert s.outcome == linx.Aborted()
    assert first == 4
    assert zygote.agent.received[1:] == [("signal", 10), ("signal", 12), "abort"]


@pytest.mark.parametrize("size", [0, 1, 1 << 16, 1 << 20])
async def test_an_agent_that_dies_inside_a_long_request(play: Play, size: int) -> None:
    async def script(agent: FakeAgent) -> None:
        left = size
        while left:
            left -= len(await agent.read(left))

    zygote = play(script)
    with pytest.raises(linx.AgentDied):
        async with linx.spawn(ARGV, env=LONG, stdio=linx.PIPE):
            pytest.fail("entered")
    assert zygote.asked == _session._ZYGOTE_ATTEMPTS


@pytest.mark.parametrize("refusal", [BrokenPipeError(errno.EPIPE, "gone"), OSError(errno.EIO, "broken")], ids=repr)
async def test_a_zygote_that_is_gone_before_the_rest_of_a_long_request_is_sent(play: Play, refusal: OSError) -> None:
    """What was to be finished has been closed before it could begin."""
    zygote = play(ends_when_told("starting"))
    zygote.refusals = [refusal]
    with suppress(linx.SetupError):
        async with linx.spawn(ARGV, env=LONG, wait_ready=False):
            assert isinstance(refusal, BrokenPipeError)
    await wait_all_tasks_blocked()
    assert zygote.asked == (2 if isinstance(refusal, BrokenPipeError) else 1)


@pytest.mark.parametrize("failures", [2, 3])
async def test_a_keeper_whose_zygotes_are_killed(play: Play, failures: int) -> None:
    async def listen(agent: FakeAgent) -> None:
        await agent.read(1)

    zygote = play(listen)
    zygote.refusals = [BrokenPipeError(errno.EPIPE, "gone") for _ in range(failures)]
    one, other = socket.socketpair()
    with one, other:
        if failures == 2:
            (await _keeper.start("netlink", one.fileno())).close()
        else:
            with pytest.raises(linx.AgentError, match="killed as soon as it is started"):
                await _keeper.start("netlink", one.fileno())
    assert zygote.asked == 3


@pytest.mark.usefixtures("impatient")
async def test_leaving_while_a_long_request_is_under_way(play: Play) -> None:
    stay = trio.Event()

    async def script(agent: FakeAgent) -> None:
        await stay.wait()

    async def leaves() -> None:
        async with linx.spawn(ARGV, env=LONG, wait_ready=False) as s:
            for _ in range(100):
                s.signal(1)

    play(script)
    try:
        with pytest.raises(linx.AgentError, match="could not be ended within"):
            await leaves()
    finally:
        stay.set()


async def test_a_request_longer_than_any_frame_is_refused_by_name(play: Play) -> None:
    zygote = play(honest)
    with pytest.raises((linx.LinxError, ValueError), match=r"argv|env"):
        async with linx.spawn([*ARGV, "x" * (MAX_FRAME + 1)], stdio=linx.PIPE):
            pytest.fail("entered")
    assert zygote.agents == []


# ---- clocks of tests --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clock", [MockClock(), MockClock(autojump_threshold=0)], ids=["stopped", "autojump"])
@pytest.mark.parametrize("case", ["parked", "running", "nonsense", "dies"])
def test_a_mock_clock_does_not_break_closing(monkeypatch: pytest.MonkeyPatch, clock: MockClock, case: str) -> None:
    scripts = {
        "parked": honest,
        "running": honest,
        "nonsense": said_then("ready", JUNK["text"], "listens"),
        "dies": said_then("ready", b"", fds=0),
    }

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            zygote = FakeZygote(nursery, scripts[case])
            monkeypatch.setattr(_agent, "acquire", zygote.acquire)
            async with linx.spawn(ARGV, shutdown=linx.Kill(grace=30), wait_ready=False) as s:
                if case == "running":
                    await s.proceed()
                elif case != "parked":
                    with pytest.raises(linx.LinxError):
                        await s.wait()
            assert (s.state, s.pidfd) == (
                {"parked": "aborted", "running": "signaled", "nonsense": "failed", "dies": "failed"}[case],
                -1,
            )

    trio.run(main, clock=clock)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("clock", [MockClock(), MockClock(autojump_threshold=0)], ids=["stopped", "autojump"])
def test_a_mock_clock_does_not_make_the_wait_for_a_silent_agent_endless(
    monkeypatch: pytest.MonkeyPatch, clock: MockClock
) -> None:
    """Processes live in real time, whatever the test's clock says: neither less patience, nor more."""

    async def leaves() -> None:
        async with linx.spawn(ARGV):
            pass

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            zygote = FakeZygote(nursery, mute_from("running"))
            monkeypatch.setattr(_agent, "acquire", zygote.acquire)
            token = trio.lowlevel.current_trio_token()
            release = threading.Timer(10, lambda: token.run_sync_soon(zygote.agent.close))
            release.start()
            start = time.monotonic()
            try:
                with pytest.raises(linx.AgentError, match="could not be ended within"):
                    await leaves()
            finally:
                release.cancel()
                release.join()
            assert time.monotonic() - start >= 2 * _session.CLOSE_SECONDS

    trio.run(main, clock=clock)


# ---- the owner --------------------------------------------------------------------------------------------------

LIFE: list[linx.Event] = [linx.Ready(NOBODY), linx.Running(), linx.Signaled(9)]


@pytest.mark.parametrize("size", [0, 1, 2, 3, math.inf])
async def test_the_owner_hears_everything_in_order_however_late(play: Play, size: float) -> None:
    """A full channel, or one without any buffer, delays its own events only."""
    play(honest)
    send, receive = trio.open_memory_channel[linx.Event](size)
    async with linx.spawn(ARGV, owner=send) as s:
        await s.proceed()
        s.kill()
        assert await s.wait() == linx.Signaled(9)
    assert await events_of(s) == LIFE
    async with send, receive:
        assert [await receive.receive() for _ in LIFE] == LIFE
        await wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            receive.receive_nowait()


async def test_an_owner_that_listens_hears_at_once(play: Play) -> None:
    play(honest)
    send, receive = trio.open_memory_channel[linx.Event](0)
    async with send, receive, linx.spawn(ARGV, owner=send, wait_ready=False) as s:
        assert await receive.receive() == LIFE[0]
        await s.proceed()
        assert await receive.receive() == LIFE[1]
        s.kill()
        assert await receive.receive() == LIFE[2]


@pytest.mark.parametrize("size", [0, 1, math.inf])
@pytest.mark.parametrize("side", ["receiver", "sender", "both"])
@pytest.mark.parametrize("when", ["before", "ready", "running"])
async def test_an_owner_that_is_gone_is_no_trouble(play: Play, size: float, side: str, when: str) -> None:
    play(honest)
    send, receive = trio.open_memory_channel[linx.Event](size)

    async def close() -> None:
        if side != "sender":
            await receive.aclose()
        if side != "receiver":
            await send.aclose()

    if when == "before":
        await close()
    async with linx.spawn(ARGV, owner=send) as s:
        if when == "ready":
            await close()
        await s.proceed()
        if when == "running":
            await close()
        s.kill()
        assert await s.wait() == linx.Signaled(9)
    assert await events_of(s) == LIFE
    await close()
    await send.aclose()
    await receive.aclose()


@pytest.mark.parametrize("size", [0, 1, 2, math.inf])
async def test_a_new_owner_hears_what_comes_from_now_on(play: Play, size: float) -> None:
    play(honest)
    first, of_first = trio.open_memory_channel[linx.Event](size)
    second, of_second = trio.open_memory_channel[linx.Event](size)
    async with first, of_first, second, of_second, linx.spawn(ARGV, owner=first) as s:
        s.set_owner(second)
        await s.proceed()
        s.set_owner(None)
        s.kill()
        await s.wait()
        assert await of_first.receive() == LIFE[0]
        assert await of_second.receive() == LIFE[1]
        await wait_all_tasks_blocked()
        for channel in (of_first, of_second):
            with pytest.raises(trio.WouldBlock):
                channel.receive_nowait()
        assert await events_of(s) == LIFE


async def test_an_owner_that_is_none_is_refused(play: Play) -> None:
    play(honest)
    async with linx.spawn(ARGV) as s:
        wrong: list[Any] = [5, print, [], events_of]
        for channel in wrong:
            with pytest.raises(TypeError, match="channel"):
                s.set_owner(channel)


async def test_one_owner_for_many_sessions(play: Play) -> None:
    play(honest)
    send, receive = trio.open_memory_channel[linx.Event](0)

    async def one() -> None:
        async with linx.spawn(ARGV, owner=send) as s:
            await s.proceed()

    async with send, receive, trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(one)
        heard = [await receive.receive() for _ in range(30)]
    for event in LIFE:
        assert heard.count(event) == 10


async def test_owners_and_failure(play: Play) -> None:
    play(said_then("ready", JUNK["text"]))
    send, receive = trio.open_memory_channel[linx.Event](math.inf)
    async with send, receive:
        async with linx.spawn(ARGV, owner=send, wait_ready=False) as s:
            with pytest.raises(linx.AgentError):
                await s.wait()
        assert [receive.receive_nowait() for _ in range(2)] == [LIFE[0], linx.Failed(errno.EPROTO, "agent")]


# ---- wrong use --------------------------------------------------------------------------------------------------


async def test_a_session_is_entered_once(play: Play) -> None:
    play(honest)
    manager = linx.spawn(ARGV)
    async with manager:
        with pytest.raises(RuntimeError, match="once"):
            await manager.__aenter__()
    with pytest.raises(RuntimeError, match="once"):
        await manager.__aenter__()


@pytest.mark.parametrize(
    ("number", "error"), [(0, ValueError), (65, ValueError), (-9, ValueError), (True, TypeError), ("9", TypeError)]
)
async def test_a_signal_that_is_none(play: Play, number: int, error: type[Exception]) -> None:
    zygote = play(honest)
    async with linx.spawn(ARGV) as s:
        with pytest.raises(error, match=f"sig .*{number!r}"):
            s.signal(number)
    assert zygote.agent.received[1:] == [("shutdown", 0)]


@pytest.mark.parametrize("number", [1, 64, signal.SIGUSR1])
async def test_signals_that_are_some(play: Play, number: int) -> None:
    zygote = play(honest)
    async with linx.spawn(ARGV) as s:
        s.signal(number)
    assert zygote.agent.received[1] == ("signal", int(number))


async def test_a_body_that_raises_gets_its_own_exception(play: Play) -> None:
    play(honest)
    mine = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        async with linx.spawn(ARGV):
            raise mine
    assert caught.value is mine
    assert not hasattr(mine, "__notes__")


async def test_repr_tells_the_state(play: Play) -> None:
    play(honest)
    async with linx.spawn(ARGV) as s:
        assert repr(s) == f"<linx_trio.Session '/bin/workload' ready pid {NOBODY}>"
    assert "aborted" in repr(s)
