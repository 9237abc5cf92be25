"""Handing a session's events to a `trio.MemorySendChannel` without ever making the session wait for its reader."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import Any

import trio

from linx_trio._events import Event


class OwnerFeed:
    """Events to one channel, in order. What does not fit waits here, pumped by a system task until the receiver
    takes it or is closed. A session has three or four events, so this is bounded."""

    def __init__(self, channel: trio.MemorySendChannel[Any]) -> None:
        self._channel = channel
        self._waiting: deque[Event] = deque()

    def put(self, event: Event) -> None:
        if self._waiting:
            self._waiting.append(event)
            return
        try:
            self._channel.send_nowait(event)
        except trio.WouldBlock:
            self._waiting.append(event)
            trio.lowlevel.spawn_system_task(self._pump, name="linx: events to their owner")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # nobody listens any more

    async def _pump(self) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while self._waiting:
                await self._channel.send(self._waiting[0])
                self._waiting.popleft()
        self._waiting.clear()
