"""The guarantee: when the block is left, in whatever way and state, no process of the session is alive or a zombie.

That nothing is left is also checked behind each test, by the fixture in conftest: by the token in the environment,
below the zygote, among this process' children. What has not executed anything yet has no token, so here pids are
checked too.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

import linx_trio as linx
from tests.agent.programs.phases import (
    FAMILY,
    PHASES,
    SHAPES,
    argv_for,
    bomb_options,
    family,
    line_of,
    lone_zygote,
    members,
    reach,
    script,
    send_proceed,
    spawn_in,
    state_of,
    stop,
    zygote,
)
from tests.support import DEADLINE, children_of, descendants_of, eventually_async, exists, monitor_of, with_token

SOON = 15.0
"""Seconds in which a block is left. Less than `_session.CLOSE_SECONDS`: the second killer must not be what does it."""


class Boom(Exception):
    pass


def remaining(pids: list[int]) -> list[int]:
    return [pid for pid in pids if exists(pid)]


# ---- who does not want to go -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("leader", ["leaderless", "leader"])
@pytest.mark.parametrize("manner", ["immune", "mortal"])
@pytest.mark.parametrize("stdio", ["quiet", "pipes"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_no_descendant_outlives_the_block(
    shape: str, stdio: str, manner: str, leader: str, nothing_is_left: str
) -> None:
    words = [shape, *({stdio, manner, leader} & {"quiet", "immune", "leaderless"})]
    async with linx.spawn(family(*words), stdout=linx.PIPE) as s:
        await s.proceed()
        pids = await members(s)
        descendants = pids[1:]
        assert descendants
        if leader == "leaderless":
            assert await s.wait() == linx.Exited(3)
        assert remaining(descendants) == descendants
        assert set(descendants) <= set(with_token(nothing_is_left))
        started = time.monotonic()
    assert remaining(pids) == []
    assert with_token(nothing_is_left) == []
    assert time.monotonic() - started < SOON
    assert s.outcome == (linx.Exited(3) if leader == "leaderless" else linx.Signaled(9))


async def test_all_shapes_at_once_and_a_neighbour_that_stays(nothing_is_left: str) -> None:
    async with linx.spawn(family(*FAMILY), stdout=linx.PIPE) as neighbour:
        await neighbour.proceed()
        theirs = await members(neighbour)
        async with linx.spawn(family("immune", *SHAPES), stdout=linx.PIPE) as s:
            await s.proceed()
            pids = await members(s)
            assert len(pids) > len(SHAPES)
        assert remaining(pids) == []
        assert remaining(theirs) == theirs
        assert neighbour.state == "running"
    assert with_token(nothing_is_left) == []


async def test_run_leaves_nothing_behind(nothing_is_left: str) -> None:
    """Captured output ends with the workload, although descendants hold the pipe; and then they are gone too."""
    argv = family("leaderless", "immune", *SHAPES)
    with trio.fail_after(DEADLINE):
        completed = await linx.run(argv, capture_stdout=True, check=False)
    assert completed.outcome == linx.Exited(3)
    pids = [int(pid) for pid in completed.stdout.split()]
    assert len(pids) > len(SHAPES)
    assert remaining(pids) == []
    assert with_token(nothing_is_left) == []


async def test_a_workload_may_take_its_time_if_it_is_given(tmp_path: Path) -> None:
    """`shutdown=Kill(grace)` on leaving, though the block is left by a cancellation: the exit is shielded."""
    code = "trap 'echo TERM; exec >&-; exit 7' TERM; echo up; while :; do sleep 1000 & wait; done"
    with (tmp_path / "out").open("wb") as out, trio.CancelScope() as scope:
        async with linx.spawn(["sh", "-c", code], stdout=out, shutdown=linx.Kill(grace=DEADLINE)) as s:
            await s.proceed()
            await eventually_async(lambda: (tmp_path / "out").read_text() == "up\n", "its trap is set")
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert (tmp_path / "out").read_text() == "up\nTERM\n"
    assert s.outcome == linx.Exited(7)


async def test_the_grace_is_bounded(nothing_is_left: str) -> None:
    async with linx.spawn(family(*FAMILY), stdout=linx.PIPE, shutdown=linx.Kill(grace=0.2)) as s:
        await s.proceed()
        pids = await members(s)
        started = time.monotonic()
    assert 0.2 <= time.monotonic() - started < SOON
    assert s.outcome == linx.Signaled(9)
    assert remaining(pids) == []


async def test_a_grace_reaches_a_stopped_workload() -> None:
    code = "trap 'exit 7' TERM; echo up; while :; do sleep 1000 & wait; done"
    async with linx.spawn(["sh", "-c", code], stdout=linx.PIPE, shutdown=linx.Kill(grace=DEADLINE)) as s:
        await s.proceed()
        assert await line_of(s) == "up\n"
        await stop(s.host_pid)
        started = time.monotonic()
    assert s.outcome == linx.Exited(7)
    assert time.monotonic() - started < SOON


# ---- ways to leave, in each phase ------------------------------------------------------------------------------------

ENDS: dict[str, tuple[linx.Outcome, bool]] = {  # what became of it, and whether it ran
    "starting": (linx.Aborted(), False),
    "parked": (linx.Aborted(), False),
    "proceeding": (linx.Signaled(9), False),
    "running": (linx.Signaled(9), True),
    "ended": (linx.Exited(3), True),
}


def check_end(session: linx.Session, phase: str, pids: list[int], token: str) -> None:
    assert remaining(pids) == []
    assert with_token(token) == []
    assert (session.outcome, session.ran) == ENDS[phase]
    assert session.pidfd == -1 if phase != "starting" else True


@pytest.mark.parametrize("phase", PHASES)
async def test_left_normally(phase: str, nothing_is_left: str) -> None:
    async with spawn_in(phase) as s:
        pids = await reach(s, phase)
        assert remaining(pids) == pids
        started = time.monotonic()
    assert time.monotonic() - started < SOON
    check_end(s, phase, pids, nothing_is_left)


@pytest.mark.parametrize("phase", PHASES)
async def test_left_by_an_exception_which_comes_out_as_itself(phase: str, nothing_is_left: str) -> None:
    boom, ended = Boom(), list[tuple[linx.Session, list[int]]]()
    with pytest.raises(Boom) as caught:
        await _leave_by(boom, phase, ended)
    assert caught.value is boom
    assert boom.__cause__ is None
    assert boom.__context__ is None
    assert not hasattr(boom, "__notes__")
    ((s, pids),) = ended
    check_end(s, phase, pids, nothing_is_left)


async def _leave_by(exc: BaseException, phase: str, ended: list[tuple[linx.Session, list[int]]]) -> None:
    async with spawn_in(phase) as s:
        ended.append((s, await reach(s, phase)))
        raise exc


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_left_by_an_exception_that_is_no_Exception(kind: type[BaseException], nothing_is_left: str) -> None:
    exc, ended = kind(), list[tuple[linx.Session, list[int]]]()
    with pytest.raises(kind) as caught:
        await _leave_by(exc, "running", ended)
    assert caught.value is exc
    ((s, pids),) = ended
    check_end(s, "running", pids, nothing_is_left)


@pytest.mark.parametrize("phase", PHASES)
async def test_left_by_cancellation(phase: str, nothing_is_left: str) -> None:
    pids: list[int] = []
    with trio.CancelScope() as scope:
        async with spawn_in(phase) as s:
            pids = await reach(s, phase)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    check_end(s, phase, pids, nothing_is_left)


@pytest.mark.parametrize("phase", PHASES)
async def test_left_normally_within_a_cancelled_scope(phase: str, nothing_is_left: str) -> None:
    """Leaving is no checkpoint that could be cancelled: it does all its work."""
    pids: list[int] = []
    with trio.CancelScope() as scope:
        async with spawn_in(phase) as s:
            pids = await reach(s, phase)
            scope.cancel()
    check_end(s, phase, pids, nothing_is_left)


@pytest.mark.parametrize("phase", PHASES)
async def test_left_by_a_failing_sibling_task(phase: str, nothing_is_left: str) -> None:
    """The usual cause of a cancellation. The group is the nursery's own; the session adds nothing to it."""
    boom, pids, sessions = Boom(), list[int](), list[linx.Session]()
    ready = trio.Event()

    async def holder() -> None:
        async with spawn_in(phase) as s:
            sessions.append(s)
            pids.extend(await reach(s, phase))
            ready.set()
            await trio.sleep_forever()

    async def sibling() -> None:
        await ready.wait()
        raise boom

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(holder)
            nursery.start_soon(sibling)

    with pytest.raises(ExceptionGroup) as caught:
        await both()
    assert caught.value.exceptions == (boom,)
    assert remaining(pids) == []
    assert with_token(nothing_is_left) == []
    outcome, ran = ENDS[phase]
    if phase != "starting":  # there the request had time to go out
        assert (sessions[0].outcome, sessions[0].ran) == (outcome, ran)


@pytest.mark.parametrize("phase", ["parked", "running", "ended"])
async def test_entering_is_cancelled(phase: str, nothing_is_left: str) -> None:
    """The zygote is stopped, so that entering cannot come to its end before the cancellation does."""
    agent = lone_zygote()
    options = {"auto_proceed": True} if phase != "parked" else {}
    await stop(agent)
    try:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_enter, phase, options)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
                nursery.start_soon(_continue, agent)
    finally:
        os.kill(agent, signal.SIGCONT)
    assert scope.cancelled_caught
    assert with_token(nothing_is_left) == []
    assert descendants_of(agent) == []


async def _enter(phase: str, options: dict[str, bool]) -> None:
    async with linx.spawn(argv_for(phase), **options):  # type: ignore[arg-type]
        raise AssertionError("entered")


async def _continue(pid: int) -> None:
    with trio.CancelScope(shield=True):
        await trio.testing.wait_all_tasks_blocked()
        os.kill(pid, signal.SIGCONT)


async def test_a_session_that_never_began_is_aborted(nothing_is_left: str) -> None:
    """Everything is said before there is a monitor: the request, a proceed, and the end."""
    agent = lone_zygote()
    await stop(agent)
    try:
        async with linx.spawn(family(*FAMILY), wait_ready=False) as s:
            assert s.state == "starting"
            assert children_of(agent) == []
            await send_proceed(s)
            os.kill(agent, signal.SIGCONT)
    finally:
        os.kill(agent, signal.SIGCONT)
    assert s.outcome in (linx.Aborted(), linx.Signaled(9))
    assert descendants_of(agent) == []


async def test_a_session_that_failed_is_left_like_any_other() -> None:
    async with linx.spawn(["/nowhere"]) as s:
        pid = s.host_pid
        with pytest.raises(FileNotFoundError):
            await s.proceed()
        assert s.state == "failed"
    assert not exists(pid)


# ---- fork loops --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "news"), [("fork", "full\n"), ("comet", "flying\n")])
@pytest.mark.parametrize("way", ["leave", "kill"])
async def test_fork_loop(kind: str, news: str, way: str, nothing_is_left: str) -> None:
    uid, limits = bomb_options()
    async with linx.spawn(script("bomb.py", kind, uid), stdout=linx.PIPE, stderr=linx.DEVNULL, rlimits=limits) as s:
        await s.proceed()
        for _ in range(5):
            assert await line_of(s) == news
        # Comets: more are there than stay long enough to be seen.
        await eventually_async(lambda: bool(with_token(nothing_is_left)), "it is there")
        started = time.monotonic()
        if way == "kill":
            s.kill()
            await eventually_async(lambda: not with_token(nothing_is_left), "kill() ends it", SOON)
    assert with_token(nothing_is_left) == []
    assert time.monotonic() - started < SOON


# ---- killed, stopped, aborted while parked ---------------------------------------------------------------------------


async def events_of(session: linx.Session) -> list[linx.Event]:
    with trio.fail_after(DEADLINE):
        return [event async for event in session.events()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1])
async def test_killed_while_parked(number: signal.Signals) -> None:
    async with linx.spawn(family(*FAMILY)) as s:
        pid = s.host_pid
        os.kill(pid, number)
        with trio.fail_after(DEADLINE):
            assert await s.wait() == linx.Signaled(number)
        assert not s.ran
        assert s.returncode == -number
        with pytest.raises(linx.NoProcess):
            await s.proceed()
        assert await events_of(s) == [linx.Ready(pid), linx.Signaled(number)]
    assert not exists(pid)


async def test_killed_while_parked_with_somebody_proceeding() -> None:
    """Whoever is first: the truth is one, and `proceed` tells the same as the events."""
    seen: Counter[bool] = Counter()
    rng = random.Random(5)
    for _ in range(60):
        async with linx.spawn(["sleep", "1000"]) as s:
            acts = [lambda: os.kill(s.host_pid, signal.SIGKILL), lambda: None]
            rng.shuffle(acts)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_proceed_or_no_process, s)
                acts[0]()
                if rng.random() < 0.5:
                    await trio.lowlevel.checkpoint()
                acts[1]()
            assert await s.wait() == linx.Signaled(9)
            assert (linx.Running() in await events_of(s)) is s.ran
            seen[s.ran] += 1
    assert seen[False] > 0


async def _proceed_or_no_process(session: linx.Session) -> None:
    try:
        await session.proceed()
    except linx.NoProcess:
        assert not session.ran
    else:
        assert session.ran
        session.kill()


async def test_killed_between_proceed_and_execve() -> None:
    async with spawn_in("proceeding") as s:
        (pid,) = await reach(s, "proceeding")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_expect_no_process, s.proceed)
            await trio.testing.wait_all_tasks_blocked()
            os.kill(pid, signal.SIGKILL)
        assert await s.wait() == linx.Signaled(9)
        assert not s.ran
        assert await events_of(s) == [linx.Ready(pid), linx.Signaled(9)]
        with pytest.raises(linx.NoProcess):
            await s.abort()


async def _expect_no_process(verb: Callable[[], Awaitable[None]]) -> None:
    with pytest.raises(linx.NoProcess):
        await verb()


async def test_stopped_while_parked_then_released() -> None:
    async with linx.spawn(["sh", "-c", "exit 4"]) as s:
        await stop(s.host_pid)
        await send_proceed(s)
        assert s.state == "ready"
        os.kill(s.host_pid, signal.SIGCONT)
        assert await s.wait() == linx.Exited(4)


async def test_stopped_while_parked_then_aborted() -> None:
    async with linx.spawn(family(*FAMILY)) as s:
        pid = s.host_pid
        await stop(pid)
        with trio.fail_after(DEADLINE):
            await s.abort()
        assert not exists(pid)
        assert s.outcome == linx.Aborted()


async def test_abort_discards_and_reaps_at_once() -> None:
    async with linx.spawn(family(*FAMILY)) as s:
        pid = s.host_pid
        await s.abort()
        assert not exists(pid)
        assert await s.wait() == linx.Aborted()
        assert await events_of(s) == [linx.Ready(pid), linx.Aborted()]


# ---- abort against proceed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait_ready", [True, False])
async def test_abort_against_proceed(wait_ready: bool) -> None:
    """Many times, in both orders and any number of callers: one wins, and everybody learns which."""
    rng = random.Random(7)
    winners: Counter[str] = Counter()
    for _ in range(120):
        async with linx.spawn(["true"], wait_ready=wait_ready) as s:
            results: dict[str, list[str]] = {"proceed": [], "abort": []}
            calls = [("proceed", s.proceed), ("abort", s.abort)] * rng.choice([1, 2])
            rng.shuffle(calls)
            async with trio.open_nursery() as nursery:
                for name, verb in calls:
                    nursery.start_soon(_attempt, verb, results[name], rng.random() < 0.3)
            outcome = await s.wait()
            assert outcome in (linx.Aborted(), linx.Exited(0))
            ran = outcome == linx.Exited(0)
            assert s.ran is ran
            assert (linx.Running() in await events_of(s)) is ran
            if ran:
                assert set(results["proceed"]) <= {"done", "NoProcess"}
                assert "done" in results["proceed"]
                assert set(results["abort"]) <= {"AlreadyRunning", "NoProcess"}
            else:
                assert "done" in results["abort"]
                assert set(results["abort"]) <= {"done", "NoProcess"}
                assert set(results["proceed"]) == {"NoProcess"}
            winners["proceed" if ran else "abort"] += 1
    assert min(winners["proceed"], winners["abort"]) > 0, winners


async def _attempt(verb: Callable[[], Awaitable[None]], results: list[str], later: bool) -> None:
    if later:
        await trio.lowlevel.checkpoint()
    try:
        await verb()
    except linx.StateError as exc:
        results.append(type(exc).__name__)
    else:
        results.append("done")


# ---- kill() ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
async def test_kill(phase: str, nothing_is_left: str) -> None:
    """The whole subtree at once, while the block is not left yet."""
    async with spawn_in(phase) as s:
        pids = await reach(s, phase)
        s.kill()
        with trio.fail_after(DEADLINE):
            outcome = await s.wait()
        await eventually_async(lambda: not remaining(pids) and not with_token(nothing_is_left), "all of it is gone")
        assert (outcome, s.ran) == ENDS[phase]
        s.kill()  # again: no effect, no error
    check_end(s, phase, pids, nothing_is_left)


async def test_two_kills_with_a_fork_in_between(nothing_is_left: str) -> None:
    async with linx.spawn(family(*FAMILY), stdout=linx.PIPE) as s:
        await s.proceed()
        pids = await members(s)
        for _ in range(10):
            s.kill()
            await trio.lowlevel.checkpoint()
        assert await s.wait() == linx.Signaled(9)
    assert remaining(pids) == []


@pytest.mark.parametrize("first", ["terminate", "kill", "signal"])
async def test_a_signal_before_running_does_not_lose_the_session(first: str) -> None:
    async with linx.spawn(["sleep", "1000"], wait_ready=False) as s:
        if first == "kill":
            s.kill()
            assert await s.wait() == linx.Aborted()
            return
        if first == "terminate":
            s.terminate()
        else:
            s.signal(signal.SIGKILL)
        await s.proceed()
        assert await s.wait() == linx.Signaled(15 if first == "terminate" else 9)
        assert s.ran


# ---- bystanders ------------------------------------------------------------------------------------------------------


async def test_a_session_inside_a_session() -> None:
    """Blocks nest in any order, and each ends its own only."""
    async with linx.spawn(family(*FAMILY), stdout=linx.PIPE) as outer:
        await outer.proceed()
        outside = await members(outer)
        for phase in PHASES:
            async with spawn_in(phase) as inner:
                pids = await reach(inner, phase)
            assert remaining(pids) == []
            assert remaining(outside) == outside
    assert remaining(outside) == []


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
async def test_blocks_are_left_in_any_order(order: tuple[int, ...]) -> None:
    """Nothing that a later session's agent has inherited holds an earlier one back."""
    leave = [trio.Event() for _ in order]
    pids: dict[int, list[int]] = {}
    left: list[int] = []

    async def one(number: int) -> None:
        async with linx.spawn(family(*FAMILY), stdout=linx.PIPE) as s:
            await s.proceed()
            pids[number] = await members(s)
            await leave[number].wait()
        left.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(len(order)):
            nursery.start_soon(one, number)
            await eventually_async(lambda: len(pids) == number + 1, "it runs")  # noqa: B023
        for count, number in enumerate(order, 1):
            leave[number].set()
            await eventually_async(lambda: len(left) == count, "its block is left", SOON)  # noqa: B023
            assert remaining(pids.pop(number)) == []
            assert all(remaining(others) == others for others in pids.values())
    assert left == list(order)


async def test_the_zygote_has_no_children_but_monitors_of_open_sessions() -> None:
    agent = zygote()
    assert children_of(agent) == []
    async with linx.spawn(["true"]) as s:
        assert children_of(agent) == [monitor_of(s.host_pid)]
        await s.proceed()
        await s.wait()
    assert children_of(agent) == []


async def test_waiting_is_cancelled_the_session_is_not() -> None:
    async with linx.spawn(family(*FAMILY), stdout=linx.PIPE) as s:
        await s.proceed()
        pids = await members(s)
        for _, verb in itertools.product(range(3), [s.wait, s.proceed]):
            with trio.move_on_after(0):
                await verb()
        with trio.move_on_after(0.01) as scope:
            await s.wait()
        assert scope.cancelled_caught
        assert remaining(pids) == pids
        assert state_of(s.host_pid) == "S"
        assert s.state == "running"
