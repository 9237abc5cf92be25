"""What happens to a session, as data: events, outcomes, usage, and the snapshot `Info`.

All are frozen, slotted, picklable dataclasses; ``match`` statements work on them.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Aborted", "Event", "Exited", "Failed", "Info", "Outcome", "Ready", "Running", "Signaled", "Usage"]


@dataclass(frozen=True, slots=True)
class Ready:
    """The workload is parked at the checkpoint; `host_pid` is its pid as the host sees it."""

    host_pid: int


@dataclass(frozen=True, slots=True)
class Running:
    """``execve(2)`` has succeeded."""


@dataclass(frozen=True, slots=True)
class Exited:
    """The workload ended with exit status `code`."""

    code: int


@dataclass(frozen=True, slots=True)
class Signaled:
    """The workload was killed by signal `signum`, see ``signal(7)``."""

    signum: int
    core_dumped: bool = False


@dataclass(frozen=True, slots=True)
class Aborted:
    """The workload was discarded before it ran."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The workload could not be started: `errno` at `stage`, as in `SetupError`. A session whose agent vanished has
    errno ``ECONNRESET`` at stage ``agent``."""

    errno: int
    stage: str


Event = Ready | Running | Exited | Signaled | Aborted | Failed
Outcome = Exited | Signaled | Aborted


@dataclass(frozen=True, slots=True)
class Usage:
    """What the workload, and those of its children that it waited for, used (``getrusage(2)``).

    Attributes:
        user_time: CPU time in user mode, in seconds.
        system_time: CPU time in the kernel, in seconds.
        wall_time: from its release at the checkpoint to its end, in seconds; 0 if it never ran.
        max_rss: largest resident set of any one process, in bytes.
        oom_killed: whether the kernel killed it, or something of it, for want of memory; `None` where nothing could
            tell (no cgroup of its own with the memory controller, see `Limits`).
        memory_peak: what all of it used at most, in bytes (``memory.peak``); `None` likewise.
    """

    user_time: float
    system_time: float
    wall_time: float
    max_rss: int
    oom_killed: bool | None = None
    memory_peak: int | None = None


@dataclass(frozen=True, slots=True)
class Info:
    """A snapshot of a session.

    Attributes:
        mode: ``"spawn"`` (``"enter"`` for a session inside another process' namespaces).
        state: ``"starting" "ready" "running" "exited" "signaled" "aborted" "failed"``.
        host_pid: the workload's pid as the host sees it, `None` before it is known.
        child_pid: its pid as it sees itself, `None` before it is known.
        argv: as it was given.
        namespaces: the fresh ones.
        pty: whether it has a terminal.
        containment: ``"pidns"``, ``"cgroup"`` or ``"subreaper"``: what makes sure that nothing is left.
        outcome: its end, `None` before.
        usage: what it used, `None` before the end.
        degraded: the options named in ``optional`` that this machine could not grant.
    """

    mode: str
    state: str
    host_pid: int | None
    child_pid: int | None
    argv: tuple[str | bytes, ...]
    namespaces: frozenset[str]
    pty: bool
    containment: str
    outcome: Outcome | None
    usage: Usage | None
    degraded: tuple[str, ...]
