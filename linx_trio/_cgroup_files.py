"""A cgroup's directory and control files, through an fd of that directory; and why the kernel said no.

Controllers are enabled for a group's children, in ``cgroup.subtree_control``, along the whole path from the top. What
stands in the way of that is told in full, for the kernel's errno alone (ENOENT, EBUSY) says little.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from typing import NamedTuple

from linx_trio import _cgroups
from linx_trio._cause_kernel import controller_missing, no_cgroup_v2, not_delegated
from linx_trio._cgroup_stats import names
from linx_trio._fd import clear_of_stdio
from linx_trio._machine import Machine
from linx_trio.errors import SetupError, setup_error

READ_LIMIT = 1 << 20


class Place(NamedTuple):
    """An opened cgroup: an fd of its directory, its path, and the mount that this is below."""

    fd: int
    path: str
    top: str


def mounted() -> list[str]:
    """Where v2 hierarchies, or parts of one, are mounted."""
    return [os.fsdecode(path) for path, _ in _cgroups.mounts_of(_read_whole("/proc/thread-self/mountinfo"))]


def own() -> str | None:
    """The directory of this process' own cgroup; `None` where no mount reaches it."""
    return Machine().own_cgroup()


def _read_whole(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def open_place(path: str) -> Place:
    """Opens a cgroup by its path in the file system. Raises `SetupError`; the fd is the caller's."""
    try:
        fd = clear_of_stdio(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as exc:
        raise refused(exc.errno, path, None) from None
    try:
        real = os.path.realpath(path)  # the groups above are looked for along it
        return Place(fd, real, _top_of(fd, real))
    except BaseException:
        os.close(fd)
        raise


def _top_of(fd: int, path: str) -> str:
    """The mount point, by the number of the device: a v1 hierarchy does not pass."""
    device = os.fstat(fd).st_dev
    mounts = _cgroups.mounts_of(_read_whole("/proc/thread-self/mountinfo"))
    found = [
        os.fsdecode(mount_point)
        for mount_point, numbers in mounts
        if numbers == b"%d:%d" % (os.major(device), os.minor(device)) and is_below(path, os.fsdecode(mount_point))
    ]
    if not found:
        where = f"v2 is mounted at {mounts[0][0].decode(errors='replace')}" if mounts else nowhere()
        raise setup_error(errno.EINVAL, "cgroup", path, f"that is no cgroup of the version 2 hierarchy: {where}")
    return max(found, key=len)


def is_below(path: str, top: str) -> bool:
    """Whether `path` is `top`, or below it."""
    return path == top or path.startswith(top.rstrip("/") + "/")


def read(directory: int, name: str) -> bytes | None:
    """A file of the group; `None` if it is not there, or the group is not any more."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts)
    except OSError:
        return None
    finally:
        os.close(fd)


def write(place: Place, name: str, value: bytes) -> None:
    """One ``write(2)``, whose errno is not lost. Raises `SetupError`, with the file's path."""
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=place.fd)
        try:
            os.write(fd, value)
        finally:
            os.close(fd)
    except OSError as exc:
        raise refused(exc.errno, place.path, name, value) from None


def make(parent: Place, name: str) -> Place:
    """``mkdir(2)``, and opens it. Raises `SetupError`."""
    path = f"{parent.path.rstrip('/')}/{name}"
    try:
        os.mkdir(name, dir_fd=parent.fd)
    except OSError as exc:
        raise refused(exc.errno, path, None) from None
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return Place(clear_of_stdio(os.open(name, flags, dir_fd=parent.fd)), path, parent.top)
    except OSError as exc:
        os.rmdir(name, dir_fd=parent.fd)
        raise refused(exc.errno, path, None) from None


def remove(parent: int, name: str, depth: int = 0) -> None:
    """``rmdir(2)``, with the groups that were made below. Raises `OSError`: EBUSY while somebody lives there."""
    try:
        os.rmdir(name, dir_fd=parent)
        return
    except FileNotFoundError:
        return
    except OSError as exc:
        if exc.errno != errno.EBUSY or depth > _DEPTH_LIMIT:
            raise
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        for child in children(fd):
            remove(fd, child, depth + 1)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)


_DEPTH_LIMIT = 64


def members(directory: int) -> list[int]:
    """The processes in the group itself; 0 is one outside of our PID namespace."""
    return [int(pid) for pid in (read(directory, "cgroup.procs") or b"").split()]


def children(directory: int) -> list[str]:
    """The names of the groups below."""
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


# ---- controllers -----------------------------------------------------------------------------------------------------


def enable(place: Place, wanted: Mapping[str, str]) -> None:
    """Has the group's children have these controllers, enabled along the path as far as they are not. With each the
    thing that it is wanted for, for the error.

    Raises `SetupError`: ENOENT for a controller that is not there, EBUSY, EACCES and so on for one that may not be
    enabled somewhere on the way.
    """
    enabled = names(read(place.fd, "cgroup.subtree_control"))
    missing = {name: thing for name, thing in wanted.items() if name not in enabled}
    if missing:
        obtain(place, missing)
        write(place, "cgroup.subtree_control", b" ".join(b"+" + name.encode() for name in sorted(missing)))


def enabled(place: Place, wanted: Mapping[str, str] | None) -> Place:
    """The same place, after `enable`; closed if that fails."""
    try:
        enable(place, wanted or {})
    except BaseException:
        os.close(place.fd)
        raise
    return place


def obtain(place: Place, wanted: Mapping[str, str]) -> None:
    """Has the group itself have these controllers. Raises `SetupError`."""
    available = names(read(place.fd, "cgroup.controllers"))
    absent = {name: thing for name, thing in wanted.items() if name not in available}
    if not absent:
        return
    above = os.path.dirname(place.path)
    if place.path == place.top or not is_below(above, place.top):
        name, thing = next(iter(absent.items()))
        raise setup_error(errno.ENOENT, "cgroup", thing, controller_missing(Machine(), name))
    upper = open_place(above)
    try:
        enable(upper, absent)
    finally:
        os.close(upper.fd)


# ---- why not ---------------------------------------------------------------------------------------------------------

_INTERNAL = (
    "a group cannot have both processes and controllers for its children (cgroups(7), no internal processes): move the "
    "processes of this group into one below it first, or pass another one as cgroup="
)


def nowhere() -> str:
    """Why this process' own group is not to be found."""
    return no_cgroup_v2(Machine()) or "no mount of cgroup v2 reaches this process' own group"


def refused(number: int | None, path: str, file: str | None, value: bytes = b"") -> SetupError:
    """The error for a directory, or a control file in it."""
    number = number or errno.EIO
    return setup_error(number, "cgroup", path if file is None else f"{path}/{file}", _hint(number, path, file, value))


def no_place(number: int, path: str) -> SetupError:
    """The error for a process that could not be started in a group: what ``clone3(2)`` says of it."""
    if number in (errno.ENOENT, errno.ENODEV):
        return setup_error(number, "cgroup", path, "the group has been removed")
    return setup_error(number, "cgroup", path, _hint(number, path, "cgroup.procs", b""))


def _hint(number: int, path: str, file: str | None, value: bytes) -> str | None:
    match number, file:
        case ((errno.EACCES | errno.EPERM), "cgroup.procs"):
            return "moving a process needs write permission on cgroup.procs, there and in the nearest common ancestor"
        case ((errno.EACCES | errno.EPERM | errno.EROFS), _):
            return not_delegated(path, number)
        case errno.EBUSY, "cgroup.subtree_control":
            return _INTERNAL
        case errno.EBUSY, "cgroup.procs":
            return "the group has controllers for its children, so it takes no processes: add it to one below"
        case errno.EBUSY, _:
            return "somebody lives in the group, or there are groups below it"
        case errno.ENODEV, None:
            return "the group has been removed"
        case errno.ENODEV, _:
            return "the group has been removed, or there is no such device"
        case errno.ENOENT, None:
            return f"there is no such cgroup; v2 is mounted at {' and '.join(mounted()) or '(nowhere)'}"
        case errno.ENOENT, "memory.swap.max":
            return "swap is not accounted for on this machine: boot it with swapaccount=1"
        case errno.ENOENT, str():
            return "this kernel does not have that file, or the group has been removed"
        case errno.EEXIST, _:
            return "there is such a cgroup already: take another name, or Cgroup.open it"
        case errno.EAGAIN, None:
            return "cgroup.max.descendants or cgroup.max.depth of a group above is reached"
        case errno.EINVAL, str():
            return f"the kernel does not take {value.decode(errors='replace')!r}"
        case errno.ENOTDIR, _:
            return "a cgroup is a directory"
        case errno.EOPNOTSUPP, _:
            return "the group, or one above it, is threaded (cgroup.type)"
    return None


def may_use(place: Place) -> bool:
    """Whether groups can be made there, and processes started in them."""
    try:
        return (
            all(
                os.access(name, os.W_OK, dir_fd=place.fd, effective_ids=True)
                for name in (".", "cgroup.procs", "cgroup.subtree_control")
            )
            and not os.fstatvfs(place.fd).f_flag & os.ST_RDONLY
        )
    except OSError:
        return False


def device_number(path: str) -> str:
    """The numbers of a block device. Raises `SetupError`."""
    try:
        status = os.stat(path)
    except OSError as exc:
        raise setup_error(exc.errno or errno.EIO, "cgroup", path) from None
    if not stat.S_ISBLK(status.st_mode):
        raise setup_error(errno.ENOTBLK, "cgroup", path, "io limits are about block devices")
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
