"""``linx ps``: the sessions that live on this machine, found in ``/proc`` by the names of their monitors.

A monitor is a child of a zygote, and above the workload, perhaps with a reaper between them. What belongs to others may
not be read in parts (``ptrace(2)``); then that part is `None`.
"""

from __future__ import annotations

import dataclasses
import json
import os
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
        state: ``"parked"`` or ``"running"``; ``"ending"`` without a workload.
        user: the login name of the workload's owner, or its uid.
        age: seconds since its monitor was made.
        containment: as `linx_trio.Session.containment`; `None` where that cannot be read.
        namespaces: which are not those of the process that started it; `None` where that cannot be read.
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
    for stat in sorted(stats.values(), key=lambda stat: (stat.start, stat.pid)):
        children.setdefault(stat.parent, []).append(stat)
    monitors = [
        stat
        for stat in stats.values()
        if stat.name == "linx-monitor" and stat.parent in stats and stats[stat.parent].name == "linx-zygote"
    ]
    rows = [_row(proc, stats, children, monitor) for monitor in monitors if monitor.state != "Z"]
    return sorted(rows, key=lambda row: (-row.age, row.monitor))


def _stats(proc: Path) -> dict[int, Stat]:
    found = {}
    for name in os.listdir(proc):
        if name.isdecimal():
            try:
                found[int(name)] = Stat.parse((proc / name / "stat").read_text(errors="surrogateescape"))
            except OSError:  # gone
                continue
    return found


def _row(proc: Path, stats: dict[int, Stat], children: dict[int, list[Stat]], monitor: Stat) -> Row:
    zygote = stats[monitor.parent]
    owner = stats.get(zygote.parent) if zygote.parent > 1 else None
    workload = _workload(children, monitor)
    where = proc / str((workload or monitor).pid)
    namespaces = None if workload is None else _namespaces(where, proc / str(zygote.pid))
    return Row(
        pid=None if workload is None else workload.pid,
        state="ending" if workload is None else "parked" if workload.name == "linx-monitor" else "running",
        user=_user(where),
        age=max(0.0, _uptime(proc) - monitor.start / os.sysconf("SC_CLK_TCK")),
        containment=_containment(where, proc / str(monitor.pid), namespaces),
        namespaces=namespaces,
        argv=[] if workload is None or workload.name == "linx-monitor" else _argv(where),
        monitor=monitor.pid,
        owner=None if owner is None else owner.pid,
        program=None if owner is None else owner.name,
    )


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

    try:
        uid = where.stat().st_uid
    except OSError:  # gone
        return "?"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


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


def _containment(where: Path, monitor: Path, namespaces: list[str] | None) -> str | None:
    if namespaces is None:
        return None
    if "pid" in namespaces:
        return "pidns"
    try:
        own, above = ((path / "cgroup").read_text().splitlines() for path in (where, monitor))
    except OSError:
        return None
    return (
        "cgroup"
        if [x for x in own if x.startswith("0::")] != [x for x in above if x.startswith("0::")]
        else "subreaper"
    )


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

    heads = ["PID", "USER", "STATE", "AGE", "CONTAINMENT", "NAMESPACES", "OWNER", "COMMAND"]
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
        "gone" if row.owner is None else f"{row.program}({row.owner})",
        " ".join(row.argv) or "-",
    ]
