"""What a test has left behind: processes, fds, network links, cgroups.

Looked at twice, before and after, from outside. What is there after and was not before is a leak, unless it goes away
within `GRACE_SECONDS`. Not counted is what this package, or Python, keeps for the next time: the zygotes, the
helpers of `multiprocessing`, and what the fixtures of a wider scope have started.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from linx_trio import _agent, _own_cgroup
from linx_trio._pytest_services import Services

__all__ = ["GRACE_SECONDS", "Watch"]

GRACE_SECONDS = 5.0


class Watch:
    """Remembers what there is when it is made.

    Args:
        alone: nobody else is at work on this machine in the same way, as other test processes would be: links and
            cgroups, which are the machine's and not this process', are looked at too.
    """

    def __init__(self, *, alone: bool = True) -> None:
        self._processes = _processes()
        self._services = _services()
        self._fds = _fds()
        self._shared: dict[str, tuple[Callable[[], frozenset[str]], frozenset[str]]] = {}
        if alone:
            self._shared = {"network link": (_links, _links()), "cgroup": (_cgroups, _cgroups())}

    def leaks(self, *, with_fds: bool = True) -> list[str]:
        """A line for each thing that is left. It returns at once if there is none, and looks again for some seconds
        if there is.
        """
        limit = time.monotonic() + GRACE_SECONDS
        while found := self._found(with_fds):
            if time.monotonic() > limit:
                break
            gc.collect()  # what only a cycle of objects keeps open
            time.sleep(0.01)
        return found

    def _found(self, with_fds: bool) -> list[str]:
        now = _processes()
        found = [now[one] for one in sorted(now.keys() - self._processes.keys())]
        if with_fds and _services() == self._services:  # they have fds of their own
            found += _new_fds(self._fds)
        for what, (look, before) in self._shared.items():
            found += [f"{what} {name}" for name in sorted(look() - before)]
        return found


# ---- processes -----------------------------------------------------------------------------------------------------


def _processes() -> Mapping[tuple[int, str], str]:
    """This process' children, and all that is below its zygotes: by pid and start, in words."""
    _agent.reap()
    table = _table()
    zygotes = {zygote.pid for zygote in _agent.current()}
    monitors = {table[pid].parent for pid in _services() if pid in table}
    ours = {pid for pid, row in table.items() if row.parent == os.getpid()} - zygotes - _helpers().keys()
    below = {pid for zygote in zygotes for pid in _below(zygote, table, monitors)}
    return {(pid, table[pid].start): table[pid].describe(pid) for pid in ours | below}


def _services() -> frozenset[int]:
    return frozenset(pid for services in Services.running for pid in services.live())


class _Row:
    __slots__ = ("name", "parent", "start", "state")

    def __init__(self, stat: str) -> None:
        self.name = stat[stat.index("(") + 1 : stat.rindex(")")]
        fields = stat[stat.rindex(")") + 1 :].split()
        self.state, self.parent, self.start = fields[0], int(fields[1]), fields[19]

    def describe(self, pid: int) -> str:
        if self.state == "Z":
            return f"process {pid} ({self.name}), a zombie: nobody has waited for it"
        command = b""
        with suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
        return f"process {pid} ({os.fsdecode(command[:200]) or self.name})"


def _table() -> dict[int, _Row]:
    found = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(OSError):
                found[int(name)] = _Row(Path(f"/proc/{name}/stat").read_text(errors="replace"))
    return found


def _below(pid: int, table: Mapping[int, _Row], but: Iterable[int]) -> list[int]:
    children: dict[int, list[int]] = {}
    for child, row in table.items():
        children.setdefault(row.parent, []).append(child)
    found = [child for child in children.get(pid, ()) if child not in set(but) and table[child].name != _agent.SPARE]
    for other in found:  # grows while it is walked
        found.extend(children.get(other, ()))
    return found


_HELPERS = (
    ("multiprocessing.resource_tracker", "_resource_tracker", "_pid", "_fd"),
    ("multiprocessing.forkserver", "_forkserver", "_forkserver_pid", "_forkserver_alive_fd"),
)


def _helpers() -> dict[object, object]:
    """Those of multiprocessing, which stay until Python ends: their pids, and our fds for them."""
    found = [(getattr(sys.modules.get(module), one, None), pid, fd) for module, one, pid, fd in _HELPERS]
    return {getattr(one, pid, None): getattr(one, fd, None) for one, pid, fd in found if one is not None}


# ---- fds -----------------------------------------------------------------------------------------------------------


def _open_fds() -> dict[int, str]:
    kept = _agent.kept_fds() | set(_helpers().values())
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the directory's own
            if int(name) not in kept:
                found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def _kind(link: str) -> str:
    """A pipe is as good as any other."""
    return link.split(":[")[0]


def _fds() -> Counter[str]:
    return Counter(map(_kind, _open_fds().values()))


def _new_fds(before: Counter[str]) -> list[str]:
    now = _open_fds()
    found = []
    for kind, more in sorted((Counter(map(_kind, now.values())) - before).items()):
        numbers = sorted(fd for fd, link in now.items() if _kind(link) == kind)[-more:]
        found += [f"fd {fd} ({now[fd]})" for fd in numbers]
    return found


# ---- what is the machine's -----------------------------------------------------------------------------------------


def _links() -> frozenset[str]:
    """Of this process' network namespace, which ``/sys`` need not show."""
    with suppress(OSError):
        return frozenset(name for _, name in socket.if_nameindex())
    return frozenset()


def _cgroups() -> frozenset[str]:
    """Those of this process' sessions."""
    found: set[str] = set()
    for path in list(_own_cgroup._swept):
        with suppress(OSError):
            found |= {f"{path}/{name}" for name in os.listdir(path) if name.startswith(_own_cgroup._prefix())}
    return frozenset(found)
