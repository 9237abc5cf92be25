"""What a lab is declared to consist of. All of it is checked here, before any system call."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from linx_trio import _lab_plan as plan
from linx_trio import _net_checks as check
from linx_trio import _net_kinds as kinds
from linx_trio._checks import CHECKS
from linx_trio._lab_links import LabLink
from linx_trio._lab_nodes import Host, Node, Switch, entering
from linx_trio._lab_site import FRESH, LEFT
from linx_trio._mount_steps import Entry
from linx_trio._net_checks import AddressLike, Interface
from linx_trio._workload import Workload

if TYPE_CHECKING:
    from typing import Unpack

    from linx_trio._lab import Lab
    from linx_trio._options import Argument, ProgramOptions

N = TypeVar("N", bound=Node)
AddressesLike: TypeAlias = "str | Interface | Iterable[str | Interface]"


class Declaring:
    """Mixed into `Lab`."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._links: list[LabLink] = []
        self._todo: list[Node | LabLink] = []
        self._names = plan.Names()
        self._is_left = False

    def __repr__(self) -> str:
        return f"<linx_trio.net.Lab of {', '.join(self._nodes) or 'nothing yet'}>"

    def host(
        self,
        name: str,
        argv: Sequence[Argument] | Workload | None = None,
        *,
        gateway: AddressLike | Iterable[AddressLike] | None = None,
        routes: Mapping[str, str] | None = None,
        nft: str | bytes | None = None,
        sysctls: Mapping[str, str | int] | None = None,
        mounts: Iterable[Entry] = (),
        **options: Unpack[ProgramOptions],
    ) -> Host:
        """Declares a host.

        Args:
            name: in the lab; it is its host name, and the others find it by that.
            argv: a program that it runs from when all is wired until the lab is left. `None`: nothing, but for what
                `Host.run` and `Host.spawn` start.
            gateway: its default route; or two of them, for IPv4 and IPv6.
            routes: others: ``{"10.2.0.0/16": "10.0.0.3"}``.
            nft: a ruleset, as for `Host.nft`, loaded when the links are there and before any program starts.
            sysctls: of its network, ``{"net.ipv4.icmp_echo_ignore_all": 1}``.
            mounts: entries of `linx_trio.mount`, in mounts of its own.
            options: of that program, as for `Host.spawn`.

        Raises `TypeError`, `ValueError`; `RuntimeError`, the lab has been left.
        """
        return self._host(name, argv, gateway, routes, nft, _sysctls(sysctls), mounts, options)

    def router(
        self,
        name: str,
        argv: Sequence[Argument] | Workload | None = None,
        *,
        gateway: AddressLike | Iterable[AddressLike] | None = None,
        routes: Mapping[str, str] | None = None,
        nft: str | bytes | None = None,
        sysctls: Mapping[str, str | int] | None = None,
        mounts: Iterable[Entry] = (),
        **options: Unpack[ProgramOptions],
    ) -> Host:
        """Declares a host that forwards what is not for itself: IPv4, and IPv6 where the machine has it. Else as
        `host`.
        """
        return self._host(name, argv, gateway, routes, nft, _sysctls(sysctls, _FORWARDING), mounts, options)

    def _host(
        self,
        name: Any,
        argv: Any,
        gateway: Any,
        routes: Any,
        nft: Any,
        sysctls: Mapping[str, Any],
        mounts: Any,
        options: Mapping[str, Any],
    ) -> Host:
        name = plan.host_name(name, self._nodes)
        kept = Workload(["/"], namespaces=FRESH, sysctls=sysctls, mounts=mounts)
        program = None
        if argv is not None:
            program = entering(argv, options)
        elif options:
            raise ValueError(f"{', '.join(options)}: for a program of the host's own, and there is no argv")
        ways = plan.routes(routes, gateway)
        ruleset = None if nft is None else plan.ruleset(nft)
        entries = cast("tuple[Entry, ...]", kept.mounts)
        return self._declare(Host(cast("Lab", self), name, program, ways, ruleset, kept.sysctls, entries))

    def switch(self, name: str, *, mac: str | None = None, mtu: int | None = None, **attributes: Any) -> Switch:
        """Declares a switch: a bridge of that name, which all its ports reach each other through.

        Args:
            mac: its own address; `None`: the kernel chooses.
            mtu: in bytes; `None`: the smallest of its ports.
            attributes: as for `Net.create_bridge`: ``stp_state=1``, ``vlan_filtering=True``.

        Raises as `host`.
        """
        name = self._names.pick(plan.switch_name(name, self._nodes), "name", "")
        kinds.info("bridge", attributes)
        given = {"mac": None if mac is None else check.mac(mac), "mtu": _mtu(mtu)}
        switch = self._declare(Switch(cast("Lab", self), name, {**given, **attributes}))
        self._names.take(name)
        return switch

    def link(
        self,
        a: Node,
        b: Node,
        *,
        address: AddressesLike | None = None,
        peer_address: AddressesLike | None = None,
        name: str | None = None,
        peer_name: str | None = None,
        mac: str | None = None,
        peer_mac: str | None = None,
        mtu: int | None = None,
        delay: float | str | None = None,
        jitter: float | str | None = None,
        loss: float | str | None = None,
        rate: float | str | None = None,
    ) -> LabLink:
        """Declares a link between two nodes, a pair as of ``veth(4)``.

        Args:
            a, b: hosts, routers or switches of this lab.
            address, peer_address: of the end at `a`, at `b`: ``"10.0.0.1/24"``, or several. A switch has none.
            name, peer_name: what the ends are called there; `None`: ``eth0``, ``eth1``, … at a host, ``s1-eth0`` at a
                switch.
            mac, peer_mac: `None`: random ones.
            mtu: of both ends, in bytes; `None`: 1500.
            delay: of what is sent, in each direction: seconds, or ``"10ms"``.
            jitter: what that varies by.
            loss: in each direction, in percent, or ``"0.5%"``.
            rate: in each direction, in bits per second, or ``"10mbit"``.

        Raises as `host`. The kernel may lack what delays and loses (netem): then making it is an `OSError`, EOPNOTSUPP.
        """
        shape = plan.Shape.of(delay, jitter, loss, rate)
        near = self._end(a, "a", address, "address", mac, "mac")
        far = self._end(b, "b", peer_address, "peer_address", peer_mac, "peer_mac")
        if a is b:
            raise ValueError(f"a link needs two nodes, and both are {a!r}")
        near.name = _names_at(a).pick(name, "name", _prefix(a))
        besides = near.name if _names_at(a) is _names_at(b) else None
        far.name = _names_at(b).pick(peer_name, "peer_name", _prefix(b), besides)
        link = LabLink(cast("Lab", self), (near, far), _mtu(mtu), shape)
        self._to_do(link)
        _names_at(a).take(near.name)
        _names_at(b).take(far.name)
        self._links.append(link)
        return link

    def _end(self, node: Any, which: str, addresses: Any, argument: str, mac: Any, mac_argument: str) -> plan.End:
        if not isinstance(node, Node) or node.lab is not self:
            raise ValueError(f"{which}={node!r} is no node of this lab")
        found = plan.addresses(addresses, argument)
        if found and isinstance(node, Switch):
            raise ValueError(f"{argument}={', '.join(found)}: {node!r} is a switch, which has no address")
        return plan.End(node, "", found, None if mac is None else check.mac(mac, mac_argument))

    def _declare(self, node: N) -> N:
        self._to_do(node)
        self._nodes[node.name] = node
        return node

    def _to_do(self, part: Node | LabLink) -> None:
        if self._is_left:
            raise RuntimeError(LEFT)
        self._todo.append(part)

    # ---- looking --------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Node:
        return self._nodes[name]

    @property
    def hosts(self) -> tuple[Host, ...]:
        """The hosts, routers among them, as they were declared."""
        return tuple(node for node in self._nodes.values() if isinstance(node, Host))

    @property
    def switches(self) -> tuple[Switch, ...]:
        """The switches."""
        return tuple(node for node in self._nodes.values() if isinstance(node, Switch))

    @property
    def links(self) -> tuple[LabLink, ...]:
        """The links."""
        return tuple(self._links)


def _mtu(value: Any) -> int | None:
    return None if value is None else check.integer(value, "mtu", 68, 65535)


def _names_at(node: Node) -> plan.Names:
    return node._links if isinstance(node, Host) else node.lab._names


def _prefix(node: Node) -> str:
    return "eth" if isinstance(node, Host) else f"{node.name}-eth"


_FORWARDING: Mapping[str, str | int] = {"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1}
_NO_WAITING: Mapping[str, str | int] = {"net.ipv6.conf.default.accept_dad": 0}
"""Who has which address has been decided: a link need not be searched for others for a second before it is used."""


def _sysctls(asked: Any, more: Mapping[str, str | int] | None = None) -> dict[str, str | int]:
    """Without IPv6 in this kernel there is nothing of it to be set; but what was asked for is asked for, and wins."""
    has_ipv6 = os.path.isdir("/proc/sys/net/ipv6")
    ours = {**_NO_WAITING, **(more or {})}
    ours = {name: value for name, value in ours.items() if has_ipv6 or "ipv6" not in name}
    checked = CHECKS["sysctls"]  # of all spellings it makes one
    return {**checked(ours, "sysctls"), **checked({} if asked is None else asked, "sysctls")}
