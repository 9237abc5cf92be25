"""The file system's options as entries of ``mounts=``, in the order of the command line.

Three of them do nothing by themselves, as with ``bwrap(1)``: ``--size`` and ``--perms`` are about the next option of
the file system, ``--overlay-src`` adds a layer to it. If that one has no use for them, something else was meant, and it
is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

import linx_trio as linx
from linx_trio._cli_errors import Complaint
from linx_trio._cli_fields import absolute, content

_TAKE: dict[str, tuple[str, ...]] = {
    "size": ("tmpfs",),
    "perms": ("tmpfs", "dir", "file"),
    "overlay_src": ("overlay", "ro_overlay"),
}
"""What is said of the next option, and which ones it can be said of."""

_DOCKERS = re.compile(r"(/.*):(?:(?:ro|rw|exec|noexec|suid|nosuid|dev|nodev|(?:size|mode|uid|gid)=[^,]*)(?:,|$))+")


def entries(words: Iterable[tuple[str, Any]], *, rootless: bool) -> list[linx.mount.Entry]:
    """The entries that `words` ask for, the names of options with what was given to each.

    `rootless`: overlays are mounted in a user namespace, or by nobody who is root: what they remember about files goes
    into attributes that an owner may write.
    """
    found: list[linx.mount.Entry] = []
    pending: dict[str, Any] = {}
    for name, value in words:
        if name in _TAKE:
            _note(pending, name, value)
            continue
        for said in pending:
            if name not in _TAKE[said]:
                raise Complaint(f"{_spelled(said)} is about what follows it, and {_spelled(name)} has no {_WHAT[said]}")
        try:
            found += _entry(name, value, pending, rootless)
        except ValueError as exc:
            raise Complaint(f"{_spelled(name)}: {str(exc).partition(': ')[2] or exc}") from None
        pending = {}
    if pending:
        said = next(iter(pending))
        others = " or ".join(map(_spelled, _TAKE[said]))
        raise Complaint(f"{_spelled(said)} is about what follows it, and nothing does", f"put it before {others}")
    return found


_WHAT = {"size": "size", "perms": "access mode", "overlay_src": "layers"}


def _spelled(name: str) -> str:
    return "--" + name.replace("_", "-")


def _note(pending: dict[str, Any], name: str, value: Any) -> None:
    if name == "overlay_src":
        pending.setdefault(name, []).append(absolute(value))
    elif name in pending:
        raise Complaint(f"{_spelled(name)} is there twice before one option")
    else:
        pending[name] = value


def _entry(name: str, value: Any, said: dict[str, Any], rootless: bool) -> list[linx.mount.Entry]:
    mount = linx.mount
    mode = {} if "perms" not in said else {"mode": said["perms"]}
    match name:
        case "bind" | "ro_bind" | "dev_bind" | "bind_try" | "ro_bind_try" | "dev_bind_try":
            return _bind(name, *value)
        case "volume":
            return [mount.Bind(absolute(value[0]), value[1], value[2], nosuid=True, nodev=True)]
        case "overlay" | "ro_overlay":
            return [_overlay(value, said.get("overlay_src", ()), rootless)]
        case "tmpfs":
            _refuse_dockers(value)
            return [mount.Tmpfs(value, said.get("size"), **mode)]
        case "dir":
            return [mount.Dir(value, **mode)]
        case "file":
            return [mount.File(value[1], content(value[0], "--file"), **mode)]
        case "symlink":
            return [mount.Symlink(*value)]
        case "proc":
            return [mount.Proc(value)]
        case "dev":
            return [mount.Dev(value)]
        case "mqueue":
            return [mount.Mount("mqueue", value, nosuid=True, nodev=True, noexec=True)]
        case "remount_ro":
            return [mount.Remount(value, readonly=True)]
    raise AssertionError(name)


def _bind(name: str, src: str, dst: str) -> list[linx.mount.Entry]:
    src = absolute(src)
    if name.endswith("_try") and not os.path.lexists(src):
        return []
    return [linx.mount.Bind(src, dst, name.startswith("ro_"), nosuid=True, nodev=not name.startswith("dev_"))]


def _overlay(value: Any, given: Iterable[str], rootless: bool) -> linx.mount.Entry:
    """The layers are given from the bottom to the top; the library has them from the top to the bottom."""
    lower = tuple(reversed(list(given)))
    options: dict[str, Any] = {"userxattr": rootless, "nosuid": True, "nodev": True}
    if isinstance(value, str):
        if len(lower) < 2:
            raise Complaint(
                "--ro-overlay takes two layers at least", "put --overlay-src SRC before it, twice or more; or --ro-bind"
            )
        return linx.mount.Overlay(value, lower, **options)
    upper, work, dst = value
    if not lower:
        raise Complaint("--overlay takes one layer at least below UPPER", "put --overlay-src SRC before it; or --bind")
    return linx.mount.Overlay(dst, lower, absolute(upper), absolute(work), **options)


def _refuse_dockers(dst: str) -> None:
    if found := _DOCKERS.fullmatch(dst):
        raise Complaint(
            f"--tmpfs {dst}: settings behind a colon are docker's",
            f"here they stand before it: --size 64M --perms 1777 --tmpfs {found[1]}",
        )
