"""The rest of the entries of ``mounts=``, what becomes of mounts that are there; and the whole list: checked, as plain
data, and as the steps of the parked child.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from linx_trio import _mount_steps as ms
from linx_trio._mount_entries import (
    AnyPath,
    Bind,
    Cgroup2,
    Dev,
    Devpts,
    Mount,
    Proc,
    Sysfs,
    Tmpfs,
    new,
    step,
)
from linx_trio._mount_steps import Entry, Steps

# ---- layers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class Overlay(Entry):
    """Directories of the host on top of each other (the kernel's ``filesystems/overlayfs``).

    Args:
        dst: where.
        lower: read-only ones, the topmost first.
        upper: what is written goes there; `None`: nothing can be written.
        work: an empty directory on the same file system as `upper`; both or neither.
        userxattr: what an overlay remembers about files goes into ``user.`` attributes: wanted in a user namespace of
            an ordinary user.
        readonly, nosuid, nodev, noexec: see ``mount(8)``.

    A path may have no comma, colon or backslash in it.
    """

    kind: ClassVar[str] = "overlay"
    dst: AnyPath
    lower: Sequence[AnyPath]
    upper: AnyPath | None = None
    work: AnyPath | None = None
    _: KW_ONLY
    userxattr: bool = False
    readonly: bool = False
    nosuid: bool = False
    nodev: bool = False
    noexec: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.lower, (str, bytes, os.PathLike)) or not isinstance(self.lower, Sequence):
            raise TypeError(f"Overlay: lower must be a sequence of paths, not {self.lower!r}")
        lower = tuple(_layer(path, f"Overlay: lower[{i}]") for i, path in enumerate(self.lower))
        upper = None if self.upper is None else _layer(self.upper, "Overlay: upper")
        work = None if self.work is None else _layer(self.work, "Overlay: work")
        if (upper is None) != (work is None):
            raise ValueError(f"Overlay: upper={upper!r} and work={work!r}: both or neither")
        if len(lower) < (2 if upper is None else 1):
            raise ValueError(f"Overlay: lower={list(lower)!r}: without upper it takes two at least, with it one")
        if upper is not None and upper.rstrip("/") == str(work).rstrip("/"):
            raise ValueError(f"Overlay: upper={upper!r} and work={work!r} must be two directories")
        self._set(lower=lower, upper=upper, work=work)
        self._check()
        length = len(os.fsencode(self._options()))
        if length > _PAGE:
            raise ValueError(
                f"Overlay: lower has {len(lower)} paths; with upper and work these are {length} bytes of options, and "
                f"mount(2) takes {_PAGE}: use fewer or shorter ones"
            )

    def _options(self) -> str:
        options = ["lowerdir=" + ":".join(map(str, self.lower))]
        if self.upper is not None:
            options += [f"upperdir={self.upper!s}", f"workdir={self.work!s}"]
        if self.userxattr:
            options.append("userxattr")
        return ",".join(options)

    def steps(self) -> Steps:
        return [new(self, "overlay", str(self.dst), self._options(), ms.attributes(self))]


_PAGE = 4095


def _layer(value: AnyPath, name: str) -> str:
    path = ms.absolute(value, name)
    if set(path) & set(",:\\"):
        raise ValueError(
            f"{name}={path!r} has a comma, colon or backslash in it, which the options of overlayfs separate by"
        )
    return path


# ---- what is neither a file system nor the host's --------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class Symlink(Entry):
    """A symbolic link at `dst` that says `target`, which is not looked up. The same one may be there already."""

    kind: ClassVar[str] = "symlink"
    target: AnyPath
    dst: AnyPath

    def __post_init__(self) -> None:
        self._set(target=ms.text(self.target, "Symlink: target"))
        self._check()

    def steps(self) -> Steps:
        return [step(self, "make_symlink", str(self.target), str(self.dst))]


@dataclass(frozen=True, slots=True, repr=False)
class Dir(Entry):
    """A directory, with those that lead there. One that is there is left as it is. A set-group-ID bit or a default ACL
    of what it is made in is passed on to it, as ``mkdir(2)`` and ``acl(5)`` say.
    """

    kind: ClassVar[str] = "dir"
    dst: AnyPath
    mode: int = 0o755

    def __post_init__(self) -> None:
        self._check()

    def steps(self) -> Steps:
        return [step(self, "make_dir", str(self.dst), self.mode)]


@dataclass(frozen=True, slots=True, repr=False)
class File(Entry):
    """A file with that content: text as UTF-8, or bytes. One that is there is overwritten; if it has more names (hard
    links), they keep what it was. What is there and is no file, a device, say, is refused.
    """

    kind: ClassVar[str] = "file"
    dst: AnyPath
    data: str | bytes
    mode: int = 0o644

    def __post_init__(self) -> None:
        data = self.data
        if isinstance(data, str):
            try:
                data = data.encode()
            except UnicodeEncodeError:
                raise ValueError("File: data is text that UTF-8 cannot encode") from None
        elif not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"File: data must be str or bytes, not {data!r}")
        self._set(data=bytes(data))
        if len(self.data) > FILE_LIMIT:
            raise ValueError(f"File: data has {len(self.data)} bytes; {FILE_LIMIT} can be sent: use Bind")
        self._check()

    def steps(self) -> Steps:
        return [step(self, "make_file", str(self.dst), self.data, self.mode)]


FILE_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True, repr=False)
class Remount(Entry):
    """Other flags for a mount that is there: its own ones, not those of the file system (``mount_setattr(2)``).

    Args:
        dst: a mount point, ``"/"`` for the root's.
        readonly, nosuid, nodev, noexec: `None`: as it is.
        flags: more of them, by their names in ``mount(8)``; none may contradict another one, or a field.
        recursive: also all that is mounted below.
    """

    kind: ClassVar[str] = "remount"
    dst: AnyPath
    readonly: bool | None = None
    _: KW_ONLY
    nosuid: bool | None = None
    nodev: bool | None = None
    noexec: bool | None = None
    flags: Iterable[str] = ()
    recursive: bool = False

    def __post_init__(self) -> None:
        self._set(flags=ms.flags(self.flags, "Remount: flags"))
        self._check(root=True)
        if not ms.words(self):
            raise ValueError(f"{self!r} changes nothing: it takes readonly=, nosuid=, nodev=, noexec= or flags=")

    def steps(self) -> Steps:
        return [step(self, "mount_remount", str(self.dst), *ms.bits(ms.words(self)), int(self.recursive))]


@dataclass(frozen=True, slots=True, repr=False)
class Propagation(Entry):
    """What is mounted below `dst` later: ``"private"``, ``"slave"``, ``"shared"`` or ``"unbindable"``
    (``mount_namespaces(7)``). In a fresh mount namespace all is private; as the first entry, with `dst` "/", this one
    says otherwise. There ``"shared"`` is only for mounts without a ``root=`` of their own.
    """

    kind: ClassVar[str] = "propagation"
    dst: AnyPath
    type: str
    recursive: bool = True

    def __post_init__(self) -> None:
        ms.propagation(self.type, "Propagation: type")
        self._check(root=True)

    def steps(self) -> Steps:
        type_ = ms.PROPAGATION[self.type]
        return [step(self, "mount_propagation", str(self.dst), type_, int(self.recursive))]


@dataclass(frozen=True, slots=True, repr=False)
class Protect(Entry):
    """What is at `dst` becomes read-only, with all that is mounted below; without devices, set-user-ID bits and
    programs to run. For parts of what was mounted before, such as ``/proc/sys``. What is not there needs none.
    """

    kind: ClassVar[str] = "protect"
    dst: AnyPath

    def __post_init__(self) -> None:
        self._check()

    def steps(self) -> Steps:
        return [step(self, "mount_protect", str(self.dst))]


@dataclass(frozen=True, slots=True, repr=False)
class Mask(Entry):
    """What is at `dst` is covered: a directory by an empty one, a file by the null device. What is not there needs no
    cover.
    """

    kind: ClassVar[str] = "mask"
    dst: AnyPath

    def __post_init__(self) -> None:
        self._check()

    def steps(self) -> Steps:
        return [step(self, "mount_mask", str(self.dst))]


KINDS: Mapping[str, type[Entry]] = {
    entry.kind: entry
    for entry in (
        Bind, Cgroup2, Dev, Devpts, Dir, File, Mask, Mount, Overlay, Proc, Propagation, Protect, Remount, Symlink,
        Sysfs, Tmpfs,
    )
}  # fmt: skip
"""The entries by their names in plain form."""


# ---- the whole list --------------------------------------------------------------------------------------------------


def check_root(value: Any, name: str) -> str | Tmpfs | None:
    """For the option ``root=``: an absolute path, or ``Tmpfs("/")``. Raises `TypeError` or `ValueError`, naming it."""
    if value is None:
        return None
    if isinstance(value, Entry):
        if value != EMPTY_ROOT:
            raise ValueError(f"{name} must be a directory, or {EMPTY_ROOT!r} for an empty one, not {value!r}")
        return EMPTY_ROOT
    path = ms.absolute(value, name)
    if not path.strip("/."):
        raise ValueError(f"{name}={path!r} is the root that there is: leave it out")
    return path


EMPTY_ROOT = Tmpfs("/")


def check_mounts(value: Any, name: str) -> tuple[Entry, ...]:
    """For the option ``mounts=``: entries. Raises `TypeError` or `ValueError`, naming it."""
    if isinstance(value, (str, bytes, Entry, Mapping)) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be an iterable of entries like linx.mount.Bind('/usr'), not {value!r}")
    entries = tuple(value)
    for i, entry in enumerate(entries):
        if type(entry) is Entry:
            raise TypeError(
                f"{name}[{i}] must be an entry like linx.mount.Bind('/usr'), not one of the bare class Entry"
            )
        if not isinstance(entry, Entry):
            raise TypeError(f"{name}[{i}] must be an entry like linx.mount.Bind('/usr'), not {entry!r}")
        if isinstance(entry, Tmpfs) and entry.dst == "/":
            raise ValueError(f"{name}[{i}]={entry!r}: an empty root is root={EMPTY_ROOT!r}")
    return entries


def says_propagation(entries: Sequence[Entry]) -> bool:
    """Whether the list begins with what is to be propagated: then nothing is made private before."""
    return bool(entries) and isinstance(entries[0], Propagation) and entries[0].dst == "/"


def check_root_and_mounts(root: str | Tmpfs, entries: Sequence[Entry]) -> None:
    """For both options together. Raises `ValueError`, naming the entry."""
    first = entries[0] if says_propagation(entries) else None
    if isinstance(first, Propagation) and first.type == "shared":
        raise ValueError(
            f"mounts[0]={first!r} and root={root!r} contradict each other: pivot_root(2) cannot leave a '/' that is "
            "shared with the host, and the new root, which is mounted on it before, would be the host's too; leave it "
            "out, or say 'slave'"
        )


def steps_of(root: str | Tmpfs | None, entries: Sequence[Entry]) -> Steps:
    """The steps for both options, checked, in their order."""
    leading, rest = (entries[:1], entries[1:]) if says_propagation(entries) else ((), entries)
    steps = [each for entry in leading for each in entry.steps()]
    thing = repr(root) if isinstance(root, Tmpfs) else root or ""
    if root is not None:
        steps.append((("mount_root", b"" if isinstance(root, Tmpfs) else os.fsencode(root)), thing))
    steps += [each for entry in rest for each in entry.steps()]
    if root is not None:
        steps.append((("pivot_root",), thing))
    return steps


def entry_of(plain: Any, name: str = "an entry") -> Entry:
    """The entry that `Entry.to_dict` described. Raises `TypeError` or `ValueError`, naming what is wrong."""
    if not isinstance(plain, Mapping) or plain.get("kind") not in KINDS:
        raise ValueError(f"{name} must be a mapping whose 'kind' is one of {', '.join(KINDS)}, not {plain!r}")
    values = {key: value for key, value in plain.items() if key != "kind"}
    match values.get("data"):
        case {"base64": str(data), **rest} if not rest:
            values["data"] = base64.b64decode(data, validate=True)
    return KINDS[plain["kind"]](**values)
