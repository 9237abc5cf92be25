"""`sandbox`: the preset for running code that nobody has read. What a workload sees and may do there is spelled out in
options of `Workload`, so all of it can be read, printed and changed.
"""

from __future__ import annotations

import errno
import functools
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from linx_trio import _capabilities, seccomp
from linx_trio._idmaps import IdMap, Maps
from linx_trio._mount_entries import Bind, Dev, Proc, Tmpfs
from linx_trio._mount_steps import Entry, absolute, destination
from linx_trio._mount_tree import File, Mask, Remount, Symlink
from linx_trio._options import Argument
from linx_trio._workload import Key, Workload, options_of, remembered

READONLY = (
    "/usr", "/etc/alternatives", "/etc/ca-certificates", "/etc/ld.so.cache", "/etc/localtime", "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf", "/etc/pki/ca-trust", "/etc/pki/tls/certs", "/etc/pki/tls/cert.pem",
    "/etc/pki/tls/openssl.cnf", "/etc/pki/java",
)  # fmt: skip
"""What of the host a program needs to start, and none of it is a secret. What is not there is left out."""

_NETWORK = ("/etc/resolv.conf", "/etc/hosts", "/etc/services")
_MERGED = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_MASKED = (
    "/proc/keys", "/proc/interrupts", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug", "/proc/scsi",
    "/proc/asound",
)  # fmt: skip
"""What tells of the host, and everybody may read."""

_MASKED_FROM_ROOT = (
    "/proc/kcore", "/proc/kmsg", "/proc/kpagecgroup", "/proc/kpagecount", "/proc/kpageflags", "/proc/pagetypeinfo",
    "/proc/slabinfo", "/proc/vmallocinfo", "/proc/allocinfo", "/proc/vmcore", "/proc/iomem", "/proc/bus", "/proc/mtrr",
    "/proc/tty/driver",
)  # fmt: skip
"""What the kernel shows to root's uid alone, whatever its capabilities: a caller who is root is that uid inside too."""

ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
}


def sandboxed(
    argv: Sequence[Argument],
    *,
    readonly: Iterable[Argument],
    writable: Iterable[Argument],
    network: bool,
    **options: Any,
) -> Workload:
    """`linx_trio.sandboxed`."""
    if not isinstance(network, bool):
        raise TypeError(f"network must be True or False, not {network!r}")
    shown = READONLY if readonly is READONLY else _paths(readonly, "readonly")
    kept = _paths(writable, "writable") if writable != () else ()
    if readonly is not READONLY:  # of the usual ones any may be writable instead
        _check_apart(shown, kept)
    if network and shown == READONLY:
        shown += _NETWORK
    filtered = "seccomp" not in options
    there, merged = _on_the_host() if shown is READONLY else (_those_that_exist(shown), _merged())
    key = (there, merged if "/usr" in there else (), kept, network, filtered, os.geteuid(), os.getegid())
    if "mounts" not in options:  # they come in addition
        made = remembered(lambda own: _of_program(own, *key), {"argv": argv, **options})
        if made is not None:
            return made
    usual = _preset(*key)
    if "mounts" in options:
        *own, last = usual.mounts
        options["mounts"] = [*own, *options["mounts"], last]
    return usual.replace(argv=argv, **options)


@functools.lru_cache(maxsize=16)
def _preset(
    shown: tuple[str, ...],
    merged: tuple[tuple[str, str | None], ...],
    kept: tuple[str, ...],
    network: bool,
    filtered: bool,
    uid: int,
    gid: int,
) -> Workload:
    """A sandbox with nothing in it: to describe all of it, and to check that, takes longer than to start it. The file
    system has been asked before: nothing but the arguments says what it is.
    """
    return Workload(
        ["true"],
        namespaces={"user", "pid", "mount", "ipc", "uts", "cgroup"} | (set() if network else {"net"}),
        user=Maps(uid=(IdMap(uid, uid, 1),), gid=(IdMap(gid, gid, 1),)),
        root=Tmpfs("/"),
        mounts=[*_mounts(shown, merged, kept, uid, gid), Remount("/", readonly=True)],
        init=True,
        hostname="sandbox",
        env=dict(ENVIRONMENT),
        cwd="/tmp",
        rlimits={"core": (0, 0)},
        sysctls={"user.max_user_namespaces": 0},
        capabilities=_capabilities.keep(()),
        seccomp=_filter() if filtered else None,
        no_new_privs=True,
    )


@functools.lru_cache(maxsize=64)
def _of_program(own: Key, *key: Any) -> Workload:
    """The same object each time: a workload remembers the request that it has become."""
    return _preset(*key).replace(**options_of(own))


Links = tuple[tuple[str, str | None], ...]

_DIRECTORIES = ("/", "/etc", "/etc/ssl", "/etc/pki", "/etc/pki/tls")
"""Where all of `READONLY` and `_MERGED` is to be found."""

_SETTLED = 2.0
"""Seconds: a directory that has changed that recently may change again without its ctime doing so."""

_latest: tuple[tuple[str, ...], list[tuple[int, ...]], tuple[tuple[str, ...], Links]] | None = None


def _on_the_host() -> tuple[tuple[str, ...], Links]:
    """What there is of `READONLY` and `_MERGED`: looked for again when one of those directories has changed."""
    global _latest
    if _latest is not None and _stamps(_latest[0]) == _latest[1]:
        return _latest[2]
    directories = tuple(filter(os.path.lexists, _DIRECTORIES))
    stamps = _stamps(directories)
    found = _those_that_exist(READONLY), _merged()
    if stamps and time.time() - max(ctime for _, _, ctime in stamps) / 1e9 > _SETTLED:
        _latest = directories, stamps, found
    return found


def _stamps(directories: Iterable[str]) -> list[tuple[int, ...]]:
    """None at all where one of them is gone, or a link to nowhere: what comes to be there changes none of them."""
    with suppress(OSError):
        return [(seen.st_dev, seen.st_ino, seen.st_ctime_ns) for seen in map(os.stat, directories)]
    return []


def _those_that_exist(paths: Iterable[str]) -> tuple[str, ...]:
    """All that was asked for by name; of the usual ones, those that there are."""
    return tuple([path for path in paths if path not in _USUAL or os.path.lexists(path)])


def _merged() -> Links:
    """The directories that are links into /usr where that is merged, each with where it leads; `None`: it is none."""
    found: list[tuple[str, str | None]] = []
    for name in _MERGED:
        try:
            found.append((name, os.readlink(name)))
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                found.append((name, None))
    return tuple(found)


@functools.cache
def _filter() -> seccomp.Filter:
    """Checking the program instruction by instruction takes longer than all the rest."""
    return seccomp.default()


def _paths(value: Iterable[Argument], name: str) -> tuple[str, ...]:
    if isinstance(value, (str, bytes, os.PathLike)) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be an iterable of paths, not {value!r}; for a single one write ({value!r},)")
    return tuple(_path(path, f"{name}[{i}]") for i, path in enumerate(value))


def _path(value: Argument, name: str) -> str:
    path = absolute(value, name)
    if destination(path, name, root=True) == "/":
        raise ValueError(f"{name} is {path!r}, and the sandbox has a root of its own: name what is to be seen in it")
    return path


def _check_apart(readonly: Iterable[str], writable: Iterable[str]) -> None:
    shown = {destination(path, "readonly") for path in readonly}
    for path in writable:
        if destination(path, "writable") in shown:
            raise ValueError(f"writable has {path!r}, and so has readonly: a path is one of them")


_USUAL = frozenset({*READONLY, *_NETWORK})
"""What is left out if it is not there."""


def _mounts(
    readonly: Sequence[str], merged: Sequence[tuple[str, str | None]], writable: Sequence[str], uid: int, gid: int
) -> list[Entry]:
    is_root = uid == 0  # whom the modes of /proc let write; and change them
    masked = _MASKED + _MASKED_FROM_ROOT if is_root else _MASKED
    entries: list[Entry] = [Proc(readonly=is_root), *map(Mask, masked), Dev()]
    entries += [Tmpfs("/tmp", mode=0o1777), Tmpfs("/run"), Tmpfs("/var/tmp", mode=0o1777), *_accounts(uid, gid)]
    entries.append(File("/etc/hosts", "127.0.0.1 localhost sandbox\n::1 localhost\n"))
    for entry in _outer_first(readonly, writable):
        entries.append(entry)
        if entry.readonly and entry.dst == "/usr":
            entries += [_as_on_the_host(*place) for place in merged]
    return entries


def _outer_first(readonly: Sequence[str], writable: Sequence[str]) -> list[Bind]:
    """What is bound later covers what is below it: the inner one of two paths says how it is there."""
    binds = [Bind(path, readonly=True, nosuid=True, nodev=True) for path in readonly]
    binds += [Bind(path, nosuid=True, nodev=True) for path in writable]
    return sorted(binds, key=lambda bind: str(bind.dst).count("/"))


def _as_on_the_host(path: str, link: str | None) -> Entry:
    if link is not None:
        return Symlink(link, path)
    return Bind(path, readonly=True, nosuid=True, nodev=True)


def _accounts(uid: int, gid: int) -> list[Entry]:
    """Names for the ids that there are, and none else of the host's."""
    name = "root" if uid == 0 else "user"
    return [
        File("/etc/passwd", f"{name}:x:{uid}:{gid}::/tmp:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"),
        File("/etc/group", f"{name}:x:{gid}:\nnogroup:x:65534:\n"),
        File("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
    ]
