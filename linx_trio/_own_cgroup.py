"""The cgroup of one session: found or made before it, read at its workload's end, removed after it.

A group that was made for the session is removed by the agent's monitor, which outlives both the workload and this
process: so that it is removed even if Python is killed. Python makes sure that it has been. The one moment that nobody
watches over is between ``mkdir(2)`` and the request, and there the group is empty; its name says whose it was, so that
the next Python sweeps it up.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
from contextlib import suppress
from typing import Any

from linx_trio import _cgroup_files as files
from linx_trio import _cgroup_group as group_of
from linx_trio._cgroup_group import Cgroup
from linx_trio._cgroup_stats import flat, number
from linx_trio._limits import Limits
from linx_trio.errors import SetupError

_numbers = itertools.count(1)


class Placement:
    """A session's cgroup. `is_own`: made for it, and removed with it."""

    def __init__(self, group: Cgroup, *, is_own: bool, is_borrowed: bool) -> None:
        self.group = group
        self.is_own = is_own
        self._is_borrowed = is_borrowed

    def oom_killed(self) -> bool | None:
        """Whether the kernel has killed something in it for want of memory."""
        events = files.read(self.group.fileno(), "memory.events") if self.is_own else None
        return None if events is None else flat(events).get("oom_kill", 0) > 0

    def memory_peak(self) -> int | None:
        """Bytes at most."""
        return number(files.read(self.group.fileno(), "memory.peak")) if self.is_own else None

    def kill(self) -> None:
        """All of it, if it is the session's own."""
        if self.is_own:
            with suppress(OSError):
                self.group.kill()

    async def finish(self) -> None:
        """Removes it if that has not been done. Raises `SetupError` if somebody in it cannot be killed."""
        if self.is_own:
            await group_of.destroy(self.group)
        elif not self._is_borrowed:
            self.group.close()


async def place(given: Any, limits: Limits | None) -> Placement:
    """As the options ``cgroup`` and ``limits`` say. Raises `SetupError`; then nothing remains."""
    if limits is None:
        is_borrowed = isinstance(given, Cgroup)
        group = given if is_borrowed else Cgroup.open(given)
        try:
            _check_way(group)
        except BaseException:
            if not is_borrowed:
                group.close()
            raise
        return Placement(group, is_own=False, is_borrowed=is_borrowed)
    group = await _make(given, limits)
    try:
        if given is not None:
            _check_way(group)
        _sweep(os.path.dirname(group.path), group.parent_fileno())
    except BaseException:
        group.destroy()
        raise
    return Placement(group, is_own=True, is_borrowed=False)


async def _make(given: Any, limits: Limits) -> Cgroup:
    while True:
        try:
            return await group_of.make(f"{_prefix()}{next(_numbers)}", given, limits)
        except SetupError as exc:
            if exc.errno != errno.EEXIST:  # a name of a copy of this process, which has been forked
                raise


def _check_way(group: Cgroup) -> None:
    """Whether this process may start one in there (``cgroups(7)``, "Delegation Containment"). The kernel would say so
    as well, but when it is too late for giving the option up.
    """
    own = files.own()
    for path in [group.path] if own is None else [group.path, os.path.commonpath([own, group.path])]:
        procs = f"{path}/cgroup.procs"
        if os.path.exists(procs) and not os.access(procs, os.W_OK, effective_ids=True):
            raise files.refused(errno.EACCES, path, "cgroup.procs")


def _prefix() -> str:
    """``linx.<PID namespace>.<pid>.<its start>.``: a process that lives, or none that ever will."""
    return _prefix_of(os.getpid())


@functools.lru_cache(maxsize=1)
def _prefix_of(pid: int) -> str:
    return f"linx.{os.stat('/proc/self/ns/pid').st_ino}.{pid}.{_start_of(pid)}."


def _start_of(pid: int) -> str | None:
    """When it was started, in the kernel's ticks; `None` if there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[19]
    except OSError:
        return None


_swept: set[str] = set()


def _sweep(path: str, directory: int) -> None:
    """Once for each place: removes the empty groups of processes that are gone."""
    if path in _swept:
        return
    _swept.add(path)
    namespace = _prefix().split(".")[1]
    for name in files.children(directory):
        match name.split("."):
            case ["linx", its, pid, start, _] if its == namespace and pid.isdecimal() and _start_of(int(pid)) != start:
                with suppress(OSError):  # somebody lingers there
                    os.rmdir(name, dir_fd=directory)
