"""Sessions that nobody listens to as long as nobody asks: whoever asks gets to know, in whatever way and at once."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing

import linx_trio as linx
from linx_trio import _events
from tests.agent.rights import rootless
from tests.support import DEADLINE, eventually, eventually_async, exists, monitor_of

SLEEP = ["/bin/sleep", "1000"]
SHAPES = pytest.mark.parametrize("options", [{}, rootless("pid")], ids=["plain", "pid"])
KILLED = linx.Signaled(signal.SIGKILL)


def readers() -> list[str]:
    """The system tasks that listen."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    tasks = [task for nursery in root.child_nurseries for task in nursery.child_tasks]
    return [task.name for task in tasks if task.name.startswith("linx: ")]


def kill_behind_its_back(session: linx.Session) -> None:
    """The workload's end, and that the agent has told of it: both without asking the session."""
    signal.pidfd_send_signal(session.pidfd, signal.SIGKILL)
    said = select.poll()
    assert session._channel is not None
    said.register(session._channel.fileno(), select.POLLIN)
    assert said.poll(DEADLINE * 1000)


async def wait_for(condition: Callable[[], object]) -> None:
    with trio.fail_after(DEADLINE):
        while not condition():
            await trio.lowlevel.checkpoint()


@SHAPES
async def test_nobody_listens_unasked(options: dict[str, Any]) -> None:
    async with linx.spawn(SLEEP, auto_proceed=True, **options) as s:
        await trio.testing.wait_all_tasks_blocked()
        assert readers() == []
        s.kill()
        assert await s.wait() == KILLED
    assert readers() == []


@SHAPES
@pytest.mark.parametrize(
    "ask",
    [
        lambda s: s.state == "signaled",
        lambda s: s.outcome == KILLED,
        lambda s: s.returncode == -signal.SIGKILL,
        lambda s: s.usage is not None,
        lambda s: s.info().outcome == KILLED and s.info().state == "signaled" and s.info().usage is not None,
    ],
    ids=["state", "outcome", "returncode", "usage", "info"],
)
async def test_who_asks_without_waiting_is_told_of_what_has_been(
    options: dict[str, Any], ask: Callable[[linx.Session], bool]
) -> None:
    async with linx.spawn(SLEEP, auto_proceed=True, **options) as s:
        kill_behind_its_back(s)
        await wait_for(lambda: ask(s))


async def test_two_answers_without_a_checkpoint_between_them_are_the_same() -> None:
    async with linx.spawn(SLEEP, auto_proceed=True) as s:
        assert s.state == "running"
        kill_behind_its_back(s)
        assert s.state == "running"
        s.signal(signal.SIGUSR1)  # by the same knowledge
        await wait_for(lambda: s.state == "signaled")
        with pytest.raises(linx.NoProcess):
            s.signal(signal.SIGUSR1)


async def test_a_verb_knows_what_has_been() -> None:
    async with linx.spawn(SLEEP, auto_proceed=True) as s:
        kill_behind_its_back(s)
        with pytest.raises(linx.NoProcess):  # the first thing that anybody asks
            s.terminate()


async def test_another_thread_gets_to_know() -> None:
    async with linx.spawn(SLEEP, auto_proceed=True) as s:
        kill_behind_its_back(s)
        await trio.to_thread.run_sync(eventually, lambda: s.state == "signaled", "the thread knows")


async def test_another_run_may_ask_and_end() -> None:
    async def ask() -> str:
        return s.state

    async with linx.spawn(SLEEP, auto_proceed=True) as s:
        assert await trio.to_thread.run_sync(trio.run, ask) == "running"
        await eventually_async(readers, "somebody listens, in the run that the session belongs to")
        assert s.state == "running"
        s.kill()
        assert await s.wait() == KILLED


async def test_events_can_be_asked_for_in_another_thread() -> None:
    async with linx.spawn(SLEEP, auto_proceed=True) as s:
        heard = await trio.to_thread.run_sync(s.events)
        signal.pidfd_send_signal(s.pidfd, signal.SIGKILL)
        with trio.fail_after(DEADLINE):
            assert [event async for event in heard][2:] == [KILLED]


async def test_a_signal_handler_may_ask_while_another_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    apply = linx.Session._apply

    def interrupted(session: linx.Session, *news: Any) -> None:
        signal.raise_signal(signal.SIGUSR1)
        apply(session, *news)

    before = signal.signal(signal.SIGUSR1, lambda *_: asked.append(s.state))
    try:
        async with linx.spawn(SLEEP, auto_proceed=True, init=True, **rootless("pid")) as s:
            kill_behind_its_back(s)
            monkeypatch.setattr(linx.Session, "_apply", interrupted)
            await wait_for(lambda: s.state == "signaled")
            monkeypatch.undo()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert asked
    assert set(asked) <= {"running", "signaled"}
    assert (await linx.run(["/bin/true"])).returncode == 0


@pytest.mark.parametrize("cancelled", [0, 1, 2])
async def test_any_of_those_who_wait_can_be_cancelled(cancelled: int) -> None:
    """The first one listens for all."""
    outcomes: list[object] = []

    async def wait(scope: trio.CancelScope) -> None:
        with scope:
            outcomes.append(await s.wait())

    async with linx.spawn(SLEEP, auto_proceed=True) as s:
        scopes = [trio.CancelScope() for _ in range(3)]
        async with trio.open_nursery() as nursery:
            for scope in scopes:
                nursery.start_soon(wait, scope)
                await trio.testing.wait_all_tasks_blocked()
            scopes[cancelled].cancel()
            await trio.testing.wait_all_tasks_blocked()
            s.kill()
        assert outcomes == [KILLED, KILLED]


async def test_a_lonely_listener_that_is_cancelled_leaves_nobody() -> None:
    async with linx.spawn(SLEEP, auto_proceed=True) as s:
        for _ in range(3):
            with trio.move_on_after(0):
                await s.wait()
            assert readers() == []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(s.wait)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert readers() == []
        s.kill()
        assert await s.wait() == KILLED


async def test_events_come_by_themselves() -> None:
    async with linx.spawn(SLEEP, auto_proceed=True) as s:
        heard = s.events()
        assert [type(await anext(heard)) for _ in range(2)] == [_events.Ready, _events.Running]
        await trio.testing.wait_all_tasks_blocked()
        signal.pidfd_send_signal(s.pidfd, signal.SIGKILL)
        with trio.fail_after(DEADLINE):
            assert [event async for event in heard] == [KILLED]


async def test_events_come_to_who_asks_while_another_one_listens() -> None:
    async with linx.spawn(SLEEP, auto_proceed=True) as s, trio.open_nursery() as nursery:
        nursery.start_soon(s.wait)
        await trio.testing.wait_all_tasks_blocked()
        heard = s.events()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True), trio.fail_after(DEADLINE):
            await trio.testing.wait_all_tasks_blocked()
            signal.pidfd_send_signal(s.pidfd, signal.SIGKILL)
            assert [event async for event in heard][2:] == [KILLED]


async def test_an_owner_is_told_unasked() -> None:
    send, receive = trio.open_memory_channel[linx.Event](10)
    async with linx.spawn(SLEEP, auto_proceed=True) as s:
        s.set_owner(send)
        signal.pidfd_send_signal(s.pidfd, signal.SIGKILL)
        with trio.fail_after(DEADLINE):
            assert await receive.receive() == KILLED


async def test_a_new_owner_is_not_told_of_what_has_been() -> None:
    send, receive = trio.open_memory_channel[linx.Event](10)
    async with linx.spawn(SLEEP, auto_proceed=True) as s:
        kill_behind_its_back(s)
        s.set_owner(send)
        assert await s.wait() == KILLED
        with pytest.raises(trio.WouldBlock):
            receive.receive_nowait()


@SHAPES
async def test_an_agent_that_dies_unheard_is_missed_when_somebody_asks(options: dict[str, Any]) -> None:
    async with linx.spawn(SLEEP, auto_proceed=True, **options) as s:
        channel = s._channel
        assert channel is not None
        os.kill(monitor_of(s.host_pid), signal.SIGKILL)
        await eventually_async(lambda: select.select([channel.fileno()], [], [], 0)[0], "the stream has something")
        await wait_for(lambda: s.state == "failed")
        with pytest.raises(linx.AgentDied):
            await s.wait()


@SHAPES
async def test_a_block_that_is_left_unheard_is_left_with_nothing(options: dict[str, Any]) -> None:
    async with linx.spawn(SLEEP, auto_proceed=True, **options) as s:
        kill_behind_its_back(s)
    assert s.outcome == KILLED
    async with linx.spawn(SLEEP, auto_proceed=True, **options) as s:
        pass
    assert isinstance(s.outcome, linx.Signaled)


@SHAPES
@pytest.mark.parametrize("awaited", [False, True])
def test_a_block_that_is_never_left_ends_with_the_run(options: dict[str, Any], awaited: bool) -> None:
    async def leave() -> linx.Session:
        session = await linx.spawn(SLEEP, auto_proceed=True, **options).__aenter__()
        if awaited:
            trio.lowlevel.spawn_system_task(session.wait)
            await trio.testing.wait_all_tasks_blocked()
        return session

    session = trio.run(leave)
    eventually(lambda: not exists(session.host_pid), "the workload is gone")
    assert session.pidfd == -1
