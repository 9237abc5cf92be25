"""Netlink's framing: any bytes parse or are refused, and an answer is the same however it is cut into datagrams."""

from __future__ import annotations

import contextlib
import errno
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from linx_trio import _netlink_frames as f
from linx_trio._netlink_frames import Answer, Frame, FrameError

SEQ = 7

payloads = st.binary(max_size=40)
types = st.integers(0x10, 0xFFFF)


def padded(message: bytes) -> bytes:
    return message + bytes(-len(message) % 4)


def ack(seq: int = SEQ, number: int = 0, text: str = "", *, capped: bool = True, about: bytes = b"") -> bytes:
    """What the kernel sends at the end."""
    flags = 0x100 if capped else 0
    body = struct.pack("=i", -number) + (f.pack(16, 5, seq, about) if not capped else f.pack(16, 5, seq, b""))
    body = padded(body)
    if text:
        flags |= 0x200
        raw = text.encode() + b"\0"
        body += padded(struct.pack("=HH", 4 + len(raw), 1) + raw)
    return f.pack(f.NLMSG_ERROR, flags, seq, body)


def done(seq: int = SEQ, number: int = 0, flags: int = f.MULTI) -> bytes:
    return f.pack(f.NLMSG_DONE, flags, seq, struct.pack("=i", -number))


@given(st.binary(max_size=200))
@example(b"\x10\0\0\0" + bytes(12))
@example(b"\x0f\0\0\0" + bytes(12))
@example(bytes(16))
def test_any_bytes_are_split_or_refused(data: bytes) -> None:
    try:
        frames = f.split(data)
    except FrameError:
        return
    assert sum(len(padded(frame.data)) for frame in frames) >= len(data)
    for frame in frames:
        assert len(frame.data) == struct.unpack_from("=I", frame.data)[0] >= 16


@given(st.binary(max_size=100))
def test_any_bytes_are_attributes_or_refused(data: bytes) -> None:
    with contextlib.suppress(FrameError):
        dict(f.attributes(data))


@given(
    st.sampled_from([f.NLMSG_ERROR, f.NLMSG_DONE]), st.sampled_from([0, 0x100, 0x200, 0x300]), st.binary(max_size=60)
)
@example(f.NLMSG_ERROR, 0x200, bytes(4) + b"\xff\xff\xff\xff" + bytes(12))
def test_any_ending_is_understood_or_refused(type: int, flags: int, payload: bytes) -> None:
    frame = f.split(f.pack(type, flags, 1, payload))[0]
    try:
        number, text = f.ending_of(frame)
    except FrameError:
        return
    assert number >= 0
    assert isinstance(text, str)


@given(st.binary(max_size=300))
def test_an_answer_takes_any_bytes_or_refuses_them(data: bytes) -> None:
    answer = Answer(SEQ, dump=True)
    with contextlib.suppress(FrameError):
        answer.feed(data)
    assert all(frame.seq == SEQ for frame in answer.parts)


@given(st.lists(st.tuples(types, payloads), max_size=5))
def test_what_is_packed_is_split_again(messages: list[tuple[int, bytes]]) -> None:
    datagram = b"".join(padded(f.pack(type, 3, SEQ, payload)) for type, payload in messages)
    assert [(frame.type, frame.payload) for frame in f.split(datagram)] == messages


@given(st.lists(st.tuples(types, payloads, st.integers(0, 3)), max_size=8), st.data())
def test_a_dump_is_the_same_however_it_is_cut(messages: list[tuple[int, bytes, int]], data: st.DataObject) -> None:
    """With other questions' answers in between: those of a question that was given up."""
    stream = [padded(f.pack(type, f.MULTI, SEQ - away, payload)) for type, payload, away in messages]
    stream += [padded(done()), padded(f.pack(0x10, 0, SEQ, b"after the end"))]
    answer = Answer(SEQ, dump=True)
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        answer.feed(b"".join(stream[:size]))
        del stream[:size]
    assert answer.done
    assert answer.errno == 0
    assert [(part.type, part.payload) for part in answer.parts] == [
        (type, payload) for type, payload, away in messages if away == 0
    ]


@given(st.integers(1, 133), st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30), st.booleans())
def test_the_kernels_words(number: int, text: str, capped: bool) -> None:
    answer = Answer(SEQ)
    answer.feed(ack(SEQ, number, text, capped=capped, about=b"the request, repeated"))
    assert (answer.done, answer.errno, answer.text) == (True, number, text)


def test_an_acknowledgement_is_an_end_without_an_error() -> None:
    answer = Answer(SEQ)
    answer.feed(padded(f.pack(16, 0, SEQ, b"link")))
    assert not answer.done
    answer.feed(ack())
    assert (answer.done, answer.errno, len(answer.parts)) == (True, 0, 1)


@pytest.mark.parametrize("datagram", [ack(SEQ - 1, errno.EPERM), ack(SEQ + 1), done(SEQ - 1)])
def test_an_end_that_is_not_ours_ends_nothing(datagram: bytes) -> None:
    answer = Answer(SEQ)
    answer.feed(datagram)
    assert not answer.done


@pytest.mark.parametrize("interrupted", ["part", "end"])
def test_a_dump_during_which_something_changed(interrupted: str) -> None:
    answer = Answer(SEQ, dump=True)
    flag = {interrupted: f.DUMP_INTERRUPTED}
    answer.feed(f.pack(16, f.MULTI | flag.get("part", 0), SEQ, b""))
    answer.feed(done(flags=f.MULTI | flag.get("end", 0)))
    assert answer.done
    assert answer.interrupted


def test_a_dump_that_fails() -> None:
    answer = Answer(SEQ, dump=True)
    answer.feed(done(number=errno.EMSGSIZE))
    assert (answer.done, answer.errno) == (True, errno.EMSGSIZE)


def test_noise_is_no_part() -> None:
    answer = Answer(SEQ)
    answer.feed(f.pack(1, 0, SEQ, b"") + f.pack(4, 0, SEQ, b"") + ack())
    assert answer.parts == []
    assert Frame(16, 0, 1, f.pack(16, 0, 1, b"abc")).payload == b"abc"
