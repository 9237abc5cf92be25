"""Hearing of changes, whoever makes them."""

from __future__ import annotations

import errno
import ipaddress

import pytest
import trio
import trio.testing

import linx_trio as linx
from linx_trio.net import Address, Change, Link, Monitor, Neighbour, Qdisc, Route, Rule
from tests.agent.networks import guest, namespace, network, run_in


async def heard(changes: Monitor, kind: type, action: str) -> Change:
    with trio.fail_after(60):
        async for change in changes:
            if isinstance(change.thing, kind) and change.action == action:
                return change
    raise AssertionError("it has ended")


async def for_ever(changes: Monitor) -> None:
    while True:
        await anext(changes)


async def test_changes_of_every_kind() -> None:
    async with network() as (s, net), net.monitor() as changes:
        await run_in(s, "ip", "link", "add", "br0", "type", "bridge")
        new = await heard(changes, Link, "new")
        match new:
            case Change("new", Link(name="br0", kind="bridge")):
                pass
            case _:
                raise AssertionError(new)
        assert new.message.get_attr("IFLA_IFNAME") == "br0"
        await run_in(s, "ip", "link", "set", "br0", "up")
        await run_in(s, "ip", "address", "add", "10.0.0.1/24", "dev", "br0")
        added = await heard(changes, Address, "new")
        assert added.thing.interface == ipaddress.ip_interface("10.0.0.1/24")  # type: ignore[union-attr]
        await run_in(s, "ip", "route", "add", "10.9.0.0/16", "via", "10.0.0.2")
        while (await heard(changes, Route, "new")).thing.destination.prefixlen != 16:  # type: ignore[union-attr]
            pass
        await run_in(s, "ip", "neighbour", "add", "10.0.0.9", "lladdr", "02:00:00:00:00:09", "dev", "br0")
        assert (await heard(changes, Neighbour, "new")).thing.state == "permanent"  # type: ignore[union-attr]
        await run_in(s, "ip", "rule", "add", "priority", "77", "table", "300")
        assert (await heard(changes, Rule, "new")).thing.priority == 77  # type: ignore[union-attr]
        await run_in(
            s, "tc", "qdisc", "add", "dev", "br0", "root", "tbf", "rate", "1mbit", "burst", "9k", "limit", "9k"
        )
        while (await heard(changes, Qdisc, "new")).thing.kind != "tbf":  # type: ignore[union-attr]
            pass
        await run_in(s, "ip", "link", "delete", "br0")
        assert (await heard(changes, Link, "deleted")).thing.name == "br0"  # type: ignore[union-attr]


async def test_only_what_was_asked_for() -> None:
    async with network() as (s, net), net.monitor({"rules"}) as changes:
        await run_in(s, "ip", "link", "set", "lo", "up")
        await run_in(s, "ip", "rule", "add", "priority", "77", "table", "300")
        with trio.fail_after(60):
            assert isinstance((await anext(changes)).thing, Rule)


async def test_without_a_block() -> None:
    async with network() as (_s, net):
        monitor = net.monitor({"links"})
        async with trio.open_nursery() as nursery:

            async def change() -> None:
                while True:
                    await net.set_up("lo")
                    await net.set_down("lo")
                    await trio.sleep(0.01)

            nursery.start_soon(change)
            with trio.fail_after(60):
                async for found in monitor:
                    assert found.thing.name == "lo"  # type: ignore[union-attr]
                    break
            nursery.cancel_scope.cancel()
    with pytest.raises(trio.ClosedResourceError):  # it ends with its Net
        await anext(monitor)


async def test_links_come_and_go_with_their_namespaces() -> None:
    async with network() as (s, net), net.monitor({"links"}) as changes:
        async with guest(s) as g:
            await net.create_veth("v0", "eth0", peer_netns=g)
            assert (await heard(changes, Link, "new")).thing.name == "v0"  # type: ignore[union-attr]
        assert (await heard(changes, Link, "deleted")).thing.name == "v0"  # type: ignore[union-attr]


async def test_too_many_changes_are_not_silently_lost() -> None:
    async with network() as (_s, net), net.monitor({"links"}) as changes:
        assert changes._rtnl is not None
        changes._rtnl._sock.setsockopt(1, 8, 1)  # SO_RCVBUF, as small as the kernel allows
        for _ in range(20):
            await net.set_up("lo")
            await net.set_down("lo")
        with trio.fail_after(60), pytest.raises(OSError, match="changes came faster than they were taken") as caught:
            await for_ever(changes)
        assert caught.value.errno == errno.ENOBUFS
        changes._rtnl._sock.setsockopt(1, 8, 1 << 20)
        async with trio.open_nursery() as nursery:  # those that were kept
            nursery.start_soon(for_ever, changes)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await net.create_bridge("br0")
        while (await heard(changes, Link, "new")).thing.name != "br0":  # type: ignore[union-attr]
            pass


async def test_cancelled_and_closed() -> None:
    async with network() as (_s, net):
        async with net.monitor() as changes:
            with trio.move_on_after(0.01) as scope:
                await anext(changes)
            assert scope.cancelled_caught
            await net.set_up("lo")
            await heard(changes, Link, "new")
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    with pytest.raises(trio.ClosedResourceError):
                        await for_ever(changes)

                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                await changes.aclose()
        changes.close()


async def test_a_target_that_has_moved_on() -> None:
    """A monitor hears of the namespace that its Net is of, or it is refused."""
    program = ["sh", "-c", "read x; exec unshare -n sleep 100000"]
    async with namespace() as s, linx.enter(s, program, unshare={"net"}, stdin=linx.PIPE) as g:
        await g.proceed()
        async with linx.net.open(g.host_pid) as net:
            if net._cookie is None:
                return  # before Linux 5.14 nobody can tell
            assert g.stdin is not None
            before = (await net.link("lo")).netns
            await g.stdin.send_all(b"\n")
            with trio.fail_after(60):
                while True:
                    async with linx.net.open(g.host_pid) as other:
                        if (await other.link("lo")).netns != before:
                            break
            with pytest.raises(OSError, match="another network namespace than it was"):
                async with net.monitor():
                    pass
