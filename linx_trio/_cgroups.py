"""Where a process is in the cgroup v2 hierarchy (``cgroups(7)``), and where that is in the file system: pure functions
of the text of ``/proc/<pid>/cgroup`` and ``/proc/<pid>/mountinfo``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

_OCTAL = re.compile(rb"\\([0-7]{3})")


def path_of(cgroup: bytes) -> bytes | None:
    """The v2 path in a ``/proc/<pid>/cgroup``, `None` where there is no v2 hierarchy. It begins with ``/..`` where it
    is outside of the reader's cgroup namespace.
    """
    for line in cgroup.split(b"\n"):
        if line.startswith(b"0::/"):
            return line[3:]
    return None


def directories_of(path: bytes, mountinfo: bytes) -> list[bytes]:
    """Where that cgroup is to be found: below each mount of the v2 hierarchy that reaches it."""
    found = []
    for parts in _v2_lines(mountinfo):
        root, mount_point = _unescape(parts[3]), _unescape(parts[4])
        below = _below(path, root)
        if below is not None:
            found.append(os.path.join(mount_point, below) if below else mount_point)
    return found


def mounts_of(mountinfo: bytes) -> list[tuple[bytes, bytes]]:
    """Each mount of the v2 hierarchy: its mount point, and the numbers of its device (``major:minor``)."""
    return [(_unescape(parts[4]), parts[2]) for parts in _v2_lines(mountinfo)]


def _v2_lines(mountinfo: bytes) -> Iterator[list[bytes]]:
    for line in mountinfo.split(b"\n"):
        fields, separator, rest = line.partition(b" - ")
        parts = fields.split(b" ")
        if separator and len(parts) >= 6 and rest.split(b" ", 1)[0] == b"cgroup2":
            yield parts


def _unescape(field: bytes) -> bytes:
    """Space, tab, newline and backslash are written as octal numbers there."""
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field)


def _below(path: bytes, root: bytes) -> bytes | None:
    """`path` as seen from `root`, both of the same namespace; `None` if it is not below."""
    if root == b"/":
        return None if path.startswith(b"/..") else path[1:]
    if path == root:
        return b""
    return path[len(root) + 1 :] if path.startswith(root + b"/") else None
