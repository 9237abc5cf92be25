"""What the agent says of a session, applied; how it is heard is in `_session_listening`."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import trio

from linx_trio import _request
from linx_trio._events import Aborted, Event, Exited, Failed, Ready, Running, Signaled, Usage
from linx_trio._fd import FdBag
from linx_trio._hints import hint_for
from linx_trio._proto import etf
from linx_trio._proto import messages as m
from linx_trio._proto.framing import FramingError
from linx_trio._proto.states import State
from linx_trio._session_facts import Batch, PidFd, SessionFacts
from linx_trio._target import open_pidfd
from linx_trio.errors import (
    AgentDied,
    AgentError,
    LinxError,
    NoProcess,
    setup_error,
)

if TYPE_CHECKING:
    from linx_trio._idmaps import Maps

_log = logging.getLogger("linx_trio")

_TOO_LARGE = "all the steps that are taken at once, with the contents of files, have room for 16 MiB"


class SessionNews(SessionFacts):
    """The part of a `Session` that understands."""

    # ---- when it goes wrong ----------------------------------------------------------------------------------------

    def _disbelieve(self, message: str, term: object) -> None:
        """After nonsense: have all killed, and believe nothing more until the stream's end."""
        self._disbelieved = True
        self._lazy = False
        self._fail(lambda: AgentError(message, term), errno.EPROTO)
        self._send(m.SHUTDOWN)
        if self._channel is not None:
            self._channel.stop_sending()  # so that the monitor ends, and does not wait for another request
        self._kill_workload()

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

    # ---- applying -------------------------------------------------------------------------------------------------

    def _apply(self, message: m.Message, fd: int | None) -> None:
        """One event. The protocol has checked that it may come now."""
        if fd is None:
            _APPLY[type(message)](self, message)
        elif isinstance(message, m.Spawned):
            self._host_pid = message.host_pid
            self._pidfd = PidFd(fd)
        elif isinstance(message, m.Began):
            self._pidfd = PidFd(fd)
            self._begin(*message)
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

    def _begin(self, host_pid: int, child_pid: int) -> None:
        """`Spawned`, `Parked` and `Started` in one."""
        self._host_pid, self._child_pid = host_pid, child_pid
        self._ready()
        self._apply_started(m.Started())

    def _apply_usage(self, report: m.UsageReport) -> None:
        user, system, wall, max_rss, self._core_dumped = report
        group = self._placement
        killed, peak = (None, None) if group is None else (group.oom_killed(), group.memory_peak())
        self._usage = Usage(user / 1e6, system / 1e6, wall / 1e6, max_rss, killed, peak)

    def _apply_over(self, over: m.Over) -> None:
        code, user, system, wall, max_rss = over
        self._apply_usage(m.UsageReport(user, system, wall, max_rss, core_dumped=False))
        self._end(Exited(code))

    def _apply_ran(self, ran: m.Ran) -> None:
        self._begin(*ran[:2])
        self._apply_over(m.Over(*ran[2:]))

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

    # ---- at the checkpoint ----------------------------------------------------------------------------------------

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
            await self._take_batch(Batch(steps, [thing for _, thing in origins], [option for option, _ in origins]))
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

    async def _take_batch(self, batch: Batch) -> None:
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
            raise NoProcess("take_steps", self.state)

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

    # ---- the end --------------------------------------------------------------------------------------------------

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


_APPLY: Mapping[type, Callable[[SessionNews, Any], None]] = {
    m.Parked: SessionNews._apply_parked,
    m.Started: SessionNews._apply_started,
    m.UsageReport: SessionNews._apply_usage,
    m.Over: SessionNews._apply_over,
    m.Ran: SessionNews._apply_ran,
    m.Exit: SessionNews._apply_exit,
    m.Kill: SessionNews._apply_kill,
    m.Abortion: SessionNews._apply_abortion,
    m.Refusal: SessionNews._apply_refusal,
    m.Degraded: SessionNews._apply_degraded,
    m.Stepped: SessionNews._apply_stepped,
    m.Remains: SessionNews._apply_remains,
    m.Lost: SessionNews._apply_lost,
    m.Idle: SessionNews._apply_idle,
}
"""What becomes of each event that brings no fd."""
