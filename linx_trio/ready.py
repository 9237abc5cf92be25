"""Waiting until a workload serves: `tcp`, `line` and `path`, for `ChildSpec`'s ``ready=``; and `wait_ready`, for any
session::

    async with linx.spawn(["redis-server", "--port", "6400"], auto_proceed=True) as s:
        await linx.ready.wait_ready(s, linx.ready.tcp(6400))

A check is an async function of a running session that returns once the workload serves. Those here never give up by
themselves: how long to wait is said by ``start_timeout``, or by a cancel scope.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import re
import select
import socket
import stat
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, overload

import trio

from linx_trio._options import Argument
from linx_trio._session import Session
from linx_trio.errors import LinxError, NoProcess

__all__ = ["Check", "line", "path", "tcp", "wait_ready"]

Check = Callable[[Session], Awaitable[object]]
"""What these functions return: an async function of a session."""

_log = logging.getLogger("linx_trio")

_POLL_SECONDS = 0.05
"""Between two looks at what gives no notice of itself."""

_LONGEST_LINE = 1 << 16


@trio.lowlevel.enable_ki_protection
async def wait_ready(session: Session, check: Check) -> None:
    """Waits until `check` says that the workload serves, and no longer than the workload lives.

    Args:
        session: a running one.
        check: of this module, or any async function of a session.

    Raises `NoProcess` if the workload ends before, `SetupError`, `AgentDied` or `AgentError` if its session fails, and
    whatever `check` raises; never an ``ExceptionGroup``. Cancelling stops the waiting only.
    """
    asking = trio.CancelScope(shield=True)
    answer: list[BaseException | None] = []
    trouble: BaseException | None = None

    @trio.lowlevel.enable_ki_protection
    async def ask() -> None:
        try:
            with asking:
                await check(session)
                answer.append(None)
        except BaseException as exc:  # raised below, where no nursery wraps it
            answer.append(exc)
        nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            try:
                await session.wait()
                trouble = NoProcess("wait_ready", session.state)
            except (LinxError, trio.Cancelled, KeyboardInterrupt) as exc:
                trouble = exc
            asking.cancel()
    except BaseExceptionGroup as group:  # a ^C while the nursery waited for its task, which raises nothing itself
        trouble = group.exceptions[0]
    if answer == [None] and not isinstance(trouble, KeyboardInterrupt):
        return
    if answer and isinstance(trouble, trio.Cancelled):
        trouble = answer[0]
    assert trouble is not None
    raise trouble


# ---- tcp ---------------------------------------------------------------------------------------------------------


@overload
def tcp(port: int, /, *, host: str = "127.0.0.1") -> Check: ...
@overload
def tcp(host: str, port: int) -> Check: ...
@overload
def tcp(*, port: int) -> Check: ...
def tcp(*address: Any, host: Any = None, port: Any = None) -> Check:
    """Ready once something accepts TCP connections: ``tcp(8080)``, or ``tcp("127.0.0.1", 8080)``.

    It connects from here, and hangs up. If the workload has a network namespace of its own and the host is a loopback
    address (as it is by default), it looks instead for a listening socket in that namespace (``/proc/<pid>/net/tcp``).

    Args:
        host: a name or an address.
        port: 1 to 65535.

    Raises `TypeError` or `ValueError`, naming the argument and the value.
    """
    match address:
        case (first, second) if host is None and port is None:
            host, port = first, second
        case (first,) if port is None:
            port = first
        case (first,) if host is None:
            host = first
        case _ if address or port is None:
            raise TypeError(f"tcp() takes a port, or a host and a port, not {address!r}")
    host = "127.0.0.1" if host is None else host
    if not isinstance(host, str) or not host:
        raise TypeError(f"host must be a name or an address, not {host!r}")
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"port must be an int, not {port!r}")
    if not 1 <= port <= 65535:
        raise ValueError(f"port must be between 1 and 65535, not {port!r}")

    async def check(session: Session) -> None:
        inside = _is_loopback(host) and "net" in session.info().namespaces
        while True:
            if _is_listening(session.host_pid, port) if inside else await _accepts(host, port):
                return
            await trio.sleep(_POLL_SECONDS)

    return check


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


async def _accepts(host: str, port: int) -> bool:
    try:
        stream = await trio.open_tcp_stream(host, port)
    except OSError:
        return False
    await trio.aclose_forcefully(stream)
    return True


_LISTEN = "0A"


def _is_listening(pid: int, port: int) -> bool:
    """Whether a socket in the network namespace of `pid` listens on `port` (``proc_pid_net(5)``)."""
    for name in ("tcp", "tcp6"):
        try:
            rows = Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
        except OSError:  # it is about to end, or the kernel lacks IPv6
            continue
        for row in rows:
            _, local, _, state, *_ = row.split()
            if state == _LISTEN and int(local.rpartition(":")[2], 16) == port:
                return True
    return False


# ---- path --------------------------------------------------------------------------------------------------------


def path(path: Argument, *, inside: bool = False) -> Check:
    """Ready once `path` exists; if it is a Unix socket, once it accepts connections, or takes datagrams.

    What a former incarnation has left behind counts, except for a socket: remove it in ``on_checkpoint``.

    Args:
        path: absolute, or relative to this process' working directory.
        inside: `path` is meant as the workload sees it, below its own root directory.

    Raises `TypeError` or `ValueError`, naming the argument and the value.
    """
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"path must be str, bytes or a path, not {path!r}")
    text = os.fsdecode(path)
    if not text or "\0" in text:
        raise ValueError(f"path is empty or contains a NUL byte: {path!r}")
    if inside and not os.path.isabs(text):
        raise ValueError(f"path must be absolute with inside=True, not {path!r}")

    async def check(session: Session) -> None:
        while True:
            if _is_there(f"/proc/{session.host_pid}/root{text}" if inside else text):
                return
            await trio.sleep(_POLL_SECONDS)

    return check


def _is_there(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISSOCK(mode) or any(_is_connectable(kind, path) for kind in _KINDS)


_KINDS = ("SOCK_STREAM", "SOCK_DGRAM", "SOCK_SEQPACKET")


def _is_connectable(kind: str, path: str) -> bool:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        with socket.socket(socket.AF_UNIX, getattr(socket, kind)) as probe:
            probe.setblocking(False)
            probe.connect(f"/proc/self/fd/{fd}")  # by an fd's name, since a path may be too long for that
            return True
    except OSError as exc:  # EAGAIN: it listens, and has more to do than it can at the moment
        return exc.errno in (errno.EAGAIN, errno.EACCES)
    finally:
        os.close(fd)


# ---- line --------------------------------------------------------------------------------------------------------


class Line:
    """The check of `line`; the supervisor has it go on reading afterwards (`drain`)."""

    def __init__(
        self, pattern: re.Pattern[bytes], stream: str, to: Callable[[bytes], object] | None, fd: int | None = None
    ) -> None:
        self._pattern = pattern
        self.stream = stream
        self._to = to
        self._fd = fd
        self._unwritten: deque[bytes] = deque()
        self._writing = threading.Lock()

    def passing_on(self) -> Line:
        """The same, for a stream that was to be inherited: all that is read is written to this process' own."""
        return Line(self._pattern, self.stream, self._to, {"stdout": 1, "stderr": 2}[self.stream])

    async def __call__(self, session: Session) -> None:
        rest = b""
        while data := await self._receive(session):
            await self._tell(data)
            *lines, rest = (rest + data).split(b"\n")
            if any(self._pattern.search(line.removesuffix(b"\r")) for line in lines):
                return
            rest = rest[-_LONGEST_LINE:]
        await trio.sleep_forever()  # it has closed the stream: whether it has ended is for others to say

    async def drain(self, session: Session) -> None:
        """Reads on to the stream's end. Whatever becomes of `to`, the workload is not to be stopped by a full pipe."""
        wanted = True
        with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
            while data := await self._receive(session):
                try:
                    if wanted:
                        await self._tell(data)
                except Exception:
                    _log.exception("the output of %r is dropped from here on", session)
                    wanted = False
        await self._pass_on()  # what was under way when somebody cancelled

    async def _receive(self, session: Session) -> bytes:
        stream: Any = getattr(session, self.stream)
        if stream is None:
            raise ValueError(f"linx.ready.line needs {self.stream}=linx.PIPE in the workload")
        return bytes(await stream.receive_some())

    async def _tell(self, data: bytes) -> None:
        if self._to is not None:
            self._to(data)
        if self._fd is not None:
            self._unwritten.append(data)
            await self._pass_on()

    async def _pass_on(self) -> None:
        """Whoever is cancelled here may leave a thread behind that writes, and more to be written; the next one waits
        for the former, and writes the latter.
        """
        if self._fd is not None:
            await trio.to_thread.run_sync(self._write_all, self._fd, abandon_on_cancel=True)

    def _write_all(self, fd: int) -> None:
        with self._writing:
            while self._unwritten:
                _write(fd, self._unwritten.popleft())


def _write(fd: int, data: bytes) -> None:
    """All of it, unless nobody reads that any more."""
    with suppress(OSError):
        while data:
            try:
                data = data[os.write(fd, data) :]
            except BlockingIOError:  # somebody who shares it has made it so
                select.select([], [fd], [])


def line(
    pattern: str | bytes | re.Pattern[str] | re.Pattern[bytes],
    *,
    stream: str = "stdout",
    to: Callable[[bytes], object] | None = None,
) -> Check:
    """Ready once the workload has written a line in which `pattern` is found.

    The workload needs ``stdout=linx.PIPE`` (or ``stderr``, or ``stdio=linx.PTY`` with ``stream="pty"``). A supervisor
    goes on reading the stream afterwards, so that the workload is never stopped by a full pipe, and sees to it that an
    inherited stream can be read too: what comes is then passed on to this process' own. With `wait_ready` all that is
    the caller's affair.

    Args:
        pattern: a regular expression (``re.search``), in text encoded as UTF-8.
        stream: ``"stdout"``, ``"stderr"`` or ``"pty"``.
        to: a plain function that is called with all that is read, in pieces as they come, e.g.
            ``sys.stdout.buffer.write``. `None`: it is dropped.

    Raises `TypeError`, `ValueError` or `re.error`, naming the argument and the value.
    """
    source: object = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
    flags = pattern.flags & ~re.UNICODE if isinstance(pattern, re.Pattern) else 0
    if not isinstance(source, (str, bytes)):
        raise TypeError(f"pattern must be a regular expression, not {pattern!r}")
    if stream not in ("stdout", "stderr", "pty"):
        raise ValueError(f"stream must be one of 'stdout', 'stderr', 'pty', not {stream!r}")
    if to is not None and not callable(to):
        raise TypeError(f"to must be a function of bytes, or None, not {to!r}")
    return Line(re.compile(source.encode() if isinstance(source, str) else source, flags), stream, to)
