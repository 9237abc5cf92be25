"""Ranges of ids that an administrator has granted to users (``subuid(5)``), and the programs that map them."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from linx_trio._idmaps import IdMap, covers
from linx_trio._machine import Machine
from linx_trio.errors import Hint

FILES = {"newuidmap": "/etc/subuid", "newgidmap": "/etc/subgid"}
CAPABILITIES = {"newuidmap": "CAP_SETUID", "newgidmap": "CAP_SETGID"}

_SECONDS = 30.0
"""They take milliseconds, unless users are looked up over a network that does not answer."""


class SubIds(NamedTuple):
    """What one user may map into user namespaces besides the own ids."""

    uid: tuple[range, ...]
    gid: tuple[range, ...]


def subids(user: str | int | None = None) -> SubIds:
    """The ranges of ``/etc/subuid`` and ``/etc/subgid``, both empty if there are none.

    Args:
        user: a login name or a uid; `None`: the caller's.
    """
    if user is not None and (isinstance(user, bool) or not isinstance(user, (str, int))):
        raise TypeError(f"user must be a login name or a uid, not {user!r}")
    names = _names_of(os.getuid() if user is None else user)
    return SubIds(*(ranges_of(_text(path), names) for path in FILES.values()))


def ranges_of(text: str, names: Iterable[str]) -> tuple[range, ...]:
    """The ranges in a ``subuid(5)`` that belong to one of `names`. Lines that make no sense are skipped, as
    ``newuidmap(1)`` does.
    """
    wanted = frozenset(names)
    found = []
    for line in text.splitlines():
        name, *numbers = line.split(":")
        if name in wanted and len(numbers) == 2 and all(number.isdecimal() for number in numbers):
            first, count = map(int, numbers)
            found.append(range(first, first + count))
    return tuple(found)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="surrogateescape")
    except FileNotFoundError:
        return ""


def _names_of(user: str | int) -> list[str]:
    """The login name and the uid, as far as they are known."""
    import pwd  # there is none on Windows

    try:
        known = pwd.getpwuid(user) if isinstance(user, int) else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        return [str(user)]
    return [known.pw_name, str(known.pw_uid)]


class Calls:
    """Calls of these programs, one after the other in one thread, which another thread may put an end to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_over = False
        self._running: subprocess.Popen[bytes] | None = None

    def end(self) -> None:
        """The program that runs is killed, and no more are started."""
        with self._lock:
            self._is_over = True
            if self._running is not None:
                self._running.kill()

    def call(self, argv: Sequence[str]) -> tuple[int, bytes]:
        """Its status and what it says on stderr. Raises `OSError`, `subprocess.TimeoutExpired`."""
        with self._lock:
            if self._is_over:
                raise InterruptedError(errno.EINTR, "the session is over")
            program = self._running = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={"LC_ALL": "C", "PATH": os.defpath},
            )
        with program:
            try:
                _, told = program.communicate(timeout=_SECONDS)
            except BaseException:
                program.kill()
                raise
            finally:
                with self._lock:
                    self._running = None
        return program.returncode, told


def write_by_program(program: str, pid: int, lines: Sequence[IdMap], calls: Calls) -> str | None:
    """Has ``newuidmap`` or ``newgidmap`` write a map. `None`, or why it has not, and what to do."""
    path = shutil.which(program)
    if path is None:
        return Hint(
            f"{program}-missing",
            f"more than the one line for the caller's own id takes {CAPABILITIES[program]}, or {program}(1), which is "
            "not in PATH",
            "install it (Debian's package is uidmap)",
        )
    numbers = [str(number) for line in lines for number in line]
    try:
        status, told = calls.call([os.path.abspath(path), str(pid), *numbers])
    except (OSError, subprocess.TimeoutExpired) as exc:
        return f"{path}: {exc}"
    if status == 0:
        return None
    return _diagnosis(program, path, lines) or os.fsdecode(told).strip() or f"{path} gives no reason"


def _diagnosis(program: str, path: str, lines: Sequence[IdMap]) -> Hint | None:
    if os.statvfs(path).f_flag & os.ST_NOSUID:
        why = f"{path} is on a file system mounted nosuid, so that it has no rights"
        return Hint(f"{program}-not-setuid", why, "install it elsewhere, or have that mount remounted")
    if not _is_privileged(path):
        return Hint(f"{program}-not-setuid", f"{path} is not set-user-ID root", f"let root call 'chmod u+s {path}'")
    if Machine().gains_nothing():
        return Hint("no-new-privs", f"{path} gains no rights in a process with no_new_privs", "start it without")
    granted = subids().uid if program == "newuidmap" else subids().gid
    own = os.getuid() if program == "newuidmap" else os.getgid()
    for line in lines:
        if line[1:] != (own, 1) and not covers(granted, line.outside, line.count):
            user = _names_of(os.getuid())[0]
            there = ", ".join(f"{each.start}-{each.stop - 1}" for each in granted) or "nothing"
            option = "--add-subuids" if program == "newuidmap" else "--add-subgids"
            wanted = f"{line.outside}-{line.outside + line.count - 1}"
            return Hint(
                f"{os.path.basename(FILES[program])}-too-small"
                if granted
                else f"{os.path.basename(FILES[program])}-missing",
                f"{FILES[program]} grants {there} to {user}, and not {wanted}",
                f"let root call 'usermod {option} {wanted} {user}', or ask for less",
            )
    if len(_names_of(os.getuid())) == 1:  # as with 'docker run --user 1234'
        why = f"uid {os.getuid()} has no name, without which {program}(1) grants nothing"
        return Hint("no-user-name", why, "let root add it to /etc/passwd (useradd)")
    return None


def _is_privileged(path: str) -> bool:
    """Whether executing it gives rights, by its mode or by file capabilities, unless its mount is nosuid."""
    if os.stat(path).st_mode & stat.S_ISUID:
        return True
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False
