"""Id maps as data: what is wrong with one is said at once, by name; what is right survives every journey."""

from __future__ import annotations

import json
import os
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linx_trio import _idmaps, _subids, user
from linx_trio.user import IdMap, Maps
from tests.proto.strategies import relaxed

LARGEST = 2**32 - 2


@st.composite
def maps_of_lines(draw: st.DrawFn) -> list[IdMap]:
    """Lines whose ranges overlap nowhere: cut from left to right on both sides, in any order."""
    counts = draw(st.lists(st.integers(1, 70000), min_size=1, max_size=12))
    sides = []
    for _ in range(2):
        gaps = draw(st.lists(st.integers(0, 100000), min_size=len(counts), max_size=len(counts)))
        order = draw(st.permutations(range(len(counts))))
        firsts, first = {}, 0
        for index, gap in zip(order, gaps, strict=True):
            firsts[index] = first + gap
            first += gap + counts[index]
        sides.append(firsts)
    return [IdMap(sides[0][i], sides[1][i], count) for i, count in enumerate(counts)]


# ---- lines -------------------------------------------------------------------------------------------------------


def test_a_line_is_a_triple() -> None:
    line = IdMap(0, 1000, 1)
    assert line == (0, 1000, 1)
    assert (line.inside, line.outside, line.count) == (0, 1000, 1)
    assert repr(line) == "IdMap(inside=0, outside=1000, count=1)"
    with pytest.raises(AttributeError):
        line.inside = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("line", "error", "mentions"),
    [
        ((True, 0, 1), TypeError, ["inside", "True"]),
        ((0, "0", 1), TypeError, ["outside", "'0'"]),
        ((0, 0, 1.0), TypeError, ["count", "1.0"]),
        ((-1, 0, 1), ValueError, ["inside", "-1"]),
        ((0, LARGEST + 1, 1), ValueError, ["outside", str(LARGEST + 1)]),
        ((0, 0, 0), ValueError, ["count", "0"]),
        ((0, 0, -5), ValueError, ["count", "-5"]),
        ((0, LARGEST, 2), ValueError, ["outside", "count=2", str(LARGEST)]),
        ((1, 0, 2**32 - 1), ValueError, ["inside=1", f"count={2**32 - 1}"]),
        ((0, 2**70, 1), ValueError, ["outside", str(2**70)]),
    ],
)
def test_wrong_lines(line: tuple[Any, Any, Any], error: type[Exception], mentions: list[str]) -> None:
    with pytest.raises(error) as alone:
        IdMap(*line)
    with pytest.raises(error) as within:
        Maps(uid=[(7, 7, 1), line], gid=[(0, 0, 1)])
    assert "uid[1]" in str(within.value)
    for caught in (alone, within):
        assert [mention for mention in mentions if mention not in str(caught.value)] == []


@pytest.mark.parametrize("line", [(0, 0, 2**32 - 1), (LARGEST, LARGEST, 1), (LARGEST, 0, 1)])
def test_the_largest_lines(line: tuple[int, int, int]) -> None:
    assert IdMap(*line) == line


# ---- maps --------------------------------------------------------------------------------------------------------

WRONG: list[tuple[Any, type[Exception], list[str]]] = [
    (None, TypeError, ["None"]),
    ("0 0 1", TypeError, ["'0 0 1'"]),
    (5, TypeError, ["5"]),
    ({0: 1}, TypeError, ["{0: 1}"]),
    ([], ValueError, ["empty"]),
    ([(0, 0)], TypeError, ["[0]", "(0, 0)"]),
    ([(0, 0, 1, 1)], TypeError, ["[0]", "(0, 0, 1, 1)"]),
    (["001"], TypeError, ["[0]", "'001'"]),
    ([(0, 100, 10), (9, 500, 1)], ValueError, ["overlap inside", "(0, 100, 10)", "(9, 500, 1)"]),
    ([(500, 9, 1), (100, 0, 10)], ValueError, ["overlap outside", "(100, 0, 10)", "(500, 9, 1)"]),
    ([(0, 0, 1), (0, 5, 1)], ValueError, ["overlap inside"]),
    ([(2 * i, i, 1) for i in range(341)], ValueError, ["341", "340"]),
]


@pytest.mark.parametrize(("lines", "error", "mentions"), WRONG, ids=[str(case[2]) for case in WRONG])
@pytest.mark.parametrize("side", ["uid", "gid"])
def test_wrong_maps(side: str, lines: Any, error: type[Exception], mentions: list[str]) -> None:
    good: dict[str, Any] = {"uid": [(0, 0, 1)], "gid": [(0, 0, 1)]}
    with pytest.raises(error) as caught:
        Maps(**{**good, side: lines})
    assert [mention for mention in [side, *mentions] if mention not in str(caught.value)] == []


@pytest.mark.parametrize("value", [None, "", "Deny", True, b"deny"])
def test_wrong_setgroups(value: Any) -> None:
    with pytest.raises(ValueError, match="setgroups") as caught:
        Maps(uid=(0, 0, 1), gid=(0, 0, 1), setgroups=value)
    assert repr(value) in str(caught.value)


def test_what_adjoins_does_not_overlap() -> None:
    lines = [(2 * i, i, 1) for i in range(340)]
    assert Maps(uid=lines, gid=[(0, 100, 10), (10, 110, 10)]).uid == tuple(lines)


@pytest.mark.parametrize("one", [(0, 1000, 1), [0, 1000, 1], IdMap(0, 1000, 1), [(0, 1000, 1)], [[0, 1000, 1]]])
def test_one_line_may_stand_alone(one: Any) -> None:
    maps = Maps(uid=one, gid=iter([IdMap(0, 1000, 1)]))
    assert maps.uid == maps.gid == (IdMap(0, 1000, 1),)


@given(maps_of_lines(), maps_of_lines(), st.sampled_from(["deny", "allow"]))
@relaxed
def test_maps_survive(uid: list[IdMap], gid: list[IdMap], setgroups: str) -> None:
    maps = Maps(uid=uid, gid=[tuple(line) for line in gid], setgroups=setgroups)  # type: ignore[misc]
    assert maps.uid == tuple(uid)
    assert pickle.loads(pickle.dumps(maps)) == maps
    assert Maps.from_dict(json.loads(json.dumps(maps.to_dict()))) == maps
    assert hash(maps) == hash(Maps(uid=uid, gid=gid, setgroups=setgroups))
    assert _idmaps.lines_of(_idmaps.text_of(uid)) == uid
    assert all(type(line) is IdMap for line in pickle.loads(pickle.dumps(maps)).uid)


@pytest.mark.parametrize(
    "plain", [None, [], {}, {"uid": [[0, 0, 1]]}, {"uid": [[0, 0, 1]], "gid": [[0, 0, 1]], "x": 1}]
)
def test_wrong_plain_forms(plain: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="id maps"):
        Maps.from_dict(plain)


def test_root_map() -> None:
    maps = user.root_map()
    assert maps == Maps(uid=(0, os.geteuid(), 1), gid=(0, os.getegid(), 1), setgroups="deny")


def test_the_option() -> None:
    assert _idmaps.check_user(None, "user") is None
    assert _idmaps.check_user(user.root_map(), "user") == user.root_map()
    for wrong in ("root", 0, {"uid": [[0, 0, 1]]}, [(0, 0, 1)]):
        with pytest.raises(TypeError, match=r"user must be .*root_map"):
            _idmaps.check_user(wrong, "user")


@given(maps_of_lines(), st.integers(0, 200000), st.integers(1, 100000))
@relaxed
def test_whether_ranges_cover_others(lines: list[IdMap], first: int, count: int) -> None:
    ranges = [range(line.outside, line.outside + line.count) for line in lines]
    wanted = all(any(each in found for found in ranges) for each in (first, first + count - 1))
    starts = [found.start for found in ranges] + [found.stop for found in ranges]
    wanted &= all(
        any(each in found for found in ranges) for each in starts if first <= each < first + count
    )  # between those, nothing changes
    assert _idmaps.covers(ranges, first, count) is wanted


# ---- what an administrator grants --------------------------------------------------------------------------------


def test_subuid_files() -> None:
    text = "alice:100000:65536\nbob:1:2\n# alice:7:7\nalice:x:1\nalice:1\n\n1000:5:6\nalice:200:1:2\n alice:1:1\n"
    assert _subids.ranges_of(text, ["alice", "1000"]) == (range(100000, 165536), range(5, 11))
    assert _subids.ranges_of(text, ["carol"]) == ()


@pytest.mark.parametrize("wrong", [True, 1.0, b"root"])
def test_wrong_users(wrong: Any) -> None:
    with pytest.raises(TypeError, match="user must be") as caught:
        user.subids(wrong)
    assert repr(wrong) in str(caught.value)


def test_nobody_has_none() -> None:
    assert user.subids("no-such-user-here") == user.subids(2**31 + 5) == ((), ())
    assert user.subids() == user.subids(os.getuid())


# ---- whose maps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [None, True, 1.5, 0, -1, ""])
def test_wrong_targets(target: Any) -> None:
    for verb in (user.read_uid_map, user.read_gid_map, user.deny_setgroups):
        with pytest.raises((TypeError, ValueError), match="target"):
            verb(target)
    with pytest.raises((TypeError, ValueError), match="target"):
        user.setup_maps(target, uid=(0, 0, 1), gid=(0, 0, 1))


def test_wrong_arguments_come_before_any_look_at_the_target() -> None:
    nobody = "/nonexistent"
    with pytest.raises(ValueError, match="count"):
        user.set_uid_map(nobody, [(0, 0, 0)])
    with pytest.raises(ValueError, match="empty"):
        user.set_gid_map(nobody, [])
    with pytest.raises(ValueError, match="setgroups"):
        user.setup_maps(nobody, uid=(0, 0, 1), gid=(0, 0, 1), setgroups="perhaps")
