"""`Lab`: hosts, switches and routers wired up inside of network namespaces, and gone afterwards.

::

    async with linx.net.Lab() as lab:
        a, b = lab.host("a"), lab.host("b")
        s1 = lab.switch("s1")
        lab.link(a, s1, address="10.0.0.1/24")
        lab.link(b, s1, address="10.0.0.2/24", rate="10mbit")
        await a.run(["ping", "-c", "1", "b"])

What is declared is made by the next thing that needs it, or by `Lab.start`: all hosts at the same time, then all links,
then all routes, and only then do the hosts' own programs start.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType

import trio

from linx_trio._lab_declare import Declaring
from linx_trio._lab_links import LabLink, until
from linx_trio._lab_nodes import Host, Node, Switch
from linx_trio._lab_site import LEFT, Site
from linx_trio._net import Net
from linx_trio._together import at_once, do_all, tell

__all__ = ["Host", "Lab", "LabLink", "Node", "Switch"]

_NOT_OPEN = "the lab is not open: async with linx.net.Lab() as lab"


class Lab(Declaring, AbstractAsyncContextManager["Lab"]):
    """A network of hosts and switches, inside of namespaces: ``async with linx.net.Lab() as lab``.

    It needs no root: without CAP_SYS_ADMIN and CAP_NET_ADMIN it has a user namespace of its own, in which the caller is
    root. Its networks have no link to the machine's, and other labs may use the same names and addresses.

    Leaving the block ends all that runs in it, and with that all its links are gone. That is shielded from cancellation
    and bounded in time; an exception of the body comes out as itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self._site = Site()
        self._is_open = False
        self._lock = trio.Lock()
        self._making: trio.CancelScope | None = None

    # ---- looking --------------------------------------------------------------------------------------------------

    @property
    def net(self) -> Net:
        """The network namespace that the switches are in. `RuntimeError` outside of the block."""
        self._check_open()
        return self._site.net

    @property
    def degraded(self) -> Mapping[str, str]:
        """What the hosts have to do without on this machine, and why: ``"/sys"`` shows the machine's links instead of
        theirs; ``"/etc/hosts"`` does not have their names. Empty where all is well. Known when the block is entered.
        """
        return dict(self._site.degraded)

    def _check_open(self) -> None:
        if not self._is_open:
            raise RuntimeError(LEFT if self._is_left else _NOT_OPEN)

    # ---- making ---------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def start(self) -> None:
        """Makes all that has been declared and is not there yet, and starts the hosts' programs.

        Raises `SetupError`, `OSError`, `CalledProcessError` (of nft) for the first thing that cannot be had, as itself;
        `RuntimeError`, the lab is not open. What has been made by then stays; to start again, or anything that needs
        the lab, goes on with the rest, and so meets the same error again unless its cause is gone. A cancellation is
        no harm to others, who go on in the same way.
        """
        self._check_open()
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._todo and not self._lock.locked():
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        async with self._lock:
            self._check_open()
            with trio.CancelScope() as scope:
                self._making = scope
                await self._make(list(self._todo))
        if scope.cancelled_caught:
            raise RuntimeError(LEFT)

    async def _make(self, parts: list[Node | LabLink]) -> None:
        nodes = [part for part in parts if isinstance(part, (Host, Switch))]
        hosts = [part for part in nodes if isinstance(part, Host)]
        links = [part for part in parts if isinstance(part, LabLink)]
        await at_once(partial(node._make, self._site) for node in nodes)
        self._site.tell_names(end for link in links for end in link._ends)
        await at_once(link._make for link in links)
        await until(end for link in links for end in link.pulled())
        await at_once(host._route for host in hosts)
        await at_once(host._filter for host in hosts)
        await at_once(partial(host._start, self._site) for host in hosts)
        done = set(parts)
        self._todo = [part for part in self._todo if part not in done]  # some may have been declared meanwhile

    # ---- coming and going -----------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Lab:
        if self._is_open or self._is_left or self._lock.locked():
            raise RuntimeError("a lab can be entered once")
        async with self._lock:
            await self._site.open()
        self._is_open = True
        return self

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_open, self._is_left = False, True
        if self._making is not None:
            self._making.cancel()
        troubles: list[BaseException] = []
        interrupts = await do_all([partial(self._close, troubles)])
        tell([*interrupts, *troubles], exc, "when leaving the lab")

    async def _close(self, troubles: list[BaseException]) -> None:
        async with self._lock:  # whoever was making something has stopped
            troubles += await self._site.close()
