"""Who listens to the agent, and when; see `_session`, whose lines 1 and 2 are held here.

Somebody must, whenever there may be news that somebody wants. As a rule that is a system task, the *reader*. But a task
of its own, and the switching between it and those who wait, costs a short session more than all that it has to say. So
whoever waits for a session that nobody listens to listens in person, until it has heard what it waits for or is
cancelled. And a session is *lazy* when all that can still come of it is its end, and nobody is to be told of that
unasked: then nobody listens in between. Whoever asks without waiting (`state`, `outcome`) has a look, and a reader
listens from then on.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress

import trio

from linx_trio._channel import Channel
from linx_trio._patience import is_real, wait_really
from linx_trio._proto import messages as m
from linx_trio._proto.states import State
from linx_trio._session_news import SessionNews

_log = logging.getLogger("linx_trio")

PATIENCE_SECONDS = 0.05
"""How long the end of a session is waited for in person."""


_unheard: trio.lowlevel.RunVar[set[SessionListening]] = trio.lowlevel.RunVar("lazy sessions")


async def _end_with_the_run(sessions: set[SessionListening]) -> None:
    """As a reader would: a session whose block is never left ends with ``trio.run`` at the latest."""
    try:
        await trio.sleep_forever()
    finally:
        for session in list(sessions):
            session._abandon()


class SessionListening(SessionNews):
    """The part of a `Session` that listens."""

    def _be_lazy(self) -> None:
        self._lazy = True
        if self._quiet:
            return  # `run` leaves its block
        try:
            sessions = _unheard.get()
        except LookupError:
            sessions = set()
            _unheard.set(sessions)
            trio.lowlevel.spawn_system_task(_end_with_the_run, sessions, name="linx-trio: the end of the run")
        sessions.add(self)
        self._run_mates = sessions

    def _abandon(self) -> None:
        """Lets go of what the session holds: the agent then ends it. Who still listens does so when it is cut short."""
        self._abandoned, self._lazy = True, False
        if self._channel is not None and not self._listening:
            self._stop_reading(self._channel)

    async def _hear(self, news: trio.Event) -> None:
        """Waits for `news`, listening if nobody else does: what it waits for must come from the agent. A checkpoint."""
        channel = self._unheard_channel()
        if channel is None or news.is_set():
            self._others += 1
            try:
                await news.wait()
            finally:
                self._others -= 1
        else:
            await self._read(channel, news)

    def _unheard_channel(self) -> Channel | None:
        """The stream, if there is still something to come and nobody listens."""
        return self._channel if self._reading and not (self._listening or self._gone.is_set()) else None

    @trio.lowlevel.enable_ki_protection
    def _look(self) -> None:
        if not self._lazy or self._listening or self._ended.is_set():
            return
        if self._is_in_its_run():
            self._catch_up()
        self._listen_from_now_on()

    def _is_in_its_run(self) -> bool:
        """Whether this is the thread of the ``trio.run`` that the session belongs to."""
        try:
            return trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:
            return False

    @trio.lowlevel.enable_ki_protection
    def _catch_up(self) -> None:
        """Hears what has been said, where nobody listens."""
        channel = self._unheard_channel()
        if channel is None:
            return
        over = False
        self._listening = True  # a signal handler may ask, too
        try:
            over = self._heard(*channel.receive_nowait())
        except BlockingIOError:
            pass
        except Exception as exc:
            over = self._went_wrong(exc)
        finally:
            self._listening = False
        if over:
            self._stop_reading(channel)

    def _tell_at_once(self) -> None:
        """From now on news is wanted as soon as there is some."""
        if self._lazy:
            self._look()
            self._listen_from_now_on()

    @trio.lowlevel.enable_ki_protection
    def _listen_from_now_on(self) -> None:
        """Has a system task listen, now or when nobody else does any more."""
        self._lazy = False
        channel = self._unheard_channel()
        if channel is None:
            return
        if self._is_in_its_run():
            trio.lowlevel.spawn_system_task(self._read, channel, name=f"linx: {self._workload.arguments[0]}")
            self._listening = True  # it is about to
        elif self._token is not None:  # another thread, which gets to know when it asks again
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._listen_from_now_on)

    async def _hear_end(self, seconds: float, interrupts: list[KeyboardInterrupt]) -> bool:
        """Waits, shielded, for the end of all, as `wait_really` does: in person, if it comes at once."""
        channel = self._unheard_channel()
        if channel is not None and is_real(trio.lowlevel.current_clock()):
            with trio.CancelScope(shield=True, deadline=trio.current_time() + PATIENCE_SECONDS):
                try:
                    await self._read(channel, self._gone)
                except KeyboardInterrupt as exc:
                    interrupts.append(exc)
            seconds -= PATIENCE_SECONDS
        self._listen_from_now_on()
        return self._gone.is_set() or (seconds > 0 and await wait_really(self._gone, seconds, interrupts))

    # ---- reading --------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _read(self, channel: Channel, news: trio.Event | None = None) -> None:
        """Applies what the agent says, until the stream ends, or until `news` has been heard. Raises nothing by itself:
        as a system task it may not.
        """
        over = False
        self._listening = True
        try:
            while not (over or (news is not None and news.is_set())):
                try:
                    over = self._heard(*await channel.receive())
                except Exception as exc:
                    over = self._went_wrong(exc)
        finally:
            self._listening = False
            if over or news is None:
                self._stop_reading(channel)
            elif self._others or not self._lazy:
                self._listen_from_now_on()

    def _heard(self, data: bytes, fds: list[int]) -> bool:
        """Applies what has arrived. Says whether there is nothing more to come."""
        if self._disbelieved:
            self._protocol.unclaimed.extend(fds)
            return not data
        for message, fd in self._protocol.feed(data, fds):
            self._apply(message, fd)
        if not data:
            self._protocol.end_of_file()
            self._lose(None)
        return not data or self._protocol.is_idle

    def _went_wrong(self, exc: Exception) -> bool:
        """What came of listening. Says whether there is nothing more to come."""
        if isinstance(exc, m.Nonsense):
            self._disbelieve(str(exc), exc.term)
        elif isinstance(exc, (OSError, trio.ClosedResourceError)):
            reset = isinstance(exc, ConnectionResetError)
            self._lose(None, never_read=reset and self._last_state() is State.STARTING)
            return True
        else:  # ours; but in a system task it would end the whole trio.run
            _log.error("reading from the agent of %r", self, exc_info=exc)
            again = self._disbelieved  # then not even reading it out works
            self._disbelieve(f"what the agent said could not be applied: {exc!r}", None)
            return again
        return False

    def _stop_reading(self, channel: Channel) -> None:
        spoilt = bool(self._protocol.unclaimed) or self._disbelieved or self._condemned
        for fd in self._protocol.unclaimed:
            os.close(fd)
        self._protocol.unclaimed.clear()
        self._lazy = False
        if self._run_mates is not None:
            self._run_mates.discard(self)
        if self._protocol.is_idle and not spoilt and self._zygote is not None:
            self._channel = None
            self._zygote.keep(channel)
        else:
            channel.close()
        if self._abandoned:
            self._release_zygote()
            self._close_pidfd()
        self._gone.set()
