"""Erlang External Term Format: terms to bytes and back, in pure Python, without I/O.

An external term is the version byte 131 and one term: a tag byte, then what the tag says (`erl_ext_dist` in
the Erlang documentation). There is no length in front of a term, so a decoder walks it from left to right
with a cursor; a table of 256 functions, indexed by the tag, says how each kind goes on.

Erlang               Python
===================  ==================================================================================
atom                 `str` (`true` and `false`: `bool`, in both directions)
integer, float       `int`, `float`; Erlang has no NaN and no infinity, so both are refused
binary               `bytes`; `bytearray` and `memoryview` are encoded too
tuple, list, map     `tuple`, `list`, `dict`
improper list        `ImproperList`
list or map as, or   `FrozenList`, `FrozenMap`: hashable, encoded as the list or map that they were, and
inside, a map key    equal to their own kind only, so that `{1}` and `[1]` stay two keys

Bytes come from another process, so nothing that they claim is believed. A count is compared with the bytes
that are left before anything is allocated for it. Nesting, the number of elements and the size of the whole
are bounded, in both directions: a small Python object can stand for a huge term (`x = [x, x]`, forty times)
or for an endless one (`x.append(x)`). Reading past the end shows as IndexError or struct.error, whatever the
tag; `decode` turns both into the one declared error, `CodecError`: so the hot path is free of such checks.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from math import isfinite
from typing import Any, Final, NoReturn, TypeAlias

__all__ = [
    "MAX_DEPTH",
    "MAX_ELEMENTS",
    "MAX_INTEGER_BYTES",
    "MAX_SIZE",
    "CodecError",
    "FrozenList",
    "FrozenMap",
    "ImproperList",
    "Term",
    "decode",
    "encode",
]

VERSION: Final = 131

MAX_DEPTH: Final = 128
"""Containers inside one another. So few that Python's stack has room to hash and compare the result too."""

MAX_ELEMENTS: Final = 1 << 20
"""Elements of all containers together; a map entry is two. An element is up to about 100 bytes in memory."""

MAX_SIZE: Final = 16 * 1024 * 1024
"""Bytes of the whole external term, version byte included."""

MAX_INTEGER_BYTES: Final = 65535 * 8
"""The largest magnitude that every supported Erlang takes; later releases lowered their limit to this."""

MAX_ATOM_CHARACTERS: Final = 255

Term: TypeAlias = (
    "bool | int | float | str | bytes | tuple[Term, ...] | list[Term] | dict[Term, Term]"
    "| ImproperList | FrozenList | FrozenMap"
)
"""What `decode` returns."""


class CodecError(ValueError):
    """Bytes that are no term, or a term that this codec does not carry; the message names which, and where.

    `offset` is the byte of the input at which the offending term starts, None when there is no such byte.
    """

    def __init__(self, problem: str, offset: int | None = None) -> None:
        super().__init__(problem if offset is None else f"{problem} at byte {offset}")
        self.offset = offset


@dataclass(frozen=True, slots=True)
class ImproperList:
    """The list `[A, B | Tail]`, whose tail is not a list. `items` is never empty."""

    items: tuple[Term, ...]
    tail: Term


@dataclass(frozen=True, slots=True)
class FrozenList:
    """A list that is, or is inside, a map key."""

    items: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class FrozenMap:
    """A map that is, or is inside, a map key: its key-value pairs."""

    items: frozenset[tuple[Term, Term]]


# The tags that are read and written, under the names of erl_ext_dist.
NEW_FLOAT, SMALL_INTEGER, INTEGER, FLOAT, ATOM, SMALL_TUPLE, LARGE_TUPLE = 70, 97, 98, 99, 100, 104, 105
NIL, STRING, LIST, BINARY, SMALL_BIG, LARGE_BIG, SMALL_ATOM, MAP = 106, 107, 108, 109, 110, 111, 115, 116
ATOM_UTF8, SMALL_ATOM_UTF8 = 118, 119

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_I32 = struct.Struct(">i")
_F64 = struct.Struct(">d")
_TAG_U32 = struct.Struct(">BI")
_TAG_I32 = struct.Struct(">Bi")
_TAG_F64 = struct.Struct(">Bd")


# Decoding. A decoder is called with the cursor on its tag and leaves it behind the term. Until it has
# succeeded the cursor stays on the tag, or on one inside, so that an error can say where.


class _Cursor:
    __slots__ = ("budget", "data", "depth", "pos")

    def __init__(self, data: bytes, depth: int, budget: int) -> None:
        self.data = data
        self.pos = 1
        self.depth = depth  # levels that may still be opened
        self.budget = budget  # elements that may still be read

    def enter(self, count: int, start: int) -> None:
        """Open a container of *count* elements, from *start* on, or refuse it before any allocation."""
        left = len(self.data) - start
        if count > left:  # an element is at least one byte
            raise CodecError(f"truncated: {count} elements are claimed, {left} bytes are left", self.pos)
        self.budget -= count
        if self.budget < 0:
            raise CodecError("too many elements", self.pos)
        self.depth -= 1
        if self.depth < 0:
            raise CodecError("nested too deeply", self.pos)
        self.pos = start


_Decoder: TypeAlias = Callable[[_Cursor], Term]


def _take(cursor: _Cursor, start: int, count: int) -> bytes:
    """The *count* bytes from *start*, which end the term."""
    end = start + count
    data = cursor.data
    if end > len(data):
        raise CodecError(f"truncated: {count} bytes are claimed, {len(data) - start} are left", cursor.pos)
    cursor.pos = end
    return data[start:end]


def _small_integer(cursor: _Cursor) -> int:
    value = cursor.data[cursor.pos + 1]
    cursor.pos += 2
    return value


def _integer(cursor: _Cursor) -> int:
    value: int = _I32.unpack_from(cursor.data, cursor.pos + 1)[0]
    cursor.pos += 5
    return value


def _big(cursor: _Cursor, large: bool = False) -> int:
    start, data = cursor.pos, cursor.data
    count = _U32.unpack_from(data, start + 1)[0] if large else data[start + 1]
    sign = start + (5 if large else 2)
    negative = data[sign]  # Erlang writes 0 or 1, and reads whatever is not 0 as negative
    value = int.from_bytes(_take(cursor, sign + 1, count), "little")
    return -value if negative else value


def _new_float(cursor: _Cursor) -> float:
    value: float = _F64.unpack_from(cursor.data, cursor.pos + 1)[0]
    if not isfinite(value):
        raise CodecError("a float that is NaN or infinite", cursor.pos)
    cursor.pos += 9
    return value


_FLOAT_TEXT = re.compile(rb"[+-]?[0-9]+\.[0-9]+(?:[eE][+-]?[0-9]+)?")
_FLOAT_EXT_BYTES = 31


def _float_text(cursor: _Cursor) -> float:
    """FLOAT_EXT: what C's `%.20e` prints, filled up with NULs. Sent with `{minor_version, 0}` only."""
    start = cursor.pos
    text = _take(cursor, start + 1, _FLOAT_EXT_BYTES).partition(b"\0")[0]
    value = float(text) if _FLOAT_TEXT.fullmatch(text) else float("nan")
    if not isfinite(value):
        raise CodecError(f"FLOAT_EXT holds no float: {text!r}", start)
    return value


def _atom(cursor: _Cursor, large: bool = False, encoding: str = "utf-8") -> str | bool:
    start, data = cursor.pos, cursor.data
    if large:
        raw = _take(cursor, start + 3, _U16.unpack_from(data, start + 1)[0])
    else:
        raw = _take(cursor, start + 2, data[start + 1])
    try:
        name = raw.decode(encoding)
    except UnicodeDecodeError:
        raise CodecError("an atom that is not UTF-8", start) from None
    if len(name) > MAX_ATOM_CHARACTERS:
        raise CodecError(f"an atom of {len(name)} characters, at most {MAX_ATOM_CHARACTERS} fit", start)
    return _BOOLEANS.get(name, name)


_BOOLEANS: Final[dict[str, bool]] = {"true": True, "false": False}


def _binary(cursor: _Cursor) -> bytes:
    start = cursor.pos
    return _take(cursor, start + 5, _U32.unpack_from(cursor.data, start + 1)[0])


def _tuple(cursor: _Cursor, large: bool = False) -> tuple[Term, ...]:
    start, data, decoders = cursor.pos, cursor.data, _DECODERS
    count = _U32.unpack_from(data, start + 1)[0] if large else data[start + 1]
    cursor.enter(count, start + (5 if large else 2))
    items = tuple([decoders[data[cursor.pos]](cursor) for _ in range(count)])
    cursor.depth += 1
    return items


def _nil(cursor: _Cursor) -> list[Term]:
    cursor.pos += 1
    return []


def _string(cursor: _Cursor) -> list[Term]:
    """STRING_EXT: a list of bytes, written in one go. It is Erlang's way to save space, and not text."""
    start = cursor.pos
    items = _take(cursor, start + 3, _U16.unpack_from(cursor.data, start + 1)[0])
    cursor.budget -= len(items)
    if cursor.budget < 0:
        raise CodecError("too many elements", start)
    return list(items)


def _list(cursor: _Cursor) -> Term:
    start = cursor.pos
    count: int = _U32.unpack_from(cursor.data, start + 1)[0]
    cursor.enter(count, start + 5)
    data, decoders = cursor.data, _DECODERS
    items = [decoders[data[cursor.pos]](cursor) for _ in range(count)]
    tail = decoders[data[cursor.pos]](cursor)
    cursor.depth += 1
    return _with_tail(items, tail) if tail != [] else items


def _with_tail(items: list[Term], tail: Term) -> Term:
    """`[Items | Tail]`: a longer list if the tail is a list, and the tail alone if there are no items."""
    if not items:
        return tail
    if type(tail) is list:
        return items + tail
    if type(tail) is ImproperList:
        return ImproperList((*items, *tail.items), tail.tail)
    return ImproperList(tuple(items), tail)


def _map(cursor: _Cursor) -> dict[Term, Term]:
    start = cursor.pos
    count: int = _U32.unpack_from(cursor.data, start + 1)[0]
    cursor.enter(2 * count, start + 5)
    data, decoders = cursor.data, _DECODERS
    result: dict[Term, Term] = {}
    for _ in range(count):
        at = cursor.pos
        key = decoders[data[at]](cursor)
        if type(key) in _FREEZABLE:
            key = _frozen(key)
        if key in result:
            _refuse_key(result, key, at)
        result[key] = decoders[data[cursor.pos]](cursor)
    cursor.depth += 1
    return result


_FREEZABLE: Final = frozenset({tuple, list, dict, ImproperList})


def _frozen(term: Term) -> Term:
    """The same term, hashable."""
    if isinstance(term, tuple):
        return tuple([_frozen(item) for item in term])
    if isinstance(term, list):
        return FrozenList(tuple([_frozen(item) for item in term]))
    if isinstance(term, dict):
        return FrozenMap(frozenset([(key, _frozen(value)) for key, value in term.items()]))
    if isinstance(term, ImproperList):
        return ImproperList(tuple([_frozen(item) for item in term.items]), _frozen(term.tail))
    return term


def _refuse_key(seen: dict[Term, Term], key: Term, start: int) -> NoReturn:
    """1, 1.0 and true are three keys to Erlang and one to Python: say which of the two errors it is."""
    earlier = next(other for other in seen if other == key)
    if encode(earlier) == encode(key):
        raise CodecError("a duplicate map key", start)
    kinds = f"{type(key).__name__} and {type(earlier).__name__}"
    raise CodecError(f"a map key that Python cannot tell apart from an earlier one ({kinds})", start)


def _refuse(what: str) -> _Decoder:
    def refuse(cursor: _Cursor) -> NoReturn:
        raise CodecError(f"{what} is not supported", cursor.pos)

    return refuse


def _unknown(cursor: _Cursor) -> NoReturn:
    raise CodecError(f"unknown tag {cursor.data[cursor.pos]}", cursor.pos)


_SUPPORTED: Final[dict[int, _Decoder]] = {
    NEW_FLOAT: _new_float,
    SMALL_INTEGER: _small_integer,
    INTEGER: _integer,
    FLOAT: _float_text,
    ATOM: partial(_atom, large=True, encoding="latin-1"),
    SMALL_TUPLE: _tuple,
    LARGE_TUPLE: partial(_tuple, large=True),
    NIL: _nil,
    STRING: _string,
    LIST: _list,
    BINARY: _binary,
    SMALL_BIG: _big,
    LARGE_BIG: partial(_big, large=True),
    SMALL_ATOM: partial(_atom, encoding="latin-1"),
    MAP: _map,
    ATOM_UTF8: partial(_atom, large=True),
    SMALL_ATOM_UTF8: _atom,
}

_UNSUPPORTED: Final[dict[int, str]] = {
    68: "a distribution header (DIST_HEADER)",
    69: "a fragmented distribution header (DIST_FRAG_HEADER)",
    77: "a bitstring (BIT_BINARY_EXT)",
    80: "a compressed term",
    82: "an atom cache reference (ATOM_CACHE_REF)",
    88: "a pid (NEW_PID_EXT)",
    89: "a port (NEW_PORT_EXT)",
    90: "a reference (NEWER_REFERENCE_EXT)",
    101: "a reference (REFERENCE_EXT)",
    102: "a port (PORT_EXT)",
    103: "a pid (PID_EXT)",
    112: "a fun (NEW_FUN_EXT)",
    113: "an external fun (EXPORT_EXT)",
    114: "a reference (NEW_REFERENCE_EXT)",
    117: "a fun (FUN_EXT)",
    120: "a port (V4_PORT_EXT)",
    121: "a term in a local format (LOCAL_EXT)",
}

_REFUSED: Final = {tag: _refuse(what) for tag, what in _UNSUPPORTED.items()}

_DECODERS: Final[list[_Decoder]] = [(_SUPPORTED | _REFUSED).get(tag, _unknown) for tag in range(256)]


def decode(
    data: bytes | bytearray | memoryview,
    *,
    max_depth: int = MAX_DEPTH,
    max_elements: int = MAX_ELEMENTS,
    max_size: int = MAX_SIZE,
) -> Term:
    """The term that *data*, one whole external term, stands for.

    *max_depth* bounds the containers inside one another, *max_elements* the elements of all of them together,
    *max_size* the bytes of *data*. Raises `CodecError` for whatever is not exactly one supported term.
    """
    if not isinstance(data, bytes):
        data = memoryview(data).tobytes()
    if len(data) > max_size:
        raise CodecError(f"an external term of {len(data)} bytes, at most {max_size} are allowed")
    if not data:
        raise CodecError("truncated: no bytes at all", 0)
    if data[0] != VERSION:
        raise CodecError(f"version {data[0]} instead of {VERSION}", 0)
    cursor = _Cursor(data, max_depth, max_elements)
    try:
        term = _DECODERS[data[1]](cursor)
    except (IndexError, struct.error):
        raise CodecError("truncated: the bytes end inside the term", cursor.pos) from None
    except RecursionError:  # the caller's own stack was nearly used up, or its max_depth is beyond Python's
        raise CodecError("nested too deeply for what is left of Python's stack", cursor.pos) from None
    if cursor.pos != len(data):
        raise CodecError(f"{len(data) - cursor.pos} bytes follow the term", cursor.pos)
    return term


# Encoding. Leaves of a few bytes are written at once, and bounded together by the number of elements; what
# has a length of its own asks for room first, so that a refused term has not been built in memory.


class _Writer:
    __slots__ = ("budget", "depth", "limit", "out")

    def __init__(self, depth: int, budget: int, limit: int) -> None:
        self.out = bytearray((VERSION,))
        self.depth = depth
        self.budget = budget
        self.limit = limit

    def enter(self, count: int) -> None:
        """Open a container of *count* elements."""
        self.budget -= count
        if self.budget < 0:
            raise CodecError("too many elements")
        self.depth -= 1
        if self.depth < 0:
            raise CodecError("nested too deeply")

    def room(self, count: int) -> None:
        """Refuse *count* more bytes when they do not fit."""
        if len(self.out) + count > self.limit:
            raise CodecError(f"an external term of more than {self.limit} bytes")

    def write(self, term: object) -> None:
        (_ENCODERS.get(type(term)) or _encoder_by_base(term))(self, term)


def _write_integer(writer: _Writer, value: int) -> None:
    if 0 <= value <= 255:
        writer.out += bytes((SMALL_INTEGER, value))
    elif -(1 << 31) <= value < 1 << 31:
        writer.out += _TAG_I32.pack(INTEGER, value)
    else:
        count = (value.bit_length() + 7) // 8
        if count > MAX_INTEGER_BYTES:
            raise CodecError(f"an integer of {count} bytes, at most {MAX_INTEGER_BYTES} are allowed")
        writer.room(count)
        writer.out += bytes((SMALL_BIG, count)) if count <= 255 else _TAG_U32.pack(LARGE_BIG, count)
        writer.out.append(value < 0)
        writer.out += abs(value).to_bytes(count, "little")


def _write_bool(writer: _Writer, value: bool) -> None:
    writer.out += _atom_bytes("true" if value else "false")


def _write_float(writer: _Writer, value: float) -> None:
    if not isfinite(value):
        raise CodecError(f"Erlang has no float {value}")
    writer.out += _TAG_F64.pack(NEW_FLOAT, value)


def _write_atom(writer: _Writer, name: str) -> None:
    encoded = _atom_bytes(name)
    writer.room(len(encoded))
    writer.out += encoded


@lru_cache(maxsize=1024)
def _atom_bytes(name: str) -> bytes:
    if len(name) > MAX_ATOM_CHARACTERS:
        raise CodecError(f"an atom of {len(name)} characters, at most {MAX_ATOM_CHARACTERS} fit")
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        raise CodecError(f"an atom with a lone surrogate: {name!r}") from None
    if len(raw) <= 255:
        return bytes((SMALL_ATOM_UTF8, len(raw))) + raw
    return bytes((ATOM_UTF8,)) + _U16.pack(len(raw)) + raw


def _write_binary(writer: _Writer, value: bytes | bytearray) -> None:
    count = len(value)
    writer.room(count)
    writer.out += _TAG_U32.pack(BINARY, count)
    writer.out += value


def _write_memoryview(writer: _Writer, value: memoryview) -> None:
    writer.room(value.nbytes)  # before the copy: len() of a memoryview counts its items, whatever their size
    _write_binary(writer, value.tobytes())


def _write_tuple(writer: _Writer, items: tuple[object, ...]) -> None:
    count = len(items)
    writer.enter(count)
    writer.out += bytes((SMALL_TUPLE, count)) if count <= 255 else _TAG_U32.pack(LARGE_TUPLE, count)
    _write_items(writer, items)
    writer.depth += 1


def _write_list(writer: _Writer, items: list[object] | tuple[object, ...]) -> None:
    if items:
        writer.enter(len(items))
        writer.out += _TAG_U32.pack(LIST, len(items))
        _write_items(writer, items)
        writer.depth += 1
    writer.out.append(NIL)


def _write_items(writer: _Writer, items: Iterable[object]) -> None:
    get = _ENCODERS.get
    for item in items:
        (get(type(item)) or _encoder_by_base(item))(writer, item)


def _write_improper_list(writer: _Writer, value: ImproperList) -> None:
    if not value.items:
        raise CodecError("an ImproperList without items")
    if isinstance(value.tail, (list, FrozenList, ImproperList)):
        raise CodecError(f"an ImproperList with a list as its tail: {type(value.tail).__name__}")
    writer.enter(len(value.items))
    writer.out += _TAG_U32.pack(LIST, len(value.items))
    _write_items(writer, value.items)
    writer.write(value.tail)
    writer.depth += 1


_PLAIN_KEYS: Final = frozenset({str, bytes, int, float})


def _write_map(writer: _Writer, value: dict[object, object]) -> None:
    if not _PLAIN_KEYS.issuperset(map(type, value)):
        _write_distinct(writer, value.items())
        return
    writer.enter(2 * len(value))
    writer.out += _TAG_U32.pack(MAP, len(value))
    get = _ENCODERS.get
    for key, item in value.items():
        _ENCODERS[type(key)](writer, key)
        (get(type(item)) or _encoder_by_base(item))(writer, item)
    writer.depth += 1


def _write_distinct(writer: _Writer, pairs: Iterable[tuple[object, object]]) -> None:
    """A map whose keys Python tells apart although they may be one to Erlang, as `True` and "true" are.

    Such keys are compared as encoded, and entries are sorted by their encoded keys: so a map inside a key has
    one encoding, which does not depend on Python's hash seed either.
    """
    pairs = list(pairs)
    writer.enter(2 * len(pairs))
    out = writer.out
    out += _TAG_U32.pack(MAP, len(pairs))
    start = len(out)
    entries: dict[bytes, bytes] = {}
    mark = start
    for key, value in pairs:
        writer.write(key)
        middle = len(out)
        writer.write(value)
        encoded = bytes(out[mark:middle])
        if encoded in entries:
            raise CodecError(f"a map with two keys that are one to Erlang ({type(key).__name__})")
        entries[encoded] = bytes(out[middle:])
        mark = len(out)
    del out[start:]
    for encoded in sorted(entries):
        out += encoded
        out += entries[encoded]
    writer.depth += 1


_ENCODERS: Final[dict[type, Callable[[_Writer, Any], None]]] = {
    bool: _write_bool,
    int: _write_integer,
    float: _write_float,
    str: _write_atom,
    bytes: _write_binary,
    bytearray: _write_binary,
    memoryview: _write_memoryview,
    tuple: _write_tuple,
    list: _write_list,
    dict: _write_map,
    ImproperList: _write_improper_list,
    FrozenList: lambda writer, value: _write_list(writer, value.items),
    FrozenMap: lambda writer, value: _write_distinct(writer, value.items),
}


def _encoder_by_base(term: object) -> Callable[[_Writer, Any], None]:
    """The encoder for a subclass (an IntEnum, a named tuple, …)."""
    for base, encoder in _ENCODERS.items():
        if isinstance(term, base):
            return encoder
    raise CodecError(f"no Erlang term for a Python {type(term).__name__}")


def encode(
    term: object,
    *,
    max_depth: int = MAX_DEPTH,
    max_elements: int = MAX_ELEMENTS,
    max_size: int = MAX_SIZE,
) -> bytes:
    """*term* as one external term, version byte included; `binary_to_term/1` takes it.

    Takes what `decode` returns, subclasses of that, `bytearray` and `memoryview`; the limits are those of
    `decode`. Raises `CodecError` for anything else, naming its type.
    """
    writer = _Writer(max_depth, max_elements, max_size)
    try:
        writer.write(term)
    except RecursionError:  # see decode
        raise CodecError("nested too deeply for what is left of Python's stack") from None
    writer.room(0)
    return bytes(writer.out)
