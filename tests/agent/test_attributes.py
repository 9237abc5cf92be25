"""Attributes decided at the checkpoint: names, sysctls, CPUs, the out-of-memory score; seen from outside and inside."""

from __future__ import annotations

import errno
import json
import os
import pickle
import time
from collections.abc import Callable
from typing import Any

import pytest

import linx_trio as linx
from linx_trio import capabilities, seccomp
from tests.agent.probes import OVER_ANY_LIMIT, as_somebody, cat, needs_root, proc
from tests.agent.rights import AFFINITY, Options, as_root, in_both_ways, output_of, rootless
from tests.support import monitor_of, stat_of

Rights = Callable[..., Options]
SLEEP = ["sleep", "600"]
SLACK = 600  # seconds; far below what the clocks are moved by


async def refused(stage: str, thing: str, number: int, **options: Any) -> linx.SetupError:
    """At the checkpoint, by its stage and thing; also without waiting there, and nothing runs."""
    with pytest.raises(linx.SetupError) as caught:
        async with linx.spawn(SLEEP, **options):
            raise AssertionError("it was entered")
    with pytest.raises(linx.SetupError) as again:
        await linx.run(SLEEP, **options)
    for error in (caught.value, again.value):
        assert (error.stage, error.filename, error.errno) == (stage, thing, number)
    return caught.value


# ---- names -------------------------------------------------------------------------------------------------------


@in_both_ways
async def test_host_and_domain_name(rights: Rights) -> None:
    before = os.uname().nodename, proc("sys", "kernel/domainname")
    options = rights("uts") | {"hostname": "böx", "domainname": "d" * 64}
    names = ["cat", "/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname"]
    assert await output_of(names, **options) == "böx\n".encode() + b"d" * 64 + b"\n"
    assert await output_of(names, **options | {"domainname": ""}) == "böx\n\n".encode()
    assert (os.uname().nodename, proc("sys", "kernel/domainname")) == before


# ---- time --------------------------------------------------------------------------------------------------------


@in_both_ways
@pytest.mark.parametrize("init", [False, True])
@pytest.mark.parametrize("auto_proceed", [False, True])
async def test_offsets_of_clocks(rights: Rights, init: bool, auto_proceed: bool) -> None:
    """Seen by the workload and by its children, and the namespace is one of its own."""
    offsets = {"monotonic": 5_000_000.5, "boottime": 9_000_000}
    options = rights("pid") | {"time_offsets": offsets, "init": init}
    script = ["/bin/sh", "-c", "cat /proc/uptime; readlink /proc/self/ns/time; cat /proc/self/timens_offsets; :"]
    if auto_proceed:
        shown = await output_of(script, **options)
    else:
        async with linx.spawn(script, stdout=linx.PIPE, **options) as s:
            assert s.stdout is not None
            await s.proceed()
            shown = b"".join([data async for data in s.stdout])
            assert "time" in s.info().namespaces
    uptime, link, *table = shown.decode().splitlines()
    own = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert 9_000_000 - SLACK < float(uptime.split()[0]) - own < 9_000_000 + SLACK
    assert link != os.readlink("/proc/self/ns/time")
    assert [line.split() for line in table] == [["monotonic", "5000000", "500000000"], ["boottime", "9000000", "0"]]


@in_both_ways
async def test_a_clock_cannot_be_negative(rights: Rights) -> None:
    error = await refused(
        "time_offsets", "monotonic -4000000000 0", errno.ERANGE, **rights(), time_offsets={"monotonic": -4e9}
    )
    assert error.hint is not None
    assert "negative" in error.hint


@needs_root
def test_offsets_need_rights() -> None:
    told, degraded = as_somebody(
        """
async def degraded():
    async with linx.spawn(["true"], time_offsets={"boottime": 1}, optional={"time_offsets"}) as s:
        return s.info().degraded

result = refusal_of(linx.run_sync, ["true"], time_offsets={"boottime": 1}), trio.run(degraded)
"""
    )
    assert (told["stage"], told["filename"], told["errno"]) == ("time_offsets", "boottime 1 0", errno.EPERM)
    assert "CAP_SYS_TIME" in told["hint"]
    assert degraded == ["time_offsets"]


async def test_entered_offsets_are_the_targets() -> None:
    with pytest.raises(ValueError, match="time_offsets"):
        linx.enter(os.getpid(), ["true"], time_offsets={"boottime": 1})  # type: ignore[call-arg]


# ---- sysctls -----------------------------------------------------------------------------------------------------


@in_both_ways
async def test_sysctls_of_a_network(rights: Rights) -> None:
    before = proc("sys", "net/ipv4/ip_forward")
    for name in ("net.ipv4.ip_forward", "net/ipv4/ip_forward"):
        for value in ("1", 0):
            sysctls = {name: value, "net.ipv4.conf.lo.forwarding": 1}
            shown = await output_of(["cat", "/proc/sys/net/ipv4/ip_forward"], sysctls=sysctls, **rights("net"))
            assert shown.strip() == str(value).encode()
    assert proc("sys", "net/ipv4/ip_forward") == before


@in_both_ways
async def test_sysctls_are_set_in_their_order(rights: Rights) -> None:
    """The first one sets all interfaces, the second one takes one of them back."""
    files = [f"/proc/sys/net/ipv4/conf/{name}/forwarding" for name in ("default", "lo")]
    sysctls = {"net.ipv4.ip_forward": 1, "net.ipv4.conf.lo.forwarding": 0}
    assert await output_of(["cat", *files], sysctls=sysctls, **rights("net")) == b"1\n0\n"


async def test_sysctls_of_a_user_namespace() -> None:
    options = rootless() | {"sysctls": {"user.max_user_namespaces": 0}}
    done = await linx.run(["unshare", "--user", "true"], capture_stderr=True, check=False, **options)
    assert done.returncode == 1
    assert done.stderr is not None
    assert b"No space left" in done.stderr
    await linx.run(["unshare", "--user", "true"], **rootless())


@needs_root
async def test_sysctls_of_ipc() -> None:
    sysctls = {"kernel.msgmax": 4096, "fs.mqueue.msg_max": 7}
    files = ["/proc/sys/kernel/msgmax", "/proc/sys/fs/mqueue/msg_max"]
    assert await output_of(["cat", *files], sysctls=sysctls, **as_root("ipc")) == b"4096\n7\n"


@in_both_ways
async def test_refused_sysctls(rights: Rights) -> None:
    options = rights("net")
    missing = {"net.ipv4.ip_forward": 1, "net.ipv4.no_such_thing": 1}
    error = await refused("sysctl", "net/ipv4/no_such_thing", errno.ENOENT, sysctls=missing, **options)
    assert "no such sysctl" in str(error.hint)
    error = await refused(
        "sysctl", "net/ipv4/ip_forward", errno.EINVAL, sysctls={"net.ipv4.ip_forward": "x"}, **options
    )
    assert "value" in str(error.hint)


@in_both_ways
async def test_sysctls_that_are_understood_in_part(rights: Rights) -> None:
    """The kernel would take the numbers that it knows, and leave the rest."""
    cases = {"net/ipv4/ip_forward": (" 1 \n", "1 0"), "net/ipv4/ip_local_port_range": ("2000\t3000", "2000 3000 4000")}
    for name, (good, bad) in cases.items():
        await output_of(["true"], sysctls={name: good}, **rights("net"))
        await refused("sysctl", name, errno.EINVAL, sysctls={name: bad}, **rights("net"))


# ---- scheduling and memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("parked", [False, True])
async def test_cpu_affinity(parked: bool) -> None:
    own = os.sched_getaffinity(0)
    async with linx.spawn(SLEEP, cpu_affinity=[AFFINITY], auto_proceed=not parked) as s:
        assert os.sched_getaffinity(s.host_pid) == {AFFINITY}
        assert os.sched_getaffinity(monitor_of(s.host_pid)) == own
        await s.proceed()
        assert os.sched_getaffinity(s.host_pid) == {AFFINITY}
    async with linx.spawn(SLEEP) as s:
        assert os.sched_getaffinity(s.host_pid) == own


async def test_cpus_that_are_not_there() -> None:
    error = await refused("cpu_affinity", "[8191]", errno.EINVAL, cpu_affinity={8191})
    assert "none of these CPUs" in str(error.hint)
    async with cat(cpu_affinity={AFFINITY, 8191}) as s:  # as sched_setaffinity(2) has it
        assert os.sched_getaffinity(s.host_pid) == {AFFINITY}


@pytest.mark.parametrize("parked", [False, True])
@pytest.mark.parametrize("value", [900, 1000])
async def test_oom_score_adj(parked: bool, value: int) -> None:
    """Only the workload's: a child that shares its monitor's memory would share that as well."""
    own = proc("self", "oom_score_adj")
    async with linx.spawn(SLEEP, oom_score_adj=value, auto_proceed=not parked) as s:
        assert proc(s.host_pid, "oom_score_adj") == f"{value}\n"
        assert proc(monitor_of(s.host_pid), "oom_score_adj") == own
        await s.proceed()
        assert proc(s.host_pid, "oom_score_adj") == f"{value}\n"
    async with linx.spawn(SLEEP) as s:
        assert proc(s.host_pid, "oom_score_adj") == own


def test_lowering_oom_score_adj_as_an_ordinary_user() -> None:
    told = as_somebody('result = refusal_of(linx.run_sync, ["true"], oom_score_adj=-5)')
    assert (told["stage"], told["filename"], told["errno"]) == ("oom_score_adj", "-5", errno.EACCES)
    assert "CAP_SYS_RESOURCE" in told["hint"]


async def test_all_together_with_namespaces_and_an_init() -> None:
    options = rootless("uts", "net", "ipc", "pid", "mount") | {
        "hostname": "box",
        "domainname": "home",
        "sysctls": {"net.ipv4.ip_forward": 1},
        "cpu_affinity": {AFFINITY},
        "oom_score_adj": 777,
        "nice": 3,
        "umask": 0o057,
        "rlimits": {"nofile": (33, 44)},
        "init": True,
    }
    async with linx.spawn(SLEEP, **options) as s:
        stat = stat_of(s.host_pid)
        assert stat is not None
        assert int(stat[16]) == os.getpriority(os.PRIO_PROCESS, 0) + 3
        assert proc(s.host_pid, "oom_score_adj") == "777\n"
        assert os.sched_getaffinity(s.host_pid) == {AFFINITY}
        assert "Umask:\t0057" in proc(s.host_pid, "status")
        init = int(stat[1])
        assert proc(init, "oom_score_adj") == proc("self", "oom_score_adj"), "pid 1 is none of the workload"
        assert "linx-reaper" in proc(init, "comm")
        await s.proceed()


# ---- what can be given up, and the plain form ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["seccomp", "capabilities", "user", "root", "mounts", "init", "namespaces"])
def test_what_contains_cannot_be_given_up(name: str) -> None:
    with pytest.raises(ValueError, match=f"optional has '{name}'"):
        linx.Workload(["x"], optional=[name])


@needs_root
async def test_what_is_given_up_behind_maps_from_outside() -> None:
    """There the steps travel as a batch of their own, whose indices are not the request's."""
    maps = linx.user.Maps(uid=(0, 100000, 10), gid=(0, 100000, 10))
    too_much = (OVER_ANY_LIMIT, OVER_ANY_LIMIT)
    options: Any = {"user": maps, "hostname": "box", "namespaces": ["uts"], "rlimits": {"nofile": too_much}}
    for auto_proceed in (False, True):
        async with linx.spawn(SLEEP, optional={"rlimits"}, auto_proceed=auto_proceed, **options) as s:
            assert s.info().degraded == ("rlimits",)
            await s.proceed()
            assert s.info().degraded == ("rlimits",)
    await refused("rlimit", f"nofile={too_much}", errno.EPERM, **options)


async def test_a_workload_means_the_same_after_a_journey() -> None:
    """All the options of the checkpoint at once; as a workload that came from elsewhere it runs the same."""
    options = rootless("uts", "net", "mount", "pid") | {
        "domainname": "home",
        "sysctls": {"net.ipv4.ip_forward": 1},
        "cpu_affinity": [AFFINITY],
        "oom_score_adj": 400,
        "init": True,
        "mounts": [linx.mount.Tmpfs("/mnt"), linx.mount.Proc(), linx.mount.File("/mnt/note", b"\xff\0note")],
        "capabilities": capabilities.keep({"net_admin"}),
        "seccomp": seccomp.deny_list(["chroot"]),
    }
    script = "echo $$; cat /mnt/note /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward /proc/self/oom_score_adj"
    script += "; grep -E '^(Cap|Seccomp:|Cpus_allowed_list)' /proc/self/status"
    workload = linx.Workload(["sh", "-c", script], **options)
    copies = [
        linx.Workload.from_dict(json.loads(json.dumps(workload.to_dict()))),
        pickle.loads(pickle.dumps(workload)),
        workload.replace(),
        workload.replace(nice=1).replace(nice=0),
    ]
    shown = (await linx.run(workload, capture_stdout=True)).stdout
    assert shown is not None
    assert shown.startswith(b"2\n\xff\0notehome\n1\n400\n")
    assert f"CapEff:\t{1 << capabilities.Capability.CAP_NET_ADMIN:016x}".encode() in shown
    assert f"Cpus_allowed_list:\t{AFFINITY}\n".encode() in shown
    assert b"Seccomp:\t2\n" in shown
    for copy in copies:
        assert copy == workload
        assert (await linx.run(copy, capture_stdout=True)).stdout == shown


@pytest.mark.parametrize(
    "change",
    [
        {"domainname": None},
        {"sysctls": {}},
        {"cpu_affinity": None},
        {"oom_score_adj": None},
        {"init": False},
        {"capabilities": None},
        {"seccomp": None},
        {"user": None},
        {"mounts": []},
    ],
    ids=repr,
)
def test_replace_takes_back_one_option_and_no_other(change: dict[str, Any]) -> None:
    options: Options = rootless("uts", "net", "pid") | {
        "domainname": "home",
        "sysctls": {"net.ipv4.ip_forward": 1},
        "cpu_affinity": [0],
        "oom_score_adj": 0,
        "init": True,
        "mounts": [linx.mount.Proc()],
        "capabilities": capabilities.drop({"kill"}),
        "seccomp": seccomp.from_bpf(b"\6\0\0\0\0\0\xff\x7f"),
    }
    whole = linx.Workload(["x"], **options)
    (name,) = change
    plain = whole.to_dict()
    assert name in plain
    assert name not in whole.replace(**change).to_dict()
    assert whole.replace(**change).to_dict() == {key: item for key, item in plain.items() if key != name}
    assert whole.replace(**change).replace(**{name: options[name]}) == whole
