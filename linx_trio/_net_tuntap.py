"""``tun`` and ``tap`` links: persistent ones, made by ``/dev/net/tun`` (``Documentation/networking/tuntap.rst``).

rtnetlink cannot make them, and the device makes them in the network namespace of the thread that opens it. That
is the caller's own: no thread of ours goes elsewhere.
"""

from __future__ import annotations

import os
import struct
import sys
from dataclasses import dataclass
from typing import Any

from linx_trio import _net_checks as check
from linx_trio._fd import FdBag

if sys.platform != "win32":
    import fcntl

_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER, _TUNSETGROUP = 0x400454CA, 0x400454CB, 0x400454CC, 0x400454CE
_IFF_TUN, _IFF_TAP = 0x0001, 0x0002
_FLAGS = {"no_pi": 0x1000, "vnet_hdr": 0x4000, "multi_queue": 0x0100}
_EXCL = 0x8000


@dataclass(frozen=True, slots=True)
class Options:
    flags: int
    uid: int | None = None
    gid: int | None = None


def checked(kind: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """Of ``uid= gid= no_pi=True vnet_hdr= multi_queue=``, what `Options` are made of."""
    known = {"uid", "gid", *_FLAGS}
    flags = _IFF_TAP if kind == "tap" else _IFF_TUN
    found: dict[str, Any] = {}
    given = {"no_pi": True} | attributes
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"unknown attribute {name!r} of kind {kind!r}; known are {', '.join(sorted(known))}")
        if name in _FLAGS:
            flags |= _FLAGS[name] if check.truth(value, name) else 0
        elif value is not None:
            found[name] = check.integer(value, name, 0, 2**32 - 2)
    return {"flags": flags, **found}


def make(name: str, options: Options) -> None:
    """Raises `OSError`: ENOENT without ``/dev/net/tun``, EBUSY where the name is taken, EPERM."""
    with FdBag() as bag:
        fd = bag.open("/dev/net/tun", os.O_RDWR)
        request = struct.pack("16sH22x", name.encode("utf-8", "surrogateescape"), options.flags | _EXCL)
        try:
            fcntl.ioctl(fd, _TUNSETIFF, request)
            if options.uid is not None:
                fcntl.ioctl(fd, _TUNSETOWNER, options.uid)
            if options.gid is not None:
                fcntl.ioctl(fd, _TUNSETGROUP, options.gid)
            fcntl.ioctl(fd, _TUNSETPERSIST, 1)
        except OSError as exc:
            raise OSError(exc.errno, exc.strerror, name) from None
