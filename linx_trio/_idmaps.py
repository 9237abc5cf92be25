"""What the ids of a user namespace mean outside (``user_namespaces(7)``), as data: validated, picklable, asking the
kernel nothing.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

MAX_LINES = 340
"""What the kernel takes, since 4.15."""

_LIMIT = 2**32 - 1
"""The largest id is one below: this one, -1, stands for none."""


class _Triple(NamedTuple):
    inside: int
    outside: int
    count: int  # type: ignore[assignment]  # in place of the method, which nobody misses here


class IdMap(_Triple):
    """One line of a map: the `count` ids from `inside` on, in the user namespace, are those from `outside` on, in its
    parent. A tuple; a plain one of three ints does as well.

    Raises `TypeError` or `ValueError`, naming the field and the value.
    """

    __slots__ = ()

    def __new__(cls, inside: int, outside: int, count: int) -> IdMap:
        for name, value in (("inside", inside), ("outside", outside), ("count", count)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, not {value!r}")
        for name, value in (("inside", inside), ("outside", outside)):
            if not 0 <= value < _LIMIT:
                raise ValueError(f"{name} must be between 0 and {_LIMIT - 1}, an id in 32 bits, not {value!r}")
            if value + count > _LIMIT:
                raise ValueError(f"{name}={value} with count={count} goes beyond {_LIMIT - 1}, the largest id")
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count!r}")
        return super().__new__(cls, inside, outside, count)


MapLike = Iterable[IdMap | tuple[int, int, int]] | IdMap | tuple[int, int, int]
"""What stands for a map: its lines; a single one does as well."""


@dataclass(frozen=True, slots=True)
class Maps:
    """For ``user=``: both maps of a fresh user namespace. Frozen, picklable, JSON-able by `to_dict`.

    Args:
        uid, gid: lines, as `IdMap` or triples ``(inside, outside, count)``; at most 340 each.
        setgroups: ``"deny"`` or ``"allow"``, see ``/proc/[pid]/setgroups`` in ``user_namespaces(7)``. To write a gid
            map with ``"allow"`` one needs CAP_SETGID, or ``newgidmap(1)``.

    Raises:
        TypeError, ValueError: naming the field and the value: ranges that overlap, too many, out of 32 bits, …
    """

    uid: MapLike
    gid: MapLike
    setgroups: str = "deny"

    def __post_init__(self) -> None:
        object.__setattr__(self, "uid", check_lines(self.uid, "uid"))
        object.__setattr__(self, "gid", check_lines(self.gid, "gid"))
        if not isinstance(self.setgroups, str) or self.setgroups not in ("deny", "allow"):
            raise ValueError(f"setgroups must be 'deny' or 'allow', not {self.setgroups!r}")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        uid, gid = check_lines(self.uid, "uid"), check_lines(self.gid, "gid")
        return {"uid": [list(line) for line in uid], "gid": [list(line) for line in gid], "setgroups": self.setgroups}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Maps:
        """What `to_dict` described. Raises `TypeError` or `ValueError`, naming what is wrong."""
        if not isinstance(plain, Mapping):
            raise TypeError(f"id maps must be a mapping, not {plain!r}")
        known = {"uid", "gid", "setgroups"}
        if not {"uid", "gid"} <= plain.keys() <= known:
            raise ValueError(f"id maps have 'uid', 'gid' and perhaps 'setgroups', not {sorted(map(str, plain))}")
        return cls(**plain)


def root_map() -> Maps:
    """Root inside, the caller outside: its effective user and group, as they are at this call. Anybody may do that,
    for a user namespace of one's own.
    """
    return Maps(uid=(IdMap(0, os.geteuid(), 1),), gid=(IdMap(0, os.getegid(), 1),))


def check_lines(value: Any, name: str) -> tuple[IdMap, ...]:
    """A map's lines, validated. Raises `TypeError` or `ValueError`, naming the argument and the value."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be lines (inside, outside, count), not {value!r}")
    items = [value] if isinstance(value, IdMap) else list(value)
    if len(items) == 3 and all(isinstance(item, int) for item in items):
        items = [items]
    lines = tuple(_line(item, f"{name}[{i}]") for i, item in enumerate(items))
    if not lines:
        raise ValueError(f"{name} is empty: a map has at least one line (inside, outside, count)")
    if len(lines) > MAX_LINES:
        raise ValueError(f"{name} has {len(lines)} lines; the kernel takes {MAX_LINES}")
    _no_overlap(lines, name, "inside", [line.inside for line in lines])
    _no_overlap(lines, name, "outside", [line.outside for line in lines])
    return lines


def check_user(value: Any, name: str) -> Maps | None:
    """For the option ``user=``. Raises `TypeError`, naming it."""
    if value is not None and not isinstance(value, Maps):
        raise TypeError(f"{name} must be linx.user.root_map() or linx.user.Maps(uid=..., gid=...), not {value!r}")
    return value


def _line(item: Any, name: str) -> IdMap:
    if isinstance(item, (str, bytes)) or not isinstance(item, Sequence) or len(item) != 3:
        raise TypeError(f"{name} must be three ints (inside, outside, count), not {item!r}")
    try:
        return IdMap(*item)
    except (TypeError, ValueError) as exc:
        raise type(exc)(f"{name}: {exc}") from None


def _no_overlap(lines: Sequence[IdMap], name: str, side: str, firsts: Sequence[int]) -> None:
    ordered = sorted(zip(firsts, lines, strict=True))
    for (first, one), (second, other) in itertools.pairwise(ordered):
        if first + one.count > second:
            raise ValueError(f"{name} has ranges that overlap {side}: {tuple(one)} and {tuple(other)}")


# ---- what the kernel reads and shows -------------------------------------------------------------------------------


def text_of(lines: Iterable[IdMap]) -> bytes:
    """As ``/proc/<pid>/uid_map`` takes it."""
    return b"".join(b"%d %d %d\n" % line for line in lines)


def lines_of(text: bytes) -> list[IdMap]:
    """As ``/proc/<pid>/uid_map`` shows it. What has no id where the reader is, it shows as 4294967295."""
    return [IdMap._make(map(int, line.split())) for line in text.splitlines()]


def covers(ranges: Iterable[range], first: int, count: int) -> bool:
    """Whether all of these ids are in the ranges, of which several may adjoin."""
    for each in sorted(ranges, key=lambda item: item.start):
        if first in each:
            count -= each.stop - first
            first = each.stop
    return count <= 0
