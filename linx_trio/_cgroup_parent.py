"""Where a new cgroup may be made, if the caller does not say: the first that will do of

1. the process' own cgroup, if it may be written to;
2. for root, the top of the hierarchy;
3. a scope that the user's systemd grants (`_systemd`).

A group that has processes can have no controllers for its children. So if the process' own group is to have some, its
processes are moved into a leaf below it, `LEAF`; that is done only where all of them are this process and its
descendants, for strangers are not ours to move.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping

import trio

from linx_trio import _cgroup_files as files
from linx_trio import _systemd
from linx_trio._cause_kernel import controller_missing, not_delegated
from linx_trio._cgroup_stats import names
from linx_trio._machine import Machine
from linx_trio.errors import SetupError, setup_error

LEAF = "linx.self"
"""The name of the group that this process moves itself into."""

_USUAL = frozenset({"cpu", "cpuset", "io", "memory", "pids"})
"""Whoever says nothing of controllers may want these later."""


async def find(wanted: Mapping[str, str] | None) -> files.Place:
    """The place, in which these controllers are enabled for its children; the fd is the caller's. `None`: nobody knows
    yet; then it should be one where the usual ones can be, if there is any.

    Raises `SetupError`. Waits only for systemd.
    """
    found = _first_that_fits(wanted)
    if found is None and os.geteuid() != 0 and _systemd.is_there():
        try:
            await trio.to_thread.run_sync(_systemd.start_scope, os.getpid())
        except OSError as exc:
            own = files.own()
            hint = f"{exc}; {not_delegated(own or 'its own cgroup', errno.EACCES)}"
            raise setup_error(errno.EACCES, "cgroup", own, hint) from None
        found = _first_that_fits(wanted)
    if found is None:
        _expect(wanted or {})
    return files.enabled(found or _usable_at_least(), wanted)


def _expect(wanted: Mapping[str, str]) -> None:
    """That the hierarchy has these controllers at all: if not, no other place would be of use. Raises `SetupError`."""
    for top in files.mounted():
        place = files.open_place(top)
        try:
            available = names(files.read(place.fd, "cgroup.controllers"))
        finally:
            os.close(place.fd)
        absent = [name for name in wanted if name not in available]
        if absent:
            raise setup_error(errno.ENOENT, "cgroup", wanted[absent[0]], controller_missing(Machine(), absent[0]))


def home() -> str | None:
    """The group below which names are looked up: this process' own, or the one that it left for a leaf."""
    own = files.own()
    return os.path.dirname(own) if own is not None and os.path.basename(own) == LEAF else own


def _candidates() -> Iterator[str]:
    own = home()
    if own is not None:
        yield own
    if os.geteuid() == 0:
        yield from (path for path in files.mounted() if path != own)


def _first_that_fits(wanted: Mapping[str, str] | None) -> files.Place | None:
    for path in _candidates():
        try:
            place = files.open_place(path)
        except SetupError:
            continue
        try:
            if _fits(place, wanted):
                return place
        except SetupError:
            pass
        os.close(place.fd)
    return None


def _usable_at_least() -> files.Place:
    """Where groups without controllers can be made."""
    denied = None
    for path in _candidates():
        place = files.open_place(path)
        if files.may_use(place):
            return place
        read_only = os.fstatvfs(place.fd).f_flag & os.ST_RDONLY
        os.close(place.fd)
        denied = denied or files.refused(errno.EROFS if read_only else errno.EACCES, path, None)
    if denied is not None:
        raise denied
    raise setup_error(errno.ENOENT, "cgroup", "cgroup2", files.nowhere())


def _fits(place: files.Place, wanted: Mapping[str, str] | None) -> bool:
    if not files.may_use(place):
        return False
    available = names(files.read(place.fd, "cgroup.controllers"))
    enabled = names(files.read(place.fd, "cgroup.subtree_control"))
    if wanted is None:
        wanted = dict.fromkeys(_USUAL & available, place.path)
    missing = {name: thing for name, thing in wanted.items() if name not in enabled}
    if not missing:
        return True
    if is_root(place):
        return missing.keys() <= available
    inside = files.members(place.fd)
    if not all(is_ours(pid) for pid in inside):
        return False
    files.obtain(place, missing)
    if inside:
        vacate(place)
    return True


def is_root(place: files.Place) -> bool:
    """Whether it is the root of the whole hierarchy, which may have both; not that of a cgroup namespace."""
    return files.read(place.fd, "cgroup.type") is None


def is_ours(pid: int) -> bool:
    """Whether it is this process, or a descendant."""
    own = os.getpid()
    while pid > 1 and pid != own:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                pid = int(file.read().rsplit(b")", 1)[1].split()[1])
        except OSError:
            return True  # gone, and nobody's any more
    return pid == own


_ROUNDS = 20


def vacate(place: files.Place) -> None:
    """Moves the processes of the group, all of them ours, into `LEAF` below it. Raises `SetupError`."""
    try:
        os.mkdir(LEAF, dir_fd=place.fd)
    except FileExistsError:
        pass
    except OSError as exc:
        raise files.refused(exc.errno, f"{place.path}/{LEAF}", None) from None
    leaf = files.open_place(f"{place.path}/{LEAF}")
    try:
        for _ in range(_ROUNDS):  # meanwhile they may fork
            inside = files.members(place.fd)
            if not inside:
                return
            for pid in inside:
                _move(leaf, pid)
        raise files.refused(errno.EBUSY, place.path, "cgroup.subtree_control")
    finally:
        os.close(leaf.fd)


def _move(leaf: files.Place, pid: int) -> None:
    try:
        files.write(leaf, "cgroup.procs", b"%d" % pid)
    except SetupError as exc:
        if exc.errno != errno.ESRCH:
            raise
