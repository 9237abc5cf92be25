"""Labs that are as they were declared: seen by their own hosts, with the programs that one has for that."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

import linx_trio as linx
from linx_trio import mount
from linx_trio.net import Lab
from tests.agent.labs import (
    addresses_of,
    ip,
    is_out_of_reach,
    link_of,
    netem_is_there,
    output,
    pair,
    ping,
    rights,
    routes_of,
    tc,
    two_hosts,
)
from tests.agent.roots import needs_busybox
from tests.support import DEADLINE, exists

__all__ = ["rights"]
pytestmark = needs_busybox
ROOT = Path(__file__).resolve().parents[2]


async def read_until(stream: trio.abc.ReceiveStream, needle: bytes) -> bytes:
    seen = b""
    with trio.fail_after(DEADLINE):
        while not seen.endswith(needle):
            chunk = await stream.receive_some(1)
            assert chunk, f"the end, and no {needle!r} in {seen!r}"
            seen += chunk
    return seen


def machine(*argv: str) -> str:
    """What the machine itself says."""
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


# ---- what reaches whom -----------------------------------------------------------------------------------------------


async def test_two_hosts_and_a_switch(rights: str) -> None:
    async with Lab() as lab:
        a, b = lab.host("a"), lab.host("b")
        s1 = lab.switch("s1")
        lab.link(a, s1, address=["10.0.0.1/24", "fd00::1/64"])
        lab.link(b, s1, address=["10.0.0.2/24", "fd00::2/64"])
        assert await ping(a, "b")
        assert await ping(b, "10.0.0.1")
        assert await ping(a, "fd00::2")
        assert addresses_of(await link_of(a)) == {"10.0.0.1/24", "fd00::1/64"}
        assert [link["ifname"] for link in await ip(b, "link")] == ["lo", "eth0"]
        assert await output(b, "hostname") == "b\n"
        assert {link.name for link in await lab.net.links()} == {"lo", "s1", "s1-eth0", "s1-eth1"}
        user = os.readlink(f"/proc/{a.anchor.host_pid}/ns/user")
        assert (user == os.readlink("/proc/self/ns/user")) is (rights == "as root")
        assert user == os.readlink(f"/proc/{b.anchor.host_pid}/ns/user")


async def test_a_router_forwards_both_kinds(rights: str) -> None:
    async with Lab() as lab:
        a = lab.host("a", gateway=["10.1.0.1", "fd01::1"])
        b = lab.host("b", gateway=["10.2.0.1", "fd02::1"], routes={"10.9.0.0/16": "10.2.0.9"})
        r = lab.router("r")
        lab.link(a, r, address=["10.1.0.2/24", "fd01::2/64"], peer_address=["10.1.0.1/24", "fd01::1/64"])
        lab.link(b, r, address=["10.2.0.2/24", "fd02::2/64"], peer_address=["10.2.0.1/24", "fd02::1/64"])
        assert await ping(a, "10.2.0.2")
        assert await ping(b, "fd01::2")
        assert await routes_of(b) == {("default", "10.2.0.1"), ("10.9.0.0/16", "10.2.0.9")}
        assert await routes_of(b, 6) == {("default", "fd02::1")}
    async with Lab() as lab:  # the same, and the one in the middle is no router
        a, b, r = lab.host("a", gateway="10.1.0.1"), lab.host("b", gateway="10.2.0.1"), lab.host("r")
        lab.link(a, r, address="10.1.0.2/24", peer_address="10.1.0.1/24")
        lab.link(b, r, address="10.2.0.2/24", peer_address="10.2.0.1/24")
        assert await ping(a, "10.1.0.1")
        assert await is_out_of_reach(a, "10.2.0.2")


async def test_switches_in_a_row() -> None:
    async with Lab() as lab:
        switches = [lab.switch(f"s{i}") for i in range(3)]
        for one, other in itertools.pairwise(switches):
            lab.link(one, other)
        a, b = lab.host("a"), lab.host("b")
        lab.link(a, switches[0], address="10.0.0.1/24")
        lab.link(switches[2], b, peer_address="10.0.0.2/24")
        assert await ping(a, "b")
        assert [link.names for link in lab.links][:2] == [("s0-eth0", "s1-eth0"), ("s1-eth1", "s2-eth0")]


async def test_nothing_is_lost_right_after_the_start() -> None:
    """Nobody need wait a second for a first packet that a link was not yet ready for."""
    for _ in range(5):
        async with Lab() as lab:
            switch, hosts = lab.switch("s"), [lab.host(f"h{i}") for i in range(6)]
            links = [lab.link(host, switch, address=f"10.0.0.{i}/24") for i, host in enumerate(hosts, 1)]
            links.append(lab.link(hosts[0], hosts[1]))
            await lab.start()
            states = {link.name: link.state for link in await lab.net.links() if link.kind == "veth"}
            assert set(states.values()) == {"up"}, states
            assert (await hosts[0].net.link("eth1")).state == (await hosts[1].net.link("eth1")).state == "up"
            assert not [address for address in await hosts[0].net.addresses() if address.tentative]


# ---- what is declared ------------------------------------------------------------------------------------------------


async def test_everything_that_a_link_can_be_told() -> None:
    async with Lab() as lab:
        a, b, s = lab.host("a"), lab.host("b"), lab.switch("s", mac="02:00:00:00:00:10", stp_state=1)
        lab.link(
            a,
            b,
            name="left",
            peer_name="right",
            mac="02:00:00:00:00:0A",
            peer_mac="02:00:00:00:00:0b",
            mtu=9000,
            address="10.0.0.1/30",
        )
        lab.link(a, s, rate="8mbit", peer_name="port", mtu=1280)
        await lab.start()
        left, right, port = await link_of(a, "left"), await link_of(b, "right"), await link_of(a)
        assert (left["address"], left["mtu"], left["operstate"]) == ("02:00:00:00:00:0a", 9000, "UP")
        assert (right["address"], right["mtu"], right["addr_info"][0]["scope"]) == ("02:00:00:00:00:0b", 9000, "link")
        assert addresses_of(left) == {"10.0.0.1/30"}
        assert port["mtu"] == 1280
        (shape,) = await tc(a, "qdisc", "show", "dev", "eth0")
        assert (shape["kind"], shape["options"]["rate"]) == ("tbf", 1_000_000)  # tc says it in bytes
        assert [qdisc.kind for qdisc in await lab.net.qdiscs("port")] == ["tbf"]
        assert (await lab.net.link("s")).mac == "02:00:00:00:00:10"
        assert (await lab.net.link("port")).master == (await lab.net.link("s")).index
        assert [qdisc["kind"] for qdisc in await tc(a, "qdisc", "show", "dev", "left")] == ["noqueue"]


async def test_what_a_host_can_be_told(tmp_path: Path) -> None:
    motd = tmp_path / "motd"
    motd.write_text("hello\n")
    async with Lab() as lab:
        host = lab.host(
            "a" * 63 + "z",
            sysctls={"net.ipv4.icmp_echo_ignore_all": 1},
            mounts=[
                mount.Bind(tmp_path, "/mnt"),
                mount.Tmpfs("/srv"),
                mount.File("/srv/own", "mine\n"),
                mount.File(motd, "bye\n"),  # it covers, and does not write to the machine's disk
            ],
        )
        other = lab.host("ü")
        files = ["/mnt/motd", motd, "/srv/own", "/proc/sys/net/ipv4/icmp_echo_ignore_all"]
        assert await output(host, "cat", *map(str, files)) == "hello\nbye\nmine\n1\n"
        assert await output(other, "cat", str(motd)) == motd.read_text() == "hello\n"
        await host.run(["sh", "-c", f"echo more >> {motd}"])
        assert await output(host, "tail", "-1", str(motd)) == "more\n"
        assert motd.read_text() == "hello\n"
        assert await output(host, "hostname") == "a" * 63 + "z\n"
        assert await output(other, "hostname") == "ü\n"
        assert (await other.run(["test", "-e", "/srv/own"], check=False)).returncode == 1
        lab.host("c", mounts=[mount.File(tmp_path / "nothing", "")])
        with pytest.raises(FileNotFoundError) as caught:
            await lab.start()
        assert "the machine's disk" in str(caught.value)
        assert os.listdir(tmp_path) == ["motd"]


async def test_more_can_be_declared_later() -> None:
    async with Lab() as lab:
        a, _, _ = pair(lab)
        assert await ping(a, "b")
        c = lab.host("c")
        assert [link["ifname"] for link in await ip(c, "link")] == ["lo"]
        switch = lab.switch("s")
        assert repr(switch) == "<linx_trio.net.Switch 's'>"
        link = lab.link(a, c, address="10.1.0.1/24", peer_address="10.1.0.2/24")
        assert repr(link) == "<linx_trio.net.LabLink a:eth1 - c:eth0>"
        assert await ping(a, "c")
        assert await ping(c, "10.1.0.1")
        assert (lab["a"], lab.hosts[2], lab.switches, link.nodes) == (a, c, (switch,), (a, c))
        assert len(lab.links) == 2
    assert repr(lab) == "<linx_trio.net.Lab of a, b, c, s>"


async def test_long_names() -> None:
    async with Lab() as lab:
        switch, other = lab.switch("s" * 15), lab.switch("sw-éééé")
        a, b = lab.host("a"), lab.host("b")
        links = [
            lab.link(a, switch, address="10.0.0.1/24", name="ééééééé"),
            lab.link(switch, other),
            lab.link(other, b, peer_address="10.0.0.2/24"),
        ]
        assert [link.names for link in links] == [
            ("ééééééé", "port0"),
            ("port1", "port2"),
            ("port3", "eth0"),
        ]
        assert await ping(a, "b")


async def test_two_labs_at_once_are_two() -> None:
    async with two_hosts() as (_, a, b), two_hosts() as (_, other_a, other_b):
        await a.net.add_address("eth0", "10.0.0.77/24")
        assert await ping(b, "10.0.0.77")
        assert await ping(other_b, "a")
        assert await is_out_of_reach(other_b, "10.0.0.77")
        assert addresses_of(await link_of(other_a)) == {"10.0.0.1/24", "fd00::1/64"}


async def test_an_empty_lab_and_one_that_is_never_started() -> None:
    async with Lab() as lab:
        await lab.start()
        assert [link.name for link in await lab.net.links()] == ["lo"]
    async with Lab() as lab:
        pair(lab)
        with pytest.raises(RuntimeError, match="'a'> has not been made yet"):
            _ = lab.hosts[0].net


# ---- names and files -------------------------------------------------------------------------------------------------


async def test_hosts_find_each_other_by_name(rights: str) -> None:
    async with Lab() as lab:
        a, r = lab.host("a"), lab.router("r", gateway="10.0.0.1")
        nobody = lab.host("nobody")
        lab.link(a, r, address="10.0.0.1/24", peer_address=["10.0.0.2/24", "fd00::2/64"])
        before = machine("cat", "/etc/hosts")
        text = await output(a, "cat", "/etc/hosts")
        assert text == await output(nobody, "cat", "/etc/hosts")
        assert [line.split() for line in text.splitlines()[2:]] == [
            ["10.0.0.1", "a"],
            ["10.0.0.2", "r"],
            ["fd00::2", "r"],
        ]
        assert (await output(nobody, "getent", "hosts", "a")).split() == ["10.0.0.1", "a"]
        assert (await output(a, "getent", "hosts", "localhost")).split()[0] in ("127.0.0.1", "::1")
        lab.link(nobody, r, address="10.1.0.3/24")
        assert (await output(a, "getent", "hosts", "nobody")).split() == ["10.1.0.3", "nobody"]
        done = await a.run(["sh", "-c", "echo x >> /etc/hosts"], check=False, stderr=linx.DEVNULL)
        assert done.returncode != 0, "nobody but the lab writes there"
        assert machine("cat", "/etc/hosts") == before
        assert "nameserver" not in await output(a, "cat", "/etc/resolv.conf")
        assert lab.degraded == {}


async def test_sys_shows_a_hosts_own_links(rights: str) -> None:
    async with two_hosts() as (lab, a, _b):
        await a.net.create_bridge("br")
        assert sorted((await output(a, "ls", "/sys/class/net")).split()) == ["br", "eth0", "lo"]
        assert await output(a, "cat", "/sys/class/net/eth0/mtu") == "1500\n"
        assert await output(a, "ls", "/sys/fs/cgroup") == "".join(
            f"{n}\n" for n in sorted(os.listdir("/sys/fs/cgroup"))
        )
        assert (await output(a, "ls", "/proc/self/ns")).split(), "what was mounted aside is gone"
        assert lab.degraded == {}


def nested(program: str) -> list[str]:
    """A Python that uses the package, with a lab of its own."""
    head = f"import sys; sys.path[:0] = {[str(ROOT), *sys.path]!r}\nimport os, trio, linx_trio as linx\n"
    return [sys.executable, "-c", head + program]


NESTED = """
from linx_trio import _lab_site
_lab_site._is_privileged = lambda: RIGHTS
async def main():
    async with linx.net.Lab() as lab:
        a, b = lab.host("inner-a"), lab.host("inner-b")
        lab.link(a, b, address="10.0.0.1/24", peer_address="10.0.0.2/24")
        links = await a.run(["ls", "/sys/class/net"], capture_stdout=True)
        await a.run(["busybox", "ping", "-c", "1", "inner-b"], stdout=linx.DEVNULL)
        print(lab.degraded.get("/sys", "fine"), *links.stdout.split())
trio.run(main)
"""


async def test_a_lab_on_a_labs_host(rights: str) -> None:
    async with two_hosts() as (_, a, _b):
        program = NESTED.replace("RIGHTS", str(rights == "as root"))
        assert await output(a, *nested(program)) == "fine b'eth0' b'lo'\n"


async def test_where_sys_cannot_be_had_that_is_said() -> None:
    """As in a container, where parts of it are covered."""
    done = await linx.run(
        nested(NESTED.replace("RIGHTS", "False")),
        capture_stdout=True,
        namespaces={"user", "net", "mount"},
        user=linx.user.root_map(),
        mounts=[mount.Tmpfs("/sys/kernel")],
    )
    text = done.stdout.decode()
    assert "Operation not permitted" in text
    assert {f"b'{name}'" for name in machine("ls", "/sys/class/net").split()} <= set(text.split()), "the machine's"


# ---- shapes ----------------------------------------------------------------------------------------------------------


async def test_a_rate_can_be_changed_and_taken_away() -> None:
    async with two_hosts(rate=1e6) as (lab, a, b):
        (link,) = lab.links
        for host in (a, b):
            (found,) = await tc(host, "qdisc", "show", "dev", "eth0")
            assert (found["kind"], found["options"]["rate"]) == ("tbf", 125_000)
        await link.shape(rate="80mbit")
        (found,) = await tc(a, "qdisc", "show", "dev", "eth0")
        assert found["options"]["rate"] == 10_000_000
        await link.shape()
        await link.shape(loss=0, delay="0ms")
        assert [q["kind"] for q in await tc(b, "qdisc", "show", "dev", "eth0")] == ["noqueue"]
        assert await ping(a, "b")
        with pytest.raises(ValueError, match="needs delay="):
            await link.shape(jitter="1ms")


TIMED = """
import socket, time
server = socket.create_server(("10.0.0.1", 99))
print("up", flush=True)
with server.accept()[0] as s:
    started = time.monotonic()
    size = sum(map(len, iter(lambda: s.recv(65536), b"")))
print(size, time.monotonic() - started)
"""
SENDER = "import socket; s = socket.create_connection(('10.0.0.1', 99)); s.sendall(bytes(60000))"


async def test_a_rate_is_kept() -> None:
    """It takes as long as it must; that it takes no longer is not asserted, on a machine that may be slow."""
    async with Lab() as lab:
        a, b, _ = pair(lab, rate="1mbit")
        async with a.spawn([sys.executable, "-c", TIMED], stdout=linx.PIPE) as receiver:
            await receiver.proceed()
            await until_up(receiver)
            await b.run([sys.executable, "-c", SENDER])
            assert receiver.stdout is not None
            size, seconds = (await read_until(receiver.stdout, b"\n")).split()
            assert int(size) == 60000
            assert float(seconds) > 0.3


async def test_a_delay_or_a_clear_refusal() -> None:
    """Then the rest can be had, and the lab ends as any other."""
    async with Lab() as lab:
        a, b, link = pair(lab, delay="20ms", loss=0.5)
        if netem_is_there():
            for host in (a, b):
                (found,) = await tc(host, "qdisc", "show", "dev", "eth0")
                assert (found["kind"], found["options"]["delay"]["delay"]) == ("netem", 0.02)
            return
        with pytest.raises(OSError, match=r"Operation not supported: .*netem on eth0") as caught:
            await lab.start()
        assert caught.value.errno == errno.EOPNOTSUPP
        assert "sch_netem" in caught.value.__notes__[0]
        with pytest.raises(OSError, match="netem"):
            await link.set_up()
        assert not (await a.net.link("eth0")).up
        assert not (await b.net.link("eth0")).up


# ---- cables ----------------------------------------------------------------------------------------------------------


async def test_a_pulled_cable_at_a_switch() -> None:
    """A host sees that it has no carrier, and keeps what it was told."""
    async with Lab() as lab:
        a, b, s = lab.host("a", gateway=["10.0.0.2", "fd00::2"]), lab.host("b"), lab.switch("s")
        cable = lab.link(a, s, address=["10.0.0.1/24", "fd00::1/64"])
        lab.link(s, b, peer_address=["10.0.0.2/24", "fd00::2/64"])
        assert await ping(a, "b")
        await cable.set_down()
        down = await link_of(a)
        assert "NO-CARRIER" in down["flags"]
        assert "UP" in down["flags"]
        assert addresses_of(down) == {"10.0.0.1/24", "fd00::1/64"}
        assert await is_out_of_reach(a, "10.0.0.2")
        await cable.set_up()
        assert await ping(a, "b")
        assert await ping(b, "fd00::1")
        assert await routes_of(a) == {("default", "10.0.0.2")}
        assert await routes_of(a, 6) == {("default", "fd00::2")}


async def test_a_pulled_cable_between_hosts() -> None:
    """Addresses and routes are back when it is."""
    async with Lab() as lab:
        a, b = lab.host("a", gateway=["10.0.0.2", "fd00::2"], routes={"10.7.0.0/16": "10.1.0.2"}), lab.host("b")
        cable = lab.link(a, b, address=["10.0.0.1/24", "fd00::1/64"], peer_address=["10.0.0.2/24", "fd00::2/64"])
        other = lab.link(a, b, address="10.1.0.1/24", peer_address="10.1.0.2/24")
        await other.set_down()
        await cable.set_down()
        assert "UP" not in (await link_of(a))["flags"]
        assert await routes_of(a) == set()
        await cable.set_up()
        assert addresses_of(await link_of(a)) == {"10.0.0.1/24", "fd00::1/64"}
        assert await ping(a, "10.0.0.2")
        assert await ping(b, "fd00::1")
        assert await routes_of(a, 6) == {("default", "fd00::2")}
        await other.set_up()
        assert await routes_of(a) == {("default", "10.0.0.2"), ("10.7.0.0/16", "10.1.0.2")}
        assert await ping(a, "10.1.0.2")


# ---- programs --------------------------------------------------------------------------------------------------------


async def test_a_hosts_program_finds_everything_at_its_first_instruction(rights: str) -> None:
    """It is started when all is wired: its own address, its gateway, and the others'."""
    script = "ip -br -4 addr show eth0; ip route; getent hosts b; busybox ping -c 1 -W 5 b >/dev/null && echo pong"
    async with Lab() as lab:
        a = lab.host("a", ["sh", "-c", script], gateway="10.0.0.2", stdin=linx.DEVNULL, stdout=linx.PIPE)
        b, s = lab.host("b"), lab.switch("s")
        lab.link(a, s, address="10.0.0.1/24")
        lab.link(b, s, address="10.0.0.2/24")
        assert a.session is None
        await lab.start()
        assert a.session is not None
        assert b.session is None
        assert a.session.stdout is not None
        text = b"".join([bytes(chunk) async for chunk in a.session.stdout]).decode()
        assert "10.0.0.1/24" in text
        assert "default via 10.0.0.2" in text
        assert text.endswith("b\npong\n")
        assert await a.session.wait() == linx.Exited(0), "it has ended by itself, and that disturbs nobody"
        assert await ping(a, "b")


SERVER = """
import socket
server = socket.create_server(("10.0.0.2", 80))
print("up", flush=True)
while True:
    with server.accept()[0] as caller:
        caller.sendall(caller.getpeername()[0].encode())
"""
CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])) as s:
    print(s.recv(100).decode())
"""


def server(port: int) -> list[str]:
    return [sys.executable, "-c", SERVER.replace("80", str(port))]


async def ask(host: linx.net.Host, port: int, seconds: float = DEADLINE) -> str | None:
    """Whom the server at 10.0.0.2 takes us for; `None` if it does not answer."""
    argv = [sys.executable, "-c", CLIENT, "10.0.0.2", str(port), str(seconds)]
    done = await host.run(argv, capture_stdout=True, stderr=linx.DEVNULL, check=False)
    return done.stdout.decode().strip() if done.returncode == 0 else None


async def until_up(session: linx.Session | None) -> None:
    assert session is not None
    assert session.stdout is not None
    with trio.fail_after(DEADLINE):
        assert await read_until(session.stdout, b"up\n")


async def test_servers_on_hosts(rights: str) -> None:
    async with Lab() as lab:
        a = lab.host("a")
        b = lab.host("b", server(80), stdout=linx.PIPE)
        lab.link(a, b, address="10.0.0.1/24", peer_address="10.0.0.2/24")
        await lab.start()
        await until_up(b.session)
        assert await ask(a, 80) == "10.0.0.1"
        async with b.spawn(server(81), stdout=linx.PIPE) as more:
            assert more.state == "ready"
            assert await ask(a, 81) is None
            await more.proceed()
            await until_up(more)
            assert await ask(a, 81) == "10.0.0.1"
        assert await ask(a, 81) is None
        async with trio.open_nursery() as nursery:
            session = await nursery.start(lambda **kw: b.run(server(82), stdout=linx.PIPE, check=False, **kw))
            await until_up(session)
            assert await ask(a, 82) == "10.0.0.1"
            session.kill()


# ---- nft -------------------------------------------------------------------------------------------------------------

needs_nft = pytest.mark.skipif(
    not any(os.access(f"{path}/nft", os.X_OK) for path in (*os.get_exec_path(), "/usr/sbin")),
    reason="nft is needed: Debian's package nftables",
)
MASQUERADE = "table ip nat { chain post { type nat hook postrouting priority 100; oifname eth1 masquerade; }; }"
NO_81 = "table inet filter { chain in { type filter hook input priority 0; tcp dport 81 reject with tcp reset; }; }"


@needs_nft
async def test_a_router_hides_who_is_behind_it(rights: str) -> None:
    async with Lab() as lab:
        a = lab.host("a", gateway="10.1.0.1")
        r = lab.router("r", nft=MASQUERADE)
        b = lab.host("b", server(80), stdout=linx.PIPE)  # it has no way back to a
        lab.link(a, r, address="10.1.0.2/24", peer_address="10.1.0.1/24")
        lab.link(r, b, address="10.0.0.1/24", peer_address="10.0.0.2/24")
        await lab.start()
        await until_up(b.session)
        assert await ask(a, 80) == "10.0.0.1"


@needs_nft
async def test_a_filter_closes_one_port() -> None:
    async with Lab() as lab:
        a, b = lab.host("a"), lab.host("b")
        lab.link(a, b, address="10.0.0.1/24", peer_address="10.0.0.2/24")
        async with b.spawn(server(80), stdout=linx.PIPE) as one, b.spawn(server(81), stdout=linx.PIPE) as other:
            for session in (one, other):
                await session.proceed()
                await until_up(session)
            assert await ask(a, 81) == "10.0.0.1"
            await b.nft(NO_81)
            assert await ask(a, 81) is None
            assert await ask(a, 80) == "10.0.0.1"


@needs_nft
async def test_what_nft_refuses() -> None:
    async with two_hosts() as (_, a, _b):
        with pytest.raises(linx.CalledProcessError) as caught:
            await a.nft("table inet t { chain c { no such thing } }")
        assert b"syntax error" in (caught.value.stderr or b"")
        assert "syntax error" in caught.value.__notes__[0]
        assert await output(a, "nft", "list", "ruleset") == ""


async def test_without_nft(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    async with Lab() as lab:
        lab.router("r", nft="table inet t { }", mounts=[mount.Tmpfs("/usr/sbin"), mount.Tmpfs("/sbin")])
        with pytest.raises(FileNotFoundError) as caught:
            await lab.start()
        assert "install nftables" in caught.value.__notes__[0]


# ---- the machine -----------------------------------------------------------------------------------------------------


async def test_the_machine_notices_nothing(rights: str) -> None:
    script = (
        "ip -br addr; ip route; cat /proc/self/mountinfo /etc/resolv.conf; hostname; cat /proc/sys/net/ipv4/ip_forward"
    )
    before = machine("sh", "-c", script)
    async with Lab() as lab:
        a, b = lab.host("a", mounts=[mount.Tmpfs("/mnt")]), lab.host("b")
        r = lab.router("r")
        lab.link(a, r, address="10.1.0.2/24")
        lab.link(b, r, address="10.2.0.2/24")
        await lab.start()
        assert machine("sh", "-c", script) == before
        namespaces = {os.readlink(f"/proc/{host.anchor.host_pid}/ns/net") for host in lab.hosts}
        assert len(namespaces) == 3
        pids = [host.anchor.host_pid for host in lab.hosts]
    assert not any(map(exists, pids))
    assert machine("sh", "-c", script) == before
