"""Packet-4 framing: the same payloads however the bytes arrive, and no frame beyond the limit."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from linx_trio._proto.framing import MAX_FRAME, FrameDecoder, FramingError, encode_frame
from tests.proto.strategies import relaxed


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """*data* cut at the given places, each taken modulo its length; equal places give empty chunks."""
    ends = sorted(place % (len(data) + 1) for place in places)
    return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]


def feed_all(decoder: FrameDecoder, chunks: list[bytes]) -> tuple[list[bytes], bool]:
    """All payloads that came out, and whether the stream was refused in the end."""
    frames: list[bytes] = []
    for chunk in chunks:
        try:
            frames += decoder.feed(chunk)
        except FramingError as error:
            return frames + list(error.frames), True
    return frames, False


places = st.lists(st.integers(0, 1 << 16), max_size=20)


@relaxed
@given(st.lists(st.binary(max_size=300), max_size=8), st.binary(max_size=3), places)
@example([b"", b"", b"a"], b"", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
@example([], b"\0\0\0", [])
def test_chunking_never_changes_what_comes_out(payloads: list[bytes], rest: bytes, places: list[int]) -> None:
    stream = b"".join(map(encode_frame, payloads)) + rest
    decoder = FrameDecoder()
    assert feed_all(decoder, cut(stream, places)) == (payloads, False)
    assert decoder.pending == len(rest)


@relaxed
@given(st.binary(max_size=100), places, st.integers(0, 300))
@example(b"\0\0\0\1a\0\0\0\2\0\0\0\0", [], 1)
def test_any_stream_gives_the_same_in_one_piece_or_many(data: bytes, places: list[int], limit: int) -> None:
    whole = feed_all(FrameDecoder(max_frame=limit), [data])
    assert feed_all(FrameDecoder(max_frame=limit), cut(data, places)) == whole
    assert feed_all(FrameDecoder(max_frame=limit), [bytes((byte,)) for byte in data]) == whole


def test_encode_frame() -> None:
    assert encode_frame(b"") == b"\0\0\0\0"
    assert encode_frame(b"a" * 258) == b"\0\0\1\2" + b"a" * 258
    assert encode_frame(b"ab", max_frame=2) == b"\0\0\0\2ab"
    with pytest.raises(FramingError, match="3 bytes, at most 2"):
        encode_frame(b"abc", max_frame=2)


def test_the_largest_frame() -> None:
    payload = bytes(MAX_FRAME)
    decoder = FrameDecoder()
    assert decoder.feed(encode_frame(payload)[:-1]) == []
    assert decoder.pending == MAX_FRAME + 3
    assert decoder.feed(b"\0") == [payload]
    assert decoder.pending == 0
    with pytest.raises(FramingError, match=f"{MAX_FRAME + 1} bytes"):
        encode_frame(payload + b"\0")


@pytest.mark.parametrize("header", [b"\0\0\0\5", b"\0\1\0\0", b"\xff\xff\xff\xff"])
def test_a_frame_that_is_too_long_is_refused_when_its_header_is_known(header: bytes) -> None:
    decoder = FrameDecoder(max_frame=4)
    assert decoder.feed(encode_frame(b"abcd") + header[:3]) == [b"abcd"]
    with pytest.raises(FramingError, match=f"{int.from_bytes(header, 'big')} bytes, at most 4") as caught:
        decoder.feed(header[3:])
    assert caught.value.frames == ()


def test_payloads_before_the_refused_frame_are_not_lost() -> None:
    decoder = FrameDecoder(max_frame=4)
    with pytest.raises(FramingError) as caught:
        decoder.feed(encode_frame(b"one") + encode_frame(b"") + b"\0\0\0\5")
    assert caught.value.frames == (b"one", b"")


def test_after_an_error_every_feed_raises() -> None:
    decoder = FrameDecoder(max_frame=4)
    with pytest.raises(FramingError):
        decoder.feed(encode_frame(b"one") + b"\0\0\0\5")
    for more in (b"", encode_frame(b"two")):
        with pytest.raises(FramingError, match="5 bytes, at most 4") as caught:
            decoder.feed(more)
        assert caught.value.frames == ()


def test_pending_tells_a_stream_that_was_cut_short() -> None:
    decoder = FrameDecoder()
    seen = []
    for byte in encode_frame(b"ab"):
        decoder.feed(bytes((byte,)))
        seen.append(decoder.pending)
    assert seen == [1, 2, 3, 4, 5, 0]


def test_a_payload_is_a_copy() -> None:
    """A caller may reuse the buffer that it reads into."""
    buffer = bytearray(encode_frame(b"first"))
    (payload,) = FrameDecoder().feed(buffer)
    buffer[:] = bytes(len(buffer))
    assert payload == b"first"
