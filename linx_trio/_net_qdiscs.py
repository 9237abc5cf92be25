"""The verbs about queueing disciplines (``tc(8)``): what delays, loses and slows down."""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Callable
from typing import Any

from linx_trio import _net_checks as check
from linx_trio import _net_read as read
from linx_trio import _net_units as units
from linx_trio import _netlink_frames as f
from linx_trio import _netlink_messages as nl
from linx_trio._cause_kernel import kernel_module
from linx_trio._machine import Machine
from linx_trio._net_base import NEW, Asking, shown
from linx_trio._net_links import LinkLike
from linx_trio._net_objects import Qdisc

_TICK = 64e-9  # seconds: the kernel's unit of time here (PSCHED_SHIFT), since 2.6.31
_U32 = 2**32 - 1
_PARENTS = {"root": read.ROOT, "ingress": read.INGRESS, "clsact": read.INGRESS}
_PLAIN = frozenset({
    "bfifo", "clsact", "codel", "fq", "fq_codel", "ingress", "mq", "noqueue", "pfifo", "pfifo_fast", "sfq",
})  # fmt: skip
KINDS = _PLAIN | {"netem", "tbf"}


def _ticks(seconds: float, argument: str, value: Any) -> int:
    found = round(seconds / _TICK)
    if found > _U32:
        raise ValueError(f"{argument}={value!r} is more than {int(_U32 * _TICK)} s, which is all the kernel takes")
    return found


def _probability(value: Any, argument: str) -> int:
    return round(units.percent(value, argument) / 100 * _U32)


def _rate(value: Any) -> int:
    """In bytes per second."""
    found = round(units.bits_per_second(value, "rate") / 8)
    if not 16 <= found <= _U32:
        raise ValueError(f"rate={value!r} is not between 128 bit/s and 34 Gbit/s")
    return found


def netem(
    *,
    delay: Any = 0,
    jitter: Any = 0,
    loss: Any = 0,
    duplicate: Any = 0,
    corrupt: Any = 0,
    reorder: Any = 0,
    rate: Any = None,
    limit: Any = 1000,
) -> dict[str, Any]:
    """The options of ``tc-netem(8)``: times in seconds, probabilities in percent, rate in bits per second (or each
    as tc writes it), limit in packets.
    """
    attributes: list[tuple[str, Any]] = []
    probability = _probability(reorder, "reorder")
    late = _ticks(units.seconds(delay, "delay"), "delay", delay)
    if probability:
        if not late:
            raise ValueError(f"reorder={reorder!r} without a delay: some packets are sent at once, the others later")
        attributes.append(("TCA_NETEM_REORDER", {"prob_reorder": probability, "corr_reorder": 0}))
    if damaged := _probability(corrupt, "corrupt"):
        attributes.append(("TCA_NETEM_CORRUPT", {"prob_corrupt": damaged, "corr_corrupt": 0}))
    if rate is not None:
        attributes.append(
            ("TCA_NETEM_RATE", {"rate": _rate(rate), "packet_overhead": 0, "cell_size": 0, "cell_overhead": 0})
        )
    return {
        "delay": late,
        "limit": check.integer(limit, "limit", 1, _U32),
        "loss": _probability(loss, "loss"),
        "gap": 1 if probability else 0,
        "duplicate": _probability(duplicate, "duplicate"),
        "jitter": _ticks(units.seconds(jitter, "jitter"), "jitter", jitter),
        "attrs": attributes,
    }


def tbf(*, rate: Any, burst: Any = None, latency: Any = None, limit: Any = None) -> dict[str, Any]:
    """The options of ``tc-tbf(8)``: rate in bits per second, burst and limit in bytes, latency in seconds (or each as
    tc writes it).
    """
    if latency is not None and limit is not None:
        raise ValueError(f"latency={latency!r} and limit={limit!r}: one says the other")
    speed = _rate(rate)
    # What is sent at once: enough for a tick of the slowest timer, 1/100 s, and for a large packet.
    at_once = math.ceil(max(speed / 100, 5000) if burst is None else units.size_bytes(burst, "burst"))
    if at_once < 1:
        raise ValueError(f"burst={burst!r}: nothing could be sent")
    if limit is None:
        wait = 0.05 if latency is None else units.seconds(latency, "latency")
        queue = speed * wait + at_once
    else:
        queue = units.size_bytes(limit, "limit")
    if not 1 <= queue <= _U32:
        raise ValueError(f"limit={limit!r}, latency={latency!r}: a queue of {queue:.0f} bytes")
    parameters = {
        "rate": speed,
        "limit": int(queue),
        "buffer": _ticks(at_once / speed, "burst", burst),
        "mtu": 0,
    }
    return {"attrs": [("TCA_TBF_PARMS", parameters), ("TCA_TBF_RTAB", True)]}


_TYPED: dict[str, Callable[..., dict[str, Any]]] = {"netem": netem, "tbf": tbf}
_HANDLE = re.compile(r"([0-9a-fA-F]{1,4}):([0-9a-fA-F]{0,4})")


def handle(value: Any, argument: str) -> int:
    """``"1:"``, ``"1:2"`` or a name like ``"root"``."""
    if value in _PARENTS and argument == "parent":
        return _PARENTS[value]
    match = _HANDLE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        names = ", 'root', 'ingress'" if argument == "parent" else ""
        raise ValueError(f"{argument}={value!r}: it is a handle like '1:', or '1:2'{names}")
    return int(match[1], 16) << 16 | int(match[2] or "0", 16)


def options_of(kind: Any, options: dict[str, Any]) -> Any:
    """``TCA_OPTIONS``, or `None`. Raises `TypeError`, `ValueError`."""
    check.one_of(kind, "kind", KINDS)
    if kind not in _TYPED:
        if options:
            raise ValueError(f"kind {kind!r} takes no options here, and {', '.join(options)} is given; see Net.request")
        return None
    make = _TYPED[kind]
    known = set(make.__annotations__) - {"return"}
    for name in options:
        if name not in known:
            raise ValueError(f"unknown option {name!r} of {kind!r}; known are {', '.join(sorted(known))}")
    if kind == "tbf" and "rate" not in options:
        raise ValueError("kind 'tbf' needs a rate=")
    return make(**options)


class Qdiscs(Asking):
    """Mixed into `Net`."""

    async def add_qdisc(
        self,
        link: LinkLike,
        kind: str,
        *,
        parent: str | None = None,
        handle: str | None = None,
        replace: bool = False,
        **options: Any,
    ) -> None:
        """Sets how a link queues what it sends.

        Args:
            kind: ``"netem"``: ``delay= jitter=`` (seconds, or ``"10ms"``), ``loss= duplicate= corrupt= reorder=``
                (percent, or ``"0.5%"``), ``rate=`` (bits per second, or ``"10mbit"``), ``limit=`` (packets).
                ``"tbf"``: ``rate=``, ``burst=`` (bytes, or ``"32kb"``), ``latency=`` (seconds) or ``limit=`` (bytes).
                Without options: ``"fq_codel" "fq" "sfq" "pfifo" "ingress" "clsact"``, …
            parent: ``"root"``, or of which it is a part: ``"1:1"``. `None`: where it belongs.
            handle: its own: ``"1:"``. `None`: the kernel chooses.
            replace: in place of the one that is there.

        Raises `OSError`: EOPNOTSUPP, this kernel lacks that kind; EEXIST, there is another one.
        """
        values = options_of(kind, options)
        ingress = kind in ("ingress", "clsact")
        above = "ingress" if ingress and parent is None else "root" if parent is None else parent
        fields = {
            "parent": _handle(above, "parent"),
            "handle": 0xFFFF0000 if ingress else 0 if handle is None else _handle(handle, "handle"),
        }
        flags = f.CREATE | f.REPLACE if check.truth(replace, "replace") else NEW
        fields["index"] = await self._index(link)
        attributes = [("TCA_KIND", kind), ("TCA_OPTIONS", values)]
        try:
            await self._ask(nl.NEWQDISC, fields, attributes, flags=flags, slow=True, thing=f"{kind} on {shown(link)}")
        except FileNotFoundError as exc:
            if "kind is unknown" not in str(exc.strerror):
                raise
            text = f"{os.strerror(errno.EOPNOTSUPP)}: {str(exc.strerror).partition(': ')[2]}"
            lacking = OSError(errno.EOPNOTSUPP, text, f"{kind} on {shown(link)}")
            module = "sch_ingress" if ingress else f"sch_{kind}"
            lacking.add_note(f"hint: {kernel_module(Machine(), module, f'CONFIG_NET_{module.upper()}')}")
            raise lacking from None

    async def del_qdisc(self, link: LinkLike, *, parent: str = "root") -> None:
        """Back to what the kernel chooses. Raises `OSError`: ENOENT, it is that already."""
        above = _handle(parent, "parent")
        fields = {"index": await self._index(link), "parent": above, "handle": 0}
        await self._ask(nl.DELQDISC, fields, slow=True, thing=f"{parent} qdisc of {shown(link)}")

    async def qdiscs(self, link: LinkLike | None = None) -> tuple[Qdisc, ...]:
        """Those of a link, or of all."""
        index = None if link is None else await self._index(link)
        found = [read.qdisc(message) for message in await self._dump(nl.GETQDISC, {})]
        return tuple(item for item in found if index in (None, item.link))


_handle = handle
