"""Causes: who is refused what, as a sysctl, a security module, a chroot or a seccomp filter has it. See `_causes`."""

from __future__ import annotations

import errno
import os

from linx_trio._machine import Machine
from linx_trio.errors import Hint

DENIED = (errno.EPERM, errno.EACCES)


def user_namespaces_refused(machine: Machine) -> Hint | None:
    """Why ``clone(CLONE_NEWUSER)`` is EPERM."""
    return (
        _switched_off(machine)
        or apparmor_switch(machine)
        or _chroot(machine)
        or _unmapped(machine)
        or confined(machine, "user namespaces")
        or filtered(machine, "user namespaces")
    )


def _switched_off(machine: Machine) -> Hint | None:
    if machine.sysctl("kernel.unprivileged_userns_clone") != "0" or machine.has("CAP_SYS_ADMIN"):
        return None
    return Hint(
        "userns-clone-sysctl",
        "kernel.unprivileged_userns_clone is 0: user namespaces are for root only here",
        "let root call 'sysctl kernel.unprivileged_userns_clone=1'",
        "; ",
    )


def apparmor_switch(machine: Machine) -> Hint | None:
    if machine.sysctl("kernel.apparmor_restrict_unprivileged_userns") in (None, "", "0"):
        return None
    profile = machine.apparmor_profile() or "unconfined"
    is_exempt = profile.endswith("(unconfined)")  # a profile that is there to give the rule, as Ubuntu's are
    if machine.has("CAP_SYS_ADMIN") or is_exempt:
        return None
    return Hint(
        "apparmor-userns",
        "AppArmor restricts unprivileged user namespaces here (kernel.apparmor_restrict_unprivileged_userns)",
        "give linx-agent an AppArmor profile with the rule 'userns,' (docs/doctor.md has one), or let root set that "
        "sysctl to 0",
    )


def _chroot(machine: Machine) -> Hint | None:
    if not machine.is_chrooted():
        return None
    return Hint(
        "chroot",
        "this process is in a chroot, where the kernel refuses user namespaces",
        "enter the directory with pivot_root(2) instead: root= does",
    )


def _unmapped(machine: Machine) -> Hint | None:
    if machine.is_mapped(os.geteuid(), os.getegid()):
        return None
    return Hint(
        "unmapped-ids",
        "this process has ids that its own user namespace does not map",
        "run it with ids that are in /proc/self/uid_map and gid_map",
    )


def confined(machine: Machine, what: str) -> Hint | None:
    profile = machine.apparmor_profile()
    if profile is None or not profile.endswith("(enforce)"):
        return None
    return Hint(
        "apparmor-profile",
        f"the AppArmor profile {profile.removesuffix(' (enforce)')!r} of this process refuses {what}",
        "change the profile; of a container it is taken away with --security-opt apparmor=unconfined",
    )


def filtered(machine: Machine, what: str) -> Hint | None:
    if not machine.is_filtered():
        return None
    return Hint(
        "seccomp",
        f"the seccomp filter of this process, most likely a container's, refuses {what}",
        "start the container with --security-opt seccomp=unconfined, or with a profile that allows clone, clone3, "
        "unshare, setns, mount and pivot_root",
    )


def more_rights(capability: str) -> str:
    """How this process gets it."""
    if os.geteuid() != 0:
        return "run as root"
    name = capability.removeprefix("CAP_") if capability.startswith("CAP_") else "NAME"
    return f"have this process started with it (docker run --cap-add {name})"
