"""The files of a cgroup, as the kernel writes them, and as nobody does."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linx_trio import _cgroup_stats as stats
from linx_trio._cgroup_stats import Events

FILES = {
    "cgroup.events": b"populated 1\nfrozen 0\n",
    "cpu.stat": b"usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\nnr_periods 70\nnr_throttled 65\n"
    b"throttled_usec 2500000\nnr_bursts 0\nburst_usec 0\n",
    "memory.current": b"4096\n",
    "memory.peak": b"67108864\n",
    "memory.swap.current": b"0\n",
    "memory.events": b"low 0\nhigh 0\nmax 12\noom 1\noom_kill 2\noom_group_kill 1\n",
    "pids.current": b"3\n",
    "pids.peak": b"5\n",
    "pids.events": b"max 4\n",
    "io.stat": b"8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n254:1 rbytes=1 wbytes=2 rios=3 wios=4\n",
}


def test_all_there_is() -> None:
    found = stats.stats(FILES.get)
    assert dataclasses.asdict(found) == {
        "populated": True, "frozen": False,
        "cpu_time": 1.5, "user_time": 1.0, "system_time": 0.5,
        "periods": 70, "throttled_periods": 65, "throttled_time": 2.5,
        "memory": 4096, "memory_peak": 64 << 20, "swap": 0, "swap_peak": None,
        "memory_events": {"low": 0, "high": 0, "max": 12, "oom": 1, "oom_kill": 2, "oom_group_kill": 1},
        "pids": 3, "pids_peak": 5, "pids_denied": 4,
        "io": {
            "8:0": {"rbytes": 4096, "wbytes": 0, "rios": 1, "wios": 0, "dbytes": 0, "dios": 0},
            "254:1": {"rbytes": 1, "wbytes": 2, "rios": 3, "wios": 4},
        },
    }  # fmt: skip
    assert found.oom_kills == 2


def test_without_controllers_nothing_is_made_up() -> None:
    core = {name: FILES[name] for name in ("cgroup.events",)} | {
        "cpu.stat": b"usage_usec 5\nuser_usec 3\nsystem_usec 2\n"
    }
    found = stats.stats(core.get)
    known = {name for name, value in dataclasses.asdict(found).items() if value is not None}
    assert known == {"populated", "frozen", "cpu_time", "user_time", "system_time"}
    assert found.oom_kills is None


@pytest.mark.parametrize(
    ("files", "events"),
    [
        ({}, Events(False, False, None)),
        ({"cgroup.events": b"populated 0\nfrozen 1\n"}, Events(False, True, None)),
        ({"cgroup.events": b"populated 1\n", "memory.events": b"oom 3\n"}, Events(True, False, 0)),
        (FILES, Events(True, False, 2)),
    ],
)
def test_events(files: dict[str, bytes], events: Events) -> None:
    assert stats.events(files.get) == events


@pytest.mark.parametrize(
    ("text", "value"),
    [(b"5\n", 5), (b"max\n", None), (b"", None), (None, None), (b"five", None), (b"1" * 5000, None), (b"\xff", None)],
)
def test_number(text: bytes | None, value: int | None) -> None:
    assert stats.number(text) == value


@given(st.dictionaries(st.sampled_from(list(FILES)), st.binary(max_size=60)))
def test_any_bytes(files: dict[str, bytes]) -> None:
    found = stats.stats(files.get)
    assert isinstance(found.cpu_time, float)
    assert all(isinstance(value, int) for values in (found.io or {}).values() for value in values.values())
    assert stats.events(files.get).populated == found.populated


@given(st.dictionaries(st.text("abc_", min_size=1), st.integers(0, 2**64), max_size=5))
def test_flat(values: dict[str, int]) -> None:
    assert stats.flat("".join(f"{key} {value}\n" for key, value in values.items()).encode()) == values


@given(
    st.dictionaries(
        st.text("0123:", min_size=1),
        st.dictionaries(st.text("abc", min_size=1), st.integers(0, 2**64), min_size=1),
        max_size=4,
    )
)
def test_nested(values: dict[str, dict[str, int]]) -> None:
    lines = (" ".join([key, *(f"{name}={value}" for name, value in pairs.items())]) for key, pairs in values.items())
    assert stats.nested("\n".join(lines).encode()) == values
