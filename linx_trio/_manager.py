"""What `spawn` returns: the context manager round a `Session`."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Awaitable, Callable
from types import TracebackType

import trio

from linx_trio._session import Session
from linx_trio._target import Target
from linx_trio._workload import Workload
from linx_trio.errors import AgentError


class SessionManager(contextlib.AbstractAsyncContextManager[Session]):
    """What `spawn` returns: ``async with`` it, once.

    `quiet`: nobody looks at the session before its end. `keep_streams`: a block that is left without an exception
    leaves this side's ends of pipes and terminal open. `on_cancel` is called, shielded, when entering is cancelled
    after the request is on its way: the workload may run already, though we have not heard of it. `among`: who else
    has to know of the session, from before it starts.
    """

    def __init__(
        self,
        workload: Workload,
        *,
        wait_ready: bool,
        target: Target | None = None,
        quiet: bool = False,
        keep_streams: bool = False,
        on_cancel: Callable[[Session], Awaitable[object]] | None = None,
        among: weakref.WeakSet[Session] | None = None,
    ) -> None:
        self._workload = workload
        self._wait_ready = wait_ready
        self._target = target
        self._quiet = quiet
        self._keep_streams = keep_streams
        self._on_cancel = on_cancel
        self._among = among
        self._session: Session | None = None

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Session:
        if self._session is not None:
            raise RuntimeError("a session can be entered once; call spawn() again")
        self._session = session = Session(self._workload, target=self._target, quiet=self._quiet)
        if self._among is not None:
            self._among.add(session)
        try:
            await session.open(wait_ready=self._wait_ready)
        except BaseException as exc:
            try:
                if self._on_cancel is not None and isinstance(exc, trio.Cancelled) and session.is_under_way:
                    with trio.CancelScope(shield=True):
                        await self._on_cancel(session)
            finally:
                await _close_after(session, exc)
            raise
        return session

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._session is not None
        await _close_after(self._session, exc, keep_streams=self._keep_streams and exc is None)


@trio.lowlevel.enable_ki_protection
async def _close_after(session: Session, exc: BaseException | None, *, keep_streams: bool = False) -> None:
    """`Session.close`, without hiding the exception that the block is left with."""
    try:
        await session.close(keep_streams=keep_streams)
    except AgentError as trouble:
        if exc is None:
            raise
        exc.add_note(str(trouble))
