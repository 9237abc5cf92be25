"""What a workload takes over from the thread that spawns it, read at that moment.

The zygote inherits most of it when it starts: ids, groups, capabilities, namespaces, cgroup, root, session, scheduling,
CPU affinity. That part is the `identity`: when the calling thread's differs from those of the zygotes that there are, a
new one is started. (A thread can be in a network namespace of its own, see ``setns(2)``, and its workloads belong there
too.) The rest is sent along with each request.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass

from linx_trio.errors import NotSupported

if os.name == "posix":
    import resource

_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid_for_children", "time_for_children", "user", "uts")

Limits = tuple[tuple[int, int], ...]
"""(soft, hard) by the kernel's numbers for the resources; -1 is ``RLIM_INFINITY``."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The calling thread, as it is now.

    Attributes:
        identity: what only a new zygote can take over.
        umask: see ``umask(2)``.
        nice: see ``getpriority(2)``.
        limits: see ``getrlimit(2)``.
    """

    identity: tuple[object, ...]
    umask: int
    nice: int
    limits: Limits

    @staticmethod
    def now() -> Caller:
        """Reads it; the same object as before, where nothing has changed: this is done at every spawn. Raises
        `NotSupported` where ``/proc`` is not mounted.
        """
        global _latest
        root = os.stat("/")
        thread = _open("/proc/thread-self", os.O_PATH)
        try:
            status = read_file("status", thread)
            identity = (
                tuple(map(functools.partial(os.readlink, dir_fd=thread), _namespace_links())),
                root.st_dev,
                root.st_ino,
                os.getsid(0),
                os.sched_getscheduler(0),
                os.sched_getparam(0).sched_priority,
                read_file("oom_score_adj", thread),
                read_file("cgroup", thread),
            )
        finally:
            os.close(thread)
        seen = (identity, os.getpriority(os.PRIO_PROCESS, 0), tuple(map(resource.getrlimit, range(16))))
        latest = _latest
        if latest is not None and latest[0] == seen and all(map(status.__contains__, latest[1])):
            return latest[2]
        lines = _lines_of(status)
        umask = int(lines[0].removeprefix(_UMASK), 8)
        caller = Caller((lines[1:], *identity), umask, *seen[1:])
        _latest = seen, lines, caller
        return caller


_latest: tuple[object, tuple[bytes, ...], Caller] | None = None
"""What was seen last, of whatever thread, and the lines of its status that count."""

_UMASK = b"\nUmask:\t"


def _lines_of(status: bytes) -> tuple[bytes, ...]:
    """The umask, the ids, the groups, and all from capabilities to CPUs, out of ``/proc/thread-self/status``
    (``proc(5)``): each with the line breaks round it, so that nothing else there reads like it.
    """
    umask = status.find(_UMASK)
    ids = status.find(b"\nUid:\t", umask)
    after_ids = status.find(b"\nFDSize:\t", ids)
    groups = status.find(b"\nGroups:\t", after_ids)
    privileges = status.find(b"\nCapInh:\t", groups)
    return (
        status[umask : status.find(b"\n", umask + 1) + 1],
        status[ids : after_ids + 1],
        status[groups : status.find(b"\n", groups + 1) + 1],
        status[privileges : status.find(b"\nCpus_allowed_list:", privileges) + 1],
    )


def _open(path: str, flags: int, directory: int | None = None) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        raise NotSupported("spawning", "it needs /proc, which is not mounted here: mount -t proc proc /proc") from None


def read_file(path: str, directory: int | None = None) -> bytes:
    """A small file of /proc. Raises `NotSupported` where that is not mounted."""
    fd = _open(path, os.O_RDONLY, directory)
    try:
        return os.read(fd, 16384)
    finally:
        os.close(fd)


def environment() -> Mapping[bytes, bytes]:
    """`os.environb`; or the plain dict that it wraps, for it converts each item that is looked at or looked for."""
    wrapped = getattr(os.environb, "_data", None)
    return wrapped if isinstance(wrapped, dict) else os.environb


@functools.cache
def _namespace_links() -> tuple[str, ...]:
    """Those of the kinds that this kernel has."""
    links = (f"ns/{name}" for name in _NAMESPACES)
    return tuple(link for link in links if os.path.lexists(f"/proc/thread-self/{link}"))
