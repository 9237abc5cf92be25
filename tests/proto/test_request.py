"""From a workload to the one request: the steps in the one right order, and nothing that the caller may not have."""

from __future__ import annotations

import dataclasses
import errno
import os
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import linx_trio as linx
from linx_trio import capabilities, mount, user
from linx_trio._caller import Caller
from linx_trio._options import OPTIONAL, RLIMITS
from linx_trio._proto import etf
from linx_trio._proto import messages as m
from linx_trio._proto.framing import FrameDecoder
from linx_trio._request import Request, build, milliseconds
from tests.proto.strategies import relaxed
from tests.proto.test_workload import ALLOWS_ALL, workloads

ORDER = [
    "own_uid_map", "own_gid_map", "time_offsets", "become_gid", "become_uid", "private_mounts", "keep_terminal",
    "controlling_terminal",
    "umask", "nice", "oom_score_adj", "cpu_affinity", "hostname", "domainname", "sysctl", "mounting",
    "net_of_init", "rlimit", "checkpoint", "name_terminal", "terminal_owner", "chdir_again", "cap_drop_bounding",
    "securebits",
    "setgroups", "setgid", "setuid", "cap_set_thread", "cap_set_ambient", "chdir", "no_new_privs", "seccomp",
]  # fmt: skip
"""The ids mean something before anything is done with them. The mounts are private before anybody outside can mount
something there, and the terminal is kept before anybody can hide it; it is named and given away once that has been
done. Settings below ``/proc/sys`` before there is another root, where it may be missing. What pid 1 makes meanwhile is
waited for as late as can be. The limits are the workload's, and not of what it takes to make it. A directory that is
taken over is entered with the rights that the caller has. Bounding before the ids change, the other sets after it
(`_capabilities`). Groups before the gid, the gid before the uid: with the uid go the rights. The directory with the
workload's ids, and the filter as the last of all.
"""

TERMINAL = "/dev/pts/7"

PLAIN = Caller(identity=(), umask=0o022, nice=0, limits=((1000, 2000),) * 16)
INFINITY = -1


def request_of(workload: linx.Workload, caller: Caller = PLAIN, baseline: Caller = PLAIN) -> Request:
    terminal = TERMINAL if isinstance(workload.stdio, linx.Pty) else None
    return build(workload, caller, baseline, [m.CWD, 0, 1, 2], terminal=terminal)


def bare(step: m.Step) -> tuple[Any, ...]:
    """Without `optional`, and the checkpoint as a tuple too."""
    if isinstance(step, str):
        return (step,)
    return cast("tuple[Any, ...]", step[1]) if step[0] == "optional" else step


def steps_of(request: Request) -> list[tuple[Any, ...]]:
    """All of them in the order in which the child takes them, with those that it is told when its ids are mapped."""
    return [step for step, _, _ in with_origins(request)]


def with_origins(request: Request) -> list[tuple[tuple[Any, ...], str, str]]:
    """Each step with its option and its thing."""
    steps, origins = list(request.message.steps), list(request.origins)
    if request.after_mapping is not None:
        place = steps.index(m.CHECKPOINT)
        steps[place:place], origins[place:place] = request.after_mapping
    return [(bare(step), *origin) for step, origin in zip(steps, origins, strict=True)]


def names_of(request: Request) -> list[str]:
    """By the names of `ORDER`: mounting is in the user's own order, and ids are changed at two places."""
    names: list[str] = []
    for name, *_ in steps_of(request):
        early = m.CHECKPOINT not in names
        if name.startswith(("mount_", "make_")) or name == "pivot_root":
            name = "mounting"
        elif name in ("setuid", "setgid") and early:
            name = name.replace("set", "become_")
        names.append(name)
    return names


limits = st.tuples(st.integers(0, 100), st.integers(0, 100)).map(lambda pair: (min(pair), max(pair))) | st.tuples(
    st.integers(-1, 100), st.just(INFINITY)
)
callers = st.builds(
    Caller,
    identity=st.just(()),
    umask=st.integers(0, 0o777),
    nice=st.integers(-20, 19),
    limits=st.dictionaries(st.integers(0, 15), limits, max_size=4).map(
        lambda some: tuple(some.get(number, PLAIN.limits[number]) for number in range(16))
    ),
)


@relaxed
@given(workloads(), callers, callers)
def test_steps_are_in_the_one_right_order(workload: linx.Workload, caller: Caller, baseline: Caller) -> None:
    request = request_of(workload, caller, baseline)
    names = names_of(request)
    assert names == sorted(names, key=ORDER.index)
    assert names.count("checkpoint") == 1
    for name in set(ORDER) - {"rlimit", "sysctl", "mounting"}:
        assert names.count(name) <= 1
    assert {step[0] for step in steps_of(request)} <= {*m.STEPS, m.CHECKPOINT}


@relaxed
@given(workloads())
def test_what_belongs_to_mapped_ids_waits_for_them(workload: linx.Workload) -> None:
    """Where only this side can write the maps, the child parks before it has done anything, and does not go on by
    itself; else there is one phase."""
    request = request_of(workload)
    first = list(request.message.steps).index(m.CHECKPOINT)
    own = any(step[0] == "own_uid_map" for step in steps_of(request))
    assert (request.after_mapping is not None) == (workload.user is not None and not own)
    if request.after_mapping is not None:
        assert first == 0
        assert not request.message.auto_proceed
        steps, origins = request.after_mapping
        assert len(steps) == len(origins)
        assert m.CHECKPOINT not in steps
    else:
        assert first > 0
        assert request.message.auto_proceed == workload.auto_proceed


@pytest.mark.parametrize(
    ("maps", "own"),
    [
        (user.root_map(), True),
        (user.Maps(uid=(7, os.geteuid(), 1), gid=(8, os.getegid(), 1)), True),
        (user.Maps(uid=(0, os.geteuid(), 1), gid=(0, os.getegid(), 1), setgroups="allow"), False),
        (user.Maps(uid=(0, os.geteuid(), 2), gid=(0, os.getegid(), 1)), False),
        (user.Maps(uid=(0, os.geteuid() + 1, 1), gid=(0, os.getegid(), 1)), False),
        (user.Maps(uid=[(0, os.geteuid(), 1), (1, 70000, 1)], gid=(0, os.getegid(), 1)), False),
        (user.Maps(uid=(0, os.geteuid(), 1), gid=(0, 70000, 1)), False),
    ],
)
def test_the_child_maps_its_callers_id_itself(maps: user.Maps, own: bool) -> None:
    request = request_of(linx.Workload(["x"], user=maps))
    lines = [step for step, _, _ in with_origins(request) if step[0].startswith("own_")]
    if own:
        uid, gid = (cast("Any", ids)[0][0] for ids in (maps.uid, maps.gid))
        assert lines == [
            ("own_uid_map", b"%d %d 1" % (uid, os.geteuid())),
            ("own_gid_map", b"%d %d 1" % (gid, os.getegid())),
        ]
    else:
        assert lines == []
        assert request.after_mapping is not None


LINES = [((0, 100000, 5), True), ((1, 100000, 5), False), ((0, "own", 1), False), ((3, "own", 1), False)]


@pytest.mark.parametrize(("uid", "is_root"), LINES)
@pytest.mark.parametrize(("gid", "has_roots_group"), LINES)
def test_nobody_in_the_new_user_namespace_becomes_its_root(
    uid: tuple[int, Any, int], is_root: bool, gid: tuple[int, Any, int], has_roots_group: bool
) -> None:
    """User and group each by its own map."""
    users: Any = [tuple(os.geteuid() if part == "own" else part for part in uid), (9, 200000, 1)]
    groups: Any = [tuple(os.getegid() if part == "own" else part for part in gid), (9, 200000, 1)]
    steps = steps_of(request_of(linx.Workload(["x"], user=user.Maps(uid=users, gid=groups))))
    expected = [("setgid", 0)] * has_roots_group + [("setuid", 0)] * is_root
    assert [step for step in steps if step[0] in ("setuid", "setgid")] == expected


@pytest.mark.parametrize("setgroups", ["allow", "deny"])
@pytest.mark.parametrize(
    ("line", "uid", "another"),
    [
        ((0, 100000, 5), None, True),
        ((1, 100000, 5), None, True),
        ((1, 100000, 5), 3, True),
        ((0, "own", 1), None, False),
        ((7, "own", 2), 7, False),
        ((7, "own", 2), 8, True),
        ((7, "own", 2), 9, True),
    ],
)
def test_somebody_else_in_a_user_namespace_does_not_get_the_callers_groups(
    line: tuple[int, Any, int], uid: int | None, another: bool, setgroups: Any
) -> None:
    """Where they cannot be dropped, because that was denied, they stay."""
    users: Any = tuple(os.geteuid() if part == "own" else part for part in line)
    maps = user.Maps(uid=users, gid=(0, 100000, 5), setgroups=setgroups)
    steps = steps_of(request_of(linx.Workload(["x"], user=maps, uid=uid)))
    sent = [tuple(step[1]) for step in steps if step[0] == "setgroups"]
    assert sent == [()] * (another and setgroups == "allow")


@pytest.mark.parametrize(
    ("options", "again"),
    [
        ({"mounts": [mount.Tmpfs("/tmp")]}, True),
        ({"mounts": [mount.Tmpfs("/tmp")], "cwd": "."}, True),
        ({"mounts": [mount.Tmpfs("/tmp")], "cwd": "/"}, False),
        ({"mounts": [mount.Tmpfs("/tmp")], "auto_proceed": True}, True),
        ({"namespaces": ["mount"]}, True),
        ({"namespaces": ["mount"], "auto_proceed": True}, False),
        ({"namespaces": ["uts"]}, False),
        ({"root": mount.Tmpfs("/")}, False),
    ],
)
def test_a_directory_that_is_taken_over_is_entered_again(options: dict[str, Any], again: bool) -> None:
    names = [step[0] for step in steps_of(request_of(linx.Workload(["x"], **options)))]
    assert ("chdir_again" in names) is again


@relaxed
@given(workloads())
def test_a_terminal_is_taken_and_in_mounts_of_ones_own_named(workload: linx.Workload) -> None:
    steps = steps_of(request_of(workload))
    on_terminal, own_mounts = isinstance(workload.stdio, linx.Pty), "mount" in workload.namespace_names
    expected: list[tuple[Any, ...]] = [("private_mounts",)] * own_mounts
    if on_terminal:
        expected += [("keep_terminal", TERMINAL.encode())] * own_mounts
        expected += [("controlling_terminal",)]
        expected += [("name_terminal", TERMINAL.encode())] * own_mounts
        expected += [("terminal_owner", workload.uid)] * (workload.uid is not None)
    assert [step for step in steps if "terminal" in step[0] or step[0] == "private_mounts"] == expected


@relaxed
@given(workloads(), callers, callers)
def test_every_step_has_an_origin_and_is_optional_only_where_asked(
    workload: linx.Workload, caller: Caller, baseline: Caller
) -> None:
    request = request_of(workload, caller, baseline)
    assert len(request.origins) == len(request.message.steps)
    sent = list(zip(request.message.steps, request.origins, strict=True))
    for index in range(len(sent)):
        assert request.option_of(index) == sent[index][1][0]
    for step, (option, thing) in sent + list(zip(*request.after_mapping or ([], []), strict=True)):
        if step == m.CHECKPOINT:
            assert option == ""
            continue
        assert option in {field.name for field in dataclasses.fields(workload)}
        asked = option != "rlimits" or "=" in thing  # else it is the caller's own limit
        assert (step[0] == "optional") == (asked and option in workload.optional)
        assert step[0] != "optional" or option in OPTIONAL


@relaxed
@given(workloads(), callers, callers)
def test_a_request_is_a_term_and_comes_through(workload: linx.Workload, caller: Caller, baseline: Caller) -> None:
    message = request_of(workload, caller, baseline).message
    (payload,) = FrameDecoder().feed(message.frame())
    name, fields = cast("tuple[str, dict[str, Any]]", etf.decode(payload))
    assert name == "spawn"
    assert [bytes(argument) for argument in fields["argv"]] == list(map(os.fsencode, workload.arguments))
    assert [bare(step)[0] for step in fields["steps"]] == [bare(step)[0] for step in message.steps]
    made_by_steps = {"time"} if workload.time_offsets else set()
    if ("net_of_init",) in [bare(step) for step in message.steps]:
        made_by_steps.add("net")
    assert set(fields["namespaces"]) == workload.namespace_names - made_by_steps


# ---- remembering ------------------------------------------------------------------------------------------------


def test_the_same_again_is_not_built_again() -> None:
    workload = linx.Workload(["true"])
    first = request_of(workload)
    assert request_of(workload) is first
    assert request_of(workload.replace(nice=1)) is not first
    other = dataclasses.replace(PLAIN, umask=PLAIN.umask ^ 0o70)
    assert names_of(request_of(workload, other)).count("umask") == 1
    assert request_of(workload, other) is not first
    assert request_of(workload, other, other) is not request_of(workload, other)


def test_the_callers_environment_is_looked_at_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = linx.Workload(["true"])
    request_of(workload)
    monkeypatch.setenv("LINX_TEST", "new")
    assert b"LINX_TEST=new" in request_of(workload).message.env


def test_what_is_large_or_the_callers_is_not_kept(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        workload = linx.Workload(["true"], stdout=file)
        assert request_of(workload) is not request_of(workload)
    large = linx.Workload(["true"], env={"A": "a" * 70000})
    assert request_of(large) is not request_of(large)


def test_a_workloads_mappings_cannot_be_changed() -> None:
    workload = linx.Workload(
        ["true"], env={"A": "a"}, rlimits={"core": (0, 0)}, namespaces=["uts", "time", "ipc"],
        sysctls={"kernel.msgmax": 1}, time_offsets={"boottime": 1},
    )  # fmt: skip
    for name in ("env", "rlimits", "sysctls", "time_offsets"):
        with pytest.raises(TypeError):
            getattr(workload, name)["A"] = "b"
    assert linx.Workload.from_dict(workload.to_dict()) == workload


WITH_INIT: dict[str, Any] = {"namespaces": {"net", "pid", "mount"}, "init": True, "mounts": [mount.Tmpfs("/tmp")]}


@pytest.mark.parametrize(
    ("options", "meanwhile"),
    [
        ({}, True),
        ({"user": user.root_map(), "root": mount.Tmpfs("/")}, True),
        ({"sysctls": {"user.max_user_namespaces": 0}, "user": user.root_map()}, True),
        ({"init": False}, False),
        ({"mounts": []}, False),
        ({"namespaces": {"pid"}}, False),
        ({"mounts": [mount.Tmpfs("/tmp"), mount.Sysfs("/sys")]}, False),
        ({"sysctls": {"net.ipv4.ip_forward": 1}}, False),
        ({"sysctls": {"user.max_net_namespaces": 0}, "user": user.root_map()}, False),
        ({"user": user.Maps(uid=[(0, 100000, 65536)], gid=[(0, 100000, 65536)])}, False),
    ],
)
def test_init_makes_the_network_namespace_if_there_is_something_else_to_do(
    options: dict[str, Any], meanwhile: bool
) -> None:
    workload = linx.Workload(["true"], **{**WITH_INIT, **options})
    message = request_of(workload).message
    names = [bare(step)[0] for step in message.steps]
    assert ("net_of_init" in names) is meanwhile
    assert ("net" in cast("tuple[str, ...]", message.namespaces)) is (
        "net" in workload.namespace_names and not meanwhile
    )
    if meanwhile:
        last = max(i for i, name in enumerate(names) if name.startswith(("mount_", "make_", "pivot_")))
        assert last < names.index("net_of_init") < names.index("checkpoint")


# ---- limits -----------------------------------------------------------------------------------------------------


def kernel(steps: list[tuple[Any, ...]], limits: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    """What ``setrlimit(2)`` makes of it for a process without privileges: a hard limit can only be lowered."""
    now = list(limits)
    for name, *values in steps:
        if name != "rlimit":
            continue
        number, soft, hard = values
        if above(hard, now[number][1]):
            raise PermissionError(errno.EPERM, f"{number}: {hard} is above {now[number][1]}")
        now[number] = (soft, hard)
    return now


def above(one: int, other: int) -> bool:
    return other != INFINITY and (one == INFINITY or one > other)


@relaxed
@given(callers, st.data())
def test_a_workload_gets_its_callers_limits_whatever_the_agent_has(caller: Caller, data: st.DataObject) -> None:
    """The agent started with limits at least as high: they only ever go down without privileges."""
    raised = tuple((soft, INFINITY if data.draw(st.booleans()) else hard) for soft, hard in caller.limits)
    baseline = dataclasses.replace(caller, limits=raised)
    steps = steps_of(request_of(linx.Workload(["x"]), caller, baseline))
    assert kernel(steps, baseline.limits) == list(caller.limits)


@relaxed
@given(callers, callers)
def test_only_differences_are_sent(caller: Caller, baseline: Caller) -> None:
    steps = steps_of(request_of(linx.Workload(["x"]), caller, baseline))
    changed = [number for number in range(16) if caller.limits[number] != baseline.limits[number]]
    assert [step for step in steps if step[0] == "rlimit"] == [
        ("rlimit", number, *caller.limits[number]) for number in changed
    ]
    assert ("nice", caller.nice) in steps or caller.nice == baseline.nice
    assert len([step for step in steps if step[0] == "nice"]) == (caller.nice != baseline.nice)


def test_where_caller_and_agent_agree_nothing_but_the_mask_is_sent() -> None:
    assert steps_of(request_of(linx.Workload(["x"]))) == [("umask", 0o022), ("checkpoint",)]


asked_limits = st.dictionaries(st.sampled_from(list(RLIMITS)), limits, max_size=4)


@relaxed
@given(callers, asked_limits, st.booleans())
@example(PLAIN, {"nofile": (5, 3000)}, True)
@example(PLAIN, {"nofile": (5, INFINITY)}, True)
@example(PLAIN, {"nofile": (5, 1999)}, True)
def test_no_limit_is_raised_above_the_callers(
    caller: Caller, asked: dict[str, tuple[int, int]], agent_has_more: bool
) -> None:
    """The agent's own may be higher (it has been running for long): what the caller may not do, it may not either."""
    higher = tuple((soft, INFINITY) for soft, _ in caller.limits) if agent_has_more else caller.limits
    baseline = dataclasses.replace(caller, limits=higher)
    steps = steps_of(request_of(linx.Workload(["x"], rlimits=asked), caller, baseline))
    too_high = [name for name, pair in asked.items() if above(pair[1], caller.limits[RLIMITS[name]][1])]
    if too_high:
        with pytest.raises(PermissionError):
            kernel(steps, higher)
        return
    wanted = list(caller.limits)
    for name, pair in asked.items():
        wanted[RLIMITS[name]] = pair
    assert kernel(steps, higher) == wanted


# ---- the other attributes ---------------------------------------------------------------------------------------


@relaxed
@given(st.integers(-20, 19), st.integers(-40, 40), st.integers(-20, 19))
def test_nice_is_an_increment_to_the_callers(own: int, increment: int, agents: int) -> None:
    caller, baseline = dataclasses.replace(PLAIN, nice=own), dataclasses.replace(PLAIN, nice=agents)
    steps = steps_of(request_of(linx.Workload(["x"], nice=increment), caller, baseline))
    found = [step[1] for step in steps if step[0] == "nice"]
    assert (found or [agents]) == [max(-20, min(19, own + increment))]


@pytest.mark.parametrize(("asked", "sent"), [(None, 0o027), (0, 0), (0o777, 0o777)])
def test_umask(asked: int | None, sent: int) -> None:
    caller = dataclasses.replace(PLAIN, umask=0o027)
    assert steps_of(request_of(linx.Workload(["x"], umask=asked), caller))[0] == ("umask", sent)


def test_attributes_in_their_order() -> None:
    workload = linx.Workload(
        ["x"],
        namespaces=["uts", "net", "ipc"],
        oom_score_adj=-7,
        cpu_affinity=[0, 9],
        hostname="box",
        domainname="",
        sysctls={"net.ipv4.conf.eth0/1.forwarding": 1, "kernel.msgmax": "8"},
    )
    *found, checkpoint = steps_of(request_of(workload))[1:]
    assert checkpoint == ("checkpoint",)
    assert found[1][0] == "cpu_affinity"
    assert int.from_bytes(found.pop(1)[1], sys.byteorder) == 0b1000000001
    assert found == [
        ("oom_score_adj", b"-7"),
        ("hostname", b"box"),
        ("domainname", b""),
        ("sysctl", b"net/ipv4/conf/eth0.1/forwarding", b"1"),
        ("sysctl", b"kernel/msgmax", b"8"),
    ]


def test_time_offsets_come_with_a_namespace_that_clone_does_not_make() -> None:
    """One that ``clone3(2)`` makes has its first process in it already, and takes no offsets any more."""
    workload = linx.Workload(["x"], namespaces=["uts"], time_offsets={"monotonic": -0.25, "boottime": 2**32 + 1})
    assert workload.namespace_names == {"uts", "time"}
    request = request_of(workload)
    assert request.message.namespaces == ("uts",)
    step, option, thing = with_origins(request)[0]
    assert step == ("time_offsets", b"boottime 4294967297 0\nmonotonic -1 750000000\n")
    assert (option, thing) == ("time_offsets", "boottime 4294967297 0, monotonic -1 750000000")
    assert request_of(linx.Workload(["x"], namespaces=["time"])).message.namespaces == ("time",)


def test_root_and_mounts_in_the_users_order() -> None:
    workload = linx.Workload(["x"], root="/r", mounts=[mount.Dir("/a"), mount.Symlink("b", "/c"), mount.Dir("/d")])
    found = [(step[0], option, thing) for step, option, thing in with_origins(request_of(workload))]
    assert found[0] == ("private_mounts", "namespaces", "/")
    assert [each for each in found if each[1] in ("root", "mounts")] == [
        ("mount_root", "root", "/r"),
        ("make_dir", "mounts", repr(mount.Dir("/a"))),
        ("make_symlink", "mounts", repr(mount.Symlink("b", "/c"))),
        ("make_dir", "mounts", repr(mount.Dir("/d"))),
        ("pivot_root", "root", "/r"),
    ]


def test_who_chooses_the_propagation_is_not_made_private_before() -> None:
    """A private mount is nobody's slave."""
    workload = linx.Workload(["x"], mounts=[mount.Propagation("/", "slave"), mount.Dir("/a")])
    names = [step[0] for step in steps_of(request_of(workload))]
    assert "private_mounts" not in names
    assert "mount_propagation" in names


def test_capabilities_around_the_ids() -> None:
    """KEEP_CAPS where uid 0 is left, the sets that a change of ids clears behind it."""
    workload = linx.Workload(["x"], uid=os.geteuid() + 1, capabilities=capabilities.keep({"kill"}))
    found = [(step[0], option) for step, option, _ in with_origins(request_of(workload))]
    assert found[found.index(("checkpoint", "")) + 1 :] == [
        ("cap_drop_bounding", "capabilities"),
        ("securebits", "capabilities"),
        ("setgroups", "groups"),
        ("setuid", "uid"),
        ("cap_set_thread", "capabilities"),
        ("cap_set_ambient", "capabilities"),
    ]


def test_the_filter_is_the_last_of_all() -> None:
    workload = linx.Workload(["x"], cwd="/", uid=1, seccomp=ALLOWS_ALL)
    assert with_origins(request_of(workload))[-1] == (("seccomp", ALLOWS_ALL.program, 0), "seccomp", "from_bpf")


def test_all_the_rest() -> None:
    workload = linx.Workload(
        ["x"], hostname="böx", namespaces=["uts"], uid=1, gid=2, groups=[4, 3], cwd="/\udcff", no_new_privs=True
    )
    assert steps_of(request_of(workload))[1:] == [
        ("hostname", "böx".encode()),
        ("checkpoint",),
        ("setgroups", (4, 3)),
        ("setgid", 2),
        ("setuid", 1),
        ("chdir", b"/\xff"),
        ("no_new_privs",),
    ]


@pytest.mark.parametrize(
    ("uid", "groups", "sent"),
    [
        (None, None, []),
        ("mine", None, []),
        ("other", None, [()]),
        ("other", (5,), [(5,)]),
        (None, (), [()]),
        (None, (5, 6), [(5, 6)]),
    ],
)
def test_somebody_else_does_not_get_the_callers_groups(
    uid: str | None, groups: tuple[int, ...] | None, sent: list[tuple[int, ...]]
) -> None:
    number = None if uid is None else os.geteuid() + (uid == "other")
    steps = steps_of(request_of(linx.Workload(["x"], uid=number, groups=groups)))
    assert [tuple(step[1]) for step in steps if step[0] == "setgroups"] == sent


@pytest.mark.parametrize(
    ("policy", "sent"),
    [
        (linx.Kill(grace=5.0), 5000),
        (linx.Kill(grace=0), 0),
        (linx.Kill(grace=0.0001), 1),
        (linx.Kill(grace=4e6), 4 * 10**9),
        (linx.LINGER, None),
    ],
)
def test_orphan_policy(policy: Any, sent: int | None) -> None:
    assert request_of(linx.Workload(["x"], orphan_policy=policy)).message.orphan_grace_ms == sent


@relaxed
@given(st.floats(0, 1e9))
@example(0.1)
@example(1.1)
@example(0.001)
def test_milliseconds_are_never_less_than_the_seconds(seconds: float) -> None:
    made = milliseconds(seconds)
    assert type(made) is int
    assert seconds * 1000 <= made <= seconds * 1000 + 1


# ---- argv and env -----------------------------------------------------------------------------------------------


def env_of(env: Any) -> list[bytes]:
    return list(request_of(linx.Workload(["x"], env=env)).message.env)


def test_an_environment_is_rendered_in_its_order() -> None:
    assert env_of({"B": "2", "A": "1=1", "EMPTY": ""}) == [b"B=2", b"A=1=1", b"EMPTY="]
    assert env_of({}) == []
    assert env_of({b"\xff": b"\xfe", "ä": "ö"}) == [b"\xff=\xfe", "ä=ö".encode()]


def test_none_is_the_callers_environment_at_this_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINX_TEST_VARIABLE", "one")
    assert b"LINX_TEST_VARIABLE=one" in env_of(None)
    monkeypatch.setenv("LINX_TEST_VARIABLE", "\udcfftwo")
    assert b"LINX_TEST_VARIABLE=\xfftwo" in env_of(None)
    monkeypatch.delenv("LINX_TEST_VARIABLE")
    assert not [item for item in env_of(None) if item.startswith(b"LINX_TEST_VARIABLE")]
    assert env_of(None) == [key + b"=" + value for key, value in os.environb.items()]


@relaxed
@given(workloads())
def test_argv_and_env_are_the_workloads_bytes(workload: linx.Workload) -> None:
    message = request_of(workload).message
    assert [os.fsdecode(argument) for argument in message.argv] == list(workload.arguments)
    if workload.env is not None:
        assert dict(os.fsdecode(item).split("=", 1) for item in message.env) == dict(workload.env)


def test_flags_and_namespaces() -> None:
    message = request_of(linx.Workload(["x"], namespaces=["uts", "net"], new_session=False, auto_proceed=True)).message
    assert (message.namespaces, message.new_session, message.auto_proceed) == (("net", "uts"), False, True)
    assert list(message.fds) == ["cwd", 0, 1, 2]
    assert not message.init
    assert request_of(linx.Workload(["x"], namespaces=["pid"], init=True)).message.init


# ---- from a refusal back to what caused it ----------------------------------------------------------------------


def refusal_of(workload: linx.Workload, stage: str, number: int = errno.EPERM, index: int | None = None) -> Any:
    request = request_of(workload)
    if index is None:
        found = [i for i, step in enumerate(steps_of(request)) if step[0] == stage]
        index = found[0] if found else -1
    return request.error_of(m.Refusal(number, stage, index))


@pytest.mark.parametrize(
    ("options", "stage", "thing"),
    [
        ({}, "execve", "prog"),
        ({"namespaces": ["net", "uts"]}, "clone", "net, uts"),
        ({}, "clone", None),
        ({}, "fork", None),
        ({"cwd": "/nowhere"}, "chdir", "/nowhere"),
        ({"uid": 7}, "setuid", "7"),
        ({"gid": 8}, "setgid", "8"),
        ({"groups": [8, 9]}, "setgroups", "(8, 9)"),
        ({"hostname": "box", "namespaces": ["uts"]}, "hostname", "box"),
        ({"rlimits": {"nofile": (5, 6)}}, "rlimit", "nofile=(5, 6)"),
        ({"nice": -5}, "nice", "-5"),
        ({"oom_score_adj": -5}, "oom_score_adj", "-5"),
        ({"cpu_affinity": [9, 1]}, "cpu_affinity", "[1, 9]"),
        ({"domainname": "home", "namespaces": ["uts"]}, "domainname", "home"),
        ({"sysctls": {"net.ipv4.ip_forward": 1}, "namespaces": ["net"]}, "sysctl", "net/ipv4/ip_forward"),
        ({"root": "/r"}, "pivot_root", "/r"),
        ({"mounts": [mount.Dir("/a")]}, "make_dir", repr(mount.Dir("/a"))),
        ({"user": user.root_map()}, "own_uid_map", f"uid 0 {os.geteuid()} 1"),
        ({"capabilities": capabilities.keep(())}, "cap_drop_bounding", "linx.capabilities.keep(())"),
        ({"seccomp": ALLOWS_ALL}, "seccomp", "from_bpf"),
        ({"namespaces": ["mount"]}, "private_mounts", "/"),
        ({"stdio": linx.PTY}, "controlling_terminal", TERMINAL),
        ({"stdio": linx.PTY, "uid": 7}, "terminal_owner", TERMINAL),
        ({"stdio": linx.PTY, "namespaces": ["mount"]}, "keep_terminal", TERMINAL),
        ({"stdio": linx.PTY, "namespaces": ["mount"]}, "name_terminal", "/dev/console"),
    ],
)
def test_a_refusal_names_the_thing(options: dict[str, Any], stage: str, thing: str | None) -> None:
    error = refusal_of(linx.Workload(["prog", "argument"], **options), stage)
    assert isinstance(error, linx.SetupError)
    assert isinstance(error, PermissionError)
    assert (error.errno, error.stage, error.filename) == (errno.EPERM, stage, thing)


@pytest.mark.parametrize(("index", "thing"), [(0, "stdin"), (1, "stdout"), (2, "stderr"), (3, None), (-1, None)])
def test_a_refused_stream_is_named(index: int, thing: str | None) -> None:
    assert refusal_of(linx.Workload(["x"]), "stdio", errno.EBADF, index).filename == thing


@relaxed
@given(workloads(), st.integers(1, 4095), st.sampled_from(m.STAGES) | st.text(max_size=8), st.integers(-3, 30))
def test_any_refusal_becomes_an_error(workload: linx.Workload, number: int, stage: str, index: int) -> None:
    error = request_of(workload).error_of(m.Refusal(number, stage, index))
    if (stage, number) == ("request", errno.ENOSYS):
        assert isinstance(error, linx.NotSupported)
        return
    assert isinstance(error, linx.SetupError)
    assert (error.errno, error.stage) == (number, stage)
    assert f"(stage {stage})" in str(error)
    assert error.hint is None or error.hint.strip()


@pytest.mark.parametrize(
    ("options", "stage", "number", "words"),
    [
        ({"argv": ["nothing"]}, "execve", errno.ENOENT, "PATH"),
        ({"argv": ["/bin/sh"]}, "execve", errno.ENOENT, "interpreter"),
        ({"argv": ["/nothing"]}, "execve", errno.ENOENT, None),
        ({}, "execve", errno.EACCES, "noexec"),
        ({}, "execve", errno.ENOEXEC, "#!"),
        ({}, "execve", errno.E2BIG, "ARG_MAX"),
        ({"namespaces": ["net"]}, "clone", errno.EPERM, "add 'user' to namespaces|security module"),
        ({"namespaces": ["user"]}, "clone", errno.EPERM, "user namespaces|AppArmor"),
        ({"namespaces": ["user", "mount"]}, "clone", errno.ENOSPC, "user.max_mnt_namespaces, user.max_user_namespaces"),
        ({}, "clone", errno.ENOSYS, "clone3"),
        ({}, "clone", errno.EAGAIN, "RLIMIT_NPROC"),
        ({}, "rlimit", errno.EPERM, "CAP_SYS_RESOURCE"),
    ],
)
def test_hints(options: dict[str, Any], stage: str, number: int, words: str | None) -> None:
    hint = refusal_of(linx.Workload(**{"argv": ["x"], **options}), stage, number).hint
    if words is None:
        assert hint is None
    else:
        assert any(word in hint for word in words.split("|"))
