"""``{enter, #{target, argv, namespaces, …}}`` as an Erlang Port has it: a pid for a target, and the same guarantee."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

import linx_trio as linx
from tests.agent.containers import KINDS, container, is_untouched
from tests.agent.port import SLEEP, TRUE, Port, Raw, mapping, pair, shell
from tests.agent.probes import as_somebody, status_of
from tests.agent.test_enter import namespaces_of
from tests.support import eventually, eventually_async, exists, name_of, with_token

NOBODY = 99999999
"""A pid beyond any ``kernel.pid_max``."""


@pytest.fixture
async def target() -> AsyncIterator[linx.Session]:
    async with container() as session:
        await eventually_async(lambda: name_of(session.host_pid) == "sleep", "its init has settled")
        yield session
        assert is_untouched(session)


def enter(target: linx.Session | int, **options: Any) -> Raw:
    """The term ``{enter, #{...}}``; values may be `Raw`."""
    pid = target if isinstance(target, int) else target.host_pid
    return pair("enter", mapping([("target", pid), *options.items()]))


def started(port: Port) -> tuple[int, int]:
    """Takes the first two events. Returns the workload's pid outside and its own."""
    tag, kind, pid = port.receive()
    assert (tag, kind) == ("status", "spawned")
    tag, kind, child = port.receive()
    assert (tag, kind) == ("status", "ready")
    return pid, child


def parked(port: Port) -> tuple[int, int]:
    """The same of one that was not told to proceed, so that it can be looked at."""
    pid, child = started(port)
    assert child == int(status_of(pid)["NSpid"].split()[-1])
    return pid, child


def joined(pid: int, target: linx.Session) -> set[str]:
    own, ours, theirs = (namespaces_of(each) for each in (pid, "self", target.host_pid))
    assert all(own[kind] in (ours[kind], theirs[kind]) for kind in KINDS)
    return {kind for kind in KINDS if own[kind] == theirs[kind] != ours[kind]}


async def in_thread(function: Any, *arguments: Any) -> Any:
    """The port blocks, and the container's session must go on meanwhile."""
    return await trio.to_thread.run_sync(function, *arguments)


async def test_the_transcript(target: linx.Session) -> None:
    def transcript() -> None:
        with Port() as port:
            port.send(enter(target, argv=shell("exit 3")))
            pid, child = parked(port)
            assert pid != child
            port.send("proceed")
            assert port.rest() == [("status", "running"), ("status", "exited", 3)]
            assert port.wait() == 0

    await in_thread(transcript)


CHOICES: list[tuple[Any, set[str]]] = [
    (None, set(KINDS)),
    ("all", set(KINDS)),
    (["user", "net"], {"user", "net"}),
    ([b"user", "uts"], {"user", "uts"}),
    (["user", "pid"], {"user", "pid"}),
    ([], set()),
]


@pytest.mark.parametrize(("asked", "kinds"), CHOICES, ids=str)
async def test_namespaces(target: linx.Session, asked: Any, kinds: set[str]) -> None:
    def look() -> None:
        options = {} if asked is None else {"namespaces": asked}
        with Port() as port:
            port.send(enter(target, argv=SLEEP, **options))
            pid, child = parked(port)
            assert (pid == child) == ("pid" not in kinds)
            port.send("proceed")
            assert port.receive() == ("status", "running")
            assert joined(pid, target) == kinds
            port.send(("signal", 15))
            assert port.rest() == [("status", "signaled", 15)]

    await in_thread(look)


async def test_the_rest_of_the_request(target: linx.Session) -> None:
    def ask() -> None:
        reading, writing = os.pipe()
        try:
            with Port(stdio={1: writing}) as port:
                script = 'echo "$A" $(pwd) $(id -u) $(uname -n); grep NoNewPrivs /proc/$$/status; cat'
                options = {"cwd": b"/usr", "env": {b"A": b"1"}, "stdio": {"stdin": "devnull"}, "no_new_privs": True}
                port.send(enter(target, argv=shell(script), namespaces=["user", "uts", "mount"], **options), "proceed")
                started(port)
                assert port.rest() == [("status", "running"), ("status", "exited", 0)]
            assert os.read(reading, 1000) == b"1 /usr 0 inner\nNoNewPrivs:\t1\n"
        finally:
            os.close(reading)
            os.close(writing)

    await in_thread(ask)


@pytest.mark.parametrize("phase", ["parked", "running"])
async def test_closing_leaves_nothing(target: linx.Session, phase: str, nothing_is_left: str) -> None:
    def close() -> None:
        with Port() as port:
            port.send(enter(target, argv=shell("trap '' TERM; setsid sleep 1000 & echo; sleep 1000")))
            pid, _ = parked(port)
            if phase == "running":
                port.send("proceed")
                assert port.receive() == ("status", "running")
                eventually(lambda: len(with_token(nothing_is_left)) >= 2, "it has a child")
            port.close_input()
            assert port.wait() == 0
            assert not exists(pid)

    await in_thread(close)


async def test_what_a_workload_leaves_behind_does_not_stay(target: linx.Session) -> None:
    def leave() -> None:
        with Port() as port:
            port.send(enter(target, argv=shell("setsid sleep 1000 & exit 3")), "proceed")
            started(port)
            assert port.rest() == [("status", "running"), ("status", "exited", 3)]
            assert port.wait() == 0

    await in_thread(leave)


async def test_abort(target: linx.Session) -> None:
    def abort() -> None:
        with Port() as port:
            port.send(enter(target, argv=SLEEP))
            _, child = parked(port)
            port.send("abort")
            assert port.rest() == [("status", "aborted", child)]
            assert port.wait() == 0

    await in_thread(abort)


async def test_errors_inside(target: linx.Session) -> None:
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"argv": [b"/does/not/exist"]}, errno.ENOENT, "execve"),
        ({"argv": TRUE, "cwd": b"/does/not/exist"}, errno.ENOENT, "chdir"),
    ]

    def fail(options: dict[str, Any], number: int, stage: str) -> None:
        with Port() as port:
            port.send(enter(target, **options), "proceed")
            started(port)
            assert port.rest() == [("error", number, stage)]
            assert port.wait() == 0

    for case in cases:
        await in_thread(fail, *case)


# ---- nobody to enter -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pid", [NOBODY, 2**31 - 1])
@pytest.mark.parametrize("namespaces", ["all", ["net"], []], ids=str)
def test_a_bogus_target(pid: int, namespaces: Any) -> None:
    with Port() as port:
        port.send(enter(pid, argv=TRUE, namespaces=namespaces), "proceed")
        assert port.rest() == [("error", errno.ENOENT, "open_ns_user")]
        assert port.wait() == 0


def test_a_target_that_has_ended() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    with Port() as port:
        port.send(enter(pid, argv=TRUE))
        assert port.rest() == [("error", errno.ENOENT, "open_ns_user")]


def test_a_zombie() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        with Port() as port:
            port.send(enter(pid, argv=TRUE))
            ((tag, number, stage),) = port.rest()
            assert (tag, number) == ("error", errno.ENOENT)
            assert stage.startswith("open_ns_")
    finally:
        os.waitpid(pid, 0)


AS_SOMEBODY = """
from linx_trio._proto import etf
from linx_trio._proto.framing import FrameDecoder, encode_frame
import fcntl, struct
def high_pipe():
    low = os.pipe()
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 50) for fd in low]
    for fd in low:
        os.close(fd)
    return high
(their_in, ours_in), (ours_out, their_out) = high_pipe(), high_pipe()
actions = [(os.POSIX_SPAWN_DUP2, their_in, 3), (os.POSIX_SPAWN_DUP2, their_out, 4)]
pid = os.posix_spawn(os.environ["LINX_TRIO_AGENT"], ["linx-agent", "--port"], os.environ, file_actions=actions)
os.close(their_out)
os.write(ours_in, encode_frame(etf.encode(("enter", {{"target": {pid}, "argv": [b"/bin/true"]}}))))
data = b""
while chunk := os.read(ours_out, 65536):
    data += chunk
result = [list(etf.decode(frame)) for frame in FrameDecoder().feed(data)] + [os.waitpid(pid, 0)[1]]
"""


def test_one_that_may_not_be_entered() -> None:
    assert as_somebody(AS_SOMEBODY.format(pid=1)) == [["error", errno.EACCES, "open_ns_user"], 0]
