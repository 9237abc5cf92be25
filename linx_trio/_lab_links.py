"""The links of a lab, and how each is made: a pair of a ``veth(4)`` with its ends where they belong."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from linx_trio import _lab_plan as plan
from linx_trio._lab_nodes import Host, Node, Switch
from linx_trio._net import Net
from linx_trio._net_links import LinkLike

if TYPE_CHECKING:
    from linx_trio._lab import Lab

_FEW = 3  # more are asked for all at once

CARRIER_SECONDS = 5.0
"""How long a link that has been switched on may take to carry something. It takes milliseconds."""


class LabLink:
    """A link of a lab, a pair as of ``veth(4)``. Made by `Lab.link`; do not call."""

    def __init__(self, lab: Lab, ends: tuple[plan.End, plan.End], mtu: int | None, shape: plan.Shape | None) -> None:
        self.lab = lab
        self._ends, self._mtu, self._shape = ends, mtu, shape
        self._made: tuple[LinkLike, LinkLike] | None = None

    def __repr__(self) -> str:
        near, far = self._ends
        return f"<linx_trio.net.LabLink {near.node.name}:{near.name} - {far.node.name}:{far.name}>"

    @property
    def nodes(self) -> tuple[Node, Node]:
        """What it is between."""
        near, far = self._ends
        return near.node, far.node

    @property
    def names(self) -> tuple[str, str]:
        """What its two ends are called."""
        near, far = self._ends
        return near.name, far.name

    async def set_down(self) -> None:
        """Nothing gets through, as if the cable had been pulled, and both sides can see it.

        A host at a switch keeps its addresses and routes, but has no carrier. Between two hosts both ends are
        switched off; the routes over them are gone until `set_up`.
        """
        await self.lab.start()
        for end in self.pulled():
            await _net_of(end).set_down(end.name)
        await until(self._ends, carrying=False)

    async def set_up(self) -> None:
        """It carries packets again. Between two hosts, their addresses and routes are back as they were declared."""
        await self.lab.start()
        for end in self.pulled():
            await _net_of(end).set_up(end.name)
        for end in self.pulled():
            if isinstance(end.node, Host):
                await _address(end, end.name)
                await end.node._route_again()
        await until(self._ends)

    async def shape(
        self,
        *,
        delay: float | str | None = None,
        jitter: float | str | None = None,
        loss: float | str | None = None,
        rate: float | str | None = None,
    ) -> None:
        """Changes what `Lab.link` was told about these; `None`: not any more. One end after the other.

        Raises as `Lab.link` and `Lab.start`.
        """
        shape = plan.Shape.of(delay, jitter, loss, rate)
        await self.lab.start()
        for end in self._ends:
            await _shape(end, shape)
        self._shape = shape

    # ---- making ---------------------------------------------------------------------------------------------------

    async def _make(self) -> None:
        if self._made is None:
            self._made = await self._wire()
        for end, link in zip(self._ends, self._made, strict=True):
            if isinstance(end.node, Switch):
                await _net_of(end).set_master(link, end.node._link)
            if self._shape is not None:
                await _shape(end, self._shape)
            await _address(end, link)
            await _net_of(end).set_up(end.name)

    async def _wire(self) -> tuple[LinkLike, LinkLike]:
        """The two ends, with their indices: the kernel need not be asked for those again, by name."""
        near, far = self._ends
        here, there = _net_of(near), _net_of(far)
        link = await here.create_veth(
            near.name,
            far.name,
            peer_netns=None if here is there else there,  # it is made there: nothing is ever moved
            mac=near.mac,
            peer_mac=far.mac,
            mtu=self._mtu,
            keep=True,  # it goes with its namespaces
        )
        if link.parent is None:
            return link, far.name
        return link, replace(link, name=far.name, index=link.parent, parent=link.index, netns=None)

    def pulled(self) -> list[plan.End]:
        """The ends that are switched off when it is down. A veth whose other end is off has no carrier."""
        return [end for end in self._ends if isinstance(end.node, Switch)] or list(self._ends)


def _net_of(end: plan.End) -> Net:
    node: Node = end.node
    return node.net if isinstance(node, Host) else node.lab.net


async def until(ends: Iterable[plan.End], *, carrying: bool = True) -> None:
    """Waits for all of them. The kernel takes note of a carrier, come or gone, a bit later (``linkwatch``). Until then
    what is sent is dropped, at the end that was switched on first, and bridges do not use their port.
    """
    wanted: dict[Net, set[str]] = {}
    for end in ends:
        wanted.setdefault(_net_of(end), set()).add(end.name)
    with trio.move_on_after(CARRIER_SECONDS):  # somebody else may switch it too
        for net, names in wanted.items():
            pause = 0.0005
            while names := await _those_who_do(net, names, not carrying):
                pause *= 2
                await trio.sleep(pause)


async def _those_who_do(net: Net, names: set[str], carry: bool) -> set[str]:
    found = await net.links() if len(names) > _FEW else [await net.link(name) for name in names]
    return {link.name for link in found if link.name in names and (link.state == "up") is carry}


async def _address(end: plan.End, link: LinkLike) -> None:
    for address in end.addresses:
        with suppress(FileExistsError):
            # Who has it has been said: nobody on the link need be asked.
            await _net_of(end).add_address(link, address, nodad=":" in address)


async def _shape(end: plan.End, shape: plan.Shape | None) -> None:
    if shape is not None:
        await _net_of(end).add_qdisc(end.name, shape.kind, replace=True, **shape.options)
        return
    with suppress(FileNotFoundError):  # it has none
        await _net_of(end).del_qdisc(end.name)
