"""Workloads that outlive a test: the fixtures ``workload_module`` and ``workload_session``.

An async fixture of pytest-trio lives in one test's `trio.run`, and so do the sessions that it has. What is to live
longer has a `trio.run` of its own, in a thread; tests talk with it by plain functions, whatever runs them: trio,
asyncio, or nothing.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import trio

from linx_trio import ready as readiness
from linx_trio._events import Info, Outcome
from linx_trio._options import Argument, StdioSpec
from linx_trio._pytest_start import READY_SECONDS, Checkpoint, Workloads, command_of
from linx_trio._run import Completed, run_inside
from linx_trio._session import Session
from linx_trio._together import at_once
from linx_trio._workload import Workload

if TYPE_CHECKING:
    from typing import Unpack

    from linx_trio._options import EnteringOptions, Options

T = TypeVar("T")


class Service:
    """A workload that was started by `Services`. Its functions may be called in any thread, and block."""

    def __init__(self, home: Services, session: Session) -> None:
        self._home = home
        self._session = session

    def __repr__(self) -> str:
        return f"<Service {command_of(self._session)!r}: {self._session.state}>"

    @property
    def host_pid(self) -> int:
        """For `linx_trio.enter`, `linx_trio.net.open`, ``/proc``."""
        return self._session.host_pid

    @property
    def outcome(self) -> Outcome | None:
        """How it has ended, or `None`: it lives."""
        return self._session.outcome

    @property
    def returncode(self) -> int | None:
        """The same as in `subprocess`."""
        return self._session.returncode

    def info(self) -> Info:
        """See `Session.info`."""
        return self._session.info()

    def signal(self, signum: int) -> None:
        """Sends it a signal. Raises `NoProcess` if it has ended."""
        self._home._call(partial(_plainly, partial(self._session.signal, signum)))

    def terminate(self) -> None:
        """SIGTERM to the workload. Raises `NoProcess` if it has ended."""
        self._home._call(partial(_plainly, self._session.terminate))

    def kill(self) -> None:
        """SIGKILL to it and all its descendants."""
        self._home._call(partial(_plainly, self._session.kill))

    def wait(self, timeout: float = READY_SECONDS) -> Outcome:
        """Waits for its end. Raises `TimeoutError` after `timeout` seconds, and what `Session.wait` raises."""
        return self._home._call(partial(_within, timeout, self._session))

    def run_inside(
        self,
        argv_or_workload: Sequence[Argument] | Workload,
        *,
        stdin: bytes | bytearray | memoryview | StdioSpec = b"",
        capture_stdout: bool = False,
        capture_stderr: bool = False,
        check: bool = True,
        max_output: int | None = None,
        **options: Unpack[EnteringOptions],
    ) -> Completed:
        """Runs a program in all of its namespaces, to its end: as `linx_trio.run`, and `linx_trio.enter`."""
        return self._home._call(
            partial(
                run_inside,
                self._session,
                argv_or_workload,
                stdin=stdin,
                capture_stdout=capture_stdout,
                capture_stderr=capture_stderr,
                check=check,
                max_output=max_output,
                **options,
            )
        )


async def _plainly(function: Callable[[], T]) -> T:
    return function()


async def _within(seconds: float, session: Session) -> Outcome:
    with trio.move_on_after(seconds):
        return await session.wait()
    raise TimeoutError(f"{command_of(session)!r} has not ended after {seconds:g} s")


class Services:
    """The fixtures ``workload_module`` and ``workload_session``: a function that starts workloads, which end with the
    module or with the run. It blocks: in an async test it stops the loop meanwhile, in a fixture that is no matter.
    """

    running: ClassVar[weakref.WeakSet[Services]] = weakref.WeakSet()

    def __init__(self) -> None:
        self._sessions: list[Session] = []
        self._up = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="linx-services", daemon=True)

    def __call__(
        self,
        argv_or_workload: Sequence[Argument] | Workload,
        *,
        ready: readiness.Check | None = None,
        ready_timeout: float = READY_SECONDS,
        on_checkpoint: Checkpoint | None = None,
        **options: Unpack[Options],
    ) -> Service:
        """Starts one: arguments and errors are those of the fixture ``workload``, see `Workloads`."""
        return self._call(
            partial(
                self._start,
                argv_or_workload,
                ready=ready,
                ready_timeout=ready_timeout,
                on_checkpoint=on_checkpoint,
                **options,
            )
        )

    def together(
        self,
        workloads: Iterable[Sequence[Argument] | Workload],
        *,
        ready: readiness.Check | None = None,
        ready_timeout: float = READY_SECONDS,
        on_checkpoint: Checkpoint | None = None,
        **options: Unpack[Options],
    ) -> list[Service]:
        """Starts all of them at the same time, and returns when all are ready. If one fails, none is left."""
        told: Mapping[str, Any] = {
            "ready": ready,
            "ready_timeout": ready_timeout,
            "on_checkpoint": on_checkpoint,
            **options,
        }
        return self._call(partial(self._start_all, list(workloads), told))

    # ---- in the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as exc:
            self._failure = exc
        finally:
            self._up.set()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._left = trio.Event()
        async with Workloads() as self._factory, trio.open_nursery() as self._nursery:
            self._up.set()
            await self._left.wait()
            self._nursery.cancel_scope.cancel()

    async def _start(self, argv_or_workload: Any, **told: Any) -> Service:
        session = await self._factory(argv_or_workload, **told)
        self._sessions.append(session)
        return Service(self, session)

    async def _start_all(self, workloads: list[Any], told: Mapping[str, Any]) -> list[Service]:
        started: dict[int, Session] = {}
        factory = Workloads()  # of their own, so that nothing is left of any if one fails

        async def one(number: int) -> None:
            started[number] = await factory(workloads[number], **told)

        async with factory:
            await at_once(partial(one, number) for number in range(len(workloads)))
            self._factory._kept.take(factory._kept)
        self._sessions += started.values()
        return [Service(self, started[number]) for number in range(len(workloads))]

    async def _answer(self, ask: Callable[[], Awaitable[T]], answer: Future[T]) -> None:
        try:
            answer.set_result(await ask())
        except trio.Cancelled:
            answer.set_exception(RuntimeError("the fixture has been left meanwhile"))
            raise
        except BaseException as exc:
            answer.set_exception(exc)

    # ---- outside --------------------------------------------------------------------------------------------------

    def _call(self, ask: Callable[[], Awaitable[T]]) -> T:
        if not self._thread.is_alive() or self not in Services.running:
            raise RuntimeError("the fixture that has started this has been left")
        answer: Future[T] = Future()
        self._token.run_sync_soon(self._nursery.start_soon, self._answer, ask, answer)
        return answer.result()

    def live(self) -> list[int]:
        """The workloads' pids."""
        return [session.host_pid for session in self._sessions if session.outcome is None and session.is_under_way]

    def __enter__(self) -> Services:
        self._thread.start()
        self._up.wait()
        if self._failure is not None:
            raise self._failure
        Services.running.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        Services.running.discard(self)
        if self._thread.is_alive():
            self._token.run_sync_soon(self._left.set)
        self._thread.join()
        if self._failure is not None:
            raise self._failure
