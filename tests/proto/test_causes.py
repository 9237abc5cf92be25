"""Causes, recognised on machines that are made up: directories with the files that would tell of them."""

from __future__ import annotations

import errno
import gzip
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import linx_trio as linx
from linx_trio import _cause_kernel as kernel
from linx_trio import _cgroup_files
from linx_trio._cause_rights import user_namespaces_refused
from linx_trio._causes import Refusal, recognise
from linx_trio._hints import hint_for
from linx_trio._machine import Machine
from linx_trio._proto import messages as m
from linx_trio.errors import Hint
from tests.proto.strategies import relaxed
from tests.proto.test_workload import workloads

ROOT_MOUNT = "20 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"
PROC = "21 20 0:20 / /proc rw - proc proc rw\n"
APPARMOR = "proc/sys/kernel/apparmor_restrict_unprivileged_userns"
Make = Callable[..., Machine]


@pytest.fixture
def made(tmp_path: Path) -> Make:
    """A machine with these files; and with an ordinary user, in nothing special, if they do not say otherwise."""

    def make(
        files: dict[str, str] | None = None, *, caps: int = 0, filtered: bool = False, mounts: str = ""
    ) -> Machine:
        status = f"CapEff:\t{caps:016x}\nNoNewPrivs:\t0\nSeccomp:\t{2 if filtered else 0}\n"
        usual = {
            "proc/thread-self/status": status,
            "proc/thread-self/uid_map": "0 0 4294967295\n",
            "proc/thread-self/gid_map": "0 0 4294967295\n",
            "proc/thread-self/mountinfo": ROOT_MOUNT + (mounts or PROC),
        }
        for path, text in {**usual, **(files or {})}.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        return Machine(tmp_path)

    return make


def workload(*kinds: str, **options: Any) -> linx.Workload:
    return linx.Workload(["x"], namespaces=kinds, **options)


def hint(machine: Machine, stage: str, number: int, *kinds: str, step: tuple[Any, ...] = ()) -> Any:
    """What is recognised: a `Hint`, or `None`."""
    return recognise(Refusal(stage, number, workload(*kinds), step, machine=machine))


def cause(machine: Machine, stage: str, number: int, *kinds: str, step: tuple[Any, ...] = ()) -> str | None:
    found = hint(machine, stage, number, *kinds, step=step)
    assert found is None or (found.why and found.cause)
    return None if found is None else str(found.cause)


# ---- AppArmor, which not every machine has ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_apparmor_refuses_the_user_namespace(made: Make, number: int) -> None:
    """Ubuntu 23.10 says EACCES to clone(2)."""
    found = hint(made({APPARMOR: "1\n"}), "clone", number, "user", "net")
    assert found.cause == "apparmor-userns"
    assert "kernel.apparmor_restrict_unprivileged_userns" in found
    assert "'userns,'" in found.remedy


@pytest.mark.parametrize("stage", ["uid_map", "gid_map", "mount", "hostname", "setgid", "netlink", "pivot_root"])
def test_apparmor_takes_the_rights_in_the_user_namespace(made: Make, stage: str) -> None:
    """Ubuntu 24.04 lets it be made, and refuses what is done in it."""
    machine = made({APPARMOR: "1\n", "proc/thread-self/attr/apparmor/current": "unconfined\n"})
    assert cause(machine, stage, errno.EPERM, "user", "mount") == "apparmor-userns"
    assert cause(machine, stage, errno.EPERM, "mount") != "apparmor-userns", "it has no user namespace of its own"
    assert cause(machine, stage, errno.ENOENT, "user", "mount") is None
    assert cause(machine, "rlimit", errno.EPERM, "user") is None, "no user namespace gives that right"


@pytest.mark.parametrize(
    ("files", "caps"),
    [
        ({APPARMOR: "0\n"}, 0),
        ({}, 0),
        ({APPARMOR: "1\n"}, 1 << 21),
        ({APPARMOR: "1\n", "proc/thread-self/attr/apparmor/current": "linx-agent (unconfined)\n"}, 0),
    ],
    ids=["switched off", "without AppArmor", "root", "with a profile that allows it"],
)
def test_apparmor_has_nothing_to_do_with_it(made: Make, files: dict[str, str], caps: int) -> None:
    assert cause(made(files, caps=caps), "clone", errno.EPERM, "user") is None
    assert cause(made(files, caps=caps), "uid_map", errno.EPERM, "user") is None


def test_a_profile_of_a_container(made: Make) -> None:
    machine = made({"proc/thread-self/attr/current": "docker-default (enforce)\n"})
    found = hint(machine, "mount", errno.EACCES, "user", "mount", step=("mount_new", b"tmpfs", b"x", b"/", b"", 0))
    assert found.cause == "apparmor-profile"
    assert "'docker-default'" in found.why
    assert "apparmor=unconfined" in found.remedy


def test_the_label_of_another_security_module(made: Make) -> None:
    assert made({"proc/thread-self/attr/current": "user_u:user_r:user_t:s0\n"}).apparmor_profile() is None


# ---- user namespaces -------------------------------------------------------------------------------------------------


def test_switched_off_for_all_but_root(made: Make) -> None:
    files = {"proc/sys/kernel/unprivileged_userns_clone": "0\n"}
    found = hint(made(files), "clone", errno.EPERM, "user")
    assert found.cause == "userns-clone-sysctl"
    assert "sysctl kernel.unprivileged_userns_clone=1" in found
    assert cause(made(files, caps=1 << 21), "clone", errno.EPERM, "user") is None
    assert (
        cause(made({**files, "proc/sys/kernel/unprivileged_userns_clone": "1\n"}), "clone", errno.EPERM, "user") is None
    )


def test_a_chroot(made: Make) -> None:
    machine = made({"proc/thread-self/mountinfo": "30 20 0:20 / /proc rw - proc proc rw\n"})
    assert cause(machine, "clone", errno.EPERM, "user") == "chroot"


def test_ids_that_are_not_mapped(made: Make) -> None:
    files = {"proc/thread-self/uid_map": f"{os.geteuid() + 1} 1000 1\n"}
    assert cause(made(files), "clone", errno.EPERM, "user") == "unmapped-ids"


def test_a_filter_comes_last(made: Make) -> None:
    """That there is one proves little: every container has one, and most allow it."""
    assert user_namespaces_refused(made()) is None
    assert cause(made(filtered=True), "clone", errno.EPERM, "user") == "seccomp"
    assert cause(made({APPARMOR: "1\n"}, filtered=True), "clone", errno.EPERM, "user") == "apparmor-userns"


@pytest.mark.parametrize(("filtered", "expected"), [(True, "seccomp-clone3"), (False, "no-clone3")])
def test_no_clone3(made: Make, filtered: bool, expected: str) -> None:
    assert cause(made(filtered=filtered), "clone", errno.ENOSYS) == expected


def test_limits_on_namespaces(made: Make) -> None:
    sysctls = {"user": "0\n", "mnt": "100\n", "net": "0\n"}
    files = {f"proc/sys/user/max_{name}_namespaces": value for name, value in sysctls.items()}
    machine = made(files)
    assert str(hint(machine, "clone", errno.ENOSPC, "user")).startswith("user.max_user_namespaces is 0 here: let root")
    assert "user.max_net_namespaces, user.max_user_namespaces are 0" in hint(
        machine, "clone", errno.EUSERS, "user", "net"
    )
    reached = hint(machine, "clone", errno.ENOSPC, "mount")
    assert "user.max_mnt_namespaces" in reached
    assert "reached" in reached
    nested = made({**files, "proc/thread-self/uid_map": "0 1000 1\n"})
    assert "sandbox" in hint(nested, "clone", errno.ENOSPC, "user")


def test_a_kernel_without_that_kind(made: Make) -> None:
    machine = made({"proc/thread-self/ns/net": "", "proc/thread-self/ns/mnt": ""})
    found = hint(machine, "clone", errno.EINVAL, "net", "mount", "time")
    assert found.cause == "kernel-option"
    assert found.remedy == "use one with CONFIG_TIME_NS"
    assert cause(machine, "clone", errno.EINVAL, "net", "mount") is None
    assert cause(machine, "time_offsets", errno.ENOENT, "time") == "kernel-option"


# ---- rights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "number", "name", "bit"),
    [
        ("setgroups", errno.EPERM, "CAP_SETGID", 6),
        ("setgid", errno.EPERM, "CAP_SETGID", 6),
        ("setuid", errno.EPERM, "CAP_SETUID", 7),
        ("cap_drop_bounding", errno.EPERM, "CAP_SETPCAP", 8),
        ("mount", errno.EPERM, "CAP_SYS_ADMIN", 21),
        ("hostname", errno.EPERM, "CAP_SYS_ADMIN", 21),
        ("nice", errno.EACCES, "CAP_SYS_NICE", 23),
        ("rlimit", errno.EPERM, "CAP_SYS_RESOURCE", 24),
        ("oom_score_adj", errno.EACCES, "CAP_SYS_RESOURCE", 24),
    ],
)
def test_a_capability_is_lacking(made: Make, stage: str, number: int, name: str, bit: int) -> None:
    found = hint(made(caps=~(1 << bit) & (1 << 41) - 1), stage, number)
    assert found.cause == "capability"
    assert f"needs {name}, which this process lacks" in found
    assert cause(made(caps=1 << bit), stage, number) is None, "it has it: something else is in the way"
    assert cause(made(), stage, number, "user") is None, "in its own user namespace it has all"
    assert cause(made(), stage, errno.EINVAL) is None


def test_namespaces_need_rights(made: Make) -> None:
    assert "add 'user' to namespaces" in hint(made(), "clone", errno.EPERM, "net")
    assert cause(made(caps=1 << 21), "clone", errno.EPERM, "net") is None
    assert cause(made(caps=1 << 21, filtered=True), "clone", errno.EPERM, "net") == "seccomp"


# ---- mounts ----------------------------------------------------------------------------------------------------------

NEW_PROC = ("mount_new", b"proc", b"proc", b"/proc", b"", 0)
MASKED = PROC + "22 21 0:21 / /proc/sys rw - tmpfs tmpfs rw\n"


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        (PROC, None),
        (MASKED, ["/proc/sys"]),
        (PROC + "22 21 0:22 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw\n", None),
        (MASKED + "23 20 0:20 / /mnt/proc rw - proc proc rw\n", None),
        (MASKED + "23 20 0:20 /sys /mnt rw - proc proc rw\n", ["/proc/sys"]),
        (PROC + "22 21 0:23 / /proc rw - proc proc rw\n23 22 0:21 / /proc/keys rw - tmpfs tmpfs rw\n", ["/proc/keys"]),
        ("21 20 0:20 / /other rw - sysfs sysfs rw\n", None),
    ],
    ids=["all of it", "masked", "for good", "another one", "part of another", "on top of another", "none"],
)
def test_a_masked_proc(made: Make, mounts: str, expected: list[str] | None) -> None:
    machine = made(mounts=mounts)
    assert machine.covered("proc") == expected
    found = hint(machine, "mount", errno.EPERM, "user", "pid", step=NEW_PROC)
    assert (found is not None) == (expected is not None)
    if expected is not None:
        assert found.cause == "masked-proc"
        assert ", ".join(expected) in found.why


@pytest.mark.parametrize("step", [NEW_PROC, m.optional(NEW_PROC)], ids=["asked", "optional"])
def test_what_a_mount_needs(made: Make, step: tuple[Any, ...]) -> None:
    machine = made(mounts=MASKED)
    assert cause(machine, "mount", errno.EPERM, "user", "mount", step=step) == "proc-needs-pid"
    assert cause(machine, "mount", errno.EPERM, "user", "pid", step=step) == "masked-proc"
    assert cause(machine, "mount", errno.EPERM, "user", "pid", step=("mount_move", b"/a", b"/b")) is None
    sysfs = ("mount_new", b"sysfs", b"sysfs", b"/sys", b"", 0)
    assert cause(machine, "mount", errno.EPERM, "user", "mount", step=sysfs) == "sysfs-needs-net"


def test_a_file_system_that_is_not_there(made: Make) -> None:
    machine = made({"proc/filesystems": "nodev\tproc\n\text4\n"})
    overlay = ("mount_new", b"overlay", b"overlay", b"/o", b"", 0)
    found = hint(machine, "mount", errno.ENODEV, "user", step=overlay)
    assert found.cause == "kernel-option"
    assert "modprobe overlay" in found.remedy
    assert cause(machine, "mount", errno.ENODEV, "user", step=("mount_new", b"ext4", b"x", b"/o", b"", 0)) is None


# ---- cgroups, modules, memory ----------------------------------------------------------------------------------------

V1 = "40 20 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n41 20 0:31 / /b rw - cgroup cgroup rw,blkio\n"
V2 = "42 20 0:32 {root} {point} rw - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("mounts", "path", "expected"),
    [
        (V1, "3:memory:/\n", "cgroup-v1-only"),
        (PROC, "0::/\n", "no-cgroup2"),
        (V2.format(root="/elsewhere", point="/"), "0::/user\n", "cgroup-out-of-reach"),
        (V1 + V2.format(root="/", point="/"), "0::/\n", None),
    ],
)
def test_where_cgroups_are(made: Make, mounts: str, path: str, expected: str | None) -> None:
    found = kernel.no_cgroup_v2(made({"proc/thread-self/cgroup": path}, mounts=mounts))
    assert (None if found is None else found.cause) == expected


def test_controllers(made: Make) -> None:
    machine = made(mounts=V1)
    assert machine.v1_controllers() == {"memory": "/sys/fs/cgroup/memory", "io": "/b"}
    assert kernel.controller_missing(machine, "io").cause == "controller-on-v1"
    assert kernel.controller_missing(machine, "pids").cause == "controller-not-delegated"


CONTROLLERS = """#subsys_name\thierarchy\tnum_cgroups\tenabled
cpu\t0\t7\t1
blkio\t3\t7\t1
memory\t0\t7\t0
"""


@pytest.mark.parametrize(
    ("controller", "cause", "words"),
    [
        ("cpu", "controller-not-delegated", "do not pass the controller cpu on"),
        ("io", "controller-on-v1", "the controller io is bound to cgroup v1 (on this machine)"),
        ("memory", "controller-disabled", "the controller memory was switched off at boot"),
        ("pids", "controller-not-delegated", "or the kernel lacks it"),
    ],
)
def test_controllers_whose_mounts_are_not_to_be_seen(made: Make, controller: str, cause: str, words: str) -> None:
    found = kernel.controller_missing(made({"proc/cgroups": CONTROLLERS}), controller)
    assert found.cause == cause
    assert words in found


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.EACCES, "cgroup-not-delegated"), (errno.EROFS, "cgroup-read-only"), (errno.ENOSPC, "cgroup")],
)
def test_groups_that_cannot_be_made(number: int, expected: str) -> None:
    assert kernel.not_delegated("/sys/fs/cgroup/x", number).cause == expected


@pytest.mark.parametrize(
    ("number", "file", "expected"),
    [
        (errno.EACCES, None, "cgroup-not-delegated"),
        (errno.EPERM, "memory.max", "cgroup-not-delegated"),
        (errno.EROFS, "cgroup.procs", "cgroup-read-only"),
        (errno.EROFS, None, "cgroup-read-only"),
    ],
)
def test_errors_of_groups_have_the_probes_causes(number: int, file: str | None, expected: str) -> None:
    hint = _cgroup_files.refused(number, "/sys/fs/cgroup/x", file).hint
    assert isinstance(hint, Hint)
    assert hint.cause == expected
    assert "/sys/fs/cgroup/x" in hint.why


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("CONFIG_VETH=m\n", "all modules"),
        ("# CONFIG_VETH is not set\n", "use a kernel"),
        (None, "or use a kernel"),
    ],
)
def test_modules(made: Make, tmp_path: Path, line: str | None, words: str) -> None:
    machine = made()
    if line is not None:
        (tmp_path / "proc/config.gz").write_bytes(gzip.compress(line.encode()))
    found = kernel.kernel_module(machine, "veth", "CONFIG_VETH")
    assert found.cause == "kernel-option"
    assert words in found.remedy


def test_programs_in_memory(made: Make) -> None:
    assert kernel.unsealed(made({"proc/sys/vm/memfd_noexec": "2\n"})).cause == "memfd-noexec"
    assert kernel.unsealed(made({"proc/sys/vm/memfd_noexec": "1\n"})).cause == "memfd"


# ---- whatever happens ------------------------------------------------------------------------------------------------


@relaxed
@given(workloads(), st.integers(1, 200), st.sampled_from(m.STAGES), st.booleans())
def test_a_machine_that_tells_nothing(workload: linx.Workload, number: int, stage: str, entering: bool) -> None:
    """No error while an error is explained; and what is said is a sentence."""
    found = hint_for(stage, number, workload, entering=entering, machine=Machine("/nonexistent"))
    assert found is None or (found.strip() and not found.endswith(": "))
    assert not isinstance(found, Hint) or (found.cause and str(found).startswith(found.why))


def test_a_hint_is_a_text_with_parts() -> None:
    found = Hint("cause", "it is so", "do that", "; ")
    assert found == "it is so; do that"
    copy = pickle.loads(pickle.dumps(found))
    assert (copy, copy.cause, copy.why, copy.remedy) == (found, "cause", "it is so", "do that")
    alone = pickle.loads(pickle.dumps(Hint("cause", "it is so")))
    assert (alone, alone.remedy) == ("it is so", "")


def test_an_error_keeps_the_parts_of_its_hint() -> None:
    error = linx.SetupError(1, "clone", "user", Hint("chroot", "why", "remedy"))
    assert getattr(pickle.loads(pickle.dumps(error)).hint, "cause", None) == "chroot"
