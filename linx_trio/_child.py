"""`ChildSpec`, what a supervisor is told about a child, and `Child`, what it tells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, cast

from linx_trio._events import Outcome
from linx_trio._options import INHERIT, Argument, Kill, Stdio
from linx_trio._restarts import Restart, check_seconds, check_word
from linx_trio._workload import Workload, as_workload
from linx_trio.ready import Check, Line

_LONGEST_GRACE = 4e6  # as for `Kill`


@dataclass(frozen=True)
class ChildSpec:
    """A child of `linx_trio.supervise`: what it runs, and when it is started again.

    Args:
        workload: a `Workload`, or argv. Its ``auto_proceed`` and ``shutdown`` are the supervisor's affair. Where it
            says nothing about stdin, that is ``/dev/null``.
        id: its name, unique among the children.
        restart: ``"permanent"``: it is started again however it ended; ``"transient"``: only after an abnormal end;
            ``"temporary"``: never.
        shutdown: seconds between SIGTERM and SIGKILL (to the whole subtree) when it is stopped; 0: SIGKILL at once.
        ready: an async function of the running session that returns once the child serves, as those of
            `linx_trio.ready` do; the next child is started then. `None`: as soon as it runs.
        start_timeout: seconds that it has to become ready, from ``clone(2)`` on, the supervisor's ``on_checkpoint``
            included; then it is stopped, and that is an abnormal end. ``math.inf``: any time.

    Raises:
        TypeError, ValueError: naming the argument and the value.
    """

    workload: Workload | Sequence[Argument]
    _: KW_ONLY
    id: str
    restart: str = "permanent"
    shutdown: float = 5.0
    ready: Check | None = None
    start_timeout: float = 90.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "workload", as_workload(self.workload, {}))
        if not isinstance(self.id, str):
            raise TypeError(f"id must be a str, not {self.id!r}")
        if not self.id:
            raise ValueError("id is the empty string")
        object.__setattr__(self, "restart", check_word(self.restart, Restart, "restart").value)
        check_seconds(self.shutdown, "shutdown", _LONGEST_GRACE)
        if self.ready is not None and not callable(self.ready):
            raise TypeError(f"ready must be an async function of a session, or None, not {self.ready!r}")
        if check_seconds(self.start_timeout, "start_timeout", math.inf) == 0:
            raise ValueError("start_timeout must be more than 0 seconds")

    @property
    def restart_kind(self) -> Restart:
        """`restart`, as an enumeration's member."""
        return Restart(self.restart)

    def prepared(self, *, parked: bool) -> Workload:
        """The workload that is spawned for each incarnation."""
        workload = cast("Workload", self.workload)
        changes: dict[str, Any] = {"auto_proceed": not parked, "shutdown": Kill(grace=self.shutdown)}
        if workload.stdin is INHERIT and workload.stdio is None:
            changes["stdin"] = Stdio.DEVNULL
        if self.listens_in and isinstance(self.ready, Line):
            changes[self.ready.stream] = Stdio.PIPE
        return workload.replace(**changes)

    @property
    def listens_in(self) -> bool:
        """`ready` is about a stream that is inherited otherwise."""
        workload = cast("Workload", self.workload)
        if not isinstance(self.ready, Line) or self.ready.stream == "pty" or workload.stdio is not None:
            return False
        return getattr(workload, self.ready.stream) is INHERIT


@dataclass(frozen=True, slots=True)
class Child:
    """A snapshot of a child.

    Attributes:
        id: its name.
        state: ``"waiting"`` (for its turn to be started), ``"backoff"`` (for its delay), ``"starting"`` (until it is
            ready), ``"running"``, ``"stopping"``, ``"stopped"`` (by command), ``"finished"`` (it ended, and is not
            started again).
        pid: of the workload, as the host sees it; `None` while there is none.
        restarts: how many times it was started again, for whatever reason.
        last_outcome: how its last incarnation ended; `None` if none has, or if its session failed.
        last_error: what its last incarnation failed with: a `SetupError`, `AgentDied`, or what ``on_checkpoint`` or
            ``ready`` raised (then the outcome is that of being stopped for it).
        since: when it came into this state, by trio's clock (`trio.current_time`).
    """

    id: str
    state: str
    pid: int | None
    restarts: int
    last_outcome: Outcome | None
    last_error: BaseException | None
    since: float
