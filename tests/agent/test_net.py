"""`linx_trio.net`, rootless, on the real kernel. What ``ip`` says is what counts."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
import trio

import linx_trio as linx
from linx_trio._cause_kernel import kernel_module
from linx_trio._machine import Machine
from linx_trio.net import Address, Neighbour, Qdisc
from tests.agent.networks import guest, ip, names, namespace, network, run_in, tc
from tests.support import cancelled_after

A, B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"

# ---- links -----------------------------------------------------------------------------------------------------------


async def test_a_fresh_namespace() -> None:
    async with network() as (s, net):
        lo = await net.link("lo")
        assert lo == await net.link(lo.index) == await net.link(lo)
        assert (lo.name, lo.up, lo.kind, lo.mac, lo.mtu) == ("lo", False, None, "00:00:00:00:00:00", 65536)
        assert {link.name for link in await net.links()} == await names(s)
        await net.set_up("lo")
        assert (await net.link("lo")).up
        (shown,) = await ip(s, "link", "show", "lo")
        assert "UP" in shown["flags"]
        await net.set_down("lo")
        assert not (await net.link("lo")).up


async def test_a_link_that_changes() -> None:
    async with network() as (s, net):
        br0 = await net.create_bridge("br0")
        assert (br0.name, br0.kind, br0.up) == ("br0", "bridge", False)
        await net.set_mac(br0, A)
        await net.set_mtu(br0.index, 1400)
        await net.set_name("br0", "renamed")
        await net.set_up(br0)
        (shown,) = await ip(s, "-d", "link", "show", "renamed")
        assert (shown["ifindex"], shown["address"], shown["mtu"]) == (br0.index, A, 1400)
        assert shown["linkinfo"]["info_kind"] == "bridge"
        found = await net.link("renamed")
        assert (found.index, found.mac, found.mtu, found.up) == (br0.index, A, 1400, True)
        await net.delete(found)
        assert await names(s) == {"lo"}


async def test_veth_pairs_and_ports() -> None:
    async with network() as (s, net):
        one = await net.create_veth("one", "other", mac=A, peer_mac=B, mtu=1300)
        other = await net.link("other")
        assert (one.kind, one.mac, one.parent, one.mtu) == ("veth", A, other.index, 1300)
        assert (other.mac, other.parent, other.mtu) == (B, one.index, 1300)
        br0 = await net.create_bridge("br0", stp_state=1, ageing_time=10000)
        await net.set_master(one, "br0")
        assert (await net.link("one")).master == br0.index
        (shown,) = await ip(s, "-d", "link", "show", "br0")
        assert (shown["linkinfo"]["info_data"]["stp_state"], shown["linkinfo"]["info_data"]["ageing_time"]) == (
            1,
            10000,
        )
        await net.set_master("one", None)
        assert (await net.link("one")).master is None
        port = await net.create("port", "ifb", master=br0)
        assert (await net.link(port)).master == br0.index
        await net.delete("other")
        assert await names(s) == {"lo", "br0", "port"}


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("macvlan", {"mode": "private"}),
        ("macvtap", {"mode": "bridge"}),
        ("vxlan", {"id": 7, "group": "239.1.1.1", "port": 4789}),
        ("vxlan", {"id": 7, "group": ipaddress.ip_address("ff05::7"), "port": 4789}),
        ("ifb", {}),
    ],
)
async def test_kinds(kind: str, attributes: dict[str, Any]) -> None:
    async with network() as (s, net):
        await net.create_veth("eth0", "far")
        parent = None if kind == "ifb" else "eth0"
        link = await net.create("x0", kind, parent=parent, mtu=1280, mac=A, **attributes)
        assert (link.kind, link.mtu, link.mac) == (kind, 1280, A)
        (shown,) = await ip(s, "-d", "link", "show", "x0")
        data = shown["linkinfo"].get("info_data", {})
        assert shown["linkinfo"]["info_kind"] == kind
        if "mode" in attributes:
            assert data["mode"] == attributes["mode"]
        if kind == "vxlan":
            assert (data["id"], data["port"]) == (7, 4789)
            assert data.get("group6", data.get("group")) == str(attributes["group"])


async def test_statistics() -> None:
    async with network() as (s, net):
        await net.set_up("lo")
        before = await net.stats("lo")
        assert before.rx_packets == 0
        await run_in(s, sys.executable, "-c", "import socket; socket.socket(2, 2).sendto(bytes(972), ('127.0.0.1', 9))")
        after = await net.stats("lo")
        assert after.rx_packets == after.tx_packets > 0
        assert after.rx_bytes >= 1000
        (shown,) = await ip(s, "-s", "link", "show", "lo")
        assert shown["stats64"]["rx"]["packets"] == after.rx_packets


# ---- addresses, routes, neighbours, rules ----------------------------------------------------------------------------


async def test_addresses() -> None:
    async with network() as (s, net):
        link = await net.create_bridge("br0")
        await net.add_address("br0", "10.0.0.5", 24)
        await net.add_address(link, "10.0.1.5/24", broadcast="10.0.1.255")
        await net.add_address(link.index, ipaddress.ip_interface("fd00::5/64"), nodad=True)
        await net.add_address("br0", ipaddress.ip_address("10.9.9.9"), peer="10.9.9.10", scope="link")
        assert set(await net.addresses("br0", family=4)) == {
            Address(ipaddress.ip_interface("10.0.0.5/24"), link.index),
            Address(ipaddress.ip_interface("10.0.1.5/24"), link.index, broadcast=ipaddress.ip_address("10.0.1.255")),
            Address(ipaddress.ip_interface("10.9.9.9/32"), link.index, "link", peer=ipaddress.ip_address("10.9.9.10")),
        }
        assert Address(ipaddress.ip_interface("fd00::5/64"), link.index) in await net.addresses(link, family=6)
        assert await net.addresses("lo") == ()
        (shown,) = await ip(s, "address", "show", "br0")
        assert {(one["local"], one["prefixlen"]) for one in shown["addr_info"]} == {
            ("10.0.0.5", 24), ("10.0.1.5", 24), ("10.9.9.9", 32), ("fd00::5", 64),
        }  # fmt: skip
        with pytest.raises(FileExistsError, match=r"10\.0\.0\.5 on br0"):
            await net.add_address("br0", "10.0.0.5", 24)
        for address in await net.addresses("br0"):
            await net.del_address("br0", address.interface, peer=address.peer)
        assert await net.addresses() == ()
        with pytest.raises(OSError, match=r"10\.0\.0\.5 on br0") as caught:
            await net.del_address("br0", "10.0.0.5", 24)
        assert caught.value.errno == errno.EADDRNOTAVAIL


async def test_loopback_addresses_are_the_hosts_own() -> None:
    async with network() as (s, net):
        await net.add_address("lo", "127.0.0.1", 8)
        (shown,) = await ip(s, "address", "show", "lo")
        assert shown["addr_info"][0]["scope"] == "host"


@pytest.mark.parametrize(
    ("version", "own", "gateway", "far", "everything"),
    [
        (4, "10.0.0.5/24", "10.0.0.1", "192.168.0.0/16", "0.0.0.0/0"),
        (6, "fd00::5/64", "fd00::1", "fd01::/16", "::/0"),
    ],
)
async def test_routes(version: int, own: str, gateway: str, far: str, everything: str) -> None:
    far = str(ipaddress.ip_network(far, strict=False))
    hop = ipaddress.ip_address(gateway)
    async with network() as (s, net):
        await net.create_veth("v0", "v1")
        link = (await net.link("v0")).index
        await net.add_address("v0", own, nodad=version == 6)
        await net.set_up("v0")
        await net.set_up("v1")
        with pytest.raises(OSError, match=f"route to {far}") as caught:
            await net.add_route(far, "198.51.100.1" if version == 4 else "fe99::1")
        assert caught.value.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL)
        await net.add_default_route(gateway)
        await net.add_route(far, gateway, metric=7, source=own.split("/")[0], mtu=1300)
        await net.add_route(hop, link="v0", table=300)
        await net.add_route(far, type="blackhole", table=301)
        found = {(route.destination, route.table): route for route in await net.routes(table=None, family=version)}
        default = found[ipaddress.ip_network(everything), 254]
        assert (default.gateway, default.link, default.type) == (hop, link, "unicast")
        via = found[ipaddress.ip_network(far), 254]
        assert (via.gateway, via.metric, str(via.source)) == (hop, 7, own.split("/")[0])
        assert found[ipaddress.ip_network(gateway), 300].link == link
        assert found[ipaddress.ip_network(far), 301].type == "blackhole"
        family = f"-{version}"
        shown = {route["dst"]: route for route in await ip(s, family, "route")}
        assert shown["default"]["gateway"] == gateway
        assert shown[far]["metrics"] == [{"mtu": 1300}]
        with pytest.raises(FileExistsError):
            await net.add_default_route(gateway)
        await net.add_default_route(gateway, replace=True)
        await net.del_route(everything)
        await net.del_route(far, gateway)
        await net.del_route(far, table=301)
        assert {route["dst"] for route in await ip(s, family, "route")} & {"default", far} == set()
        with pytest.raises(ProcessLookupError, match=f"route to {far}"):
            await net.del_route(far)


async def test_an_ipv4_route_by_an_ipv6_gateway() -> None:
    async with network() as (_s, net):
        await net.create_veth("v0", "v1")
        await net.set_up("v0")
        await net.set_up("v1")
        await net.add_route("10.0.0.0/8", "fe80::1", link="v0")
        (route,) = await net.routes(family=4)
        assert route.gateway == ipaddress.ip_address("fe80::1")


async def test_a_route_with_several_ways() -> None:
    async with network() as (s, net):
        await net.create_veth("v0", "v1")
        for name, own in (("v0", "10.0.0.1/24"), ("v1", "10.0.1.1/24")):
            await net.add_address(name, own)
            await net.set_up(name)
        ways = "nexthop via 10.0.0.2 weight 1 nexthop via 10.0.1.2 weight 3"
        await run_in(s, "ip", "route", "add", "10.5.0.0/16", *ways.split(" "))
        (route,) = [route for route in await net.routes() if route.destination.prefixlen == 16]
        assert [(str(hop.gateway), hop.weight) for hop in route.hops] == [("10.0.0.2", 1), ("10.0.1.2", 3)]


async def test_neighbours() -> None:
    async with network() as (s, net):
        link = await net.create_bridge("br0")
        await net.set_up(link)
        for address in ("10.0.0.9", "fe80::9"):
            await net.add_neighbour("br0", address, A)
            with pytest.raises(FileExistsError):
                await net.add_neighbour("br0", address, B)
            await net.add_neighbour("br0", address, B, replace=True)
        wanted = [
            Neighbour(ipaddress.ip_address(address), link.index, B, "permanent") for address in ("10.0.0.9", "fe80::9")
        ]
        assert [one for one in await net.neighbours("br0") if one.mac == B] == wanted
        assert [one for one in await net.neighbours(family=6) if one.mac == B] == wanted[1:]
        shown = await ip(s, "neighbour", "show", "dev", "br0")
        assert ("10.0.0.9", B, ["PERMANENT"]) in [(one["dst"], one.get("lladdr"), one["state"]) for one in shown]
        await net.del_neighbour("br0", "10.0.0.9")
        assert "10.0.0.9" not in {str(one.address) for one in await net.neighbours(link, family=4)}
        with pytest.raises(FileNotFoundError):
            await net.del_neighbour("br0", "10.0.0.9")


async def test_rules() -> None:
    async with network() as (s, net):
        before = await net.rules()
        await net.add_rule(source="10.0.0.0/8", table=300, priority=100, iif="lo")
        await net.add_rule(destination="fd00::/8", action="unreachable", priority=200)
        await net.add_rule(fwmark=7, table="local", family=6, priority=201)
        more = [rule for rule in await net.rules() if rule not in before]
        assert [(rule.priority, rule.action, rule.table, rule.family) for rule in more] == [
            (100, "lookup", 300, 4),
            (200, "unreachable", None, 6),
            (201, "lookup", 255, 6),
        ]
        assert (str(more[0].source), more[0].iif, more[2].fwmark) == ("10.0.0.0/8", "lo", 7)
        shown = {rule["priority"]: rule for rule in await ip(s, "rule")}
        assert (shown[100]["src"], shown[100]["srclen"], shown[100]["table"]) == ("10.0.0.0", 8, "300")
        await net.del_rule(priority=100)
        await net.del_rule(destination="fd00::/8", action="unreachable")
        await net.del_rule(fwmark=7, family=6)
        assert await net.rules() == before
        with pytest.raises(FileNotFoundError):
            await net.del_rule(priority=100)


# ---- queueing --------------------------------------------------------------------------------------------------------


async def test_a_token_bucket() -> None:
    async with network() as (s, net):
        link = await net.create_bridge("br0")
        await net.set_up("br0")
        await net.add_qdisc("br0", "tbf", rate="10mbit", burst="32kb", latency="50ms", handle="7:")
        assert await net.qdiscs("br0") == (Qdisc("tbf", link.index, "7:", "root"),)
        (shown,) = await tc(s, "qdisc", "show", "dev", "br0")
        assert (shown["kind"], shown["handle"], shown["root"]) == ("tbf", "7:", True)
        assert shown["options"]["rate"] == 1_250_000
        assert shown["options"]["burst"] == pytest.approx(32 * 1024, rel=0.01)
        assert shown["options"]["lat"] == pytest.approx(50_000, rel=0.01)
        with pytest.raises(FileExistsError):
            await net.add_qdisc("br0", "tbf", rate="20mbit")
        await net.add_qdisc("br0", "tbf", rate="20mbit", replace=True)
        (shown,) = await tc(s, "qdisc", "show", "dev", "br0")
        assert shown["options"]["rate"] == 2_500_000
        await net.add_qdisc("br0", "clsact")
        await net.del_qdisc("br0", parent="ingress")
        await net.del_qdisc("br0")
        assert {qdisc.kind for qdisc in await net.qdiscs("br0")} <= {"noqueue"}


async def test_a_discipline_that_this_kernel_has_or_lacks() -> None:
    async with network() as (s, net):
        await net.create_bridge("br0")
        options: dict[str, Any] = {"delay": "20ms", "jitter": "1ms", "loss": "1%", "duplicate": 2, "rate": "1mbit"}
        lacking = await refusal(net.add_qdisc("br0", "netem", limit=50, **options))
        if lacking is not None:
            assert lacking.errno == errno.EOPNOTSUPP
            assert "Specified qdisc kind is unknown: 'netem on br0'" in str(lacking)
            hint = kernel_module(Machine(), "sch_netem", "CONFIG_NET_SCH_NETEM")
            assert lacking.__notes__ == [f"hint: {hint}"], "as the probe says it"
            return
        (shown,) = await tc(s, "qdisc", "show", "dev", "br0")
        found = shown["options"]
        assert found["limit"] == 50
        assert found["delay"]["delay"] == pytest.approx(0.020)
        assert found["delay"]["jitter"] == pytest.approx(0.001)
        assert found["loss-random"]["loss"] == pytest.approx(0.01)
        assert found["duplicate"]["duplicate"] == pytest.approx(0.02)
        assert found["rate"]["rate"] == 125_000


async def refusal(call: Awaitable[object]) -> OSError | None:
    """What the kernel says no with, or `None`."""
    try:
        await call
    except OSError as exc:
        return exc
    return None


# ---- errors ----------------------------------------------------------------------------------------------------------


async def test_the_kernels_refusals() -> None:
    async with network() as (_s, net):
        await net.create_bridge("br0")
        with pytest.raises(FileExistsError, match=r"File exists.*'br0'"):
            await net.create_bridge("br0")
        for call in (
            net.set_up("nope"),
            net.link("nope"),
            net.delete(4711),
            net.add_address("nope", "10.0.0.1"),
            net.set_master("br0", "nope"),
            net.create_macvlan("x", "nope"),
        ):
            with pytest.raises(OSError, match=r"No such device.*(nope|4711)") as caught:
                await call
            assert caught.value.errno == errno.ENODEV
        with pytest.raises(OSError, match="'lo'"):
            await net.set_master("lo", "br0")
        with pytest.raises(OSError, match=r"mtu (less|greater) than") as caught:
            await net.set_mtu("br0", 2)
        assert caught.value.errno == errno.EINVAL


async def test_a_kind_that_the_kernel_lacks() -> None:
    async with network() as (_s, net):
        lacking = []
        for kind in ("gtp", "hsr", "batadv", "bareudp", "netdevsim", "nlmon"):
            exc = await refusal(net.create("x0", kind))
            if exc is None:
                await net.delete("x0")
            elif exc.errno == errno.EOPNOTSUPP:
                lacking.append(kind)
                assert f"hint: this kernel has no links of kind {kind!r}, or not their module" in exc.__notes__
        assert lacking


async def test_bad_arguments_ask_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async with network() as (_s, net):

        async def request(*_: object, **__: object) -> None:
            raise AssertionError("the kernel was asked")

        monkeypatch.setattr(net._rtnl, "request", request)
        calls: list[tuple[Any, str]] = [
            (lambda: net.create_veth("x" * 16, "y"), "name='xxxxxxxxxxxxxxxx'"),
            (lambda: net.create_veth("x", "a b"), "peer='a b'"),
            (lambda: net.create_macvlan("x", "lo", mode="brigde"), "unknown mode 'brigde'"),
            (lambda: net.create("x", "vlna"), "unknown kind 'vlna'"),
            (lambda: net.create("x", "vlan", parent="lo", vid=1), "unknown attribute 'vid'"),
            (lambda: net.create("x", "macvlan"), "made on another link"),
            (lambda: net.create_bridge("x", mtu=-1), "mtu=-1"),
            (lambda: net.create_bridge("x", mac="x"), "mac='x'"),
            (lambda: net.create("x", "tap", parent="lo"), "kind 'tap' has no parent="),
            (lambda: net.add_address("lo", "10.0.0.5", 33), "prefixlen=33"),
            (lambda: net.add_address("lo", "10.0.0"), "address='10.0.0'"),
            (lambda: net.add_address("lo", "10.0.0.1", peer="::1"), "address and peer"),
            (lambda: net.add_address("lo", "10.0.0.1", scope="word"), "unknown scope 'word'"),
            (lambda: net.add_route("10.0.0.1/8", "10.0.0.1"), "host bits"),
            (lambda: net.add_route("10.0.0.0/8"), "needs a gateway"),
            (lambda: net.add_route("fd00::/8", "10.0.0.1"), "destination and gateway"),
            (lambda: net.add_route("10.0.0.0/8", "10.0.0.1", table="mian"), "unknown table 'mian'"),
            (lambda: net.add_route("10.0.0.0/8", type="blakchole"), "unknown type 'blakchole'"),
            (lambda: net.add_default_route(), "needs a gateway"),
            (lambda: net.add_neighbour("lo", "10.0.0.1", "x"), "mac='x'"),
            (lambda: net.add_rule(priority=1), "'lookup' has a table"),
            (lambda: net.add_rule(source="10.0.0.0/8", destination="::/0", table=1), "source and destination"),
            (lambda: net.add_rule(source="10.0.0.0/8", family=6, table=1), "family=6"),
            (lambda: net.del_rule(), "del_rule needs something"),
            (lambda: net.add_qdisc("lo", "netme"), "unknown kind 'netme'"),
            (lambda: net.add_qdisc("lo", "netem", loss=101), "loss=101"),
            (lambda: net.set_up(0), "link=0"),
            (lambda: net.set_up(""), "link=''"),
            (lambda: net.set_name("lo", "a/b"), "name='a/b'"),
            (lambda: net.move_to_netns("lo", 0), "target must be a pid, at least 1, not 0"),
            (lambda: net.addresses(family=5), "family=5"),
        ]
        for call, text in calls:
            with pytest.raises(ValueError, match=text):
                await call()
        wrong: list[tuple[Any, Any]] = [(net.set_up, (b"lo",)), (net.set_up, (True,)), (net.set_mtu, ("lo", 1.5))]
        for function, arguments in wrong:
            with pytest.raises(TypeError):
                await function(*arguments)
        with pytest.raises(ValueError, match="unknown group 'link'"):
            net.monitor({"link"})
        with pytest.raises(TypeError, match="groups must be several of"):
            net.monitor("links")


@pytest.mark.parametrize(("target", "text"), [(0, "target must be a pid"), ("", "target"), (1.5, "target must be")])
def test_bad_targets(target: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        linx.net.open(target)


async def test_a_link_of_another_namespace_is_refused() -> None:
    async with namespace() as s, linx.net.open(s) as net, guest(s) as g, linx.net.open(g) as other:
        elsewhere = await other.link("lo")
        if elsewhere.netns is None:
            return  # before Linux 5.14
        with pytest.raises(ValueError, match="is a link of another network namespace"):
            await net.set_up(elsewhere)
        moved = await net.move_to_netns(await net.create_veth("v0", "v1"), other)
        await other.set_up(moved)
        with pytest.raises(ValueError, match="is a link of another network namespace"):
            await net.set_up(moved)


async def test_after_the_block() -> None:
    async with network() as (_s, net):
        pass
    with pytest.raises(trio.ClosedResourceError):
        await net.links()
    assert "closed" in repr(net)


async def test_no_rights_in_the_hosts_namespace() -> None:
    program = """
import linx_trio as linx, trio
async def main():
    async with linx.net.open() as net:
        assert "lo" in {link.name for link in await net.links()}
        try:
            await net.create_bridge("br-linx")
        except PermissionError as exc:
            assert exc.filename == "br-linx"
            print(*exc.__notes__)
trio.run(main)
"""
    done = await linx.run(
        [sys.executable, "-c", program],
        capabilities=linx.capabilities.keep(()) if os.geteuid() == 0 else None,
        cwd=Path(linx.__file__).parents[1],
        capture_stdout=True,
    )
    assert done.stdout.startswith(b"hint: it needs CAP_NET_ADMIN in the user namespace")


# ---- whose namespace -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["session", "pid", "pidfd", "path"])
@pytest.mark.parametrize("running", [False, True])
async def test_targets(how: str, running: bool) -> None:
    async with namespace() as s:
        if running:
            await s.proceed()
        target: Any = {"session": s, "pid": s.host_pid, "pidfd": s.pidfd, "path": f"/proc/{s.host_pid}"}[how]
        async with guest(s) as g:
            await g.proceed()
            async with linx.net.open(target) as net, linx.net.open(g) as other:
                await net.create_bridge("br0")
                assert await names(s) == {"lo", "br0"}
                await net.create_veth("near", "far", peer_netns=g)
                for number, where in enumerate((g, g.host_pid, g.pidfd, f"/proc/{g.host_pid}", other)):
                    link = await net.move_to_netns(await net.create_macvlan(f"x{number}", "near"), where)
                    assert link.name == f"x{number}"
                await net.create_macvlan("mv", "near", netns=other)
                assert await names(g) == {"lo", "x0", "x1", "x2", "x3", "x4", "far", "mv"}
                assert await names(s) == {"lo", "br0", "near"}
        assert await names(s) == {"lo"}


async def test_targets_that_are_gone() -> None:
    async with namespace() as s:
        pass
    with pytest.raises(linx.NoProcess, match=r"^open: "):
        async with linx.net.open(s):
            pass
    with pytest.raises(FileNotFoundError) as caught:
        async with linx.net.open("/proc/99999999"):
            pass
    assert isinstance(caught.value, linx.SetupError)


async def test_the_same_object_is_entered_once() -> None:
    async with namespace() as s:
        manager = linx.net.open(s)
        async with manager:
            pass
        with pytest.raises(RuntimeError, match="entered once"):
            await manager.__aenter__()


async def test_pyroute2s_own_messages() -> None:
    from pyroute2.netlink import NLM_F_DUMP
    from pyroute2.netlink.rtnl import RTM_GETLINK, RTM_GETNEIGHTBL, RTM_NEWLINK
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
    from pyroute2.netlink.rtnl.ndtmsg import ndtmsg

    async with network() as (s, net):
        tables = await net.request(ndtmsg(), RTM_GETNEIGHTBL, NLM_F_DUMP)
        assert {table.get_attr("NDTA_NAME") for table in tables} >= {"arp_cache", "ndisc_cache"}
        message = ifinfmsg()
        message["index"] = (await net.link("lo")).index
        message["header"]["type"] = RTM_GETLINK
        (lo,) = await net.request(message)
        assert (type(lo), lo.get_attr("IFLA_IFNAME")) == (ifinfmsg, "lo")
        message = ifinfmsg()
        message["attrs"] = [("IFLA_IFNAME", "br7"), ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "bridge")]})]
        assert await net.request(message, RTM_NEWLINK, 0x600) == []
        assert "br7" in await names(s)
        with pytest.raises(ValueError, match="is no message type"):
            await net.request(ifinfmsg())
        with pytest.raises(TypeError, match="pyroute2"):
            await net.request({})


async def test_names_that_are_no_text() -> None:
    """Names are bytes, and whoever is root inside chooses them."""
    async with network() as (s, net):
        async with linx.enter(
            s, [b"ip", b"link", b"add", b"x\xff", b"type", b"bridge"], namespaces={"user", "net"}
        ) as add:
            await add.proceed()
            assert await add.wait() == linx.Exited(0)
        (found,) = [link for link in await net.links() if link.kind == "bridge"]
        assert found.name == os.fsdecode(b"x\xff")
        await net.set_up(found.name)
        assert (await net.link(found)).up
        await net.delete(found.name)
        assert await names(s) == {"lo"}


async def test_the_workloads_first_instruction_finds_its_network() -> None:
    program = ["ip", "-j", "address", "show", "eth0"]
    async with (
        namespace() as s,
        linx.net.open(s) as host,
        linx.enter(s, program, unshare={"net"}, stdout=linx.PIPE) as child,
        linx.net.open(child) as ns,
    ):
        await host.create_veth("up0", "eth0", peer_netns=child)
        await ns.add_address("eth0", "10.0.0.5", 24)
        await ns.set_up("eth0")
        await host.set_up("up0")
        await ns.add_default_route("10.0.0.1")
        await child.proceed()
        assert child.stdout is not None
        text = b"".join([bytes(chunk) async for chunk in child.stdout])
        assert b'"local":"10.0.0.5"' in text.replace(b" ", b"")


async def test_a_long_list_that_is_cut_short() -> None:
    """The kernel makes a list up while it is read, and begins no other one before it has come to its end."""
    count = 200
    async with network() as (_s, net):
        for number in range(count):
            await net.add_route(f"10.{number // 256}.{number % 256}.0/24", type="blackhole")
        net._rtnl._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # so that it does not run far ahead
        cut = 0
        for turns in range(12):
            async with cancelled_after(turns) as scope:
                await net.routes(family=4)
            cut += scope.cancelled_caught
            assert len(await net.routes(family=4)) == count
        assert cut > 1
