"""What the network functions are called with, checked before any system call. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

Address: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"
Interface: TypeAlias = "ipaddress.IPv4Interface | ipaddress.IPv6Interface"
Network: TypeAlias = "ipaddress.IPv4Network | ipaddress.IPv6Network"

AddressLike: TypeAlias = "str | ipaddress.IPv4Address | ipaddress.IPv6Address | Interface"
NetworkLike: TypeAlias = "str | Network | ipaddress.IPv4Address | ipaddress.IPv6Address | Interface"

NAME_BYTES = 15  # IFNAMSIZ, less the NUL
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")


def link_name(value: Any, argument: str = "name") -> str:
    """A name that a link can have (``dev_valid_name`` in the kernel)."""
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be a link's name, a str, not {value!r}")
    try:
        size = len(value.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        raise ValueError(f"{argument}={value!r} cannot be encoded") from None
    if not value or size > NAME_BYTES:
        raise ValueError(f"{argument}={value!r}: a link's name has 1 to {NAME_BYTES} bytes, this one has {size}")
    if value in (".", "..") or any(character in "/:%\0" or character.isspace() for character in value):
        raise ValueError(f"{argument}={value!r}: a link's name has no space, '/', ':' or '%', and is not '.' or '..'")
    return value


def link_reference(value: Any, argument: str = "link") -> str | int:
    """A name, or an index."""
    if isinstance(value, int) and not isinstance(value, bool):
        return integer(value, argument, 1, 2**31 - 1)
    if isinstance(value, str):
        return link_name(value, argument)
    raise TypeError(f"{argument} must be a link's name, its index or a linx.net.Link, not {value!r}")


def integer(value: Any, argument: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{argument} must be an int, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{argument}={value!r} is not within {low}..{high}")
    return int(value)


def truth(value: Any, argument: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{argument} must be True or False, not {value!r}")
    return value


def one_of(value: Any, argument: str, known: Iterable[str]) -> str:
    names = sorted(known)
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be one of {', '.join(names)}, not {value!r}")
    if value not in names:
        raise ValueError(f"unknown {argument} {value!r}; known are {', '.join(names)}")
    return value


def name_or_number(value: Any, argument: str, known: Mapping[str, int], high: int) -> int:
    """A name of the table, or a number beyond it."""
    if isinstance(value, str):
        return known[one_of(value, argument, known)]
    return integer(value, argument, 0, high)


def mac(value: Any, argument: str = "mac") -> str:
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be a str like '02:00:00:00:00:01', not {value!r}")
    if not _MAC.fullmatch(value):
        raise ValueError(f"{argument}={value!r} is no MAC address like '02:00:00:00:00:01'")
    return value.lower()


def address(value: Any, argument: str = "address") -> Address:
    """Without a prefix."""
    if isinstance(value, (ipaddress.IPv4Interface, ipaddress.IPv6Interface)):
        return _unscoped(value, value, argument).ip
    if isinstance(value, (ipaddress.IPv4Address, ipaddress.IPv6Address)):
        return _unscoped(value, value, argument)
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be an IPv4 or IPv6 address, a str or of ipaddress' types, not {value!r}")
    try:
        found = ipaddress.ip_address(value)
    except ValueError:
        raise ValueError(f"{argument}={value!r} is no IPv4 or IPv6 address") from None
    return _unscoped(found, value, argument)


def interface(value: Any, prefixlen: Any = None, argument: str = "address") -> Interface:
    """An address with its prefix, from ``"10.0.0.5", 24`` or ``"10.0.0.5/24"``; alone, it is a host's: /32, /128."""
    given = value
    if isinstance(value, str) and "/" in value:
        try:
            value = ipaddress.ip_interface(value)
        except ValueError:
            raise ValueError(f"{argument}={value!r} is no IPv4 or IPv6 address with a prefix") from None
    if isinstance(value, (ipaddress.IPv4Interface, ipaddress.IPv6Interface)) and prefixlen is None:
        return _unscoped(value, given, argument)
    if isinstance(given, str) and "/" in given:
        raise ValueError(f"{argument}={given!r} has a prefix already, and prefixlen={prefixlen!r} is another")
    found = address(value, argument)
    length = integer(found.max_prefixlen if prefixlen is None else prefixlen, "prefixlen", 0, found.max_prefixlen)
    return ipaddress.ip_interface(f"{found}/{length}")


def network(value: Any, argument: str = "destination") -> Network:
    """``"10.0.0.0/8"``, an address (one host), a network object. Bits behind the prefix are refused, as ``ip route``
    does.
    """
    if isinstance(value, (ipaddress.IPv4Network, ipaddress.IPv6Network)):
        _unscoped(value.network_address, value, argument)
        return value
    if not isinstance(value, (str, ipaddress.IPv4Address, ipaddress.IPv6Address)):  # an interface is an address, too
        raise TypeError(f"{argument} must be an IPv4 or IPv6 network, a str or of ipaddress' types, not {value!r}")
    try:
        found = ipaddress.ip_network(str(value))
    except ValueError as exc:
        raise ValueError(f"{argument}={value!r} is no IPv4 or IPv6 network: {exc}") from None
    _unscoped(found.network_address, value, argument)
    return found


def same_family(one: Any, other: Any, names: str) -> None:
    if one is not None and other is not None and one.version != other.version:
        raise ValueError(f"{names}: {one} is IPv{one.version} and {other} is IPv{other.version}")


A = TypeVar("A", bound="Address | Interface")


def _unscoped(found: A, value: object, argument: str) -> A:
    """An interface, too, is asked itself: its `ip` has forgotten the scope."""
    if getattr(found, "scope_id", None) is not None:
        raise ValueError(f"{argument}={value!r}: say which link with link=, not with a scope behind '%'")
    return found
