"""`Limits`: sizes and numbers as people write them, and what is written to the kernel's files."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import linx_trio as linx
from linx_trio import _limits
from linx_trio._limits import Limits, Setting
from tests.proto.strategies import relaxed

sizes = st.integers(1, 2**63 - 1) | st.just("max")
every_limit = st.builds(
    Limits,
    memory=st.none() | sizes,
    memory_high=st.none() | sizes,
    swap=st.none() | sizes | st.just(0),
    pids=st.none() | st.integers(1, 10**6) | st.just("max"),
    cpu=st.none() | st.floats(0.001, 8192),
    cpu_weight=st.none() | st.integers(1, 10000),
    cpuset=st.none() | st.sets(st.integers(0, 8191), min_size=1, max_size=4),
    io=st.none() | st.dictionaries(st.sampled_from(["8:0", "/dev/sda"]), st.just({"rbps": 5, "wiops": "max"})),
    hugetlb=st.none() | st.dictionaries(st.sampled_from(["2MB", "1GB"]), sizes),
    oom_group=st.booleans(),
)


def settings_of(limits: Limits) -> dict[str, bytes]:
    return {file: value for _, file, value in limits.settings(lambda path: {"/dev/sda": "8:16"}[path])}


# ---- what people write -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "bytes_"),
    [
        ("256M", 256 << 20), ("256m", 256 << 20), ("256MiB", 256 << 20), ("256 Mi", 256 << 20), ("1.5G", 3 << 29),
        ("0.5K", 512), ("1K", 1024), ("4096", 4096), ("4096B", 4096), (4096, 4096), ("1T", 1 << 40), ("2P", 1 << 51),
        ("7E", 7 << 60), ("max", "max"), (" 1K ", 1024), ("0.1K", 102),
    ],
)  # fmt: skip
def test_sizes(written: int | str, bytes_: int | str) -> None:
    assert Limits(memory=written).memory == bytes_
    assert settings_of(Limits(memory=written))["memory.max"] == str(bytes_).encode()


@pytest.mark.parametrize(
    ("limits", "error", "mentions"),
    [
        ({"memory": "256MB"}, ValueError, ["memory", "'256MB'", "1024"]),
        ({"memory": "lots"}, ValueError, ["memory", "'lots'"]),
        ({"memory": ""}, ValueError, ["memory", "''"]),
        ({"memory": "-1"}, ValueError, ["memory", "'-1'"]),
        ({"memory": "5%"}, ValueError, ["memory", "'5%'"]),
        ({"memory": "1.5"}, ValueError, ["memory", "'1.5'", "whole"]),
        ({"memory": "\uff19M"}, ValueError, ["memory", "memory"]),
        ({"memory": "9" * 5000}, ValueError, ["memory"]),
        ({"memory": "8E"}, ValueError, ["memory", "'8E'"]),
        ({"memory": 0}, ValueError, ["memory", "0"]),
        ({"memory": -5}, ValueError, ["memory", "-5"]),
        ({"memory": 2**63}, ValueError, ["memory", str(2**63)]),
        ({"memory": 1.5}, TypeError, ["memory", "1.5"]),
        ({"memory": True}, TypeError, ["memory", "True"]),
        ({"memory": b"1M"}, TypeError, ["memory", "b'1M'"]),
        ({"memory_high": "x"}, ValueError, ["memory_high", "'x'"]),
        ({"swap": -1}, ValueError, ["swap", "-1"]),
        ({"pids": 0}, ValueError, ["pids", "0"]),
        ({"pids": "64"}, TypeError, ["pids", "'64'"]),
        ({"pids": 1.0}, TypeError, ["pids", "1.0"]),
        ({"cpu": 0}, ValueError, ["cpu", "0"]),
        ({"cpu": float("nan")}, ValueError, ["cpu", "nan"]),
        ({"cpu": float("inf")}, ValueError, ["cpu", "inf"]),
        ({"cpu": "0.5"}, TypeError, ["cpu", "'0.5'"]),
        ({"cpu": True}, TypeError, ["cpu", "True"]),
        ({"cpu_weight": 0}, ValueError, ["cpu_weight", "0"]),
        ({"cpu_weight": 10001}, ValueError, ["cpu_weight", "10001"]),
        ({"cpu_weight": "100"}, TypeError, ["cpu_weight", "'100'"]),
        ({"cpuset": ""}, ValueError, ["cpuset", "''"]),
        ({"cpuset": "3-1"}, ValueError, ["cpuset", "'3-1'"]),
        ({"cpuset": "0,"}, ValueError, ["cpuset", "'0,'"]),
        ({"cpuset": 3}, TypeError, ["cpuset", "3"]),
        ({"cpuset": b"3"}, TypeError, ["cpuset", "b'3'"]),
        ({"cpuset": []}, ValueError, ["cpuset", "empty"]),
        ({"cpuset": [9999]}, ValueError, ["cpuset", "9999"]),
        ({"cpuset": [True]}, TypeError, ["cpuset", "True"]),
        ({"io": "8:0"}, TypeError, ["io", "'8:0'"]),
        ({"io": {"sda": {"rbps": 1}}}, ValueError, ["io", "'sda'"]),
        ({"io": {8: {"rbps": 1}}}, TypeError, ["io", "8"]),
        ({"io": {"8:0": {}}}, TypeError, ["io", "8:0", "{}"]),
        ({"io": {"8:0": {"speed": 1}}}, ValueError, ["io", "'speed'", "rbps"]),
        ({"io": {"8:0": {"rbps": 0}}}, ValueError, ["io", "'rbps'", "0"]),
        ({"io": {"/dev/s da": {"rbps": 1}}}, ValueError, ["io", "'/dev/s da'"]),
        ({"hugetlb": "4M"}, TypeError, ["hugetlb", "'4M'"]),
        ({"hugetlb": {"2M": "4M"}}, ValueError, ["hugetlb", "'2M'"]),
        ({"hugetlb": {"2MB/..": "4M"}}, ValueError, ["hugetlb", "'2MB/..'"]),
        ({"oom_group": 1}, TypeError, ["oom_group", "1"]),
        ({"oom_group": None}, TypeError, ["oom_group", "None"]),
    ],
)  # fmt: skip
def test_what_cannot_be_a_limit(limits: dict[str, Any], error: type[Exception], mentions: list[str]) -> None:
    with pytest.raises(error) as refused:
        Limits(**limits)
    assert type(refused.value) is error
    assert [word for word in mentions if word not in str(refused.value)] == []


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    try:
        value = _limits.size(text, "memory")
    except ValueError:
        return
    assert value == "max" or (isinstance(value, int) and 0 <= value < 2**63)


@given(st.integers(0, 2**33), st.sampled_from("KMGkmg"), st.sampled_from(["", "i", "iB"]))
def test_units(number: int, unit: str, rest: str) -> None:
    value = number * 1024 ** ("KMG".index(unit.upper()) + 1)
    if value < 2**63:
        assert _limits.size(f"{number}{unit}{rest}", "x") == value


# ---- what the kernel is told -----------------------------------------------------------------------------------------


def test_settings() -> None:
    limits = linx.Limits(
        memory="256M", memory_high="200M", swap=0, pids=64, cpu=0.5, cpu_weight=50, cpuset=[3, 0, 1],
        io={"/dev/sda": {"rbps": "1M", "wiops": "max"}, "8:0": {"riops": 7}}, hugetlb={"2MB": "4M"},
    )  # fmt: skip
    assert limits.settings(lambda path: {"/dev/sda": "8:16"}[path]) == [
        Setting("memory", "memory.high", b"209715200"),
        Setting("memory", "memory.swap.max", b"0"),
        Setting("memory", "memory.max", b"268435456"),
        Setting("pids", "pids.max", b"64"),
        Setting("cpu", "cpu.weight", b"50"),
        Setting("cpuset", "cpuset.cpus", b"0,1,3"),
        Setting("cpu", "cpu.max", b"50000 100000"),
        Setting("hugetlb", "hugetlb.2MB.max", b"4194304"),
        Setting("io", "io.max", b"8:16 rbps=1048576 wiops=max"),
        Setting("io", "io.max", b"8:0 riops=7"),
        Setting("memory", "memory.oom.group", b"1"),
    ]
    assert set(limits.controllers) == {"memory", "pids", "cpu", "cpuset", "io", "hugetlb"}
    assert Limits().settings(str) == []
    assert Limits().controllers == {}


def test_the_whole_group_goes_for_want_of_memory_unless_it_is_told_not_to() -> None:
    assert settings_of(Limits(memory="1M"))["memory.oom.group"] == b"1"
    assert settings_of(Limits(memory="1M", oom_group=False))["memory.oom.group"] == b"0"
    assert "memory.oom.group" not in settings_of(Limits(pids=1))


@given(st.floats(0.001, 8192))
def test_bandwidth(cpus: float) -> None:
    quota, period = _limits.bandwidth(cpus)
    assert quota >= 1000  # the kernel takes no less
    assert 1000 <= period <= 1_000_000
    assert quota / period == pytest.approx(cpus, rel=0.01, abs=1e-6)


@pytest.mark.parametrize(
    ("quota", "period", "line"),
    [
        (50_000, 100_000, b"50000 100000"),
        ("max", 1000, b"max 1000"),
        (None, 5000, b"max 5000"),
        (1000, 10**6, b"1000 1000000"),
    ],
)
def test_quota(quota: Any, period: int, line: bytes) -> None:
    assert _limits.quota(quota, period) == line


@pytest.mark.parametrize(
    ("quota", "period", "error", "word"),
    [
        (999, 100_000, ValueError, "quota=999"),
        (0.5, 100_000, TypeError, "0.5"),
        (True, 100_000, TypeError, "True"),
        (5000, 999, ValueError, "period=999"),
        (5000, 10**6 + 1, ValueError, "period"),
        (5000, 1e5, TypeError, "period"),
    ],
)
def test_no_quota(quota: Any, period: Any, error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        _limits.quota(quota, period)


@relaxed
@given(every_limit)
def test_every_setting_belongs_to_a_controller_that_is_needed(limits: Limits) -> None:
    settings = limits.settings(lambda path: "8:16")
    if not (limits.io == {} or limits.hugetlb == {}):
        assert {setting.controller for setting in settings} == set(limits.controllers)
    for controller, file, value in settings:
        assert file.startswith(f"{controller}.")
        assert value
        assert b"\n" not in value


# ---- journeys --------------------------------------------------------------------------------------------------------


@relaxed
@given(every_limit)
def test_limits_survive_json_and_pickle(limits: Limits) -> None:
    assert Limits.from_dict(json.loads(json.dumps(limits.to_dict()))) == limits
    assert pickle.loads(pickle.dumps(limits)) == limits


def test_the_plain_form_is_small() -> None:
    assert Limits(memory="1M", oom_group=False).to_dict() == {"memory": 1 << 20, "oom_group": False}
    assert linx.Workload(["x"], limits=Limits(pids=5)).to_dict() == {"argv": ["x"], "limits": {"pids": 5}}


@pytest.mark.parametrize(
    ("plain", "error", "word"),
    [
        ({"memroy": 5}, ValueError, "'memroy'"),
        ([5], TypeError, "5"),
        ({"pids": "x"}, TypeError, "'x'"),
        ({5: 5}, ValueError, "5"),
    ],
)
def test_a_wrong_plain_form(plain: Any, error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        Limits.from_dict(plain)


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("lab", "lab"),
        (b"lab", "lab"),
        ("lab/web/", "lab/web"),
        ("/sys/fs/cgroup//lab/", "/sys/fs/cgroup/lab"),
        ("/", "/"),
    ],
)
def test_names(written: str | bytes, name: str) -> None:
    assert _limits.check_name(written, "x") == name


@given(st.text(max_size=8) | st.binary(max_size=8))
def test_any_name_is_fit_for_the_kernel_or_refused(text: str | bytes) -> None:
    try:
        name = _limits.check_name(text, "x")
    except ValueError:
        return
    assert name
    assert not set(name.split("/")) & {".", ".."}
    assert not set(name) & {"\0", "\n"}
