"""What the kernel tells about networks, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from linx_trio._net_checks import Address as IPAddress
from linx_trio._net_checks import Interface, Network


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface, as it was when it was asked for. Wherever a link is named, its index is what counts.

    Attributes:
        name, index: ``eth0``, 2. An index is unique within its network namespace.
        up: whether it is switched on (IFF_UP), as by `Net.set_up`.
        kind: ``"veth"``, ``"bridge"``, …; `None` for a physical link, and for ``lo``.
        mac: ``"02:00:00:00:00:01"``, or `None` for a link without.
        mtu: in bytes.
        state: ``operstate``: ``"up"``, ``"down"``, ``"lowerlayerdown"``, ``"unknown"``, …
        master: the index of the bridge (bond, VRF) that it is a port of, or `None`.
        parent: the index of the link that it is made on, or of a veth's other end, or `None`.
        parent_elsewhere: `parent` is an index of another network namespace.
        altnames: its alternative names. One that starts with ``linx-`` says that a `Net` owns it.
        netns: a number for the network namespace, unique as long as the machine runs (SO_NETNS_COOKIE), or `None`
            before Linux 5.14.
    """

    name: str
    index: int
    up: bool
    kind: str | None
    mac: str | None
    mtu: int
    state: str = "unknown"
    master: int | None = None
    parent: int | None = None
    parent_elsewhere: bool = False
    altnames: tuple[str, ...] = ()
    netns: int | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class LinkStats:
    """What has gone through a link: packets, bytes, and what went wrong (``struct rtnl_link_stats64``)."""

    rx_packets: int
    tx_packets: int
    rx_bytes: int
    tx_bytes: int
    rx_errors: int
    tx_errors: int
    rx_dropped: int
    tx_dropped: int
    multicast: int
    collisions: int


@dataclass(frozen=True, slots=True)
class Address:
    """An address of a link.

    Attributes:
        interface: address and prefix, of `ipaddress`.
        link: the link's index.
        scope: ``"universe"``, ``"link"``, ``"host"``, … or a number.
        broadcast, peer: or `None`.
        tentative: an IPv6 address that is not used yet, while the link is searched for a duplicate.
        permanent: it has no end.
    """

    interface: Interface
    link: int
    scope: str | int = "universe"
    broadcast: IPAddress | None = None
    peer: IPAddress | None = None
    tentative: bool = False
    permanent: bool = True

    @property
    def address(self) -> IPAddress:
        """Without the prefix."""
        return self.interface.ip

    @property
    def prefixlen(self) -> int:
        return self.interface.network.prefixlen


@dataclass(frozen=True, slots=True)
class NextHop:
    """One of the ways of a route that has several."""

    gateway: IPAddress | None
    link: int | None
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Route:
    """A route. `destination` of a default route is ``0.0.0.0/0`` or ``::/0``.

    Attributes:
        gateway: or `None`, where the destination is on the link itself.
        link: index of the link that it leaves by, or `None`.
        source: the address that packets are sent from, or `None`.
        metric: of several routes the one with the lowest is used.
        table: 254 is ``main``, 255 ``local``.
        type: ``"unicast"``, ``"local"``, ``"blackhole"``, … or a number.
        protocol: who made it: ``"kernel"``, ``"boot"``, ``"static"``, ``"ra"``, … or a number.
        hops: more than one way.
    """

    destination: Network
    gateway: IPAddress | None = None
    link: int | None = None
    source: IPAddress | None = None
    metric: int = 0
    table: int = 254
    type: str | int = "unicast"
    scope: str | int = "universe"
    protocol: str | int = "boot"
    hops: tuple[NextHop, ...] = ()


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Who has an address on a link (ARP, NDP). `state`: ``"reachable"``, ``"permanent"``, ``"failed"``, …"""

    address: IPAddress
    link: int
    mac: str | None
    state: str


@dataclass(frozen=True, slots=True)
class Rule:
    """Which packets look into which routing table (``ip-rule(8)``); `None` matches everything.

    `action` is ``"lookup"`` (then there is a `table`), ``"blackhole"``, ``"unreachable"``, ``"prohibit"``, … or a
    number.
    """

    priority: int
    action: str | int
    table: int | None
    family: Literal[4, 6]
    source: Network | None = None
    destination: Network | None = None
    iif: str | None = None
    oif: str | None = None
    fwmark: int | None = None


@dataclass(frozen=True, slots=True)
class Qdisc:
    """A queueing discipline (``tc(8)``). Handles as tc writes them, ``"1:"``; the root's parent is ``"root"``."""

    kind: str
    link: int
    handle: str
    parent: str


Thing: TypeAlias = "Link | Address | Route | Neighbour | Rule | Qdisc"


@dataclass(frozen=True, slots=True)
class Change:
    """What a `Monitor` tells. The kernel says ``"new"`` of what is made and of what is changed."""

    action: Literal["new", "deleted"]
    thing: Thing
    message: Any = field(repr=False, compare=False)
