"""What is known of a session, and what all its parts share; see `_session`."""

from __future__ import annotations

import os
import signal as _signal
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio

from linx_trio import _agent, _request
from linx_trio._channel import Channel
from linx_trio._events import Event, Exited, Info, Outcome, Signaled, Usage
from linx_trio._options import Pty
from linx_trio._owner import EventLog, OwnerFeed
from linx_trio._proto import messages as m
from linx_trio._proto.protocol import SessionProtocol
from linx_trio._proto.states import State
from linx_trio._pty import PtyStream
from linx_trio._target import Pinned, Target
from linx_trio._workload import Workload
from linx_trio.errors import (
    LinxError,
    NoPty,
    NotReady,
)

if TYPE_CHECKING:
    from linx_trio._cgroup_group import Cgroup
    from linx_trio._own_cgroup import Placement
    from linx_trio._subids import Calls


class PidFd(int):
    """A pidfd (``pidfd_open(2)``): an int that also has ``fileno()``, so that `enter` can tell it from a pid."""

    def fileno(self) -> int:
        return int(self)


class Batch:
    """Steps that a parked child has been told, until they are answered."""

    def __init__(self, steps: list[m.Step], things: list[str], options: Sequence[str] = ()) -> None:
        self.steps = steps
        self.things = things
        self.options = options
        self.frame = b""
        self.over = trio.Event()
        self.done = False
        self.error: LinxError | None = None
        self.fd: int | None = None  # what a step has opened for us
        self.wanted = True

    def close(self) -> None:
        """Nobody wants what it may still bring."""
        self.wanted = False
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


class SessionFacts:
    """The part of a `Session` that tells of it, and that sends."""

    # As it is at first. Here, because to set all of it in each session would take longer than to send its request.
    _entered: Pinned | None = None
    _zygote: _agent.Zygote | None = None
    _channel: Channel | None = None
    _reading = _listening = _lazy = _abandoned = _disbelieved = _proceeding = _closing = _condemned = False
    _others = 0  # who wait while somebody else listens
    _token: trio.lowlevel.TrioToken | None = None
    _run_mates: set[Any] | None = None  # lazy sessions like this one
    _retryable = _never_read = _is_ready = False
    _host_pid: int | None = None
    _child_pid: int | None = None
    _pidfd = PidFd(-1)
    _ran = _core_dumped = False
    _outcome: Outcome | None = None
    _usage: Usage | None = None
    _failure: Callable[[], LinxError] | None = None
    _pty: PtyStream | None = None
    _terminal: str | None = None
    _owner: OwnerFeed | None = None
    _placement: Placement | None = None  # its cgroup, with cgroup= or limits=
    _calls: Calls | None = None  # of newuidmap(1)
    _mapping: trio.Event | None = None  # id maps are being written; set when that is over

    def __init__(self, workload: Workload, *, target: Target | None = None, quiet: bool = False) -> None:
        self._workload = workload
        self._target = target
        self._kinds = workload.namespace_names | ((target and target.namespaces) or frozenset())
        self._quiet = quiet and workload.owner is None
        self._request: _request.Request | None = None
        self._protocol = SessionProtocol()
        self._batches: deque[Batch] = deque()
        self._degraded: list[str] = []
        self._streams: dict[str, trio.lowlevel.FdStream] = {}
        self._events = EventLog()
        if workload.owner is not None:
            self._owner = OwnerFeed(workload.owner)
        self._parked = trio.Event()  # ready, or beyond
        self._released = trio.Event()  # running, or ended
        self._ended = trio.Event()
        self._gone = trio.Event()  # nothing is left, or the agent is dead

    def __repr__(self) -> str:
        pid = "" if self._host_pid is None else f" pid {self._host_pid}"
        return f"<linx_trio.Session {self._workload.arguments[0]!r} {self._known_state()}{pid}>"

    @property
    def state(self) -> str:
        """``"starting" "ready" "running" "exited" "signaled" "aborted"`` or ``"failed"``."""
        self._look()
        return self._known_state()

    @property
    def host_pid(self) -> int:
        """The workload's pid as the host sees it. Raises `NotReady` before it is known."""
        if self._host_pid is None:
            raise NotReady("host_pid", self.state)
        return self._host_pid

    @property
    def child_pid(self) -> int:
        """The workload's pid as it sees itself: 1 in a fresh PID namespace. Raises `NotReady` before it is known."""
        if self._child_pid is None:
            raise NotReady("child_pid", self.state)
        return self._child_pid

    @property
    def pidfd(self) -> PidFd:
        """A pidfd of the workload, owned by the session: it is closed, and -1, once the block is left.

        Raises `NotReady` before it is known.
        """
        if self._host_pid is None:
            raise NotReady("pidfd", self.state)
        return self._pidfd

    @property
    def outcome(self) -> Outcome | None:
        """`Exited`, `Signaled` or `Aborted`; `None` before the end, and for a session that failed."""
        self._look()
        return self._outcome

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal as in `subprocess`; `None` where there is none."""
        match self.outcome:
            case Exited(code):
                return code
            case Signaled(signum):
                return -signum
        return None

    @property
    def usage(self) -> Usage | None:
        """What the workload used; `None` before its end."""
        self._look()
        return self._usage

    @property
    def ran(self) -> bool:
        """Whether ``execve(2)`` has succeeded."""
        return self._ran

    @property
    def containment(self) -> str:
        """What makes sure that nothing is left: ``"pidns"``, ``"cgroup"`` or ``"subreaper"``."""
        if "pid" in self._workload.namespace_names:
            return "pidns"
        return "cgroup" if self._owns_cgroup() else "subreaper"

    @property
    def cgroup(self) -> Cgroup | None:
        """The cgroup that it was born into, with `cgroup` or `limits`; with `limits` it is the session's own, and gone
        when the block is left.
        """
        return None if self._placement is None else self._placement.group

    @property
    def is_over(self) -> bool:
        """Whether its end has been heard of."""
        return self._ended.is_set()

    @property
    def is_under_way(self) -> bool:
        """Whether the agent has been asked to start the workload."""
        return self._reading

    @property
    def workload(self) -> Workload:
        """What is run."""
        return self._workload

    def info(self) -> Info:
        """A frozen snapshot."""
        return Info(
            mode="spawn" if self._target is None else "enter",
            state=self.state,
            host_pid=self._host_pid,
            child_pid=self._child_pid,
            argv=self._workload.arguments,
            namespaces=self._kinds,
            pty=isinstance(self._workload.stdio, Pty),
            containment=self.containment,
            outcome=self.outcome,
            usage=self._usage,
            degraded=tuple(self._degraded),
        )

    @property
    def stdin(self) -> trio.lowlevel.FdStream | None:
        """Writes to the workload, with ``stdin=PIPE``."""
        return self._streams.get("stdin")

    @property
    def stdout(self) -> trio.lowlevel.FdStream | None:
        """Reads from the workload, with ``stdout=PIPE``."""
        return self._streams.get("stdout")

    @property
    def stderr(self) -> trio.lowlevel.FdStream | None:
        """Reads from the workload, with ``stderr=PIPE``."""
        return self._streams.get("stderr")

    @property
    def stdio(self) -> trio.StapledStream[trio.lowlevel.FdStream, trio.lowlevel.FdStream] | None:
        """`stdin` and `stdout` in one, as on `trio.Process`, where both are pipes."""
        if self.stdin is None or self.stdout is None:
            return None
        return trio.StapledStream(self.stdin, self.stdout)

    @property
    def pty(self) -> PtyStream:
        """This side of the workload's terminal, with ``stdio=PTY`` or ``Pty(rows, cols)``. Raises `NoPty` without."""
        if self._pty is None:
            raise NoPty("pty", self.state)
        return self._pty

    # ---- for the parts above --------------------------------------------------------------------------------------

    def _release_zygote(self) -> None:
        if self._zygote is not None:
            _agent.release(self._zygote)
            self._zygote = None

    def _close_pidfd(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = PidFd(-1)

    def _look(self) -> None:
        """Hears what has been said, where nobody listens unasked."""
        raise NotImplementedError

    def _known_state(self) -> str:
        state = self._protocol.state
        return (State.STARTING if state is State.READY and not self._is_ready else state).value

    def _send(self, frame: bytes) -> None:
        if self._channel is not None and not self._gone.is_set():
            self._channel.send(frame)

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        if self._owner is not None:
            self._owner.put(event)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure()

    def _owns_cgroup(self) -> bool:
        return self._placement is not None and self._placement.is_own

    def _release_cgroup(self) -> None:
        """Its numbers have been read: the agent may remove it."""
        if self._owns_cgroup():
            self._send(m.RELEASE)

    def _kill_workload(self) -> None:
        """SIGKILL without the agent's help, if it has got so far that there is a pidfd."""
        if self._pidfd >= 0:
            with suppress(OSError):
                _signal.pidfd_send_signal(self._pidfd, _signal.SIGKILL)

    def _ends_with_its_namespace(self) -> bool:
        """What the workload leaves behind is killed by the kernel: to be told to do so would keep the monitor busy."""
        return self._target is None and "pid" in self._workload.namespace_names

    def _last_state(self) -> State:
        """The last state before the end, from what has become known."""
        if self._ran:
            return State.RUNNING
        return State.STARTING if self._child_pid is None else State.READY
