"""``linx ps``: the sessions that live on this machine, found in ``/proc`` by the names of their monitors.

A monitor is a child of a zygote, and above the workload, perhaps with a reaper between them. What belongs to others may
not be read in parts (``ptrace(2)``); then that part is `None`.

Whether a session has entered the namespaces of others, nothing says outright; two things show it:

- Its top process is deeper in PID namespaces than its monitor, and not pid 1 in the deepest: a fresh one has us, or the
  workload, as its first process. This can be read for everybody's sessions.
- In one of the namespaces that differ from those of its starter there is a process older than its first one. In a fresh
  one all are younger, except for those who enter it later, which few that are older do.

So what is not seen: one that has entered others than a PID namespace, when all who were there before are gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from linx_trio._cli_options import KINDS

_FILES = {kind: {"mount": "mnt"}.get(kind, kind) for kind in sorted(KINDS.values())}


@dataclass(frozen=True)
class Row:
    """A live session.

    Attributes:
        pid: the workload's; `None` where there is none yet, or any more.
        state: ``"parked"`` or ``"running"``; ``"idle"`` without a workload: it begins or ends just now.
        user: the login name of the workload's owner, or its uid.
        age: seconds since its first process was made.
        containment: as `linx_trio.Session.containment`; `None` where that cannot be read.
        namespaces: which are not those of the process that started it; `None` where that cannot be read.
        entered: whether it is in namespaces that were there before it, as with `linx_trio.enter`; `None` where that
            cannot be read.
        target: the pid of the process in whose namespaces it is: of those that are in all that it has entered, the
            oldest one that is no process of ours; `None` if there is none, or it cannot be read.
        argv: the workload's.
        monitor, owner: pids of the monitor, and of the process that started it; the latter `None` if that is gone.
        program: the name of that process.
    """

    pid: int | None
    state: str
    user: str
    age: float
    containment: str | None
    namespaces: list[str] | None
    entered: bool | None
    target: int | None
    argv: list[str]
    monitor: int
    owner: int | None
    program: str | None


@dataclass(frozen=True)
class Stat:
    """What ``/proc/<pid>/stat`` has of interest (``proc(5)``)."""

    pid: int
    name: str
    state: str
    parent: int
    start: int

    @property
    def age(self) -> tuple[int, int]:
        """To sort by, the oldest first: the clock is slow, and pids go up."""
        return self.start, self.pid

    @staticmethod
    def parse(text: str) -> Stat:
        """A name may have anything in it, also parentheses and blanks."""
        first, _, rest = text.partition(" (")
        name, _, fields = rest.rpartition(") ")
        words = fields.split()
        return Stat(int(first), name, words[0], int(words[1]), int(words[19]))


def sessions(proc: Path = Path("/proc")) -> list[Row]:
    """All that are found, the oldest first."""
    stats = _stats(proc)
    children: dict[int, list[Stat]] = {}
    for stat in sorted(stats.values(), key=lambda stat: stat.age):
        children.setdefault(stat.parent, []).append(stat)
    monitors = [
        stat
        for stat in stats.values()
        if stat.name == "linx-monitor" and stat.parent in stats and stats[stat.parent].name == "linx-zygote"
    ]
    look = _Look(proc, stats, children)
    tops = [(monitor, look.top(monitor)) for monitor in monitors if monitor.state != "Z"]
    tops.sort(key=lambda pair: (pair[1] or pair[0]).age)
    return [look.row(monitor, top) for monitor, top in tops]


def _stats(proc: Path) -> dict[int, Stat]:
    found = {}
    for name in os.listdir(proc):
        if name.isdecimal():
            try:
                found[int(name)] = Stat.parse((proc / name / "stat").read_text(errors="surrogateescape"))
            except OSError:  # gone
                continue
    return found


class _Look:
    """What one look at ``/proc`` shows. Sessions are to come in the order of their ages."""

    def __init__(self, proc: Path, stats: dict[int, Stat], children: dict[int, list[Stat]]) -> None:
        self._proc = proc
        self._stats = stats
        self._children = children
        self._residents: dict[str, list[Stat]] | None = None
        self._groups: set[str] = set()

    def top(self, monitor: Stat) -> Stat | None:
        """The first process of its session, as old as that: the monitor may have been in spare for long before."""
        return next((stat for stat in self._children.get(monitor.pid, ()) if stat.state != "Z"), None)

    def row(self, monitor: Stat, top: Stat | None) -> Row:
        zygote = self._stats[monitor.parent]
        owner = self._stats.get(zygote.parent) if zygote.parent > 1 else None
        workload = _workload(self._children, monitor)
        where = self._proc / str((workload or monitor).pid)
        namespaces = None if workload is None else _namespaces(where, self._proc / str(zygote.pid))
        deeper = None if top is None else self._entered_deeper(top, monitor)
        entered, target = deeper, None
        if top is not None and namespaces is not None and deeper is not False:
            shared, target = self._target(where, namespaces, top)
            entered = deeper or shared
        is_parked = workload is not None and workload.name == "linx-monitor"
        return Row(
            pid=None if workload is None else workload.pid,
            state="idle" if workload is None else "parked" if is_parked else "running",
            user=_user(where),
            age=max(0.0, _uptime(self._proc) - (top or monitor).start / os.sysconf("SC_CLK_TCK")),
            containment=None if workload is None else "pidns" if deeper is False else self._without_pidns(where),
            namespaces=namespaces,
            entered=entered,
            target=target,
            argv=[] if workload is None or is_parked else _argv(where),
            monitor=monitor.pid,
            owner=None if owner is None else owner.pid,
            program=None if owner is None else owner.name,
        )

    def _entered_deeper(self, top: Stat, monitor: Stat) -> bool | None:
        """Whether it has entered a PID namespace, or has a fresh one; `None` if it is in that of its monitor."""
        # Its pid in each PID namespace, from that of this /proc on.
        own, above = (_status(self._proc / str(stat.pid), "NSpid") for stat in (top, monitor))
        return own[-1] != "1" if len(own) > len(above) > 0 else None

    def _without_pidns(self, where: Path) -> str:
        """Who has joined the cgroup of another session is younger than that."""
        group = _own_group(where)
        if group is None or group in self._groups:
            return "subreaper"
        self._groups.add(group)
        return "cgroup"

    def _target(self, where: Path, namespaces: list[str], top: Stat) -> tuple[bool, int | None]:
        """Whether anybody was in these namespaces of `where` before; and who, in all in which anybody was."""
        try:
            links = [os.readlink(where / "ns" / _FILES[kind]) for kind in namespaces]
        except OSError:  # gone
            return False, None
        crowds = [crowd for link in links if (crowd := self._older(link, top))]
        common = [stat for stat in crowds[0] if all(stat in crowd for crowd in crowds)] if crowds else []
        found = [stat.pid for stat in common if stat.name not in _OURS]
        return bool(crowds), found[0] if found else None

    def _older(self, namespace: str, top: Stat) -> list[Stat]:
        """Who is in it and was there before `top`, the oldest first. All is read once, if anybody asks."""
        if self._residents is None:
            self._residents = {}
            for stat in sorted(self._stats.values(), key=lambda stat: stat.age):
                for name in _FILES.values():
                    with contextlib.suppress(OSError):  # gone, or not to be looked at
                        link = os.readlink(self._proc / str(stat.pid) / "ns" / name)
                        self._residents.setdefault(link, []).append(stat)
        return [stat for stat in self._residents.get(namespace, ()) if stat.age < top.age]


_OURS = {"linx-zygote", "linx-spare", "linx-monitor", "linx-reaper"}


def _status(where: Path, field: str) -> list[str]:
    """A line of its ``status``: unlike an owner of files in ``/proc`` it is there, and true, for everybody."""
    try:
        lines = (where / "status").read_text(errors="surrogateescape").splitlines()
    except OSError:  # gone
        return []
    return next((line.split()[1:] for line in lines if line.startswith(f"{field}:")), [])


def _workload(children: dict[int, list[Stat]], above: Stat) -> Stat | None:
    """The oldest child; what it has adopted is younger."""
    for stat in children.get(above.pid, ()):
        if stat.state != "Z":
            return _workload(children, stat) if stat.name == "linx-reaper" else stat
    return None


def _argv(where: Path) -> list[str]:
    try:
        return (where / "cmdline").read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
    except OSError:
        return []


def _user(where: Path) -> str:
    import pwd

    uids = _status(where, "Uid")
    if not uids:
        return "?"
    try:
        return pwd.getpwuid(int(uids[1])).pw_name
    except KeyError:
        return uids[1]


def _uptime(proc: Path) -> float:
    return float((proc / "uptime").read_text().split()[0])


def _namespaces(where: Path, usual: Path) -> list[str] | None:
    try:
        return [
            kind
            for kind, name in _FILES.items()
            if (usual / "ns" / name).exists() and os.readlink(where / "ns" / name) != os.readlink(usual / "ns" / name)
        ]
    except OSError:
        return None


_OWN_GROUP = re.compile(r"^0::(.*/linx(?:\.\d+){3}\.[^/]+)(?:/|$)", re.MULTILINE)
"""A session's own cgroup, by the name that it gets."""


def _own_group(where: Path) -> str | None:
    try:
        found = _OWN_GROUP.search((where / "cgroup").read_text(errors="surrogateescape"))
    except OSError:  # gone
        return None
    return None if found is None else found[1]


# ---- showing them ----------------------------------------------------------------------------------------------------


def age(seconds: float) -> str:
    """In two units at most, as ``docker ps`` would."""
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}d{hours}h"
    if hours:
        return f"{hours}h{minutes}m"
    return f"{minutes}m{whole % 60}s" if minutes else f"{whole}s"


def show(*, as_json: bool) -> int:
    rows = sessions()
    if as_json:
        sys.stdout.write(json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n")
        return 0
    from linx_trio import _cli_show

    heads = ["PID", "USER", "STATE", "AGE", "CONTAINMENT", "NAMESPACES", "ENTERED", "OWNER", "COMMAND"]
    _cli_show.table(heads, [_cells(row) for row in rows])
    return 0


def _cells(row: Row) -> list[str]:
    return [
        "-" if row.pid is None else str(row.pid),
        row.user,
        row.state,
        age(row.age),
        row.containment or "?",
        "?" if row.namespaces is None else ",".join(row.namespaces) or "-",
        _entered(row),
        "gone" if row.owner is None else f"{row.program}({row.owner})",
        " ".join(row.argv) or "-",
    ]


def _entered(row: Row) -> str:
    if row.target is not None:
        return str(row.target)
    return "?" if row.entered is None else "yes" if row.entered else "-"
