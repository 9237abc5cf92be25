"""What the functions of `linx_trio.net` are called with: taken, or refused by name, before any system call."""

from __future__ import annotations

import ipaddress
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linx_trio import _net_checks as check
from linx_trio import _net_kinds as kinds
from linx_trio import _net_qdiscs as qdiscs
from linx_trio import _net_tuntap as tuntap
from linx_trio import _net_units as units
from linx_trio._net_read import handle_text

anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=4), st.ip_addresses()
)
CHECKS = [
    check.link_name,
    check.link_reference,
    check.mac,
    check.address,
    check.interface,
    check.network,
    kinds.kind_name,
    lambda value: units.seconds(value, "delay"),
    lambda value: units.bits_per_second(value, "rate"),
    lambda value: units.size_bytes(value, "burst"),
    lambda value: units.percent(value, "loss"),
    lambda value: qdiscs.handle(value, "parent"),
    lambda value: check.integer(value, "mtu", 0, 100),
    lambda value: check.truth(value, "keep"),
    lambda value: check.name_or_number(value, "table", {"main": 254}, 2**32 - 1),
]


@pytest.mark.parametrize("function", CHECKS)
@given(value=anything)
def test_anything_is_taken_or_refused_with_its_name(function: Any, value: object) -> None:
    refusal = None
    try:
        function(value)
    except (TypeError, ValueError) as exc:
        refusal = str(exc)
    assert refusal is None or repr(value) in refusal


@given(st.text(st.characters(), max_size=20))
def test_link_names_are_the_kernels(name: str) -> None:
    """As ``dev_valid_name`` has it; and no '%', which the kernel would fill in."""
    try:
        size = len(name.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        size = 0
    bad = not 1 <= size <= 15 or name in (".", "..") or any(c in "/:%\0" or c.isspace() for c in name)
    try:
        check.link_name(name)
    except ValueError:
        assert bad
    else:
        assert not bad


def test_the_length_is_in_bytes() -> None:
    assert check.link_name("ä" * 7) == "ä" * 7
    with pytest.raises(ValueError, match="name='ääääääää': a link's name has 1 to 15 bytes, this one has 16"):
        check.link_name("ä" * 8)


@given(st.ip_addresses(), st.data())
def test_addresses_with_prefixes(address: Any, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, address.max_prefixlen))
    wanted = ipaddress.ip_interface(f"{address}/{length}")
    assert check.interface(str(address), length) == wanted
    assert check.interface(address, length) == wanted
    assert check.interface(f"{address}/{length}") == wanted
    assert check.interface(wanted) == wanted
    assert check.interface(wanted, length) == wanted
    assert check.interface(address).network.prefixlen == address.max_prefixlen
    assert check.address(wanted) == address
    assert check.network(wanted.network) == wanted.network


@given(st.ip_addresses(v=6), st.sampled_from(["1", "eth0", "lo"]), st.integers(0, 128))
def test_scopes_are_refused_in_every_form(address: Any, scope: str, length: int) -> None:
    """A scope would be dropped on its way to the kernel: the link is another argument."""
    scoped, prefixed = f"{address}%{scope}", f"{address}%{scope}/{length}"
    network = ipaddress.ip_interface(f"{address}/{length}").network
    for call, value in (
        (check.address, scoped),
        (check.address, ipaddress.ip_address(scoped)),
        (check.address, ipaddress.ip_interface(prefixed)),
        (check.interface, scoped),
        (check.interface, prefixed),
        (check.interface, ipaddress.ip_address(scoped)),
        (check.interface, ipaddress.ip_interface(prefixed)),
        (lambda value, argument: check.interface(value, length, argument), scoped),
        (lambda value, argument: check.interface(value, length, argument), ipaddress.ip_interface(prefixed)),
        (check.network, f"{network.network_address}%{scope}/{length}"),
        (check.network, ipaddress.ip_network(f"{network.network_address}%{scope}/{length}")),
        (check.network, ipaddress.ip_address(scoped)),
        (check.network, ipaddress.ip_interface(f"{scoped}/128")),
    ):
        with pytest.raises(ValueError, match=r"say which link with link=") as caught:
            call(value, argument="here")
        assert str(caught.value).startswith(f"here={value!r}: ")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: check.interface("10.0.0.5", 33), "prefixlen=33 is not within 0..32"),
        (lambda: check.interface("10.0.0.5/33"), "'10.0.0.5/33' is no IPv4 or IPv6 address with a prefix"),
        (lambda: check.interface("10.0.0.5/24", 8), "has a prefix already, and prefixlen=8"),
        (lambda: check.interface("10.0.0.256"), "address='10.0.0.256' is no IPv4 or IPv6 address"),
        (lambda: check.address("fe80::1%eth0"), "say which link with link="),
        (lambda: check.address("10.0.0.0/8"), "is no IPv4 or IPv6 address"),
        (lambda: check.network("10.0.0.1/8"), "destination='10.0.0.1/8' is no IPv4 or IPv6 network: .*host bits"),
        (lambda: check.mac("02:00:00:00:00"), "mac='02:00:00:00:00' is no MAC address"),
        (lambda: check.mac("02:00:00:00:00:0g"), "is no MAC address"),
        (lambda: check.link_reference(0), "link=0 is not within"),
        (lambda: kinds.kind_name("vlna"), "unknown kind 'vlna'; known are .*, veth, vlan, "),
        (lambda: kinds.check_parent("vlan", None), "kind 'vlan' is made on another link"),
        (lambda: kinds.info("vlan", {"vid": 1}), "unknown attribute 'vid' of kind 'vlan'; known are .*id"),
        (lambda: kinds.info("dummy", {"x": 1}), "unknown attribute 'x' of kind 'dummy'; known are none"),
        (lambda: kinds.info("macvlan", {"mode": "brigde"}), "unknown mode 'brigde'; known are bridge, passthru"),
        (lambda: tuntap.checked("tap", {"gruop": 1}), "unknown attribute 'gruop' of kind 'tap'; known are gid"),
        (lambda: qdiscs.options_of("netme", {}), "unknown kind 'netme'; known are .*netem"),
        (lambda: qdiscs.options_of("netem", {"dealy": 1}), "unknown option 'dealy' of 'netem'; known are corrupt,"),
        (lambda: qdiscs.options_of("netem", {"loss": 101}), "loss=101 is more than 100 percent"),
        (lambda: qdiscs.options_of("netem", {"delay": 300}), "delay=300 is more than 274 s"),
        (lambda: qdiscs.options_of("netem", {"reorder": 5}), "reorder=5 without a delay"),
        (lambda: qdiscs.options_of("netem", {"rate": "40gbit"}), "rate='40gbit' is not between"),
        (lambda: qdiscs.options_of("tbf", {}), "kind 'tbf' needs a rate="),
        (lambda: qdiscs.options_of("tbf", {"rate": 1}), "rate=1 is not between"),
        (lambda: qdiscs.options_of("tbf", {"rate": 1e6, "latency": 1, "limit": 2}), "one says the other"),
        (lambda: qdiscs.options_of("fq", {"limit": 1}), "kind 'fq' takes no options here, and limit is given"),
        (lambda: units.seconds("10 minutes", "delay"), "delay='10 minutes': it is seconds.*units are s, sec, ms"),
        (lambda: units.seconds(-1, "delay"), "delay=-1: it is seconds"),
        (lambda: units.seconds(math.nan, "delay"), "delay=nan: it is seconds"),
        (lambda: qdiscs.handle("1", "parent"), "parent='1': it is a handle like '1:', or '1:2', 'root', 'ingress'"),
    ],
)  # fmt: skip
def test_refusals_name_argument_and_value(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(0.01, 0.01), (2, 2.0), ("10ms", 0.01), ("1.5s", 1.5), ("250 us", 250e-6), ("3usec", 3e-6), (".5s", 0.5)],
)
def test_times(value: Any, wanted: float) -> None:
    assert units.seconds(value, "delay") == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (1e6, 1e6),
        ("1mbit", 1e6),
        ("10Mbit", 1e7),
        ("1mbps", 8e6),
        ("512kbit", 512e3),
        ("1gbit", 1e9),
        ("9600bit", 9600),
    ],
)
def test_rates(value: Any, wanted: float) -> None:
    assert units.bits_per_second(value, "rate") == pytest.approx(wanted)


def test_a_rate_needs_its_unit() -> None:
    """A bare number in a str means bytes, bits or kilobits, depending on who reads it."""
    with pytest.raises(ValueError, match="rate='100'"):
        units.bits_per_second("100", "rate")


@pytest.mark.parametrize(("value", "wanted"), [(0, 0), (100, 2**32 - 1), ("50%", 2**31), (0.5, 21474836)])
def test_probabilities(value: Any, wanted: int) -> None:
    assert qdiscs.netem(loss=value)["loss"] == pytest.approx(wanted, abs=1)


def test_delays_are_in_the_kernels_ticks() -> None:
    assert qdiscs.netem(delay="64us")["delay"] == 1000
    assert qdiscs.netem(delay=1)["delay"] == 15_625_000


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_handles_are_written_as_they_are_read(major: int, minor: int) -> None:
    number = major << 16 | minor
    assert qdiscs.handle(handle_text(number), "parent") == number
