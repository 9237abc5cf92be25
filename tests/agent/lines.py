"""A channel to a monitor, without a session: what is said on it, as it is."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from linx_trio import _agent
from linx_trio._caller import Caller
from linx_trio._channel import Channel
from linx_trio._proto import messages as m
from linx_trio._proto.protocol import SessionProtocol


class Line:
    def __init__(self, channel: Channel, zygote: int) -> None:
        self.channel = channel
        self.zygote = zygote

    async def until_idle(self) -> list[m.Message]:
        """What is said in one session; also when that is cut short."""
        return await self.hear(SessionProtocol())

    async def hear(self, protocol: SessionProtocol, until: type[m.Message] = m.Idle) -> list[m.Message]:
        """The same of a conversation of which a part has been heard, or up to an event and what came with it."""
        heard: list[m.Message] = []
        until_one_of = (until, m.Began) if until is m.Started else (until,)
        while not any(isinstance(event, until_one_of) for event in heard):
            data, fds = await self.channel.receive()
            for message, fd in protocol.feed(data, fds):
                heard.append(message)
                if fd is not None:
                    os.close(fd)
            if not data:
                break
        return heard

    def request(self, *argv: bytes, steps: tuple[Any, ...] = (), **more: Any) -> None:
        self.channel.send(m.Spawn(argv, (), auto_proceed=True, steps=steps, **more).frame())


@asynccontextmanager
async def line(room: int | None = None) -> AsyncIterator[Line]:
    zygote = await _agent.acquire(Caller.now())
    channel = Channel()
    if room is not None:
        channel.peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
    try:
        await _agent.hand_over(zygote, channel)
        yield Line(channel, zygote.pid)
    finally:
        channel.close()
        _agent.release(zygote)
