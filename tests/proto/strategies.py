"""Hypothesis strategies for external terms, and a way to compare them that is as strict as Erlang.

Python says `1 == 1.0 == True` and `0.0 == -0.0`; a codec that mixed them up would pass a test with `==`.
`canonical` gives each term a form in which only what is one term to Erlang (`=:=`) is equal.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Iterable
from typing import TypeAlias

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from linx_trio._proto.etf import FrozenList, FrozenMap, ImproperList, Term, encode

Canonical: TypeAlias = "tuple[str, object]"

Terms: TypeAlias = st.SearchStrategy[Term]

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For machines that are slow now and then: an example that takes long is not an error."""


def canonical_list(items: Iterable[Canonical], tail: Canonical | None = None) -> Canonical:
    return ("list", (tuple(items), tail))


def canonical(term: object) -> Canonical:
    match term:
        case bool():
            return ("atom", "true" if term else "false")
        case int():
            return ("integer", term)
        case float():
            return ("float", struct.pack(">d", term))
        case str():
            return ("atom", term)
        case bytes() | bytearray() | memoryview():
            return ("binary", bytes(term))
        case tuple():
            return ("tuple", tuple(map(canonical, term)))
        case list() | FrozenList():
            return canonical_list(map(canonical, term.items if isinstance(term, FrozenList) else term))
        case ImproperList():
            return canonical_list(map(canonical, term.items), canonical(term.tail))
        case dict() | FrozenMap():
            pairs = term.items if isinstance(term, FrozenMap) else term.items()
            return ("map", frozenset((canonical(key), canonical(value)) for key, value in pairs))
    raise TypeError(f"no term: {term!r}")


def atoms() -> st.SearchStrategy[str]:
    """Atoms that decode to `str`: `true` and `false` do not."""
    names = st.text(st.characters(exclude_categories=["Cs"]), max_size=255)
    longest = st.builds(operator.mul, st.sampled_from("xß€😀"), st.sampled_from([127, 128, 255]))
    common = st.sampled_from(["", "ok", "status", "ready", "proceed", "undefined", "nil", "a b", "\0"])
    return (common | names | longest).filter(lambda name: name not in ("true", "false"))


def integers() -> st.SearchStrategy[int]:
    powers = st.builds(
        lambda bits, near, sign: sign * ((1 << bits) + near),
        st.sampled_from([0, 7, 8, 15, 16, 27, 28, 31, 32, 59, 60, 63, 64, 2032, 2040, 2048, 8000]),
        st.integers(-2, 2),
        st.sampled_from([1, -1]),
    )
    return st.integers() | st.integers(-300, 300) | powers


def floats() -> st.SearchStrategy[float]:
    return st.floats(allow_nan=False, allow_infinity=False)


def leaves() -> Terms:
    return st.one_of(st.booleans(), integers(), floats(), atoms(), st.binary(max_size=40))


def tails() -> Terms:
    """What may end an improper list: anything but a list."""
    return leaves() | st.tuples(leaves(), leaves())


def maps(keys: Terms, values: Terms) -> st.SearchStrategy[dict[Term, Term]]:
    """As `st.dictionaries`, which however prints its strategy at each retry: endless for a recursive one."""
    return st.lists(st.tuples(keys, values), max_size=5).map(dict)


def _inner_keys(inner: Terms) -> Terms:
    items = st.lists(inner, max_size=3).map(tuple)
    return st.one_of(
        items,
        st.builds(FrozenList, items),
        st.builds(ImproperList, st.lists(inner, min_size=1, max_size=3).map(tuple), tails()),
        maps(inner, inner).map(lambda pairs: FrozenMap(frozenset(pairs.items()))),
    )


def keys() -> Terms:
    """Terms in the hashable form that map keys have."""
    return st.recursive(leaves(), _inner_keys, max_leaves=5)


def _inner_terms(inner: Terms) -> Terms:
    items = st.lists(inner, max_size=8)
    return st.one_of(
        items,
        items.map(tuple),
        st.lists(st.integers(0, 255), max_size=40),
        st.builds(ImproperList, st.lists(inner, min_size=1, max_size=4).map(tuple), tails()),
        maps(atoms(), inner),
        maps(keys(), inner),
    )


def terms() -> Terms:
    """Every kind of term that the codec carries, as `decode` returns it."""
    return st.recursive(leaves(), _inner_terms, max_leaves=30)


def encodings() -> st.SearchStrategy[bytes]:
    return terms().map(encode)


def _mutated(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for place, removed, inserted in changes:
        at = place % (len(data) + 1)
        data = data[:at] + inserted + data[at + removed :]
    return data


def mutated_encodings() -> st.SearchStrategy[bytes]:
    """A valid encoding with some bytes changed, taken away or put in between."""
    changes = st.tuples(st.integers(0, 1 << 16), st.integers(0, 4), st.binary(max_size=4))
    return st.builds(_mutated, encodings(), st.lists(changes, min_size=1, max_size=4))


def near_encodings() -> st.SearchStrategy[bytes]:
    """Random bytes that get past the version byte, made of tags and counts more often than chance has it."""
    tags = st.sampled_from([70, 97, 98, 99, 100, 104, 105, 106, 107, 108, 109, 110, 111, 115, 116, 118, 119])
    counts = st.sampled_from([b"\0\0\0\0", b"\0\0\0\1", b"\0\0\0\2", b"\0\1", b"\1", b"\xff" * 4])
    pieces = tags.map(lambda tag: bytes((tag,))) | counts | st.binary(max_size=3)
    return st.lists(pieces, max_size=40).map(lambda some: b"\x83" + b"".join(some))
