"""What this machine says about itself, read at the moment that somebody asks: the evidence for `_causes`.

Everything is read below `root`, which is ``/`` but for tests that need a machine of another kind. What cannot be read
is `None` or empty: evidence that is missing proves nothing, and nobody wants an error while an error is explained.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from linx_trio import _mount_info
from linx_trio._cgroups import directories_of, path_of
from linx_trio._idmaps import covers, lines_of
from linx_trio._mount_info import MountInfo

CAPABILITIES = {
    "CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_SETPCAP": 8, "CAP_NET_ADMIN": 12, "CAP_SYS_CHROOT": 18, "CAP_SYS_ADMIN": 21,
    "CAP_SYS_NICE": 23, "CAP_SYS_RESOURCE": 24, "CAP_SYS_TIME": 25,
}  # fmt: skip
"""The bits of those that a refusal may be about (``capabilities(7)``)."""

NAMESPACE_FILES = {"mount": "mnt"}
"""The name in ``/proc/<pid>/ns`` and in the sysctl, where it is another one."""

_RENAMED = {"blkio": "io"}
"""Controllers that have another name in v1."""

_EMPTY_FOR_GOOD = ("sys/fs/binfmt_misc", "fs/nfsd")
"""Directories of /proc that are there to be mounted on: the kernel does not count what is on them."""


class Machine:
    """This machine, as the calling thread sees it."""

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        self._root = os.fspath(root)

    def _path(self, path: str) -> str:
        return os.path.join(self._root, path.lstrip("/"))

    def text(self, path: str) -> str | None:
        """A small file."""
        try:
            with open(self._path(path), errors="surrogateescape") as file:
                return file.read()
        except OSError:
            return None

    def _lines(self, path: str) -> list[str]:
        return (self.text(path) or "").splitlines()

    # ---- the kernel ----------------------------------------------------------------------------------------------

    def sysctl(self, name: str) -> str | None:
        """``"kernel.unprivileged_userns_clone"``: its value, `None` where there is none."""
        text = self.text("/proc/sys/" + name.replace(".", "/"))
        return None if text is None else text.strip()

    def has_namespace(self, kind: str) -> bool:
        """Whether the kernel is built with this kind; yes, if nobody says."""
        if not self._exists("/proc/thread-self/ns"):
            return True
        return self._exists(f"/proc/thread-self/ns/{NAMESPACE_FILES.get(kind, kind)}")

    def has_filesystem(self, fstype: str) -> bool | None:
        """Whether it is there; `None` where nobody says. A module that nobody has loaded yet is not."""
        lines = self._lines("/proc/filesystems")
        return fstype in {line.split()[-1] for line in lines if line.strip()} if lines else None

    def option(self, name: str) -> str | None:
        """``"CONFIG_VETH"``: ``"y"``, ``"m"`` or ``"n"``; `None` where the kernel's configuration cannot be found."""
        text = self._configuration()
        if text is None:
            return None
        for line in text.splitlines():
            if line.startswith(f"{name}="):
                return line.partition("=")[2]
        return "n"

    def _configuration(self) -> str | None:
        import gzip  # nobody else needs it

        try:
            with gzip.open(self._path("/proc/config.gz")) as packed:
                return packed.read().decode(errors="replace")
        except OSError:
            return self.text(f"/boot/config-{os.uname().release}")

    def _exists(self, path: str) -> bool:
        return os.path.lexists(self._path(path))

    # ---- the caller ----------------------------------------------------------------------------------------------

    def status(self, field: str) -> str | None:
        """Of ``/proc/thread-self/status``."""
        for line in self._lines("/proc/thread-self/status"):
            name, _, value = line.partition(":")
            if name == field:
                return value.strip()
        return None

    def has(self, capability: str) -> bool:
        """Whether it is in the effective set."""
        mask = self.status("CapEff")
        return mask is not None and bool(int(mask, 16) >> CAPABILITIES[capability] & 1)

    def is_filtered(self) -> bool:
        """Whether a seccomp filter is in force."""
        return self.status("Seccomp") == "2"

    def gains_nothing(self) -> bool:
        """Whether set-user-ID programs have no effect (``no_new_privs``)."""
        return self.status("NoNewPrivs") == "1"

    def apparmor_profile(self) -> str | None:
        """``"docker-default (enforce)"``, ``"unconfined"``; `None` without AppArmor."""
        for path in ("/proc/thread-self/attr/apparmor/current", "/proc/thread-self/attr/current"):
            label = (self.text(path) or "").strip(" \n\0")
            if label == "unconfined" or label.endswith(")"):  # else it is another security module's
                return label
        return None

    def is_mapped(self, uid: int, gid: int) -> bool:
        """Whether the caller's ids are any in its own user namespace."""
        for name, number in (("uid_map", uid), ("gid_map", gid)):
            lines = lines_of((self.text(f"/proc/thread-self/{name}") or "").encode())
            if lines and not covers([range(line.inside, line.inside + line.count) for line in lines], number, 1):
                return False
        return True

    def is_nested(self) -> bool:
        """Whether the caller is in another user namespace than the machine's first."""
        return "".join(self._lines("/proc/thread-self/uid_map")).split() not in ([], ["0", "0", "4294967295"])

    # ---- mounts --------------------------------------------------------------------------------------------------

    def mounts(self) -> tuple[MountInfo, ...]:
        """Of the caller's mount namespace, as far as they can be seen from its root."""
        try:
            with open(self._path("/proc/thread-self/mountinfo"), "rb") as file:
                return _mount_info.parse(file.read())
        except (OSError, ValueError):
            return ()

    def is_chrooted(self) -> bool:
        """Whether the root directory is surely not that of the mount namespace: then it is no mount of its own."""
        found = self.mounts()
        return bool(found) and not any(entry.mount_point == "/" for entry in found)

    def covered(self, fstype: str) -> list[str] | None:
        """What is mounted over parts of ``/proc`` (or of the sysfs), where no other mount shows all of it; `None` if
        one does, and if there is none at all.

        The kernel shows a fresh one only to who can see all of an old one (``mount_too_revealing()``).
        """
        found = self.mounts()
        tops = [entry for entry in found if entry.fstype == fstype and entry.root == "/"]
        hidden = [list(_hidden(top, found)) for top in tops]
        if not hidden or not all(hidden):
            return None
        return min(hidden, key=lambda points: (any(top.mount_point in points for top in tops), len(points)))

    def mount_point(self, path: str) -> str:
        """Of the mount that the path is on."""
        path = os.path.realpath(path)
        points = {entry.mount_point for entry in self.mounts()}
        while path not in points and path != "/":
            path = os.path.dirname(path)
        return path

    # ---- control groups ------------------------------------------------------------------------------------------

    def own_cgroup(self) -> str | None:
        """The directory of the caller's cgroup (v2); `None` if it cannot be seen."""
        path = path_of((self.text("/proc/thread-self/cgroup") or "").encode())
        mountinfo = (self.text("/proc/thread-self/mountinfo") or "").encode(errors="surrogateescape")
        for directory in [] if path is None else directories_of(path, mountinfo):
            if os.path.isdir(self._path(os.fsdecode(directory))):
                return os.fsdecode(directory)
        return None

    def has_cgroup_v2(self) -> bool:
        """Whether it is mounted somewhere."""
        return any(entry.fstype == "cgroup2" for entry in self.mounts())

    def controller(self, name: str) -> tuple[str, bool] | None:
        """Its row of ``/proc/cgroups``: the number of its hierarchy, ``"0"`` for v2's; whether it is switched on."""
        for line in self._lines("/proc/cgroups"):
            row = line.split()
            if len(row) == 4 and _RENAMED.get(row[0], row[0]) == name:
                return row[1], row[3] != "0"
        return None

    def v1_controllers(self) -> dict[str, str]:
        """Controllers that are bound to a hierarchy of v1, and where it is mounted."""
        return {
            _RENAMED.get(word, word): entry.mount_point
            for entry in self.mounts()
            if entry.fstype == "cgroup"
            for word in entry.super_options
            if word not in ("rw", "ro") and "=" not in word
        }


def _hidden(top: MountInfo, found: Iterable[MountInfo]) -> Iterable[str]:
    for entry in found:
        if entry.parent_id == top.mount_id and entry.mount_id != top.mount_id:
            below = os.path.relpath(entry.mount_point, top.mount_point)
            if below not in _EMPTY_FOR_GOOD:
                yield entry.mount_point
