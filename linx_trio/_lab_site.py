"""What a lab stands on: namespaces of its own, and all that is in them, until it is left.

The *holder* is a parked workload whose network namespace has the switches in it. Each host enters it, its user
namespace too where the caller is not root, and has fresh network, mount and uts namespaces; it is a workload that stays
parked, the host's *anchor*, and others enter it in turn. So one user namespace has the rights over all of it, and no
process does anything unless the user says so.

Some of a host's files are its own, or it would be no host. ``/sys`` shows its own links, as with ``ip netns exec``.
``/etc/hosts`` has the lab's names: one file on a tmpfs that nobody else can see, which the holder has bound there
before the hosts copy its mounts. It only ever grows, by one ``write(2)`` at a time, so nobody reads half of it. And
``/etc/resolv.conf`` names no server: those of the machine are out of reach, and would be waited for.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import trio

from linx_trio import _lab_plan as plan
from linx_trio import _mount_steps as ms
from linx_trio._capabilities import Capability, CapSets
from linx_trio._mount_entries import Bind, Tmpfs
from linx_trio._mount_steps import Entry, Steps
from linx_trio._mount_tree import Dir, File, Propagation, Remount, Symlink, steps_of
from linx_trio._net import Net
from linx_trio._net import open as open_net
from linx_trio._run import enter, spawn
from linx_trio._session import Session
from linx_trio._together import Kept, do_all
from linx_trio.errors import LinxError, SetupError, setup_error
from linx_trio.user import root_map

FRESH = frozenset({"net", "mount", "uts"})
"""What each host has of its own."""

LEFT = "the lab has been left"

GUESTS_SECONDS = 20.0
"""How long those that have been killed may take to end."""

_HOSTS = "/etc/hosts"
_RESOLVER = "/etc/resolv.conf"
_CGROUPS = "/sys/fs/cgroup"
_NO_PLACE = (
    "hosts share the machine's disk: a file of a host's own covers one that is there, or is on a Tmpfs that is mounted "
    "for it before"
)
# Where something is mounted for a moment, and moved on. It is there on every machine, and a parked child needs it not.
_ASIDE = "/proc"


class Site:
    """The sessions of a lab, and its file of names.

    Attributes:
        degraded: what could not be had, and why.
        programs: the hosts' own.
        guests: whatever else has been started on a host.
    """

    def __init__(self) -> None:
        self.degraded: dict[str, str] = {}
        self.programs = Kept()
        self.guests: weakref.WeakSet[Session] = weakref.WeakSet()
        self._kept = Kept()
        self._holder: Session | None = None
        self._net: Net | None = None
        self._sysfs: Steps = []
        self._names = -1
        self._named: set[bytes] = set()

    @property
    def net(self) -> Net:
        """Where the switches are."""
        assert self._net is not None
        return self._net

    # ---- making ---------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def open(self) -> None:
        """Raises `SetupError`, `AgentError`, `NotSupported`. Cancelled, nothing is left."""
        options: dict[str, Any] = {} if _is_privileged() else {"user": root_map()}
        try:
            async with Kept() as kept:
                self._holder = holder = await kept.enter(spawn(["/"], namespaces=FRESH, cwd="/", **options))
                await self._share_names(holder)
                await self._try_sysfs(holder)
                self._net = await kept.enter(open_net(holder))
                await self._net.set_up("lo")
                self._kept.take(kept)
        except BaseException:
            self._close_names()
            raise

    async def _share_names(self, holder: Session) -> None:
        if not _is_there(_HOSTS):  # to mount something there it would have to be made, on the machine's disk
            self.degraded[_HOSTS] = f"there is no {_HOSTS} on this machine, so the hosts do not know each other's names"
            return
        *steps, detach = _own_file(File(_HOSTS, plan.LOCALHOST), readonly=True)
        await holder.take_steps(steps)
        names = f"/proc/{holder.host_pid}/root{_ASIDE}/file"
        self._names = os.open(names, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        more = _own_file(File(_RESOLVER, plan.NO_SERVERS), readonly=True) if _is_there(_RESOLVER) else []
        await holder.take_steps([detach, *more])

    async def _try_sysfs(self, holder: Session) -> None:
        """The kernel shows a network namespace's links to a user namespace only where the machine's ``/sys`` can be
        seen whole: in most containers it cannot.
        """
        flags = os.statvfs("/sys").f_flag & (ms.RDONLY | ms.NOSUID | ms.NODEV | ms.NOEXEC)
        mounting: Steps = [(("mount_new", b"sysfs", b"sysfs", os.fsencode(_ASIDE), b"", flags), "/sys")]
        try:
            await holder.take_steps(mounting)
        except SetupError as exc:
            self.degraded["/sys"] = f"it shows the links of the machine, not the hosts' own: {exc}"
            return
        await holder.take_steps([_detach()])
        if _is_there(_CGROUPS):  # what is mounted below moves to the new one
            mounting.append((("mount_bind", _CGROUPS.encode(), f"{_ASIDE}/fs/cgroup".encode(), 0, 1), _CGROUPS))
        self._sysfs = [*mounting, (("mount_move", _ASIDE.encode(), b"/sys"), "/sys")]

    @trio.lowlevel.enable_ki_protection
    async def add_host(
        self, name: str, sysctls: Mapping[str, str | int], mounts: Sequence[Entry]
    ) -> tuple[Session, Net]:
        """Its anchor, and its network, with ``lo`` up. Raises `SetupError`, …. Cancelled, nothing is left of it."""
        assert self._holder is not None
        async with Kept() as kept:
            manager = enter(self._holder, ["/"], unshare=FRESH, cwd="/", hostname=name, sysctls=sysctls)
            anchor = await kept.enter(manager)
            await anchor.take_steps([*self._sysfs, *_steps(mounts), (("dumpable",), "dumpable")])
            net = await kept.enter(open_net(anchor))
            await net.set_up("lo")
            self._kept.take(kept)
        return anchor, net

    def tell_names(self, ends: Iterable[plan.End]) -> None:
        """All hosts find the nodes at these ends by name, from now on."""
        lines = plan.hosts_lines(ends).splitlines(keepends=True)
        new = [line for line in dict.fromkeys(lines) if line not in self._named]
        self._named.update(new)
        if new and self._names >= 0:
            os.write(self._names, b"".join(new))

    # ---- leaving --------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def close(self) -> list[BaseException]:
        """Ends all that is in it; returns what went wrong, a ^C first. Shielded, and bounded in time."""
        troubles = await do_all(partial(_end, guest) for guest in list(self.guests))
        troubles += await self.programs.leave()
        troubles += await self._kept.leave()
        troubles += await do_all(partial(_end, guest) for guest in list(self.guests))  # who were on their way in
        self._close_names()
        return sorted(troubles, key=lambda trouble: isinstance(trouble, Exception))

    def _close_names(self) -> None:
        if self._names >= 0:
            os.close(self._names)
            self._names = -1


async def _end(guest: Session) -> None:
    """Whoever started it sees that as any other SIGKILL."""
    if guest.is_under_way:
        with suppress(LinxError), trio.move_on_after(GUESTS_SECONDS):
            guest.kill()
            await guest.wait()


def _steps(entries: Sequence[Entry]) -> Steps:
    """Of a host's own entries. What they have not mounted themselves is the machine's disk."""
    steps: Steps = []
    own: list[str] = []
    for entry in entries:
        dst = str(getattr(entry, "dst", "/"))
        if not isinstance(entry, File) or any(dst.startswith(f"{place}/") for place in own):
            steps += entry.steps()
        elif _is_there(dst):
            steps += _own_file(entry)
        else:
            raise setup_error(errno.ENOENT, "mount", repr(entry), _NO_PLACE)
        if not isinstance(entry, (Dir, File, Propagation, Remount, Symlink)):
            own.append(dst)
    return steps


def _own_file(file: File, *, readonly: bool = False) -> Steps:
    """The file is on a tmpfs, and in its place for this mount namespace only. The last step is not needed for that."""
    aside = f"{_ASIDE}/file"
    entries = [Tmpfs(_ASIDE), File(aside, file.data, file.mode), Bind(aside, file.dst, readonly=readonly)]
    return [*((step, repr(file)) for step, _ in steps_of(None, entries)), _detach()]


def _is_there(path: str) -> bool:
    return os.path.exists(path)


def _detach() -> tuple[ms.Step, str]:
    return ("mount_umount", _ASIDE.encode(), 2), _ASIDE


def _is_privileged() -> bool:
    with open("/proc/thread-self/status", encoding="ascii", errors="replace") as file:
        own = CapSets.from_status(file.read()).effective
    return {Capability.CAP_SYS_ADMIN, Capability.CAP_NET_ADMIN} <= set(own)
