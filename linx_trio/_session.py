"""A session: one workload, from before its first instruction until nothing of it is left.

Lines that must hold:

1. The reader outlives the body. It is a system task, out of reach of the user's cancel scopes, and ends when the
   monitor has reaped everything and says that it is idle; or with the stream, which the agent closes when the monitor
   has itself been reaped. So "the reader has ended" is the proof.
2. Between reading bytes and applying them there is no checkpoint: no event is lost by a cancellation.
3. Commands are sent by plain functions: no frame is ever cut.
4. There are two killers: this side's, in `close` (shielded, bounded, and in the end by pidfd), and the monitor's,
   when the stream ends because Python is gone.
"""

from __future__ import annotations

import errno
import logging
import os
import signal as _signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import trio

from linx_trio import _agent, _request, _stdio
from linx_trio._caller import Caller
from linx_trio._channel import Channel
from linx_trio._events import Aborted, Event, Exited, Failed, Info, Outcome, Ready, Running, Signaled, Usage
from linx_trio._fd import FdBag
from linx_trio._hints import hint_for
from linx_trio._options import Pty
from linx_trio._owner import EventIterator, EventLog, OwnerFeed
from linx_trio._patience import congested, wait_really
from linx_trio._proto import etf
from linx_trio._proto import messages as m
from linx_trio._proto.framing import FramingError
from linx_trio._proto.protocol import SessionProtocol
from linx_trio._proto.states import Action, State, rule
from linx_trio._pty import PtyStream
from linx_trio._target import Pinned, Target, open_pidfd
from linx_trio._workload import Workload
from linx_trio.errors import (
    AgentDied,
    AgentError,
    AlreadyRunning,
    LinxError,
    NoProcess,
    NoPty,
    NotReady,
    SetupError,
    setup_error,
)

if TYPE_CHECKING:
    from linx_trio._cgroup_group import Cgroup
    from linx_trio._idmaps import Maps
    from linx_trio._own_cgroup import Placement
    from linx_trio._subids import Calls

_log = logging.getLogger("linx_trio")

CLOSE_SECONDS = 20.0
"""How long `close` trusts the monitor, beyond the workload's own grace, before it kills by itself; and then as long
again.
"""

_PATIENCE_SECONDS = 0.05
"""How long the reader in person waits for the stream's end after the workload's."""

_ZYGOTE_ATTEMPTS = 8
"""A zygote that dies may cost two: one for its spare, one for itself."""


class PidFd(int):
    """A pidfd (``pidfd_open(2)``): an int that also has ``fileno()``, so that `enter` can tell it from a pid."""

    def fileno(self) -> int:
        return int(self)


class _NeverRead(Exception):
    """The agent went before it had read the request: nothing was started, and asking another one is safe."""


class _Batch:
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


class Session:
    """One workload and all that descends from it. Made by `linx_trio.spawn`; do not call."""

    # As it is at first. Here, because to set all of it in each session would take longer than to send its request.
    _entered: Pinned | None = None
    _zygote: _agent.Zygote | None = None
    _channel: Channel | None = None
    _reading = _in_person = _disbelieved = _proceeding = _closing = _condemned = False
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
        self._batches: deque[_Batch] = deque()
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
        return f"<linx_trio.Session {self._workload.arguments[0]!r} {self.state}{pid}>"

    # ---- what is known --------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """``"starting" "ready" "running" "exited" "signaled" "aborted"`` or ``"failed"``."""
        state = self._protocol.state
        return (State.STARTING if state is State.READY and not self._is_ready else state).value

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
        return self._outcome

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal as in `subprocess`; `None` where there is none."""
        match self._outcome:
            case Exited(code):
                return code
            case Signaled(signum):
                return -signum
        return None

    @property
    def usage(self) -> Usage | None:
        """What the workload used; `None` before its end."""
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
            outcome=self._outcome,
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

    # ---- verbs ----------------------------------------------------------------------------------------------------

    async def proceed(self) -> None:
        """Lets the parked workload run; returns when ``execve(2)`` has succeeded. No effect while it runs.

        Raises `SetupError` if ``execve(2)`` or a step before it was refused, `NoProcess` after the end (also when
        somebody killed or aborted the workload meanwhile). Cancelling stops the waiting, not the proceeding.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._rule("proceed") is Action.SEND:
            self._proceeding = True
            if not self._batches and (self._is_ready or not self._maps_from_outside()):
                self._send(m.PROCEED)  # else `_map_ids` does, or `_answer`
        await self._released.wait()
        if self._ran:
            return
        self._raise_failure()
        raise NoProcess("proceed", self.state)

    async def abort(self) -> None:
        """Discards the parked workload: it never runs; returns when it is reaped. Before the checkpoint it is
        remembered.

        Raises `AlreadyRunning` when the workload is past the checkpoint, `NoProcess` after the end. Against a
        `proceed` at the same time exactly one of the two wins, and both callers learn which. Cancelling stops the
        waiting only.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._rule("abort")
        self._send(m.ABORT)
        await self._released.wait()
        if isinstance(self._outcome, Aborted):
            return
        if self._ran:
            raise AlreadyRunning("abort", self.state)
        self._raise_failure()
        raise NoProcess("abort", self.state)

    def signal(self, sig: int | _signal.Signals) -> None:
        """Sends a signal to the workload. Before it runs, the signal is kept, and delivered in order once it does.

        Raises `NoProcess` after the end, `ValueError` for a number outside of 1..64.
        """
        if isinstance(sig, bool) or not isinstance(sig, int):
            raise TypeError(f"sig must be a signal number, not {sig!r}")
        if not 1 <= sig <= 64:
            raise ValueError(f"sig must be between 1 and 64, not {sig!r}")
        self._rule("signal")
        self._send(m.signal(int(sig)))

    def terminate(self) -> None:
        """SIGTERM to the workload, as `signal` sends it."""
        self.signal(_signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the whole subtree, now. Parked it is the same as an abort. After the workload's end it still kills
        what the workload left behind."""
        self._rule("kill")
        self._send(m.KILL)

    async def wait(self) -> Outcome:
        """The workload's outcome, as soon as it is known: for any number of tasks, before or after the end.

        Raises `SetupError`, `AgentDied` or `AgentError` for a session that failed. Cancelling it does not touch the
        session.
        """
        await self._ended.wait()
        if self._outcome is None:
            self._raise_failure()
        return cast("Outcome", self._outcome)

    def events(self) -> AsyncIterator[Event]:
        """All of this session's events, from the first one, ending after the terminal one. Any number of iterators."""
        return EventIterator(self._events)

    def set_owner(self, channel: trio.MemorySendChannel[Any] | None) -> None:
        """From now on events go to `channel` (`None`: to nobody); past ones are not replayed.

        A full channel delays its own events only; one whose receiver is closed loses them.
        """
        if channel is not None and not isinstance(channel, trio.MemorySendChannel):
            raise TypeError(f"channel must be the sending end of trio.open_memory_channel(), not {channel!r}")
        self._owner = OwnerFeed(channel) if channel is not None else None

    def _rule(self, verb: str) -> Action:
        try:
            return rule(verb, State(self.state))
        except NoProcess as exc:
            raise exc from (self._failure() if self._failure is not None else None)

    def _send(self, frame: bytes) -> None:
        if self._channel is not None and not self._gone.is_set():
            self._channel.send(frame)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure()

    async def take_steps(self, steps: Sequence[tuple[m.Step, str]]) -> None:
        """Has the parked child do something to itself; returns when the kernel has accepted all of it.

        The functions of `linx_trio.mount`, `linx_trio.capabilities` and `linx_trio.seccomp` are made of it.

        Args:
            steps: what the agent is told (``docs/protocol.md``), each with the thing it is about, for the error.

        Raises `SetupError` for the first step that is refused: those before it are done, those behind it are not, and
        the child is still parked. `NotReady` before the checkpoint, `AlreadyRunning` once `proceed` has been called,
        `NoProcess` after the end. Cancelled, they are done all the same.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._rule("steps") is Action.SEND and (self._proceeding or self._workload.auto_proceed):
            raise AlreadyRunning("steps", self.state)
        await self._take_batch(_Batch([step for step, _ in steps], [thing for _, thing in steps]))

    async def open_netlink(self, steps: Sequence[tuple[m.Step, str]], protocol: int) -> int:
        """Has the parked child take `steps`, if there are any, and then open a netlink socket (``netlink(7)``), which
        belongs to the network namespace that the child is in. Returns its fd, close-on-exec and non-blocking.

        Raises as `take_steps` does; stage ``netlink``. Cancelled, the socket is closed as soon as it comes.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._rule("steps")
        asked = [*steps, (("netlink", protocol), f"netlink protocol {protocol}")]
        batch = _Batch([step for step, _ in asked], [thing for _, thing in asked])
        try:
            await self._take_batch(batch)
            if batch.fd is None:  # it did not fit under RLIMIT_NOFILE, of the agent or of ours
                raise setup_error(errno.EMFILE, "netlink", asked[-1][1], hint_for("request", errno.EMFILE))
            fd, batch.fd = batch.fd, None
            return fd
        finally:
            batch.close()

    async def _take_batch(self, batch: _Batch) -> None:
        try:
            frame = m.steps(batch.steps)
        except (etf.CodecError, FramingError):
            raise setup_error(errno.E2BIG, "request", batch.things[0], _TOO_LARGE) from None
        batch.frame = frame
        self._batches.append(batch)
        if len(self._batches) == 1:  # else `_answer` does: the child's socket does not hold any number of them
            self._send(frame)
        await batch.over.wait()
        if batch.error is not None:
            raise batch.error
        if not batch.done:
            self._raise_failure()
            raise NoProcess("steps", self.state)

    # ---- opening --------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def open(self, *, wait_ready: bool) -> None:
        """Starts the child and waits until it is parked (with auto_proceed: until it runs), or ended.

        Raises `SetupError`, `AgentError`, `NotSupported`. `close` is due in any case.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        _agent.check_platform()
        self._retryable = wait_ready
        with FdBag() as bag:
            try:
                made = await self._plan(bag)
                fds = [fd for fd, _ in made.fds]
                targets: list[m.Target] = [number for _, number in made.fds]
                targets += [(m.NULL, number) for number in made.nulls]
                if not os.path.isabs(cast("str", self._workload.cwd or "")):  # else the caller's own does not matter
                    fds.append(_open_cwd(bag))
                    targets.append(m.CWD)
                if self._target is not None:
                    self._pin(self._target, bag, fds, targets)
                await self._place(fds, targets)
                await self._start(fds, targets, wait_ready=wait_ready)
            except LinxError:
                raise
            except OSError as exc:
                raise _as_setup_error(exc, "fork") from None
            self._streams = _stdio.streams(made, bag)
            self._pty = _stdio.terminal(made, bag)

    async def _plan(self, bag: FdBag) -> _stdio.Plan:
        try:
            made = await _stdio.plan(self._workload, bag)
        except LinxError:
            raise
        except OSError as exc:
            raise _as_setup_error(exc, "stdio") from None
        self._in_person = self._quiet and not made.ours
        self._terminal = made.terminal
        return made

    async def _start(self, fds: list[int], targets: list[m.Target], *, wait_ready: bool) -> None:
        for _attempt in range(_ZYGOTE_ATTEMPTS):
            try:
                await self._hand_over(fds, targets)
                if wait_ready:
                    await self._wait_started()
                return
            except _NeverRead:
                await self._start_over()
        raise AgentDied(None, self.state)

    def _pin(self, target: Target, bag: FdBag, fds: list[int], targets: list[m.Target]) -> None:
        self._entered = entered = target.open(bag)
        self._kinds = entered.kinds()
        fds.append(entered.fd)
        targets.append(m.TARGET)
        if self._workload.cgroup is not None or self._workload.limits is not None:
            return  # it is placed there instead
        cgroup = entered.open_cgroup(bag)
        if cgroup is not None:
            fds.append(cgroup)
            targets.append(m.CGROUP)

    async def _place(self, fds: list[int], targets: list[m.Target]) -> None:
        """Opens or makes the cgroup that ``cgroup`` and ``limits`` ask for. One that is optional is given up."""
        asked: dict[str, Any] = {"cgroup": self._workload.cgroup, "limits": self._workload.limits}
        while self._placement is None:
            if asked["cgroup"] is None and asked["limits"] is None:
                return
            from linx_trio import _own_cgroup

            try:
                self._placement = await _own_cgroup.place(asked["cgroup"], asked["limits"])
            except SetupError:
                optional = [name for name in asked if asked[name] is not None and name in self._workload.optional_names]
                if not optional:
                    raise
                asked[optional[-1]] = None  # limits first: a group without is better than none
                self._degraded.append(optional[-1])
        group = self._placement.group
        fds.append(group.fileno())
        targets.append(m.CGROUP)
        if self._placement.is_own:
            fds.append(group.parent_fileno())
            targets.append(m.CGROUP_PARENT)

    def _owns_cgroup(self) -> bool:
        return self._placement is not None and self._placement.is_own

    async def _wait_started(self) -> None:
        if self._in_person:
            await self._read(cast("Channel", self._channel), in_person=True)
        started = self._released if self._workload.auto_proceed else self._parked
        if not started.is_set():  # else the reading was a checkpoint
            await started.wait()
        if self._never_read:
            raise _NeverRead
        if self.state == State.FAILED:
            self._raise_failure()

    def _release_zygote(self) -> None:
        if self._zygote is not None:
            _agent.release(self._zygote)
            self._zygote = None

    async def _hand_over(self, fds: list[int], targets: list[m.Target]) -> None:
        caller = Caller.now()
        self._zygote = zygote = await _agent.acquire(caller)
        self._request = _request.build(
            self._workload,
            caller,
            zygote.baseline,
            targets,
            terminal=self._terminal,
            entered=self._entered,
            cgroup=None if self.cgroup is None else self.cgroup.path,
            own_cgroup=os.fsencode(self.cgroup.name) if self.cgroup is not None and self._owns_cgroup() else None,
            quiet=self._quiet,
        )
        frame = self._request.frame
        spare = zygote.take_spare()
        self._channel = channel = spare or Channel()
        is_heard = await congested(lambda: channel.send(frame, fds))
        if spare is not None and not is_heard:
            raise _NeverRead  # it has been killed just now
        if spare is None:
            try:
                await _agent.hand_over(zygote, channel)
            except _agent.Gone:
                raise _NeverRead from None
        self._reading = True
        if not self._in_person:
            self._read_in_background(channel)

    async def _start_over(self) -> None:
        """Back to the beginning, with another zygote: this one died with our request unread."""
        assert self._channel is not None
        if self._reading:
            await self._gone.wait()
        self._channel.close()
        self._release_zygote()
        self._reading = self._never_read = self._disbelieved = self._is_ready = False
        self._protocol = SessionProtocol()
        self._failure = None
        self._gone = trio.Event()
        self._parked, self._released, self._ended = trio.Event(), trio.Event(), trio.Event()

    # ---- reading --------------------------------------------------------------------------------------------------

    def _read_in_background(self, channel: Channel) -> None:
        trio.lowlevel.spawn_system_task(self._read, channel, name=f"linx: {self._workload.arguments[0]}")

    async def _read(self, channel: Channel, *, in_person: bool = False) -> None:
        """Applies what the agent says, until the stream ends. As a system task it may raise nothing.

        `in_person` does without that task, for a session that one task waits for from beginning to end (`run`). It
        can be cancelled; then, and when the end keeps us waiting, a system task takes over.
        """
        finished = False
        try:
            while not finished:
                try:
                    finished = await self._read_on(channel, in_person=in_person)
                except m.Nonsense as exc:
                    self._disbelieve(str(exc), exc.term)
                except (OSError, trio.ClosedResourceError) as exc:
                    reset = isinstance(exc, ConnectionResetError)
                    self._lose(None, never_read=reset and self._last_state() is State.STARTING)
                    finished = True
                except Exception as exc:  # ours; but in a system task it would end the whole trio.run
                    _log.exception("reading from the agent of %r", self)
                    self._disbelieve(f"what the agent said could not be applied: {exc!r}", None)
                if in_person:
                    break
        finally:
            if in_person and not finished:
                self._read_in_background(channel)
            else:
                self._stop_reading(channel)

    async def _read_on(self, channel: Channel, *, in_person: bool) -> bool:
        """Until the stream's end (True); in person, until the end keeps us waiting (False)."""
        while not (in_person and self._ended.is_set()):
            if await self._read_once(channel):
                return True
        if not self._ends_with_its_namespace():
            self._send(m.SHUTDOWN)
        self._release_cgroup()
        with trio.move_on_after(_PATIENCE_SECONDS):
            while not await self._read_once(channel):
                pass
            return True
        return False

    def _ends_with_its_namespace(self) -> bool:
        """What the workload leaves behind is killed by the kernel: to be told to do so would keep the monitor busy."""
        return self._target is None and "pid" in self._workload.namespace_names

    async def _read_once(self, channel: Channel) -> bool:
        """What has arrived, applied; whether the stream has ended."""
        data, fds = await channel.receive()
        if self._disbelieved:
            self._protocol.unclaimed.extend(fds)
            return not data
        for message, fd in self._protocol.feed(data, fds):
            self._apply(message, fd)
        if not data:
            self._protocol.end_of_file()
            self._lose(None)
        return not data or self._protocol.is_idle

    def _stop_reading(self, channel: Channel) -> None:
        spoilt = bool(self._protocol.unclaimed) or self._disbelieved or self._condemned
        for fd in self._protocol.unclaimed:
            os.close(fd)
        self._protocol.unclaimed.clear()
        if self._protocol.is_idle and not spoilt and self._zygote is not None:
            self._channel = None
            self._zygote.keep(channel)
        else:
            channel.close()
        self._gone.set()

    def _disbelieve(self, message: str, term: object) -> None:
        """After nonsense: have all killed, and believe nothing more until the stream's end."""
        self._disbelieved = True
        self._fail(lambda: AgentError(message, term), errno.EPROTO)
        self._send(m.SHUTDOWN)
        if self._channel is not None:
            self._channel.stop_sending()  # so that the monitor ends, and does not wait for another request
        self._kill_workload()

    def _last_state(self) -> State:
        """The last state before the end, from what has become known."""
        if self._ran:
            return State.RUNNING
        return State.STARTING if self._child_pid is None else State.READY

    def _lose(self, status: int | None, *, never_read: bool = False) -> None:
        """The stream has ended. Without a terminal event that is the agent's death."""
        if self._ended.is_set():
            return
        state = self._last_state().value
        self._never_read = never_read and self._host_pid is None and self._retryable
        self._fail(lambda: AgentDied(status, state), errno.ECONNRESET, silent=self._never_read)

    def _fail(
        self, failure: Callable[[], LinxError], number: int, *, stage: str = "agent", silent: bool = False
    ) -> None:
        if self._ended.is_set():
            return
        self._protocol.state = State.FAILED
        self._failure = failure
        self._finish(None if silent else Failed(number, stage))

    def _apply(self, message: m.Message, fd: int | None) -> None:
        """One event. The protocol has checked that it may come now."""
        if fd is None:
            _APPLY[type(message)](self, message)
        elif isinstance(message, m.Spawned):
            self._host_pid = message.host_pid
            self._pidfd = PidFd(fd)
        else:
            self._keep_opened(fd)

    def _apply_parked(self, parked: m.Parked) -> None:
        self._child_pid = parked.child_pid
        request = cast("_request.Request", self._request)
        if request.after_mapping is None:
            self._ready()
        else:
            self._mapping = trio.Event()
            trio.lowlevel.spawn_system_task(self._map_ids, request, self._mapping, name="linx: id maps")

    def _apply_started(self, _: m.Started) -> None:
        self._ran = True
        self._tell(Running())
        self._released.set()

    def _apply_usage(self, report: m.UsageReport) -> None:
        user, system, wall, max_rss, self._core_dumped = report
        group = self._placement
        killed, peak = (None, None) if group is None else (group.oom_killed(), group.memory_peak())
        self._usage = Usage(user / 1e6, system / 1e6, wall / 1e6, max_rss, killed, peak)

    def _apply_exit(self, end: m.Exit) -> None:
        self._end(Exited(end.code))

    def _apply_kill(self, end: m.Kill) -> None:
        self._end(Signaled(end.signum, self._core_dumped))

    def _apply_abortion(self, _: m.Abortion) -> None:
        self._end(Aborted())

    def _apply_refusal(self, refusal: m.Refusal) -> None:
        request = cast("_request.Request", self._request)
        self._failure = lambda: request.error_of(refusal)
        self._finish(Failed(refusal.errno, refusal.stage))

    def _apply_degraded(self, degraded: m.Degraded) -> None:
        request = cast("_request.Request", self._request)
        if self._batches and not self._batches[0].options:
            return  # a verb's own affair
        options = self._batches[0].options if self._batches else ()
        index = degraded.step
        option = options[index] if index in range(len(options)) else request.option_of(index)
        if option not in self._degraded:
            self._degraded.append(option)

    def _apply_stepped(self, _: m.Stepped) -> None:
        self._answer(None)

    def _apply_remains(self, remains: m.Remains) -> None:
        self._answer((remains.errno, remains.stage, remains.step))

    def _apply_lost(self, lost: m.Lost) -> None:
        self._lose(lost.status)

    def _apply_idle(self, _: m.Idle) -> None:
        """It is about the monitor; see `_stop_reading`."""

    def _maps_from_outside(self) -> bool:
        return self._workload.user is not None and (self._request is None or self._request.after_mapping is not None)

    def _ready(self) -> None:
        self._is_ready = True
        self._tell(Ready(self.host_pid))
        self._parked.set()

    async def _map_ids(self, request: _request.Request, over: trio.Event) -> None:
        """Between the child's parking and `Ready`, where only this side can write the maps of its user namespace."""
        steps, origins = cast("tuple[list[m.Step], list[tuple[str, str]]]", request.after_mapping)
        try:
            try:
                await self._write_maps(cast("Maps", self._workload.user))
            finally:
                over.set()
            if self._ended.is_set():
                return
            await self._take_batch(_Batch(steps, [thing for _, thing in origins], [option for option, _ in origins]))
        except LinxError as exc:
            if not self._ended.is_set():
                error = exc
                number = getattr(exc, "errno", None) or errno.ESRCH  # a `StateError` has none
                self._fail(lambda: error, number, stage=getattr(exc, "stage", "uid_map"))
                self._send(m.SHUTDOWN)
            return
        except Exception as exc:  # ours; but in a system task it would end the whole trio.run
            _log.exception("mapping the ids of %r", self)
            self._disbelieve(f"its ids could not be mapped: {exc!r}", None)
            return
        self._ready()
        if self._workload.auto_proceed or self._proceeding:
            self._proceeding = True
            self._send(m.PROCEED)

    async def _write_maps(self, maps: Maps) -> None:
        """In a thread, for it may have to wait for ``newuidmap(1)``; and in one of its own, for those of the program
        may all be waiting for workloads. It ends with the session.
        """
        from linx_trio import _idmap_files, _subids

        if self._ended.is_set():
            return
        self._calls = calls = _subids.Calls()
        with FdBag() as bag:  # pinned now: once the session is closed, the pidfd's number may be another one's
            directory = open_pidfd(self._pidfd, "the workload", bag)
            try:
                await trio.to_thread.run_sync(
                    _idmap_files.write_maps, directory, maps, calls, limiter=trio.CapacityLimiter(1)
                )
            except LinxError:
                if not _idmap_files.is_ending(directory):
                    raise
                await self._ended.wait()  # how it ended is what counts, and the agent is about to say so

    def _keep_opened(self, fd: int) -> None:
        if not self._batches or self._batches[0].fd is not None:
            os.close(fd)
            raise m.Nonsense("an fd that no step has opened")
        self._batches[0].fd = fd
        if not self._batches[0].wanted:
            self._batches[0].close()

    def _answer(self, refusal: tuple[int, str, int] | None) -> None:
        """The oldest batch of steps has been answered."""
        if not self._batches:
            raise m.Nonsense("an answer to steps that were never sent")
        batch = self._batches.popleft()
        batch.done = refusal is None
        if refusal is not None:
            number, stage, index = refusal
            thing = batch.things[index] if index in range(len(batch.things)) else None
            step = batch.steps[index] if index in range(len(batch.steps)) else ()
            hint = hint_for(stage, number, self._workload, step=step, entering=self._target is not None)
            batch.error = setup_error(number, stage, thing, hint)
        batch.over.set()
        if self._batches:
            self._send(self._batches[0].frame)
        elif self._proceeding and self._is_ready:
            self._send(m.PROCEED)

    def _end(self, outcome: Exited | Signaled | Aborted) -> None:
        self._outcome = outcome
        self._finish(outcome)

    def _finish(self, last: Event | None) -> None:
        if self._calls is not None:
            self._calls.end()
        self._ended.set()
        self._released.set()
        self._parked.set()
        while self._batches:
            self._batches.popleft().over.set()
        if last is not None:
            self._tell(last)
            self._events.complete()
        if self._closing:
            self._release_cgroup()

    def _release_cgroup(self) -> None:
        """Its numbers have been read: the agent may remove it."""
        if self._owns_cgroup():
            self._send(m.RELEASE)

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        if self._owner is not None:
            self._owner.put(event)

    # ---- closing --------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def close(self, *, keep_streams: bool = False) -> None:
        """Makes an end of the session; returns when nothing of it is left. Shielded, and bounded in time.

        `keep_streams`: this side's ends of pipes and terminal stay open, for what is still to be read from them.

        Raises `AgentError` if something could not be killed even so (a process in uninterruptible sleep).
        """
        interrupts: list[KeyboardInterrupt] = []
        self._closing = True
        clean = not self._reading or self._gone.is_set() or await self._end_all(interrupts)
        if self._mapping is not None:  # its program, if any, has been killed
            clean = await wait_really(self._mapping, CLOSE_SECONDS, interrupts) and clean
        if not keep_streams:
            self._close_streams()
        if self._channel is not None:
            self._channel.close()
        self._release_zygote()
        clean = await self._leave_cgroup() and clean
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = PidFd(-1)
        if not clean:
            raise AgentError(
                f"the session of {self._workload.arguments[0]!r} (pid {self._host_pid}) could not be ended within "
                f"{2 * CLOSE_SECONDS:.0f} s: something in it cannot be killed",
                self._host_pid,
            )
        if interrupts:
            raise interrupts[0]

    async def _leave_cgroup(self) -> bool:
        """Whether it is gone, if it is the session's own."""
        if self._placement is None:
            return True
        try:
            await self._placement.finish()
        except SetupError:
            _log.exception("the cgroup of %r is left", self)
            return False
        return True

    def _close_streams(self) -> None:
        for stream in self._streams.values():
            stream.close()
        if self._pty is not None:
            self._pty.close()

    async def _end_all(self, interrupts: list[KeyboardInterrupt]) -> bool:
        """The two killers, one after the other: the monitor, told to; and, if it does not, this side by pidfd."""
        grace = 0.0 if self._ended.is_set() else self._workload.shutdown.grace
        if self._ended.is_set():
            self._release_cgroup()
            by_itself = self._ends_with_its_namespace()
            if by_itself and await wait_really(self._gone, _PATIENCE_SECONDS, interrupts):
                return True
        self._send(m.shutdown(_request.milliseconds(grace)) if grace > 0 else m.SHUTDOWN)
        if await wait_really(self._gone, grace + CLOSE_SECONDS, interrupts):
            return True
        _log.warning("the agent of %r does not end it: killing by pidfd", self)
        self._kill_by_hand()
        return await wait_really(self._gone, CLOSE_SECONDS, interrupts)

    def _kill_by_hand(self) -> None:
        """The monitor does not move (somebody stopped it?): have it killed, so that the zygote takes its session
        over; and the workload."""
        self._condemned = True
        if self._zygote is not None and self._channel is not None:
            self._zygote.kill_monitor(self._channel.number)
        self._kill_workload()
        if self._placement is not None:
            self._placement.kill()
        with suppress(OSError, IndexError, ValueError, NotReady):  # by its own means too, should the zygote be gone
            monitor = int(Path(f"/proc/{self.host_pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
            _signal.pidfd_send_signal(self._pidfd, 0)  # it is still there, so what we have read is about it
            if Path(f"/proc/{monitor}/comm").read_text().strip() == "linx-monitor":
                os.kill(monitor, _signal.SIGKILL)

    def _kill_workload(self) -> None:
        """SIGKILL without the agent's help, if it has got so far that there is a pidfd."""
        if self._pidfd >= 0:
            with suppress(OSError):
                _signal.pidfd_send_signal(self._pidfd, _signal.SIGKILL)


def _as_setup_error(exc: OSError, stage: str) -> SetupError:
    """What the kernel refuses on this side, before there is an agent to say so."""
    number = exc.errno or errno.EIO
    return setup_error(number, stage, exc.filename, hint_for("fork", number))


_APPLY: Mapping[type, Callable[[Session, Any], None]] = {
    m.Parked: Session._apply_parked,
    m.Started: Session._apply_started,
    m.UsageReport: Session._apply_usage,
    m.Exit: Session._apply_exit,
    m.Kill: Session._apply_kill,
    m.Abortion: Session._apply_abortion,
    m.Refusal: Session._apply_refusal,
    m.Degraded: Session._apply_degraded,
    m.Stepped: Session._apply_stepped,
    m.Remains: Session._apply_remains,
    m.Lost: Session._apply_lost,
    m.Idle: Session._apply_idle,
}
"""What becomes of each event that brings no fd."""

_TOO_LARGE = "all the steps that are taken at once, with the contents of files, have room for 16 MiB"
_CWD_HINT = "the caller's own directory cannot be opened: pass an absolute cwd="


def _open_cwd(bag: FdBag) -> int:
    try:
        return bag.open(".", os.O_PATH | os.O_DIRECTORY)
    except OSError as exc:
        raise setup_error(exc.errno or 0, "chdir", ".", _CWD_HINT) from None
