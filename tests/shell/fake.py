"""An agent in the hands of a test: the real session, the real socket, and on its far side a script.

A script is an async function. It starts when the session hands its socket over, and when it returns the socket is
closed, as the death of a monitor would close it.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import trio

from linx_trio._caller import Caller
from linx_trio._channel import Channel
from linx_trio._proto import etf
from linx_trio._proto import messages as m
from linx_trio._proto.framing import FrameDecoder
from tests.proto.events import frame_of

NOBODY = (1 << 22) + 5
"""A host pid that no process can have (``PID_MAX_LIMIT`` in ``proc(5)``)."""

SPAWNED, PARKED, STARTED = m.Spawned(NOBODY), m.Parked(1), m.Started()
USAGE = m.UsageReport(2_000_000, 1_000_000, 4_000_000, 65536, False)
RAN = m.Ran(NOBODY, 1, 7, *USAGE[:4])
WHOLE: tuple[m.Message, ...] = (SPAWNED, PARKED, STARTED, USAGE, m.Exit(7))


def stream_of(events: Sequence[m.Message]) -> bytes:
    return b"".join(map(frame_of, events))


class FakeAgent:
    """One session's far side. What it was told is in `received`; fds that came along are closed, and counted."""

    def __init__(self, sock: socket.socket) -> None:
        self.received: list[Any] = []
        self.fds = 0
        self.at_end = False
        self._frames = FrameDecoder()
        self._terms: list[Any] = []
        self._socket = trio.socket.from_stdlib_socket(sock)

    async def read(self, size: int = 65536) -> bytes:
        """The next bytes; none at the end."""
        try:
            data, ancillary, _, _ = await self._socket.recvmsg(size, socket.CMSG_SPACE(253 * 4))
        except ConnectionResetError:
            data, ancillary = b"", []
        for _, _, content in ancillary:
            for fd in array.array("i", content):
                os.close(fd)
                self.fds += 1
        self.at_end = not data
        return data

    async def hear(self) -> Any:
        """The next term; `None` at the end."""
        while not self._terms:
            data = await self.read()
            if not data:
                return None
            self._terms += [etf.decode(payload) for payload in self._frames.feed(data)]
        self.received.append(self._terms.pop(0))
        return self.received[-1]

    def __aiter__(self) -> FakeAgent:
        return self

    async def __anext__(self) -> Any:
        term = await self.hear()
        if term is None:
            raise StopAsyncIteration
        return term

    async def until_closed(self) -> None:
        """Listens, and says nothing, until the session has closed its side."""
        while await self.hear() is not None:
            pass

    async def until_told(self, command: Any) -> None:
        while (term := await self.hear()) is not None and term != command:
            pass

    async def request(self) -> dict[str, Any]:
        name, fields = await self.hear()
        assert name == "spawn"
        assert isinstance(fields, dict)
        return fields

    async def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        while data or rights:
            sent = await self._socket.sendmsg([data], rights)
            data, rights = data[sent:], []

    async def send_with_fd(self, data: bytes, count: int = 1) -> None:
        """`data`, and with its first byte so many fds, which stand for pidfds."""
        fds = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(count)]
        try:
            await self.send(data, fds)
        finally:
            for fd in fds:
                os.close(fd)

    async def say(self, *events: m.Message) -> None:
        """All in one piece, with an fd for each event that owns one."""
        await self.send_with_fd(stream_of(events), sum(isinstance(event, m.Spawned) for event in events))

    def close(self) -> None:
        self._socket.close()


Script = Callable[[FakeAgent], Awaitable[None]]


async def honest(agent: FakeAgent) -> None:
    """What a monitor would do, for a workload that ends by a signal only."""
    await agent.request()
    await agent.say(SPAWNED, PARKED)
    kept: list[int] = []
    running = False
    async for command in agent:
        match command:
            case "proceed" if not running:
                running = True
                await agent.say(STARTED)
            case ("signal", number):
                kept.append(number)
            case "abort" if running:
                pass
            case "abort" | "kill" | ("shutdown", _):
                await agent.say(*((USAGE, m.Kill(9)) if running else (m.Abortion(NOBODY),)))
                return
        if running and kept:
            await agent.say(USAGE, m.Kill(kept[0]))
            return


class FakeZygote:
    """Stands in for `_agent.Zygote`. `refusals` are what its next `hand_over` calls raise; `asked` counts them all."""

    def __init__(self, nursery: trio.Nursery, script: Script) -> None:
        self.path = "linx-agent"
        self.baseline = Caller.now()
        self.agents: list[FakeAgent] = []
        self.refusals: list[OSError] = []
        self.asked = 0
        self.kept = 0
        self._nursery = nursery
        self._script = script

    def unuse(self) -> None:
        """What `_agent.release` calls."""

    def kill_monitor(self, number: int) -> None:
        """There is none."""

    async def acquire(self, caller: Caller) -> FakeZygote:
        assert isinstance(caller, Caller)
        return self

    @property
    def agent(self) -> FakeAgent:
        """Of the last session."""
        return self.agents[-1]

    def take_spare(self) -> None:
        """There is none."""

    def keep(self, channel: Channel) -> None:
        """For no other session."""
        self.kept += 1
        channel.close()

    def hand_over(self, session: socket.socket, number: int = 0) -> None:
        self.asked += 1
        if self.refusals:
            raise self.refusals.pop(0)
        agent = FakeAgent(session.dup())
        self.agents.append(agent)
        self._nursery.start_soon(self._play, agent)

    async def _play(self, agent: FakeAgent) -> None:
        try:
            # The session does not listen any more, or the test has closed this side.
            with suppress(BrokenPipeError, ConnectionResetError, trio.ClosedResourceError):
                await self._script(agent)
        finally:
            agent.close()
