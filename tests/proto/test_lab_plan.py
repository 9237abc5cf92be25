"""What a lab is declared to be: taken as it was meant, or refused by name, before any system call."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import linx_trio as linx
from linx_trio import _lab_plan as plan
from linx_trio.net import Host, Lab, Node, Switch

ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.just([]), st.just({})
)
INTERFACES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).flatmap(
    lambda ip: st.integers(0, ip.max_prefixlen).map(lambda length: ipaddress.ip_interface(f"{ip}/{length}"))
)


def refused(action: Callable[[], Any]) -> str | None:
    """Why; `None` if it was not."""
    try:
        action()
    except (TypeError, ValueError) as exc:
        return str(exc)
    return None


# ---- names -----------------------------------------------------------------------------------------------------------


@given(st.one_of(ANYTHING, st.text(max_size=70), st.text("ab-é", min_size=55, max_size=70)))
@example("a" * 64)
@example("a" * 65)
@example("é" * 32)
@example("localhost")
@example("a b")
@example("a\n10.0.0.1 b")
@example("\ud800")
def test_a_hosts_name(value: Any) -> None:
    why = refused(lambda: plan.host_name(value, ()))
    if why is None:
        assert 1 <= len(value.encode()) <= 64
        end = plan.End(SimpleNamespace(name=value), "eth0", ("10.0.0.1/24", "fd00::1/64"))
        lines = plan.hosts_lines([end]).decode().split("\n")
        assert [line.split() for line in lines] == [["10.0.0.1", value], ["fd00::1", value], []]
        assert "already" in (refused(lambda: plan.host_name(value, {value})) or "")
    else:
        assert repr(value) in why
        assert why.startswith("name")


@given(st.one_of(ANYTHING, st.text(max_size=17)))
@example("a" * 15)
@example("a" * 16)
@example("é" * 7)
@example("a/b")
def test_a_switchs_name(value: Any) -> None:
    why = refused(lambda: plan.switch_name(value, ()))
    if why is None:
        assert 1 <= len(value.encode("utf-8", "surrogateescape")) <= 15
        assert not set(value) & set("/: \0")
    else:
        assert why.startswith("name")
        assert repr(value) in why


@given(
    st.text("abé", min_size=1, max_size=15),
    st.lists(st.one_of(st.none(), st.text("abe01éth", max_size=6)), max_size=30),
)
def test_names_of_links(prefix: str, asked: list[str | None]) -> None:
    names, taken = plan.Names(), {"lo"}
    for want in asked:
        picked: list[str] = []
        why = refused(lambda want=want, picked=picked: picked.append(names.pick(want, "name", prefix)))  # type: ignore[misc]
        if why is not None:
            assert repr(want) in why
            assert want in taken or not want
            continue
        (name,) = picked
        assert name not in taken
        assert 1 <= len(name.encode()) <= 15
        assert want in (None, name)
        names.take(name)
        taken.add(name)


# ---- addresses and routes --------------------------------------------------------------------------------------------


@given(st.lists(INTERFACES, max_size=4, unique=True), st.booleans())
def test_addresses_are_taken_as_they_are_meant(items: list[Any], as_text: bool) -> None:
    given = [str(item) for item in items] if as_text else items
    assert plan.addresses(given, "address") == tuple(map(str, items))
    if len(items) == 1:
        assert plan.addresses(given[0], "address") == (str(items[0]),)


@given(st.one_of(ANYTHING, st.lists(st.one_of(ANYTHING, INTERFACES.map(str)), max_size=3), st.ip_addresses().map(str)))
@example("10.0.0.1")
@example("10.0.0.1/33")
@example("10.0.0.1/24/7")
@example("fe80::1%eth0/64")
@example(["10.0.0.1/24", "10.0.0.1/24"])
@example(b"10.0.0.1/24")
def test_addresses_or_why_not(value: Any) -> None:
    why = refused(lambda: plan.addresses(value, "peer_address"))
    if why is None:
        for item in plan.addresses(value, "peer_address"):
            assert str(ipaddress.ip_interface(item)) == item
            assert "%" not in item
    else:
        assert why.startswith("peer_address")


def test_an_address_says_its_network() -> None:
    with pytest.raises(
        ValueError, match=r"address='10\.0\.0\.1' says nothing about its network: write '10\.0\.0\.1/24'"
    ):
        plan.addresses("10.0.0.1", "address")


@given(
    st.one_of(
        ANYTHING, st.dictionaries(INTERFACES.map(lambda i: str(i.network)), st.ip_addresses().map(str), max_size=3)
    ),
    st.one_of(ANYTHING, st.ip_addresses(), st.lists(st.ip_addresses().map(str), max_size=3)),
)
@example({"10.0.0.1/8": "10.0.0.1"}, None)
@example({"10.0.0.0/8": "fd00::1"}, None)
@example({"0.0.0.0/0": "10.0.0.1"}, "10.0.0.2")
@example(None, ["10.0.0.1", "10.0.0.2"])
@example({5: "10.0.0.1"}, None)
def test_routes_or_why_not(routes: Any, gateway: Any) -> None:
    why = refused(lambda: plan.routes(routes, gateway))
    if why is not None:
        assert why.startswith(("routes", "gateway"))
        return
    for network, via in plan.routes(routes, gateway).items():
        assert ipaddress.ip_network(network).version == ipaddress.ip_address(via).version


def test_default_routes() -> None:
    assert plan.routes({"10.2.0.0/16": "10.0.0.3"}, ["10.0.0.1", "fd00::1"]) == {
        "10.2.0.0/16": "10.0.0.3",
        "0.0.0.0/0": "10.0.0.1",
        "::/0": "fd00::1",
    }


# ---- shapes ----------------------------------------------------------------------------------------------------------

TIMES = st.one_of(st.none(), st.floats(0, 10), st.integers(0, 200).map(lambda n: f"{n}ms"))
PERCENTAGES = st.one_of(st.none(), st.floats(0, 100), st.integers(0, 100).map(lambda n: f"{n}%"))
RATES = st.one_of(st.none(), st.floats(1e3, 1e10), st.integers(1, 1000).map(lambda n: f"{n}mbit"))


@given(TIMES, TIMES, PERCENTAGES, RATES)
def test_shapes(delay: Any, jitter: Any, loss: Any, rate: Any) -> None:
    if jitter is not None and delay is None:
        assert "needs delay=" in (refused(lambda: plan.Shape.of(delay, jitter, loss, rate)) or "")
        return
    shape = plan.Shape.of(delay, jitter, loss, rate)
    given = {"delay": delay, "jitter": jitter, "loss": loss}
    wanted = {name for name, value in given.items() if value not in (None, 0, "0ms", "0%")}
    if shape is None:
        assert wanted == set()
        assert rate is None
    else:
        assert (shape.kind == "netem") is bool(wanted)
        assert set(shape.options) == wanted | ({"rate"} if rate is not None else set())


@given(ANYTHING, ANYTHING, ANYTHING, ANYTHING)
def test_shapes_or_why_not(delay: Any, jitter: Any, loss: Any, rate: Any) -> None:
    why = refused(lambda: plan.Shape.of(delay, jitter, loss, rate))
    if why is not None:
        assert why.startswith(("delay", "jitter", "loss", "rate"))


# ---- what the lab itself refuses -------------------------------------------------------------------------------------


def lab() -> tuple[Lab, Host, Host, Switch]:
    made = Lab()
    return made, made.host("a"), made.host("b"), made.switch("s1")


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda lab: lab.host("a"), "name='a': there is a host or switch of that name in this lab already"),
        (lambda lab: lab.switch("a"), "name='a': there is a host or switch of that name"),
        (lambda lab: lab.host("s1"), "name='s1': there is"),
        (lambda lab: lab.switch("lo"), "name='lo': there is a link of that name already"),
        (lambda lab: lab.switch("s" * 16), "name='ssssssssssssssss': a link's name has 1 to 15 bytes, this one has 16"),
        (lambda lab: lab.host("h" * 65), "a host's name has 1 to 64 bytes, this one has 65"),
        (lambda lab: lab.host(7), "name must be a str, not 7"),
        (lambda lab: lab.host("c", []), "argv is empty"),
        (lambda lab: lab.host("c", hostname="x"), "hostname"),
        (lambda lab: lab.host("c", ["x"], hostname="x"), "hostname='x' is for a fresh uts namespace"),
        (lambda lab: lab.host("c", env={}), "env: for a program of the host's own, and there is no argv"),
        (lambda lab: lab.host("c", gateway="10.0.0.0/8"), "gateway='10.0.0.0/8' is no IPv4 or IPv6 address"),
        (lambda lab: lab.host("c", gateway=5), "gateway must be like '10.0.0.1'"),
        (lambda lab: lab.host("c", routes=["10.0.0.0/8"]), "routes must be a mapping like"),
        (lambda lab: lab.host("c", sysctls=["x"]), "sysctls must be a mapping like"),
        (lambda lab: lab.host("c", sysctls={"kernel.hostname": "x"}), "kernel.hostname"),
        (lambda lab: lab.host("c", mounts="/tmp"), "mounts must be an iterable of entries"),
        (lambda lab: lab.router("c", nft=7), "nft must be a ruleset, a str, not 7"),
        (lambda lab: lab.router("c", nft=" "), "nft=' ' is an empty ruleset"),
        (lambda lab: lab.switch("c", no_such=1), "unknown attribute 'no_such' of kind 'bridge'"),
        (lambda lab: lab.switch("c", mac=""), "mac='' is no MAC address"),
        (lambda lab: lab.switch("c", mtu=67), "mtu=67 is not within 68..65535"),
        (lambda lab: lab.link(lab["a"], lab["a"]), "a link needs two nodes, and both are <linx_trio.net.Host 'a'>"),
        (lambda lab: lab.link(lab["a"], Lab().host("b")), "b=<linx_trio.net.Host 'b'> is no node of this lab"),
        (lambda lab: lab.link("a", lab["b"]), "a='a' is no node of this lab"),
        (
            lambda lab: lab.link(lab["s1"], lab["b"], address="10.0.0.1/24"),
            "address=10.0.0.1/24: <linx_trio.net.Switch",
        ),
        (
            lambda lab: lab.link(lab["a"], lab["s1"], peer_address="10.0.0.1/24"),
            "'s1'> is a switch, which has no address",
        ),
        (lambda lab: lab.link(lab["a"], lab["b"], name="lo"), "name='lo': there is a link of that name already"),
        (lambda lab: lab.link(lab["a"], lab["b"], peer_name="x" * 16), "peer_name='xxxxxxxxxxxxxxxx': a link's name"),
        (lambda lab: lab.link(lab["a"], lab["s1"], peer_name="s1"), "peer_name='s1': there is a link of that name"),
        (lambda lab: lab.link(lab["a"], lab["b"], mac=""), "mac='' is no MAC address"),
        (lambda lab: lab.link(lab["a"], lab["b"], peer_mac="02:00"), "peer_mac='02:00' is no MAC address"),
        (lambda lab: lab.link(lab["a"], lab["b"], mtu=0), "mtu=0 is not within 68..65535"),
        (lambda lab: lab.link(lab["a"], lab["b"], rate="fast"), "rate='fast'"),
        (lambda lab: lab.link(lab["a"], lab["b"], loss=101), "loss=101 is more than 100 percent"),
        (lambda lab: lab.link(lab["a"], lab["b"], jitter=1), "jitter=1 is what the delay varies by"),
        (lambda lab: lab.link(lab["a"], lab["b"], delay=-1), "delay=-1"),
        (lambda lab: lab["a"].spawn([]), "argv is empty"),
        (
            lambda lab: lab["a"].spawn(["x"], namespaces={"net"}),
            "namespaces={'net'}: what runs on a host is in the host's",
        ),
        (lambda lab: lab["a"].spawn(["x"], namespaces=()), "namespaces=(): what runs on a host is in the host's"),
        (
            lambda lab: lab["a"].spawn(linx.Workload(["x"]), namespaces=()),
            "namespaces=(): what runs on a host is in the host's",
        ),
        (
            lambda lab: lab["a"].spawn(linx.Workload(["x"], namespaces={"pid"})),
            "what runs on a host is in the host's own",
        ),
        (
            lambda lab: lab.host("c", linx.Workload(["x"], namespaces={"pid"})),
            "what runs on a host is in the host's own",
        ),
        (lambda lab: lab["a"].spawn(["x"], user=linx.user.root_map()), "is for a fresh user namespace"),
        (lambda lab: lab["a"].spawn(["x"], root="/srv"), "root='/srv' is for a fresh mount namespace"),
        (lambda lab: lab["a"].spawn(["x"], no_such=1), "no_such"),
    ],
)
def test_what_is_refused(declare: Callable[[Lab], Any], message: str) -> None:
    """And nothing of it stays: neither node nor link, nor the name that one of the ends had been given."""
    made, a, b, s1 = lab()
    with pytest.raises((TypeError, ValueError)) as caught:
        declare(made)
    assert message in str(caught.value)
    assert (made.hosts, made.switches, made.links) == ((a, b), (s1,), ())
    assert made.link(a, s1).names == ("eth0", "s1-eth0")


@given(st.data())
def test_any_lab_has_names_of_its_own(data: st.DataObject) -> None:
    """Whatever is linked to whatever: in each namespace each name is there once, and as asked."""
    made = Lab()
    nodes: list[Node] = [made.host(f"h{i}") for i in range(data.draw(st.integers(1, 4)))]
    nodes += [made.switch(name) for name in data.draw(st.sets(st.sampled_from(["s1", "eth0", "s" * 14, "port0"])))]
    names: dict[int, list[str]] = {}
    ask = st.one_of(st.none(), st.sampled_from(["eth0", "eth1", "port0", "s1-eth0", "x"]))
    for _ in range(data.draw(st.integers(0, 12))):
        a, b = data.draw(st.sampled_from(nodes)), data.draw(st.sampled_from(nodes))
        near, far = data.draw(ask), data.draw(ask)
        try:
            link = made.link(a, b, name=near, peer_name=far)
        except ValueError:
            continue
        for node, wanted, got in zip((a, b), (near, far), link.names, strict=True):
            assert wanted in (None, got)
            names.setdefault(id(node) if isinstance(node, Host) else 0, [s.name for s in made.switches]).append(got)
    for key, own in names.items():
        mine = own[len(made.switches) :] if key else own
        assert len(set(mine)) == len(mine)


def test_it_is_lazy() -> None:
    """Declaring starts nothing, and nobody need open what has been declared."""
    made, a, b, s1 = lab()
    made.link(a, s1, address="10.0.0.1/24", delay="10ms")
    assert made["b"] is b
    assert repr(made) == "<linx_trio.net.Lab of a, b, s1>"
    assert made.degraded == {}
    assert linx.net.Lab is Lab


@pytest.mark.parametrize("name", ["net.ipv4.ip_forward", "net/ipv4/ip_forward"])
def test_a_routers_own_sysctls_win(name: str) -> None:
    """However they are spelled."""
    router = Lab().router("r", sysctls={name: 0})
    assert router._sysctls["net/ipv4/ip_forward"] == "0"
