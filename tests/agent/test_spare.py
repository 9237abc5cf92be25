"""A zygote's spare: the monitor that waits for the next session."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

import linx_trio as linx
from linx_trio import _agent
from tests.agent.programs.phases import state_of
from tests.support import eventually, eventually_async, exists, monitor_of, name_of


def spares_of(zygote: int) -> list[int]:
    children = Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split()
    return [int(child) for child in children if name_of(int(child)) == _agent.SPARE]


async def the_spare() -> int:
    """The pid of the spare that the next session will have."""
    for _ in range(2):  # the zygote may be a new one
        await linx.run(["true"])
    zygote = _agent.current()[-1].pid
    await eventually_async(lambda: len(spares_of(zygote)) == 1, "there is a spare")
    return spares_of(zygote)[0]


async def test_the_next_session_has_it_and_leaves_another() -> None:
    spare = await the_spare()
    async with linx.spawn(["sleep", "600"]) as s:
        assert monitor_of(s.host_pid) == spare
        other = await the_spare()
        assert other != spare
        async with linx.spawn(["sleep", "600"]) as second:
            assert monitor_of(second.host_pid) == other
    await eventually_async(lambda: not exists(spare) and not exists(other), "each went with its session")


async def test_many_at_once_share_one() -> None:
    spare = await the_spare()
    monitors: list[int] = []

    async def one() -> None:
        async with linx.spawn(["true"]) as s:
            monitors.append(monitor_of(s.host_pid))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(one)
    assert len(set(monitors)) == 10
    assert spare in monitors


async def test_one_that_was_killed_is_not_used() -> None:
    for _ in range(3):
        spare = await the_spare()
        os.kill(spare, signal.SIGKILL)
        await eventually_async(lambda: not exists(spare), "it is reaped")  # noqa: B023
        async with linx.spawn(["true"]) as s:
            await s.proceed()
            assert await s.wait() == linx.Exited(0)


async def test_killed_together_with_its_zygote() -> None:
    spare = await the_spare()
    zygote = _agent.current()[-1].pid
    os.kill(zygote, signal.SIGKILL)
    for _ in range(2):  # the first may still be the spare's
        assert (await linx.run(["true"])).returncode == 0
    assert _agent.current()[-1].pid != zygote
    await eventually_async(lambda: not exists(spare), "nobody needs it any more")


async def test_it_goes_when_its_zygote_is_retired() -> None:
    spare = await the_spare()
    zygote = _agent.current()[-1]
    _agent.discard(zygote)
    await eventually_async(lambda: not exists(spare), "it has ended")
    _agent.reap()
    await eventually_async(lambda: not exists(zygote.pid) or state_of(zygote.pid) == "Z", "and so has the zygote")


async def test_without_fds_there_is_none() -> None:
    await the_spare()
    zygote = _agent.current()[-1]
    spare = zygote.take_spare()
    assert spare is not None
    spare.close()
    with ExitStack() as stack:
        while True:
            try:
                stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        zygote.prepare_spare()
        assert zygote.take_spare() is None
    zygote.prepare_spare()
    assert zygote.filenos() <= _agent.kept_fds()
    assert len(zygote.filenos()) == 2


def test_a_forked_python_has_it_not() -> None:
    trio.run(the_spare)
    kept = _agent.kept_fds()
    assert len(kept) >= 2
    pid = os.fork()
    if pid == 0:
        open_ones = [fd for fd in kept if os.path.lexists(f"/proc/self/fd/{fd}")]
        os._exit(1 if open_ones or _agent.kept_fds() else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


PROGRAM = """
import sys, linx_trio as linx
from linx_trio import _agent
for _ in range(int(sys.argv[1])):
    linx.run_sync(["true"])
print(_agent.current()[-1].pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("sessions", [1, 2])
def test_only_who_spawns_twice_has_one_and_it_goes_with_python(sessions: int) -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(sessions)], stdin=-1, stdout=-1) as python:
        assert python.stdout is not None
        zygote = int(python.stdout.readline())
        if sessions == 1:
            assert Path(f"/proc/{zygote}/task/{zygote}/children").read_text() == ""
        else:
            eventually(lambda: len(spares_of(zygote)) == 1, "there is a spare")
        spares = spares_of(zygote)
        python.kill()
    eventually(lambda: not any(map(exists, [zygote, *spares])), "both have ended")
