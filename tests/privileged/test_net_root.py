"""`linx_trio.net` as root has it: in the caller's own namespace, with named ones, and tun and tap links.

"The host" is a network namespace of the test's own, whose link to the world is a veth end that is called eth0.
"""

from __future__ import annotations

import contextlib
import errno
import json
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import linx_trio as linx
from linx_trio.net import Net
from tests.agent.networks import SLEEP, ip, names
from tests.agent.probes import needs_root

pytestmark = needs_root
ROOT = Path(linx.__file__).parents[1]


@contextlib.asynccontextmanager
async def host() -> AsyncIterator[linx.Session]:
    async with linx.spawn(SLEEP, namespaces={"net"}, stdio=linx.DEVNULL) as s:
        async with linx.net.open(s) as net:
            await net.create_veth("eth0", "uplink", keep=True)
            await net.set_up("eth0")
            await net.set_up("uplink")
        yield s


async def run_on(s: linx.Session, program: str, *arguments: str) -> str:
    """What a Python of its own prints, for which this is the host."""
    argv = [sys.executable, "-W", "error", "-c", program, *arguments]
    async with linx.enter(s, argv, namespaces={"net"}, stdout=linx.PIPE, cwd=ROOT) as python:
        await python.proceed()
        assert python.stdout is not None
        text = b"".join([bytes(chunk) async for chunk in python.stdout]).decode()
        assert await python.wait() == linx.Exited(0), text
    return text


async def test_the_first_example() -> None:
    """The project's first example of a network, as it stands in the documentation."""
    async with host() as s:
        before = await ip(s, "link")
        program = f"import runpy; runpy.run_path({str(ROOT / 'docs/examples/macvlan.py')!r}, run_name='__main__')"
        lines = (await run_on(s, program)).splitlines()
        assert lines[0].split() == ["lo", "UNKNOWN", "127.0.0.1/8", "::1/128"]
        assert lines[1].split()[0].startswith("ct0@if")
        assert lines[1].split()[1:3] == ["UP", "10.0.0.5/24"]
        assert lines[2].strip() == "default via 10.0.0.1 dev ct0"
        assert lines[-1] == "Exited(code=0)"
        after = await ip(s, "link")
        assert [link["ifname"] for link in after] == [link["ifname"] for link in before]


async def test_the_callers_own_namespace() -> None:
    program = """
import trio, linx_trio as linx
async def main():
    async with linx.net.open() as net:
        await net.create_bridge("br0")
        print(*[link.name for link in await net.links()])
        async with net.monitor({"links"}) as changes:
            await net.create_bridge("br1")
            print((await anext(changes)).thing.name)
    async with linx.net.open() as net:
        print(*[link.name for link in await net.links()])
trio.run(main)
"""
    async with host() as s:
        assert await run_on(s, program) == "lo uplink eth0 br0\nbr1\nlo uplink eth0\n"


async def test_tun_and_tap() -> None:
    program = """
import trio, linx_trio as linx
async def main():
    async with linx.net.open() as net, linx.spawn(["sleep", "1000"], namespaces={"net"}) as child:
        tap = await net.create("tap0", "tap", mac="02:00:00:00:00:01", mtu=1400, uid=1234)
        print(tap.name, tap.kind, tap.mac, tap.mtu, open("/sys/class/net/tap0/owner").read().strip())
        tun = await net.create("tun0", "tun")
        print(tun.name, tun.kind, tun.mac)
        try:
            await net.create("tap0", "tap")
        except OSError as exc:
            print(exc.errno, exc.filename)
        moved = await net.move_to_netns(tun, child)
        await net.create("kept", "tap", keep=True)
        async with linx.net.open(child) as there:
            print(moved.name, [link.name for link in await there.links()])
            try:
                await there.create("tap1", "tap")
            except OSError as exc:
                print(exc.errno, exc.filename)
    async with linx.net.open() as net:
        print(*[link.name for link in await net.links()])
trio.run(main)
"""
    async with linx.spawn(SLEEP, namespaces={"net", "mount"}, mounts=[linx.mount.Sysfs()]) as s:
        argv = [sys.executable, "-W", "error", "-c", program]
        async with linx.enter(s, argv, namespaces={"net", "mount"}, stdout=linx.PIPE, cwd=ROOT) as python:
            await python.proceed()
            assert python.stdout is not None
            text = b"".join([bytes(chunk) async for chunk in python.stdout]).decode()
    assert text.splitlines() == [
        "tap0 tun 02:00:00:00:00:01 1400 1234",
        "tun0 tun None",
        f"{errno.EBUSY} tap0",
        "tun0 ['lo', 'tun0']",
        f"{errno.EOPNOTSUPP} tap1",
        "lo kept",
    ]


@pytest.fixture(scope="module")
def place_of_names() -> Iterator[None]:
    """A machine's first ``ip netns add`` makes a mount of it, and leaves it."""
    was_there = " /run/netns " in Path("/proc/self/mountinfo").read_text()
    subprocess.run(["ip", "netns", "add", "linx-test"], check=True)
    subprocess.run(["ip", "netns", "delete", "linx-test"], check=True)
    yield
    if not was_there:
        subprocess.run(["umount", "/run/netns"], check=True)


@pytest.fixture
def named(place_of_names: None) -> Iterator[str]:
    """As ``ip netns add`` makes them."""
    name = f"linx-test-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True)


def links_of(named: str) -> set[str]:
    done = subprocess.run(["ip", "-n", named, "-j", "link"], capture_output=True, check=True)
    return {link["ifname"] for link in json.loads(done.stdout)}


async def test_named_namespaces(named: str) -> None:
    path = f"/run/netns/{named}"
    async with host() as s, linx.net.open(s) as net:
        async with linx.net.open(path) as there:
            await there.set_up("lo")
            await net.create_veth("v0", "v1", peer_netns=path)
            moved = await net.move_to_netns(await net.create_macvlan("mv", "eth0"), Path(path))
            assert moved.name == "mv"
            await there.create_bridge("br0")
            assert links_of(named) == {"lo", "v1", "mv", "br0"}
            async with there.monitor({"links"}) as changes:
                await there.create_bridge("br1")
                assert (await anext(changes)).thing.name == "br1"  # type: ignore[union-attr]
        assert links_of(named) == {"lo", "v1", "mv"}
    assert links_of(named) == {"lo"}


async def test_a_file_that_is_no_namespace(tmp_path: Path) -> None:
    file = tmp_path / "netns"
    file.write_text("")
    async with host() as s, linx.net.open(s) as net:
        for target in (file, "/proc/self/ns/uts"):
            with pytest.raises(OSError, match=r"Invalid argument|no network namespace"):
                await net.move_to_netns("eth0", target)
            with pytest.raises(OSError, match="Invalid argument"):
                async with linx.net.open(target):
                    pass
        assert await names(s) == {"lo", "eth0", "uplink"}


async def test_between_sessions_with_user_namespaces_of_their_own() -> None:
    """Neither has rights over the other; root has them over both, from a namespace of its own."""
    options: dict[str, Any] = {"namespaces": {"user", "net"}, "user": linx.user.root_map(), "stdio": linx.DEVNULL}
    async with host() as s, linx.spawn(SLEEP, **options) as one, linx.spawn(SLEEP, **options) as other:
        async with linx.net.open(s) as net:
            for session in (one, other):
                async with linx.net.open(session) as there:
                    await there.set_up("lo")
            await net.create_veth("v0", "v1", keep=True)
            await net.move_to_netns("v0", one, name="eth0")
            await net.move_to_netns("v1", other, name="eth0")
        async with linx.net.open(one) as there, linx.net.open(other) as elsewhere:
            for number, which in enumerate((there, elsewhere), 1):
                await which.add_address("eth0", f"10.0.0.{number}/24")
                await which.set_up("eth0")
            await both_up(there, elsewhere)
            with pytest.raises(PermissionError) as caught:
                await there.create_veth("x0", "x1", peer_netns=other)
            assert "the opener of this Net must have it in both" in caught.value.__notes__[0]
            with pytest.raises(PermissionError) as caught:
                await there.move_to_netns("eth0", elsewhere)
            assert "the opener of this Net must have it in both" in caught.value.__notes__[0]


async def both_up(*nets: Net) -> None:
    """Both ends of a pair carry."""
    for net in nets:
        with trio.fail_after(60):
            while (await net.link("eth0")).state != "up":
                await trio.lowlevel.checkpoint()


async def test_traffic() -> None:
    """What is configured carries packets: through a router, with a default route."""
    listen = (
        "import socket; s = socket.socket(); s.bind(('10.2.0.2', 7)); s.listen(); print('up', flush=True); "
        "s.accept()[0].sendall(b'hello')"
    )
    connect = "import socket; print(socket.create_connection(('10.2.0.2', 7), 30).recv(9).decode())"
    async with (
        linx.spawn(SLEEP, namespaces={"net"}, sysctls={"net.ipv4.ip_forward": "1"}, stdio=linx.DEVNULL) as router,
        linx.spawn([sys.executable, "-c", listen], namespaces={"net"}, stdout=linx.PIPE) as server,
        linx.spawn([sys.executable, "-c", connect], namespaces={"net"}, stdout=linx.PIPE) as client,
        linx.net.open(router) as net,
    ):
        for number, session in enumerate((client, server), 1):
            await net.create_veth(f"r{number}", "eth0", peer_netns=session)
            await net.add_address(f"r{number}", f"10.{number}.0.1/24")
            await net.set_up(f"r{number}")
            async with linx.net.open(session) as there:
                await there.add_address("eth0", f"10.{number}.0.2", 24)
                await there.set_up("eth0")
                await there.add_default_route(f"10.{number}.0.1")
        await server.proceed()
        assert server.stdout is not None
        assert await server.stdout.receive_some() in (b"up\n", b"up")
        await client.proceed()
        assert client.stdout is not None
        with trio.fail_after(60):
            assert b"".join([bytes(chunk) async for chunk in client.stdout]) == b"hello\n"
