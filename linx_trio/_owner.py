"""Handing a session's events to whoever wants them, without ever making the session wait for its readers."""

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


class EventLog:
    """All events of a session, from the first one, for any number of readers."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._complete = False
        self._news: trio.lowlevel.ParkingLot | None = None  # made by who waits first

    def append(self, event: Event) -> None:
        self._events.append(event)
        self._wake()

    def complete(self) -> None:
        """Says that no more will come."""
        self._complete = True
        self._wake()

    def _wake(self) -> None:
        if self._news is not None:
            self._news.unpark_all()

    async def get(self, index: int) -> Event | None:
        """That event, as soon as it is there; `None` if it never will be."""
        if index < len(self._events) or self._complete:
            await trio.lowlevel.checkpoint()
        while index >= len(self._events) and not self._complete:
            self._news = self._news or trio.lowlevel.ParkingLot()
            await self._news.park()
        return self._events[index] if index < len(self._events) else None


class EventIterator:
    """`Session.events`. Not an async generator: there is nothing to finalize."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._next = 0

    def __aiter__(self) -> EventIterator:
        return self

    async def __anext__(self) -> Event:
        event = await self._log.get(self._next)
        if event is None:
            raise StopAsyncIteration
        self._next += 1
        return event
