"""Causes: what in this machine made the kernel say no.

errno is one number for many causes, and the kernel tells no more. But each cause leaves traces that anybody may read: a
sysctl, a missing file, a mount. So at the time of the error the machine is asked for them (`Machine`), in the order of
what proves most. Each function here recognises what it is about and is silent otherwise; `recognise` is the way in, for
errors and for `linx_trio.probe` alike. Where nothing is found, `_hints` has what is usual.

A cause has a name, which does not change: ``apparmor-userns``, ``max-namespaces``, …; docs/doctor.md lists them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from linx_trio._cause_programs import not_executable, own_groups
from linx_trio._cause_rights import DENIED, apparmor_switch, confined, filtered, more_rights, user_namespaces_refused
from linx_trio._machine import NAMESPACE_FILES, Machine
from linx_trio.errors import Hint

if TYPE_CHECKING:
    from linx_trio._workload import Workload


@dataclass(frozen=True, slots=True)
class Refusal:
    """What was refused.

    Attributes:
        stage, errno: as in `SetupError`.
        workload: what was to run.
        step: what the agent was told, where it was a step.
        entering: whether it was to run inside another process' namespaces.
        machine: who is asked for evidence.
    """

    stage: str
    errno: int
    workload: Workload | None = None
    step: Sequence[Any] = ()
    entering: bool = False
    machine: Machine = field(default_factory=Machine)

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset() if self.workload is None else self.workload.namespace_names

    @property
    def asked(self) -> Sequence[Any]:
        """The step itself, also of one that may be given up."""
        return self.step[1] if self.step[:1] == ("optional",) else self.step

    @property
    def in_user_namespace(self) -> bool:
        """Whether it was refused to somebody who has all rights there are, in a user namespace not the caller's."""
        return self.entering or "user" in self.kinds


def recognise(refusal: Refusal) -> Hint | None:
    """The cause, if the machine shows one."""
    for found in _BY_STAGE.get(refusal.stage, ()):
        hint = found(refusal)
        if hint is not None:
            return hint
    return _restricted_by_apparmor(refusal) or _capability(refusal)


# ---- namespaces ------------------------------------------------------------------------------------------------------


def _clone_denied(refusal: Refusal) -> Hint | None:
    machine = refusal.machine
    if refusal.errno not in DENIED:  # the kernel's own word is EPERM; security modules say EACCES too
        return None
    if "user" in refusal.kinds:
        return user_namespaces_refused(machine)
    if refusal.kinds and not machine.has("CAP_SYS_ADMIN"):
        why = "these namespaces need CAP_SYS_ADMIN, which this process lacks"
        return Hint("capability", why, "run as root, or add 'user' to namespaces")
    return filtered(machine, "it")


def _restricted_by_apparmor(refusal: Refusal) -> Hint | None:
    """Ubuntu lets the namespace be made, and refuses what is done in it."""
    is_inside = "user" in refusal.kinds and refusal.stage in _INSIDE_STAGES
    return apparmor_switch(refusal.machine) if is_inside and refusal.errno in DENIED else None


_INSIDE_STAGES = frozenset({
    "uid_map", "gid_map", "mount", "pivot_root", "sysctl", "hostname", "domainname", "setgroups", "setgid", "setuid",
    "unshare", "time_offsets", "cap_drop_bounding", "netlink",
})  # fmt: skip
"""What is done by the rights that a user namespace gives."""


def _clone3(refusal: Refusal) -> Hint | None:
    if refusal.errno != errno.ENOSYS:
        return None
    if refusal.machine.is_filtered():
        return Hint(
            "seccomp-clone3",
            "clone3(2) is refused by the seccomp filter of this process, as in Docker's containers",
            "start the container with --security-opt seccomp=unconfined, or with a profile that allows clone3",
        )
    return Hint("no-clone3", "this kernel has no clone3(2), or what plays its part has not", "use Linux 5.11 or newer")


def _too_many(refusal: Refusal) -> Hint | None:
    if refusal.errno not in (errno.ENOSPC, errno.EUSERS) or not refusal.kinds:
        return None
    names = [f"user.max_{NAMESPACE_FILES.get(kind, kind)}_namespaces" for kind in sorted(refusal.kinds)]
    zero = [name for name in names if refusal.machine.sysctl(name) == "0"]
    if zero:
        verb = "is" if len(zero) == 1 else "are"
        remedy = f"let root call 'sysctl {zero[0]}=10000'"
        if refusal.machine.is_nested():
            remedy += ", in the user namespace of this process; inside of a sandbox that is not to be had"
        return Hint("max-namespaces", f"{', '.join(zero)} {verb} 0 here", remedy)
    return Hint(
        "max-namespaces",
        f"a limit on the number of namespaces is reached: {', '.join(names)}, here or in a user namespace above",
        "raise them, or end what holds namespaces; user and PID namespaces nest 32 deep",
        "; ",
    )


_OPTIONS = {
    "user": "CONFIG_USER_NS", "mount": "CONFIG_NAMESPACES", "uts": "CONFIG_UTS_NS", "ipc": "CONFIG_IPC_NS",
    "cgroup": "CONFIG_CGROUPS", "net": "CONFIG_NET_NS", "time": "CONFIG_TIME_NS", "pid": "CONFIG_PID_NS",
}  # fmt: skip


def _no_such_kind(refusal: Refusal) -> Hint | None:
    kinds = refusal.kinds if refusal.stage == "clone" else {"time"}
    missing = sorted(kind for kind in kinds if not refusal.machine.has_namespace(kind))
    if refusal.errno not in (errno.EINVAL, errno.ENOENT) or not missing:
        return None
    options = ", ".join(_OPTIONS[kind] for kind in missing)
    return Hint(
        "kernel-option",
        f"this kernel is built without namespaces of kind {', '.join(missing)}",
        f"use one with {options}",
    )


# ---- mounts ----------------------------------------------------------------------------------------------------------


def _fstype(refusal: Refusal) -> str | None:
    match list(refusal.asked):
        case ["mount_new", fstype, *_]:
            return os.fsdecode(fstype)
    return None


_PROPER = {"proc": "pid", "sysfs": "net", "cgroup2": "cgroup", "mqueue": "ipc"}
"""What shows a namespace of a kind: only who owns that namespace may mount it."""


def _mount_denied(refusal: Refusal) -> Hint | None:
    fstype, machine = _fstype(refusal), refusal.machine
    if refusal.errno not in DENIED or not refusal.in_user_namespace:
        return None
    kind = _PROPER.get(fstype or "")
    if fstype is not None and kind is not None and refusal.errno == errno.EPERM:
        if kind not in refusal.kinds:
            why = f"in a user namespace {fstype} needs a fresh {kind} namespace"
            return Hint(f"{fstype}-needs-{kind}", why, f"add {kind!r} to namespaces")
        hidden = machine.covered(fstype) if fstype in ("proc", "sysfs") else None
        if hidden:
            return _masked(fstype, hidden)
    return apparmor_switch(machine) or confined(machine, "mounts") or filtered(machine, "mounts")


def _masked(fstype: str, hidden: Sequence[str]) -> Hint:
    shown = ", ".join(hidden[:3]) + (", …" if len(hidden) > 3 else "")
    option = " (docker --security-opt systempaths=unconfined, podman --security-opt unmask=ALL)"
    return Hint(
        f"masked-{fstype}",
        f"parts of the caller's own {fstype} are covered ({shown}), so the kernel shows it no other",
        f"have the container started without such masks{option if fstype == 'proc' else ''}, or do without it",
    )


def _unknown_filesystem(refusal: Refusal) -> Hint | None:
    fstype = _fstype(refusal)
    if refusal.errno != errno.ENODEV or fstype is None or refusal.machine.has_filesystem(fstype) is not False:
        return None
    return Hint(
        "kernel-option",
        f"this kernel does not know the file system {fstype!r} (/proc/filesystems)",
        f"let root load its module (modprobe {fstype}), or use a kernel that has it",
    )


# ---- programs --------------------------------------------------------------------------------------------------------


def _program(refusal: Refusal) -> Hint | None:
    workload = refusal.workload
    if refusal.errno not in DENIED or workload is None or refusal.entering or workload.root or workload.mounts:
        return None  # the workload's files are not the caller's
    uid = os.geteuid() if workload.uid is None else workload.uid
    gids = own_groups() if workload.uid is None else {workload.gid, *(workload.groups or ())}
    for path in candidates(workload):
        hint = not_executable(path, uid, gids)
        if hint is not None:
            return hint
    return None


def candidates(workload: Workload) -> Iterator[str]:
    """The files that its program may be, where the workload's files are the caller's."""
    program, cwd = workload.arguments[0], str(workload.cwd or "")
    if "/" in program:
        yield os.path.join(cwd, program)
        return
    environment: Mapping[Any, Any] = os.environ if workload.env is None else workload.env
    for directory in str(environment.get("PATH", os.defpath)).split(os.pathsep):
        path = os.path.join(cwd, directory, program)
        if os.path.lexists(path):
            yield path


# ---- rights ----------------------------------------------------------------------------------------------------------

_INSIDE = "run as root, or add 'user' to namespaces"
_NEEDED: dict[str, tuple[str, str]] = {
    "setgroups": ("CAP_SETGID", "run as root; a uid= of somebody else without groups= drops the caller's"),
    "setgid": ("CAP_SETGID", "run as root, or leave gid= out"),
    "setuid": ("CAP_SETUID", "run as root, or leave uid= out"),
    "rlimit": ("CAP_SYS_RESOURCE", "run as root, or ask for no more than the hard limit is (ulimit -H)"),
    "nice": ("CAP_SYS_NICE", "run as root, or have RLIMIT_NICE raised"),
    "oom_score_adj": ("CAP_SYS_RESOURCE", "run as root, or lower it no further than it was"),
    "hostname": ("CAP_SYS_ADMIN", _INSIDE),
    "domainname": ("CAP_SYS_ADMIN", _INSIDE),
    "mount": ("CAP_SYS_ADMIN", _INSIDE),
    "pivot_root": ("CAP_SYS_ADMIN", _INSIDE),
    "time_offsets": ("CAP_SYS_ADMIN", "run as root (with CAP_SYS_TIME), or add 'user' to namespaces"),
    "cap_drop_bounding": ("CAP_SETPCAP", _INSIDE),
}
"""Stages that are a matter of one capability, unless the workload has a user namespace of its own."""


def _capability(refusal: Refusal) -> Hint | None:
    needed = _NEEDED.get(refusal.stage)
    if needed is None or refusal.errno not in DENIED or refusal.in_user_namespace:
        return None
    capability, remedy = needed
    if refusal.machine.has(capability):
        return None
    remedy = remedy.replace("run as root", more_rights(capability))
    return Hint("capability", f"it needs {capability}, which this process lacks", remedy)


_BY_STAGE: Mapping[str, Sequence[Callable[[Refusal], Hint | None]]] = {
    "clone": (_clone_denied, _clone3, _too_many, _no_such_kind),
    "time_offsets": (_no_such_kind,),
    "mount": (_mount_denied, _unknown_filesystem),
    "pivot_root": (_mount_denied,),
    "execve": (_program,),
}
