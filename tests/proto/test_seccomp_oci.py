"""JSON profiles: what they say is what the compiled program does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linx_trio import _seccomp_bpf as bpf
from linx_trio import _seccomp_compile, _seccomp_oci
from linx_trio.seccomp import Action, Filter, from_oci, verdict, will_refuse_execve

NATIVE = _seccomp_compile.machine()
OTHER = {"amd64": "arm64", "arm64": "amd64"}[NATIVE.go]


def profile(*syscalls: dict[str, Any], default: str = "SCMP_ACT_ALLOW", **more: Any) -> dict[str, Any]:
    return {"defaultAction": default, "syscalls": list(syscalls), **more}


def refusing(*names: str, **more: Any) -> dict[str, Any]:
    return {"names": list(names), "action": "SCMP_ACT_ERRNO", **more}


def allowing(*names: str, **more: Any) -> dict[str, Any]:
    return {"names": list(names), "action": "SCMP_ACT_ALLOW", **more}


# ---- a model: every rule, one after the other ----------------------------------------------------------------------

OPERATORS: dict[str, Callable[[int, int, int], bool]] = {
    "SCMP_CMP_NE": lambda given, value, _: given != value,
    "SCMP_CMP_LT": lambda given, value, _: given < value,
    "SCMP_CMP_LE": lambda given, value, _: given <= value,
    "SCMP_CMP_EQ": lambda given, value, _: given == value,
    "SCMP_CMP_GE": lambda given, value, _: given >= value,
    "SCMP_CMP_GT": lambda given, value, _: given > value,
    "SCMP_CMP_MASKED_EQ": lambda given, mask, value: given & mask == value,
}
ACTIONS: list[tuple[dict[str, Any], Action]] = [  # the strictest first
    ({"action": "SCMP_ACT_KILL_PROCESS"}, "kill_process"),
    ({"action": "SCMP_ACT_KILL"}, "kill_thread"),
    ({"action": "SCMP_ACT_TRAP"}, "trap"),
    ({"action": "SCMP_ACT_ERRNO"}, ("errno", "EPERM")),
    ({"action": "SCMP_ACT_ERRNO", "errnoRet": 13}, ("errno", "EACCES")),
    ({"action": "SCMP_ACT_LOG"}, "log"),
    ({"action": "SCMP_ACT_ALLOW"}, "allow"),
]
VALUES = st.sampled_from([0, 1, 2, 5, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**63, 2**64 - 1])
NAMES = ["getpid", "mkdirat", "socket", "openat"]


@st.composite
def entries(draw: st.DrawFn) -> dict[str, Any]:
    indices = draw(st.lists(st.integers(0, 2), max_size=2, unique=True))
    args = []
    for index in indices:
        op, value = draw(st.sampled_from(sorted(OPERATORS))), draw(VALUES)
        args.append({"index": index, "op": op, "value": value})
        if draw(st.booleans()):
            args[-1]["valueTwo"] = draw(VALUES) & (value if op == "SCMP_CMP_MASKED_EQ" else 2**64 - 1)
    action, _ = draw(st.sampled_from(ACTIONS))
    return {"names": draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=2)), "args": args, **action}


def expected(given_profile: dict[str, Any], name: str, arguments: list[int]) -> Action:
    matching = []
    for entry in given_profile["syscalls"]:
        if name in entry["names"] and all(
            OPERATORS[test["op"]](arguments[test["index"]], test["value"], test.get("valueTwo", 0))
            for test in entry["args"]
        ):
            matching.append({key: entry[key] for key in ("action", "errnoRet") if key in entry})
    matching = matching or [{"action": given_profile["defaultAction"]}]
    return next(verdict for action, verdict in ACTIONS if action in matching)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(entries(), max_size=6),
    st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS"]),
    st.lists(st.lists(VALUES, min_size=3, max_size=3), min_size=1, max_size=8),
)
def test_a_profile_does_what_it_says(syscalls: list[dict[str, Any]], default: str, inputs: list[list[int]]) -> None:
    whole = profile(*syscalls, default=default)
    filter = from_oci(whole)
    for name in NAMES:
        for arguments in inputs:
            assert verdict(filter, name, *arguments) == expected(whole, name, arguments), (name, arguments)


# ---- one thing after the other --------------------------------------------------------------------------------------


def test_error_numbers() -> None:
    filter = from_oci(
        profile(
            refusing("mkdirat"),
            refusing("socket", errnoRet=97),
            refusing("bind", errno="EACCES"),
            refusing("listen", errno="EACCES", errnoRet=13),
            refusing("chdir", errno="", errnoRet=None),
            default="SCMP_ACT_ERRNO",
            defaultErrnoRet=5,
        )
    )
    names = ["mkdirat", "socket", "bind", "listen", "chdir", "openat"]
    assert [verdict(filter, name) for name in names] == [
        ("errno", name) for name in ["EPERM", "EAFNOSUPPORT", "EACCES", "EACCES", "EPERM", "EIO"]
    ]
    assert verdict(from_oci(profile(default="SCMP_ACT_ERRNO")), "openat") == ("errno", "EPERM")


@pytest.mark.parametrize(
    ("condition", "applies"),
    [
        ({}, True),
        ({"includes": None, "excludes": {}}, True),
        ({"includes": {"arches": [NATIVE.go, OTHER]}}, True),
        ({"includes": {"arches": [OTHER]}}, False),
        ({"excludes": {"arches": [NATIVE.go]}}, False),
        ({"excludes": {"arches": [OTHER]}}, True),
        ({"includes": {"caps": ["CAP_NET_ADMIN"]}}, True),
        ({"includes": {"caps": ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]}}, False),
        ({"excludes": {"caps": ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]}}, False),
        ({"excludes": {"caps": ["CAP_SYS_ADMIN"]}}, True),
        ({"includes": {"minKernel": "4.8"}}, True),
        ({"includes": {"minKernel": "99.0"}}, False),
        ({"excludes": {"minKernel": "4.8"}}, False),
        ({"excludes": {"minKernel": "99.0"}}, True),
        ({"includes": {"caps": ["CAP_NET_ADMIN"]}, "excludes": {"minKernel": "4.8"}}, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("capabilities", [["CAP_NET_ADMIN"], {"net_admin"}, ("Cap_Net_Admin",), [12, 62]], ids=str)
def test_includes_and_excludes(condition: dict[str, Any], applies: bool, capabilities: Any) -> None:
    filter = from_oci(profile(refusing("mkdirat", **condition)), capabilities=capabilities)
    assert verdict(filter, "mkdirat") == (("errno", "EPERM") if applies else "allow")


@pytest.mark.parametrize(
    ("release", "version"), [("6.18.44-fc", (6, 18)), ("5.11", (5, 11)), ("5.15.0-1-amd64", (5, 15))]
)
def test_a_kernels_version_is_compared_as_numbers(release: str, version: tuple[int, int]) -> None:
    assert _seccomp_oci.kernel_version(release) == version
    assert _seccomp_oci.kernel_version("4.18") > _seccomp_oci.kernel_version("4.8")


def test_old_profiles_have_one_name_an_entry() -> None:
    assert verdict(from_oci(profile({"name": "mkdirat", "action": "SCMP_ACT_TRAP", "args": None})), "mkdirat") == "trap"


def test_the_specific_refusal_wins_over_the_general_permission() -> None:
    """Which libseccomp by itself would forget."""
    request = {"index": 1, "op": "SCMP_CMP_MASKED_EQ", "value": 0xFFFFFFFF, "valueTwo": 0x5412}
    for rules in (
        [allowing("ioctl"), refusing("ioctl", args=[request])],
        [refusing("ioctl", args=[request]), allowing("ioctl")],
    ):
        filter = from_oci(profile(*rules, default="SCMP_ACT_ERRNO"))
        assert verdict(filter, "ioctl", 0, 0x5412) == ("errno", "EPERM")
        assert verdict(filter, "ioctl", 0, 1 << 32 | 0x5412) == ("errno", "EPERM")
        assert verdict(filter, "ioctl", 0, 0x5413) == "allow"


def test_conditions_are_all_kept() -> None:
    """libseccomp 2.5.4 by itself loses the second one here, for all numbers from 1 on."""
    low, high = ({"index": 0, "op": "SCMP_CMP_LT", "value": value} for value in (0, 1 << 32))
    for action, other in (("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW"), ("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO")):
        rules = [{"names": ["getpgid"], "action": action, "args": [test]} for test in (low, high)]
        filter = from_oci(profile(*rules, default=other))
        below, above = verdict(filter, "getpgid", 5), verdict(filter, "getpgid", 1 << 32)
        assert (below == "allow", above == "allow") == (action == "SCMP_ACT_ALLOW", other == "SCMP_ACT_ALLOW")


def test_what_is_younger_than_the_profile_does_not_exist() -> None:
    """For a libc to fall back. What its authors can have known is treated as they say."""
    small = from_oci(profile(allowing("read"), default="SCMP_ACT_ERRNO", defaultErrnoRet=5))
    assert verdict(small, "openat") == verdict(small, 423) == ("errno", "EIO")
    assert verdict(small, "clone3") == verdict(small, 999) == ("errno", "ENOSYS")
    later = from_oci(profile(allowing("read", "openat2"), default="SCMP_ACT_ERRNO", defaultErrnoRet=5))
    assert verdict(later, "clone3") == ("errno", "EIO")
    assert verdict(later, "openat2") == "allow"
    assert verdict(later, "faccessat2") == ("errno", "ENOSYS")
    killing = from_oci(profile(allowing("read"), default="SCMP_ACT_KILL_PROCESS"))
    assert verdict(killing, 999) == "kill_process"
    assert verdict(from_oci(profile()), 999) == "allow"


def test_a_name_that_nobody_knows() -> None:
    """It is skipped where that is the safe side."""
    assert verdict(from_oci(profile(allowing("read", "frobnicate"), default="SCMP_ACT_ERRNO")), "read") == "allow"
    assert verdict(from_oci(profile(refusing("read", "frobnicate"), default="SCMP_ACT_KILL")), "read") != "allow"
    with pytest.raises(ValueError, match=r"unknown syscall 'mont' in profile.syscalls\[0\]; did you mean 'mount'\?"):
        from_oci(profile(refusing("mont")))
    assert from_oci(profile(refusing("mont", includes={"arches": [OTHER]}))) == from_oci(profile())
    assert from_oci(profile(refusing("socketcall"))) == from_oci(profile())  # of other architectures


def test_flags_and_architectures() -> None:
    filter = from_oci(
        profile(
            flags=["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"],
            archMap=[{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]}],
            architectures=["SCMP_ARCH_ARM"],
            comment="others stay closed",
        )
    )
    assert filter.flags == 2
    for arch in (0x40000003, 0x40000028):
        assert bpf.outcomes(filter.program, bpf.words_of(1, arch)) == {bpf.KILL_PROCESS}
    assert from_oci(profile(flags=["SECCOMP_FILTER_FLAG_SPEC_ALLOW"])).flags == 4


def test_a_path(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile(refusing("mkdirat"))))
    for form in (path, str(path), os.fsencode(path)):
        filter = from_oci(form)
        assert filter == from_oci(profile(refusing("mkdirat")))
        assert str(path) in repr(filter)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"profile.json is no JSON"):
        from_oci(path)
    with pytest.raises(FileNotFoundError, match=r"other.json"):
        from_oci(tmp_path / "other.json")


ARGUMENT = {"index": 0, "op": "SCMP_CMP_EQ", "value": 1}
OUTSIDE = {"index": 1, "op": "SCMP_CMP_MASKED_EQ", "value": 0xF0, "valueTwo": 0x111}


@pytest.mark.parametrize(
    ("wrong", "error", "complaint"),
    [
        (7, TypeError, "a profile is a path or a mapping, not 7"),
        ({}, TypeError, "profile.defaultAction must be a string, not None"),
        (profile(default="SCMP_ACT_NOPE"), ValueError, "profile.defaultAction: unknown 'SCMP_ACT_NOPE'"),
        (profile(default="SCMP_ACT_NOTIFY"), ValueError, "SCMP_ACT_NOTIFY is not supported: nothing listens"),
        (profile(refusing("read") | {"action": "SCMP_ACT_TRACE"}), ValueError, "SCMP_ACT_TRACE is not supported"),
        (profile(listenerPath="/x"), ValueError, "profile: unknown key 'listenerPath'"),
        (profile(syscals=[]), ValueError, "profile: unknown key 'syscals'"),
        (profile(flags=["SECCOMP_FILTER_FLAG_NOPE"]), ValueError, "'SECCOMP_FILTER_FLAG_NOPE' is not supported"),
        (profile(flags="x"), TypeError, "profile.flags must be a list"),
        (profile(architectures=["x86"]), ValueError, "an architecture is like 'SCMP_ARCH_X86_64', not 'x86'"),
        (profile(defaultErrnoRet=1), ValueError, "profile has 'defaultErrnoRet', but SCMP_ACT_ALLOW returns no error"),
        (profile({"names": []}), ValueError, r"profile.syscalls\[0\] has no names"),
        (profile(refusing("read", name="write")), ValueError, "both 'name' and 'names'"),
        (profile(refusing(7)), TypeError, r"syscalls\[0\].names must be a string, not 7"),  # type: ignore[arg-type]
        (profile(allowing(), refusing("read")), ValueError, r"syscalls\[0\] has no names"),
        (profile(allowing("read"), refusing("read", errnoRet=5000)), ValueError, r"\[1\].errnoRet: errno must be"),
        (profile(refusing("read", errnoRet=True)), TypeError, "errno must be a name"),
        (profile(refusing("read", errno="EPRM")), ValueError, "unknown errno 'EPRM'; did you mean 'EPERM'"),
        (profile(refusing("read", errno="EPERM", errnoRet=2)), ValueError, "are two errors"),
        (profile(refusing("read", includes={"cap": []})), ValueError, r"syscalls\[0\].includes: unknown key 'cap'"),
        (profile(refusing("read", includes={"caps": "x"})), TypeError, "includes.caps must be a list"),
        (profile(refusing("read", includes=[])), TypeError, "includes must be a mapping"),
        (profile(refusing("read", excludes={"minKernel": "5"})), ValueError, "excludes.minKernel must be like '4.8'"),
        (profile(refusing("read", args=[{**ARGUMENT, "index": 6}])), ValueError, r"index must be between 0 and 5"),
        (profile(refusing("read", args=[{**ARGUMENT, "value": 2**64}])), ValueError, r"\[0\].value must be between"),
        (profile(refusing("read", args=[{**ARGUMENT, "value": "1"}])), TypeError, r"args\[0\].value must be an int"),
        (profile(refusing("read", args=[{**ARGUMENT, "op": "EQ"}])), ValueError, r"args\[0\].op: unknown 'EQ'"),
        (
            profile(refusing("read"), allowing("ioctl", "fcntl", args=[ARGUMENT, OUTSIDE])),
            ValueError,
            r"syscalls\[1\].args\[1\], argument 1 of ioctl, fcntl: valueTwo 0x111 .* value 0xf0",
        ),
        (profile(refusing("read", args=[ARGUMENT, ARGUMENT])), ValueError, "compares one argument twice"),
    ],
)  # fmt: skip
def test_a_wrong_profile_is_refused_by_place(wrong: Any, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        from_oci(wrong)


@pytest.mark.parametrize(
    ("wrong", "error", "complaint"),
    [
        ("CAP_SYS_ADMIN", TypeError, "capabilities must be .*'CAP_SYS_ADMIN'"),
        (7, TypeError, "capabilities must be .*7"),
        (["typo"], ValueError, "capabilities: unknown capability 'typo'"),
        ([63], ValueError, "capabilities: unknown capability 63"),
        ([True], TypeError, "capabilities: .*True"),
    ],
)
def test_wrong_capabilities(wrong: Any, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        from_oci(profile(), capabilities=wrong)


@pytest.mark.parametrize("path", ["a\0b", b"a\0b"], ids=repr)
def test_a_path_with_a_nul(path: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"^path_or_dict contains a NUL byte: b?'a\\x00b'"):
        from_oci(path)


def test_a_profile_like_dockers() -> None:
    """Its forms, in small."""
    filter: Filter = from_oci(
        profile(
            allowing("execve", "read", "openat"),
            allowing("ptrace", includes={"minKernel": "4.8"}),
            allowing("personality", args=[{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]),
            allowing("personality", args=[{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]),
            allowing("mount", "clone", includes={"caps": ["CAP_SYS_ADMIN"]}),
            allowing(
                "clone",
                args=[{"index": 0, "value": 0x7E020000, "op": "SCMP_CMP_MASKED_EQ"}],
                excludes={"caps": ["CAP_SYS_ADMIN"], "arches": ["s390"]},
            ),
            refusing("clone3", errnoRet=38, excludes={"caps": ["CAP_SYS_ADMIN"]}),
            default="SCMP_ACT_ERRNO",
            defaultErrnoRet=1,
        )
    )
    assert will_refuse_execve(filter) is False
    assert verdict(filter, "clone", 0x11) == "allow"
    assert verdict(filter, "clone", 0x10000011) == ("errno", "EPERM")
    assert verdict(filter, "clone") is None
    assert verdict(filter, "clone3") == ("errno", "ENOSYS")
    assert verdict(filter, "mount") == ("errno", "EPERM")
    assert [verdict(filter, "personality", n) for n in (0, 8, 9)] == ["allow", "allow", ("errno", "EPERM")]
