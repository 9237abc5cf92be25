"""The vocabulary: each event is read as it was written, each command is the term that the protocol names, and what is
neither is `Nonsense`, whatever the bytes."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from linx_trio._proto import etf
from linx_trio._proto import messages as m
from linx_trio._proto.framing import FrameDecoder, encode_frame
from tests.proto.events import CLASSES, events, term_of
from tests.proto.strategies import encodings, mutated_encodings, near_encodings, relaxed, terms

HUGE = 1 << 20000  # more digits than Python writes (sys.set_int_max_str_digits)


def payload_of(frame: bytes) -> Any:
    """The term of the one frame."""
    decoder = FrameDecoder()
    (payload,) = decoder.feed(frame)
    assert not decoder.pending
    return etf.decode(payload)


# ---- events -----------------------------------------------------------------------------------------------------


@relaxed
@given(events())
def test_every_event_is_read_as_it_was_written(event: m.Message) -> None:
    assert m.parse_event(etf.encode(term_of(event))) == event


@relaxed
@given(st.integers(-(2**33), 2**33), st.integers(-(2**33), 2**33) | st.integers(-1, 260))
@example(-1, 1)
@example(1, 0)
@example(256, 255)
@example(2**31 - 1, 2**31 - 1)
@example(1, 2**31)
def test_a_beginning_is_read_from_its_bytes_as_from_the_term(host_pid: int, child_pid: int) -> None:
    payload = etf.encode(("began", host_pid, child_pid))
    if host_pid in range(1, 2**31) and child_pid in range(1, 2**31):
        assert type(m.parse_event(payload)) is m.Began
        assert m.parse_event(payload) == m._parse_event(payload) == (host_pid, child_pid)
    else:
        with pytest.raises(m.Nonsense):
            m.parse_event(payload)


@relaxed
@given(st.integers(-1, 256), st.lists(st.integers(-1, 2**33) | st.integers(250, 260), min_size=4, max_size=4))
@example(0, [0, 255, 256, 2**31 - 1])
@example(255, [1, 1, 1, 2**31])
@example(1, [1, -1, 1, 1])
def test_an_end_is_read_from_its_bytes_as_from_the_term(code: int, amounts: list[int]) -> None:
    payload = etf.encode(("over", code, *amounts))
    if min(amounts) >= 0 and code in range(256):
        assert m.parse_event(payload) == m._parse_event(payload) == (code, *amounts)
        assert type(m.parse_event(payload)) is m.Over
    else:
        with pytest.raises(m.Nonsense):
            m.parse_event(payload)


RAN = m.Ran(300, 2, 5, 0, 1200, 2**30, 4096)


@relaxed
@given(st.lists(st.integers(-1, 2**33) | st.integers(250, 260) | st.integers(0, 3), min_size=7, max_size=7))
@example(list(RAN))
@example([2**31 - 1, 255, 255, 2**31 - 1, 0, 0, 0])
@example([2**31, 1, 0, 0, 0, 0, 0])
@example([0, 1, 0, 0, 0, 0, 0])
@example([1, 0, 0, 0, 0, 0, 0])
@example([1, 1, 256, 0, 0, 0, 0])
@example([1, 1, 0, 0, 0, 0, 2**31])
def test_a_whole_session_is_read_from_its_bytes_as_from_the_term(numbers: list[int]) -> None:
    payload = etf.encode(("ran", *numbers))
    if min(numbers) >= 0 and all(pid in range(1, 2**31) for pid in numbers[:2]) and numbers[2] < 256:
        assert m.parse_event(payload) == m._parse_event(payload) == tuple(numbers)
        assert type(m.parse_event(payload)) is m.Ran
    else:
        with pytest.raises(m.Nonsense):
            m.parse_event(payload)


@relaxed
@given(st.data(), st.sampled_from([("began", 300, 2), ("over", 5, 1, 300, 2**30, 0), ("ran", *RAN)]), st.booleans())
def test_a_spoilt_report_is_what_its_term_is(data: st.DataObject, report: tuple[object, ...], longer: bool) -> None:
    payload = bytearray(etf.encode(report))
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    payload += b"x" * longer
    try:
        expected: object = m._parse_event(bytes(payload))
    except m.Nonsense as exc:
        expected = exc.what
    try:
        found: object = m.parse_event(bytes(payload))
    except m.Nonsense as exc:
        found = exc.what
    assert (found, type(found)) == (expected, type(expected))


def test_the_list_of_event_classes_is_complete() -> None:
    assert set(CLASSES) == set(get_args(m.Message))
    assert len(m.EVENTS) == len(set(m.EVENTS)) == len(CLASSES)


def test_each_event_is_listed_under_the_name_it_is_written_with() -> None:
    samples: list[m.Message] = [
        m.Spawned(1), m.Parked(1), m.Started(), m.Exit(0), m.Kill(9), m.Abortion(1), m.Refusal(2, "execve", -1),
        m.Opened(), m.Stepped(), m.Remains(1, "mount", 0), m.Degraded(1, "nice", 0), m.UsageReport(0, 0, 0, 0, False),
        m.Lost(-9), m.Idle(), m.Began(1, 1), m.Over(0, 0, 0, 0, 0), RAN,
    ]  # fmt: skip
    written = [term_of(event) for event in samples]
    assert {term[1] if term[0] == "status" else term[0] for term in written} == set(m.EVENTS)


def test_what_travels_with_an_event() -> None:
    """The pidfd, and what a step has opened."""
    assert dict(m.FDS_OWNED) == {m.Spawned: 1, m.Began: 1, m.Opened: 1}


NOT_EVENTS: list[Any] = [
    "running",
    ("status",),
    (),
    7,
    b"",
    {},
    ("status", "reddy", 5),
    ("status", b"ready", 5),
    ("status", "ready"),
    ("status", "ready", 5, 5),
    ("status", "ready", 5.0),
    ("status", "ready", b"5"),
    ("status", "ready", "5"),
    ("status", "ready", True),
    ("status", "running", 1),
    ("status", "opened", 1),
    ("opened",),
    ("status", "stepped", 1),
    ("stepped",),
    ("status", "remains", 1, "mount", 0),
    ("remains", 1, "mount"),
    ("remains", 0, "mount", 0),
    ("remains", 1, b"mount", 0),
    ("status", "spawned", "undefined"),
    ("status", "exited", False),
    ("status", "signaled", "SIGKILL"),
    ("status", "aborted", (5,)),
    ("status", "error", 2, "execve", -1),
    ("status", "usage", 1, 2, 3, 4, False),
    ("status", "lost", 9),
    ("Status", "ready", 5),
    (b"status", "ready", 5),
    ("ready", 5),
    ("exited", 0),
    ("error", 2, "execve"),
    ("error", 2, "execve", -1, 0),
    ("error", "enoent", "execve", -1),
    ("error", 2, b"execve", -1),
    ("error", 2, "execve", True),
    ("error", 2, True, -1),
    ("degraded", 1, "nice", "index"),
    ("lost",),
    ("lost", "killed"),
    ("usage",),
    ("usage", {}),
    ("usage", 1, 2, 3, 4),
    ("usage", 1, 2, 3, 4, False, 5),
    ("usage", 1, 2, 3, 4.0, False),
    ("usage", 1, True, 3, 4, False),
    ("usage", 1, 2, 3, 4, 0),
    ("usage", 1, 2, 3, 4, "undefined"),
    ["status", "ready", 5],
    ["lost", 9],
    ("proceed",),
    ("hello", b"0.1.0", b"", True),
]


@pytest.mark.parametrize("term", NOT_EVENTS, ids=repr)
def test_what_is_no_event_is_nonsense(term: Any) -> None:
    payload = etf.encode(term)
    with pytest.raises(m.Nonsense) as caught:
        m.parse_event(payload)
    assert caught.value.term == etf.decode(payload)
    assert "nonsense" in str(caught.value)
    assert caught.value.what in str(caught.value)


def parse_or_nonsense(payload: bytes) -> None:
    try:
        event = m.parse_event(payload)
    except m.Nonsense:
        return
    assert isinstance(event, CLASSES)
    assert m.parse_event(etf.encode(term_of(event))) == event


@relaxed
@given(st.binary(max_size=60) | encodings() | mutated_encodings() | near_encodings())
@example(b"")
@example(b"\x83")
@example(etf.encode(HUGE))
@example(etf.encode(("status", "ready", (HUGE,))))
@example(etf.encode(("lost", [HUGE])))
def test_any_payload_is_an_event_or_nonsense(payload: bytes) -> None:
    parse_or_nonsense(payload)


@relaxed
@given(st.sampled_from(["status", "error", "remains", "degraded", "lost", "usage"]), st.lists(terms(), max_size=4))
def test_anything_behind_a_known_name_is_an_event_or_nonsense(name: str, rest: list[etf.Term]) -> None:
    parse_or_nonsense(etf.encode((name, *rest)))


@relaxed
@given(events(), st.data())
def test_a_wrong_type_in_any_field_is_refused(event: m.Message, data: st.DataObject) -> None:
    term = term_of(event)
    place = data.draw(st.integers(0, len(term) - 1))
    others = [0, 1.5, "atom", b"binary", True, (), [], {}]
    other = data.draw(st.sampled_from([value for value in others if type(value) is not type(term[place])]))
    with pytest.raises(m.Nonsense):
        m.parse_event(etf.encode((*term[:place], other, *term[place + 1 :])))


# ---- the greeting -----------------------------------------------------------------------------------------------


@relaxed
@given(st.binary(max_size=20), st.binary(max_size=20), st.booleans())
def test_the_greeting(version: bytes, source_hash: bytes, supported: bool) -> None:
    payload = etf.encode(("hello", version, source_hash, supported))
    assert m.parse_hello(payload) == m.Hello(version, source_hash, supported)


@relaxed
@given(st.binary(max_size=60) | encodings() | mutated_encodings())
@example(b"")
@example(b"#!/bin/sh\n")
@example(etf.encode(("hello", b"0.1.0", b"", 1)))
@example(etf.encode(("hello", "0.1.0", b"", True)))
@example(etf.encode(("hello", b"0.1.0", True)))
@example(etf.encode(("hello", b"0.1.0", b"", True, True)))
@example(etf.encode(HUGE))
def test_any_other_greeting_is_nonsense(payload: bytes) -> None:
    with pytest.raises(m.Nonsense) as caught:
        m.parse_hello(payload)
    assert str(caught.value)


# ---- requests and commands --------------------------------------------------------------------------------------


def test_the_commands() -> None:
    assert payload_of(m.PROCEED) == "proceed"
    assert payload_of(m.ABORT) == "abort"
    assert payload_of(m.KILL) == "kill"
    assert payload_of(m.RELEASE) == "release"
    assert payload_of(m.signal(15)) == ("signal", 15)
    assert payload_of(m.shutdown(2500)) == ("shutdown", 2500)
    assert set(m.COMMANDS) == {"proceed", "abort", "signal", "kill", "shutdown", "steps", "release"}


words = st.lists(st.binary(max_size=20), max_size=4).map(tuple)

STEPS: dict[m.Step, etf.Term] = {
    m.CHECKPOINT: "checkpoint",
    ("umask", 0o22): ("umask", 0o22),
    ("setgroups", (1, 2)): ("setgroups", [1, 2]),
    ("setgroups", ()): ("setgroups", []),
    ("no_new_privs",): ("no_new_privs",),
    ("seccomp", b"\6\0\0\0\0\0\xff\x7f", 0): ("seccomp", b"\6\0\0\0\0\0\xff\x7f", 0),
    ("mount_new", b"tmpfs", b"", b"/tmp", b"size=1m", 2): ("mount_new", b"tmpfs", b"", b"/tmp", b"size=1m", 2),
    m.optional(("nice", 5)): ("optional", ("nice", 5)),
    m.optional(("setgroups", (7,))): ("optional", ("setgroups", [7])),
}
"""Steps, and their terms: an argument of several values is a list there."""


@relaxed
@given(st.lists(st.sampled_from(list(STEPS)), max_size=4))
def test_a_batch_of_steps(batch: list[m.Step]) -> None:
    assert payload_of(m.steps(batch)) == ("steps", [STEPS[step] for step in batch])


@relaxed
@given(
    st.builds(
        m.Spawn,
        argv=words,
        env=words,
        namespaces=st.lists(st.sampled_from(m.NAMESPACES), unique=True).map(tuple),
        fds=st.lists(
            st.integers(0, 300) | st.just(m.CWD) | st.tuples(st.just(m.NULL), st.integers(0, 2)), max_size=5
        ).map(tuple),
        steps=st.lists(st.sampled_from(list(STEPS)), max_size=4).map(tuple),
        orphan_grace_ms=st.none() | st.integers(0, 10**12),
        auto_proceed=st.booleans(),
        new_session=st.booleans(),
        quiet=st.booleans(),
        enter=st.booleans(),
        init=st.booleans(),
        own_cgroup=st.none() | st.binary(min_size=1, max_size=20),
    ).flatmap(lambda spawn: st.sampled_from([spawn, spawn._replace(namespaces=None)] if spawn.enter else [spawn]))
)
def test_a_request_arrives_as_it_was_meant(spawn: m.Spawn) -> None:
    name, fields = payload_of(spawn.frame())
    assert name == ("enter" if spawn.enter else "spawn")
    assert fields == {
        "argv": list(spawn.argv),
        "env": list(spawn.env),
        "namespaces": "all" if spawn.namespaces is None else list(spawn.namespaces),
        "fds": list(spawn.fds),
        "steps": [STEPS[step] for step in spawn.steps],
        "orphan": "linger" if spawn.orphan_grace_ms is None else ("kill", spawn.orphan_grace_ms),
        "auto_proceed": spawn.auto_proceed,
        "new_session": spawn.new_session,
        "quiet": spawn.quiet,
        "init": spawn.init,
        **({} if spawn.own_cgroup is None else {"own_cgroup": spawn.own_cgroup}),
    }
    assert payload_of(spawn.frame()) == payload_of(encode_frame(etf.encode(spawn.term())))
