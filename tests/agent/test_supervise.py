"""Supervision of real processes. Exact times and orders are in tests/shell/test_supervise.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel

import linx_trio as linx
from tests.agent.people import Person, attached, person
from tests.agent.terminals import read_to_end
from tests.support import DEADLINE, cancelled_after, eventually, eventually_async, exists, monitor_of, with_token

__all__ = ["person"]  # a fixture

ROOT = Path(__file__).parents[2]
DETACH = b"\x10\x11"
SLEEP = ["sleep", "3600"]
STUBBORN = ["sh", "-c", "trap '' TERM; while :; do sleep 3600; done"]


@asynccontextmanager
async def supervising(*specs: linx.ChildSpec, **options: Any) -> AsyncIterator[linx.Supervisor]:
    """A supervisor that is stopped when the block is left."""
    options = {"backoff": 0.01, **options}
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            yield await nursery.start(partial(linx.supervise, specs, **options))
            nursery.cancel_scope.cancel()


def child_of(supervisor: linx.Supervisor, id: str = "x") -> linx.Child:
    return next(child for child in supervisor.children() if child.id == id)


async def until(supervisor: linx.Supervisor, state: str, restarts: int = 0, id: str = "x") -> linx.Child:
    def is_so() -> bool:
        child = child_of(supervisor, id)
        return child.state == state and child.restarts >= restarts

    await eventually_async(is_so, f"{id} is {state} for the {restarts}. time: {supervisor}")
    return child_of(supervisor, id)


# ---- the table of exits ------------------------------------------------------------------------------------------


async def nothing(session: linx.Session) -> None:
    pass


async def abort(session: linx.Session) -> None:
    await session.abort()


async def kill_parked(session: linx.Session) -> None:
    os.kill(session.host_pid, signal.SIGKILL)
    await session.wait()


async def kill_agent(session: linx.Session) -> None:
    os.kill(monitor_of(session.host_pid), signal.SIGKILL)
    await trio.sleep_forever()


Check = Callable[[linx.Session], Awaitable[None]]

ROWS: list[tuple[str, list[str], Check, linx.Outcome | type[Exception], set[str]]] = [
    ("exit 0", ["true"], nothing, linx.Exited(0), {"permanent"}),
    ("exit N", ["sh", "-c", "exit 7"], nothing, linx.Exited(7), {"permanent", "transient"}),
    ("signal", ["sh", "-c", "kill -HUP $$"], nothing, linx.Signaled(1), {"permanent", "transient"}),
    ("abort", ["true"], abort, linx.Aborted(), {"permanent"}),
    ("set-up error", ["/no/such/program"], nothing, FileNotFoundError, {"permanent", "transient"}),
    ("killed while parked", ["true"], kill_parked, linx.Signaled(9), {"permanent", "transient"}),
]


@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
@pytest.mark.parametrize(
    ("argv", "on_checkpoint", "end", "restarted"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
async def test_the_table_of_exits(
    argv: list[str],
    on_checkpoint: Check,
    end: linx.Outcome | type[Exception],
    restarted: set[str],
    restart: str,
) -> None:
    spec = linx.ChildSpec(argv, id="x", restart=restart)
    options: dict[str, Any] = {} if on_checkpoint is nothing else {"on_checkpoint": on_checkpoint}
    if restart in restarted:
        with pytest.raises(linx.RestartLimitExceeded) as caught, trio.fail_after(DEADLINE):
            await linx.supervise([spec], max_restarts=1, max_seconds=100, backoff=0, **options)
        outcome, error = caught.value.outcome, caught.value.__cause__
    else:
        with trio.fail_after(DEADLINE):
            (done,) = await linx.supervise([spec], max_restarts=1, **options)
        assert (done.state, done.restarts) == ("finished", 0)
        outcome, error = done.last_outcome, done.last_error
    if isinstance(end, type):
        assert (outcome, type(error).__mro__.count(end)) == (None, 1)
    else:
        assert (outcome, error) == (end, None)


@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
async def test_an_agent_that_is_killed_is_an_abnormal_end(restart: str) -> None:
    async with supervising(linx.ChildSpec(SLEEP, id="x", restart=restart), linx.ChildSpec(SLEEP, id="y")) as supervisor:
        pid = child_of(supervisor).pid
        assert pid is not None
        os.kill(monitor_of(pid), signal.SIGKILL)
        if restart == "temporary":
            child = await until(supervisor, "finished")
        else:
            child = await until(supervisor, "running", restarts=1)
            assert child.pid != pid
        assert isinstance(child.last_error, linx.AgentDied)
        assert not exists(pid)


async def test_a_verb_that_comes_too_late_does_not_hide_why() -> None:
    async def kill_agent_and_go_on(session: linx.Session) -> None:
        os.kill(monitor_of(session.host_pid), signal.SIGKILL)
        with pytest.raises(linx.AgentDied):
            await session.wait()
        await session.abort()

    async with trio.open_nursery() as nursery:
        supervisor = await nursery.start(partial(linx.supervise, [], on_checkpoint=kill_agent_and_go_on))
        with pytest.raises(linx.AgentDied):
            await supervisor.add(linx.ChildSpec(SLEEP, id="x"))
        await supervisor.shutdown()


async def test_an_agent_that_is_killed_while_its_child_is_parked() -> None:
    spec = linx.ChildSpec(SLEEP, id="x", start_timeout=0.3)
    with pytest.raises(linx.RestartLimitExceeded), trio.fail_after(DEADLINE):
        await linx.supervise([spec], max_restarts=1, max_seconds=100, backoff=0, on_checkpoint=kill_agent)


# ---- nothing is left ---------------------------------------------------------------------------------------------


async def test_a_restart_never_leaks_what_the_former_one_left_behind(nothing_is_left: str) -> None:
    """Daemons that have gone their own way die with the incarnation that they are of, before the next one starts."""
    before: list[int] = []

    async def on_checkpoint(session: linx.Session) -> None:
        before.append(len(set(with_token(nothing_is_left)) - {session.host_pid, monitor_of(session.host_pid)}))

    script = "setsid sh -c 'trap \"\" TERM HUP; sleep 3600 & sleep 3600' & exit 1"
    with pytest.raises(linx.RestartLimitExceeded), trio.fail_after(DEADLINE):
        await linx.supervise(
            [linx.ChildSpec(["sh", "-c", script], id="x")], max_restarts=2, backoff=0, on_checkpoint=on_checkpoint
        )
    assert before == [0, 0, 0]


async def test_a_child_may_end_by_itself_and_is_killed_if_it_does_not(tmp_path: Path) -> None:
    polite = f"trap 'echo bye > {tmp_path}/said; exit 0' TERM; echo up; while :; do sleep 0.01; done"
    specs = [
        linx.ChildSpec(
            linx.Workload(["sh", "-c", polite], stdout=linx.PIPE), id="polite", ready=linx.ready.line("up"), shutdown=60
        ),
        linx.ChildSpec(STUBBORN, id="x", shutdown=0.1),
        linx.ChildSpec(STUBBORN, id="brutal", shutdown=0),
    ]
    async with supervising(*specs) as supervisor:
        pass
    outcomes = [child.last_outcome for child in supervisor.children()]
    assert outcomes == [linx.Exited(0), linx.Signaled(9), linx.Signaled(9)]
    assert (tmp_path / "said").read_text() == "bye\n"
    assert [child.state for child in supervisor.children()] == ["stopped"] * 3


async def test_a_hundred_children(nothing_is_left: str) -> None:
    specs = [linx.ChildSpec(SLEEP, id=f"n{i}", shutdown=0) for i in range(100)]
    async with supervising(*specs, max_restarts=100, max_seconds=100) as supervisor:
        pids = [child.pid for child in supervisor.children()]
        assert len(set(pids)) == 100
        for pid in pids[::2]:
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        for i, pid in enumerate(pids):
            child = await until(supervisor, "running", restarts=1 - i % 2, id=f"n{i}")
            assert (child.pid == pid) == bool(i % 2)
    assert with_token(nothing_is_left) == []


SUPERVISING = """
import os, signal, sys, trio, linx_trio as linx

async def main():
    script = 'trap "echo $0 ends; %s; exit 0" TERM; echo up; while :; do sleep 0.01; done'
    again = f'kill -INT {os.getpid()}; sleep 0.05'
    specs = [
        linx.ChildSpec(
            linx.Workload(["sh", "-c", script % (again if name == "b" else ":"), name], stdout=linx.PIPE),
            id=name,
            ready=linx.ready.line("up", to=lambda data: os.write(1, data)),
        )
        for name in "abc"
    ]
    async with trio.open_nursery() as outer:
        outer.start_soon(trio.sleep_forever)
        try:
            await linx.supervise(specs, on_checkpoint=on_checkpoint)
        except BaseException as exc:
            print(repr(exc), flush=True)
        outer.cancel_scope.cancel()

count = 0
async def on_checkpoint(session):
    global count
    count += 1
    if count == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGINT)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.parametrize(("at", "ends"), [(1, ""), (3, "b ends\na ends\n")])
def test_control_c_stops_all_in_order_and_comes_out_bare(at: int, ends: str) -> None:
    """While a child is being set up; and once more, from a child, while they are being stopped."""
    done = subprocess.run(
        [sys.executable, "-c", SUPERVISING, str(at)], capture_output=True, text=True, check=True, cwd=ROOT, timeout=100
    )
    assert done.stdout.replace("up\n", "") == f"{ends}KeyboardInterrupt()\n"
    assert done.stderr == ""


def test_killed_python_leaves_nothing(nothing_is_left: str) -> None:
    program = """
import trio, linx_trio as linx

async def main():
    specs = [linx.ChildSpec(linx.Workload(["sleep", "3600"], orphan_policy=linx.Kill(0)), id=name) for name in "ab"]
    async with trio.open_nursery() as nursery:
        await nursery.start(linx.supervise, specs)
        print("up", flush=True)

trio.run(main)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT) as python:
        assert python.stdout is not None
        assert python.stdout.readline() == b"up\n"
        assert len(with_token(nothing_is_left)) > 2
        python.kill()
        python.wait()
    eventually(lambda: not with_token(nothing_is_left), "nothing is left")


# ---- exceptions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [0, 1, 2, 4, 8, 16, 32, 64])
async def test_cancelled_at_any_time(turns: int) -> None:
    """What comes out is the cancellation itself."""
    raised: list[BaseException] = []

    async with cancelled_after(turns):
        try:
            await linx.supervise([linx.ChildSpec(SLEEP, id=id) for id in "abc"], on_checkpoint=nothing)
        except BaseException as exc:
            raised.append(exc)
            raise
    assert [type(exc) for exc in raised] == [trio.Cancelled]


async def test_a_limit_is_never_in_a_group() -> None:
    specs = [linx.ChildSpec(SLEEP, id="a"), linx.ChildSpec(["/no/such/program"], id="bad")]
    caught: BaseException | None = None
    try:
        await linx.supervise(specs)
    except BaseException as exc:
        caught = exc
    assert type(caught) is linx.RestartLimitExceeded
    assert "'bad'" in str(caught)
    assert "No such file or directory: '/no/such/program'" in str(caught)


# ---- the checkpoint, and commands ----------------------------------------------------------------------------------


async def test_on_checkpoint_prepares_each_incarnation_before_its_first_instruction(tmp_path: Path) -> None:
    pids: list[int] = []

    async def on_checkpoint(session: linx.Session) -> None:
        assert session.state == "ready"
        (tmp_path / "prepared").write_text(str(session.host_pid))
        pids.append(session.host_pid)

    script = f'test "$(cat {tmp_path}/prepared)" = $$ && rm {tmp_path}/prepared && exec sleep 3600'
    async with supervising(linx.ChildSpec(["sh", "-c", script], id="x"), on_checkpoint=on_checkpoint) as supervisor:
        await eventually_async(lambda: not (tmp_path / "prepared").exists(), "the first one found what it needs")
        supervisor.session("x").kill()
        child = await until(supervisor, "running", restarts=1)
        assert child.pid == pids[1]
        assert child.last_outcome == linx.Signaled(9)
        await eventually_async(lambda: not (tmp_path / "prepared").exists(), "the second one too")


async def test_commands() -> None:
    async with supervising(linx.ChildSpec(SLEEP, id="x")) as supervisor:
        first = child_of(supervisor)
        await supervisor.restart("x")
        second = child_of(supervisor)
        assert second.pid != first.pid
        assert second.last_outcome == linx.Signaled(15)
        await supervisor.add(linx.ChildSpec(SLEEP, id="y"))
        with pytest.raises(FileNotFoundError):
            await supervisor.add(linx.ChildSpec(["/no/such/program"], id="z"))
        await supervisor.stop("x")
        assert second.pid is not None
        assert not exists(second.pid)
        await supervisor.remove("y")
        assert [(child.id, child.state) for child in supervisor.children()] == [("x", "stopped")]
        await supervisor.restart("x")
        await until(supervisor, "running")


async def test_a_child_that_ends_while_it_is_told_to() -> None:
    """SIGTERM and its own end cross each other: whatever comes first, the command wins."""
    async with supervising(linx.ChildSpec(SLEEP, id="keep"), max_restarts=0) as supervisor:
        for _ in range(20):
            await supervisor.add(linx.ChildSpec(["sleep", "0.01"], id="x", restart="transient"))
            await trio.sleep(0.008)
            await supervisor.remove("x")
            assert [child.id for child in supervisor.children()] == ["keep"]


async def test_stdin_is_nobody_elses() -> None:
    async with supervising(linx.ChildSpec(SLEEP, id="x")) as supervisor:
        assert os.readlink(f"/proc/{child_of(supervisor).pid}/fd/0") == os.devnull


# ---- lent to a terminal --------------------------------------------------------------------------------------------

TALKER = "stty -echo; echo up $$; while read line; do echo got $line; test $line != end || exit 3; done"


def on_terminal(script: str) -> linx.ChildSpec:
    return linx.ChildSpec(linx.Workload(["sh", "-c", script], stdio=linx.PTY), id="x")


async def test_a_child_is_attached_to_and_given_back(person: Person) -> None:
    async with supervising(on_terminal(TALKER)) as supervisor:
        pid = child_of(supervisor).pid
        for word in (b"one", b"two"):
            async with supervisor.borrow("x") as session, attached(session, person) as attaching:
                if word == b"one":
                    await person.sees(b"up %d\r\n" % (pid or 0))
                await person.types(word + b"\r")
                await person.sees(b"got " + word + b"\r\n")
                await person.types(DETACH)
            assert attaching.result is linx.tty.DETACHED
            assert (child_of(supervisor).pid, child_of(supervisor).state) == (pid, "running")


async def test_a_child_that_ends_while_it_is_lent_loses_nothing_and_is_restarted(person: Person) -> None:
    async with supervising(on_terminal(TALKER)) as supervisor:
        async with supervisor.borrow("x") as session:
            async with attached(session, person) as attaching:
                await person.types(b"end\r")
                await person.sees(b"got end\r\n")
            assert attaching.result == linx.Exited(3)
            await until(supervisor, "running", restarts=1)
            assert supervisor.session("x") is not session
            assert session.pty.fileno() >= 0
        assert session.pty.fileno() == -1
        assert child_of(supervisor).last_outcome == linx.Exited(3)


async def test_what_a_lent_child_has_written_can_be_read_when_it_has_been_removed() -> None:
    async with supervising(linx.ChildSpec(SLEEP, id="keep")) as supervisor:
        await supervisor.add(on_terminal("trap 'echo bye; exit' TERM; echo up; while :; do sleep 0.01; done"))
        async with supervisor.borrow("x") as session:
            await session.pty.receive_some()
            await supervisor.remove("x")
            assert session.outcome == linx.Exited(0)
            assert await read_to_end(session.pty) == b"bye\r\n"
        with pytest.raises(ValueError, match="there is no child 'x'"):
            supervisor.borrow("x")


async def test_a_terminal_whose_first_line_says_ready_can_be_attached_to(person: Person) -> None:
    """The supervisor reads on, except while the session is lent."""
    heard = bytearray()
    workload = linx.Workload(["sh", "-c", TALKER], stdio=linx.PTY)
    spec = linx.ChildSpec(workload, id="x", ready=linx.ready.line("^up", stream="pty", to=heard.extend))
    async with supervising(spec) as supervisor:
        await supervisor.session("x").pty.send_all(b"before\n")
        await eventually_async(lambda: b"got before" in heard, "read by the supervisor")
        async with supervisor.borrow("x") as session, attached(session, person):
            await person.types(b"one\r")
            await person.sees(b"got one\r\n")
            await person.types(DETACH)
        await supervisor.session("x").pty.send_all(b"after\n")
        await eventually_async(lambda: b"got after" in heard, "and again")
    assert b"got one" not in heard
