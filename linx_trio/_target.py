"""Whose namespaces are entered: a pid, a pidfd, a session or a path, pinned as one directory fd of ``/proc/<pid>``.

Such an fd keeps to its process: when that is gone, everything below it fails, even if the pid is another's by then.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from linx_trio import _cgroups
from linx_trio._checks import CHECKS
from linx_trio._fd import FdBag
from linx_trio._hints import hint_for
from linx_trio._proto import messages as m
from linx_trio._workload import Workload
from linx_trio.errors import NoProcess, NotReady, setup_error

FILES = {name: "mnt" if name == "mount" else name for name in m.NAMESPACES}
"""The names of the kinds below ``/proc/<pid>/ns``."""


@dataclass(frozen=True, slots=True)
class Target:
    """What `enter` was asked for. `namespaces` is `None` for all that there are."""

    what: Any
    namespaces: frozenset[str] | None
    join_cgroup: bool

    @property
    def name(self) -> str:
        """For an error's text."""
        if isinstance(self.what, (str, bytes, os.PathLike)):
            return os.fsdecode(self.what)
        is_number = isinstance(self.what, int) and not hasattr(self.what, "fileno")
        return _path_of(self.what) if is_number else repr(self.what)

    def open(self, bag: FdBag) -> Pinned:
        """Pins it. Raises `SetupError` (stage ``open_ns_user``), `NotReady` or `NoProcess`, `ValueError`."""
        what = self.what
        if isinstance(what, (str, bytes, os.PathLike)):
            return Pinned(self, _open_directory(os.fsdecode(what), bag))
        if hasattr(type(what), "host_pid"):
            if what.state == "starting":
                raise NotReady("enter", what.state)
            if what.state not in ("ready", "running") or what.pidfd < 0:
                raise NoProcess("enter", what.state)
            return Pinned(self, open_pidfd(int(what.pidfd), what, bag))
        if hasattr(what, "fileno"):
            return Pinned(self, open_pidfd(what.fileno(), what, bag))
        return Pinned(self, _open_directory(_path_of(what), bag))


@dataclass(frozen=True, slots=True)
class Pinned:
    """An opened target; the fd is in the bag that `Target.open` was given."""

    target: Target
    fd: int

    def kinds(self) -> frozenset[str]:
        """The kinds that are joined, the shared ones among them."""
        if self.target.namespaces is not None:
            return self.target.namespaces
        return frozenset(name for name, file in FILES.items() if self._identity(file) is not None)

    def has_other_user_namespace(self) -> bool:
        """Whether a user namespace will be joined."""
        if "user" not in self.kinds():
            return False
        own = os.stat("/proc/thread-self/ns/user")
        return self._identity("user") not in (None, (own.st_dev, own.st_ino))

    def _identity(self, file: str) -> tuple[int, int] | None:
        try:
            found = os.stat(f"ns/{file}", dir_fd=self.fd)
        except OSError:
            return None if not os.path.lexists(f"/proc/thread-self/ns/{file}") else (0, 0)
        return found.st_dev, found.st_ino

    def open_cgroup(self, bag: FdBag) -> int | None:
        """Its v2 cgroup's directory, `None` if the caller is in the same one, or if there is no v2 hierarchy.

        Raises `SetupError`, stage ``cgroup``.
        """
        if not self.target.join_cgroup:
            return None
        try:
            theirs = _cgroups.path_of(_read("cgroup", self.fd))
        except (FileNotFoundError, ProcessLookupError):
            if os.path.lexists("/proc/thread-self/cgroup"):
                raise _vanished(self.target.name) from None
            return None
        ours = _cgroups.path_of(_read("/proc/thread-self/cgroup"))
        if theirs is None or theirs == ours:
            return None
        for directory in _cgroups.directories_of(theirs, _read("/proc/thread-self/mountinfo")):
            try:
                return bag.open(os.fsdecode(directory), os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue
            except OSError as exc:
                number = exc.errno or errno.EIO
                raise setup_error(number, "cgroup", os.fsdecode(directory), hint_for("cgroup", number)) from None
        raise setup_error(errno.ENOENT, "cgroup", os.fsdecode(theirs), hint_for("cgroup", errno.ENOENT))


def check_target(what: Any, namespaces: Iterable[Any] | None, join_cgroup: Any) -> Target:
    """Raises `TypeError` or `ValueError`, naming the argument and the value."""
    CHECKS["auto_proceed"](join_cgroup, "join_cgroup")
    kinds = None if namespaces is None else CHECKS["namespaces"](namespaces, "namespaces")
    if isinstance(what, (str, bytes, os.PathLike)):
        CHECKS["cwd"](what, "target")
    elif hasattr(type(what), "host_pid") or (callable(getattr(what, "fileno", None)) and not isinstance(what, type)):
        pass
    elif isinstance(what, bool) or not isinstance(what, int):
        raise TypeError(f"target must be a pid, a pidfd object, a Session or a path like /proc/<pid>, not {what!r}")
    elif what < 1:
        raise ValueError(f"target must be a pid, at least 1, not {what!r}")
    return Target(what, kinds, join_cgroup)


UNSHARED = frozenset({"mount", "uts", "ipc", "cgroup", "net"})
"""The kinds that a process may have fresh without a child: the user namespace that was entered stays, and pid and time
are for children.
"""


def check_unshare(kinds: Iterable[Any]) -> frozenset[str]:
    """Raises `TypeError` or `ValueError`, naming the argument and the value."""
    fresh: frozenset[str] = CHECKS["namespaces"](kinds, "unshare")
    for kind in fresh - UNSHARED:
        raise ValueError(f"unshare has {kind!r}; what can be fresh inside of others is: {', '.join(sorted(UNSHARED))}")
    return fresh


def check_joins_all(argv_or_workload: Any, options: Mapping[str, Any], where: str) -> None:
    """For what joins all namespaces of its target: raises `ValueError` if it asks for some."""
    own = getattr(argv_or_workload, "namespaces", None)
    if own or "namespaces" in options:
        raise ValueError(f"namespaces={options.get('namespaces', own)!r}: {where}")


def as_entering(argv_or_workload: Any, options: Mapping[str, Any], fresh: frozenset[str]) -> Workload:
    """What `enter` was given, with `fresh` as its only namespaces: those that it joins are nothing of its own."""
    base = argv_or_workload if isinstance(argv_or_workload, Workload) else None
    given = {name: options.get(name, getattr(base, name, None)) for name in _NEED_FRESH}
    for name, kind in _NEED_FRESH.items():
        if given[name] and kind not in fresh:
            remedy = f"add unshare={{{kind!r}}}" if kind in UNSHARED else "use spawn"
            raise ValueError(
                f"{name}={given[name]!r} is for a fresh {kind} namespace; what is entered is the target's: {remedy}"
            )
    if base is not None:
        return base.replace(namespaces=fresh, **options)
    return Workload(argv_or_workload, namespaces=fresh, **options)


_NEED_FRESH = {
    "hostname": "uts", "domainname": "uts", "root": "mount", "mounts": "mount",
    "user": "user", "init": "pid", "time_offsets": "time",
}  # fmt: skip


def _path_of(pid: int) -> str:
    return f"/proc/{int(pid)}"


def _read(path: str, directory: int | None = None) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory)  # no FIFO shall hold us up
    with open(fd, "rb") as file:
        return file.read()


def _vanished(what: object, hint: str | None = None) -> OSError:
    return setup_error(errno.ENOENT, "open_ns_user", str(what), hint or "there is no such process (any more)")


def _open_directory(path: str, bag: FdBag) -> int:
    try:
        fd = bag.open(path, os.O_PATH | os.O_DIRECTORY)
        os.stat("ns", dir_fd=fd)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ESRCH):
            raise _vanished(path) from None
        raise setup_error(exc.errno or errno.EIO, "open_ns_user", path) from None
    return fd


def open_pidfd(pidfd: int, what: object, bag: FdBag) -> int:
    """The directory of the process that a pidfd is of; it is still the same after it has been opened."""
    try:
        lines = _read(f"/proc/self/fdinfo/{pidfd}").split(b"\n")
    except FileNotFoundError:
        raise ValueError(f"target={what!r}: its fd {pidfd} is not open") from None
    pid = next((int(line[5:]) for line in lines if line.startswith(b"Pid:\t")), None)
    if pid is None:
        raise ValueError(f"target={what!r}: its fd {pidfd} is no pidfd (pidfd_open(2))")
    if pid < 1:
        raise _vanished(what, "it has ended" if pid < 0 else "it is outside of this process' PID namespace")
    fd = _open_directory(_path_of(pid), bag)
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        raise _vanished(what) from None
    except PermissionError:
        pass  # not ours to signal, but alive
    return fd
