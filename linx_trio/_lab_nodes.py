"""The hosts and switches of a lab: what they are asked for, and how each is made.

A lab is made in steps, each of which a cancellation or an error may follow. So each step is either done once and
noted, or does no harm a second time: making goes on where it has been left.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from linx_trio import _lab_plan as plan
from linx_trio._lab_site import Site
from linx_trio._manager import SessionManager
from linx_trio._mount_steps import Entry
from linx_trio._net import Net
from linx_trio._net_links import LinkLike
from linx_trio._run import Completed, run_inside
from linx_trio._session import Session
from linx_trio._target import as_entering, check_joins_all, check_target
from linx_trio._together import Kept
from linx_trio._workload import Workload
from linx_trio.errors import CalledProcessError

if TYPE_CHECKING:
    from typing import Unpack

    from linx_trio._lab import Lab
    from linx_trio._options import Argument, CommonOptions, ProgramOptions

T = TypeVar("T")

NFT_SECONDS = 20.0
"""How long a ruleset may take to load: it can name hosts, which are looked up."""


class Node:
    """A host, router or switch of a lab."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name

    def __repr__(self) -> str:
        return f"<linx_trio.net.{type(self).__name__} {self.name!r}>"


class Switch(Node):
    """A bridge, in the network namespace that is `Lab.net`. Made by `Lab.switch`; do not call."""

    def __init__(self, lab: Lab, name: str, attributes: Mapping[str, Any]) -> None:
        super().__init__(lab, name)
        self._attributes = attributes
        self._link: LinkLike = name

    async def _make(self, site: Site) -> None:
        if self._link is self.name:
            self._link = await site.net.create_bridge(self.name, keep=True, **self._attributes)  # it goes with the lab
        await site.net.set_up(self.name)


def entering(argv_or_workload: Any, options: Any) -> Workload:
    """What is to run on a host, in the host's namespaces. Raises `TypeError`, `ValueError`."""
    check_joins_all(argv_or_workload, options, "what runs on a host is in the host's own")
    return as_entering(argv_or_workload, options, frozenset())


class Host(Node):
    """A host, with network, name and mounts of its own. Made by `Lab.host` or `Lab.router`; do not call."""

    def __init__(
        self,
        lab: Lab,
        name: str,
        program: Workload | None,
        routes: Mapping[str, str],
        nft: bytes | None,
        sysctls: Mapping[str, str | int],
        mounts: Sequence[Entry],
    ) -> None:
        super().__init__(lab, name)
        self._program, self._routes, self._nft = program, routes, nft
        self._sysctls, self._mounts = sysctls, mounts
        self._links = plan.Names()
        self._anchor: Session | None = None
        self._net: Net | None = None
        self._session: Session | None = None

    @property
    def net(self) -> Net:
        """Its network namespace, to be asked and told things. `RuntimeError` before `Lab.start` has made it."""
        return _made(self._net, self)

    @property
    def anchor(self) -> Session:
        """The parked session that holds its namespaces, to be entered. `RuntimeError` before `Lab.start` has made it.

        Whoever kills it has a host on which nothing can be started any more.
        """
        return _made(self._anchor, self)

    @property
    def session(self) -> Session | None:
        """That of its own program, from `Lab.host`; `None` if it has none, or not yet."""
        return self._session

    async def run(
        self,
        argv_or_workload: Sequence[Argument] | Workload,
        *,
        stdin: Any = b"",
        capture_stdout: bool = False,
        capture_stderr: bool = False,
        check: bool = True,
        max_output: int | None = None,
        deliver_cancel: Callable[[Session], Awaitable[object]] | None = None,
        task_status: trio.TaskStatus[Session] = trio.TASK_STATUS_IGNORED,
        **options: Unpack[CommonOptions],
    ) -> Completed:
        """`linx_trio.run` on this host: arguments, result, errors and cancellation are the same.

        What has been declared in the lab is made first, see `Lab.start`. It is killed if the lab is left meanwhile.
        """
        entering(argv_or_workload, options)
        await self.lab.start()
        return await run_inside(
            self.anchor,
            argv_or_workload,
            stdin=stdin,
            capture_stdout=capture_stdout,
            capture_stderr=capture_stderr,
            check=check,
            max_output=max_output,
            deliver_cancel=deliver_cancel,
            task_status=task_status,
            among=self.lab._site.guests,
            **options,
        )

    def spawn(
        self, argv_or_workload: Sequence[Argument] | Workload, **options: Unpack[ProgramOptions]
    ) -> AbstractAsyncContextManager[Session]:
        """`linx_trio.spawn` on this host: ``async with host.spawn([…]) as s``. It is parked at its checkpoint, and
        lives and dies with its own block; or with the lab, if that is left first.

        Entering makes what has been declared in the lab before. Raises `TypeError` and `ValueError` at once.
        """
        return _Guest(self, entering(argv_or_workload, options))

    async def nft(self, ruleset: str | bytes) -> None:
        """Loads a ruleset by ``nft(8)``, which has to be installed: ``"table inet t { … }"``. All of it, or nothing.

        Raises `FileNotFoundError`: there is no nft. `CalledProcessError`: it refuses the ruleset, and ``stderr`` says
        why. Cancelled, it may be loaded all the same.
        """
        data = plan.ruleset(ruleset)
        await self.lab.start()
        await self._load(data)

    # ---- making ---------------------------------------------------------------------------------------------------

    async def _make(self, site: Site) -> None:
        if self._net is None:
            self._anchor, self._net = await site.add_host(self.name, self._sysctls, self._mounts)

    async def _route(self) -> None:
        with _hint(f"a gateway has to be in the network of an address of {self.name!r}"):
            for network, gateway in self._routes.items():
                await self.net.add_route(network, gateway, replace=True)

    async def _route_again(self) -> None:
        """After a link has come back. What leads over another link that is down comes back with that."""
        for network, gateway in self._routes.items():
            with suppress(OSError):
                await self.net.add_route(network, gateway, replace=True)

    async def _filter(self) -> None:
        if self._nft is not None:
            with trio.fail_after(NFT_SECONDS, shield=True):  # a second time its rules would be there twice
                await self._load(self._nft)
            self._nft = None

    async def _load(self, ruleset: bytes) -> None:
        try:
            await run_inside(
                self.anchor,
                ["nft", "-f", "-"],
                stdin=ruleset,
                capture_stderr=True,
                env={**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"},
                among=self.lab._site.guests,
            )
        except FileNotFoundError as exc:
            exc.add_note("hint: rulesets are loaded by nft(8): install nftables")
            raise
        except CalledProcessError as exc:
            exc.add_note(f"nft on {self.name!r}: {(exc.stderr or b'').decode(errors='replace').strip()}")
            raise

    @trio.lowlevel.enable_ki_protection
    async def _start(self, site: Site) -> None:
        if self._program is not None and self._session is None:
            target = check_target(self.anchor, None, True)
            async with Kept() as kept:
                session = await kept.enter(SessionManager(self._program, wait_ready=True, target=target))
                await session.proceed()
                site.programs.take(kept)
            self._session = session


class _Guest(AbstractAsyncContextManager[Session]):
    """What `Host.spawn` returns: ``async with`` it, once."""

    def __init__(self, host: Host, workload: Workload) -> None:
        self._host = host
        self._workload = workload
        self._manager: SessionManager | None = None

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Session:
        if self._manager is not None:
            raise RuntimeError("a session can be entered once; call Host.spawn() again")
        lab = self._host.lab
        await lab.start()
        target = check_target(self._host.anchor, None, True)
        self._manager = SessionManager(self._workload, wait_ready=True, target=target, among=lab._site.guests)
        return await self._manager.__aenter__()

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._manager is not None
        await self._manager.__aexit__(kind, exc, traceback)


def _made(what: T | None, node: Node) -> T:
    if what is None:
        raise RuntimeError(f"{node!r} has not been made yet: await lab.start()")
    return what


@contextmanager
def _hint(text: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            exc.add_note(f"hint: {text}")
        raise
