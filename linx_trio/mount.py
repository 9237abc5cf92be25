"""What a workload's file system is made of, before its first instruction.

As options, ``root=`` and ``mounts=``::

    linx.run(["/bin/sh"], namespaces={"user", "mount", "pid"}, user=linx.user.root_map(), root="/srv/busybox",
             mounts=[Bind("/usr", readonly=True), Tmpfs("/tmp"), Proc(readonly=True), Dev()])

and as functions, for a session that is parked, or with ``inside=`` for any process::

    async with linx.spawn(["/bin/sh"], namespaces={"mount"}) as s:
        await linx.mount.bind(s, "/usr", "/mnt", readonly=True)

A session without a mount namespace of its own is refused: its mounts are the host's, or those of whom it has entered.

Both run the same steps, in the child itself: so it has the rights for them in its own user namespace, and the file
system is the one that it sees. What is already there is found with ``openat2(2)`` and RESOLVE_IN_ROOT: no symlink leads
out of the root. A fresh mount namespace is private: nothing gets out, and nothing from the host gets in.

With ``inside=`` a child is started in the mount namespace of that process (and its user namespace, where that is
another one), does it, and is gone.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeAlias, overload

from linx_trio import _mount_info
from linx_trio import _mount_steps as ms
from linx_trio._mount_entries import AnyPath, Bind, Cgroup2, Dev, Devpts, Mount, Proc, Sysfs, Tmpfs
from linx_trio._mount_info import MountInfo
from linx_trio._mount_steps import Entry, Steps
from linx_trio._mount_tree import Dir, File, Overlay, Propagation, Remount, Symlink, check_mounts, steps_of
from linx_trio._options import HasFileno
from linx_trio._parked import as_verb, pinned
from linx_trio._run import enter
from linx_trio._session import Session
from linx_trio.errors import setup_error

if TYPE_CHECKING:
    TargetLike: TypeAlias = "int | HasFileno | Session | str | bytes | os.PathLike[Any]"

__all__ = [
    "Bind",
    "Cgroup2",
    "Dev",
    "Devpts",
    "Dir",
    "Entry",
    "File",
    "Mount",
    "MountInfo",
    "Overlay",
    "Proc",
    "Propagation",
    "Remount",
    "Symlink",
    "Sysfs",
    "Tmpfs",
    "apply",
    "bind",
    "make_private",
    "make_shared",
    "make_slave",
    "make_unbindable",
    "mount",
    "mounts",
    "move",
    "pivot_root",
    "remount",
    "umount",
]


def mounts(target: TargetLike) -> tuple[MountInfo, ...]:
    """The mounts that a process sees, as ``/proc/<pid>/mountinfo`` has them.

    Args:
        target: a pid, a pidfd object, a `Session`, or a path like ``/proc/<pid>``.

    Raises `SetupError` (ENOENT at stage ``open_ns_user``: there is no such process; stage ``mount``), `NotReady`,
    `NoProcess`, `TypeError`, `ValueError`.
    """
    with pinned(target, "mounts", parked=False) as directory:
        try:
            fd = os.open("mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
            with open(fd, "rb") as file:
                return _mount_info.parse(file.read())
        except OSError as exc:  # EINVAL is a zombie's: it has no mount namespace any more
            number = errno.ENOENT if exc.errno in (errno.ESRCH, errno.EINVAL) else exc.errno
            raise setup_error(number or errno.EIO, "mount", "mountinfo") from None


P = ParamSpec("P")


class _Verb(Protocol[P]):
    """A function of a session; the session can be left out with ``inside=``."""

    @overload
    def __call__(self, s: Session | None, /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[None]: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[None]: ...


def _verb(function: Callable[Concatenate[Session | None, P], Awaitable[None]]) -> _Verb[P]:
    @functools.wraps(function)
    async def verb(*args: Any, **options: Any) -> None:
        if options.get("inside") is not None and not (args and (args[0] is None or isinstance(args[0], Session))):
            args = (None, *args)
        with as_verb(function.__name__):
            await function(*args, **options)

    return verb


@_verb
async def apply(s: Session | None, entries: Iterable[Entry], *, inside: TargetLike | None = None) -> None:
    """Does what ``mounts=`` does with these entries, in one go.

    Args:
        s: a parked session with a mount namespace of its own. With `inside` there is none: it is left out, or `None`.
        entries: in their order.
        inside: whose file system instead: a pid, a pidfd object, a running `Session`, or a path like ``/proc/<pid>``.

    Raises `SetupError` for the first thing that the kernel refuses, with the entry as its `filename`; what was done
    before stays. `NotReady`, `AlreadyRunning`, `NoProcess`: the session is not parked yet, or any more. `TypeError`,
    `ValueError`: naming the argument and the value.

    Cancelled, it may still be done.
    """
    await _take(s, inside, steps_of(None, check_mounts(entries, "entries")))


@_verb
async def bind(
    s: Session | None,
    src: AnyPath,
    dst: AnyPath | None = None,
    *,
    readonly: bool = False,
    recursive: bool = True,
    nosuid: bool = False,
    nodev: bool = False,
    noexec: bool = False,
    flags: Iterable[str] = (),
    inside: TargetLike | None = None,
) -> None:
    """Mounts a file or directory a second time, see `Bind`. Session, errors and cancellation as with `apply`."""
    entry = Bind(src, dst, readonly, recursive, nosuid=nosuid, nodev=nodev, noexec=noexec, flags=flags)
    await _take(s, inside, entry.steps())


@_verb
async def mount(
    s: Session | None,
    fstype: str,
    dst: AnyPath,
    *,
    source: AnyPath | None = None,
    options: str = "",
    readonly: bool = False,
    nosuid: bool = False,
    nodev: bool = False,
    noexec: bool = False,
    flags: Iterable[str] = (),
    inside: TargetLike | None = None,
) -> None:
    """Mounts a file system, see `Mount`. Session, errors and cancellation as with `apply`."""
    entry = Mount(
        fstype,
        dst,
        source=source,
        options=options,
        readonly=readonly,
        nosuid=nosuid,
        nodev=nodev,
        noexec=noexec,
        flags=flags,
    )
    await _take(s, inside, entry.steps())


@_verb
async def remount(
    s: Session | None,
    dst: AnyPath,
    *,
    readonly: bool | None = None,
    nosuid: bool | None = None,
    nodev: bool | None = None,
    noexec: bool | None = None,
    flags: Iterable[str] = (),
    recursive: bool = False,
    inside: TargetLike | None = None,
) -> None:
    """Changes the flags of a mount, see `Remount`. Session, errors and cancellation as with `apply`."""
    entry = Remount(dst, readonly, nosuid=nosuid, nodev=nodev, noexec=noexec, flags=flags, recursive=recursive)
    await _take(s, inside, entry.steps())


@_verb
async def move(s: Session | None, src: AnyPath, dst: AnyPath, *, inside: TargetLike | None = None) -> None:
    """Moves the mount at `src`, with all below it, to `dst`. Session, errors and cancellation as with `apply`."""
    old, new = ms.destination(src, "src"), ms.destination(dst, "dst")
    await _take(s, inside, [(("mount_move", os.fsencode(old), os.fsencode(new)), f"move {old!r} to {new!r}")])


@_verb
async def umount(
    s: Session | None, dst: AnyPath, *, detach: bool = False, force: bool = False, inside: TargetLike | None = None
) -> None:
    """Undoes the topmost mount at `dst`. Session, errors and cancellation as with `apply`.

    Args:
        detach: also where it is busy: it goes from sight now, with all below it, and for good when nobody uses it any
            more (MNT_DETACH of ``umount2(2)``).
        force: also where a server does not answer (MNT_FORCE).
    """
    path = ms.destination(dst, "dst")
    flags = 2 * ms.truth(detach, "detach") + ms.truth(force, "force")
    await _take(s, inside, [(("mount_umount", os.fsencode(path), flags), path)])


@_verb
async def pivot_root(s: Session | None, new_root: AnyPath, *, inside: TargetLike | None = None) -> None:
    """Makes a directory the root of the mount namespace; the old one is gone (``pivot_root(2)``). What else is in there
    and had the old one as its root directory has the new one too; so the caller's own mount namespace is refused.

    Session, errors and cancellation as with `apply`; stage ``mount`` or ``pivot_root``.
    """
    path = ms.destination(new_root, "new_root")
    if s is None and inside is not None and _is_in_our_namespace(inside):
        raise ValueError(f"inside={inside!r} is in the caller's own mount namespace, and would take its root away")
    await _take(s, inside, [(("mount_root", os.fsencode(path)), path), (("pivot_root",), path)])


@_verb
async def make_private(
    s: Session | None, dst: AnyPath = "/", *, recursive: bool = True, inside: TargetLike | None = None
) -> None:
    """What is mounted below `dst` is for this namespace only, and what others mount does not get in. See
    `Propagation`. Session, errors and cancellation as with `apply`.
    """
    await _take(s, inside, Propagation(dst, "private", recursive).steps())


@_verb
async def make_slave(
    s: Session | None, dst: AnyPath = "/", *, recursive: bool = True, inside: TargetLike | None = None
) -> None:
    """What others mount gets in, and nothing out. Else as `make_private`."""
    await _take(s, inside, Propagation(dst, "slave", recursive).steps())


@_verb
async def make_shared(
    s: Session | None, dst: AnyPath = "/", *, recursive: bool = True, inside: TargetLike | None = None
) -> None:
    """What is mounted below `dst` is propagated in both directions. Else as `make_private`."""
    await _take(s, inside, Propagation(dst, "shared", recursive).steps())


@_verb
async def make_unbindable(
    s: Session | None, dst: AnyPath = "/", *, recursive: bool = True, inside: TargetLike | None = None
) -> None:
    """Private, and not to be mounted a second time. Else as `make_private`."""
    await _take(s, inside, Propagation(dst, "unbindable", recursive).steps())


async def _take(s: Session | None, inside: TargetLike | None, steps: Steps) -> None:
    if inside is None:
        if not isinstance(s, Session):
            raise TypeError(f"s must be a linx.Session, or None with inside=, not {s!r}")
        _check_has_own(s)
        await s.take_steps(steps)
        return
    if s is not None:
        raise TypeError(f"a session, or inside={inside!r}: not both")
    async with enter(inside, ["/"], namespaces={"user", "mount"}, join_cgroup=False) as child:
        await child.take_steps(steps)


def _check_has_own(s: Session) -> None:
    """Whoever wants to change the mounts of others says so."""
    if "mount" not in s.workload.namespace_names:
        raise ValueError(
            f'{s!r} has no mount namespace of its own: start it with namespaces={{"mount"}}, or with enter and '
            'unshare={"mount"} (otherwise the host, or whatever it has entered, would be changed, and stay so); what '
            "changes the mounts of a namespace that is there already is inside=<pid>"
        )


def _is_in_our_namespace(target: TargetLike) -> bool:
    with pinned(target, "pivot_root", parked=False) as directory:
        try:
            theirs = os.stat("ns/mnt", dir_fd=directory)
        except OSError:  # who may not see it cannot enter it either, and is told so there
            return False
    return os.path.samestat(theirs, os.stat("/proc/thread-self/ns/mnt"))
