"""`linx-agent --port` as Erlang's open_port/2 starts it: one session, framed terms in on fd 3 and out on fd 4."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from linx_trio import _agent
from linx_trio._proto import etf
from linx_trio._proto.framing import FrameDecoder, encode_frame
from tests.support import DEADLINE

RUNNING = ("status", "running")
TRUE = [b"/bin/true"]
SLEEP = [b"/bin/sleep", b"1000"]


def shell(script: str) -> list[bytes]:
    return [b"/bin/sh", b"-c", script.encode()]


class Raw(bytes):
    """A term that is encoded already (without version byte), for what `etf.encode` never emits."""


def string(text: bytes) -> Raw:
    """STRING_EXT, or NIL: how Erlang writes ``"text"``."""
    return Raw(b"\x6b" + struct.pack(">H", len(text)) + text if text else b"\x6a")


def listing(*items: Any) -> Raw:
    """A proper list whose items may be `Raw`."""
    return Raw(b"\x6c" + struct.pack(">I", len(items)) + b"".join(map(body, items)) + b"\x6a" if items else b"\x6a")


def pair(first: Any, second: Any) -> Raw:
    """A tuple of two, which may be `Raw`."""
    return Raw(b"\x68\x02" + body(first) + body(second))


def mapping(pairs: Sequence[tuple[Any, Any]]) -> Raw:
    """A map whose keys and values may be `Raw`; a key may be there twice."""
    return Raw(b"\x74" + struct.pack(">I", len(pairs)) + b"".join(body(key) + body(value) for key, value in pairs))


def body(term: Any) -> bytes:
    """The term without its version byte."""
    return term if isinstance(term, Raw) else etf.encode(term)[1:]


def frame(term: Any) -> bytes:
    return encode_frame(b"\x83" + body(term))


def spawn(**options: Any) -> Raw:
    """The term ``{spawn, #{...}}``; values may be `Raw`."""
    return pair("spawn", mapping(list(options.items())))


class Port:
    """A running agent. Leaving the block closes fd 3 and waits for its end, which must come by itself."""

    def __init__(
        self, *, agent: Path | None = None, stdio: Mapping[int, int] | None = None, environ: Any = None
    ) -> None:
        """`stdio` maps the agent's 0, 1 and 2 to our fds; the null device is where there is none."""
        self.status: int | None = None
        self._decoder = FrameDecoder()
        self._ready: list[Any] = []
        with open(os.devnull, "r+b", buffering=0) as null:
            their_in, self._in = _high_pipe()
            self._out, their_out = _high_pipe()
            fds = {0: null.fileno(), 1: null.fileno(), 2: null.fileno(), **(stdio or {}), 3: their_in, 4: their_out}
            actions = [(os.POSIX_SPAWN_DUP2, ours, theirs) for theirs, ours in fds.items()]
            path = agent or _agent.agent_path()
            try:
                self.pid = os.posix_spawn(
                    path, ["linx-agent", "--port"], os.environ if environ is None else environ, file_actions=actions
                )
            finally:
                os.close(their_in)
                os.close(their_out)
        self._pidfd = os.pidfd_open(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.close_input()
            self.wait()
        except BaseException:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise
        finally:
            self.close_output()
            os.close(self._pidfd)

    def send(self, *terms: Any) -> None:
        """The terms' frames, in one write."""
        self.send_bytes(b"".join(map(frame, terms)))

    def send_bytes(self, data: bytes) -> None:
        """Writes all; what the agent does not want any more, because it has ended, is dropped."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._in, view) :]
        except BrokenPipeError:
            pass

    def receive(self) -> Any:
        """The next event; `None` at the end of the stream, which may not be inside a frame."""
        deadline = time.monotonic() + DEADLINE
        while not self._ready:
            left = deadline - time.monotonic()
            assert left > 0, "the agent says nothing"
            if not select.select([self._out], [], [], left)[0]:
                continue
            data = os.read(self._out, 65536)
            if not data:
                assert self._decoder.pending == 0
                return None
            self._ready += map(etf.decode, self._decoder.feed(data))
        return self._ready.pop(0)

    def rest(self) -> list[Any]:
        """All events up to the end of the stream."""
        events = []
        while (event := self.receive()) is not None:
            events.append(event)
        return events

    def started(self) -> int:
        """Takes the two events of a session that has got to its checkpoint. Returns the host pid."""
        tag, kind, pid = self.receive()
        assert (tag, kind) == ("status", "spawned")
        assert isinstance(pid, int)
        tag, kind, child = self.receive()
        assert (tag, kind) == ("status", "ready")
        assert child in (pid, 1)
        return pid

    def runs(self) -> int:
        """Takes a session that has got its request to ``running``. Returns the host pid."""
        pid = self.started()
        self.send("proceed")
        assert self.receive() == ("status", "running")
        return pid

    def close_input(self) -> None:
        if self._in >= 0:
            os.close(self._in)
            self._in = -1

    def close_output(self) -> None:
        if self._out >= 0:
            os.close(self._out)
            self._out = -1

    def wait(self) -> int:
        """The agent's exit status, negative for a signal."""
        if self.status is None:
            assert select.select([self._pidfd], [], [], DEADLINE)[0], "the agent does not end"
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status


def _high_pipe() -> tuple[int, int]:
    """A pipe whose fds are none of those that they will be copied to."""
    low = os.pipe()
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in low]
    for fd in low:
        os.close(fd)
    return high[0], high[1]
