"""The entries of ``mounts=``: what a workload's file system gets, in the order given.

Every `dst` is as the workload will see it, below its root; whatever of it is missing is made. Every `src` is a path of
the host, as it is before the workload's root has become its root.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from linx_trio import _mount_steps as ms
from linx_trio._mount_steps import Entry, Steps

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def step(entry: Entry, name: str, *arguments: int | str | bytes, part: str = "") -> tuple[ms.Step, str]:
    told = (os.fsencode(value) if isinstance(value, str) else value for value in arguments)
    return (name, *told), f"{entry!r}{part and ': '}{part}"


def new(entry: Entry, fstype: str, dst: str, options: str, bits: int, *, part: str = "") -> tuple[ms.Step, str]:
    return step(entry, "mount_new", fstype, fstype, dst, options, bits, part=part)


# ---- the host's files ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class Bind(Entry):
    """A file or directory of the host, as a bind mount (``mount(8)``).

    Args:
        src: absolute; symlinks in it are followed.
        dst: where; `None`: the same path.
        readonly: nothing can be written there; with `recursive` also not to what is mounted below it.
        recursive: with all that is mounted below `src`.
        nosuid, nodev, noexec: see ``mount(8)``. What the host's mount has of them stays.
        flags: more of them, by their names in ``mount(8)``: ``("noatime",)``. None may contradict
            another one, or a field: ``"rw"`` with `readonly` is refused.
    """

    kind: ClassVar[str] = "bind"
    src: AnyPath
    dst: AnyPath | None = None
    readonly: bool = False
    recursive: bool = True
    _: KW_ONLY
    nosuid: bool = False
    nodev: bool = False
    noexec: bool = False
    flags: Iterable[str] = ()

    def __post_init__(self) -> None:
        src = ms.absolute(self.src, "Bind: src")
        self._set(src=src, dst=src if self.dst is None else self.dst, flags=ms.flags(self.flags, "Bind: flags"))
        self._check()
        ms.words(self)

    def steps(self) -> Steps:
        now, later = ms.split(*ms.bits(ms.words(self)))
        steps = [step(self, "mount_bind", str(self.src), str(self.dst), now, int(self.recursive))]
        if later is not None:
            steps.append(step(self, "mount_remount", str(self.dst), *later, int(self.recursive)))
        return steps


# ---- file systems ----------------------------------------------------------------------------------------------------


_COMMA = re.compile(r"(?<!\\),")


@dataclass(frozen=True, slots=True, repr=False)
class Mount(Entry):
    """A new mount of any file system.

    Args:
        fstype: its type, see ``/proc/filesystems``.
        dst: where.
        source: what it is of; `None`: the type's name, as for those that need none.
        options: the file system's own, ``"mode=0755,size=64M"``; flags of ``mount(8)`` may be among them. A comma
            within one has a backslash before it.
        readonly, nosuid, nodev, noexec, flags: as with `Bind`.
    """

    kind: ClassVar[str] = "mount"
    fstype: str
    dst: AnyPath
    _: KW_ONLY
    source: AnyPath | None = None
    options: str = ""
    readonly: bool = False
    nosuid: bool = False
    nodev: bool = False
    noexec: bool = False
    flags: Iterable[str] = ()

    def __post_init__(self) -> None:
        fstype = ms.text(self.fstype, "Mount: fstype")
        source = None if self.source is None else ms.text(self.source, "Mount: source")
        options = ms.text(self.options, "Mount: options", "mount(2) takes 4095") if self.options else ""
        self._set(fstype=fstype, source=source, options=options, flags=ms.flags(self.flags, "Mount: flags"))
        self._check()
        ms.words(self, _COMMA.split(options))

    def steps(self) -> Steps:
        words = _COMMA.split(self.options)
        own = ",".join(word for word in words if word not in ms.FLAGS)
        now, later = ms.split(*ms.bits(ms.words(self, words)))
        source = self.fstype if self.source is None else str(self.source)
        steps = [step(self, "mount_new", self.fstype, source, str(self.dst), own, now)]
        if later is not None:
            steps.append(step(self, "mount_remount", str(self.dst), *later, 0))
        return steps


@dataclass(frozen=True, slots=True, repr=False)
class Tmpfs(Entry):
    """An empty ``tmpfs(5)``. For ``root=``, with `dst` "/", it is an empty root.

    Args:
        dst: where.
        size: its limit in bytes, or like ``"64M"`` or ``"50%"``; `None`: the kernel's, half of the memory.
        mode: access mode of its root directory. With the sticky bit (0o1777) programs in it cannot open each other's
            files with O_CREAT (``fs.protected_regular``).
        readonly, nosuid, nodev, noexec: see ``mount(8)``.
    """

    kind: ClassVar[str] = "tmpfs"
    dst: AnyPath
    size: int | str | None = None
    mode: int = 0o755
    _: KW_ONLY
    readonly: bool = False
    nosuid: bool = True
    nodev: bool = True
    noexec: bool = False

    def __post_init__(self) -> None:
        if self.size is not None:
            ms.size(self.size, "Tmpfs: size")
        self._check(root=True)

    def steps(self) -> Steps:
        options = f"mode={self.mode:04o}" + ("" if self.size is None else f",size={self.size}")
        return [new(self, "tmpfs", str(self.dst), options, ms.attributes(self))]


@dataclass(frozen=True, slots=True, repr=False)
class _Plain(Entry):
    """A file system without options of its own."""

    fstype: ClassVar[str]
    dst: AnyPath
    _: KW_ONLY
    readonly: bool = False
    nosuid: bool = True
    nodev: bool = True
    noexec: bool = True

    def __post_init__(self) -> None:
        self._check()

    def steps(self) -> Steps:
        return [new(self, self.fstype, str(self.dst), "", ms.attributes(self))]


@dataclass(frozen=True, slots=True, repr=False)
class Proc(_Plain):
    """The ``proc(5)`` of the workload's PID namespace, which has to be a fresh one unless the caller is root."""

    kind: ClassVar[str] = "proc"
    fstype: ClassVar[str] = "proc"
    dst: AnyPath = "/proc"


@dataclass(frozen=True, slots=True, repr=False)
class Sysfs(_Plain):
    """The ``sysfs(5)`` of the workload's network namespace, which has to be a fresh one unless the caller is root."""

    kind: ClassVar[str] = "sysfs"
    fstype: ClassVar[str] = "sysfs"
    dst: AnyPath = "/sys"
    _: KW_ONLY
    readonly: bool = True


@dataclass(frozen=True, slots=True, repr=False)
class Cgroup2(_Plain):
    """The ``cgroups(7)`` hierarchy, version 2, from the root of the workload's cgroup namespace on."""

    kind: ClassVar[str] = "cgroup2"
    fstype: ClassVar[str] = "cgroup2"
    dst: AnyPath = "/sys/fs/cgroup"


_DEVPTS = "newinstance,ptmxmode=0666,mode=0620"


@dataclass(frozen=True, slots=True, repr=False)
class Devpts(Entry):
    """Terminals of the workload's own (``pts(4)``), apart from the host's; its ``ptmx`` is for everybody."""

    kind: ClassVar[str] = "devpts"
    dst: AnyPath = "/dev/pts"

    def __post_init__(self) -> None:
        self._check()

    def steps(self) -> Steps:
        return [new(self, "devpts", str(self.dst), _DEVPTS, ms.NOSUID | ms.NOEXEC)]


@dataclass(frozen=True, slots=True, repr=False)
class Dev(Entry):
    """A minimal ``/dev``: null zero full random urandom tty, which are the host's (nobody but root may ``mknod(2)``);
    terminals of its own; an empty ``/dev/shm``; and the usual links.
    """

    kind: ClassVar[str] = "dev"
    dst: AnyPath = "/dev"

    def __post_init__(self) -> None:
        self._check()

    def steps(self) -> Steps:
        dst = str(self.dst)
        steps = [new(self, "tmpfs", dst, "mode=0755,size=65536k", ms.NOSUID | ms.NOEXEC)]
        for name in ("null", "zero", "full", "random", "urandom", "tty"):
            bits = ms.RDONLY | ms.NOSUID | ms.NOEXEC  # what is written to a device is no change of the file system
            steps.append(step(self, "mount_bind", f"/dev/{name}", f"{dst}/{name}", bits, 0, part=name))
        for name, target in _DEV_LINKS.items():
            steps.append(step(self, "make_symlink", target, f"{dst}/{name}", part=name))
        for name in ("pts", "shm", "mqueue"):
            steps.append(step(self, "make_dir", f"{dst}/{name}", 0o755, part=name))
        steps.append(new(self, "devpts", f"{dst}/pts", _DEVPTS, ms.NOSUID | ms.NOEXEC, part="pts"))
        steps.append(new(self, "tmpfs", f"{dst}/shm", "mode=1777", ms.NOSUID | ms.NODEV, part="shm"))
        return steps


_DEV_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
