"""Several things at the same time, and context managers that are left at the same time: without groups of exceptions.

Whoever calls one function has one thing in mind, and expects its error as itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import trio

T = TypeVar("T")
Task = Callable[[], Awaitable[object]]


@trio.lowlevel.enable_ki_protection
async def at_once(tasks: Iterable[Task]) -> None:
    """Calls them at the same time. The first failure ends the others and comes out as itself; so does a cancellation,
    and a ^C, which comes when the others have ended.
    """
    failures: list[Exception] = []
    interrupt: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(_attempt, task, failures, nursery.cancel_scope, False)
    except BaseExceptionGroup as group:
        interrupt = _foremost(group)
    if interrupt is not None:
        raise interrupt
    if failures:
        raise failures[0]


@trio.lowlevel.enable_ki_protection
async def _attempt(task: Task, failures: list[Exception], scope: trio.CancelScope | None, shield: bool) -> None:
    try:
        with trio.CancelScope(shield=shield):
            await task()
    except Exception as exc:
        failures.append(exc)
        if scope is not None:
            scope.cancel()


@trio.lowlevel.enable_ki_protection
async def do_all(tasks: Iterable[Task]) -> list[BaseException]:
    """Calls them at the same time, each to its end. Shielded. Returns what went wrong, a ^C first."""
    failures: list[Exception] = []
    interrupts: list[BaseException] = []
    try:
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(_attempt, task, failures, None, True)
    except BaseExceptionGroup as group:
        interrupts.append(_foremost(group))
    return [*interrupts, *failures]


def _foremost(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Rather what is no cancellation."""
    found: BaseException = group.split(trio.Cancelled)[1] or group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


class Kept:
    """Context managers that have been entered one after the other, and are left all at once.

    As one itself, it leaves those that nobody has taken over by then.
    """

    def __init__(self) -> None:
        self._managers: list[AbstractAsyncContextManager[Any]] = []

    def __bool__(self) -> bool:
        return bool(self._managers)

    @trio.lowlevel.enable_ki_protection
    async def enter(self, manager: AbstractAsyncContextManager[T]) -> T:
        value = await manager.__aenter__()  # which cleans up after itself if it fails
        self._managers.append(manager)
        return value

    def take(self, others: Kept) -> None:
        """They are ours from now on."""
        self._managers += others._managers
        others._managers = []

    async def leave(self) -> list[BaseException]:
        """Leaves all. Bounded in time as each of them is; else as `do_all`."""
        managers, self._managers = self._managers[::-1], []
        return await do_all(partial(manager.__aexit__, None, None, None) for manager in managers)

    async def __aenter__(self) -> Kept:
        return self

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self:
            tell(await self.leave(), exc)


def tell(troubles: list[BaseException], exc: BaseException | None, where: str = "cleaning up") -> None:
    """Raises the first trouble; or notes them on the exception that there is already, unless a ^C came."""
    if not troubles:
        return
    first, *others = troubles
    if exc is None or not isinstance(first, Exception):
        for other in others:
            first.add_note(f"and, {where}: {other!r}")
        raise first
    for trouble in troubles:
        exc.add_note(f"{where}: {trouble!r}")
