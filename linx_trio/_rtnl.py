"""Asking the kernel by ``rtnetlink(7)``: one socket, one question at a time.

The socket belongs to the network namespace that it was opened in, whoever uses it from wherever; so nobody's namespace
is ever changed here.

The kernel works inside of ``sendmsg(2)``: when that returns, the thing is done and the answer is in the socket.
So there is nothing to be awaited between question and answer, and no cancellation comes between the two, except where
a dump is long or the kernel itself puts things off. Whatever a cancelled question leaves unread is thrown
away before the next one; and an answer is known by its sequence number. A few questions make the kernel wait, tens of
milliseconds, for other CPUs to have noticed (RCU): a link that is deleted, switched off, or moved. These
are *slow*, and are asked from a worker thread. There a cancellation waits, so they too are asked and answered, or
never asked.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
from collections.abc import Iterable

import trio

from linx_trio import _netlink_frames as f
from linx_trio._fd import after_fork
from linx_trio._netlink_frames import Answer, Frame, FrameError

_SOL_NETLINK = 270
_ADD_MEMBERSHIP, _CAP_ACK, _EXT_ACK, _GET_STRICT_CHK = 1, 10, 11, 12
_SO_RCVBUFFORCE, _SO_NETNS_COOKIE = 33, 71
_RECEIVE_BUFFER = 1 << 20
_AT_LEAST = 1 << 15  # what the kernel packs into one datagram of a dump, if it may

# One for all sockets: in different namespaces they may have the same port, and what is said to one of them about a
# link that it makes in the other's namespace, the other may hear.
_sequence = itertools.count(1)

DUMP_ATTEMPTS = 20
"""How often a list that changes while it is read is read again."""


class Rtnl:
    """One netlink socket, and the only one who reads and writes it. Owns it.

    Args:
        sock: a bound or unbound ``AF_NETLINK`` socket.
        groups: the multicast groups to hear of.
    """

    def __init__(self, sock: socket.socket, groups: Iterable[int] = ()) -> None:
        self._sock = sock
        self._lock = trio.Lock()
        self._thread = trio.CapacityLimiter(1)  # the library's threads are not held up by anybody else's
        self._owed = False
        self._closed = self._in_thread = False
        sock.setblocking(False)
        for option in (_EXT_ACK, _CAP_ACK, _GET_STRICT_CHK):
            with contextlib.suppress(OSError):  # a kernel without it says less, no more
                sock.setsockopt(_SOL_NETLINK, option, 1)
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        except OSError:  # without CAP_NET_ADMIN of the machine's own: up to net.core.rmem_max
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        numbers = list(groups)
        if numbers:
            sock.bind((0, 0))  # without a port of its own it hears nothing
        for group in numbers:
            sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        after_fork(self)

    @property
    def closed(self) -> bool:
        return self._closed

    def fileno(self) -> int:
        return self._sock.fileno()

    def netns_cookie(self) -> int | None:
        """By which network namespaces are told apart, as long as the machine runs; `None` before Linux 5.14."""
        self._check_open()
        try:
            return int.from_bytes(self._sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
        except OSError:
            return None

    def close(self) -> None:
        """A task that waits for an answer gets `trio.ClosedResourceError`."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(RuntimeError):  # outside of trio there is nobody to be told
            trio.lowlevel.notify_closing(self._sock)
        if not self._in_thread:  # a thread must not find that its fd means something else
            self._sock.close()

    def close_after_fork(self) -> None:
        self._closed = True
        self._sock.close()

    async def request(
        self, type: int, flags: int, payload: bytes, *, slow: bool = False, thing: str | None = None
    ) -> list[Frame]:
        """Asks, and returns the answer's messages.

        Args:
            flags: NLM_F_REQUEST and, but for dumps, NLM_F_ACK are added.
            slow: the kernel may take its time.
            thing: what it is about, for the error.

        Raises `OSError` with the kernel's errno and explanation; EAGAIN for a dump that kept changing; EBADMSG for
        an answer that does not parse. `trio.ClosedResourceError` after `close`.

        Cancelled, it is either not asked at all, or done: there may be a cancellation only before it is sent, and
        while the rest of an answer is waited for.
        """
        async with self._lock:
            self._check_open()
            is_dump = flags & f.DUMP == f.DUMP
            for _ in range(DUMP_ATTEMPTS):
                answer = await self._ask(type, flags, payload, slow=slow, dump=is_dump)
                if answer.errno:
                    raise _error(answer, thing)
                if not answer.interrupted:
                    return answer.parts
            raise OSError(errno.EAGAIN, f"the list changed each of the {DUMP_ATTEMPTS} times that it was read", thing)

    async def _ask(self, type: int, flags: int, payload: bytes, *, slow: bool, dump: bool) -> Answer:
        self._throw_away()
        answer = Answer(next(_sequence) & 0xFFFFFFFF, dump=dump)
        message = f.pack(type, flags | f.REQUEST | (0 if dump else f.ACK), answer.seq, payload)
        await self._send(message, slow=slow)
        while not answer.done:
            try:
                datagram = self._receive()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                continue
            if dump:
                await trio.lowlevel.checkpoint()  # the kernel makes up the next part while we read it
            try:
                answer.feed(datagram)
            except FrameError as exc:
                raise OSError(errno.EBADMSG, f"the kernel's answer does not parse: {exc}") from exc
        self._owed = False
        return answer

    async def _send(self, message: bytes, *, slow: bool) -> None:
        while True:
            try:
                if slow:
                    await self._send_in_thread(message)
                else:
                    await trio.lowlevel.checkpoint_if_cancelled()
                    self._owed = True
                    self._sock.send(message)
                return
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock)

    async def _send_in_thread(self, message: bytes) -> None:
        self._owed = self._in_thread = True
        try:
            await trio.to_thread.run_sync(self._sock.send, message, limiter=self._thread)
        finally:
            self._in_thread = False
            if self._closed:
                self._sock.close()

    def _receive(self) -> bytes:
        """One datagram of the kernel's, whole. Raises `BlockingIOError`, and `OSError` (ENOBUFS) where some were
        lost.
        """
        self._check_open()
        while True:
            size = self._sock.recv_into(bytearray(1), 1, socket.MSG_PEEK | socket.MSG_TRUNC)
            datagram, sender = self._sock.recvfrom(max(size, _AT_LEAST))
            if not isinstance(sender, tuple) or sender[0] == 0:  # else it is from another process
                return datagram

    def _throw_away(self) -> None:
        """What a cancelled question has left. It also lets a dump come to its end, without which there is no next."""
        while self._owed:
            try:
                self._receive()
            except BlockingIOError:
                self._owed = False
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise

    async def receive(self) -> list[Frame]:
        """The next notifications, for a socket with groups. Raises as `request`; ENOBUFS: some have been lost."""
        async with self._lock:
            while True:
                self._check_open()
                await trio.lowlevel.wait_readable(self._sock)
                try:
                    return f.split(self._receive())
                except BlockingIOError:
                    continue
                except FrameError as exc:
                    raise OSError(errno.EBADMSG, f"the kernel's message does not parse: {exc}") from exc

    def _check_open(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError("this netlink socket has been closed")


def _error(answer: Answer, thing: str | None) -> OSError:
    text = os.strerror(answer.errno)
    if answer.text:
        text = f"{text}: {answer.text}"
    return OSError(answer.errno, text) if thing is None else OSError(answer.errno, text, thing)
