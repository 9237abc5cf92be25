"""What a workload takes over from the thread that spawns it, read at that moment.

The zygote inherits most of it when it starts: ids, groups, capabilities, namespaces, root, session, CPU affinity.
That part is the `identity`: when the calling thread's differs from the zygote's, a new zygote is started. (A thread
can be in a network namespace of its own, see ``setns(2)``, and its workloads belong there too.) The rest is sent
along with each request.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

if os.name == "posix":
    import resource

_STATUS_FIELDS = re.compile(
    rb"^(?:Umask|Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp|Seccomp_filters|Cpus_allowed)"
    rb":\t(.*)$",
    re.MULTILINE,
)
_NAMESPACE_LINKS = tuple(
    f"/proc/thread-self/ns/{name}"
    for name in ("cgroup", "ipc", "mnt", "net", "pid_for_children", "time_for_children", "user", "uts")
)

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
        """Reads it. Raises `OSError` where ``/proc`` is not mounted."""
        umask, *privileges = _STATUS_FIELDS.findall(_read("/proc/thread-self/status"))
        root = os.stat("/")
        identity = (
            tuple(privileges),
            tuple(_link(name) for name in _NAMESPACE_LINKS),
            (root.st_dev, root.st_ino),
            os.getsid(0),
        )
        limits = tuple(resource.getrlimit(number) for number in range(16))
        return Caller(identity, int(umask, 8), os.getpriority(os.PRIO_PROCESS, 0), limits)


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 16384)
    finally:
        os.close(fd)


def _link(name: str) -> str | None:
    try:
        return os.readlink(name)
    except OSError:  # a kernel without this kind
        return None
