"""The files of ``/proc/<pid>`` that say what ids mean: read and written through an fd of that directory."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import NamedTuple

from linx_trio import _subids
from linx_trio._idmaps import IdMap, Maps, check_lines, covers, lines_of, text_of
from linx_trio.errors import Hint, SetupError, setup_error


class Kind(NamedTuple):
    """What is different for users and groups."""

    stage: str
    capability: str
    bit: int
    program: str


UID = Kind("uid_map", "CAP_SETUID", 7, "newuidmap")
GID = Kind("gid_map", "CAP_SETGID", 6, "newgidmap")
_CAP_SETFCAP = 31


def write_maps(directory: int, maps: Maps, calls: _subids.Calls | None = None) -> None:
    """Both maps, and setgroups, below the fd of a ``/proc/<pid>``. Raises `SetupError`."""
    if maps.setgroups == "deny":
        deny_setgroups(directory)
    else:
        _expect_setgroups(directory)
    write_map(directory, GID, check_lines(maps.gid, "gid"), calls)
    if maps.setgroups == "allow":  # newgidmap(1) denies it where it grants nothing but the caller's own gid
        _expect_setgroups(directory)
    write_map(directory, UID, check_lines(maps.uid, "uid"), calls)


def read(directory: int, name: str) -> bytes:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        with open(fd, "rb") as file:
            return file.read()
    except OSError as exc:
        raise _error(exc.errno, name, name, _GONE) from None


def read_map(directory: int, kind: Kind) -> list[IdMap]:
    """The map that is there, empty if none is. Raises `SetupError`."""
    return lines_of(read(directory, kind.stage))


def _write(directory: int, name: str, data: bytes) -> None:
    """In one piece: the kernel takes no second one."""
    fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


_GONE = "there is no such process (any more), or this kernel has no user namespaces"


def _error(number: int | None, stage: str, thing: str, hint: str | None) -> SetupError:
    if number in (errno.ENOENT, errno.ESRCH):
        return setup_error(errno.ENOENT, stage, thing, _GONE)
    return setup_error(number or errno.EIO, stage, thing, hint)


_PF_EXITING = 0x4


def is_ending(directory: int) -> bool:
    """Whether the process is dead, or will be in a moment: then its files are refused for no reason of their own."""
    try:
        state, *fields = read(directory, "stat").rsplit(b")", 1)[1].split()
    except SetupError:
        return True
    return state in b"ZX" or bool(int(fields[5]) & _PF_EXITING)


# ---- setgroups -------------------------------------------------------------------------------------------------------


def deny_setgroups(directory: int) -> None:
    try:
        _write(directory, "setgroups", b"deny")
    except OSError as exc:
        hint = "it can be denied only before the gid map is written, by who has CAP_SYS_ADMIN in that user namespace"
        raise _error(exc.errno, "setgroups", "deny", hint) from None


def _expect_setgroups(directory: int) -> None:
    if read(directory, "setgroups").strip() != b"allow":
        hint = Hint(
            "setgroups-denied",
            "setgroups(2) is denied in that user namespace, for good: in its parent already, or because its gid map "
            "was written without CAP_SETGID and without a range of /etc/subgid",
            "ask for setgroups='deny'",
            "; ",
        )
        raise setup_error(errno.EPERM, "setgroups", "allow", hint)


# ---- the maps --------------------------------------------------------------------------------------------------------


def write_map(directory: int, kind: Kind, lines: tuple[IdMap, ...], calls: _subids.Calls | None = None) -> None:
    reason = None
    try:
        if _is_ours_to_write(directory, kind, lines):
            _write(directory, kind.stage, text_of(lines))
        else:
            pid = int(read(directory, "stat").split()[0])
            reason = _subids.write_by_program(kind.program, pid, lines, calls or _subids.Calls())
            if reason is not None:
                raise PermissionError(errno.EPERM, reason)
            if sorted(read_map(directory, kind)) != sorted(lines):
                raise ProcessLookupError(errno.ESRCH, "the pid was another's by then")
    except SetupError:
        raise
    except OSError as exc:
        hint = _hint(directory, kind, lines, exc.errno, reason)
        raise _error(exc.errno, kind.stage, _briefly(lines), hint) from None


def _is_ours_to_write(directory: int, kind: Kind, lines: tuple[IdMap, ...]) -> bool:
    """Whether ``user_namespaces(7)`` lets the caller write this by itself."""
    if _may(kind.bit):
        return True
    own = os.geteuid() if kind is UID else os.getegid()
    if [line[1:] for line in lines] != [(own, 1)]:
        return False
    return kind is UID or read(directory, "setgroups").strip() == b"deny"


def _may(capability: int) -> bool:
    """Whether it is in the calling thread's effective set."""
    for line in _own("status").splitlines():
        if line.startswith(b"CapEff:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return False


def _own(name: str) -> bytes:
    with open(f"/proc/thread-self/{name}", "rb") as file:
        return file.read()


def _hint(directory: int, kind: Kind, lines: tuple[IdMap, ...], number: int | None, reason: str | None) -> str | None:
    match number:
        case errno.EINVAL:
            return f"a map is written in one piece of less than {os.sysconf('SC_PAGE_SIZE')} bytes: use fewer lines"
        case errno.EACCES:
            return "the process is another user's"
        case errno.EPERM:
            if read(directory, kind.stage):
                return "the map has been written already, which can be done once for each user namespace"
            return reason or _why_not_permitted(kind, lines)
    return None


def _why_not_permitted(kind: Kind, lines: tuple[IdMap, ...]) -> str:
    """The caller may write such maps, and still may not write this one."""
    ours = [range(line.inside, line.inside + line.count) for line in lines_of(_own(kind.stage))]
    for line in lines:
        if not covers(ours, line.outside, line.count):
            why = f"not all ids of the line '{_briefly([line])}' are mapped in the caller's own user namespace"
            return Hint("unmapped-range", why, "have more ids mapped there, or ask for fewer", "; ")
    if kind is UID and not _may(_CAP_SETFCAP) and any(line.outside == 0 for line in lines):
        return "to map the user 0 of the outside one needs CAP_SETFCAP"
    return (
        f"that needs {kind.capability} in the user namespace's parent, which has to be the caller's own; "
        "or a namespace that the caller's own user has made"
    )


def _briefly(lines: Sequence[IdMap]) -> str:
    return ", ".join(" ".join(map(str, line)) for line in lines[:3]) + (", …" if len(lines) > 3 else "")
