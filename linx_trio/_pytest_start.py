"""Starting what ends with a test: the factories behind the fixtures ``workload`` and ``sandbox``."""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import trio

from linx_trio import ready as readiness
from linx_trio._net import open as open_net
from linx_trio._options import Argument
from linx_trio._run import sandbox, spawn
from linx_trio._session import Session
from linx_trio._together import Kept
from linx_trio._workload import Workload, as_workload

if TYPE_CHECKING:
    from typing import Unpack

    from linx_trio._options import Options, SandboxOptions

READY_SECONDS = 30.0
"""How long something that is started may take to be ready, unless said otherwise. Machines that test are slow."""

Checkpoint = Callable[[Session], Awaitable[object]]
Manager = AbstractAsyncContextManager[Session]


def command_of(session: Session) -> str:
    """For messages."""
    return shlex.join(session.workload.arguments)


async def lo_up(session: Session) -> None:
    """For ``on_checkpoint=``: sets the loopback interface up, which in a fresh network namespace is down."""
    async with open_net(session) as net:
        await net.set_up("lo")


async def wait_ready(session: Session, check: readiness.Check, *, seconds: float = READY_SECONDS) -> None:
    """`linx_trio.ready.wait_ready`, and no longer than `seconds`: else `TimeoutError`, which names the program.

    Raises also what that one raises: `NoProcess` if the workload ends before it is ready, ….
    """
    with trio.move_on_after(seconds) as scope:
        await readiness.wait_ready(session, check)
    if scope.cancelled_caught:
        raise TimeoutError(f"{command_of(session)!r} runs, and was not ready after {seconds:g} s")


async def start(
    kept: Kept,
    manager: Manager,
    *,
    runs: bool,
    ready: readiness.Check | None,
    ready_timeout: float,
    on_checkpoint: Checkpoint | None,
) -> Session:
    """Enters `manager`, which parks, for whoever leaves `kept`. If anything fails, nothing is left of it."""
    if ready is not None and not runs:
        raise ValueError("ready= and auto_proceed=False contradict each other: what is parked is not getting ready")
    async with Kept() as own:
        session = await own.enter(manager)
        if on_checkpoint is not None:
            await on_checkpoint(session)
        if runs:
            await session.proceed()
        if ready is not None:
            await wait_ready(session, ready, seconds=ready_timeout)
        kept.take(own)
    return session


def to_park(argv_or_workload: Any, options: Mapping[str, Any]) -> tuple[Workload, bool]:
    """The workload, made to park; and whether it is to run then: it is, unless the options say otherwise."""
    workload = as_workload(argv_or_workload, {**options, "auto_proceed": False})
    return workload, runs_by(options)


def runs_by(options: Mapping[str, Any]) -> bool:
    runs = options.get("auto_proceed", True)
    if not isinstance(runs, bool):
        raise TypeError(f"auto_proceed must be a bool, not {runs!r}")
    return runs


class Factory:
    """What has been started ends when this is left, all at once. It may be left in another task than it was entered."""

    def __init__(self) -> None:
        self._kept = Kept()

    async def __aenter__(self) -> Any:
        await self._kept.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._kept.__aexit__(kind, exc, traceback)


class Workloads(Factory):
    """The fixture ``workload``: a function that starts workloads, which end with the test."""

    async def __call__(
        self,
        argv_or_workload: Sequence[Argument] | Workload,
        *,
        ready: readiness.Check | None = None,
        ready_timeout: float = READY_SECONDS,
        on_checkpoint: Checkpoint | None = None,
        **options: Unpack[Options],
    ) -> Session:
        """Starts one; it runs when this returns, and ends with the test.

        Args:
            argv_or_workload: the program and its arguments, or a `Workload`.
            ready: what to wait for (`linx_trio.ready`, or any async function of the session).
            ready_timeout: seconds to wait for that, at most.
            on_checkpoint: an async function of the session, called while it is parked, like `lo_up`.
            options: see `Workload`. With ``auto_proceed=False`` it stays parked, for the test to let it go on.

        Raises as `linx_trio.spawn`; `NoProcess` or `TimeoutError` if it ends before it is ready, or takes too long.
        Then, and if this is cancelled, nothing is left of it.
        """
        workload, runs = to_park(argv_or_workload, cast("Mapping[str, Any]", options))
        return await start(
            self._kept,
            spawn(workload),
            runs=runs,
            ready=ready,
            ready_timeout=ready_timeout,
            on_checkpoint=on_checkpoint,
        )


class Sandboxes(Factory):
    """The fixture ``sandbox``: a function that starts sandboxes, which end with the test."""

    async def __call__(
        self,
        argv: Sequence[Argument],
        *,
        readonly: Iterable[Argument] | None = None,
        writable: Iterable[Argument] = (),
        network: bool = False,
        ready: readiness.Check | None = None,
        ready_timeout: float = READY_SECONDS,
        on_checkpoint: Checkpoint | None = None,
        **options: Unpack[SandboxOptions],
    ) -> Session:
        """Starts a `linx_trio.sandbox`; the arguments are that one's and those of `Workloads`."""
        runs = runs_by(options)
        options["auto_proceed"] = False
        manager = sandbox(argv, readonly=readonly, writable=writable, network=network, **options)
        return await start(
            self._kept, manager, runs=runs, ready=ready, ready_timeout=ready_timeout, on_checkpoint=on_checkpoint
        )
