"""Waiting for the kernel and for the agent, in real time: a test's clock may stand still or jump, processes do not."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import trio

from linx_trio.errors import setup_error

_CONGESTION_SECONDS = 30.0

T = TypeVar("T")


async def _outwait(event: trio.Event, interrupts: list[KeyboardInterrupt]) -> None:
    """trio delivers ^C to the main task wherever it waits, shielded or not. A clean-up goes on, and tells
    afterwards.
    """
    while not event.is_set():
        try:
            await event.wait()
        except KeyboardInterrupt as exc:
            interrupts.append(exc)


def is_real(clock: trio.abc.Clock, seconds: float = 2.0) -> bool:
    """Whether that many seconds of it are as many of real time."""
    return abs(clock.deadline_to_sleep_time(clock.current_time() + seconds) - seconds) < 1


async def wait_really(event: trio.Event, seconds: float, interrupts: list[KeyboardInterrupt]) -> bool:
    """Waits, shielded, for `event`, up to so many seconds of real time. Each ^C meanwhile is put into `interrupts`."""
    clock = trio.lowlevel.current_clock()
    scope = trio.CancelScope(shield=True)
    if is_real(clock, seconds):
        scope.deadline = clock.current_time() + seconds
        with scope:
            await _outwait(event, interrupts)
        return event.is_set()
    # A test's clock: it stands still, or jumps, and processes do neither.
    timer = threading.Timer(seconds, _cancel_from_outside, (trio.lowlevel.current_trio_token(), scope))
    timer.daemon = True
    timer.start()
    try:
        with scope:
            await _outwait(event, interrupts)
    finally:
        timer.cancel()
    return event.is_set()


def _cancel_from_outside(token: trio.lowlevel.TrioToken, scope: trio.CancelScope) -> None:
    with suppress(trio.RunFinishedError):
        token.run_sync_soon(scope.cancel)


async def congested(send: Callable[[], T]) -> T:
    """Calls `send` until the kernel takes it, and returns what it says. The kernel limits how many messages, and how
    many fds, are under way (``unix(7)``).
    """
    deadline: float | None = None
    while True:
        try:
            return send()
        except OSError as exc:
            if exc.errno not in (errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS):
                raise
            deadline = deadline or time.monotonic() + _CONGESTION_SECONDS
            if time.monotonic() > deadline:
                raise setup_error(exc.errno, "fork", None, "too many sessions are being started at once") from None
        await trio.sleep(0.002)
