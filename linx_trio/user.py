"""Which ids of a user namespace are which outside: written by the host while the workload is parked::

    async with linx.spawn(["id", "-u"], namespaces={"user"}) as s:
        linx.user.setup_maps(s, uid=[(0, os.geteuid(), 1)], gid=[(0, os.getegid(), 1)])
        await s.proceed()  # it is root, of its own namespace

The rules are the kernel's (``user_namespaces(7)``). Each file is written once, in one piece. Who has CAP_SETUID (for
groups: CAP_SETGID) writes what it likes; anybody else only the one line that maps its own effective id, and the gid
only where ``setgroups`` is denied. More than that is what ``newuidmap(1)`` and ``newgidmap(1)`` are for: set-user-ID
programs that grant the ranges of ``subuid(5)`` and ``subgid(5)``. They are called where the rule asks for it.

The target is pinned as one directory fd of ``/proc/<pid>``, so the files are that process' or nobody's. The programs
know a pid only: it is looked up through that fd right before, and what they have written is read back through it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeAlias

from linx_trio import _idmap_files as _files
from linx_trio._idmap_files import write_maps as write_maps
from linx_trio._idmaps import IdMap, MapLike, Maps, check_lines, root_map
from linx_trio._options import HasFileno
from linx_trio._parked import pinned
from linx_trio._subids import SubIds, subids

if TYPE_CHECKING:
    from linx_trio._session import Session

    TargetLike: TypeAlias = "int | HasFileno | Session | str | bytes | os.PathLike[Any]"

__all__ = [
    "IdMap",
    "Maps",
    "SubIds",
    "deny_setgroups",
    "read_gid_map",
    "read_uid_map",
    "root_map",
    "set_gid_map",
    "set_uid_map",
    "setup_maps",
    "subids",
]


def setup_maps(target: TargetLike, *, uid: MapLike, gid: MapLike, setgroups: str = "deny") -> None:
    """Writes all that a fresh user namespace needs: ``setgroups``, then the gid map, then the uid map.

    Args:
        target: a parked `Session`, a pid, a pidfd object, or a path like ``/proc/<pid>``.
        uid, gid: lines, as `IdMap` or triples ``(inside, outside, count)``.
        setgroups: ``"deny"``; or ``"allow"``, which is not written but has to be so.

    Raises:
        TypeError, ValueError: naming the argument and the value, before anything is written.
        SetupError: stage ``setgroups``, ``gid_map`` or ``uid_map``, with a hint; what was written before stays so.
            EPERM: it has been written already, or the caller may not. ENOENT at stage ``open_ns_user``: there is no
            such process.
        NotReady, AlreadyRunning, NoProcess: the session is not parked yet, or any more.
    """
    maps = Maps(uid=uid, gid=gid, setgroups=setgroups)
    with pinned(target, "setup_maps", parked=True) as directory:
        _files.write_maps(directory, maps)


def set_uid_map(target: TargetLike, lines: MapLike) -> None:
    """Writes the uid map only. Arguments and errors as with `setup_maps`."""
    checked = check_lines(lines, "lines")
    with pinned(target, "set_uid_map", parked=True) as directory:
        _files.write_map(directory, _files.UID, checked)


def set_gid_map(target: TargetLike, lines: MapLike) -> None:
    """Writes the gid map only; without CAP_SETGID, that wants `deny_setgroups` before. Else as with `setup_maps`."""
    checked = check_lines(lines, "lines")
    with pinned(target, "set_gid_map", parked=True) as directory:
        _files.write_map(directory, _files.GID, checked)


def deny_setgroups(target: TargetLike) -> None:
    """Takes ``setgroups(2)`` from the user namespace, for good. Only before its gid map is written. Errors as with
    `setup_maps`.
    """
    with pinned(target, "deny_setgroups", parked=True) as directory:
        _files.deny_setgroups(directory)


def read_uid_map(target: TargetLike) -> list[IdMap]:
    """The uid map of the target's user namespace, empty before it is written. The target may be running.

    The ``outside`` ids are those of the caller's user namespace, or of the parent of its own.

    Raises `SetupError` (stage ``uid_map``, or ``open_ns_user``), `NotReady`, `NoProcess`.
    """
    with pinned(target, "read_uid_map", parked=False) as directory:
        return _files.read_map(directory, _files.UID)


def read_gid_map(target: TargetLike) -> list[IdMap]:
    """The gid map, as `read_uid_map`."""
    with pinned(target, "read_gid_map", parked=False) as directory:
        return _files.read_map(directory, _files.GID)
