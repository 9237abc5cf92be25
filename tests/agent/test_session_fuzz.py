"""A session's socket under the sanitizers, against bytes that this package's Python would never send.

The zygote says ``lost`` where a monitor ended otherwise than by itself, and the end of the stream says that not even
its zombie is left. What is run is ``/bin/true``, as in the port's fuzz tests.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linx_trio._proto import etf
from linx_trio._proto.framing import FrameDecoder
from tests.agent.port import Raw, body, frame, listing, mapping, pair, spawn
from tests.agent.test_port_fuzz import CUTS, NOISES, ODD, Sanitized, relaxed, sanitized
from tests.support import DEADLINE, TOKEN, with_token

__all__ = ["sanitized"]

TRUE = [b"/bin/true"]
HUGE = [2**62, 2**63 - 1, -(2**63) + 1, 10**15]


@pytest.fixture(scope="module")
def control(sanitized: Sanitized) -> Iterator[socket.socket]:
    """A sanitized zygote's socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)]
        pid = os.posix_spawn(sanitized.agent, ["linx-agent", "--zygote", "3"], sanitized.environ, file_actions=actions)
        theirs.close()
        ours.settimeout(DEADLINE)
        hello = etf.decode(ours.recv(4096))
        assert isinstance(hello, tuple)
        assert hello[0] == "hello"
        yield ours
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def session(control: socket.socket, pieces: list[bytes], fds: int = 0, *, hang_up: bool = False) -> list[Any]:
    """All events of a session that is sent `pieces`. `fds` null devices go with the first of them.

    With `hang_up` our side is closed after the first event; without, the session must come to its end by itself.
    """
    ours, theirs = socket.socketpair()
    with ours:
        ours.settimeout(DEADLINE)
        with theirs, contextlib.ExitStack() as stack:
            nulls = [stack.enter_context(open(os.devnull, "rb")).fileno() for _ in range(fds)]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", nulls))] if nulls else []
            ours.sendmsg([pieces[0]], rights)
            socket.send_fds(control, [struct.pack("=QQ", 1, 1)], [theirs.fileno()])
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces[1:]:
                ours.sendall(piece)
        decoder = FrameDecoder()
        events: list[Any] = []
        with contextlib.suppress(ConnectionResetError):
            while ("status", "idle") not in events and (data := ours.recv(65536)):
                events += [etf.decode(payload) for payload in decoder.feed(data)]
                if hang_up and events:
                    with contextlib.suppress(OSError):
                        ours.shutdown(socket.SHUT_WR)
        return events


def expect_sound(sanitized: Sanitized, events: list[Any]) -> None:
    sanitized.check()
    assert not [event for event in events if event[0] == "lost"], events
    ends = [event for event in events if event[0] in ("error", "over") or event[1] in ("exited", "signaled", "aborted")]
    assert len(ends) <= 1, events
    assert not [pid for pid in with_token(os.environ[TOKEN]) if pid != os.getpid()]


def test_a_good_one(sanitized: Sanitized, control: socket.socket) -> None:
    """That the tests below would see a life if there were one."""
    events = session(control, [frame(spawn(argv=TRUE, orphan=("kill", 60_000))) + frame("proceed")])
    assert events[0][0] == "began" or ("status", "ready", events[0][2]) in events
    expect_sound(sanitized, events)


BAD: dict[str, tuple[Any, list[Any]]] = {
    "steps twice": (pair("spawn", mapping([("argv", TRUE), ("steps", ["checkpoint"]), ("steps", [])])), ["proceed"]),
    "steps four times": (
        pair("spawn", mapping([("argv", TRUE), *[("steps", ["checkpoint"]), ("steps", [])] * 2])),
        ["proceed"],
    ),
    **{f"a grace of {n}": (spawn(argv=TRUE, orphan=("kill", n)), ["proceed"]) for n in HUGE},
    **{f"shut down in {n}": (spawn(argv=TRUE, auto_proceed=True), [("shutdown", n)]) for n in HUGE},
    **{f"signal {n}": (spawn(argv=TRUE, auto_proceed=True), [("signal", n)]) for n in HUGE},
    "fds that did not come": (spawn(argv=TRUE, fds=[0, 1]), []),
    "fds twice": (spawn(argv=TRUE, fds=[0, 0]), []),
    "null and an fd": (spawn(argv=TRUE, fds=[("null", 0), 0]), []),
    "null for what is no number": (spawn(argv=TRUE, fds=[("null", "cwd")]), []),
    "null without a number": (spawn(argv=TRUE, fds=[("null",)]), []),
    "null for -1": (spawn(argv=TRUE, fds=[("null", -1)]), []),
    "something else for 0": (spawn(argv=TRUE, fds=[("zero", 0)]), []),
    "no request": ("proceed", []),
}


@pytest.mark.parametrize(("request_", "commands"), BAD.values(), ids=BAD.keys())
def test_bad_ones(sanitized: Sanitized, control: socket.socket, request_: Any, commands: list[Any]) -> None:
    expect_sound(sanitized, session(control, [frame(request_) + b"".join(map(frame, commands))]))


STEPS = st.one_of(
    st.just("checkpoint"),
    ODD,
    st.tuples(st.sampled_from(["umask", "nice", "no_new_privs", "chdir", "typo"]), ODD),
    st.tuples(st.just("optional"), st.tuples(st.sampled_from(["umask", "chdir"]), ODD)),
)
FDS: list[Any] = [0, 1, 2, 7, "cwd", -1, 2**31, ("null", 0), ("null", 7)]
ENTRIES = st.one_of(
    st.tuples(st.just("steps"), st.lists(STEPS, max_size=4)),
    st.tuples(st.just("fds"), st.lists(st.sampled_from(FDS), max_size=4)),
    st.tuples(st.just("orphan"), st.sampled_from(["linger", ("kill", 0), ("kill", 5), ("kill", -1)]) | ODD),
    st.tuples(st.sampled_from(["auto_proceed", "new_session"]), st.booleans() | ODD),
    st.tuples(st.just("env"), st.lists(st.sampled_from([b"A=1", b"", b"\0"]), max_size=2)),
    st.tuples(st.sampled_from(["namespaces", "typo"]), ODD),
)


@st.composite
def requests(draw: st.DrawFn) -> Raw:
    pairs = [
        (key, listing(*value) if isinstance(value, list) else value)
        for key, value in draw(st.lists(ENTRIES, max_size=5))
    ]
    whole = body(mapping([("argv", TRUE), *pairs]))
    return pair("spawn", Raw(whole))


@given(request_=requests(), noise=NOISES, cuts=CUTS, fds=st.integers(0, 4))
@relaxed
def test_any_bytes(
    sanitized: Sanitized, control: socket.socket, request_: Raw, noise: bytes, cuts: list[int], fds: int
) -> None:
    data = frame(request_) + noise
    pieces = []
    for cut in cuts:
        pieces.append(data[:cut])
        data = data[cut:]
    pieces = [piece for piece in [*pieces, data] if piece]
    expect_sound(sanitized, session(control, pieces, fds, hang_up=True))
