"""Why the kernel probably said no, and what to do: what `_causes` finds in this machine; and where it finds nothing,
what is usual for the stage and the errno.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from linx_trio._causes import Refusal, candidates, recognise
from linx_trio._machine import Machine
from linx_trio._proto.messages import NAMESPACES
from linx_trio._workload import Workload


def hint_for(
    stage: str,
    error: int,
    workload: Workload | None = None,
    *,
    step: Sequence[Any] = (),
    entering: bool = False,
    machine: Machine | None = None,
) -> str | None:
    """One or two sentences, or `None` where nothing better than errno's text is known. A `Hint` where the cause has
    been recognised. Arguments as in `Refusal`.
    """
    refusal = Refusal(stage, error, workload, step, entering, machine or Machine())
    cause = recognise(refusal)
    if cause is not None:
        return cause
    found = _HINTS.get((stage, error))
    return found if found is None or isinstance(found, str) else found(refusal)


def _clone_permission(refusal: Refusal) -> str:
    what = "user namespaces are" if "user" in refusal.kinds else "it is"
    return f"{what} refused to this process, and nothing here shows why: perhaps a security module does, see dmesg"


_NOT_IN_PATH = "it is in no directory of the workload's PATH"


def _program(refusal: Refusal) -> str | None:
    workload = refusal.workload
    if workload is None:
        return None
    is_path = "/" in workload.arguments[0]
    if refusal.entering or "mount" in refusal.kinds:  # its files need not be the caller's, so nothing is looked up
        missing = "there is no such file" if is_path else _NOT_IN_PATH
        return (
            f"in the workload's own root {missing}; or the file is there, and what is missing in that root is the "
            "interpreter in its first line ('#!'), or its dynamic loader"
        )
    for path in candidates(workload):
        if os.path.exists(path):
            return f"{path} exists: then it is the interpreter in its first line, or the dynamic loader, that does not"
    return None if is_path else _NOT_IN_PATH


_NOT_EXECUTABLE = (
    "the file has no execute permission for these ids, is a directory, or lies on a file system mounted noexec"
)
_NO_MOUNT_POINT = "it is no mount point: bind it onto itself first"
_INVALID_MOUNTS = {
    "mount_bind": "a directory can be bound on a directory only, a file on a file; or the source is unbindable",
    "mount_new": (
        "the kernel knows this file system, but not these options or flags; or there is a file where it is to be "
        "mounted"
    ),
    "mount_remount": f"{_NO_MOUNT_POINT}; or this kernel does not know one of the flags",
    "mount_propagation": _NO_MOUNT_POINT,
    "mount_move": (
        "what is to be moved is no mount point, is mounted on a shared one, or is locked together with the mounts of "
        "another user namespace; or it would get into itself, or a file onto a directory, or a directory onto a file"
    ),
    "mount_umount": "it is no mount point, or is locked together with the mounts of another user namespace",
}


def _invalid_mount(refusal: Refusal) -> str:
    match list(refusal.asked):
        case ["mount_bind", _, _, _, 0]:
            return (
                f"{_INVALID_MOUNTS['mount_bind']}; or recursive=False would uncover what is mounted below it, which a "
                "user namespace may not: then bind all of it"
            )
        case ["mount_new", b"overlay", *_]:
            return (
                f"{_INVALID_MOUNTS['mount_new']}; or upper and work do not lie beside each other on one file system, "
                "or it is none for them (an overlay, NFS)"
            )
        case [str(name), *_] if name in _INVALID_MOUNTS:
            return _INVALID_MOUNTS[name]
    return "the source is unbindable, or locked together with the mounts of another user namespace"


_TRACE = "opening another process' namespaces needs the rights of ptrace(2) over it: the same user, or CAP_SYS_PTRACE"
_JOIN = "joining it needs CAP_SYS_ADMIN in the user namespace it belongs to: join 'user' too, be root, or leave it out"
_SAME_CGROUP = "leave the target's cgroup alone with join_cgroup=False"
_PROCESS_LIMIT = "a limit on the number of processes is reached: RLIMIT_NPROC, or pids.max of the cgroup"
_NICE = "a lower nice value needs CAP_SYS_NICE, or a higher RLIMIT_NICE"

_HINTS: Mapping[tuple[str, int], str | Callable[[Refusal], str | None]] = {
    **{(f"open_ns_{name}", number): _TRACE for name in NAMESPACES for number in (errno.EACCES, errno.EPERM)},
    **{(f"open_ns_{name}", errno.ENOENT): "there is no such process (any more)" for name in NAMESPACES},
    **{(f"setns_{name}", errno.EPERM): _JOIN for name in NAMESPACES},
    ("cgroup", errno.ENOENT): f"no mount of cgroup v2 here reaches it: {_SAME_CGROUP}",
    ("cgroup", errno.EACCES): (
        "moving a process needs write permission on cgroup.procs, there and in the nearest common ancestor: "
        + _SAME_CGROUP
    ),
    ("cgroup", errno.EBUSY): f"a cgroup that has controllers for its children takes no processes: {_SAME_CGROUP}",
    ("clone", errno.EPERM): _clone_permission,
    ("clone", errno.EACCES): _clone_permission,
    ("clone", errno.EINVAL): "this kernel does not take these namespaces together, or not one of them",
    ("clone", errno.EAGAIN): _PROCESS_LIMIT,
    ("fork", errno.EAGAIN): _PROCESS_LIMIT,
    ("fork", errno.EMFILE): "too many open files: raise RLIMIT_NOFILE (ulimit -n)",
    ("fork", errno.ENFILE): "too many open files on this machine: see fs.file-max",
    ("execve", errno.ENOENT): _program,
    ("execve", errno.EACCES): _NOT_EXECUTABLE,
    ("execve", errno.EPERM): _NOT_EXECUTABLE,
    ("execve", errno.ENOEXEC): "no program of this machine; a script needs a first line like '#!/bin/sh'",
    ("execve", errno.E2BIG): "argv and env are too long for the kernel (ARG_MAX; 128 KiB for any one string)",
    ("execve", errno.EAGAIN): "RLIMIT_NPROC of the new uid is exceeded",
    ("execve", errno.ETXTBSY): "somebody has the program open for writing",
    ("rlimit", errno.EPERM): "raising a hard limit needs CAP_SYS_RESOURCE",
    ("rlimit", errno.EINVAL): "the soft limit is above the hard limit",
    ("nice", errno.EACCES): _NICE,
    ("nice", errno.EPERM): _NICE,
    ("setgroups", errno.EPERM): (
        "groups need CAP_SETGID (in a user namespace also a gid map and setgroups 'allow'); "
        "a uid= of somebody else without groups= drops the caller's"
    ),
    ("setgid", errno.EPERM): "another gid needs CAP_SETGID",
    ("setuid", errno.EPERM): "another uid needs CAP_SETUID",
    ("setgroups", errno.EINVAL): "one of the groups is not mapped in the workload's user namespace",
    ("setgid", errno.EINVAL): "the gid is not mapped in the workload's user namespace",
    ("setuid", errno.EINVAL): "the uid is not mapped in the workload's user namespace",
    ("mount", errno.EPERM): (
        "mounting needs CAP_SYS_ADMIN in the mount namespace's user namespace; there the host's flags are locked, proc "
        "needs a fresh pid namespace, and sysfs a fresh net namespace"
    ),
    ("mount", errno.EEXIST): (
        "something else is there: a link that leads elsewhere or nowhere, or, where a File is to be, a device, a FIFO "
        "or a socket, which is not written to"
    ),
    ("mount", errno.ENOENT): "the source does not exist, or the target cannot be made",
    ("unshare", errno.EPERM): "a fresh namespace needs CAP_SYS_ADMIN in the user namespace that was entered",
    ("setns_net", errno.EINVAL): "the file there is no network namespace",
    ("netlink", errno.EPROTONOSUPPORT): "this kernel is built without that netlink protocol",
    ("time_offsets", errno.EPERM): "time namespaces need CAP_SYS_ADMIN, offsets CAP_SYS_TIME: be root, or add 'user'",
    ("time_offsets", errno.ERANGE): "with that offset the clock would be negative, or beyond what the kernel counts",
    ("time_offsets", errno.EINVAL): "this kernel is built without time namespaces, or does not take that offset",
    ("time_offsets", errno.ENOENT): "this kernel is built without time namespaces",
    ("mount", errno.EINVAL): _invalid_mount,
    ("mount", errno.ENODEV): "this kernel does not know that file system (/proc/filesystems)",
    ("pivot_root", errno.EINVAL): (
        "the new root must be a mount point that is not shared, and neither may be what it is mounted on: leave out "
        "Propagation('/', 'shared')"
    ),
    ("sysctl", errno.ENOENT): "there is no such sysctl in these namespaces",
    ("sysctl", errno.EACCES): "it cannot be changed with these rights, or in these namespaces",
    ("sysctl", errno.EINVAL): "the kernel does not take that value",
    ("oom_score_adj", errno.EACCES): "lowering it needs CAP_SYS_RESOURCE",
    ("cpu_affinity", errno.EINVAL): "none of these CPUs is there, or allowed by the cgroup (cpuset)",
    ("cap_drop_bounding", errno.EPERM): "dropping needs CAP_SETPCAP: be root, or add 'user' to namespaces",
    ("cap_set_thread", errno.EPERM): (
        "the permitted set can only shrink: what the caller does not have, or what has been given up since, cannot be "
        "kept; the effective set must lie within it; and what becomes inheritable must be in the bounding set, without "
        "CAP_SETPCAP also in the permitted one"
    ),
    ("cap_set_ambient", errno.EPERM): "ambient capabilities must be permitted and inheritable first",
    ("seccomp_install", errno.EACCES): "without CAP_SYS_ADMIN a filter needs no_new_privs=True",
    ("hostname", errno.EPERM): "the hostname needs CAP_SYS_ADMIN in the uts namespace's user namespace",
    ("domainname", errno.EPERM): "the domain name needs CAP_SYS_ADMIN in the uts namespace's user namespace",
    ("seccomp_install", errno.EINVAL): "this kernel does not take that program, or one of its flags",
    ("seccomp_install", errno.ENOSPC): "16 filters can be installed",
    ("chdir", errno.EACCES): "the workload's own ids (uid=, gid=, groups=) may not enter it",
    ("chdir", errno.ENOENT): (
        "it is looked for in the workload's own file system, with its root and mounts; without cwd= it is the "
        "caller's directory, which those may hide"
    ),
    ("connect_unix", errno.ENOENT): "nobody has bound a socket there: bind and listen before the workload is spawned",
    ("connect_unix", errno.ECONNREFUSED): "there is a socket, but nobody listens on it (any more)",
    ("connect_unix", errno.ENAMETOOLONG): "unix(7) takes 107 bytes: use a shorter path, or a relative one",
    ("connect_unix", errno.EPROTOTYPE): "the socket there is none for streams (SOCK_STREAM)",
    ("connect_unix", errno.EACCES): "connecting needs write permission on the socket, and search permission on the way",
    ("request", errno.EMFILE): "too many open files: raise RLIMIT_NOFILE (ulimit -n)",
    ("request", errno.EINVAL): "the agent did not understand the request: is it of another version?",
}  # fmt: skip
