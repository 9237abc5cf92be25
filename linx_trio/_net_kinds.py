"""Kinds of links, and what can be said about each when it is made (``ip-link(8)``)."""

from __future__ import annotations

import ipaddress
from typing import Any

from linx_trio import _netlink_messages as nl
from linx_trio._net_checks import one_of

MODES: dict[str, dict[str, int]] = {
    "macvlan": {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8, "source": 16},
    "macvtap": {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8, "source": 16},
    "ipvlan": {"l2": 0, "l3": 1, "l3s": 2},
}

TUNTAP = frozenset({"tun", "tap"})
"""Made by /dev/net/tun, not by rtnetlink."""

KINDS = TUNTAP | {
    "bareudp", "batadv", "bond", "bridge", "can", "dummy", "geneve", "gre", "gretap", "gtp", "hsr", "ifb", "ip6gre",
    "ip6gretap", "ip6tnl", "ipip", "ipoib", "ipvlan", "ipvtap", "macsec", "macvlan", "macvtap", "netdevsim", "netkit",
    "nlmon", "sit", "team", "vcan", "veth", "vlan", "vrf", "vti", "vti6", "vxcan", "vxlan", "wireguard", "xfrm",
}  # fmt: skip

_NEEDS_PARENT = frozenset({"ipvlan", "ipvtap", "macsec", "macvlan", "macvtap", "vlan"})


def kind_name(value: Any) -> str:
    return one_of(value, "kind", KINDS)


def check_parent(kind: str, parent: Any) -> None:
    if parent is None and kind in _NEEDS_PARENT:
        raise ValueError(f"kind {kind!r} is made on another link: say which, with parent=")


def known_attributes(kind: str) -> dict[str, str]:
    """The kernel's name by each name that it may be given by: ``vlan_id`` and ``id`` mean ``IFLA_VLAN_ID``."""
    names = nl.kind_attributes(kind) or []
    known = {name.removeprefix("IFLA_").lower(): name for name in names}
    prefixes = {name.removeprefix("IFLA_").split("_")[0] for name in names}
    if len(prefixes) == 1:
        prefix = f"IFLA_{prefixes.pop()}_"
        known |= {name.removeprefix(prefix).lower(): name for name in names}
    return known


def parent_attribute(kind: str) -> str | None:
    """Tunnels say it in an attribute of their own; `None`: in that which all links have."""
    return known_attributes(kind).get("link")


def info(kind: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """``IFLA_LINKINFO``. Raises `ValueError` for attributes that links of this kind do not have."""
    known = known_attributes(kind)
    data = []
    for name, value in attributes.items():
        if name not in known:
            names = ", ".join(sorted(known)) or "none"
            raise ValueError(f"unknown attribute {name!r} of kind {kind!r}; known are {names}")
        if value is None or (value is False and name in _FLAGS):
            continue
        data.append((_for_family(known[name], value, known), _encodable(kind, name, value)))
    parts: list[tuple[str, Any]] = [("IFLA_INFO_KIND", kind)]
    if data:
        parts.append(("IFLA_INFO_DATA", {"attrs": data}))
    return {"attrs": parts}


_FLAGS = frozenset({"collect_metadata", "gbp", "gpe", "remcsum_nopartial", "ttl_inherit"})  # there, or not


def _encodable(kind: str, name: str, value: Any) -> Any:
    if name in ("mode", f"{kind}_mode") and kind in MODES:
        return MODES[kind][one_of(value, "mode", MODES[kind])]
    if isinstance(value, (ipaddress.IPv4Address, ipaddress.IPv6Address)):
        return str(value)
    return int(value) if isinstance(value, bool) else value


def _for_family(name: str, value: Any, known: dict[str, str]) -> str:
    """VXLAN and GENEVE have another attribute for IPv6."""
    if f"{name}6" in known.values() and ":" in str(value):
        return f"{name}6"
    return name
