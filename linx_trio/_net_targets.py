"""Network namespaces to put links into, as fds of this process. Nobody's thread ever enters one."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, Protocol

from linx_trio._fd import FdBag
from linx_trio._netns import is_file, open_netlink
from linx_trio._session import Session
from linx_trio._target import check_target

if sys.platform != "win32":
    import fcntl

_SIOCGSKNS = 0x894C
_NS_GET_NSTYPE = 0xB703
_CLONE_NEWNET = 0x40000000


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


def check(target: Any, argument: str) -> None:
    """Raises `TypeError` or `ValueError`, naming the argument and the value."""
    try:
        check_target(target, ["net"], False)
    except (TypeError, ValueError) as exc:
        raise type(exc)(str(exc).replace("target", argument, 1)) from None


async def open_namespace(target: Any, bag: FdBag) -> int:
    """An fd of the target's network namespace, owned by the bag. As long as it is open, the namespace lives.

    Raises `SetupError`, `NotReady`, `NoProcess`; `OSError` (EINVAL) for a file that is none.
    """
    if is_file(target):
        return _checked(bag.open(os.fsdecode(target), os.O_RDONLY | os.O_NONBLOCK), target)
    with FdBag() as pins:
        pinned = check_target(target, ["net"], False).open(pins)
        try:
            return _checked(bag.adopt(os.open("ns/net", os.O_RDONLY | os.O_CLOEXEC, dir_fd=pinned.fd)), target)
        except PermissionError:
            pass  # it does not let us look (``ptrace(2)``), but in
    with await open_netlink(target) as sock:
        return namespace_of(sock, bag)


def namespace_of(sock: _HasFileno, bag: FdBag) -> int:
    """An fd of the network namespace that a socket belongs to (``SIOCGSKNS``). Needs CAP_NET_ADMIN in there."""
    return bag.adopt(fcntl.ioctl(sock.fileno(), _SIOCGSKNS))


def dies_with_us(target: Any) -> bool:
    """Whether the target's network namespace goes when this process is killed: a session's own one, fresh for it. One
    that a session shares or has joined is somebody else's, who may stay.
    """
    return isinstance(target, Session) and "net" in target.workload.namespace_names


def is_same(one: int, other: int) -> bool:
    """Whether two fds are of the same namespace."""
    return os.path.sameopenfile(one, other)


def _checked(fd: int, target: Any) -> int:
    try:
        kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != _CLONE_NEWNET:
        raise OSError(errno.EINVAL, "it is no network namespace", str(target))
    return fd
