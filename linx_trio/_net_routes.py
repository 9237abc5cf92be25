"""The verbs about addresses, routes, neighbours and rules, for IPv4 and IPv6."""

from __future__ import annotations

from typing import Any

from linx_trio import _net_checks as check
from linx_trio import _net_read as read
from linx_trio import _netlink_frames as f
from linx_trio import _netlink_messages as nl
from linx_trio._net_base import NEW, Asking, shown
from linx_trio._net_checks import AddressLike, NetworkLike
from linx_trio._net_links import LinkLike
from linx_trio._net_objects import Address, Neighbour, Route, Rule

MAIN = 254
TABLES = {"default": 253, "main": MAIN, "local": 255}

_NODAD, _NOPREFIXROUTE = 0x02, 0x200
_ONLINK = 0x4
_DEAD_ENDS = frozenset({"blackhole", "unreachable", "prohibit", "throw"})


def _family(thing: Any) -> int:
    return read.INET6 if thing.version == 6 else read.INET


def _versions(family: Any) -> tuple[int, ...]:
    known: dict[Any, tuple[int, ...]] = {None: (read.INET, read.INET6), 4: (read.INET,), 6: (read.INET6,)}
    if family not in known:
        raise ValueError(f"family={family!r} must be 4, 6 or None")
    return known[family]


def _table(value: Any) -> int:
    return check.name_or_number(value, "table", TABLES, 2**32 - 1)


class Routes(Asking):
    """Mixed into `Net`."""

    # ---- addresses ------------------------------------------------------------------------------------------------

    async def add_address(
        self,
        link: LinkLike,
        address: AddressLike,
        prefixlen: int | None = None,
        *,
        broadcast: AddressLike | None = None,
        peer: AddressLike | None = None,
        scope: str | int | None = None,
        nodad: bool = False,
        noprefixroute: bool = False,
    ) -> None:
        """Gives a link an address.

        Args:
            address: ``"10.0.0.5"`` with `prefixlen`, or ``"10.0.0.5/24"``, or of `ipaddress`.
            prefixlen: how many bits of it are the network's; `None`: all, unless the address says it.
            broadcast: for IPv4; `None`: none.
            peer: the other end of a point-to-point link.
            scope: ``"universe"``, ``"link"``, ``"host"``, …; `None`: what fits the address.
            nodad: IPv6: it can be used at once; nobody is asked whether they have it too.
            noprefixroute: without a route to its network.

        Raises `OSError`: EEXIST, the link has it already.
        """
        fields, attributes = self._address(address, prefixlen, peer)
        if broadcast is not None:
            attributes.append(("IFA_BROADCAST", str(check.address(broadcast, "broadcast"))))
        flags = _NODAD * check.truth(nodad, "nodad") | _NOPREFIXROUTE * check.truth(noprefixroute, "noprefixroute")
        if flags:
            attributes.append(("IFA_FLAGS", flags))
        if scope is not None:
            fields["scope"] = check.name_or_number(scope, "scope", read.SCOPES, 255)
        elif check.interface(address, prefixlen).ip.is_loopback:
            fields["scope"] = read.SCOPES["host"]
        self._reference(link)
        fields["index"] = await self._index(link)
        await self._ask(nl.NEWADDR, fields, attributes, flags=NEW, thing=f"{address} on {shown(link)}")

    async def del_address(
        self,
        link: LinkLike,
        address: AddressLike,
        prefixlen: int | None = None,
        *,
        peer: AddressLike | None = None,
    ) -> None:
        """Takes it away again. Raises `OSError`: EADDRNOTAVAIL, the link does not have it."""
        fields, attributes = self._address(address, prefixlen, peer)
        self._reference(link)
        fields["index"] = await self._index(link)
        await self._ask(nl.DELADDR, fields, attributes, thing=f"{address} on {shown(link)}")

    def _address(self, address: Any, prefixlen: Any, peer: Any) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
        found = check.interface(address, prefixlen)
        other = found.ip if peer is None else check.address(peer, "peer")
        check.same_family(found, other, "address and peer")
        attributes = [("IFA_LOCAL", str(found.ip)), ("IFA_ADDRESS", str(other))]
        return {"family": _family(found), "prefixlen": found.network.prefixlen}, attributes

    async def addresses(self, link: LinkLike | None = None, *, family: int | None = None) -> tuple[Address, ...]:
        """The addresses of a link, or of all; `family` 4 or 6, or both."""
        versions = _versions(family)
        index = 0 if link is None else await self._index(link)
        found = []
        for version in versions:
            messages = await self._dump(nl.GETADDR, {"family": version, "index": index})
            found += [read.address(message) for message in messages]
        return tuple(item for item in found if not index or item.link == index)

    # ---- routes ---------------------------------------------------------------------------------------------------

    async def add_default_route(
        self,
        gateway: AddressLike | None = None,
        *,
        link: LinkLike | None = None,
        source: AddressLike | None = None,
        metric: int | None = None,
        table: str | int = MAIN,
        onlink: bool = False,
        replace: bool = False,
    ) -> None:
        """The route for whatever has no other. Without `gateway`, everything is on the link. Else as `add_route`."""
        if gateway is None and link is None:
            raise ValueError("a default route needs a gateway, or link=")
        given = gateway if gateway is not None else source
        version = 4 if given is None else check.address(given, "gateway" if gateway is not None else "source").version
        await self.add_route(
            "::/0" if version == 6 else "0.0.0.0/0",
            gateway,
            link=link,
            source=source,
            metric=metric,
            table=table,
            onlink=onlink,
            replace=replace,
        )

    async def add_route(
        self,
        destination: NetworkLike,
        gateway: AddressLike | None = None,
        *,
        link: LinkLike | None = None,
        source: AddressLike | None = None,
        metric: int | None = None,
        table: str | int = MAIN,
        type: str = "unicast",
        scope: str | int | None = None,
        mtu: int | None = None,
        onlink: bool = False,
        replace: bool = False,
    ) -> None:
        """Adds a route.

        Args:
            destination: ``"10.1.0.0/16"``, an address, or of `ipaddress`.
            gateway: who takes it from here. An IPv4 destination may have an IPv6 gateway.
            link: by which it leaves; `None`: the one that the gateway is on.
            source: the address that packets are sent from.
            metric: the lower the better; `None`: 0 (for IPv6 1024).
            table: ``"main" "local" "default"`` or a number.
            type: ``"unicast"``, or a dead end: ``"blackhole" "unreachable" "prohibit" "throw"``; ``"local"``, …
            scope: ``"universe" "link" "host"``, …; `None`: what fits.
            mtu: for this route, in bytes.
            onlink: the gateway is on that link, whatever its addresses say.
            replace: in place of one that is there already.

        Raises `OSError`: EEXIST; ENETUNREACH, nobody knows a way to the gateway.
        """
        check.one_of(type, "type", read.ROUTE_TYPES)
        fields, attributes = self._route(destination, gateway, source, metric, table, type, scope)
        if gateway is None and link is None and type not in _DEAD_ENDS:
            raise ValueError(f"a route of type {type!r} needs a gateway, or link=")
        if check.truth(onlink, "onlink"):
            fields["flags"] = _ONLINK
        if mtu is not None:
            attributes.append(("RTA_METRICS", {"attrs": [("RTAX_MTU", check.integer(mtu, "mtu", 1, 2**31 - 1))]}))
        fields["proto"] = read.PROTOCOLS["boot"]
        flags = f.CREATE | f.REPLACE if check.truth(replace, "replace") else NEW
        if link is not None:
            attributes.append(("RTA_OIF", await self._index(link)))
        await self._ask(nl.NEWROUTE, fields, attributes, flags=flags, thing=f"route to {destination}")

    async def del_route(
        self,
        destination: NetworkLike,
        gateway: AddressLike | None = None,
        *,
        link: LinkLike | None = None,
        metric: int | None = None,
        table: str | int = MAIN,
    ) -> None:
        """Deletes the first route that is like that. Raises `OSError`: ESRCH, there is none."""
        fields, attributes = self._route(destination, gateway, None, metric, table, None, "nowhere")
        if link is not None:
            attributes.append(("RTA_OIF", await self._index(link)))
        await self._ask(nl.DELROUTE, fields, attributes, thing=f"route to {destination}")

    def _route(
        self,
        destination: Any,
        gateway: Any,
        source: Any,
        metric: Any,
        table: Any,
        type: str | None,
        scope: Any,
    ) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
        network = check.network(destination)
        number = _table(table)
        attributes: list[tuple[str, Any]] = [("RTA_TABLE", number)]
        if network.prefixlen:
            attributes.append(("RTA_DST", str(network.network_address)))
        if gateway is not None:
            attributes.append(self._gateway(network, check.address(gateway, "gateway")))
        if source is not None:
            found = check.address(source, "source")
            check.same_family(network, found, "destination and source")
            attributes.append(("RTA_PREFSRC", str(found)))
        if metric is not None:
            attributes.append(("RTA_PRIORITY", check.integer(metric, "metric", 0, 2**32 - 1)))
        if scope is None:
            direct = gateway is None and type == "unicast" and network.version == 4
            scope = "host" if type == "local" else "link" if direct else "universe"
        return {
            "family": _family(network),
            "dst_len": network.prefixlen,
            "table": number if number < 256 else 252,
            "type": 0 if type is None else read.ROUTE_TYPES[type],
            "scope": check.name_or_number(scope, "scope", read.SCOPES, 255),
        }, attributes

    @staticmethod
    def _gateway(network: Any, gateway: Any) -> tuple[str, Any]:
        if network.version == gateway.version:
            return ("RTA_GATEWAY", str(gateway))
        if network.version == 6:
            check.same_family(network, gateway, "destination and gateway")
        return ("RTA_VIA", {"family": read.INET6, "addr": str(gateway)})

    async def routes(self, *, table: str | int | None = MAIN, family: int | None = None) -> tuple[Route, ...]:
        """The routes of a table, or with `None` of all; `family` 4 or 6, or both."""
        versions = _versions(family)
        number = None if table is None else _table(table)
        found = []
        for version in versions:
            messages = await self._dump(nl.GETROUTE, {"family": version})
            found += [read.route(message) for message in messages if message["family"] == version]
        return tuple(route for route in found if number in (None, route.table))

    # ---- neighbours -----------------------------------------------------------------------------------------------

    async def add_neighbour(
        self,
        link: LinkLike,
        address: AddressLike,
        mac: str,
        *,
        state: str = "permanent",
        replace: bool = False,
    ) -> None:
        """Says who has an address on a link, instead of asking for it by ARP or NDP."""
        found = check.address(address)
        number = read.NEIGHBOUR_STATES[check.one_of(state, "state", read.NEIGHBOUR_STATES)]
        attributes = [("NDA_DST", str(found)), ("NDA_LLADDR", check.mac(mac))]
        flags = f.CREATE | f.REPLACE if check.truth(replace, "replace") else NEW
        fields = {"family": _family(found), "ifindex": await self._index(link), "state": number}
        await self._ask(nl.NEWNEIGH, fields, attributes, flags=flags, thing=f"{found} on {shown(link)}")

    async def del_neighbour(self, link: LinkLike, address: AddressLike) -> None:
        """Raises `OSError`: ENOENT, there is none."""
        found = check.address(address)
        fields = {"family": _family(found), "ifindex": await self._index(link)}
        await self._ask(nl.DELNEIGH, fields, [("NDA_DST", str(found))], thing=f"{found} on {shown(link)}")

    async def neighbours(self, link: LinkLike | None = None, *, family: int | None = None) -> tuple[Neighbour, ...]:
        """Those of a link, or of all; `family` 4 or 6, or both."""
        versions = _versions(family)
        index = None if link is None else await self._index(link)
        found = []
        for version in versions:
            messages = await self._dump(nl.GETNEIGH, {"family": version})
            found += [read.neighbour(message) for message in messages]
        return tuple(item for item in found if index in (None, item.link))

    # ---- rules ----------------------------------------------------------------------------------------------------

    async def add_rule(
        self,
        *,
        table: str | int | None = None,
        priority: int | None = None,
        source: NetworkLike | None = None,
        destination: NetworkLike | None = None,
        iif: str | None = None,
        oif: str | None = None,
        fwmark: int | None = None,
        action: str = "lookup",
        family: int | None = None,
    ) -> None:
        """Says which packets look into which routing table (``ip-rule(8)``).

        Args:
            table: where they look: ``"main" "local" "default"`` or a number.
            priority: the rules are gone through in this order; `None`: before all but the first.
            source, destination: packets from there, to there.
            iif, oif: that come in by, go out by the link of that name, which need not exist.
            fwmark: that are marked so (``nft(8)``).
            action: ``"lookup"``, or a dead end: ``"blackhole" "unreachable" "prohibit"``.
            family: 4 or 6; `None`: that of `source` or `destination`, else 4.
        """
        fields, attributes = self._rule(table, priority, source, destination, iif, oif, fwmark, action, family)
        await self._ask(nl.NEWRULE, fields, attributes, flags=NEW, thing="rule")

    async def del_rule(
        self,
        *,
        table: str | int | None = None,
        priority: int | None = None,
        source: NetworkLike | None = None,
        destination: NetworkLike | None = None,
        iif: str | None = None,
        oif: str | None = None,
        fwmark: int | None = None,
        action: str = "lookup",
        family: int | None = None,
    ) -> None:
        """Deletes the first rule that is like that. Raises `OSError`: ENOENT, there is none."""
        if (table, priority, source, destination, iif, oif, fwmark) == (None,) * 7:
            raise ValueError("del_rule needs something to know the rule by, such as priority=")
        fields, attributes = self._rule(table, priority, source, destination, iif, oif, fwmark, action, family, True)
        await self._ask(nl.DELRULE, fields, attributes, thing="rule")

    @staticmethod
    def _rule(
        table: Any,
        priority: Any,
        source: Any,
        destination: Any,
        iif: Any,
        oif: Any,
        fwmark: Any,
        action: Any,
        family: Any,
        is_pattern: bool = False,
    ) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
        number = read.RULE_ACTIONS[check.one_of(action, "action", set(read.RULE_ACTIONS) - {"goto"})]
        if (table is None) == (action == "lookup") and not is_pattern:
            raise ValueError(f"action={action!r} with table={table!r}: 'lookup' has a table, and nothing else has")
        fields = {"action": number}
        attributes: list[tuple[str, Any]] = []
        start = None if source is None else check.network(source, "source")
        end = None if destination is None else check.network(destination, "destination")
        check.same_family(start, end, "source and destination")
        ends = (start, end)
        for network, name in zip(ends, ("src", "dst"), strict=True):
            if network is not None:
                attributes.append((f"FRA_{name.upper()}", str(network.network_address)))
                fields[f"{name}_len"] = network.prefixlen
        known = next((_family(network) for network in ends if network is not None), None)
        fields["family"] = _versions(family)[0] if family is not None else known or read.INET
        if known not in (None, fields["family"]):
            raise ValueError(f"family={family!r} is not that of source or destination")
        if table is not None:
            attributes.append(("FRA_TABLE", _table(table)))
        for name, value in (("FRA_IIFNAME", iif), ("FRA_OIFNAME", oif)):
            if value is not None:
                attributes.append((name, check.link_name(value, name[4:7].lower())))
        for name, value in (("FRA_PRIORITY", priority), ("FRA_FWMARK", fwmark)):
            if value is not None:
                attributes.append((name, check.integer(value, name[4:].lower(), 0, 2**32 - 1)))
        return fields, attributes

    async def rules(self, *, family: int | None = None) -> tuple[Rule, ...]:
        """All rules, in their order; `family` 4 or 6, or both."""
        found = []
        for version in _versions(family):
            found += [read.rule(message) for message in await self._dump(nl.GETRULE, {"family": version})]
        return tuple(found)
