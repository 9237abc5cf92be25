"""pyroute2's messages as `Link`, `Address`, `Route` and so on. Each raises `OSError` (EBADMSG) for what makes no
sense."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from typing import Any

from linx_trio import _netlink_messages as nl
from linx_trio._net_checks import Address as IPAddress
from linx_trio._net_checks import Network
from linx_trio._net_objects import Address, Change, Link, LinkStats, Neighbour, NextHop, Qdisc, Route, Rule, Thing

INET, INET6 = 2, 10
UP = 0x1
ROOT, INGRESS = 0xFFFFFFFF, 0xFFFFFFF1

_ETHERNET, _LOOPBACK = 1, 772  # ARPHRD_*: the types whose addresses are MACs
_TENTATIVE, _PERMANENT = 0x40, 0x80

SCOPES = {"universe": 0, "site": 200, "link": 253, "host": 254, "nowhere": 255}
ROUTE_TYPES = {
    "unicast": 1, "local": 2, "broadcast": 3, "anycast": 4, "multicast": 5,
    "blackhole": 6, "unreachable": 7, "prohibit": 8, "throw": 9,
}  # fmt: skip
PROTOCOLS = {"unspec": 0, "redirect": 1, "kernel": 2, "boot": 3, "static": 4, "ra": 9, "dhcp": 16}
RULE_ACTIONS = {"lookup": 1, "goto": 2, "nop": 3, "blackhole": 6, "unreachable": 7, "prohibit": 8}
NEIGHBOUR_STATES = {
    "none": 0, "incomplete": 1, "reachable": 2, "stale": 4, "delay": 8, "probe": 16, "failed": 32, "noarp": 64,
    "permanent": 128,
}  # fmt: skip


def _name(table: dict[str, int], number: int) -> str | int:
    return next((name for name, known in table.items() if known == number), number)


def _address(text: str | None) -> IPAddress | None:
    return None if text is None else ipaddress.ip_address(text)


def link(message: Any, netns: int | None = None) -> Link:
    with nl.malformed("a link"):
        info = message.get_attr("IFLA_LINKINFO")
        has_mac = message["ifi_type"] in (_ETHERNET, _LOOPBACK)
        properties = message.get_attr("IFLA_PROP_LIST")
        return Link(
            name=_text(message.get_attr("IFLA_IFNAME")),
            index=message["index"],
            up=bool(message["flags"] & UP),
            kind=None if info is None else _text_or_none(info.get_attr("IFLA_INFO_KIND")),
            mac=_text_or_none(message.get_attr("IFLA_ADDRESS")) if has_mac else None,
            mtu=_number(message, "IFLA_MTU") or 0,
            state=(_text_or_none(message.get_attr("IFLA_OPERSTATE")) or "unknown").lower(),
            master=_number(message, "IFLA_MASTER"),
            parent=_number(message, "IFLA_LINK"),
            parent_elsewhere=message.get_attr("IFLA_LINK_NETNSID") is not None,
            altnames=() if properties is None else tuple(map(_text, properties.get_attrs("IFLA_ALT_IFNAME"))),
            netns=netns,
        )


def _number(message: Any, name: str) -> int | None:
    """Of a value that is cut off pyroute2 leaves the bytes."""
    value = message.get_attr(name)
    if value is not None and not isinstance(value, int):
        raise ValueError(f"{name} is {value!r}")
    return value


def _text(value: Any) -> str:
    """Names are bytes to the kernel; those that are no UTF-8 pyroute2 leaves so."""
    if not isinstance(value, (str, bytes)) or not value:
        raise ValueError(f"a name that is {value!r}")
    return os.fsdecode(value)


def _text_or_none(value: Any) -> str | None:
    return None if value is None else _text(value)


def stats(message: Any) -> LinkStats:
    with nl.malformed("a link's statistics"):
        found = message.get_attr("IFLA_STATS64")
        return LinkStats(**{name: found[name] for name in LinkStats.__dataclass_fields__})


def address(message: Any) -> Address:
    with nl.malformed("an address"):
        local, other = message.get_attr("IFA_LOCAL"), message.get_attr("IFA_ADDRESS")
        flags = _number(message, "IFA_FLAGS") or message["flags"]
        return Address(
            interface=ipaddress.ip_interface(f"{local or other}/{message['prefixlen']}"),
            link=message["index"],
            scope=_name(SCOPES, message["scope"]),
            broadcast=_address(message.get_attr("IFA_BROADCAST")),
            peer=_address(other) if local is not None and other != local else None,
            tentative=bool(flags & _TENTATIVE),
            permanent=bool(flags & _PERMANENT),
        )


def _network(family: int, text: str | None, length: int) -> Network:
    return ipaddress.ip_network(f"{text or ('::' if family == INET6 else '0.0.0.0')}/{length}")


def _gateway(message: Any) -> IPAddress | None:
    via = message.get_attr("RTA_VIA")  # an IPv6 gateway of an IPv4 route
    return _address(message.get_attr("RTA_GATEWAY") if via is None else via["addr"])


def route(message: Any) -> Route:
    with nl.malformed("a route"):
        return Route(
            destination=_network(message["family"], message.get_attr("RTA_DST"), message["dst_len"]),
            gateway=_gateway(message),
            link=_number(message, "RTA_OIF"),
            source=_address(message.get_attr("RTA_PREFSRC")),
            metric=_number(message, "RTA_PRIORITY") or 0,
            table=_number(message, "RTA_TABLE") or message["table"],
            type=_name(ROUTE_TYPES, message["type"]),
            scope=_name(SCOPES, message["scope"]),
            protocol=_name(PROTOCOLS, message["proto"]),
            hops=tuple(
                NextHop(_gateway(hop), hop["oif"] or None, hop["hops"] + 1)
                for hop in message.get_attr("RTA_MULTIPATH") or ()
            ),
        )


def neighbour(message: Any) -> Neighbour:
    with nl.malformed("a neighbour"):
        found = _text_or_none(message.get_attr("NDA_LLADDR"))
        return Neighbour(
            address=ipaddress.ip_address(message.get_attr("NDA_DST")),
            link=message["ifindex"],
            mac=found if found is not None and len(found) == 17 else None,
            state=str(_name(NEIGHBOUR_STATES, message["state"])),
        )


def rule(message: Any) -> Rule:
    with nl.malformed("a rule"):
        family, action = message["family"], _name(RULE_ACTIONS, message["action"])
        source, destination = message.get_attr("FRA_SRC"), message.get_attr("FRA_DST")
        return Rule(
            priority=_number(message, "FRA_PRIORITY") or 0,
            action=action,
            table=(_number(message, "FRA_TABLE") or message["table"]) if action == "lookup" else None,
            family=6 if family == INET6 else 4,
            source=None if source is None else _network(family, source, message["src_len"]),
            destination=None if destination is None else _network(family, destination, message["dst_len"]),
            iif=_text_or_none(message.get_attr("FRA_IIFNAME")),
            oif=_text_or_none(message.get_attr("FRA_OIFNAME")),
            fwmark=_number(message, "FRA_FWMARK"),
        )


def handle_text(handle: int) -> str:
    """As tc writes it."""
    if handle == ROOT:
        return "root"
    if handle == INGRESS:
        return "ingress"
    minor = f"{handle & 0xFFFF:x}" if handle & 0xFFFF else ""
    return f"{handle >> 16:x}:{minor}"


def qdisc(message: Any) -> Qdisc:
    with nl.malformed("a queueing discipline"):
        return Qdisc(
            kind=_text(message.get_attr("TCA_KIND")),
            link=message["index"],
            handle=handle_text(message["handle"]),
            parent=handle_text(message["parent"]),
        )


_READERS: dict[int, tuple[bool, Callable[[Any], Thing]]] = {
    nl.NEWADDR: (True, address),
    nl.DELADDR: (False, address),
    nl.NEWROUTE: (True, route),
    nl.DELROUTE: (False, route),
    nl.NEWNEIGH: (True, neighbour),
    nl.DELNEIGH: (False, neighbour),
    nl.NEWRULE: (True, rule),
    nl.DELRULE: (False, rule),
    nl.NEWQDISC: (True, qdisc),
    nl.DELQDISC: (False, qdisc),
}


def change(type: int, message: Any, netns: int | None) -> Change | None:
    """What a notification of that type says; `None` if it is about none of our things."""
    if type in (nl.NEWLINK, nl.DELLINK):
        if message["family"]:
            return None  # a bridge about its port (AF_BRIDGE), which is told as a link, too
        return Change("new" if type == nl.NEWLINK else "deleted", link(message, netns), message)
    if type not in _READERS:
        return None
    is_new, read = _READERS[type]
    if type in (nl.NEWNEIGH, nl.DELNEIGH) and message["family"] not in (INET, INET6):
        return None  # a bridge's forwarding table
    return Change("new" if is_new else "deleted", read(message), message)
