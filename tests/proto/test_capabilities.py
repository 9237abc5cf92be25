"""Capabilities: data that survives every journey, and steps in the order that works."""

from __future__ import annotations

import errno
import json
import pickle
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import linx_trio as linx
from linx_trio import _capabilities as data
from linx_trio import capabilities
from linx_trio._capabilities import SECBIT_KEEP_CAPS, SETS, Caps, CapSets, Policy, caps_of, existing, mask_of
from linx_trio.capabilities import Capability, drop, keep
from tests.proto.capability_model import SETGID, SETPCAP, SETUID, Refused, executed
from tests.proto.strategies import relaxed

LAST = 40
ALL = existing(LAST)
CHOWN, KILL = 1 << 0, 1 << 5
FULL = CapSets(effective=ALL, permitted=ALL, bounding=ALL)

bits = st.integers(0, 62)
sets_of_bits = st.frozensets(bits, max_size=20)
policies = st.builds(lambda make, caps: make(caps), st.sampled_from([keep, drop]), sets_of_bits)


@st.composite
def spellings(draw: st.DrawFn) -> tuple[Any, int]:
    """Anything that stands for a capability, and its bit."""
    bit = draw(bits)
    if bit > LAST:
        return bit, bit
    member = Capability(bit)
    names = [member.name, member.name.lower(), member.name[4:], member.name[4:].title(), member.name.capitalize()]
    return draw(st.sampled_from([member, bit, *names])), bit


# ---- names ------------------------------------------------------------------------------------------------------


def test_all_41_have_their_values() -> None:
    assert [int(member) for member in Capability] == list(range(41))
    known = {"CHOWN": 0, "KILL": 5, "SETPCAP": 8, "NET_ADMIN": 12, "SYS_CHROOT": 18, "SYS_ADMIN": 21, "MKNOD": 27}
    later = {"SETFCAP": 31, "MAC_OVERRIDE": 32, "SYSLOG": 34, "AUDIT_READ": 37, "PERFMON": 38, "BPF": 39}
    assert {name: int(Capability[f"CAP_{name}"]) for name in known | later} == known | later


@relaxed
@given(st.lists(spellings()))
def test_every_spelling_is_understood(spelled: list[tuple[Any, int]]) -> None:
    caps = data.parse([value for value, _ in spelled])
    assert caps == {bit for _, bit in spelled}
    assert {cap for cap in caps if cap <= LAST} == {cap for cap in caps if isinstance(cap, Capability)}


@relaxed
@given(sets_of_bits)
def test_masks_and_names_lead_back(caps: frozenset[int]) -> None:
    assert caps_of(mask_of(caps)) == caps
    assert data.parse(json.loads(json.dumps(data.names(caps)))) == caps


WRONG: list[tuple[Any, type[Exception], list[str]]] = [
    ("CAP_KILL", TypeError, ["caps", "{'CAP_KILL'}"]),
    (b"kill", TypeError, ["caps", "b'kill'"]),
    (Capability.CAP_KILL, TypeError, ["caps", "CAP_KILL"]),
    (5, TypeError, ["caps", "5"]),
    (None, TypeError, ["caps", "None"]),
    ([None], TypeError, ["caps", "None"]),
    ([True], TypeError, ["caps", "True"]),
    ([1.0], TypeError, ["caps", "1.0"]),
    ([b"kill"], TypeError, ["caps", "b'kill'"]),
    ([-1], ValueError, ["caps", "-1", "62"]),
    ([63], ValueError, ["caps", "63", "62"]),
    ([1 << 70], ValueError, ["caps", str(1 << 70)]),
    (["NET_ADMN"], ValueError, ["caps", "unknown capability 'NET_ADMN'", "'CAP_NET_ADMIN'"]),
    (["cap_sysadmin"], ValueError, ["'cap_sysadmin'", "'CAP_SYS_ADMIN'"]),
    (["CAP_CAP_KILL"], ValueError, ["'CAP_CAP_KILL'", "'CAP_KILL'"]),
    ([""], ValueError, ["unknown capability ''", "'CAP_"]),
    (["5"], ValueError, ["unknown capability '5'", "'CAP_"]),
]


@pytest.mark.parametrize(("value", "error", "mentions"), WRONG, ids=repr)
def test_wrong_capabilities(value: Any, error: type[Exception], mentions: list[str]) -> None:
    for refuse in (keep, drop, lambda caps: Policy.from_dict({"keep": caps}), lambda caps: CapSets(effective=caps)):
        with pytest.raises((TypeError, ValueError)) as caught:
            refuse(value)
        assert type(caught.value) is error
        missing = [mention for mention in mentions if mention not in str(caught.value) and mention != "caps"]
        assert missing == [], caught.value


@pytest.mark.parametrize(("value", "error", "mentions"), WRONG, ids=repr)
async def test_verbs_name_the_argument(value: Any, error: type[Exception], mentions: list[str]) -> None:
    """Before the session is looked at."""
    nobody: Any = None
    if value is not None:  # there it leaves the set as it is
        with pytest.raises(error, match="effective"):
            await capabilities.set_thread_sets(nobody, effective=value)
    for verb in (capabilities.drop_bounding, capabilities.set_ambient):
        with pytest.raises(error) as caught:
            await verb(nobody, value)
        assert [mention for mention in mentions if mention not in str(caught.value)] == []


@pytest.mark.parametrize("nobody", [None, 5, "x", object], ids=repr)
async def test_verbs_take_sessions_only(nobody: Any) -> None:
    for call in (
        capabilities.drop_bounding(nobody, ["kill"]),
        capabilities.set_thread_sets(nobody, effective=["kill"]),
        capabilities.set_thread_sets(nobody, effective=[], permitted=[], inheritable=[]),
        capabilities.set_ambient(nobody, ["kill"]),
    ):
        with pytest.raises(TypeError, match=r"session must be a linx\.Session, not") as caught:
            await call
        assert repr(nobody) in str(caught.value)


# ---- data -------------------------------------------------------------------------------------------------------


@relaxed
@given(policies)
def test_a_policy_survives_every_journey(policy: Policy) -> None:
    assert Policy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert eval(repr(policy), {"linx": linx}) == policy
    assert len({policy, Policy(policy.action, policy.caps)}) == 1


def test_a_policy_is_plain_to_read() -> None:
    assert repr(keep({41, "kill", "CHOWN"})) == "linx.capabilities.keep({'CAP_CHOWN', 'CAP_KILL', 41})"
    assert repr(keep(())) == "linx.capabilities.keep(())"
    assert drop({41, "kill"}).to_dict() == {"drop": ["CAP_KILL", 41]}
    with pytest.raises(FrozenInstanceError):
        keep(()).caps = ALL  # type: ignore[misc]


@pytest.mark.parametrize("plain", [None, [], "keep", {}, {"keep": [], "drop": []}, {"hold": []}, {1: []}], ids=repr)
def test_what_describes_no_policy(plain: Any) -> None:
    with pytest.raises(ValueError, match="capabilities=") as caught:
        Policy.from_dict(plain)
    assert repr(plain) in str(caught.value)


def test_an_unknown_action() -> None:
    with pytest.raises(ValueError, match="'hold'"):
        Policy("hold", ALL)  # type: ignore[arg-type]


@relaxed
@given(st.lists(st.frozensets(st.integers(0, 62)), min_size=5, max_size=5))
def test_sets_are_read_from_a_status(five: list[frozenset[int]]) -> None:
    sets = CapSets(*five)
    fields = zip(("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"), five, strict=True)
    lines = [f"{name}:\t{mask_of(caps):016x}" for name, caps in fields]
    text = "\n".join(["Name:\tCapEff: x", "Umask:\t0022", *lines, "NoNewPrivs:\t0", "CapNew:\t0", ""])
    assert CapSets.from_status(text) == sets
    assert pickle.loads(pickle.dumps(sets)) == sets == eval(repr(sets), {"CapSets": CapSets})


def test_what_an_error_says() -> None:
    assert data.describe(()) == "none"
    assert data.describe({41, 5}) == "CAP_KILL, 41"
    assert data.describe(ALL) == "CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER and 37 more"


# ---- steps ------------------------------------------------------------------------------------------------------


def test_the_one_order() -> None:
    others = mask_of(ALL) & ~KILL
    before, after = keep({"kill"}).steps(FULL, leaves_root=True, last_cap=LAST)
    assert before == [("cap_drop_bounding", others), ("securebits", SECBIT_KEEP_CAPS)]
    assert after == [("cap_set_thread", KILL, KILL, KILL), ("cap_set_ambient", KILL)]
    assert keep({"kill"}).steps(FULL, leaves_root=False, last_cap=LAST) == (before[:1], after)


def test_nothing_kept_needs_no_securebits() -> None:
    for leaves_root in (False, True):
        before, after = keep(()).steps(FULL, leaves_root=leaves_root, last_cap=LAST)
        assert before == [("cap_drop_bounding", mask_of(ALL))]
        assert after == [("cap_set_thread", 0, 0, 0), ("cap_set_ambient", 0)]


def test_dropping_lowers_what_there_is() -> None:
    caller = CapSets(caps_of(KILL), caps_of(KILL | CHOWN), caps_of(CHOWN | SETUID), ALL)
    policy = drop({"chown", 50})
    before, after = policy.steps(caller, leaves_root=False, last_cap=LAST)
    assert (before, after) == ([("cap_drop_bounding", CHOWN)], [("cap_set_thread", KILL, KILL, SETUID)])
    assert policy.steps(caller, leaves_root=True, last_cap=LAST) == (before, [("cap_set_thread", 0, 0, SETUID)])


def test_dropping_nothing_is_nothing() -> None:
    for policy in (drop(()), drop({41, 62})):
        assert policy.steps(FULL, leaves_root=True, last_cap=LAST) == ([], [])


def test_what_the_kernel_lacks_cannot_be_kept() -> None:
    with pytest.raises(linx.SetupError) as caught:
        keep({"kill", 41}).steps(FULL, leaves_root=False, last_cap=LAST)
    assert (caught.value.errno, caught.value.stage) == (errno.EINVAL, "cap_set_thread")
    assert caught.value.filename == "41"
    assert "up to 40" in str(caught.value.hint)
    before, _ = keep({"kill", 41}).steps(FULL, leaves_root=False, last_cap=41)
    assert before == [("cap_drop_bounding", mask_of(ALL) & ~KILL)]


def test_a_newer_kernels_are_dropped_too() -> None:
    before, _ = keep(()).steps(FULL, leaves_root=False, last_cap=45)
    assert before == [("cap_drop_bounding", (1 << 46) - 1)]


@st.composite
def callers(draw: st.DrawFn) -> CapSets:
    """One who may drop and change ids; everything else within the rules."""
    mask = st.integers(0, mask_of(ALL))
    permitted = draw(mask) | SETUID | SETGID | SETPCAP
    effective = permitted & draw(mask) | SETUID | SETGID | SETPCAP
    inheritable = draw(mask)
    ambient = permitted & inheritable & draw(mask)
    return CapSets(*map(caps_of, (effective, permitted, inheritable, draw(mask), ambient)))


uids = st.sampled_from([0, 1000, 1001])
masks = st.integers(0, mask_of(ALL)).map(caps_of)


@relaxed
@given(callers(), masks, uids, uids)
def test_kept_is_exactly_what_was_asked_for(caller: CapSets, caps: Caps, uid: int, new_uid: int) -> None:
    """Of what the caller has, to give and to hand down: no more is gained through any uid."""
    kept = caps & caller.permitted & caller.bounding
    assert executed(keep(kept), caller, uid, new_uid, LAST) == CapSets(*[kept] * 5)
    if lacking := caps - caller.permitted:
        with pytest.raises(Refused):
            executed(keep(lacking), caller, uid, new_uid, LAST)


@relaxed
@given(callers(), masks, uids, uids)
def test_dropping_takes_these_and_gives_nothing(caller: CapSets, caps: Caps, uid: int, new_uid: int) -> None:
    without, got = executed(drop(()), caller, uid, new_uid, LAST), executed(drop(caps), caller, uid, new_uid, LAST)
    assert got == CapSets(**{name: getattr(without, name) - caps for name in SETS})
    assert executed(drop(ALL), caller, uid, new_uid, LAST) == CapSets()


def test_without_the_right_to_drop_it_is_refused() -> None:
    for policy in (keep(()), keep({"kill"}), drop({"kill"})):
        with pytest.raises(Refused):
            executed(policy, CapSets(bounding=ALL), 1000, 1000, LAST)
