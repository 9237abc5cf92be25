"""pyroute2's classes behind typed functions: what is encoded is decoded again, and any bytes are data or one error."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import ipaddress
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import linx_trio
from linx_trio import _net_kinds as kinds
from linx_trio import _net_read as read
from linx_trio import _netlink_frames as f
from linx_trio import _netlink_messages as nl
from linx_trio._net_objects import Address, Change, Link, Neighbour, Route, Rule

TYPES = [nl.NEWLINK, nl.NEWADDR, nl.NEWROUTE, nl.NEWNEIGH, nl.NEWRULE, nl.NEWQDISC]
PLACES = [16, 8, 12, 12, 12, 20]  # sizes of their fixed parts

READERS: dict[int, Any] = {
    nl.NEWLINK: read.link,
    nl.NEWADDR: read.address,
    nl.NEWROUTE: read.route,
    nl.NEWNEIGH: read.neighbour,
    nl.NEWRULE: read.rule,
    nl.NEWQDISC: read.qdisc,
}

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def frame(type: int, payload: bytes) -> f.Frame:
    return f.split(f.pack(type, 0, 1, payload))[0]


@contextlib.contextmanager
def declared_error() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno != errno.EBADMSG:
            raise


def attribute(type: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), type) + value + bytes(-len(value) % 4)


attributes = st.lists(
    st.builds(attribute, st.integers(0, 70) | st.integers(0, 0xFFFF), st.binary(max_size=24)), max_size=6
).map(b"".join)


def next_hop(attributes: bytes) -> bytes:
    """The attribute that holds this one."""
    return attribute(9, struct.pack("=HBBi", 8 + len(attributes), 0, 0, 1) + attributes)


LABEL = attribute(1, bytes.fromhex("00010100"))  # MPLS_IPTUNNEL_DST
UNTYPED = [
    attribute(22, b"\0\0") + attribute(4, bytes(4)),
    attribute(22, LABEL) + attribute(4, b""),
    attribute(22, b""),
]


@settings(max_examples=300)
@given(st.sampled_from(TYPES), st.binary(max_size=20), attributes | st.binary(max_size=60))
@example(nl.NEWLINK, bytes(16), attribute(3, b"lo"))
@example(nl.NEWLINK, bytes(16), attribute(3, b""))
@example(nl.NEWROUTE, b"\x02" + bytes(11), attribute(9, b"\xff\xff"))
@example(nl.NEWROUTE, b"", UNTYPED[0])
@example(nl.NEWROUTE, b"", next_hop(UNTYPED[0]))
def test_any_payload_is_a_thing_or_refused(type: int, fixed: bytes, rest: bytes) -> None:
    payload = fixed.ljust(PLACES[TYPES.index(type)], b"\0") + rest
    with declared_error():
        thing = READERS[type](nl.decode(frame(type, payload)))
        hash(thing)
        assert not [value for value in dataclasses.astuple(thing) if isinstance(value, (bytes, bytearray, dict))]


@given(st.integers(0x10, 0xFFFF), st.binary(max_size=60))
def test_any_notification_is_a_change_or_nothing_or_refused(type: int, payload: bytes) -> None:
    with declared_error(), nl.malformed("a notification"):
        change = read.change(type, nl.decode(frame(type, payload)), None)
        assert change is None or isinstance(change, Change)


@pytest.mark.parametrize("size", [0, 3, 8, 15])
def test_an_index_needs_a_whole_header(size: int) -> None:
    with pytest.raises(OSError, match="too short") as caught:
        nl.link_index(frame(nl.NEWLINK, bytes(size)))
    assert caught.value.errno == errno.EBADMSG


def again(type: int, fields: dict[str, Any], values: list[tuple[str, Any]]) -> Any:
    return nl.decode(frame(type, nl.payload(type, fields, values)))


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=5)


@given(names | st.just("a\udcff"), st.integers(1, 2**31 - 1), st.booleans(), st.integers(68, 65536))
def test_links(name: str, index: int, up: bool, mtu: int) -> None:
    fields = {"index": index, "flags": int(up), "ifi_type": 1}
    info = {"attrs": [("IFLA_INFO_KIND", "veth")]}
    values = [
        ("IFLA_IFNAME", name), ("IFLA_MTU", mtu), ("IFLA_ADDRESS", "02:00:00:00:00:01"), ("IFLA_LINKINFO", info),
        ("IFLA_PROP_LIST", {"attrs": [("IFLA_ALT_IFNAME", "one"), ("IFLA_ALT_IFNAME", "two")]}),
    ]  # fmt: skip
    message = again(nl.NEWLINK, fields, values)
    assert read.link(message, 7) == Link(
        name, index, up, "veth", "02:00:00:00:00:01", mtu, altnames=("one", "two"), netns=7
    )
    assert nl.link_index(frame(nl.NEWLINK, nl.payload(nl.NEWLINK, fields, values))) == index


def test_a_tunnels_address_is_no_mac() -> None:
    """It is an IP address, and pyroute2 does not know."""
    message = again(nl.NEWLINK, {"index": 3, "ifi_type": 776}, [("IFLA_IFNAME", "sit0")])
    assert read.link(message).mac is None
    raw = nl.payload(nl.NEWLINK, {"index": 3, "ifi_type": 776}, [("IFLA_IFNAME", "sit0")]) + attribute(1, bytes(4))
    assert read.link(nl.decode(frame(nl.NEWLINK, raw))).mac is None


@given(st.ip_addresses(), st.data())
def test_addresses(address: Any, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, address.max_prefixlen))
    peer = data.draw(st.none() | st.ip_addresses(v=address.version))
    family = read.INET6 if address.version == 6 else read.INET
    values = [("IFA_LOCAL", str(address)), ("IFA_ADDRESS", str(peer or address)), ("IFA_FLAGS", 0x80)]
    found = read.address(again(nl.NEWADDR, {"family": family, "prefixlen": length, "index": 5}, values))
    wanted = ipaddress.ip_interface(f"{address}/{length}")
    assert found == Address(wanted, 5, peer=None if peer == address else peer)
    assert (found.address, found.prefixlen) == (address, length)


@given(st.ip_addresses(v=4), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_routes(gateway: Any, metric: int, table: int) -> None:
    fields = {"family": read.INET, "dst_len": 8, "type": 1, "proto": 4}
    values = [("RTA_DST", "10.0.0.0"), ("RTA_GATEWAY", str(gateway)), ("RTA_PRIORITY", metric), ("RTA_TABLE", table)]
    assert read.route(again(nl.NEWROUTE, fields, values)) == Route(
        ipaddress.ip_network("10.0.0.0/8"), gateway, metric=metric, table=table, protocol="static"
    )


def test_neighbours_and_rules() -> None:
    fields = {"family": read.INET6, "ifindex": 4, "state": 0x80}
    values = [("NDA_DST", "fe80::1"), ("NDA_LLADDR", "02:00:00:00:00:01")]
    assert read.neighbour(again(nl.NEWNEIGH, fields, values)) == Neighbour(
        ipaddress.ip_address("fe80::1"), 4, "02:00:00:00:00:01", "permanent"
    )
    fields = {"family": read.INET, "action": 1, "src_len": 24}
    values = [("FRA_SRC", "10.0.0.0"), ("FRA_TABLE", 300), ("FRA_PRIORITY", 5), ("FRA_IIFNAME", "eth0")]  # type: ignore[list-item]
    assert read.rule(again(nl.NEWRULE, fields, values)) == Rule(
        5, "lookup", 300, 4, source=ipaddress.ip_network("10.0.0.0/24"), iif="eth0"
    )


@pytest.mark.parametrize(
    ("kind", "attributes", "wanted"),
    [
        ("vlan", {"id": 10}, [("IFLA_VLAN_ID", 10)]),
        ("vlan", {"vlan_id": 10}, [("IFLA_VLAN_ID", 10)]),
        ("macvlan", {"mode": "bridge"}, [("IFLA_MACVLAN_MODE", 4)]),
        ("macvtap", {"mode": "vepa"}, [("IFLA_MACVTAP_MODE", 2)]),
        ("ipvlan", {"mode": "l3s"}, [("IFLA_IPVLAN_MODE", 2)]),
        ("bridge", {"vlan_filtering": True}, [("IFLA_BR_VLAN_FILTERING", 1)]),
        ("vxlan", {"group": "ff05::1", "learning": None}, [("IFLA_VXLAN_GROUP6", "ff05::1")]),
        ("vxlan", {"group": ipaddress.ip_address("239.0.0.1")}, [("IFLA_VXLAN_GROUP", "239.0.0.1")]),
        ("vxlan", {"collect_metadata": False}, []),
        ("dummy", {}, []),
    ],
)
def test_what_is_said_about_kinds(kind: str, attributes: dict[str, Any], wanted: list[Any]) -> None:
    parts = dict(kinds.info(kind, attributes)["attrs"])
    assert parts["IFLA_INFO_KIND"] == kind
    assert parts.get("IFLA_INFO_DATA", {"attrs": []})["attrs"] == wanted


@pytest.mark.parametrize(
    "values",
    [
        [("IFLA_LINKINFO", kinds.info("vlan", {"id": "x"}))],
        [("IFLA_LINKINFO", kinds.info("vlan", {"id": 70000}))],
        [("IFLA_ADDRESS", "nonsense")],
    ],
)
def test_what_does_not_fit_is_refused(values: Any) -> None:
    with pytest.raises(ValueError, match=r"ifinfmsg .* cannot be encoded"):
        nl.payload(nl.NEWLINK, {}, values)


def test_other_peoples_messages() -> None:
    with pytest.raises(TypeError, match="must be one of pyroute2's"):
        nl.encode({"index": 1})
    message = nl.message_type(nl.GETLINK)()
    message["header"]["type"] = nl.GETLINK
    first = nl.encode(message)
    assert first == nl.encode(message) == (nl.GETLINK, 0, bytes(16))


def test_pyroute2_comes_late_and_brings_nothing_that_runs() -> None:
    """No fork, no socket, no event loop, no thread, no warning."""
    program = """
import os, sys, threading
import linx_trio, linx_trio.net
assert "pyroute2" not in sys.modules
before = sorted(os.listdir("/proc/self/fd"))
seen = set()
sys.addaudithook(lambda event, args: seen.add(event))
from linx_trio import _netlink_messages as nl
nl.payload(nl.GETLINK, {"index": 1})
assert "pyroute2" in sys.modules
assert sorted(os.listdir("/proc/self/fd")) == before
assert threading.active_count() == 1
print(sorted(seen & {"os.fork", "os.posix_spawn", "subprocess.Popen", "socket.__new__", "socket.bind", "os.system"}))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(linx_trio.__file__).parents[1],
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("around", [bytes, next_hop])
@pytest.mark.parametrize("route", UNTYPED)
def test_an_encapsulation_has_its_type_behind_it(route: bytes, around: Callable[[bytes], bytes]) -> None:
    with pytest.raises(OSError, match="without its type") as caught:
        nl.decode(frame(nl.NEWROUTE, bytes(12) + around(route)))
    assert caught.value.errno == errno.EBADMSG


def test_an_encapsulation_is_decoded_by_its_type() -> None:
    encapsulated = attribute(22, LABEL) + attribute(21, struct.pack("=H", 1))
    message = nl.decode(frame(nl.NEWROUTE, bytes(12) + encapsulated + next_hop(encapsulated)))
    (hop,) = message.get_attr("RTA_MULTIPATH")
    for found in (message, hop):
        assert found.get_attr("RTA_ENCAP").get_attr("MPLS_IPTUNNEL_DST")[0]["label"] == 16


@pytest.mark.parametrize("length", [0, 7, 20])
def test_a_next_hop_is_as_long_as_it_says(length: int) -> None:
    hops = attribute(9, struct.pack("=HBBi", length, 0, 0, 22))
    with pytest.raises(OSError, match="a next hop of") as caught:
        nl.decode(frame(nl.NEWROUTE, bytes(12) + hops))
    assert caught.value.errno == errno.EBADMSG
