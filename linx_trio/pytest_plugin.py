"""What the fixtures of the pytest plugin are: see docs/testing.md. For annotations::

    from linx_trio.pytest_plugin import Netns, Workloads

    async def test_serves(workload: Workloads, netns: Netns) -> None: ...

The fixtures themselves, the options and the hooks are in the module ``pytest_linx_trio``, which pytest finds by its
entry point, or by ``-p linx_trio.pytest_plugin`` where it is told to load none by itself. Importing this one costs
as much as importing trio, and happens when a test first uses a fixture or the mark.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import trio

from linx_trio import ready as readiness
from linx_trio._net import Net
from linx_trio._net import open as open_net
from linx_trio._options import Argument, StdioSpec
from linx_trio._probe import Feature, probe
from linx_trio._pytest_services import Service, Services
from linx_trio._pytest_start import READY_SECONDS, Checkpoint, Sandboxes, Workloads, lo_up, runs_by, start, wait_ready
from linx_trio._run import Completed, enter, run_inside, spawn
from linx_trio._session import Session
from linx_trio._together import Kept
from linx_trio._workload import Workload
from linx_trio.net import Lab
from linx_trio.user import root_map

if TYPE_CHECKING:
    from typing import Unpack

    from linx_trio._options import EnteringOptions, EnterOptions

__all__ = ["Lab", "Netns", "Sandboxes", "Service", "Services", "Workloads", "lo_up", "wait_ready"]

pytest_plugins = ["pytest_linx_trio"]


class Netns:
    """The fixture ``netns``: a network namespace of the test's own, with ``lo`` up and nothing else in it, and a user
    namespace in which the caller is root. It needs no root.

    Attributes:
        session: a parked workload that holds the namespaces; for `linx_trio.enter`.
        net: `linx_trio.net.Net`, for links, addresses and routes.
    """

    def __init__(self, session: Session, net: Net, kept: Kept) -> None:
        self.session = session
        self.net = net
        self._kept = kept

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Netns]:
        """One more, for tests that need several. Raises `SetupError` where namespaces cannot be had."""
        async with Kept() as outer:
            session = await outer.enter(spawn(["/"], namespaces={"user", "net"}, user=root_map(), cwd="/"))
            net = await outer.enter(open_net(session))
            await net.set_up("lo")
            async with Kept() as inner:  # left first: what runs in it
                yield cls(session, net, inner)

    def spawn(
        self, argv_or_workload: Sequence[Argument] | Workload, **options: Unpack[EnterOptions]
    ) -> AbstractAsyncContextManager[Session]:
        """A session in here: ``async with netns.spawn(argv) as s``, see `linx_trio.enter`."""
        return enter(self.session, argv_or_workload, **options)

    async def workload(
        self,
        argv_or_workload: Sequence[Argument] | Workload,
        *,
        ready: readiness.Check | None = None,
        ready_timeout: float = READY_SECONDS,
        on_checkpoint: Checkpoint | None = None,
        **options: Unpack[EnterOptions],
    ) -> Session:
        """Starts a workload in here, which ends with the test: as the fixture ``workload``, see `Workloads`."""
        told = cast("Mapping[str, Any]", options)
        manager = self.spawn(argv_or_workload, **cast("Any", {**told, "auto_proceed": False}))
        return await start(
            self._kept,
            manager,
            runs=runs_by(told),
            ready=ready,
            ready_timeout=ready_timeout,
            on_checkpoint=on_checkpoint,
        )

    async def run(
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
        """Runs a program in here to its end: as `linx_trio.run`."""
        return await run_inside(
            self.session,
            argv_or_workload,
            stdin=stdin,
            capture_stdout=capture_stdout,
            capture_stderr=capture_stderr,
            check=check,
            max_output=max_output,
            **options,
        )


class Requirements:
    """What the tests of a run require, tried once, when the first of them is about to start."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = list(dict.fromkeys(names))
        self._tried: dict[str, Feature] = {}

    def reason_against(self, required: Iterable[str]) -> str | None:
        """Why one of them does not work here, or `None`. Raises `ValueError` for a name that is none."""
        missing = [name for name in required if name not in self._tried]
        if missing:
            try:
                self._tried.update(probe(*self._names))
            except ValueError:  # somebody else's mistake need not be this test's
                self._tried.update(probe(*missing))
        for name in required:
            if not self._tried[name]:
                return str(self._tried[name])
        return None


def check_trio() -> None:
    """Raises `RuntimeError` where an async fixture is not run by trio, but by asyncio."""
    if not trio.lowlevel.in_trio_run():
        raise RuntimeError(
            "this fixture of linx-trio needs trio: mark the test with pytest.mark.trio (pytest-trio), or have the "
            "fixture anyio_backend return 'trio' (anyio). In any other test there are workload_module and "
            "workload_session"
        )
