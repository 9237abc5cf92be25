"""What a lab is to consist of: names, addresses, routes, and what links do to packets. Checked, before any system call.

Pure; `_lab_nodes` and `_lab` make it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from linx_trio import _net_checks as check
from linx_trio import _net_qdiscs as qdiscs
from linx_trio import _net_units as units

HOST_NAME_BYTES = 64  # sethostname(2)


# ---- names -----------------------------------------------------------------------------------------------------------


def host_name(value: Any, taken: Container[str]) -> str:
    """Of a host: it is also in the file that names are looked up in (``hosts(5)``)."""
    if not isinstance(value, str):
        raise TypeError(f"name must be a str, not {value!r}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ValueError(f"name={value!r} cannot be encoded") from None
    if not 1 <= size <= HOST_NAME_BYTES:
        raise ValueError(f"name={value!r}: a host's name has 1 to {HOST_NAME_BYTES} bytes, this one has {size}")
    if value == "localhost" or any(c in "/#" or c.isspace() or not c.isprintable() for c in value):
        raise ValueError(
            f"name={value!r}: a host's name has no space, control character, '/' or '#', is not 'localhost'"
        )
    return _free(value, taken)


def switch_name(value: Any, taken: Container[str]) -> str:
    """Of a switch: the name of a link."""
    return _free(check.link_name(value), taken)


def _free(name: str, taken: Container[str]) -> str:
    if name in taken:
        raise ValueError(f"name={name!r}: there is a host or switch of that name in this lab already")
    return name


class Names:
    """The names of the links in one network namespace: each once."""

    def __init__(self) -> None:
        self._taken = {"lo"}

    def pick(self, asked: Any, argument: str, prefix: str, besides: str | None = None) -> str:
        """`asked`, or the next free one: ``eth0``, ``eth1``, … It is not taken yet.

        Raises `TypeError`, `ValueError`.
        """
        taken = self._taken | {besides}
        if asked is None:
            return next(name for name in _numbered(prefix) if name not in taken)
        name = check.link_name(asked, argument)
        if name in taken:
            raise ValueError(f"{argument}={name!r}: there is a link of that name already")
        return name

    def take(self, name: str) -> None:
        self._taken.add(name)


def _numbered(prefix: str) -> Iterator[str]:
    number = 0
    while True:
        name = f"{prefix}{number}"
        if len(name.encode("utf-8", "surrogateescape")) > check.NAME_BYTES:  # a switch with a long name
            prefix, number = "port", 0
            continue
        yield name
        number += 1


# ---- links -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class End:
    """One end of a link: where it is, and what it is called there."""

    node: Any
    name: str
    addresses: tuple[str, ...] = ()
    mac: str | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """What a link does to what is sent over it, in each direction: the options of ``tc-netem(8)``, or of ``tc-tbf(8)``
    where there is nothing but a rate.
    """

    kind: str
    options: Mapping[str, Any]

    @classmethod
    def of(cls, delay: Any, jitter: Any, loss: Any, rate: Any) -> Shape | None:
        """`None` if there is nothing to be done to it. Raises `TypeError`, `ValueError`."""
        if jitter is not None and delay is None:
            raise ValueError(f"jitter={jitter!r} is what the delay varies by: it needs delay=")
        options: dict[str, Any] = {}
        for name, value, parse in (
            ("delay", delay, units.seconds),
            ("jitter", jitter, units.seconds),
            ("loss", loss, units.percent),
        ):
            if value is not None and parse(value, name):
                options[name] = value
        kind = "netem" if options else "tbf"
        if rate is not None:
            options["rate"] = rate
        if not options:
            return None
        qdiscs.options_of(kind, dict(options))
        return cls(kind, options)


def addresses(value: Any, argument: str) -> tuple[str, ...]:
    """``"10.0.0.1/24"``, or several. Each says how long its prefix is: a lone address would reach nobody."""
    if value is None:
        return ()
    single = isinstance(value, (str, ipaddress.IPv4Interface, ipaddress.IPv6Interface))
    if not single and not isinstance(value, Iterable):
        raise TypeError(f"{argument} must be like '10.0.0.1/24', or several of these, not {value!r}")
    found = tuple(_interface(item, argument) for item in ([value] if single else value))
    for item in found:
        if found.count(item) > 1:
            raise ValueError(f"{argument} has {item!r} twice")
    return found


def _interface(item: Any, argument: str) -> str:
    if isinstance(item, str) and "/" not in item:
        raise ValueError(f"{argument}={item!r} says nothing about its network: write '{item}/24', or what it is")
    if not isinstance(item, (str, ipaddress.IPv4Interface, ipaddress.IPv6Interface)):
        raise TypeError(f"{argument} must be like '10.0.0.1/24', not {item!r}")
    found = check.interface(item, None, argument)
    if getattr(found, "scope_id", None) is not None:
        raise ValueError(f"{argument}={item!r}: it is on this link, which need not be said behind a '%'")
    return str(found)


# ---- routes ----------------------------------------------------------------------------------------------------------


def _gateways(value: Any) -> list[check.Address]:
    """One for IPv4, one for IPv6, or both."""
    if value is None:
        return []
    single = isinstance(value, (str, ipaddress.IPv4Address, ipaddress.IPv6Address))
    if not single and not isinstance(value, Iterable):
        raise TypeError(f"gateway must be like '10.0.0.1', or two of these, not {value!r}")
    found = [check.address(item, "gateway") for item in ([value] if single else value)]
    if len({each.version for each in found}) < len(found):
        raise ValueError(f"gateway={value!r}: a node has one default route for IPv4, and one for IPv6")
    return found


def routes(value: Any, gateway: Any = None) -> dict[str, str]:
    """``{"10.2.0.0/16": "10.0.0.3"}``, and the default ones."""
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"routes must be a mapping like {{'10.2.0.0/16': '10.0.0.3'}}, not {value!r}")
    found: dict[str, str] = {}
    for network, through in (value or {}).items():
        to, via = check.network(network, "routes"), check.address(through, f"routes[{network!r}]")
        check.same_family(to, via, f"routes[{network!r}]={through!r}")
        if str(to) in found:
            raise ValueError(f"routes has {to} twice")
        found[str(to)] = str(via)
    for via in _gateways(gateway):
        to = ipaddress.ip_network("::/0" if via.version == 6 else "0.0.0.0/0")
        if str(to) in found:
            raise ValueError(f"gateway={gateway!r}: routes has {to} too")
        found[str(to)] = str(via)
    return found


def ruleset(value: Any) -> bytes:
    """For ``nft(8)``."""
    if not isinstance(value, (str, bytes)):
        raise TypeError(f"nft must be a ruleset, a str, not {value!r}")
    if not value.strip():
        raise ValueError(f"nft={value!r} is an empty ruleset")
    try:
        return value.encode() if isinstance(value, str) else value
    except UnicodeEncodeError:
        raise ValueError("nft is text that UTF-8 cannot encode") from None


# ---- files -----------------------------------------------------------------------------------------------------------

LOCALHOST = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"

NO_SERVERS = b"# No server is asked for names on a host of a lab, which knows /etc/hosts.\n"


def hosts_lines(ends: Iterable[End]) -> bytes:
    """For ``hosts(5)``: the nodes at these ends, by their addresses."""
    lines = (f"{item.partition('/')[0]}\t{end.node.name}\n" for end in ends for item in end.addresses)
    return "".join(lines).encode()
