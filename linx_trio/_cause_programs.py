"""Causes: why a file cannot be executed, as far as modes and mounts tell; the agent's own among them. See `_causes`."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection
from pathlib import PurePosixPath

from linx_trio._cause_rights import DENIED
from linx_trio._machine import Machine
from linx_trio.errors import Hint

REINSTALL = "reinstall linx-trio (from a checkout: pip install -e .)"


def own_groups() -> set[int | None]:
    return {os.getegid(), *os.getgroups()}


def not_executable(path: str, uid: int, gids: Collection[int | None]) -> Hint | None:
    """Why a file cannot be executed by who has these ids, where modes and mounts say so."""
    closed = _closed_directory(path, uid, gids)
    if closed is not None:
        return closed
    try:
        found = os.stat(path)
        flags = os.statvfs(path).f_flag
    except OSError:
        return None
    if stat.S_ISDIR(found.st_mode):
        return Hint("not-a-program", f"{path} is a directory", "name the program in it")
    if not _may_execute(found, uid, gids):
        whose = "" if not found.st_mode & 0o111 else f" for uid {uid}"
        return Hint("not-executable", f"{path} has no execute permission{whose}", f"chmod a+x {path}")
    if flags & os.ST_NOEXEC:
        where = Machine().mount_point(path)
        return Hint(
            "noexec",
            f"{path} lies on a file system mounted noexec ({where})",
            f"put it elsewhere, or let root call 'mount -o remount,exec {where}'",
        )
    return None


def _may_execute(found: os.stat_result, uid: int, gids: Collection[int | None]) -> bool:
    """Execute a file, or search a directory: by the mode, for access control lists are not looked at."""
    if uid == 0:
        return stat.S_ISDIR(found.st_mode) or bool(found.st_mode & 0o111)
    if found.st_uid == uid:
        return bool(found.st_mode & 0o100)
    return bool(found.st_mode & (0o010 if found.st_gid in gids else 0o001))


def _closed_directory(path: str, uid: int, gids: Collection[int | None]) -> Hint | None:
    """The first one on the way to it that may not be searched."""
    for directory in reversed(PurePosixPath(os.path.abspath(path)).parents):
        try:
            found = os.stat(directory)
        except OSError:
            return None
        if not _may_execute(found, uid, gids):
            return Hint("closed-directory", f"uid {uid} may not search {directory}", f"chmod a+x {directory}")
    return None


def agent_refused(path: str, number: int, source: str, machine: Machine) -> Hint | None:
    """Why the agent cannot be started. `source` says where the path is from, if that is not where it usually is."""
    if number in DENIED and machine.is_filtered() and os.access(path, os.X_OK):
        return Hint(
            "seccomp-clone3",
            f"the agent {path} cannot be started: the seccomp filter of this process says EPERM to clone3(2), as "
            "Docker's did before 20.10.10",
            "update Docker, or start the container with --security-opt seccomp=unconfined",
            "; ",
        )
    found = not_executable(path, os.geteuid(), own_groups()) if number == errno.EACCES else None
    if found is None:
        return None
    why = found.why if found.why.startswith(path) else f"{path} may not be executed: {found.why}"
    return Hint(found.cause, f"the agent {why}{source}", f"{found.remedy}; or {REINSTALL}", "; ")
