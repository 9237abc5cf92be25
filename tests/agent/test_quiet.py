"""Sessions of which only the end is waited for: what is ordinary is told at once, and nothing else is left out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio

import linx_trio as linx
from linx_trio._proto import messages as m
from linx_trio._proto.protocol import SessionProtocol
from tests.agent.lines import Line, line
from tests.agent.rights import rootless
from tests.support import DEADLINE

LONG = [m.Spawned, m.Parked, m.Started, m.UsageReport]
"""What comes before the end where it is not told at once."""


SEVERAL = {m.Began: [m.Spawned, m.Parked, m.Started], m.Over: [m.UsageReport, m.Exit]}
"""What is one where it comes together, as on a busy machine it may not."""


def kinds(heard: list[m.Message]) -> list[type]:
    return [cls for event in heard for cls in SEVERAL.get(type(event), [type(event)])]


async def short_one(to: Line, script: bytes) -> list[m.Message]:
    """What is said of one that has ended within 10 ms: on a busy machine it takes several to have such a one."""
    with trio.fail_after(DEADLINE):
        while True:
            to.request(b"/bin/sh", b"-c", script, quiet=True)
            heard = await to.until_idle()
            if kinds(heard) != [*LONG, m.Exit, m.Idle]:
                return heard


@pytest.mark.parametrize(("script", "code"), [(b"exit 0", 0), (b"exit 3", 3), (b"exit 255", 255)])
async def test_an_ordinary_session_is_one_event(script: bytes, code: int) -> None:
    async with line() as to:
        ran, idle = await short_one(to, script)
        assert isinstance(ran, m.Ran)
        assert (ran.code, idle) == (code, m.Idle())
        assert ran.host_pid == ran.child_pid > 1
        assert ran.max_rss > 0
        assert ran.wall_time > 0


@pytest.mark.parametrize(
    ("script", "steps", "expected"),
    [
        (b"kill -9 $$", (), [*LONG, m.Kill, m.Idle]),
        (
            b"exit 0",
            (("optional", ("rlimit", 9999, 0, 0)),),
            [m.Spawned, m.Parked, m.Degraded, *LONG[2:], m.Exit, m.Idle],
        ),
    ],
    ids=["killed", "degraded"],
)
async def test_what_is_out_of_the_ordinary_is_told_in_full(script: bytes, steps: Any, expected: list[type]) -> None:
    async with line() as to:
        to.request(b"/bin/sh", b"-c", script, quiet=True, steps=steps)
        assert kinds(await to.until_idle()) == expected


async def test_a_long_session_is_told_as_it_goes_and_the_next_one_again_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with line() as to:
        for _ in range(2):
            protocol = SessionProtocol()
            to.request(b"/bin/sh", b"-c", b': < "$1"', b"sh", bytes(fifo), quiet=True)
            with trio.fail_after(DEADLINE):
                before = await to.hear(protocol, m.Started)
            assert kinds(before) == LONG[:3]
            fifo.write_bytes(b"")
            assert kinds(await to.hear(protocol)) == [m.UsageReport, m.Exit, m.Idle]
            assert list(map(type, await short_one(to, b"exit 0"))) == [m.Ran, m.Idle]


async def test_whoever_is_not_quiet_hears_it_all() -> None:
    async with line() as to:
        to.request(b"/bin/true")
        assert kinds(await to.until_idle()) == [*LONG, m.Exit, m.Idle]


async def test_what_comes_together_is_told_in_one() -> None:
    async with line() as to:
        with trio.fail_after(DEADLINE):
            while True:
                to.request(b"/bin/sh", b"-c", b"exit 3")
                heard = await to.until_idle()
                if list(map(type, heard)) == [m.Began, m.Over, m.Idle]:
                    break
        began, over, _ = heard
        assert isinstance(began, m.Began)
        assert isinstance(over, m.Over)
        assert began.host_pid == began.child_pid > 1
        assert over.code == 3
        assert over.max_rss > 0
        assert over.wall_time > 0


async def test_run_knows_of_it_what_a_session_knows() -> None:
    script = ["sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; echo $$; exit 5"]
    done = await linx.run(script, check=False, **rootless("pid"), init=True)
    assert done.returncode == 5
    assert done.outcome == linx.Exited(5)
    usage = done.usage
    assert usage is not None
    assert usage.user_time + usage.system_time > 0
    assert usage.wall_time >= (usage.user_time + usage.system_time) / 2
    assert usage.max_rss > 100_000
