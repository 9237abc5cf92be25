"""Bytes and fds in, events out: however the stream is cut, and with no fd lost on the way."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from linx_trio._proto import messages as m
from linx_trio._proto.framing import MAX_FRAME
from linx_trio._proto.protocol import SessionProtocol
from linx_trio._proto.states import EVENT_TABLE, TERMINAL, State
from tests.proto.events import ENDS, conversations, events, frame_of
from tests.proto.strategies import relaxed

Heard = list[tuple[m.Message, int | None]]


def listen(chunks: list[tuple[bytes, list[int]]]) -> tuple[SessionProtocol, Heard, str | None]:
    """All that came out of it, and what the nonsense was that ended it."""
    protocol = SessionProtocol()
    heard: Heard = []
    try:
        for data, fds in chunks:
            heard.extend(protocol.feed(data, fds))
        protocol.end_of_file()
    except m.Nonsense as exc:
        return protocol, heard, exc.what
    return protocol, heard, None


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted(place % (len(data) + 1) for place in places)
    return [data[start:end] for start, end in itertools.pairwise([0, *ends, len(data)])]


def stream_of(said: list[m.Message]) -> bytes:
    return b"".join(map(frame_of, said))


places = st.lists(st.integers(0, 1 << 16), max_size=30)


@relaxed
@given(conversations(), places, st.data())
def test_however_the_stream_is_cut_the_same_comes_out(
    said: list[m.Message], places: list[int], data: st.DataObject
) -> None:
    """fds come in their order, each with the first byte of its message or with any earlier one."""
    numbers = itertools.count(7)
    expected = [(event, next(numbers) if type(event) in m.FDS_OWNED else None) for event in said]
    owned = [fd for _, fd in expected if fd is not None]
    whole = listen([(stream_of(said), owned)])
    assert whole[1:] == (expected, None)
    chunks = cut(stream_of(said), places)
    ends = list(itertools.accumulate(map(len, chunks)))
    companions: list[list[int]] = [[] for _ in chunks]
    latest, length = 0, 0
    for event, fd in expected:
        length += len(frame_of(event))
        if fd is not None:
            last = next(i for i, end in enumerate(ends) if end >= length)
            latest = data.draw(st.integers(latest, last))
            companions[latest].append(fd)
    protocol, heard, nonsense = listen(list(zip(chunks, companions, strict=True)))
    assert (heard, nonsense) == whole[1:]
    assert protocol.state is whole[0].state
    assert not protocol.unclaimed


def test_an_fd_that_comes_early_waits_for_its_message() -> None:
    spawned = m.Spawned(5)
    protocol = SessionProtocol()
    assert list(protocol.feed(frame_of(spawned)[:1], [7])) == []
    assert list(protocol.unclaimed) == [7]
    assert list(protocol.feed(frame_of(spawned)[1:], [8])) == [(spawned, 7)]
    assert list(protocol.unclaimed) == [8]


@pytest.mark.parametrize("event", [m.Refusal(1, "clone", -1), m.Abortion(0), m.Lost(-9)], ids=repr)
def test_a_session_can_end_before_there_is_a_process(event: m.Message) -> None:
    protocol, heard, nonsense = listen([(frame_of(event), [])])
    assert (heard, nonsense) == ([(event, None)], None)
    assert protocol.state in TERMINAL


ENDED = (m.Spawned(1), m.Parked(1), m.Started(), m.Exit(0))


@pytest.mark.parametrize("more", [m.Idle(), m.Exit(0), m.UsageReport(0, 0, 0, 0, False), m.Spawned(1)], ids=repr)
def test_nothing_is_said_by_one_who_is_idle(more: m.Message) -> None:
    """What comes behind it would be taken for the next session's."""
    protocol = SessionProtocol()
    for event in ENDED:
        assert list(protocol.feed(frame_of(event), [7]))
        assert not protocol.is_idle
    assert list(protocol.feed(frame_of(m.Idle()))) == [(m.Idle(), None)]
    assert protocol.is_idle
    assert list(protocol.feed(frame_of(more)[:-1])) == []
    assert not protocol.is_idle
    with pytest.raises(m.Nonsense):
        list(protocol.feed(frame_of(more)[-1:]))


def test_one_who_is_idle_may_be_killed() -> None:
    """That is no news; but nobody waits there for a request any more."""
    protocol = SessionProtocol()
    assert list(protocol.feed(stream_of([*ENDED, m.Idle(), m.Lost(-9)]), [7]))[-1] == (m.Idle(), None)
    assert not protocol.is_idle


@relaxed
@given(
    st.lists(events(), max_size=8),
    places,
    st.lists(st.tuples(st.integers(0, 40), st.integers(1000, 1100)), max_size=6),
    st.binary(max_size=4),
)
@example([m.Spawned(1), m.Spawned(2), m.Spawned(3)], [], [(0, 1000), (0, 1001), (0, 1002)], b"")
@example([m.Exit(0)], [], [(0, 1000)], b"")
def test_no_fd_is_lost_whatever_is_said(
    said: list[m.Message], places: list[int], sent: list[tuple[int, int]], rest: bytes
) -> None:
    """Each is either with an event or in `unclaimed`, once, also when the agent speaks nonsense."""
    chunks = cut(stream_of(said) + rest, places)
    with_fds: list[tuple[bytes, list[int]]] = [(chunk, []) for chunk in chunks]
    for number, (place, _) in enumerate(sent):
        with_fds[place % len(with_fds)][1].append(number)
    protocol = SessionProtocol()
    fed: list[int] = []
    taken: list[int] = []
    try:
        for data, fds in with_fds:
            fed += fds
            for _, fd in protocol.feed(data, fds):
                taken += [] if fd is None else [fd]
    except m.Nonsense:
        pass
    assert taken + list(protocol.unclaimed) == fed


@relaxed
@given(st.lists(events(), max_size=8))
def test_what_the_table_refuses_is_nonsense_and_what_came_before_it_is_not_lost(said: list[m.Message]) -> None:
    protocol, heard, nonsense = listen([(stream_of(said), list(range(len(said))))])
    accepted = [event for event, _ in heard]
    state = State.STARTING
    for event in accepted:
        state = EVENT_TABLE[state][type(event)]
    assert protocol.state is state
    assert sum(isinstance(event, ENDS) for event in accepted) <= 1
    assert [type(e) for e in accepted if isinstance(e, (m.Parked, m.Started))] in (
        [],
        [m.Parked],
        [m.Parked, m.Started],
    )
    # A monitor may be killed after it has told the end; the zygote says so, and that is no news.
    spoken = said if state not in TERMINAL else [e for i, e in enumerate(said) if i < len(accepted) or not _is_lost(e)]
    if nonsense is None:
        assert accepted == spoken
    else:
        assert accepted == spoken[: len(accepted)]
        assert nonsense


def _is_lost(event: m.Message) -> bool:
    return isinstance(event, m.Lost)


def lifetime(*said: m.Message) -> list[m.Message]:
    return [m.Spawned(5), *said]


USAGE = m.UsageReport(1, 2, 3, 4, False)
BEGAN = m.Began(5, 1)
OVER = m.Over(0, 1, 2, 3, 4)
RAN = m.Ran(5, 1, 0, 1, 2, 3, 4)

WRONG_ORDERS: list[list[m.Message]] = [
    [m.Started()],
    [m.Exit(0)],
    [m.Parked(1)],
    [m.Degraded(1, "nice", 0)],
    [USAGE],
    [m.Kill(9)],
    lifetime(m.Spawned(5)),
    lifetime(RAN),
    lifetime(BEGAN),
    lifetime(m.Parked(1), BEGAN),
    lifetime(m.Parked(1), OVER),
    lifetime(m.Parked(1), m.Started(), OVER, USAGE),
    lifetime(m.Parked(1), m.Started(), OVER, m.Exit(0)),
    [OVER],
    [BEGAN, BEGAN],
    [BEGAN, RAN],
    [BEGAN, m.Spawned(5)],
    [BEGAN, m.Parked(1)],
    [BEGAN, m.Started()],
    lifetime(m.Parked(1), RAN),
    lifetime(m.Parked(1), m.Started(), RAN),
    lifetime(m.Parked(1), m.Started(), m.Exit(0), RAN),
    [RAN, RAN],
    [RAN, m.Spawned(5)],
    [RAN, m.Exit(0)],
    lifetime(m.Started()),
    lifetime(m.Exit(0)),
    lifetime(m.Parked(1), m.Spawned(5)),
    lifetime(m.Parked(1), m.Parked(1)),
    lifetime(m.Opened()),
    lifetime(m.Parked(1), m.Started(), m.Opened()),
    lifetime(m.Stepped()),
    lifetime(m.Remains(1, "mount", 0)),
    lifetime(m.Parked(1), m.Stepped(), m.Started(), m.Stepped()),
    lifetime(m.Parked(1), m.Started(), m.Remains(1, "mount", 0)),
    lifetime(m.Parked(1), m.Exit(0)),
    lifetime(m.Parked(1), m.Started(), m.Started()),
    lifetime(m.Parked(1), m.Started(), m.Parked(1)),
    lifetime(m.Parked(1), m.Started(), m.Abortion(5)),
    lifetime(m.Parked(1), m.Started(), m.Refusal(2, "execve", -1)),
    lifetime(m.Parked(1), m.Started(), m.Degraded(1, "nice", 0)),
    lifetime(m.Parked(1), m.Started(), m.Exit(0), m.Exit(0)),
    lifetime(m.Parked(1), m.Started(), m.Exit(0), USAGE),
    lifetime(m.Parked(1), m.Started(), m.Kill(9), m.Exit(0)),
    lifetime(m.Parked(1), m.Abortion(5), m.Started()),
    lifetime(m.Refusal(1, "clone", -1), m.Parked(1)),
    lifetime(m.Lost(-9), m.Exit(0)),
]


@pytest.mark.parametrize("said", WRONG_ORDERS, ids=lambda said: "-".join(type(event).__name__ for event in said))
def test_events_in_a_wrong_order_are_nonsense(said: list[m.Message]) -> None:
    _, heard, nonsense = listen([(stream_of(said), list(range(len(said))))])
    assert nonsense is not None
    assert repr(said[-1]) in nonsense
    assert [event for event, _ in heard] == said[:-1]


def test_the_zygotes_word_of_a_dead_monitor_is_no_news_after_the_end() -> None:
    said: list[m.Message] = lifetime(m.Parked(1), m.Started(), m.Exit(3), m.Lost(-9))
    protocol, heard, nonsense = listen([(stream_of(said), [7])])
    assert nonsense is None
    assert [event for event, _ in heard] == said[:-1]
    assert protocol.state is State.EXITED


def test_a_whole_session_can_be_one_event_and_its_monitor_go_on() -> None:
    protocol, heard, nonsense = listen([(stream_of([RAN, m.Idle()]), [])])
    assert (heard, nonsense) == ([(RAN, None), (m.Idle(), None)], None)
    assert protocol.state is State.EXITED
    assert protocol.is_idle


def test_spawned_without_its_fd_is_nonsense() -> None:
    protocol, heard, nonsense = listen([(frame_of(m.Spawned(5)), [])])
    assert nonsense is not None
    assert "fd" in nonsense
    assert heard == []
    assert protocol.state is State.STARTING


@relaxed
@given(conversations(), st.integers(1, 1 << 16), places)
def test_a_stream_that_ends_inside_a_frame_is_nonsense(said: list[m.Message], length: int, places: list[int]) -> None:
    stream = stream_of(said)
    length %= len(stream) + 1
    boundaries = [0, *itertools.accumulate(len(frame_of(event)) for event in said)]
    fds = [7 for event in said if type(event) in m.FDS_OWNED]
    chunks = [(chunk, fds if i == 0 else []) for i, chunk in enumerate(cut(stream[:length], places))]
    _, heard, nonsense = listen(chunks)
    complete = sum(end <= length for end in boundaries) - 1
    assert [event for event, _ in heard] == said[:complete]
    if length in boundaries:
        assert nonsense is None
    else:
        assert nonsense is not None
        assert "middle of a frame" in nonsense


@pytest.mark.parametrize("length", [MAX_FRAME + 1, 0xFFFFFFFF])
def test_a_huge_frame_is_nonsense_as_soon_as_it_is_announced(length: int) -> None:
    _, heard, nonsense = listen([(frame_of(m.Spawned(5)) + length.to_bytes(4, "big"), [7])])
    assert heard == [(m.Spawned(5), 7)]
    assert nonsense is not None
    assert str(length) in nonsense


@pytest.mark.parametrize("payload", [b"", b"\x83", b"\x83\xff", b"{}", b"\x83h\x02d\x00"])
def test_an_undecodable_payload_is_nonsense_and_what_came_before_it_counts(payload: bytes) -> None:
    _, heard, nonsense = listen([(frame_of(m.Spawned(5)) + len(payload).to_bytes(4, "big") + payload, [7])])
    assert heard == [(m.Spawned(5), 7)]
    assert nonsense is not None


@relaxed
@given(st.binary(max_size=200), places)
def test_any_bytes_are_events_or_nonsense(data: bytes, places: list[int]) -> None:
    one = listen([(data, [])])
    many = listen([(chunk, []) for chunk in cut(data, places)])
    assert one[1] == many[1] == []
    assert (one[2] is None) == (many[2] is None)
