"""The caller's own terminal joined to a workload's: `attach`.

Two terminals are in a row then. The workload's does the echo, the line editing and the ``^C``; the caller's is in raw
mode (``termios(3)``), where it does nothing, so that every byte gets through. Lines that must hold:

1. Whatever happens, the caller's terminal is left as it was found (see `_terminal`).
2. What was taken from the workload's terminal and not shown is given back to its stream. So nothing is lost, and no
   way out has to wait for the caller's terminal.
3. What is typed is looked through for the detach keys also while the workload does not read it.
"""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import Enum

import trio

from linx_trio._events import Outcome
from linx_trio._options import HasFileno, WindowSize
from linx_trio._proto.states import TERMINAL
from linx_trio._pty import PtyStream
from linx_trio._session import Session
from linx_trio._terminal import POLL_SECONDS, CallersTerminal, exclusively, fd_of, opened, signals
from linx_trio.errors import LinxError

__all__ = ["DETACHED", "Detached", "WindowSize", "attach"]


class Detached(Enum):
    """The type of `DETACHED`."""

    DETACHED = "detached"

    def __repr__(self) -> str:
        return "linx.tty.DETACHED"

    __str__ = __repr__


DETACHED = Detached.DETACHED
"""What `attach` returns when the workload goes on without it."""

_DETACH_SECONDS = 1.0
"""How long the workload has, once the detach keys were typed, to take what was typed before them."""

_TURN_SECONDS = 0.01
_CHUNK = 16384
_TYPED_CHUNKS = 1024
"""How many reads from the terminal (4 KiB at most each) are kept for a workload that does not read."""

_LEFT_BEHIND = 1 << 16
"""More than a terminal can hold: beyond it, what comes after the workload's end is not the workload's."""


@trio.lowlevel.enable_ki_protection
async def attach(
    session: Session,
    *,
    terminal: int | HasFileno | None = None,
    detach_keys: bytes = b"\x10\x11",
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> Outcome | Detached:
    """Joins the caller's terminal and the workload's, until the workload ends or the detach keys are typed.

    Meanwhile the caller's terminal is in raw mode (``termios(3)``), so ``^C`` and ``^Z`` go to the workload, whose
    terminal has the caller's window size at all times. However this is left, the modes are restored first. While this
    process is in the background of its own terminal, it neither reads nor changes it; SIGTSTP, sent from elsewhere,
    suspends this process with the modes restored.

    It borrows ``session.pty`` as its one reader, and gives it back: what it has not shown is received by the next one.
    A parked session can be attached to as well; somebody else has to `Session.proceed`.

    Args:
        session: one with ``stdio=PTY``.
        terminal: an fd, or an object with ``fileno()``, of a terminal, which stays the caller's; `None`: ``/dev/tty``.
        detach_keys: by default ``^P ^Q``. What may be their beginning is sent when it turns out not to be. ``b""``:
            none.
        task_status: ``await nursery.start(linx.tty.attach, session)`` returns once all is joined, size included.

    Returns the workload's outcome, after all that it has written before its end has been shown; `DETACHED` after the
    detach keys, or when the terminal is hung up. What was typed before the keys is sent first, if the workload takes
    it within a second; what was read together with them and comes after them is dropped.

    Raises:
        TypeError, ValueError: `terminal` is no terminal, `detach_keys` no bytes.
        NoPty: the session has no terminal.
        trio.BusyResourceError: somebody is receiving from ``session.pty`` or attached already, or the caller's terminal
            is attached to something already.
        OSError: there is no ``/dev/tty`` (ENXIO).
        SetupError, AgentDied, AgentError: the session failed, as `Session.wait` raises it.

    Cancelling it detaches at once. No exception is wrapped in an ``ExceptionGroup``.
    """
    if not isinstance(session, Session):
        raise TypeError(f"session must be a linx.Session, not {session!r}")
    if not isinstance(detach_keys, bytes):
        raise TypeError(f"detach_keys must be bytes, not {detach_keys!r}")
    fd = None if terminal is None else fd_of(terminal)
    pty = session.pty
    await trio.lowlevel.checkpoint_if_cancelled()
    with pty.receiving, opened(fd) as fd, exclusively(fd), signals(fd) as arrived, CallersTerminal(fd) as ours:
        attachment = _Attachment(session, pty, ours, DetachKeys(detach_keys), arrived)
        attachment.adapt()
        task_status.started()
        return await attachment.run()


class DetachKeys:
    """Finds the detach keys in what is typed, however it arrives in pieces."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self.held = b""
        """What may be their beginning."""
        self.found = False

    def feed(self, typed: bytes) -> bytes:
        """What is to be sent on: all before the keys, except what is held back."""
        if not self._keys:
            return typed
        typed = self.held + typed
        before, keys, _ = typed.partition(self._keys)
        if keys:
            self.found = True
            return before
        longest = min(len(self._keys) - 1, len(typed))
        held = next(n for n in range(longest, -1, -1) if typed.endswith(self._keys[:n]))
        self.held = typed[len(typed) - held :]
        return typed[: len(typed) - held]


# ---- the two together --------------------------------------------------------------------------------------------


class _Attachment:
    """The tasks of one `attach`. None of them raises anything: what goes wrong is kept, and raised by `run`."""

    def __init__(
        self,
        session: Session,
        pty: PtyStream,
        ours: CallersTerminal,
        keys: DetachKeys,
        arrived: AsyncIterator[int] | None,
    ) -> None:
        self._session = session
        self._pty = pty
        self._ours = ours
        self._keys = keys
        self._arrived = arrived
        self._size: WindowSize | None = None
        self._scope = trio.CancelScope(shield=True)  # of all tasks but the caller's
        self._output = trio.CancelScope()
        self._output_over = trio.Event()
        self._over = trio.Event()
        self._failure: Exception | None = None

    async def run(self) -> Outcome | Detached:
        """Until the workload ends, or one of the tasks does."""
        interrupted: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._work)
                try:
                    await self._over.wait()
                except (KeyboardInterrupt, trio.Cancelled) as exc:
                    interrupted = exc  # raised below, where no nursery wraps it
                self._scope.cancel()
        except BaseExceptionGroup as group:  # the tasks raise nothing: a ^C while they were ending
            interrupted = group.exceptions[0]
        if interrupted is not None:
            raise interrupted
        if self._failure is not None and not self._closed_at_the_end():
            raise self._failure
        if self._session.state not in TERMINAL:
            return DETACHED
        return await self._session.wait()

    def _closed_at_the_end(self) -> bool:
        """The session's block has been left: then the terminal closes under us."""
        return isinstance(self._failure, trio.ClosedResourceError) and self._session.state in TERMINAL

    def adapt(self) -> None:
        """To what may have changed on the caller's side: its terminal's size and modes, who has the foreground."""
        self._ours.make_raw()
        size = self._ours.size()
        if size is not None and size != self._size:
            self._pty.set_winsize(size)
            self._size = size

    @trio.lowlevel.enable_ki_protection
    async def _work(self) -> None:
        typed, to_send = trio.open_memory_channel[bytes](_TYPED_CHUNKS)
        sent = trio.Event()
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._guard, self._read_keys, typed, sent)
                nursery.start_soon(self._guard, self._send_keys, to_send, sent)
                nursery.start_soon(self._guard, self._show_output)
                nursery.start_soon(self._guard, self._watch)
                nursery.start_soon(self._guard, self._await_end)

    @trio.lowlevel.enable_ki_protection
    async def _guard(self, work: Callable[..., Awaitable[None]], *args: object) -> None:
        try:
            await work(*args)
        except Exception as exc:
            self._failure = self._failure or exc
            self._over.set()

    async def _await_end(self) -> None:
        with contextlib.suppress(LinxError):  # for `run` to raise
            await self._session.wait()
        self._output.cancel()
        await self._output_over.wait()
        await self._show_the_rest()
        self._over.set()

    async def _watch(self) -> None:
        """Adapts whenever a signal says so; where none would, again and again."""
        while True:
            told = self._arrived is not None and self._ours.in_foreground()
            with trio.move_on_after(math.inf if told else POLL_SECONDS):
                if self._arrived is None:
                    await trio.sleep_forever()
                if await anext(self._arrived) == signal.SIGTSTP:
                    self._ours.suspend()
            self.adapt()

    async def _read_keys(self, typed: trio.MemorySendChannel[bytes], sent: trio.Event) -> None:
        data = b"some"
        with trio.CancelScope() as patience, typed:
            while data and not self._keys.found:
                data = await self._ours.receive()
                before = self._keys.feed(data) if data else self._keys.held
                if self._keys.found or not data:
                    patience.deadline = trio.current_time() + _DETACH_SECONDS
                await typed.send(before)
            typed.close()
            await sent.wait()
        self._over.set()

    async def _send_keys(self, to_send: trio.MemoryReceiveChannel[bytes], sent: trio.Event) -> None:
        with to_send:
            async for data in to_send:
                await self._send(data)
        sent.set()

    async def _send(self, data: bytes) -> None:
        while True:
            try:
                await self._pty.send_all(data)
                return
            except trio.BrokenResourceError:  # nobody has the workload's terminal open
                return
            except trio.BusyResourceError:  # another task is typing something too
                await trio.sleep(_TURN_SECONDS)

    async def _show_output(self) -> None:
        with self._output:
            while True:
                data = await self._pty.receive_borrowed(_CHUNK)
                if not data:  # nobody has the workload's terminal open; it may be opened again, by name
                    await trio.sleep(POLL_SECONDS)
                elif not await self._show(data):
                    break
        self._output_over.set()
        if not self._output.cancelled_caught:
            self._over.set()

    async def _show_the_rest(self) -> None:
        """What is there after the workload's end, and not what others may still write for as long as they live."""
        left = _LEFT_BEHIND
        with contextlib.suppress(trio.ClosedResourceError):
            while left > 0 and (data := self._pty.receive_now(_CHUNK)) and await self._show(data):
                left -= len(data)

    async def _show(self, data: bytes) -> bool:
        """Whether the caller's terminal is still there. What is not shown goes back to the stream."""
        shown = some = 0
        try:
            while some >= 0 and shown < len(data):
                some = await self._ours.send_some(memoryview(data)[shown:])
                shown += max(some, 0)
        finally:
            if shown < len(data):
                self._pty.give_back(data[shown:])
        return some >= 0
