"""A session: one workload, from before its first instruction until nothing of it is left.

Lines that must hold:

1. Reading outlives the body: it ends when the monitor has reaped everything and says that it is idle; or with the
   stream, which the agent closes when the monitor has itself been reaped. So "reading has ended" is the proof. Whoever
   reads in person and is cancelled leaves it to somebody out of reach of the user's cancel scopes.
2. Between reading bytes and applying them there is no checkpoint: no event is lost by a cancellation.
3. Commands are sent by plain functions: no frame is ever cut.
4. There are two killers: this side's, in `close` (shielded, bounded, and in the end by pidfd), and the monitor's,
   when the stream ends because Python is gone.

What is known of it stands in `_session_facts`; what the agent says is heard in `_session_listening` and understood in
`_session_news`; here are the verbs, its beginning and its end.
"""

from __future__ import annotations

import errno
import logging
import os
import signal as _signal
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import trio

from linx_trio import _agent, _request, _stdio
from linx_trio._caller import Caller
from linx_trio._channel import Channel
from linx_trio._events import Aborted, Event, Outcome
from linx_trio._fd import FdBag
from linx_trio._hints import hint_for
from linx_trio._owner import EventIterator, OwnerFeed
from linx_trio._patience import congested, wait_really
from linx_trio._proto import messages as m
from linx_trio._proto.protocol import SessionProtocol
from linx_trio._proto.states import Action, State, rule
from linx_trio._session_facts import Batch
from linx_trio._session_listening import PATIENCE_SECONDS, SessionListening
from linx_trio._target import Target
from linx_trio.errors import (
    AgentDied,
    AgentError,
    AlreadyRunning,
    LinxError,
    NoProcess,
    NotReady,
    SetupError,
    setup_error,
)

_log = logging.getLogger("linx_trio")

CLOSE_SECONDS = 20.0
"""How long `close` trusts the monitor, beyond the workload's own grace, before it kills by itself; and then as long
again.
"""

_ZYGOTE_ATTEMPTS = 8
"""A zygote that dies may cost two: one for its spare, one for itself."""


class _NeverRead(Exception):
    """The agent went before it had read the request: nothing was started, and asking another one is safe."""


class Session(SessionListening):
    """One workload and all that descends from it. Made by `linx_trio.spawn`; do not call."""

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
        await self._hear(self._released)
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
        await self._hear(self._released)
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
        await self._hear(self._ended)
        if self._outcome is None:
            self._raise_failure()
        return cast("Outcome", self._outcome)

    def events(self) -> AsyncIterator[Event]:
        """All of this session's events, from the first one, ending after the terminal one. Any number of iterators."""
        self._tell_at_once()
        return EventIterator(self._events)

    def set_owner(self, channel: trio.MemorySendChannel[Any] | None) -> None:
        """From now on events go to `channel` (`None`: to nobody); past ones are not replayed.

        A full channel delays its own events only; one whose receiver is closed loses them.
        """
        if channel is not None and not isinstance(channel, trio.MemorySendChannel):
            raise TypeError(f"channel must be the sending end of trio.open_memory_channel(), not {channel!r}")
        self._tell_at_once()
        self._owner = OwnerFeed(channel) if channel is not None else None

    def _rule(self, verb: str) -> Action:
        try:
            return rule(verb, State(self.state))
        except NoProcess as exc:
            raise exc from (self._failure() if self._failure is not None else None)

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
        if self._rule("take_steps") is Action.SEND and (self._proceeding or self._workload.auto_proceed):
            raise AlreadyRunning("take_steps", self.state)
        await self._take_batch(Batch([step for step, _ in steps], [thing for _, thing in steps]))

    async def open_netlink(self, steps: Sequence[tuple[m.Step, str]], protocol: int) -> int:
        """Has the parked child take `steps`, if there are any, and then open a netlink socket (``netlink(7)``), which
        belongs to the network namespace that the child is in. Returns its fd, close-on-exec and non-blocking.

        Raises as `take_steps` does; stage ``netlink``. Cancelled, the socket is closed as soon as it comes.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._rule("take_steps")
        asked = [*steps, (("netlink", protocol), f"netlink protocol {protocol}")]
        batch = Batch([step for step, _ in asked], [thing for _, thing in asked])
        try:
            await self._take_batch(batch)
            if batch.fd is None:  # it did not fit under RLIMIT_NOFILE, of the agent or of ours
                raise setup_error(errno.EMFILE, "netlink", asked[-1][1], hint_for("request", errno.EMFILE))
            fd, batch.fd = batch.fd, None
            return fd
        finally:
            batch.close()

    # ---- opening --------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def open(self, *, wait_ready: bool) -> None:
        """Starts the child and waits until it is parked (with auto_proceed: until it runs), or ended.

        Raises `SetupError`, `AgentError`, `NotSupported`. `close` is due in any case.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        _agent.check_platform()
        self._retryable = wait_ready
        self._token = trio.lowlevel.current_trio_token()
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
        self._terminal = made.terminal
        return made

    async def _start(self, fds: list[int], targets: list[m.Target], *, wait_ready: bool) -> None:
        for _attempt in range(_ZYGOTE_ATTEMPTS):
            try:
                await self._hand_over(fds, targets)
                if wait_ready:
                    await self._wait_started()
                else:
                    self._listen_from_now_on()
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

    async def _wait_started(self) -> None:
        if self._maps_from_outside():  # then it is a task of ours that says when it is ready
            self._listen_from_now_on()
        elif self._workload.auto_proceed and self._owner is None and self._placement is None:
            self._be_lazy()
        await self._hear(self._released if self._workload.auto_proceed else self._parked)
        if self._never_read:
            raise _NeverRead
        if self._protocol.state is State.FAILED:
            self._raise_failure()

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

    # ---- closing --------------------------------------------------------------------------------------------------

    def _maps_from_outside(self) -> bool:
        return self._workload.user is not None and (self._request is None or self._request.after_mapping is not None)

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
        self._close_pidfd()
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
        self._catch_up()
        if self._gone.is_set():
            return True
        grace = 0.0 if self._ended.is_set() else self._workload.shutdown.grace
        if self._ended.is_set():
            self._release_cgroup()
            by_itself = self._ends_with_its_namespace()
            if by_itself and await self._hear_end(PATIENCE_SECONDS, interrupts):
                return True
        self._send(m.shutdown(_request.milliseconds(grace)) if grace > 0 else m.SHUTDOWN)
        if await self._hear_end(grace + CLOSE_SECONDS, interrupts):
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


def _as_setup_error(exc: OSError, stage: str) -> SetupError:
    """What the kernel refuses on this side, before there is an agent to say so."""
    number = exc.errno or errno.EIO
    return setup_error(number, stage, exc.filename, hint_for("fork", number))


_CWD_HINT = "the caller's own directory cannot be opened: pass an absolute cwd="


def _open_cwd(bag: FdBag) -> int:
    try:
        return bag.open(".", os.O_PATH | os.O_DIRECTORY)
    except OSError as exc:
        raise setup_error(exc.errno or 0, "chdir", ".", _CWD_HINT) from None
