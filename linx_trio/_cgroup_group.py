"""`Cgroup`: one cgroup of the version 2 hierarchy, by an fd of its directory that is opened once and kept."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any

import trio

from linx_trio import _cgroup_end, _cgroup_parent, _cgroup_stats, _cgroup_watch, _limits
from linx_trio import _cgroup_files as files
from linx_trio._cgroup_setters import Limited
from linx_trio._cgroup_stats import Events, Stats
from linx_trio._cgroup_target import pinned
from linx_trio._fd import clear_of_stdio
from linx_trio._keeper import Keeper, start
from linx_trio._limits import Limits
from linx_trio.errors import setup_error

DESTROY_SECONDS = 20.0
"""How long the end of a block waits for what was killed."""

DESTROY_AT_ONCE_SECONDS = 2.0
"""How long `Cgroup.destroy` blocks for it."""


class Cgroup(Limited):
    """A cgroup (``cgroups(7)``, version 2). Made by `create` and `open`; do not call.

    All methods but the waiting ones are plain functions: the kernel takes what is written to a control file at once.
    They raise `SetupError` (stage ``cgroup``), with the control file as its ``filename`` and a hint.
    """

    def __init__(self, place: files.Place, parent: int) -> None:
        self._place = place
        self._parent = parent
        self._watchers = _cgroup_watch.Watchers(self.fileno)

    def __repr__(self) -> str:
        return f"<linx_trio.cgroup.Cgroup {self.path}{' closed' if self._place.fd < 0 else ''}>"

    def __reduce__(self) -> Any:
        raise TypeError(f"{self!r} is a directory that is kept open, which means nothing elsewhere: pass its path")

    @property
    def name(self) -> str:
        """The last part of its path."""
        return os.path.basename(self.path)

    def duplicate(self) -> files.Place:
        """With an fd of its own, which is the caller's."""
        return self._place._replace(fd=clear_of_stdio(os.dup(self.fileno())))

    def parent_fileno(self) -> int:
        """The fd of the directory that it is in."""
        self.fileno()
        return self._parent

    # ---- making and unmaking ----------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        name_or_path: str | bytes | os.PathLike[Any],
        *,
        parent: Cgroup | str | os.PathLike[str] | None = None,
        limits: Limits | None = None,
    ) -> AbstractAsyncContextManager[Cgroup]:
        """Makes a cgroup; an async context manager that destroys it, with all that lives in it and below it::

            async with linx.cgroup.Cgroup.create("batch") as group:
                group.set_pids_max(64)
                await linx.run(["make"], cgroup=group)

        The end of the block is shielded from cancellation, and bounded in time.

        Args:
            name_or_path: a name, below `parent`; or a path of the file system, below a mount of cgroup v2.
            parent: a group, or its path. By default this process' own group; for root else the top of the hierarchy;
                else a scope of the user's systemd, with the extra ``systemd``.
            limits: what it may use.

        Raises `TypeError` or `ValueError` by the call itself, `SetupError` on entering.
        """
        name = _limits.check_name(name_or_path, "name_or_path")
        if name.startswith("/"):
            if parent is not None:
                raise ValueError(f"name_or_path={name!r} is a path already, so parent={parent!r} contradicts it")
            parent, name = os.path.split(name)
        if not name:
            raise ValueError(f"name_or_path={name_or_path!r}: a cgroup needs a name")
        _limits.check_cgroup(parent, "parent")
        return _Creation(name, parent, _limits.check_limits(limits, "limits"))

    @classmethod
    def open(cls, name_or_path: str | bytes | os.PathLike[Any]) -> Cgroup:
        """One that is there already, and stays: leaving its ``with`` block, or `close`, closes the fd only.

        Args:
            name_or_path: a path of the file system, or a name below this process' own group.

        Raises `TypeError`, `ValueError`, `SetupError`.
        """
        place = files.open_place(path_of(name_or_path))
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            parent = clear_of_stdio(os.open("..", flags, dir_fd=place.fd))
        except OSError as exc:
            os.close(place.fd)
            raise files.refused(exc.errno, place.path, None) from None
        return cls(place, parent)

    def close(self) -> None:
        """Closes the fds. The group stays as it is."""
        if self._place.fd >= 0:
            os.close(self._place.fd)
            os.close(self._parent)
            self._place = self._place._replace(fd=-1)
            self._watchers.wake()

    def __enter__(self) -> Cgroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def destroy(self) -> None:
        """Kills all that lives in it and below it, and removes it, with the groups that were made below. No effect if
        that has been done.

        What was killed takes a moment to go, for which this blocks, up to 2 seconds; then EBUSY. The end of the block
        of `create` does the same without blocking other tasks.
        """
        if self._place.fd >= 0:
            _cgroup_end.remove(self._place, self._parent, DESTROY_AT_ONCE_SECONDS)
            self.close()

    # ---- who lives in it --------------------------------------------------------------------------------------

    def add(self, target: Any) -> None:
        """Moves a process into it: a pid, a pidfd object, or a `Session` (a parked one too). All its threads move, its
        children do not.

        Raises `NotReady` or `NoProcess` for a session without a process, yet or any more; `SetupError`.
        """
        self.fileno()
        with pinned(target) as (pid, is_alive):
            if not is_alive():
                raise files.refused(errno.ESRCH, self.path, "cgroup.procs")
            files.write(self._place, "cgroup.procs", b"%d" % pid)
            if not is_alive():  # then the number may have been another's
                raise files.refused(errno.ESRCH, self.path, "cgroup.procs")

    def members(self) -> list[int]:
        """The pids of the processes in the group itself; 0 is one outside of this process' PID namespace."""
        self.fileno()
        return files.members(self._place.fd)

    def freeze(self) -> None:
        """Stops all that lives in it and below it (``cgroup.freeze``). It is done when `wait_frozen` returns; SIGKILL
        still works."""
        self._core("cgroup.freeze", b"1")

    def thaw(self) -> None:
        """Lets them go on."""
        self._core("cgroup.freeze", b"0")

    def kill(self) -> None:
        """SIGKILL to all that lives in it and below it, at one stroke (``cgroup.kill``; before Linux 5.14 one by one,
        while it is frozen)."""
        self.fileno()
        _cgroup_end.kill(self._place)

    def _core(self, file: str, value: bytes) -> None:
        self.fileno()
        files.write(self._place, file, value)

    def delegate(self, uid: int, gid: int = -1) -> None:
        """Gives it to another user, as ``cgroups(7)`` says under "Delegation": the directory, and the files that
        ``/sys/kernel/cgroup/delegate`` lists. That user can make groups below it, but not raise its limits.
        """
        for name, value in (("uid", uid), ("gid", gid)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, not {value!r}")
            if not -1 <= value <= 2**32 - 2:
                raise ValueError(f"{name} must be between 0 and {2**32 - 2}, or -1, not {value!r}")
        fd = self.fileno()
        for file in [".", *_delegated()]:
            try:
                os.chown(file, uid, gid, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError as exc:
                raise files.refused(exc.errno, self.path, None if file == "." else file) from None

    # ---- looking and waiting ----------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """What it, with all below it, uses and has used."""
        self.fileno()
        return _cgroup_stats.stats(self._read)

    def _read(self, name: str) -> bytes | None:
        return files.read(self._place.fd, name)

    async def wait_empty(self) -> None:
        """Returns when nobody lives in it or below it; also when it has been removed. Zombies do not count."""
        await _cgroup_watch.wait(self._watchers, lambda state: not state.populated)

    async def wait_frozen(self) -> None:
        """Returns when all that lives in it is frozen, see `freeze`."""
        await _cgroup_watch.wait(self._watchers, lambda state: state.frozen)

    def events(self) -> AsyncIterator[Events]:
        """Its `Events`: as they are now, then each time that they have changed, until it is removed. What changes back
        while nobody looks is not told.
        """
        return _cgroup_watch.EventIterator(self._watchers)


class _Creation(AbstractAsyncContextManager[Cgroup]):
    """What `Cgroup.create` returns."""

    def __init__(self, name: str, parent: Any, limits: Limits | None) -> None:
        self._name = name
        self._parent = parent
        self._limits = limits
        self._group: Cgroup | None = None
        self._keeper: Keeper | None = None
        self._will = 0

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Cgroup:
        if self._group is not None:
            raise RuntimeError("a cgroup can be made once; call Cgroup.create() again")
        await trio.lowlevel.checkpoint_if_cancelled()
        self._group = group = await make(self._name, self._parent, self._limits)
        try:
            self._keeper = await start("cgroup", group.parent_fileno())  # should this process be killed
        except BaseException:
            with trio.CancelScope(shield=True):
                await destroy(group)
            raise
        self._will = self._keeper.keep(os.fsencode(group.name))
        return group

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._group is not None
        assert self._keeper is not None
        try:
            await destroy(self._group)
            self._keeper.revoke(self._will)
        except OSError as trouble:
            if exc is None:
                raise
            exc.add_note(str(trouble))
        finally:
            self._keeper.close()


async def make(name: str, parent: Any, limits: Limits | None) -> Cgroup:
    """A new group, limited. Nothing is left of it if that fails. Raises `SetupError`."""
    wanted = None if limits is None else limits.controllers
    place = await open_parent(parent, wanted)
    try:
        made = files.make(place, name)
    except BaseException:
        os.close(place.fd)
        raise
    group = Cgroup(made, place.fd)
    try:
        if limits is not None:
            group.set_limits(limits)
    except BaseException:
        files.remove(place.fd, name)
        group.close()
        raise
    return group


async def open_parent(parent: Any, wanted: Mapping[str, str] | None) -> files.Place:
    """`parent`, or one that is found, with these controllers for its children."""
    if parent is None:
        return await _cgroup_parent.find(wanted)
    place = parent.duplicate() if isinstance(parent, Cgroup) else files.open_place(path_of(parent))
    return files.enabled(place, wanted)


def path_of(name_or_path: Any) -> str:
    """A path, or a name below our own group. Raises `SetupError`."""
    name = _limits.check_name(name_or_path, "name_or_path")
    if name.startswith("/"):
        return name
    home = _cgroup_parent.home()
    if home is None:
        raise setup_error(errno.ENOENT, "cgroup", name, files.nowhere())
    return f"{home.rstrip('/')}/{name}"


async def destroy(group: Cgroup) -> None:
    """Kills and removes it: at once if it is empty, else in a thread, which waits for what was killed in real time."""
    if group._place.fd < 0:
        return
    try:
        try:
            _cgroup_end.remove(group._place, group._parent, 0)
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise
            limiter = trio.CapacityLimiter(1)  # those of the program may all be waiting for what is to be killed
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(
                    _cgroup_end.remove, group._place, group._parent, DESTROY_SECONDS, limiter=limiter
                )
    finally:
        group.close()


def _delegated() -> list[str]:
    try:
        with open("/sys/kernel/cgroup/delegate") as file:
            return [name for name in file.read().split() if "/" not in name]
    except OSError:
        return ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"]
