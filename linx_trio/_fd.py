"""One owner per fd.

`FdBag` owns what was opened on the way to something; leaving its block closes whatever was not taken out.
`after_fork` is where objects whose fds must not survive in a forked Python register: a copy of a session's socket in
a child of `os.fork` would keep the session alive after its Python is gone.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import weakref
from types import TracebackType
from typing import Protocol

if sys.platform != "win32":
    import fcntl


def clear_of_stdio(fd: int) -> int:
    """`fd`, or a copy in place of 0, 1 and 2: where the caller has one of those closed, ours must not be taken for
    it.
    """
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def socket_pair(kind: socket.SocketKind) -> tuple[socket.socket, socket.socket]:
    """A close-on-exec ``socketpair(2)`` of AF_UNIX."""
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    if one.fileno() > 2 < other.fileno():
        return one, other
    return socket.socket(fileno=clear_of_stdio(one.detach())), socket.socket(fileno=clear_of_stdio(other.detach()))


class FdBag:
    """Owns fds until they are taken out. A context manager: leaving it closes the rest."""

    def __init__(self) -> None:
        self._fds: set[int] = set()

    def add(self, fd: int) -> int:
        self._fds.add(fd)
        return fd

    def adopt(self, fd: int) -> int:
        """A new fd that may have got the number of a closed standard stream."""
        return self.add(clear_of_stdio(fd))

    def pipe(self) -> tuple[int, int]:
        """A close-on-exec ``pipe(7)``: read end, write end."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        return self.adopt(read_end), self.adopt(write_end)

    def open(self, path: str, flags: int) -> int:
        """A close-on-exec ``open(2)``."""
        return self.adopt(os.open(path, flags | os.O_CLOEXEC))

    def take(self, fd: int) -> int:
        self._fds.remove(fd)
        return fd

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def __enter__(self) -> FdBag:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _ForkSensitive(Protocol):
    def close_after_fork(self) -> None:
        """Closes the fds of this copy of the object, in the forked child."""


_fork_sensitive: weakref.WeakSet[_ForkSensitive] = weakref.WeakSet()


def after_fork(thing: _ForkSensitive) -> None:
    """Has `thing.close_after_fork` called in every child of `os.fork`, as long as it lives."""
    _fork_sensitive.add(thing)


def _close_all() -> None:
    for thing in list(_fork_sensitive):
        with contextlib.suppress(OSError):
            thing.close_after_fork()
    _fork_sensitive.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all)
