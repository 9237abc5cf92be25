"""Workloads with a file system of their own, which anybody can make in a user namespace; and looking at it.

What a workload sees is looked at from outside, through ``/proc/<pid>/root`` and its mountinfo, while it is parked; or
told by itself, with busybox or the host's programs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import linx_trio as linx
from linx_trio import mount, user
from linx_trio.mount import Bind, Entry, MountInfo, Symlink, Tmpfs

KINDS = frozenset({"user", "mount", "pid"})
SLEEP = ["sleep", "600"]
EMPTY = Tmpfs("/")
BUSYBOX = shutil.which("busybox")

needs_busybox = pytest.mark.skipif(BUSYBOX is None, reason="busybox is needed: Debian's package busybox-static")


def own(*more: str, **options: Any) -> dict[str, Any]:
    """Options for a workload that is root of a user namespace of its own; `more` are more namespaces."""
    return {"namespaces": KINDS | set(more), "user": user.root_map(), "stdin": linx.DEVNULL, **options}


def programs() -> list[Entry]:
    """The host's programs, to be read only."""
    entries: list[Entry] = [Bind("/usr", readonly=True)]
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
        if os.path.islink(name):
            entries.append(Symlink(os.readlink(name), name))
        elif os.path.isdir(name):
            entries.append(Bind(name, readonly=True))
    return entries


def busybox_tree(directory: Path, *applets: str) -> Path:
    """A root in which there is nothing but busybox, as ``/bin/<applet>``."""
    assert BUSYBOX is not None
    (directory / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, directory / "bin/busybox")
    for applet in applets:
        (directory / "bin" / applet).symlink_to("busybox")
    return directory


@contextlib.asynccontextmanager
async def parked(*more: str, **options: Any) -> AsyncIterator[linx.Session]:
    """A parked workload that is root of its own namespaces."""
    async with linx.spawn(SLEEP, **own(*more, **options)) as s:
        yield s


async def told(argv: list[str] | str, *more: str, **options: Any) -> str:
    """What a workload in namespaces of its own says, on both its outputs; a string is for the shell."""
    arguments = ["/bin/sh", "-c", argv] if isinstance(argv, str) else argv
    options = {"capture_stdout": True, "stderr": linx.STDOUT, "check": False, **own(*more, **options)}
    done = await linx.run(arguments, **options)
    return done.stdout.decode()


def root_of(s: linx.Session) -> Path:
    """The workload's root directory, as it is now."""
    return Path(f"/proc/{s.host_pid}/root")


def seen(s: linx.Session, path: str | Path) -> list[MountInfo]:
    """The mounts that the workload has at that path, the topmost last."""
    return [entry for entry in mount.mounts(s) if entry.mount_point == str(path)]


def is_there(path: str | Path) -> bool:
    """On the host, a dangling link included."""
    return os.path.lexists(path)


def points(s: linx.Session) -> list[str]:
    return [entry.mount_point for entry in mount.mounts(s)]
