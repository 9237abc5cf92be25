"""Causes, each provoked for real: the probe names it, and so does the hint of an error.

AppArmor is the one that cannot be had here: its sysctl is recognised in tests/proto/test_causes.py, on a made-up
machine.
"""

from __future__ import annotations

import errno
from typing import Any

import pytest

import linx_trio as linx
from linx_trio import seccomp
from linx_trio._mount_tree import Mask
from linx_trio.capabilities import keep
from linx_trio.mount import Bind, Proc, Tmpfs
from tests.agent.provoked import feature, report, told, tree
from tests.agent.rights import rootless

CLONE_NEWUSER = 0x10000000
DOCKER = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS},
        {
            "names": ["clone", "unshare"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": errno.EPERM,
            "args": [{"index": 0, "value": CLONE_NEWUSER, "valueTwo": CLONE_NEWUSER, "op": "SCMP_CMP_MASKED_EQ"}],
        },
    ],
}
"""What Docker's profile does with namespaces, and nothing else of it."""

AUTO: dict[str, Any] = {"namespaces": {"user"}, "user": linx.user.root_map()}

# ---- seccomp -----------------------------------------------------------------------------------------------------


def test_clone3_does_not_exist_for_a_container() -> None:
    """With it a time namespace cannot be had at all, since only clone3(2) can say it."""
    found = feature("time", seccomp=seccomp.deny_list(["clone3"], ("errno", "ENOSYS")))
    assert not found["works"]
    assert found["cause"] == "seccomp-clone3"


def test_clone3_is_not_permitted() -> None:
    """By a filter of before 2021: then not even libc can start the agent."""
    found = feature("agent", seccomp=seccomp.deny_list(["clone3"], ("errno", "EPERM")))
    assert not found["works"]
    assert found["cause"].startswith("seccomp")
    assert "seccomp=unconfined" in found["remedy"]


def test_user_namespaces_are_refused_by_a_filter() -> None:
    """An older clone(2) shows its flags to the filter, and is what a workload that does not park is made with."""
    refusal = told(
        "refusal_of(['true'], namespaces={'user'}, user=linx.user.root_map())", seccomp=seccomp.from_oci(DOCKER)
    )
    assert (refusal["stage"], refusal["errno"], refusal["cause"]) == ("clone", errno.EPERM, "seccomp")
    assert "seccomp=unconfined" in refusal["hint"]


def test_all_that_needs_a_user_namespace_has_one_cause() -> None:
    options = {**rootless(), "capabilities": keep(()), "no_new_privs": True, "seccomp": seccomp.from_oci(DOCKER)}
    found = report("user", "net", "mount:proc", "id-range", **options)
    assert {entry["works"] for entry in found.values()} == {False}
    assert len({entry["cause"] for entry in found.values()}) == 1
    assert found["user"]["cause"].startswith("seccomp")


def test_where_only_own_rights_are_left() -> None:
    """No user namespaces, and a process that needs none: it is root of its own one."""
    options = {**rootless(), "sysctls": {"user.max_user_namespaces": 0}}
    found = report("user", "net", "mount:tmpfs", "uts", "root:uts", **options)
    assert {name for name, entry in found.items() if not entry["works"]} == {"user"}
    assert "not rootless" in found["net"]["detail"]


def test_what_is_refused_does_not_work() -> None:
    """Each trial does what it is about: without that system call it does not work."""
    calls = {
        "mount": ("mount:tmpfs", "mount:proc", "mount:overlay", "sandbox"),
        "seccomp": ("seccomp",),
        "capset": ("capabilities",),
        "memfd_create": ("memfd",),
    }
    names = [name for group in calls.values() for name in group]
    found = report("spawn", *names, seccomp=seccomp.deny_list(calls))
    assert found["spawn"]["works"]
    assert {name for name in names if found[name]["works"]} == set()
    assert found["mount:tmpfs"]["cause"] == "seccomp"
    assert found["mount:overlay"]["needs"] == "mount:tmpfs"


# ---- namespaces ----------------------------------------------------------------------------------------------------


def test_no_more_user_namespaces() -> None:
    options = {**rootless(), "sysctls": {"user.max_user_namespaces": 0}}
    found = feature("user", **options)
    assert (found["errno"], found["stage"], found["cause"]) == (errno.ENOSPC, "clone", "max-namespaces")
    assert "user.max_user_namespaces is 0" in found["why"]
    assert "sysctl user.max_user_namespaces=" in found["remedy"]


def test_no_more_network_namespaces() -> None:
    """The user namespace can be had, and the other not: that one is named."""
    found = report("user", "net", "uts", **{**rootless(), "sysctls": {"user.max_net_namespaces": 0}})
    assert found["user"]["works"]
    assert found["uts"]["works"]
    assert found["net"]["cause"] == "max-namespaces"
    assert found["net"]["why"] == "user.max_net_namespaces is 0 here"


def test_no_more_namespaces_of_any_kind() -> None:
    kinds = ("mount", "uts", "ipc", "cgroup", "net", "pid", "time")
    sysctls = {f"user.max_{'mnt' if kind == 'mount' else kind}_namespaces": 0 for kind in kinds}
    found = report("user", *kinds, *(f"root:{kind}" for kind in kinds), **{**rootless(), "sysctls": sysctls})
    assert {name for name, entry in found.items() if entry["works"]} == {"user"}
    assert {entry["cause"] for entry in found.values()} == {None, "max-namespaces"}
    for kind in kinds:
        assert found[f"root:{kind}"]["why"] == found[kind]["why"]


def test_no_terminals() -> None:
    found = report("pty", "spawn", **{**rootless("mount"), "mounts": [Tmpfs("/dev/pts")]})
    assert found["spawn"]["works"]
    assert not found["pty"]["works"]


def test_dropped_capabilities() -> None:
    names = ("capabilities:all", "root:uts", "root:mount")
    found = report(*names, **{**rootless(), "capabilities": keep(()), "no_new_privs": True})
    for name in names:
        assert not found[name]["works"]
        assert found[name]["cause"] == "capability"
    assert "no capabilities" in found["capabilities:all"]["why"]
    assert "CAP_SYS_ADMIN" in found["root:uts"]["why"]
    assert "'user'" in found["root:uts"]["remedy"]


def test_one_capability_is_lacking() -> None:
    """A process that is root does not hear that it should be."""
    before = "have = linx.capabilities.read('/proc/self').effective"
    result = "refusal_of(['true'], namespaces={'uts'}, hostname='x'), refusal_of(['true'], groups=[0])"
    granted, refused = told(result, before, **{**rootless(), "capabilities": linx.capabilities.drop({"SETGID"})})
    assert granted is None
    assert (refused["stage"], refused["cause"]) == ("setgroups", "capability")
    assert "--cap-add SETGID" in refused["hint"]


def test_a_chroot() -> None:
    entries = [Tmpfs("/mnt"), *tree("mnt", below="/mnt/inner")]
    options = {**rootless("mount"), "mounts": entries}
    found = report("user", "spawn", before="os.chroot('/mnt/inner'); os.chdir('/')", **options)
    assert found["spawn"]["works"]
    assert (found["user"]["errno"], found["user"]["cause"]) == (errno.EPERM, "chroot")
    assert "root=" in found["user"]["remedy"]


# ---- /proc and the like ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [Mask("/proc/cpuinfo"), Tmpfs("/proc/sys"), Bind("/dev/null", "/proc/keys")], ids=repr)
def test_a_masked_proc(mask: Any) -> None:
    options = {**rootless("mount", "pid"), "mounts": [Proc(), mask], "init": True}
    found = report("mount:proc", "mount:tmpfs", **options)
    assert found["mount:tmpfs"]["works"]
    assert (found["mount:proc"]["errno"], found["mount:proc"]["cause"]) == (errno.EPERM, "masked-proc")
    assert mask.dst in found["mount:proc"]["why"]
    assert "systempaths=unconfined" in found["mount:proc"]["remedy"]


def test_a_proc_that_is_not_masked() -> None:
    assert feature("mount:proc", **{**rootless("mount", "pid"), "mounts": [Proc()], "init": True})["works"]


@pytest.mark.parametrize(
    ("entry", "kind", "cause"),
    [
        ("Proc()", "pid", "proc-needs-pid"),
        ("Sysfs()", "net", "sysfs-needs-net"),
        ("Cgroup2('/mnt')", "cgroup", "cgroup2-needs-cgroup"),
        ("Mount('mqueue', '/mnt')", "ipc", "mqueue-needs-ipc"),
    ],
)
def test_a_file_system_that_needs_another_namespace(entry: str, kind: str, cause: str) -> None:
    result = f"refusal_of(['true'], user=linx.user.root_map(), mounts=[linx.mount.{entry}])"
    refusal = told(result, **rootless("mount", kind))  # of that one, the caller within is no owner's child
    assert (refusal["stage"], refusal["errno"], refusal["cause"]) == ("mount", errno.EPERM, cause)
    assert f"add {kind!r} to namespaces" in refusal["hint"]
    linx.run_sync(["true"], mounts=[eval(entry, vars(linx.mount))], **rootless("mount", kind))


def test_an_unknown_file_system() -> None:
    options: Any = {**AUTO, "mounts": [linx.mount.Mount("linxfs", "/tmp")]}
    with pytest.raises(linx.SetupError) as caught:
        linx.run_sync(["true"], **options)
    assert caught.value.errno == errno.ENODEV
    assert getattr(caught.value.hint, "cause", None) == "kernel-option"
    assert "'linxfs'" in str(caught.value.hint)
