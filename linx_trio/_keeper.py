"""What undoes what this process has made outside of any workload, should it be killed: a process of the agent's.

It is told a will for each thing when that is made, and to forget it when that has been undone here. When its socket is
closed, by whatever end this process comes to, it executes the wills that are left, the last first.
"""

from __future__ import annotations

import itertools
from typing import Literal

from linx_trio import _agent
from linx_trio._caller import Caller
from linx_trio._channel import Channel
from linx_trio._patience import congested
from linx_trio._proto import messages as m
from linx_trio.errors import AgentError

_numbers = itertools.count(1)


class Keeper:
    """Made by `start`; `close` is due. Its functions never block, and do nothing where the keeper has been killed."""

    def __init__(self, zygote: _agent.Zygote, channel: Channel) -> None:
        self._zygote: _agent.Zygote | None = zygote
        self._channel = channel

    def keep(self, data: bytes) -> int:
        """A will: a netlink message, or the name of a cgroup. Returns what to `revoke` it by."""
        number = next(_numbers)
        self._channel.send(m.will(number, data))
        return number

    def revoke(self, number: int) -> None:
        """That has been undone."""
        self._channel.send(m.revoke(number))

    def close(self) -> None:
        """The wills that are left are executed now."""
        if self._zygote is not None:
            self._channel.close()
            _agent.release(self._zygote)
            self._zygote = None


async def start(kind: Literal["netlink", "cgroup"], fd: int) -> Keeper:
    """A keeper. `fd` stays the caller's: a netlink socket, or the directory of the cgroup that those to be removed are
    directly below.

    Raises `AgentError`, `NotSupported`, `SetupError`. Cancelled, there is none.
    """
    for attempt in itertools.count(1):
        zygote = await _agent.acquire(Caller.now())
        channel = Channel()
        try:
            await congested(lambda: channel.send(m.keep(kind), [fd]))  # noqa: B023
            await _agent.hand_over(zygote, channel)
        except BaseException as exc:
            channel.close()
            _agent.release(zygote)
            if not isinstance(exc, _agent.Gone):
                raise
            if attempt == _ATTEMPTS:
                raise AgentError(f"the agent {zygote.path} is killed as soon as it is started", zygote.path) from None
            continue  # it was killed just now; the next one is a new one
        return Keeper(zygote, channel)
    raise AssertionError("unreachable")


_ATTEMPTS = 3
