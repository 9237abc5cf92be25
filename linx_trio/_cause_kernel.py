"""Causes: what this kernel was built with, or set to: cgroups, modules, programs in memory. See `_causes`."""

from __future__ import annotations

import errno
import os

from linx_trio._cause_rights import DENIED
from linx_trio._machine import Machine
from linx_trio.errors import Hint

# ---- control groups --------------------------------------------------------------------------------------------------

DELEGATE = (
    "have it delegated: run under 'systemd-run --user --scope -p Delegate=yes', or let root chown the directory, its "
    "cgroup.procs and cgroup.subtree_control (Cgroup.delegate); or pass one that is as cgroup="
)


def no_cgroup_v2(machine: Machine) -> Hint | None:
    """Why the caller's own cgroup (v2) is not to be found."""
    if machine.own_cgroup() is not None:
        return None
    v1 = sorted(set(machine.v1_controllers().values()))
    if not machine.has_cgroup_v2():
        if v1:
            return Hint(
                "cgroup-v1-only",
                f"only cgroup v1 is mounted here ({v1[0]}, …)",
                "boot with systemd.unified_cgroup_hierarchy=1, or let root call 'mount -t cgroup2 none DIRECTORY'",
            )
        return Hint("no-cgroup2", "no cgroup hierarchy is mounted here", "mount -t cgroup2 none /sys/fs/cgroup")
    return Hint(
        "cgroup-out-of-reach",
        "no mount of cgroup v2 here reaches this process' own cgroup",
        "start the container with --cgroupns=private, so that it has a view of its own",
    )


def controller_missing(machine: Machine, controller: str) -> Hint:
    """Why a cgroup has not this controller to give."""
    hierarchy, enabled = machine.controller(controller) or ("0", True)
    if not enabled:
        return Hint(
            "controller-disabled",
            f"the controller {controller} was switched off at boot (cgroup_disable=)",
            "boot without that",
        )
    where = machine.v1_controllers().get(controller)
    if where is not None or hierarchy != "0":  # the latter also where its mount is not to be seen, as in containers
        return Hint(
            "controller-on-v1",
            f"the controller {controller} is bound to cgroup v1 ({where or 'on this machine'})",
            "boot with cgroup_no_v1=all, or under systemd with systemd.unified_cgroup_hierarchy=1",
        )
    return Hint(
        "controller-not-delegated",
        f"the cgroups above do not pass the controller {controller} on, or the kernel lacks it",
        f"let root write '+{controller}' to cgroup.subtree_control in each of them; with systemd, set "
        "Delegate=yes for user@.service",
    )


def not_delegated(directory: str, number: int) -> Hint:
    """Why no cgroup can be made there, or no process moved."""
    if number == errno.EROFS:
        return Hint(
            "cgroup-read-only",
            f"{directory} is mounted read-only, as in most containers",
            "start the container with a writable cgroup (podman run --cgroups=split, docker run --privileged)",
        )
    if number in DENIED:
        return Hint("cgroup-not-delegated", f"{directory} is not this user's to change", DELEGATE)
    return Hint(
        "cgroup", f"{directory}: {os.strerror(number)}", "see cgroups(7), 'cgroup.type' and 'no internal processes'"
    )


# ---- modules ---------------------------------------------------------------------------------------------------------


def kernel_module(machine: Machine, module: str, option: str) -> Hint:
    """What the kernel says EOPNOTSUPP to, for want of a module."""
    has = machine.option(option)
    remedy = {
        "n": f"use a kernel with {option}",
        "m": f"let root call 'modprobe {module}', or install the package with all modules of this kernel",
    }.get(has or "", f"let root call 'modprobe {module}', or use a kernel with {option}")
    return Hint("kernel-option", f"this kernel has no {module}, or not its module", remedy)


# ---- sealed copies ---------------------------------------------------------------------------------------------------


def unsealed(machine: Machine) -> Hint:
    """Why the agent does not run from memory, which entering others' namespaces takes."""
    value = machine.sysctl("vm.memfd_noexec")
    if value == "2":
        return Hint(
            "memfd-noexec",
            "the agent must run from a sealed copy in memory, and vm.memfd_noexec is 2 in this PID namespace",
            "let root set it to 1, or to 0",
        )
    return Hint(
        "memfd",
        "the agent must run from a sealed copy in memory, which this kernel refuses",
        "see vm.memfd_noexec, and what security modules say of memfd_create(2)",
    )
