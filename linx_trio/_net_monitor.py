"""Hearing of changes: a socket that is in multicast groups, as an async iterator."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType

import trio

from linx_trio import _net_read as read
from linx_trio import _netlink_messages as nl
from linx_trio._net_checks import one_of
from linx_trio._net_objects import Change
from linx_trio._netlink_frames import Frame
from linx_trio._rtnl import Rtnl

# RTNLGRP_*
GROUPS: dict[str, tuple[int, ...]] = {
    "links": (1,),
    "neighbours": (3,),
    "qdiscs": (4,),
    "addresses": (5, 9),
    "routes": (7, 11),
    "rules": (8, 19),
}


def groups_of(names: Iterable[str] | None) -> list[int]:
    """Raises `TypeError`, `ValueError`."""
    if isinstance(names, str):
        raise TypeError(f"groups must be several of {', '.join(sorted(GROUPS))}, as in {{{names!r}}}")
    chosen = GROUPS if names is None else {one_of(name, "group", GROUPS) for name in names}
    return sorted(number for name in chosen for number in GROUPS[name])


class Monitor:
    """The changes in a network namespace, as they happen. Made by `Net.monitor`; an async iterator, and an async
    context manager, of `Change`.

    ``async with net.monitor() as changes`` listens from the beginning of the block; ``async for`` on a monitor that
    has not been entered, from its first step. It ends with its `Net`. For one task at a time.
    """

    def __init__(self, groups: list[int], open: Callable[[list[int]], Awaitable[Rtnl]], cookie: int | None) -> None:
        self._groups = groups
        self._open = open
        self._cookie = cookie
        self._rtnl: Rtnl | None = None
        self._waiting: deque[Change] = deque()
        self._closed = False

    async def _start(self) -> Rtnl:
        if self._closed:
            raise trio.ClosedResourceError("this monitor has been closed")
        if self._rtnl is None:
            self._rtnl = await self._open(self._groups)
        return self._rtnl

    async def __aenter__(self) -> Monitor:
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> Monitor:
        return self

    async def __anext__(self) -> Change:
        """The next change.

        Raises `OSError` (ENOBUFS) when changes came faster than they were taken, and the kernel has dropped some: list
        again what matters; the monitor goes on with what comes then. `trio.ClosedResourceError` once it is closed.
        """
        rtnl = await self._start()
        while not self._waiting:
            try:
                frames = await rtnl.receive()
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise
                text = "changes came faster than they were taken, and some are lost"
                raise OSError(errno.ENOBUFS, text) from None
            self._take(frames)
        return self._waiting.popleft()

    def _take(self, frames: list[Frame]) -> None:
        trouble = None
        for frame in frames:
            try:
                with nl.malformed("a notification"):
                    change = read.change(frame.type, nl.decode(frame), self._cookie)
            except OSError as exc:
                trouble = exc
                continue
            if change is not None:
                self._waiting.append(change)
        if trouble is not None:
            raise trouble  # the others have been kept

    def close(self) -> None:
        """A task that waits for a change gets `trio.ClosedResourceError`."""
        self._closed = True
        if self._rtnl is not None:
            self._rtnl.close()

    async def aclose(self) -> None:
        """`close`, as an async function."""
        self.close()
        await trio.lowlevel.checkpoint()
