"""A session's socket under trio: frames and fds out without waiting, bytes and fds in.

`send` is a plain function, so that a verb cannot be cancelled half-way through a frame. What the kernel does not
take at once (only a very long request) stays in the out-buffer, is finished before anything new, and is pumped by a
system task.
"""

from __future__ import annotations

import array
import contextlib
import itertools
import os
import select
import socket
import sys
from collections.abc import Sequence

import trio

from linx_trio._fd import after_fork, socket_pair

_READ_SIZE = 4096
_FDS_AT_ONCE = 16

if sys.platform == "linux":
    _ROOM = socket.CMSG_SPACE(_FDS_AT_ONCE * 4)
    _CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)

_numbers = itertools.count(1)


def are_silent(*sides: socket.socket) -> bool:
    """Whether the far sides are open, and nothing that they said waits to be read."""
    said = select.poll()
    try:
        for side in sides:
            said.register(side, select.POLLIN)
    except ValueError:  # closed on this side
        return False
    return not said.poll(0)


class Channel:
    """Owns this side's socket. `peer` is the agent's side until it has been handed over; the caller closes it.

    `number` is what the zygote knows it by.
    """

    def __init__(self) -> None:
        self.number = next(_numbers)
        self._socket, self.peer = socket_pair(socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._out = bytearray()
        after_fork(self)

    def send(self, frame: bytes, fds: Sequence[int] = ()) -> bool:
        """Sends `frame`, now or as soon as possible, after all that was sent before. Never blocks.

        `fds` travel with its first byte: they can be given only where nothing waits before it, and then `OSError` with
        ``ETOOMANYREFS`` says that too many are under way; nothing has been sent then. A far side that is gone is no
        error here: reading tells. But where nothing has been read by anybody, False tells it at once.
        """
        if self._socket.fileno() < 0:
            return False
        if self._out:
            self._out += frame
            return True
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            sent = self._socket.sendmsg([frame], rights)
        except BlockingIOError:
            if fds:
                raise
            sent = 0
        except (BrokenPipeError, ConnectionResetError):
            return False
        if sent < len(frame):
            self._out += frame[sent:]
            trio.lowlevel.spawn_system_task(self._pump, name="linx: finishing a request")
        return True

    async def _pump(self) -> None:
        # OSError: the far side is gone, or ours was closed; reading tells.
        with contextlib.suppress(OSError, trio.ClosedResourceError):
            while self._out and self._socket.fileno() >= 0:
                await trio.lowlevel.wait_writable(self._socket)
                with contextlib.suppress(BlockingIOError):
                    del self._out[: self._socket.send(self._out)]

    async def receive(self) -> tuple[bytes, list[int]]:
        """What has arrived: bytes and fds, both the caller's; no bytes at the end of the stream.

        Raises `ConnectionResetError` where the far side went without having read all that was sent. Cancellation loses
        nothing: it can only happen before something is read. Always a checkpoint.
        """
        while True:
            await trio.lowlevel.wait_readable(self._socket)  # first: what was asked for just now is not there yet
            with contextlib.suppress(BlockingIOError):
                return self.receive_nowait()

    def receive_nowait(self) -> tuple[bytes, list[int]]:
        """The same at once, or `BlockingIOError`."""
        data, ancillary, _flags, _address = self._socket.recvmsg(_READ_SIZE, _ROOM, _CLOEXEC)
        fds = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        return data, fds.tolist()

    def stop_sending(self) -> None:
        """Nothing more will be said: the far side reads to the end of the stream."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    @property
    def is_sent(self) -> bool:
        """Whether nothing waits to be sent."""
        return not self._out

    def fileno(self) -> int:
        """This side's fd; -1 once it is closed."""
        return self._socket.fileno()

    def is_silent(self, also: socket.socket) -> bool:
        """Whether the far side is there, and nothing that it said waits to be read; nor of what `also` is a side of."""
        return are_silent(self._socket, also)

    def close(self) -> None:
        """Closes both sides that are still ours; whoever waits on them is woken."""
        if self._socket.fileno() >= 0:
            with contextlib.suppress(RuntimeError):  # outside of trio.run nobody waits
                trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
        self.peer.close()

    def close_after_fork(self) -> None:
        for side in (self._socket, self.peer):
            if side.fileno() >= 0:
                os.close(side.detach())
