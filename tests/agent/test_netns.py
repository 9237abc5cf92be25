"""Netlink sockets that are opened inside a network namespace and used from here."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

import linx_trio as linx
from linx_trio._netns import open_netlink
from linx_trio._proto import messages as m
from tests.agent.containers import container, parked_container
from tests.agent.rights import Options, in_both_ways
from tests.support import DEADLINE, eventually_async, open_fds

Rights = Callable[..., Options]
NETNS_KINDS = {"user", "net"}
GETLINK, NEWLINK, DONE = 18, 16, 3
NLM_F_REQUEST, NLM_F_DUMP = 1, 0x300


def namespace_of(pid: int | str) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


async def links_of(sock: socket.socket) -> list[int]:
    """The indices of all links that a routing socket sees."""
    found: list[int] = []
    with trio.socket.from_stdlib_socket(sock) as s, trio.fail_after(DEADLINE):
        await s.send(struct.pack("=LHHLLBxHiLL", 32, GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0, 0, 0, 0, 0, 0))
        while True:
            data = await s.recv(65536)
            while data:
                length, kind, *_ = struct.unpack_from("=LHHLL", data)
                if kind == DONE:
                    return found
                assert kind == NEWLINK
                found.append(struct.unpack_from("=BxHi", data, 16)[2])
                data = data[(length + 3) & ~3 :]


async def test_of_our_own_namespace() -> None:
    assert sorted(await links_of(await open_netlink(None))) == sorted(index for index, _ in socket.if_nameindex())


@in_both_ways
@pytest.mark.parametrize("start", [parked_container, container])
async def test_of_a_session(rights: Rights, start: Callable[..., linx.Session]) -> None:
    """There is nothing but ``lo``, whose index is 1."""
    kinds = rights("net")["namespaces"]
    async with start(kinds) as target:  # type: ignore[attr-defined]
        for what in (target, target.host_pid, target.pidfd, f"/proc/{target.host_pid}"):
            sock = await open_netlink(what)
            assert not sock.getblocking()
            assert not os.get_inheritable(sock.fileno())
            assert 1 in await links_of(sock)
        assert target.state in ("ready", "running")


async def test_a_parked_child_opens_many() -> None:
    async with parked_container(NETNS_KINDS) as target:
        opened: list[socket.socket] = []

        async def one() -> None:
            opened.append(await open_netlink(target))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(one)
        assert len({sock.fileno() for sock in opened}) == 20
        for sock in opened:
            assert await links_of(sock) == await links_of(await open_netlink(target.host_pid))


async def test_it_outlives_its_namespace_harmlessly() -> None:
    async with container(NETNS_KINDS) as target:
        sock = await open_netlink(target)
    assert 1 in await links_of(sock)


@pytest.mark.parametrize("start", [parked_container, container])
async def test_a_protocol_that_is_not_there(start: Callable[..., linx.Session]) -> None:
    async with start(NETNS_KINDS) as target:  # type: ignore[attr-defined]
        before = open_fds()
        with pytest.raises(linx.SetupError) as caught:
            await open_netlink(target, 31)
        assert (caught.value.stage, caught.value.errno) == ("netlink", errno.EPROTONOSUPPORT)
        assert open_fds() == before
        assert 1 in await links_of(await open_netlink(target))


async def test_what_is_no_namespace() -> None:
    with pytest.raises(linx.SetupError) as caught:
        await open_netlink("/proc/self/status")
    assert (caught.value.stage, caught.value.errno) == ("setns_net", errno.EINVAL)
    with pytest.raises(linx.SetupError) as caught:
        await open_netlink("/nowhere/at/all")
    assert (caught.value.stage, caught.value.errno) == ("open_ns_user", errno.ENOENT)


async def test_after_its_end() -> None:
    async with linx.spawn(["true"], namespaces=NETNS_KINDS, user=linx.user.root_map()) as s:
        await s.abort()
        with pytest.raises(linx.NoProcess):
            await open_netlink(s)


async def test_cancelled_it_leaves_nothing_open() -> None:
    """At any moment: before it is sent, while the child is at it, when the answer is there."""

    async def open_and_close(target: linx.Session) -> None:
        (await open_netlink(target)).close()

    async def at_once(target: linx.Session) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await open_and_close(target)

    async def soon(target: linx.Session) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(open_and_close, target)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()

    tries: list[Callable[[linx.Session], Awaitable[None]]] = [at_once, soon]
    async with parked_container(NETNS_KINDS) as target:
        (await open_netlink(target)).close()
        before = open_fds()
        for _ in range(20):
            for cancel in tries:
                await cancel(target)
        await target.take_steps([(("umask", 0o077), "a later batch: all before it has been answered")])
        await eventually_async(lambda: open_fds() == before, "each socket that came is closed")


async def test_a_socket_that_nobody_asked_for_is_nonsense() -> None:
    async with parked_container(NETNS_KINDS) as target:
        read, write = os.pipe()
        os.close(write)
        with pytest.raises(m.Nonsense):
            target._apply(m.Opened(), read)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(read)
