"""Network namespaces, configured from outside: links, addresses, routes, over ``rtnetlink(7)``.

::

    async with linx.spawn(["/bin/sleep", "60"], namespaces={"net"}) as child:
        async with linx.net.open() as host, linx.net.open(child) as ns:
            await host.create_macvlan("ct0", "eth0", mode="bridge")
            await host.move_to_netns("ct0", child)
            await ns.set_up("lo")
            await ns.add_address("ct0", "10.0.0.5", 24)
            await ns.set_up("ct0")
            await ns.add_default_route("10.0.0.1")
            await child.proceed()
            ...

The workload's first instruction finds its network there. The socket is opened inside of the namespace by the agent,
rootless too, and used from here: nothing is forked, and no thread changes its namespace. pyroute2's message classes
encode and decode.

Whatever a `Net` makes is its own: it goes when the block is left, unless it was made with ``keep=True``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

import trio

from linx_trio import _net_targets, _netns
from linx_trio import _netlink_frames as f
from linx_trio import _netlink_messages as nl
from linx_trio._agent import check_platform
from linx_trio._net_links import LinkLike, Links
from linx_trio._net_monitor import Monitor, groups_of
from linx_trio._net_objects import Address, Change, Link, LinkStats, Neighbour, NextHop, Qdisc, Route, Rule
from linx_trio._net_qdiscs import Qdiscs
from linx_trio._net_routes import Routes
from linx_trio._parked import as_verb
from linx_trio._rtnl import Rtnl

if TYPE_CHECKING:
    from linx_trio._options import HasFileno
    from linx_trio._session import Session

    TargetLike: TypeAlias = "int | HasFileno | Session | str | bytes | os.PathLike[Any]"

__all__ = [
    "Address",
    "Change",
    "Link",
    "LinkLike",
    "LinkStats",
    "Monitor",
    "Neighbour",
    "Net",
    "NextHop",
    "Qdisc",
    "Route",
    "Rule",
    "open",
]


class Net(Links, Routes, Qdiscs):
    """A network namespace that can be asked and told things. Made by `linx_trio.net.open`; do not call.

    Links are named by their name, their index, or a `Link`. Addresses are strings, or of `ipaddress`.

    Every function raises `TypeError` or `ValueError` for wrong arguments, before any system call; and `OSError`, with
    the kernel's errno and explanation, for what it refuses. A function that is cancelled has done its work or not
    begun it, but for those that are made of several requests, as when a name has to be looked up first. After the
    block they raise `trio.ClosedResourceError`.
    """

    def __init__(self, rtnl: Rtnl, target: Any) -> None:
        super().__init__(rtnl, target)
        self._monitors: list[Monitor] = []

    def __repr__(self) -> str:
        state = "closed " if self._rtnl.closed else ""
        return f"<linx_trio.net.Net {state}of {'here' if self._target is None else repr(self._target)}>"

    def monitor(self, groups: Iterable[str] | None = None) -> Monitor:
        """The changes in here, as they happen, with whoever's doing.

        Args:
            groups: of ``"links" "addresses" "routes" "neighbours" "rules" "qdiscs"``; `None`: all.
        """
        numbers = groups_of(groups)
        self._rtnl._check_open()
        monitor = Monitor(numbers, self._open_another, self._cookie)
        self._monitors = [other for other in self._monitors if not other._closed] + [monitor]
        return monitor

    async def _open_another(self, groups: list[int]) -> Rtnl:
        self._rtnl._check_open()
        rtnl = await _opened(self._target, groups)
        if rtnl.netns_cookie() != self._cookie:
            rtnl.close()
            raise OSError(_ESTALE, "it is in another network namespace than it was", repr(self._target))
        return rtnl

    async def request(self, message: Any, type: int | None = None, flags: int | None = None) -> list[Any]:
        """Asks whatever has no function here, in pyroute2's own words.

        Args:
            message: of one of pyroute2's classes, like ``pyroute2.netlink.rtnl.ndtmsg.ndtmsg``. type:
            ``RTM_GETNEIGHTBL``, …; `None`: that of the message's header. flags: ``NLM_F_DUMP``, ``NLM_F_CREATE``, …;
            `None`: those of the header. NLM_F_REQUEST and NLM_F_ACK are added.

        Returns what is answered, of pyroute2's classes. What it makes is not owned by this scope.
        """
        headers = nl.encode(message)
        type = headers[0] if type is None else type
        if not isinstance(type, int) or not 0x10 <= type <= 0xFFFF:
            raise ValueError(f"type={type!r} is no message type like RTM_GETLINK, and the message's header has none")
        flags = headers[1] if flags is None else flags
        answer = await self._rtnl.request(type, (flags & 0xFFFF) & ~f.ACK, headers[2], slow=True)
        return [nl.decode(frame) for frame in answer]

    async def _close(self) -> list[OSError]:
        try:
            for monitor in self._monitors:
                monitor.close()
            return await self._close_owner()
        finally:
            self._rtnl.close()


_ESTALE = 116


async def _opened(target: Any, groups: Iterable[int] = ()) -> Rtnl:
    sock = await _netns.open_netlink(target)
    try:
        return Rtnl(sock, groups)
    except BaseException:
        sock.close()
        raise


class NetManager(contextlib.AbstractAsyncContextManager[Net]):
    """What `open` returns: ``async with`` it, once."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self._net: Net | None = None

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Net:
        if self._net is not None:
            raise RuntimeError("a Net can be entered once; call open() again")
        await trio.lowlevel.checkpoint_if_cancelled()
        check_platform()
        with as_verb("open"):
            self._net = Net(await _opened(self._target), self._target)
        return self._net

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._net is not None
        troubles = await self._net._close()
        if not troubles:
            return
        if exc is None:
            for other in troubles[1:]:
                troubles[0].add_note(f"and also: {other}")
            raise troubles[0]
        for trouble in troubles:
            exc.add_note(f"when leaving linx.net.open(): {trouble}")


def open(target: TargetLike | None = None) -> NetManager:
    """Opens a network namespace: ``async with linx.net.open(…) as net``.

    Args:
        target: whose: a `Session` (parked or running), a pid, a pidfd object, a path like ``/proc/<pid>``, or one of
            a namespace's file,
            as ``ip netns add`` leaves it in ``/run/netns``. `None`: the caller's own.

    Leaving the block deletes the links that were made in it, wherever they are by then, and brings back those that
    were lent. That is shielded from cancellation, and bounded in time; what could not be done is raised, or noted on
    the block's own exception. While it is open the namespace lives, even when its processes have ended.

    Raises `SetupError`: ENOENT at stage ``open_ns_user``, there is no such process; EPERM or EACCES, it is somebody
    else's. `NotReady`, `NoProcess`: the session has no process yet, or any more. `NotSupported`: this is not Linux.
    """
    if target is not None:
        _net_targets.check(target, "target")
    return NetManager(target)
