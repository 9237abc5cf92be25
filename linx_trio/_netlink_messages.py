"""The one place where pyroute2 is imported: rtnetlink's messages, encoded and decoded.

It brings some 300 modules along, so it is imported when the first message is made. Only its message classes are
used: none of its sockets (they want an event loop each), none of its namespaces (they fork).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from linx_trio._netlink_frames import HEADER, Frame, FrameError, attributes

Attributes = Sequence[tuple[str, Any]]
"""Of a message: kernel name and value. Nested ones are ``{"attrs": Attributes}``."""

# include/uapi/linux/rtnetlink.h
NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30
NEWRULE, DELRULE, GETRULE = 32, 33, 34
NEWQDISC, DELQDISC, GETQDISC = 36, 37, 38
NEWNSID, GETNSID = 88, 90
NEWLINKPROP, DELLINKPROP = 108, 109

_ROUTES = (NEWROUTE, DELROUTE, GETROUTE)
_MULTIPATH, _ENCAP_TYPE, _ENCAP = 9, 21, 22  # RTA_…
_RTMSG_SIZE = 12
_RTNEXTHOP = struct.Struct("=HBBi")
_IFINFOMSG = struct.Struct("=BxHiII")
_ENCODING = (AttributeError, IndexError, KeyError, OSError, OverflowError, TypeError, ValueError, struct.error)


@functools.cache
def _library() -> SimpleNamespace:
    from pyroute2.netlink import nlmsg
    from pyroute2.netlink.exceptions import NetlinkDecodeError
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
    from pyroute2.netlink.rtnl.marshal import MarshalRtnl

    kinds = ifinfmsg.ifinfo.list_link_kind()
    return SimpleNamespace(nlmsg=nlmsg, classes=MarshalRtnl.msg_map, kinds=kinds, decode_error=NetlinkDecodeError)


def payload(kind: int, fields: Mapping[str, Any], attributes: Attributes = ()) -> bytes:
    """What comes behind the header of a request of that type.

    Raises `ValueError` for a value that its field or attribute cannot hold.
    """
    message = _library().classes[kind]()
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = [(name, _name_bytes(value)) for name, value in attributes if value is not None]
    return encode(message)[2]


def _name_bytes(value: Any) -> Any:
    """pyroute2 takes a name that is no UTF-8 as bytes."""
    return value if not isinstance(value, str) or value.isascii() else os.fsencode(value)


def link_index(frame: Frame) -> int:
    """Of a link's message, without decoding the rest (``struct ifinfomsg``). Raises `OSError` (EBADMSG)."""
    if len(frame.payload) < _IFINFOMSG.size:
        raise OSError(errno.EBADMSG, "the kernel sent a link that does not parse: it is too short")
    return int(_IFINFOMSG.unpack_from(frame.payload)[2])


def encode(message: Any) -> tuple[int, int, bytes]:
    """Type, flags and payload of a pyroute2 message. Raises `TypeError`, `ValueError`."""
    if not isinstance(message, _library().nlmsg):
        raise TypeError(f"message must be one of pyroute2's (a pyroute2.netlink.nlmsg), not {message!r}")
    header = message.get("header") or {}
    type, flags = int(header.get("type") or 0), int(header.get("flags") or 0)
    message.reset()
    try:
        message.encode()
    except _ENCODING as exc:
        raise ValueError(f"{_shown(message)} cannot be encoded: {exc}") from exc
    return type, flags, bytes(message.data[HEADER.size :])


def _shown(message: Any) -> str:
    values = {key: value for key, value in dict(message).items() if key not in ("header", "value")}
    return f"{type(message).__name__} {values!r}"


def decode(frame: Frame) -> Any:
    """The pyroute2 message; of a type that it does not know, a bare ``nlmsg``. Raises `OSError` (EBADMSG)."""
    library = _library()
    with malformed(f"a message of type {frame.type}"):
        if frame.type in _ROUTES and _ENCAP in frame.payload:
            _check_encapsulations(frame.payload[_RTMSG_SIZE:])
        message = library.classes.get(frame.type, library.nlmsg)(frame.data)
        message.decode()
    return message


def _check_encapsulations(route: bytes) -> None:
    """From each RTA_ENCAP pyroute2 goes on to the RTA_ENCAP_TYPE behind it, without regard to padding, and for ever
    where something else follows whose length is 0. The kernel has one right behind the other. Raises `FrameError`.
    """
    incomplete = False
    for type, value in attributes(route):
        if incomplete and type != _ENCAP_TYPE:
            break
        incomplete = type == _ENCAP
        if incomplete and len(value) % 4:
            break
        if type == _MULTIPATH:
            for hop in _next_hops(value):
                _check_encapsulations(hop)
    if incomplete:
        raise FrameError("an encapsulation without its type")


def _next_hops(data: bytes) -> Iterator[bytes]:
    """The attributes of each ``rtnexthop``. Raises `FrameError`, `struct.error`."""
    while data:
        length = _RTNEXTHOP.unpack_from(data)[0]
        if not _RTNEXTHOP.size <= length <= len(data):
            raise FrameError(f"a next hop of {length} bytes, where {len(data)} are left")
        yield data[_RTNEXTHOP.size : length]
        data = data[(length + 3) & ~3 :]


@contextlib.contextmanager
def malformed(what: str) -> Iterator[None]:
    """What a decoder trips over becomes `OSError` (EBADMSG). pyroute2 decodes nested attributes when they are looked
    at.
    """
    try:
        yield
    except (*_ENCODING, FrameError, AssertionError, RecursionError, _library().decode_error) as exc:
        if isinstance(exc, OSError) and exc.errno == errno.EBADMSG:
            raise
        raise OSError(errno.EBADMSG, f"the kernel sent {what} that does not parse: {exc!r}") from exc


def message_type(kind: int) -> type[Any]:
    """pyroute2's class for messages of that type."""
    found: type[Any] = _library().classes[kind]
    return found


def kind_attributes(kind: str) -> list[str] | None:
    """The kernel's names of what can be said about links of that kind (``IFLA_VLAN_ID``); `None`: nothing is known."""
    known = _library().kinds.get(kind)
    return None if known is None else [item[-2] for item in known.nla_map if not item[-2].endswith("_UNSPEC")]
