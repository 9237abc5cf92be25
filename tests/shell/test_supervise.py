"""Supervision over fake agents, on a clock that jumps: every time and every order is exact, and nothing waits."""

from __future__ import annotations

import errno
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import linx_trio as linx
from linx_trio import _agent
from linx_trio._proto import messages as m
from tests.shell.fake import NOBODY, PARKED, SPAWNED, STARTED, USAGE, FakeAgent, FakeZygote
from tests.support import cancelled_after

ENOENT = m.Refusal(errno.ENOENT, "execve", -1)
EXIT = m.Exit(0)
STEADY = linx.Backoff(initial=1.0, factor=1.0, jitter=0.0)


@dataclass
class Part:
    """What one incarnation does."""

    lives: float = math.inf
    end: m.Message = EXIT
    """How it ends when it has lived so long."""
    term: float = 0.0
    """How long it takes to end when it is told to."""
    refused: m.Refusal | None = None
    parks: float = 0.0
    """How long it takes to be parked."""


def fails(after: float = 0.0, code: int = 1) -> Part:
    return Part(lives=after, end=m.Exit(code))


class Stage:
    """Plays all agents: each workload by its name, its incarnations in turn, the last part for all that follow."""

    def __init__(self) -> None:
        self.parts: dict[str, list[Part]] = {}
        self.log: list[str] = []
        self.born = trio.current_time()
        self.alive: set[str] = set()

    def note(self, what: str) -> None:
        self.log.append(f"{round(trio.current_time() - self.born, 3):g}{what}")

    def happened(self) -> str:
        """Since it was last asked: seconds, and ``+`` for started, ``-`` for told to end, ``.`` for gone."""
        log, self.log = " ".join(self.log), []
        return log

    async def play(self, agent: FakeAgent) -> None:
        fields = await agent.request()
        name = fields["argv"][0].decode()
        parts = self.parts.get(name) or [Part()]
        part = parts.pop(0) if len(parts) > 1 else parts[0]
        assert name not in self.alive, "one incarnation at a time"
        self.alive.add(name)
        self.note(f"+{name}")
        try:
            await self._act(agent, name, part, parked=not fields.get("auto_proceed"))
        finally:
            self.alive.remove(name)
            self.note(f".{name}")

    async def _act(self, agent: FakeAgent, name: str, part: Part, *, parked: bool) -> None:
        with trio.move_on_after(part.parks):
            await agent.hear()
            self.note(f"-{name}")
            await agent.say(m.Abortion(NOBODY))
            return
        await agent.say(SPAWNED, PARKED)
        if parked:
            async for command in agent:
                if command == "proceed":
                    break
                if command in ("abort", "kill") or command[0] == "shutdown":
                    await agent.say(m.Abortion(NOBODY))
                    return
        if part.refused:
            await agent.say(part.refused)
            return
        await agent.say(STARTED)
        with trio.move_on_after(part.lives) as life:
            async for command in agent:
                if command == "kill" or command[0] in ("shutdown", "signal"):
                    break
        if life.cancelled_caught:
            await agent.say(USAGE, part.end)
            return
        self.note(f"-{name}")
        await trio.sleep(part.term)
        await agent.say(USAGE, m.Kill(15))


@pytest.fixture
def clock() -> MockClock:
    """Named by each test, since pytest-trio looks for clocks there only."""
    return MockClock(autojump_threshold=0)


@pytest.fixture
async def stage(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage()
    zygote = FakeZygote(nursery, stage.play)
    monkeypatch.setattr(_agent, "acquire", zygote.acquire)
    monkeypatch.setattr(_agent, "discard", lambda _: None)
    return stage


def child(id: str, restart: str = "permanent", **options: Any) -> linx.ChildSpec:
    return linx.ChildSpec(linx.Workload([id], env={}, stdio=linx.DEVNULL), id=id, restart=restart, **options)


def children(ids: str) -> list[linx.ChildSpec]:
    return [child(id) for id in ids]


class Running:
    """A supervisor in a task of its own, and what became of it."""

    supervisor: linx.Supervisor
    result: tuple[linx.Child, ...] | None = None
    error: BaseException | None = None

    def __init__(self, nursery: trio.Nursery, stage: Stage) -> None:
        self.nursery = nursery
        self.stage = stage
        self.scope = trio.CancelScope()
        self.over = trio.Event()

    async def _supervise(self, *args: Any, task_status: trio.TaskStatus[Any], **options: Any) -> None:
        with self.scope:
            try:
                self.result = await linx.supervise(*args, task_status=task_status, **options)
            except Exception as exc:
                self.error = exc
                if not hasattr(self, "supervisor"):
                    raise
            finally:
                self.over.set()

    async def start(self, specs: list[linx.ChildSpec], **options: Any) -> linx.Supervisor:
        options = {"backoff": STEADY, **options}
        self.supervisor = await self.nursery.start(partial(self._supervise, specs, **options))
        return self.supervisor

    async def until_over(self) -> str:
        await self.over.wait()
        return self.stage.happened()

    def states(self) -> dict[str, str]:
        return {child.id: child.state for child in self.supervisor.children()}

    def __getitem__(self, id: str) -> linx.Child:
        return next(child for child in self.supervisor.children() if child.id == id)


@pytest.fixture
async def running(nursery: trio.Nursery, stage: Stage) -> Running:
    return Running(nursery, stage)


async def after(seconds: float, verb: Callable[..., Awaitable[object]], *args: Any) -> None:
    await trio.sleep(seconds)
    await verb(*args)


# ---- start and stop ----------------------------------------------------------------------------------------------


async def test_each_is_started_when_the_one_before_it_is_ready(
    running: Running, stage: Stage, clock: MockClock
) -> None:
    async def in_two_seconds(session: linx.Session) -> None:
        assert session.state == "running"
        await trio.sleep(2)

    specs = [child("a", ready=in_two_seconds), child("b", ready=in_two_seconds), child("c")]
    supervisor = await running.start(specs)
    assert stage.happened() == "0+a 2+b 4+c"
    assert running.states() == {"a": "running", "b": "running", "c": "running"}
    assert [one.since for one in supervisor.children()] == [2, 4, 4]
    running.scope.cancel()
    assert await running.until_over() == "4-c 4.c 4-b 4.b 4-a 4.a"


async def test_they_are_stopped_one_after_the_other_and_cancellation_does_not_hasten_that(
    running: Running, stage: Stage, clock: MockClock
) -> None:
    stage.parts = {"a": [Part(term=1)], "b": [Part(term=2)], "c": [Part(term=3)]}
    await running.start(children("abc"))
    stage.happened()
    running.scope.cancel()
    await trio.sleep(0.5)
    assert running.states() == {"a": "stopping", "b": "stopping", "c": "stopping"}
    running.scope.cancel()
    assert await running.until_over() == "0-c 3.c 3-b 5.b 5-a 6.a"
    assert running.states() == {"a": "stopped", "b": "stopped", "c": "stopped"}
    assert running.scope.cancelled_caught


async def test_one_that_is_just_being_started_is_stopped_in_its_turn(
    running: Running, stage: Stage, clock: MockClock
) -> None:
    stage.parts = {"a": [fails(1), Part(parks=5)], "b": [Part(term=2)]}
    await running.start(children("ab"))
    await trio.sleep(3)
    stage.happened()
    running.scope.cancel()
    assert await running.until_over() == "3-b 5.b 5-a 5.a"


async def test_the_grace_is_that_of_each_child(
    running: Running, stage: Stage, monkeypatch: pytest.MonkeyPatch, clock: MockClock
) -> None:
    commands: list[Any] = []
    play = stage.play

    async def listening(agent: FakeAgent) -> None:
        await play(agent)
        commands.extend(command for command in agent.received if command[0] == "shutdown")

    zygote = FakeZygote(running.nursery, listening)
    monkeypatch.setattr(_agent, "acquire", zygote.acquire)
    await running.start([child("a"), child("b", shutdown=0.25)])
    running.scope.cancel()
    await running.until_over()
    assert ("shutdown", 5000) in commands
    assert ("shutdown", 250) in commands


async def test_it_returns_when_all_have_ended_for_good(stage: Stage, clock: MockClock) -> None:
    stage.parts = {"a": [fails(1), Part(lives=2)], "b": [fails(5)]}
    done = await linx.supervise([child("a", "transient"), child("b", "temporary")], backoff=STEADY)
    assert stage.happened() == "0+a 0+b 1.a 2+a 4.a 5.b"
    a, b = done
    assert (a.id, a.state, a.restarts, a.last_outcome, a.last_error) == ("a", "finished", 1, linx.Exited(0), None)
    assert (b.id, b.state, b.restarts, b.last_outcome, b.pid) == ("b", "finished", 0, linx.Exited(1), None)


async def test_without_children_there_is_nothing_to_do_unless_some_may_come(
    running: Running, stage: Stage, clock: MockClock
) -> None:
    assert await linx.supervise([]) == ()
    supervisor = await running.start([])
    await trio.sleep(100)
    await supervisor.add(child("a", "temporary"))
    assert running.states() == {"a": "running"}
    await supervisor.remove("a")
    await trio.sleep(100)
    assert not running.over.is_set()
    await supervisor.shutdown()
    await running.over.wait()
    assert running.result == ()


async def test_a_shutdown_by_command_returns(running: Running, stage: Stage, clock: MockClock) -> None:
    stage.parts = {"a": [Part(term=1)]}
    supervisor = await running.start(children("ab"))
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(supervisor.shutdown)
    await supervisor.shutdown()
    assert await running.until_over() == "0+a 0+b 0-b 0.b 0-a 1.a"
    assert running.result is not None


# ---- restarts ----------------------------------------------------------------------------------------------------

ENDS: list[tuple[Part, bool, bool, linx.Outcome | None]] = [
    (Part(lives=1, end=m.Exit(0)), True, False, linx.Exited(0)),
    (Part(lives=1, end=m.Exit(3)), True, True, linx.Exited(3)),
    (Part(lives=1, end=m.Kill(9)), True, True, linx.Signaled(9)),
    (Part(lives=1, end=m.Lost(-9)), True, True, None),
    (Part(refused=ENOENT), True, True, None),
]


@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
@pytest.mark.parametrize(("part", "permanent", "transient", "outcome"), ENDS)
async def test_who_is_restarted(
    running: Running,
    stage: Stage,
    restart: str,
    part: Part,
    permanent: bool,
    transient: bool,
    outcome: linx.Outcome | None,
    clock: MockClock,
) -> None:
    stage.parts = {"a": [part, Part()]}
    await running.start([child("keep"), child("a", restart)])
    await trio.sleep(10)
    expected = {"permanent": permanent, "transient": transient, "temporary": False}[restart]
    assert running["a"].state == ("running" if expected else "finished")
    assert running["a"].restarts == int(expected)
    assert running["a"].last_outcome == outcome
    assert isinstance(running["a"].last_error, linx.LinxError) == (outcome is None)
    running.scope.cancel()


@pytest.mark.parametrize(("restart", "restarts"), [("permanent", 1), ("transient", 0), ("temporary", 0)])
async def test_an_abort_is_a_shutdown(
    running: Running, stage: Stage, restart: str, restarts: int, clock: MockClock
) -> None:
    aborted: list[linx.Session] = []

    async def abort_once(session: linx.Session) -> None:
        if session.workload.arguments == ("a",) and not aborted:
            aborted.append(session)
            await session.abort()

    await running.start([child("keep"), child("a", restart)], on_checkpoint=abort_once)
    await trio.sleep(10)
    assert running["a"].restarts == restarts
    assert running["a"].state == ("running" if restarts else "finished")
    assert (running["a"].last_outcome, running["a"].last_error) == (linx.Aborted(), None)
    running.scope.cancel()


async def test_delays_grow_and_start_over(running: Running, stage: Stage, clock: MockClock) -> None:
    stage.parts = {"a": [fails(), fails(), fails(), fails(60), fails(), Part()]}
    backoff = linx.Backoff(initial=1, factor=2, maximum=3, jitter=0)
    await running.start([child("a")], max_restarts=math.inf, backoff=backoff)
    await trio.sleep(100)
    assert stage.happened() == "0+a 0.a 1+a 1.a 3+a 3.a 6+a 66.a 67+a 67.a 69+a"
    running.scope.cancel()


async def test_the_jitter_can_be_repeated(running: Running, stage: Stage, clock: MockClock) -> None:
    stage.parts = {"a": [fails()]}
    starts = []
    for _ in range(2):
        stage.born = trio.current_time()
        with pytest.raises(linx.RestartLimitExceeded):
            await linx.supervise([child("a")], backoff=linx.Backoff(jitter=1, seed=7))
        starts.append(stage.happened())
    assert starts[0] == starts[1]
    assert len(set(starts[0].split())) == 8


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
async def test_strategies(running: Running, stage: Stage, strategy: str, clock: MockClock) -> None:
    stage.parts = {"b": [fails(10), Part()], "c": [Part(term=3)]}
    await running.start(children("abc"), strategy=strategy)
    stage.happened()
    await trio.sleep(50)
    assert (
        stage.happened()
        == {
            "one_for_one": "10.b 11+b",
            "one_for_all": "10.b 10-c 13.c 13-a 13.a 13+a 13+b 13+c",
            "rest_for_one": "10.b 10-c 13.c 13+b 13+c",
        }[strategy]
    )
    running.scope.cancel()


# ---- limits ------------------------------------------------------------------------------------------------------


async def test_too_many_restarts(running: Running, stage: Stage, clock: MockClock) -> None:
    stage.parts = {"a": [Part(term=1)], "b": [fails(0, 7)], "c": [Part(term=2)]}
    with pytest.raises(linx.RestartLimitExceeded) as caught:
        await linx.supervise(children("ac") + children("b"), max_restarts=2, backoff=0.5)
    assert stage.happened() == "0+a 0+c 0+b 0.b 0.5+b 0.5.b 1+b 1.b 1-c 3.c 3-a 4.a"
    error = caught.value
    assert (error.id, error.max_restarts, error.max_seconds, error.outcome) == ("b", 2, 5.0, linx.Exited(7))
    assert error.__cause__ is None


async def test_a_bad_command_is_no_hot_loop(stage: Stage, clock: MockClock) -> None:
    stage.parts = {"a": [Part(refused=ENOENT)]}
    with pytest.raises(linx.RestartLimitExceeded, match="more than 3 restarts within 5 s") as caught:
        await linx.supervise([child("a")], backoff=linx.Backoff(jitter=0))
    assert stage.happened() == "0+a 0.a 0.1+a 0.1.a 0.3+a 0.3.a 0.7+a 0.7.a"
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert isinstance(caught.value.__cause__, linx.SetupError)


async def test_the_limit_while_the_first_start_is_under_way_comes_out_of_start(
    running: Running, stage: Stage, clock: MockClock
) -> None:
    stage.parts = {"b": [Part(refused=ENOENT)]}
    with pytest.raises(linx.RestartLimitExceeded):
        await running.start(children("abc"), max_restarts=1)
    assert stage.happened() == "0+a 0+b 0.b 1+b 1.b 1-a 1.a", "and c was never started"


async def test_a_cancellation_does_not_hide_the_limit(running: Running, stage: Stage, clock: MockClock) -> None:
    stage.parts = {"a": [Part(term=5)], "b": [fails(1)]}
    await running.start(children("ab"), max_restarts=0)
    await trio.sleep(2)
    assert running.states() == {"a": "stopping", "b": "finished"}
    running.scope.cancel()
    await running.over.wait()
    assert isinstance(running.error, linx.RestartLimitExceeded)


# ---- on_checkpoint and ready -------------------------------------------------------------------------------------


async def test_on_checkpoint_is_for_each_incarnation(running: Running, stage: Stage, clock: MockClock) -> None:
    seen: list[tuple[str, str]] = []

    async def on_checkpoint(session: linx.Session) -> None:
        seen.append((session.workload.arguments[0], session.state))
        await trio.sleep(1)

    stage.parts = {"a": [fails(), Part()]}
    await running.start(children("ab"), on_checkpoint=on_checkpoint)
    await trio.sleep(9)
    assert seen == [("a", "ready"), ("b", "ready"), ("a", "ready")]
    assert stage.happened() == "0+a 1.a 1+b 2+a"
    running.scope.cancel()


async def test_without_a_checkpoint_nobody_has_to_say_proceed(running: Running, stage: Stage, clock: MockClock) -> None:
    await running.start([linx.ChildSpec(linx.Workload(["a"], env={}, auto_proceed=False), id="a")])
    assert running["a"].state == "running"
    running.scope.cancel()


@pytest.mark.parametrize("where", ["on_checkpoint", "ready"])
async def test_what_a_callback_raises_is_an_abnormal_end(
    running: Running, stage: Stage, where: str, clock: MockClock
) -> None:
    async def raises(session: linx.Session) -> None:
        raise ValueError("no bridge")

    options: dict[str, Any] = {"on_checkpoint": raises} if where == "on_checkpoint" else {}
    spec = child("a", ready=raises if where == "ready" else None)
    with pytest.raises(linx.RestartLimitExceeded) as caught:
        await linx.supervise([spec], backoff=STEADY, **options)
    assert stage.happened().count("+a") == 4
    assert isinstance(caught.value.__cause__, ValueError)
    (done,) = await linx.supervise([child("a", "temporary", ready=raises)], backoff=STEADY, **options)
    assert isinstance(done.last_error, ValueError)


@pytest.mark.parametrize("where", ["on_checkpoint", "ready"])
async def test_a_callback_that_hangs_has_until_start_timeout(
    running: Running, stage: Stage, where: str, clock: MockClock
) -> None:
    async def hangs(session: linx.Session) -> None:
        await trio.sleep(math.inf)

    options: dict[str, Any] = {"on_checkpoint": hangs} if where == "on_checkpoint" else {}
    spec = child("a", start_timeout=7, ready=hangs if where == "ready" else None)
    with pytest.raises(linx.RestartLimitExceeded) as caught:
        await linx.supervise([spec], max_restarts=1, max_seconds=60, backoff=STEADY, **options)
    cause = caught.value.__cause__
    assert isinstance(cause, trio.TooSlowError)
    assert f"child 'a' was not up within start_timeout=7 s (at: {where})" in str(cause)
    told = "7-a " if where == "ready" else ""
    assert stage.happened().startswith(f"0+a {told}7.a 8+a")


async def test_an_agent_that_never_parks_has_until_start_timeout(
    running: Running, monkeypatch: pytest.MonkeyPatch, clock: MockClock
) -> None:
    async def silent(agent: FakeAgent) -> None:
        await agent.request()
        await agent.say(SPAWNED)
        await agent.until_told(("shutdown", 5000))
        await agent.say(m.Abortion(NOBODY))

    monkeypatch.setattr(_agent, "acquire", FakeZygote(running.nursery, silent).acquire)
    (done,) = await linx.supervise([child("a", "temporary", start_timeout=3)])
    assert isinstance(done.last_error, trio.TooSlowError)
    assert "at: to be parked" in str(done.last_error)
    assert trio.current_time() == 3


async def test_a_child_that_ends_before_it_is_ready_is_not_waited_for(
    running: Running, stage: Stage, clock: MockClock
) -> None:
    async def never(session: linx.Session) -> None:
        await trio.sleep_forever()

    stage.parts = {"a": [fails(2, 3), Part(lives=2)], "b": [Part(lives=1)]}
    done = await linx.supervise([child("a", "transient", ready=never), child("b", "temporary")], backoff=STEADY)
    assert stage.happened().startswith("0+a 2.a 3+a 5.a 5+b")
    assert done[0].last_outcome == linx.Exited(0)


async def test_a_stop_while_it_becomes_ready(running: Running, stage: Stage, clock: MockClock) -> None:
    cancelled: list[str] = []

    async def never(session: linx.Session) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(session.state)

    supervisor = await running.start([child("keep")])
    running.nursery.start_soon(after, 3, supervisor.remove, "a")
    with pytest.raises(linx.StateError, match="child 'a' was stopped before it was up"):
        await supervisor.add(child("a", ready=never))
    assert cancelled == ["running"]
    assert stage.happened() == "0+keep 0+a 3-a 3.a"
    running.scope.cancel()


async def test_a_callback_that_exits_stops_everything_and_comes_out_bare(stage: Stage, clock: MockClock) -> None:
    async def leaves(session: linx.Session) -> None:
        raise SystemExit(4)

    with pytest.raises(SystemExit) as caught:
        await linx.supervise([child("a"), child("b", ready=leaves)], backoff=0)
    assert caught.value.code == 4
    assert stage.happened() == "0+a 0+b 0-b 0.b 0-a 0.a"


# ---- commands ----------------------------------------------------------------------------------------------------


async def test_add_restart_stop_remove(running: Running, stage: Stage, clock: MockClock) -> None:
    stage.parts = {"a": [Part(term=2)]}
    supervisor = await running.start(children("a"))
    await supervisor.add(child("b"))
    await supervisor.restart("a")
    assert (running["a"].restarts, running["a"].last_outcome) == (1, linx.Signaled(15))
    await supervisor.stop("a")
    assert (running["a"].state, running["a"].pid) == ("stopped", None)
    await trio.sleep(10)
    await supervisor.restart("a")
    await supervisor.remove("b")
    assert running.states() == {"a": "running"}
    assert stage.happened() == "0+a 0+b 0-a 2.a 2+a 2-a 4.a 14+a 14-b 14.b"
    await supervisor.add(child("b"))
    assert (running["b"].restarts, running["b"].last_outcome) == (0, None), "another child of the same name"
    running.scope.cancel()


async def test_a_long_stop_blocks_nobody_else(running: Running, stage: Stage, clock: MockClock) -> None:
    stage.parts = {"slow": [Part(term=1000)], "b": [fails(5), Part()]}
    supervisor = await running.start([child("slow", shutdown=2000), child("b")])
    running.nursery.start_soon(supervisor.remove, "slow")
    await trio.sleep(10)
    await supervisor.add(child("c"))
    await supervisor.restart("b")
    assert running.states() == {"slow": "stopping", "b": "running", "c": "running"}
    assert stage.happened() == "0+slow 0+b 0-slow 5.b 6+b 10+c 10-b 10.b 10+b"
    running.scope.cancel()
    assert await running.until_over() == "10-c 10.c 10-b 10.b 1000.slow"


@pytest.mark.parametrize("verb", ["stop", "remove"])
async def test_a_commanded_stop_wins_over_a_restart(
    running: Running, stage: Stage, verb: str, clock: MockClock
) -> None:
    """In the delay; and when the child ends by itself at the very moment."""
    stage.parts = {"a": [fails(1)], "b": [fails(5)]}
    supervisor = await running.start(children("ab"), backoff=3)
    await trio.sleep(2)
    assert running["a"].state == "backoff"
    await getattr(supervisor, verb)("a")
    with trio.fail_after(3):
        await trio.sleep(2.999999)
        await getattr(supervisor, verb)("b")
    await trio.sleep(100)
    assert stage.happened() in ("0+a 0+b 1.a 5.b", "0+a 0+b 1.a 5-b 5.b")
    assert running.states() == ({"a": "stopped", "b": "stopped"} if verb == "stop" else {})
    running.scope.cancel()


async def test_a_failed_add_is_told_and_leaves_no_trace(running: Running, stage: Stage, clock: MockClock) -> None:
    async def raises(session: linx.Session) -> None:
        raise ValueError("no port")

    async def hangs(session: linx.Session) -> None:
        await trio.sleep_forever()

    stage.parts = {"bad": [Part(refused=ENOENT)], "short": [fails(1, 3)]}
    supervisor = await running.start(children("a"), max_restarts=0)
    with pytest.raises(FileNotFoundError):
        await supervisor.add(child("bad"))
    with pytest.raises(ValueError, match="no port"):
        await supervisor.add(child("x", ready=raises))
    with pytest.raises(trio.TooSlowError):
        await supervisor.add(child("x", ready=hangs, start_timeout=5))
    with pytest.raises(linx.CalledProcessError) as caught:
        await supervisor.add(child("short", ready=hangs))
    assert (caught.value.returncode, caught.value.outcome) == (3, linx.Exited(3))
    assert running.states() == {"a": "running"}
    running.scope.cancel()


async def test_an_added_child_that_ends_as_it_may_is_no_failure(
    running: Running, stage: Stage, clock: MockClock
) -> None:
    async def hangs(session: linx.Session) -> None:
        await trio.sleep_forever()

    async def abort(session: linx.Session) -> None:
        if session.workload.arguments == ("c",):
            await session.abort()

    stage.parts = {"b": [Part(lives=1)]}
    supervisor = await running.start(children("a"), on_checkpoint=abort)
    await supervisor.add(child("b", "transient", ready=hangs))
    await supervisor.add(child("c", "transient"))
    assert running.states() == {"a": "running", "b": "finished", "c": "finished"}
    assert (running["b"].last_outcome, running["c"].last_outcome) == (linx.Exited(0), linx.Aborted())
    running.scope.cancel()


async def test_a_failed_restart_is_told_and_then_policy_goes_on(
    running: Running, stage: Stage, clock: MockClock
) -> None:
    stage.parts = {"a": [Part(), Part(refused=ENOENT), Part()]}
    supervisor = await running.start(children("a"))
    with pytest.raises(FileNotFoundError):
        await supervisor.restart("a")
    assert running["a"].state == "backoff"
    await trio.sleep(2)
    assert (running["a"].state, running["a"].restarts) == ("running", 2)
    running.scope.cancel()


async def test_two_commands_at_once(running: Running, stage: Stage, clock: MockClock) -> None:
    stage.parts = {"a": [Part(term=2)]}
    supervisor = await running.start(children("a"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.restart, "a")
        nursery.start_soon(supervisor.restart, "a")
    assert stage.happened() == "0+a 0-a 2.a 2+a", "once is enough"

    async def is_overruled() -> None:
        with pytest.raises(linx.StateError, match=r"stopped before it was up|being removed"):
            await supervisor.restart("a")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(is_overruled)
        nursery.start_soon(supervisor.remove, "a")
        nursery.start_soon(supervisor.remove, "a")
        await trio.sleep(1)
        with pytest.raises(linx.StateError, match="child 'a' is being removed"):
            await supervisor.restart("a")
        with pytest.raises(ValueError, match="already"):
            await supervisor.add(child("a"))
    assert running.states() == {}
    assert stage.happened() == "2-a 4.a"
    running.scope.cancel()


async def test_cancelling_a_command_stops_the_waiting_only(running: Running, stage: Stage, clock: MockClock) -> None:
    stage.parts = {"a": [Part(term=5)]}
    supervisor = await running.start(children("a"))
    for verb in (supervisor.restart, supervisor.remove):
        with trio.move_on_after(1) as scope:
            await verb("a")
        assert scope.cancelled_caught
        await trio.sleep(10)
    assert stage.happened() == "0+a 0-a 5.a 5+a 11-a 16.a"
    with trio.CancelScope() as scope:
        scope.cancel()
        await supervisor.add(child("b"))
    assert running.states() == {}, "cancelled before, nothing is done"
    running.scope.cancel()


async def test_commands_that_wait_when_the_supervisor_ends(running: Running, stage: Stage, clock: MockClock) -> None:
    async def never(session: linx.Session) -> None:
        await trio.sleep_forever()

    stage.parts = {"a": [Part(term=5)]}
    supervisor = await running.start(children("ab"))
    told: list[str] = []

    async def is_told(verb: Callable[..., Awaitable[None]], *args: Any) -> None:
        with pytest.raises(linx.StateError) as caught:
            await verb(*args)
        told.append(str(caught.value))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(is_told, supervisor.restart, "a")
        nursery.start_soon(is_told, supervisor.add, child("c", ready=never))
        nursery.start_soon(supervisor.remove, "b")
        await trio.sleep(1)
        running.scope.cancel()
        await wait_all_tasks_blocked()
        nursery.start_soon(is_told, supervisor.restart, "b")
    assert len(told) == 3
    await running.over.wait()
    late: list[tuple[Any, Any]] = [(supervisor.add, child("d")), (supervisor.restart, "a"), (supervisor.remove, "a")]
    for command, argument in late:
        with pytest.raises(linx.StateError, match="the supervisor has ended"):
            await command(argument)
    with pytest.raises(linx.StateError, match="the supervisor has ended"):
        supervisor.session("a")


async def test_wrong_arguments(running: Running, stage: Stage, clock: MockClock) -> None:
    bad: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"strategy": "all"}, ValueError, "strategy must be one of 'one_for_one', 'one_for_all', 'rest_for_one'"),
        ({"max_restarts": -1}, ValueError, "max_restarts must not be negative"),
        ({"max_seconds": "5"}, TypeError, "max_seconds must be a number"),
        ({"backoff": None}, TypeError, "backoff must be a linx.Backoff or a number of seconds"),
        ({"on_checkpoint": 3}, TypeError, "on_checkpoint must be an async function of a session, or None, not 3"),
    ]
    for options, kind, text in bad:
        with pytest.raises(kind, match=text):
            await linx.supervise(children("a"), **options)
    for specs, text in (
        (child("a"), "children must be an iterable of linx.ChildSpec"),
        ([["sleep"]], r"children\[0\] must be a linx.ChildSpec, not \['sleep'\]"),
    ):
        with pytest.raises(TypeError, match=text):
            await linx.supervise(specs)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"children\[1\]: there are two children with id='a'"):
        await linx.supervise(children("aa"))
    supervisor = await running.start(children("a"))
    with pytest.raises(TypeError, match=r"spec must be a linx\.ChildSpec"):
        await supervisor.add(["sleep"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there is a child with id='a' already \\(it is running\\)"):
        await supervisor.add(child("a"))
    with pytest.raises(ValueError, match="there is no child 'aa'; did you mean 'a'\\?"):
        await supervisor.remove("aa")
    with pytest.raises(ValueError, match="there is no child 'x'; there are: 'a'"):
        supervisor.session("x")
    with pytest.raises(TypeError, match="id must be a str"):
        await supervisor.restart(3)  # type: ignore[arg-type]
    assert stage.happened() == "0+a"
    running.scope.cancel()


# ---- what is known -----------------------------------------------------------------------------------------------


async def test_snapshots(running: Running, stage: Stage, clock: MockClock) -> None:
    stage.parts = {"a": [fails(5), Part()]}
    supervisor = await running.start(children("a"))
    first = running["a"]
    assert first == linx.Child("a", "running", NOBODY, 0, None, None, 0.0)
    assert supervisor.session("a").host_pid == NOBODY
    await trio.sleep(5.5)
    assert running["a"] == linx.Child("a", "backoff", None, 0, linx.Exited(1), None, 5.0)
    with pytest.raises(linx.StateError, match=r"child 'a' has no session now \(it is backoff\)"):
        supervisor.session("a")
    await trio.sleep(5)
    assert running["a"] == linx.Child("a", "running", NOBODY, 1, linx.Exited(1), None, 6.0)
    assert first.state == "running"
    assert repr(supervisor) == "<linx_trio.Supervisor: 'a' running>"
    running.scope.cancel()
    await running.over.wait()
    assert repr(supervisor) == "<linx_trio.Supervisor (over): 'a' stopped>"


# ---- cancellation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(0, 40, 2))
async def test_cancelled_after_any_number_of_turns(stage: Stage, turns: int, clock: MockClock) -> None:
    """All that was started is gone, the last one first; and it is the cancellation that comes out."""

    async def a_while(session: linx.Session) -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()

    stage.parts = {"b": [fails(), fails(), Part()]}
    specs = [child("a", ready=a_while), child("b"), child("c", ready=a_while)]
    raised: list[BaseException] = []

    async with cancelled_after(turns):
        try:
            await linx.supervise(specs, on_checkpoint=a_while, backoff=0, max_restarts=math.inf)
        except BaseException as exc:
            raised.append(exc)
            raise
    assert [type(exc) for exc in raised] == [trio.Cancelled]
    assert stage.alive == set()
    log = stage.happened().replace("0", "").split()
    gone = [entry[1:] for entry in log if entry.startswith("-")]
    assert gone == sorted(gone, reverse=True)


async def test_a_hundred_children(running: Running, stage: Stage, clock: MockClock) -> None:
    ids = [f"n{i:02}" for i in range(100)]
    stage.parts = {id: [fails(1), Part()] for id in ids}
    await running.start([child(id) for id in ids], max_restarts=100)
    stage.happened()
    await trio.sleep(10)
    assert set(running.states().values()) == {"running"}
    assert all(one.restarts == 1 for one in running.supervisor.children())
    stage.happened()
    running.scope.cancel()
    log = (await running.until_over()).split()
    assert [entry[3:] for entry in log if entry[2] == "-"] == ids[::-1]


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
@pytest.mark.parametrize("seed", range(3))
async def test_anything_at_any_time(running: Running, stage: Stage, seed: int, strategy: str, clock: MockClock) -> None:
    """Children that fail in every way, and tasks that give commands without asking each other: every command comes
    back, nothing runs twice, and at the end nothing is left."""
    chance = random.Random(seed)
    ends: list[m.Message] = [m.Exit(0), m.Exit(1), m.Kill(9), m.Lost(-9)]

    async def flaky(session: linx.Session) -> None:
        await trio.sleep(chance.choice([0, 0, 0.5, 3]))
        if chance.random() < 0.1:
            raise ValueError("flaky")

    def part() -> Part:
        return Part(
            lives=chance.choice([0, 0.1, 1, 5, math.inf]),
            end=chance.choice(ends),
            term=chance.choice([0, 0.5, 2]),
            refused=ENOENT if chance.random() < 0.1 else None,
            parks=chance.choice([0, 0, 1]),
        )

    def spec(id: str) -> linx.ChildSpec:
        restart = chance.choice(["permanent", "permanent", "transient", "temporary"])
        return child(id, restart, start_timeout=2, ready=chance.choice([None, flaky]))

    async def commands(supervisor: linx.Supervisor) -> None:
        for _ in range(15):
            await trio.sleep(chance.choice([0, 0.1, 1]))
            id = chance.choice("abcde")
            verb = chance.choice(["add", "restart", "stop", "remove"])
            try:
                with trio.move_on_after(chance.choice([0.5, math.inf])):
                    await getattr(supervisor, verb)(spec(id) if verb == "add" else id)
            except (linx.LinxError, ValueError, trio.TooSlowError):
                pass

    stage.parts = {id: [*(part() for _ in range(30)), Part()] for id in "abcde"}
    await running.start(
        [child("keep"), spec("a"), spec("b"), spec("c")],
        strategy=strategy,
        max_restarts=math.inf,
        on_checkpoint=flaky,
        backoff=linx.Backoff(initial=0.1, maximum=2, seed=seed),
    )
    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(commands, running.supervisor)
    running.scope.cancel()
    await running.over.wait()
    assert stage.alive == set()
    assert running.error is None
    assert {child.state for child in running.supervisor.children()} <= {"stopped", "finished"}
