"""One life of a supervised child: spawned, made ready, lived, and left."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Callable
from typing import cast

import trio

from linx_trio._child import ChildSpec
from linx_trio._events import Outcome
from linx_trio._manager import SessionManager
from linx_trio._proto.states import TERMINAL
from linx_trio._session import Session
from linx_trio.errors import LinxError, NoPty, StateError
from linx_trio.ready import Check, Line, wait_ready

_REST_SECONDS = 1.0
"""For reading what is left in the pipe of a child that has ended, should others still hold it."""


class Incarnation:
    """One life of a child."""

    def __init__(self, spec: ChildSpec, number: int) -> None:
        self.spec = spec
        self._ready = spec.ready.passing_on() if isinstance(spec.ready, Line) and spec.listens_in else spec.ready
        self.number = number
        self.session: Session | None = None
        self.error: BaseException | None = None
        self.gone = trio.Event()
        """Nothing is left of it."""
        self.borrowers = 0
        self._entering = trio.CancelScope()
        self._living = trio.CancelScope()
        self._stopped = False
        self._draining: trio.CancelScope | None = None
        self._undrained = trio.Event()
        self._given_back = trio.Event()

    def stop(self) -> None:
        self._stopped = True
        self._entering.cancel()
        self._living.cancel()

    @property
    def outcome(self) -> Outcome | None:
        return None if self.session is None else self.session.outcome

    async def live(self, on_checkpoint: Check | None, up: Callable[[], None]) -> None:
        """From spawn to nothing left. `error` is what it failed with; raises only what is no `Exception`."""
        try:
            workload = self.spec.prepared(parked=on_checkpoint is not None)
            self._entering.deadline = trio.current_time() + self.spec.start_timeout
            with self._entering:
                manager = SessionManager(workload, wait_ready=True, keep_streams=True)
                async with manager as self.session:
                    # From here on it ends by leaving the block, not by an exception: that would close the streams, and
                    # whoever has borrowed the session may not have read all.
                    with trio.CancelScope(shield=True), self._living:
                        await self._live(self.session, on_checkpoint, up)
            if self._entering.cancelled_caught and not self._stopped:
                self.error = self._too_slow("to be parked")
        except Exception as exc:
            self.error = exc
        await self._read_the_rest()

    async def _live(self, session: Session, on_checkpoint: Check | None, up: Callable[[], None]) -> None:
        step = "on_checkpoint"
        try:
            with trio.move_on_at(self._entering.deadline) as patience:
                if on_checkpoint is not None:
                    await on_checkpoint(session)
                    step = "execve"
                    await session.proceed()
                step = "ready"
                if self._ready is not None:
                    await wait_ready(session, self._ready)
            if patience.cancelled_caught:
                self.error = self._too_slow(step)
                return
            self._entering.deadline = math.inf
            up()
            await self._attend(session)
        except StateError as exc:
            self.error = exc
            if session.state in TERMINAL:  # then how it ended is what counts
                self.error = await _failure_of(session)
        except Exception as exc:
            self.error = exc

    async def _attend(self, session: Session) -> None:
        """Until the workload's end."""
        async with trio.open_nursery() as nursery:
            if isinstance(self._ready, Line):
                nursery.start_soon(self._drain, session, self._ready)
            self.error = await _failure_of(session)
            nursery.cancel_scope.cancel()

    async def _drain(self, session: Session, line: Line) -> None:
        """Keeps a stream moving that the check has begun to read, except while the session is borrowed."""
        while True:
            while self.borrowers:
                self._given_back = trio.Event()
                await self._given_back.wait()
            self._undrained, scope = trio.Event(), trio.CancelScope()
            self._draining = scope
            with scope:
                await line.drain(session)
            self._undrained.set()
            if not scope.cancelled_caught:
                return

    async def _read_the_rest(self) -> None:
        """What it has written before its end is there still."""
        if isinstance(self._ready, Line) and self.session is not None and not self.borrowers:
            # Without such a pipe it has told so already.
            with trio.move_on_after(_REST_SECONDS), contextlib.suppress(ValueError, NoPty):
                await self._ready.drain(self.session)

    def _too_slow(self, step: str) -> trio.TooSlowError:
        return trio.TooSlowError(
            f"child {self.spec.id!r} was not up within start_timeout={self.spec.start_timeout:g} s (at: {step})"
        )

    @contextlib.asynccontextmanager
    @trio.lowlevel.enable_ki_protection
    async def borrow(self) -> AsyncIterator[Session]:
        session = cast("Session", self.session)
        self.borrowers += 1
        try:
            if self._draining is not None:
                self._draining.cancel()
                await self._undrained.wait()
            yield session
        finally:
            self.borrowers -= 1
            self._given_back.set()
            if self.gone.is_set():
                self.close_streams()

    def close_streams(self) -> None:
        if self.borrowers or self.session is None:
            return
        for stream in (self.session.stdin, self.session.stdout, self.session.stderr):
            if stream is not None:
                stream.close()
        with contextlib.suppress(NoPty):
            self.session.pty.close()


async def _failure_of(session: Session) -> LinxError | None:
    """Waits for its end. What it failed with, if it did."""
    try:
        await session.wait()
    except LinxError as exc:
        return exc
    return None
