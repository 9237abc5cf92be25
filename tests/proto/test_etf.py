"""The external term format: round trips, what is refused and how it is named, and that no bytes do harm."""

from __future__ import annotations

import contextlib
import enum
import pickle
import signal
import struct
import tracemalloc
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from linx_trio._proto import etf
from linx_trio._proto.etf import CodecError, FrozenList, FrozenMap, ImproperList, Term, decode, encode
from tests.proto.strategies import (
    canonical,
    encodings,
    keys,
    mutated_encodings,
    near_encodings,
    relaxed,
    terms,
)

V = b"\x83"


class Namespace(enum.StrEnum):
    NET = "net"


class Pair(NamedTuple):
    a: int
    b: int


def nested(levels: int) -> list[Term]:
    term: list[Term] = [1]
    for _ in range(levels - 1):
        term = [term]
    return term


# --- round trips ------------------------------------------------------------------------------------------


@relaxed
@given(terms())
@example({"argv": [b"/bin/sh", b"-c", b"exit 3"], "namespaces": ["net", "mount"], "cwd": b"/tmp"})
@example({FrozenList((1, FrozenMap(frozenset({("a", FrozenList(()))})))): [[]], (1,): 1, "1": 2, b"1": 3})
@example(ImproperList((1, 2), {}))
@example([list(range(256)), list(range(257)), [-1, 256]])
@example(tuple(range(256)))
@example(-0.0)
def test_what_is_encoded_is_decoded(term: Term) -> None:
    assert canonical(decode(encode(term))) == canonical(term)


@relaxed
@given(keys())
def test_a_key_is_encoded_as_the_term_that_it_was(key: Term) -> None:
    """The hashable forms of lists and maps exist in Python only: as a value, the key is a plain term."""
    assert canonical(decode(encode(key))) == canonical(key)
    back = decode(encode({key: key}))
    assert isinstance(back, dict)
    assert list(back) == [key]


@relaxed
@given(encodings())
def test_encoding_is_stable(data: bytes) -> None:
    again = encode(decode(data))
    assert encode(decode(again)) == again


@pytest.mark.parametrize(
    ("term", "data"),
    [
        ("ok", b"w\2ok"),
        (True, b"w\4true"),
        (False, b"w\5false"),
        ("true", b"w\4true"),
        ("", b"w\0"),
        ("ß" * 128, b"v\1\0" + "ß".encode() * 128),
        (0, b"a\0"),
        (255, b"a\xff"),
        (256, b"b\0\0\1\0"),
        (-1, b"b\xff\xff\xff\xff"),
        (-(1 << 31), b"b\x80\0\0\0"),
        (1 << 31, b"n\4\0\0\0\0\x80"),
        (-(1 << 31) - 1, b"n\4\1\1\0\0\x80"),
        ((1 << 2040) - 1, b"n\xff\0" + b"\xff" * 255),
        (1 << 2040, b"o\0\0\1\0\0" + bytes(255) + b"\1"),
        (1.5, b"F\x3f\xf8\0\0\0\0\0\0"),
        (b"", b"m\0\0\0\0"),
        (bytearray(b"ab"), b"m\0\0\0\2ab"),
        (memoryview(b"abcd")[::2], b"m\0\0\0\2ac"),
        (memoryview(struct.pack("=2I", 1, 1)).cast("I"), b"m\0\0\0\x08" + struct.pack("=2I", 1, 1)),
        ((), b"h\0"),
        ([], b"j"),
        ([1, []], b"l\0\0\0\2a\1jj"),
        (FrozenList(()), b"j"),
        ({}, b"t\0\0\0\0"),
        ({"a": 1, b"b": 2}, b"t\0\0\0\2w\1aa\1m\0\0\0\1ba\2"),
        (FrozenMap(frozenset({(2, "b"), (1, "a")})), b"t\0\0\0\2a\1w\1aa\2w\1b"),
        (ImproperList((1,), 2), b"l\0\0\0\1a\1a\2"),
        (signal.SIGTERM, b"a\x0f"),
        (Namespace.NET, b"w\3net"),
        (Pair(1, 2), b"h\2a\1a\2"),
    ],
)
def test_encoding(term: object, data: bytes) -> None:
    assert encode(term) == V + data


@pytest.mark.parametrize(
    ("data", "term"),
    [
        (b"d\0\4true", True),
        (b"s\5false", False),
        (b"s\1\xe9", "é"),
        (b"v\0\1a", "a"),
        (b"k\0\3abc", [97, 98, 99]),
        (b"c" + b"-1.50000000000000000000e+00".ljust(31, b"\0"), -1.5),
        (b"n\0\0", 0),
        (b"n\2\1\0\0", 0),
        (b"o\0\0\0\1\1\5", -5),
        (b"i\0\0\0\1j", ([],)),
        (b"l\0\0\0\0j", []),
        (b"l\0\0\0\0a\5", 5),
        (b"l\0\0\0\1a\1k\0\1\2", [1, 2]),
        (b"l\0\0\0\1a\1l\0\0\0\1a\2a\3", ImproperList((1, 2), 3)),
        (b"t\0\0\0\1jj", {FrozenList(()): []}),
        (b"t\0\0\0\1t\0\0\0\1a\1jj", {FrozenMap(frozenset({(1, FrozenList(()))})): []}),
        (b"t\0\0\0\1h\1ja\1", {(FrozenList(()),): 1}),
        (b"t\0\0\0\1l\0\0\0\1ja\2a\1", {ImproperList((FrozenList(()),), 2): 1}),
        (b"t\0\0\0\2a\1ja\2j", {1: [], 2: []}),
        (b"t\0\0\0\2h\1a\1jl\0\0\0\1a\1jj", {(1,): [], FrozenList((1,)): []}),
    ],
)
def test_decoding_what_we_do_not_encode(data: bytes, term: Term) -> None:
    assert canonical(decode(V + data)) == canonical(term)
    assert decode(V + data) == term
    assert decode(bytearray(V + data)) == term
    assert decode(memoryview(V + data)) == term


# --- what is refused, by name and place -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "problem", "offset"),
    [
        (b"", "no bytes", 0),
        (b"\x82a\1", "version 130", 0),
        (V, "truncated", 1),
        (V + b"\x00", "unknown tag 0", 1),
        (V + b"a\1a", "1 bytes follow", 3),
        (V + b"jj", "1 bytes follow", 2),
        (V + b"a", "truncated", 1),
        (V + b"b\0\0\0", "truncated", 1),
        (V + b"m\0\0\0\3ab", "3 bytes are claimed, 2 are left", 1),
        (V + b"m\xff\xff\xff\xff", "4294967295 bytes are claimed", 1),
        (V + b"l\0\0\0\2j", "2 elements are claimed, 1 bytes are left", 1),
        (V + b"l\xff\xff\xff\xffj", "4294967295 elements are claimed", 1),
        (V + b"i\xff\xff\xff\xffj", "4294967295 elements are claimed", 1),
        (V + b"t\xff\xff\xff\xffj", "elements are claimed", 1),
        (V + b"o\xff\xff\xff\xff\0j", "4294967295 bytes are claimed", 1),
        (V + b"n\2\0\1", "truncated", 1),
        (V + b"l\0\0\0\1a\1", "truncated", 8),
        (V + b"h\2a\1n", "truncated", 5),
        (V + b"w\1\xe9", "not UTF-8", 1),
        (V + b"w\3\xed\xa0\x80", "not UTF-8", 1),
        (V + b"w\2\xc0\x80", "not UTF-8", 1),
        (V + b"v\1\0" + b"x" * 256, "256 characters", 1),
        (V + b"d\1\0" + b"x" * 256, "256 characters", 1),
        (V + b"F\x7f\xf8\0\0\0\0\0\0", "NaN", 1),
        (V + b"F\xff\xf0\0\0\0\0\0\0", "infinite", 1),
        (V + b"c" + b"nan".ljust(31, b"\0"), "FLOAT_EXT", 1),
        (V + b"c" + b"1_0.0".ljust(31, b"\0"), "FLOAT_EXT", 1),
        (V + b"c" + b"1.0e999".ljust(31, b"\0"), "FLOAT_EXT", 1),
        (V + b"c" + b" 1.0".ljust(31, b"\0"), "FLOAT_EXT", 1),
        (V + b"c1.0", "31 bytes are claimed", 1),
        (V + b"t\0\0\0\2a\1ja\1j", "duplicate map key", 9),
        (V + b"t\0\0\0\2a\1jb\0\0\0\1j", "duplicate map key", 9),
        (V + b"t\0\0\0\2jjjj", "duplicate map key", 8),
        (V + b"t\0\0\0\2a\1jw\4truej", "cannot tell apart .*bool and int", 9),
        (V + b"t\0\0\0\2a\1jF\x3f\xf0\0\0\0\0\0\0j", "cannot tell apart .*float and int", 9),
        (V + b"t\0\0\0\2F" + bytes(8) + b"jF\x80" + bytes(7) + b"j", "cannot tell apart", 16),
        (V + b"t\0\0\0\2h\1a\1jh\1w\4truej", "cannot tell apart .*tuple", 11),
        (V + b"M\0\0\0\1\1\x80", "bitstring", 1),
        (V + b"P\0\0\0\2", "compressed", 1),
        (V + b"h\1Xw\0" + bytes(12), "pid", 3),
        (V + b"g", "pid", 1),
        (V + b"Y", "port", 1),
        (V + b"f", "port", 1),
        (V + b"x", "port", 1),
        (V + b"Z", "reference", 1),
        (V + b"e", "reference", 1),
        (V + b"r", "reference", 1),
        (V + b"p", "fun", 1),
        (V + b"u", "fun", 1),
        (V + b"q", "external fun", 1),
        (V + b"R\0", "atom cache", 1),
        (V + b"D\0", "distribution header", 1),
        (V + b"E\0", "distribution header", 1),
        (V + b"y", "local format", 1),
    ],
)
def test_bytes_that_are_refused(data: bytes, problem: str, offset: int) -> None:
    with pytest.raises(CodecError, match=problem) as caught:
        decode(data)
    assert caught.value.offset == offset
    assert f"at byte {offset}" in str(caught.value)


@pytest.mark.parametrize("tag", range(256))
def test_every_tag_is_a_term_or_a_named_error(tag: int) -> None:
    data = V + bytes((tag,)) + bytes(40)
    if tag in (70, 97, 98, 99, 100, 104, 105, 106, 107, 108, 109, 110, 111, 115, 116, 118, 119):
        with contextlib.suppress(CodecError):  # 0 is no good length for most
            decode(data)
    else:
        with pytest.raises(CodecError, match=rf"is not supported at byte 1|unknown tag {tag} at byte 1"):
            decode(data)


@pytest.mark.parametrize(
    ("term", "problem"),
    [
        (None, "NoneType"),
        ({"a": [None]}, "NoneType"),
        ({None: 1}, "NoneType"),
        ({1, 2}, "set"),
        (1j, "complex"),
        (object(), "object"),
        (encode, "function"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        ("x" * 256, "256 characters"),
        ("\ud800", "surrogate"),
        (ImproperList((), 1), "without items"),
        (ImproperList((1,), []), "tail: list"),
        (ImproperList((1,), FrozenList((1,))), "tail: FrozenList"),
        (ImproperList((1,), ImproperList((1,), 2)), "tail: ImproperList"),
        ({True: 1, "true": 2}, "one to Erlang"),
        ({(False,): 1, ("false",): 2}, "one to Erlang"),
        (FrozenMap(frozenset({("a", 1), ("a", 2)})), "one to Erlang"),
        (bytes(etf.MAX_SIZE), "more than 16777216 bytes"),
    ],
)
def test_terms_that_are_refused(term: object, problem: str) -> None:
    with pytest.raises(CodecError, match=problem) as caught:
        encode(term)
    assert caught.value.offset is None


def test_keys_that_differ_in_an_inner_map_only_by_its_order_are_one() -> None:
    one = FrozenMap(frozenset({("true", 1), ("b", 2), ("c", 3)}))
    other = FrozenMap(frozenset({("c", 3), (True, 1), ("b", 2)}))
    with pytest.raises(CodecError, match="one to Erlang"):
        encode({one: 1, other: 2})


@pytest.mark.parametrize("data", ["text", 5, None])
def test_decoding_what_is_no_bytes_is_a_type_error(data: bytes) -> None:
    with pytest.raises(TypeError):
        decode(data)


def test_the_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(CodecError("a problem", 7)))
    assert (str(error), error.offset) == ("a problem at byte 7", 7)


# --- limits -----------------------------------------------------------------------------------------------


def test_depth() -> None:
    deepest = nested(etf.MAX_DEPTH)
    assert decode(encode(deepest)) == deepest
    with pytest.raises(CodecError, match="nested too deeply"):
        encode((deepest,))
    with pytest.raises(CodecError, match="nested too deeply"):
        decode(V + b"l\0\0\0\1" * (etf.MAX_DEPTH + 1) + b"j" * (etf.MAX_DEPTH + 2))
    assert encode([[]], max_depth=1) == V + b"l\0\0\0\1jj"
    with pytest.raises(CodecError, match="nested too deeply"):
        encode([[1]], max_depth=1)
    with pytest.raises(CodecError, match=r"nested too deeply at byte 6"):
        decode(encode([[1]]), max_depth=1)


OPENINGS = [b"h\1", b"i\0\0\0\1", b"l\0\0\0\1", b"l\0\0\0\0", b"t\0\0\0\1", b"t\0\0\0\1j"]


@pytest.mark.parametrize("sibling", [(1,), [1], {"k": 1}, ImproperList((1,), 2), {True: 1}])
def test_depth_is_not_length(sibling: Term) -> None:
    siblings = [sibling] * (2 * etf.MAX_DEPTH)
    assert decode(encode(siblings)) == siblings
    frozen = FrozenMap(frozenset({("k", FrozenList((1,)))}))
    assert encode([frozen] * (2 * etf.MAX_DEPTH)) == encode([{"k": [1]}] * (2 * etf.MAX_DEPTH))


@pytest.mark.parametrize("opening", OPENINGS)
def test_no_nesting_exhausts_the_stack(opening: bytes) -> None:
    for levels in (1_000, 100_000):
        with pytest.raises(CodecError, match="nested too deeply"):
            decode(V + opening * levels)
    with pytest.raises(CodecError, match="Python's stack"):
        decode(V + opening * 100_000, max_depth=1 << 30)


def test_a_term_that_contains_itself_is_refused() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(CodecError, match="nested too deeply"):
        encode(endless)
    with pytest.raises(CodecError, match="Python's stack"):
        encode(endless, max_depth=1 << 30)


def test_the_deepest_key_can_be_hashed_and_compared() -> None:
    data = V + b"t\0\0\0\1" + encode(nested(etf.MAX_DEPTH - 1))[1:] + b"a\1"
    one, other = decode(data), decode(data)
    assert isinstance(one, dict)
    assert isinstance(other, dict)
    assert one == other
    assert list(map(hash, one)) == list(map(hash, other))
    assert encode(one) == data


def test_number_of_elements() -> None:
    fits = {"a": [1, 2], "b": (3, b"4")}
    data = encode(fits, max_elements=8)
    assert decode(data, max_elements=8) == fits
    with pytest.raises(CodecError, match="too many elements"):
        encode(fits, max_elements=7)
    with pytest.raises(CodecError, match="too many elements"):
        decode(data, max_elements=7)
    with pytest.raises(CodecError, match="too many elements"):
        decode(V + b"k\0\3abc", max_elements=2)


def test_a_small_object_that_stands_for_a_huge_term_is_refused() -> None:
    huge: list[object] = []
    for _ in range(60):
        huge = [huge, huge]
    with pytest.raises(CodecError, match="too many elements"):
        encode(huge)


def test_the_largest_integer() -> None:
    largest = (1 << 8 * etf.MAX_INTEGER_BYTES) - 1
    assert decode(encode(-largest)) == -largest
    with pytest.raises(CodecError, match=f"an integer of {etf.MAX_INTEGER_BYTES + 1} bytes"):
        encode(largest + 1)
    # Older releases write longer ones, so they are read.
    assert decode(V + b"o" + (etf.MAX_INTEGER_BYTES + 1).to_bytes(4, "big") + b"\0" + b"\xff" * 524281)


def test_size() -> None:
    assert len(encode(bytes(94), max_size=100)) == 100
    assert decode(encode(bytes(94)), max_size=100) == bytes(94)
    for too_long in (bytes(95), [1] * 47, "x" * 98, 1 << 8 * 97, memoryview(bytes(95))):
        with pytest.raises(CodecError, match="more than 100 bytes"):
            encode(too_long, max_size=100)
    with pytest.raises(CodecError, match="101 bytes"):
        decode(encode(bytes(95)), max_size=100)
    largest = bytes(etf.MAX_SIZE - 6)
    assert decode(encode(largest)) == largest


@pytest.mark.parametrize("tag", [105, 108, 109, 111, 116])
def test_a_claim_allocates_nothing(tag: int) -> None:
    """Neither one huge claim, nor a claim at each level that just fits into what is left."""
    rest = bytes(1_000)
    fitting = b"".join(bytes((tag,)) + (400).to_bytes(4, "big") for _ in range(100)) + rest
    for data in (V + bytes((tag,)) + b"\xff" * 4 + rest, V + fitting):
        tracemalloc.start()
        try:
            with pytest.raises(CodecError):
                decode(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 1 << 20


# 200 MB each, once encoded.
BLOCKS = {
    "bytes": [bytes(1 << 19)] * 400,
    "view": [memoryview(bytes(1 << 19))] * 400,
    "int": [1 << 4_000_000] * 400,
    "atom": ["😀" * 255] * 200_000,
}


@pytest.mark.parametrize("term", BLOCKS.values(), ids=BLOCKS)
def test_a_refused_term_is_not_built(term: object) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match="more than"):
            encode(term)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * etf.MAX_SIZE


# --- whatever comes in ------------------------------------------------------------------------------------


def decodes_or_is_refused(data: bytes) -> None:
    try:
        term = decode(data)
    except CodecError:
        return
    assert canonical(decode(encode(term))) == canonical(term)


@relaxed
@given(st.binary() | near_encodings())
@example(V + b"l\0\0\0\0" * 200)
@example(V + b"t\0\0\0\1" * 200)
@example(V + b"t\0\0\0\1t\0\0\0\0t\0\0\0\0")
@example(V + b"k\xff\xffabc")
@example(V + b"n\0")
@example(V + b"o\0\0\0\0")
@example(V + b"v\xff\xff")
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    decodes_or_is_refused(data)


@relaxed
@given(mutated_encodings())
def test_mutations_decode_or_are_refused(data: bytes) -> None:
    decodes_or_is_refused(data)


@relaxed
@given(encodings())
def test_every_truncation_is_refused(data: bytes) -> None:
    step = 1 + len(data) // 200
    for end in range(0, len(data), step):
        with pytest.raises(CodecError, match="truncated"):
            decode(data[:end])


@relaxed
@given(encodings(), st.binary(min_size=1, max_size=5))
def test_whatever_follows_is_refused(data: bytes, more: bytes) -> None:
    with pytest.raises(CodecError, match=f"{len(more)} bytes follow the term at byte {len(data)}"):
        decode(data + more)
