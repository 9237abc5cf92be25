"""Sockets that belong to another network namespace: opened inside by the agent's child, used from here."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from linx_trio._run import enter, spawn
from linx_trio._session import Session
from linx_trio.errors import setup_error


async def open_netlink(target: Any, protocol: int = 0) -> socket.socket:
    """A netlink socket (``netlink(7)``) of the network namespace of `target`.

    The socket is close-on-exec and non-blocking. Its rights are those of its opener, who is root in the user namespace
    of the target where that is another one; so it works rootless, for one's own containers.

    Args:
        target: a pid, a pidfd object, a `Session`, a path like ``/proc/<pid>``, or the path of a namespace's file, as
            ``ip netns add`` leaves it in ``/run/netns``; `None`: the caller's own namespace.
        protocol: a number like ``NETLINK_ROUTE``.

    Raises `SetupError` (stages ``open_ns_<kind>``, ``setns_<kind>``, ``netlink``), `NotReady`, `NoProcess`. Cancelled,
    nothing is left open.
    """
    if target is None:
        try:
            return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
        except OSError as exc:
            raise setup_error(exc.errno or errno.EIO, "netlink", f"netlink protocol {protocol}") from None
    if isinstance(target, Session) and target.state == "ready":
        return _socket(await target.open_netlink([], protocol), protocol)
    if is_file(target):
        path = os.fsdecode(target)
        async with spawn(["/"], cwd="/") as child:
            steps = [(("setns", b"net", os.fsencode(os.path.join(os.getcwd(), path))), path)]
            return _socket(await child.open_netlink(steps, protocol), protocol)
    async with enter(target, ["/"], namespaces={"user", "net"}, join_cgroup=False) as child:
        return _socket(await child.open_netlink([], protocol), protocol)


def is_file(target: Any) -> bool:
    """Whether it is the path of a namespace's file, and not of a process' directory."""
    return isinstance(target, (str, bytes, os.PathLike)) and not os.path.isdir(target) and os.path.exists(target)


def _socket(fd: int, protocol: int) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol, fileno=fd)
    sock.setblocking(False)
    return sock
