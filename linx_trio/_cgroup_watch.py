"""Waiting for what happens to a cgroup.

The kernel wakes whoever polls ``cgroup.events`` (or ``memory.events``) for EPOLLPRI when it has changed since that fd
last read it. Such a file counts as readable all the time, so trio cannot wait for it; it can wait for an ``epoll(7)``
instance of ours that looks for EPOLLPRI alone.

Of a removal the kernel says nothing. But only an empty group is removed, and that it has become empty is said. Who
waits for anything else is woken by `Watchers.wake`, if the group is removed on this side.
"""

from __future__ import annotations

import os
import select
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import trio

from linx_trio import _cgroup_stats
from linx_trio._cgroup_stats import Events
from linx_trio._fd import FdBag, clear_of_stdio

_FILES = ("cgroup.events", "memory.events")


class Watchers:
    """Who waits for something of a group; `fileno` is of its directory, and raises `ValueError` once that is closed."""

    def __init__(self, fileno: Callable[[], int]) -> None:
        self.fileno = fileno
        self.polls: set[select.epoll] = set()

    def wake(self) -> None:
        """All of them, because the group is closed."""
        for poll in self.polls:
            with suppress(RuntimeError):  # not inside of trio.run: then nobody waits
                trio.lowlevel.notify_closing(poll.fileno())


class _Watch:
    """The two files of the group, kept open. A context manager."""

    def __init__(self, watchers: Watchers) -> None:
        self._watchers = watchers
        directory = watchers.fileno()
        self._bag = FdBag()
        self._fds: dict[str, int] = {}
        self._poll = select.epoll()
        for name in _FILES:
            with suppress(OSError):  # no memory controller; or no group any more
                fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
                self._fds[name] = self._bag.add(clear_of_stdio(fd))
                self._poll.register(self._fds[name], select.EPOLLPRI)

    def __enter__(self) -> _Watch:
        self._watchers.polls.add(self._poll)
        return self

    def __exit__(self, *_: object) -> None:
        self._watchers.polls.discard(self._poll)
        self._poll.close()
        self._bag.close()

    def now(self) -> Events | None:
        """Read afresh; `None` if the group has been removed or closed."""
        with suppress(ValueError):
            self._watchers.fileno()
            return None if self._read("cgroup.events") is None else _cgroup_stats.events(self._read)
        return None

    def _read(self, name: str) -> bytes | None:
        try:
            return os.pread(self._fds[name], 4096, 0)
        except (KeyError, OSError):
            return None

    async def change(self) -> None:
        """Returns when it may have changed since it was read."""
        with suppress(trio.ClosedResourceError):
            await trio.lowlevel.wait_readable(self._poll.fileno())


async def wait(watchers: Watchers, condition: Callable[[Events], bool]) -> None:
    """Until the condition holds, or the group has been removed or closed."""
    await trio.lowlevel.checkpoint()
    with _Watch(watchers) as watch:
        while (state := watch.now()) is not None and not condition(state):
            await watch.change()


class EventIterator(AsyncIterator[Events]):
    """What `Cgroup.events` returns. It holds no fd between two of its steps."""

    def __init__(self, watchers: Watchers) -> None:
        self._watchers = watchers
        self._last: Events | None = None
        watchers.fileno()

    async def __anext__(self) -> Events:
        await trio.lowlevel.checkpoint()
        try:
            watch = _Watch(self._watchers)
        except ValueError:  # it has been closed
            raise StopAsyncIteration from None
        with watch:
            while (state := watch.now()) == self._last and state is not None:
                await watch.change()
        if state is None:
            raise StopAsyncIteration
        self._last = state
        return state
